//! Canonical forms of header fields and bodies (RFC 6376 section 3.4).

use aws_lc_rs::digest::{Context, SHA256};

/// How much of a message's form may change on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Nothing.
    Simple,
    /// White space, and how names are written.
    Relaxed,
}

impl Form {
    /// As in `c=`.
    pub fn name(self) -> &'static str {
        match self {
            Form::Simple => "simple",
            Form::Relaxed => "relaxed",
        }
    }
}

fn is_space(b: u8) -> bool {
    matches!(b, b' ' | b'\t')
}

/// Appends a field, whose bytes end with CR LF or with the message.
pub fn field(form: Form, raw: &[u8], out: &mut Vec<u8>) {
    let raw = raw.strip_suffix(b"\r\n").unwrap_or(raw);
    match (form, memchr::memchr(b':', raw)) {
        (Form::Relaxed, Some(colon)) => {
            out.extend(raw[..colon].trim_ascii_end().iter().map(u8::to_ascii_lowercase));
            out.push(b':');
            let mut space = false;
            let begin = out.len();
            let value = &raw[colon + 1..];
            for (i, b) in value.iter().enumerate() {
                match b {
                    // Only folds are taken out.
                    b'\r' if value.get(i + 1) == Some(&b'\n') => {}
                    b'\n' => {}
                    b if is_space(*b) => space = true,
                    b => {
                        if space && out.len() > begin {
                            out.push(b' ');
                        }
                        space = false;
                        out.push(*b);
                    }
                }
            }
        }
        _ => out.extend_from_slice(raw),
    }
    out.extend_from_slice(b"\r\n");
}

/// The hash of a body, and the length of its canonical form.
pub fn body_hash<'a>(form: Form, parts: impl Iterator<Item = &'a [u8]>) -> (Vec<u8>, u64) {
    let mut c =
        Body { form, context: Context::new(&SHA256), len: 0, out: Vec::with_capacity(4096), lines: 0, space: false };
    for p in parts {
        match form {
            Form::Simple => c.simple(p),
            Form::Relaxed => c.relaxed(p),
        }
    }
    c.finish()
}

/// A body on its way through.
struct Body {
    form: Form,
    context: Context,
    len: u64,
    out: Vec<u8>,
    /// Line ends that count only when something follows.
    lines: usize,
    /// White space likewise.
    space: bool,
}

impl Body {
    fn push(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
        if self.out.len() >= 4000 {
            self.flush();
        }
    }

    fn flush(&mut self) {
        self.len += self.out.len() as u64;
        self.context.update(&self.out);
        self.out.clear();
    }

    /// What waited counts now.
    fn due(&mut self) {
        for _ in 0..std::mem::take(&mut self.lines) {
            self.push(b"\r\n");
        }
        if std::mem::take(&mut self.space) {
            self.push(b" ");
        }
    }

    fn simple(&mut self, mut rest: &[u8]) {
        while let Some(i) = memchr::memchr(b'\n', rest) {
            // Content has no bare line feeds.
            let line = rest[..i].strip_suffix(b"\r").unwrap_or(&rest[..i]);
            if !line.is_empty() {
                self.due();
                self.push(line);
            }
            self.lines += 1;
            rest = &rest[i + 1..];
        }
        if !rest.is_empty() {
            self.due();
            // Half of a line end that another part goes on with.
            let rest = rest.strip_suffix(b"\r").unwrap_or(rest);
            self.push(rest);
        }
    }

    fn relaxed(&mut self, mut rest: &[u8]) {
        while !rest.is_empty() {
            let plain = rest.iter().position(|b| *b <= b' ').unwrap_or(rest.len());
            if plain > 0 {
                self.due();
                self.push(&rest[..plain]);
                rest = &rest[plain..];
                continue;
            }
            match rest[0] {
                b'\n' => {
                    // Space at the end of a line does not count.
                    self.space = false;
                    self.lines += 1;
                }
                b'\r' if rest.get(1).is_none_or(|b| *b == b'\n') => {}
                b if is_space(b) => self.space = true,
                b => {
                    self.due();
                    self.push(&[b]);
                }
            }
            rest = &rest[1..];
        }
    }

    fn finish(mut self) -> (Vec<u8>, u64) {
        let something = self.len > 0 || !self.out.is_empty();
        // Empty lines at the end do not count, the end of the last line does; a body of nothing
        // else is one empty line (simple) or nothing (relaxed).
        if something || self.form == Form::Simple {
            self.push(b"\r\n");
        }
        self.flush();
        (self.context.finish().as_ref().to_vec(), self.len)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(form: Form, text: &str) -> String {
        let mut out = Vec::new();
        field(form, text.as_bytes(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn fields_of_rfc_6376_section_3_4_5() {
        assert_eq!(of(Form::Relaxed, "A: X\r\n"), "a:X\r\n");
        assert_eq!(of(Form::Relaxed, "B : Y\t\r\n\tZ  \r\n"), "b:Y Z\r\n");
        assert_eq!(of(Form::Relaxed, "C: a\rb\r\n c\r\n"), "c:a\rb c\r\n");
        assert_eq!(of(Form::Simple, "B : Y\t\r\n\tZ  \r\n"), "B : Y\t\r\n\tZ  \r\n");
    }

    /// Canonical bodies by what the RFC says of whole lines.
    fn naive(form: Form, body: &str) -> String {
        let mut lines: Vec<String> = body.split("\r\n").map(str::to_owned).collect();
        if form == Form::Relaxed {
            for l in &mut lines {
                let mut out = String::new();
                for c in l.chars() {
                    match c {
                        ' ' | '\t' if out.ends_with(' ') => {}
                        ' ' | '\t' => out.push(' '),
                        c => out.push(c),
                    }
                }
                *l = out.trim_end_matches(' ').to_owned();
            }
        }
        while lines.last().is_some_and(String::is_empty) {
            lines.pop();
        }
        match (lines.is_empty(), form) {
            (true, Form::Simple) => "\r\n".to_owned(),
            (true, Form::Relaxed) => String::new(),
            _ => lines.join("\r\n") + "\r\n",
        }
    }

    proptest! {
        #[test]
        fn bodies_are_what_the_rfc_says_however_they_are_cut(
            body in "([ab \t]{0,6}(\r\n)?){0,12}", cut in 0usize..80, relaxed: bool,
        ) {
            let form = if relaxed { Form::Relaxed } else { Form::Simple };
            let cut = cut.min(body.len());
            // Parts never begin between CR and LF.
            prop_assume!(!(body[..cut].ends_with('\r')));
            let (hash, len) = body_hash(form, [&body.as_bytes()[..cut], &body.as_bytes()[cut..]].into_iter());
            let expected = naive(form, &body);
            prop_assert_eq!(len as usize, expected.len());
            prop_assert_eq!(hash, aws_lc_rs::digest::digest(&SHA256, expected.as_bytes()).as_ref().to_vec());
        }
    }
}
