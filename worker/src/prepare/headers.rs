//! The header section as received (RFC 5322 §2.2), without copying it.

use std::ops::Range;

/// One field: its name and where it lies, folds and final CR LF included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field<'a> {
    /// Name as written.
    pub name: &'a str,
    /// Bytes of the whole field.
    pub range: Range<usize>,
    /// Bytes behind the colon, final CR LF excluded.
    pub value: &'a [u8],
}

/// The fields of a message, and where the header section ends (the empty line is not part
/// of it). A line that is not a field ends the section, as receivers see it.
pub fn parse(content: &[u8]) -> (Vec<Field<'_>>, usize) {
    let mut fields = Vec::new();
    let mut at = 0;
    while at < content.len() && !content[at..].starts_with(b"\r\n") {
        let colon = memchr::memchr2(b':', b'\n', &content[at..]).filter(|i| content[at + i] == b':');
        let Some(colon) = colon else { break };
        let name = content[at..at + colon].trim_ascii_end();
        let fine = !name.is_empty() && name.iter().all(|b| (33..=126).contains(b));
        let Some(name) = std::str::from_utf8(name).ok().filter(|_| fine) else { break };
        let mut end = at + colon;
        loop {
            match memchr::memchr(b'\n', &content[end..]) {
                Some(i) => end += i + 1,
                None => end = content.len(),
            }
            if !matches!(content.get(end), Some(b' ' | b'\t')) {
                break;
            }
        }
        fields.push(Field { name, range: at..end, value: content[at + colon + 1..end].trim_ascii_end() });
        at = end;
    }
    (fields, at)
}

/// A field's value on one line.
pub fn unfolded(value: &[u8]) -> String {
    String::from_utf8_lossy(value).replace("\r\n", "").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn folds_belong_to_their_field() {
        let m = b"A: 1\r\nX-Job : j\r\n k\r\n\r\nbody: no\r\n";
        let (f, end) = parse(m);
        assert_eq!(f.len(), 2);
        assert_eq!((f[1].name, unfolded(f[1].value).as_str(), end), ("X-Job", "j k", 21));
    }

    proptest! {
        #[test]
        fn fields_cover_the_section(s in "[aB: \t\r\n]{0,60}") {
            let (f, end) = parse(s.as_bytes());
            let mut at = 0;
            for x in &f { prop_assert_eq!(x.range.start, at); at = x.range.end; }
            prop_assert_eq!(at, end);
        }
    }
}
