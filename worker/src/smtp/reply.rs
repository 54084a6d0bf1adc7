//! SMTP replies from receivers (RFC 5321 §4.2), bounded in lines and length.

use ipc::text;

use super::extension::Lesson;

/// Most bytes of one reply that are read; the rest of a longer one is an error.
pub const REPLY_BYTES_MAX: usize = 16 << 10;
/// Most characters of a reply that are kept for logs, accounting and reports.
const TEXT_MAX: usize = 1000;

/// A complete reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The three digits.
    pub code: u16,
    /// Lines without their codes.
    pub lines: Vec<String>,
}

impl Reply {
    /// 2yz
    pub fn is_positive(&self) -> bool {
        self.code / 100 == 2
    }

    /// 5yz
    pub fn is_permanent(&self) -> bool {
        self.code / 100 == 5
    }

    /// One line for accounting: code and text, lines joined by a blank.
    pub fn text(&self) -> String {
        let mut t = format!("{} {}", self.code, self.lines.join(" "));
        if let Some((cut, _)) = t.char_indices().nth(TEXT_MAX) {
            t.truncate(cut);
        }
        t.trim_end().to_owned()
    }

    /// The `class.subject.detail` to account for this reply (RFC 3463 §2).
    ///
    /// Read from the start of the text if its class equals the code's first digit, as
    /// RFC 2034 §4 requires; otherwise `class.0.0` of the code.
    pub fn enhanced_status(&self) -> String {
        let class = self.code / 100;
        match self.given_status() {
            Some(s) if s.split('.').next() == Some(class.to_string().as_str()) => s.to_owned(),
            _ => format!("{class}.0.0"),
        }
    }

    /// The enhanced status code that the text begins with, as given.
    fn given_status(&self) -> Option<&str> {
        let first = self.lines.first()?.split_ascii_whitespace().next()?;
        let mut parts = first.split('.');
        let digits =
            |p: Option<&str>| p.is_some_and(|p| (1..=3).contains(&p.len()) && p.bytes().all(|b| b.is_ascii_digit()));
        (digits(parts.next()) && digits(parts.next()) && digits(parts.next()) && parts.next().is_none())
            .then_some(first)
    }

    /// Its status names an address, a mailbox, content or a policy (RFC 3463 section 3), so that it
    /// is not about the protocol, whatever its code.
    pub fn is_about_policy(&self) -> bool {
        self.given_status().and_then(|s| s.split('.').nth(1)).is_some_and(|subject| !matches!(subject, "0" | "5"))
    }

    /// More recipients than the receiver takes in a transaction: 452, or 552 as RFC 821 had it
    /// (RFC 5321 section 4.5.3.1.10). 552 is said of full mailboxes as well.
    pub fn is_too_many_recipients(&self) -> bool {
        if !matches!(self.code, 451 | 452 | 552) {
            return false;
        }
        match self.given_status() {
            Some(s) => s.ends_with(".5.3") || (self.code == 452 && s == "4.3.1" && self.says_too_many()),
            None => self.says_too_many(),
        }
    }

    fn says_too_many(&self) -> bool {
        let text = self.text().to_ascii_lowercase();
        text.contains("too many") && (text.contains("recipient") || text.contains("rcpt"))
    }
}

/// Why bytes are not a reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// Not three digits and a separator.
    #[error("expected an SMTP reply, found {0:?}")]
    Malformed(String),
    /// Longer than [`REPLY_BYTES_MAX`].
    #[error("reply is longer than {REPLY_BYTES_MAX} bytes")]
    TooLong,
}

/// Takes the first complete reply from `input`: the reply and the bytes it took, or `None`
/// while more is needed.
///
/// # Errors
/// [`ReplyError`]; the connection is then of no further use.
pub fn parse(input: &[u8]) -> Result<Option<(Reply, usize)>, ReplyError> {
    let mut lines = Vec::new();
    let mut at = 0;
    loop {
        let Some(end) = memchr::memchr(b'\n', &input[at..]) else {
            return if input.len() > REPLY_BYTES_MAX { Err(ReplyError::TooLong) } else { Ok(None) };
        };
        let line = &input[at..at + end];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        at += end + 1;
        if at > REPLY_BYTES_MAX {
            return Err(ReplyError::TooLong);
        }
        let malformed = || ReplyError::Malformed(String::from_utf8_lossy(&line[..line.len().min(80)]).into_owned());
        let (code, rest) = line.split_at_checked(3).ok_or_else(malformed)?;
        if !code.iter().all(u8::is_ascii_digit) || !(b'2'..=b'5').contains(&code[0]) {
            return Err(malformed());
        }
        let code = code.iter().fold(0u16, |n, d| n * 10 + u16::from(d - b'0'));
        let (more, words) = match rest.split_first() {
            None => (false, &rest[..0]),
            Some((b' ', words)) => (false, words),
            Some((b'-', words)) => (true, words),
            Some(_) => return Err(malformed()),
        };
        lines.push(text::clean_bytes(words, REPLY_BYTES_MAX).trim().to_owned());
        if !more {
            return Ok(Some((Reply { code, lines }, at)));
        }
    }
}

/// What EHLO offers (RFC 5321 §4.1.1.1).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extensions {
    /// PIPELINING (RFC 2920)
    pub pipelining: bool,
    /// CHUNKING (RFC 3030)
    pub chunking: bool,
    /// 8BITMIME (RFC 6152)
    pub eight_bit: bool,
    /// SMTPUTF8 (RFC 6531)
    pub smtputf8: bool,
    /// STARTTLS (RFC 3207)
    pub starttls: bool,
    /// DSN (RFC 3461)
    pub dsn: bool,
    /// SIZE (RFC 1870): the limit, 0 for none
    pub size: Option<u64>,
    /// LIMITS MAILMAX (RFC 9422): transactions in a session, 0 for no limit
    pub mail_max: u32,
    /// LIMITS RCPTMAX (RFC 9422): recipients in a transaction, 0 for no limit
    pub rcpt_max: u32,
    /// The keywords, comma-joined, for accounting. Words that cannot be keywords, for they have
    /// other characters than visible ASCII or are longer than [`text::KEYWORD_MAX`], are left out, and those behind
    /// [`text::KEYWORDS_MAX`] bytes.
    pub names: String,
}

impl Extensions {
    /// From the lines of a reply to EHLO, the first being the greeting.
    pub fn of(reply: &Reply) -> Extensions {
        let mut e = Extensions::default();
        for line in reply.lines.iter().skip(1) {
            let mut words = line.split_ascii_whitespace();
            let is_keyword = |w: &&str| w.len() <= text::KEYWORD_MAX && w.bytes().all(|b| b.is_ascii_graphic());
            let Some(word) = words.next().filter(is_keyword) else { continue };
            let name = word.to_ascii_uppercase();
            match name.as_str() {
                "PIPELINING" => e.pipelining = true,
                "CHUNKING" => e.chunking = true,
                "8BITMIME" => e.eight_bit = true,
                "SMTPUTF8" => e.smtputf8 = true,
                "STARTTLS" => e.starttls = true,
                "DSN" => e.dsn = true,
                "SIZE" => e.size = Some(words.next().and_then(|n| n.parse().ok()).unwrap_or(0)),
                "LIMITS" => words.for_each(|w| e.note_limit(w)),
                _ => {}
            }
            if e.names.len() + name.len() < text::KEYWORDS_MAX {
                e.names += if e.names.is_empty() { "" } else { "," };
                e.names += &name;
            }
        }
        e
    }

    /// `RCPTMAX=100` and the like: one to six digits, the first of them not 0; others say nothing.
    fn note_limit(&mut self, word: &str) {
        let Some((name, value)) = word.split_once('=') else { return };
        let is_number = (1..=6).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_digit());
        let Some(n) = value.parse().ok().filter(|_| is_number && !value.starts_with('0')) else { return };
        match name.to_ascii_uppercase().as_str() {
            "MAILMAX" => self.mail_max = n,
            "RCPTMAX" => self.rcpt_max = n,
            _ => {}
        }
    }

    /// Without what the host offers and does not keep; it stays among the names.
    pub fn leave_out(&mut self, lesson: &Lesson) {
        self.pipelining &= !lesson.without_pipelining;
        self.chunking &= !lesson.without_chunking;
        if lesson.without_parameters {
            (self.size, self.dsn) = (None, false);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn several_lines_are_one_reply() {
        let (r, n) = parse(b"250-mx hello\r\n250-SIZE 100\r\n250 DSN\r\n220 x").unwrap().unwrap();
        assert_eq!((r.code, r.lines.len(), n), (250, 3, 37));
        let e = Extensions::of(&r);
        assert_eq!((e.size, e.dsn, e.names.as_str()), (Some(100), true, "SIZE,DSN"));
        assert!(parse(b"250-a\r\n").unwrap().is_none());
    }

    #[test]
    fn what_is_no_keyword_is_not_offered() {
        let (r, _) =
            parse("250-mx\r\n250-00\u{a0}x\r\n250-AUTH=LOGIN PLAIN\r\n250 dsn\r\n".as_bytes()).unwrap().unwrap();
        assert_eq!(Extensions::of(&r).names, "AUTH=LOGIN,DSN");
        let many: String = (0..400).map(|n| format!("250-X-{n:020}\r\n")).collect();
        for (lines, names) in [(many, 44), (format!("250-DSN\r\n250-{}\r\n", "X".repeat(9000)), 2)] {
            let (r, _) = parse(format!("250-mx\r\n{lines}250 SIZE 9\r\n").as_bytes()).unwrap().unwrap();
            let e = Extensions::of(&r);
            assert!(e.names.len() <= text::KEYWORDS_MAX && e.size == Some(9), "{}", e.names);
            assert_eq!(e.names.split(',').count(), names);
        }
    }

    #[test]
    fn what_terminals_obey_does_not_come_in() {
        let (r, _) = parse("550-5.1.1 a\x1b[2Jb\tc\r\n550 \u{9b}\u{202e}x\x07\0\r\n".as_bytes()).unwrap().unwrap();
        assert_eq!(r.text(), "550 5.1.1 a?[2Jb c ??x??");
    }

    #[test]
    fn limits_are_read_where_they_are_numbers() {
        let limits = |words: &str| {
            let (r, _) = parse(format!("250-mx\r\n250 LIMITS {words}\r\n").as_bytes()).unwrap().unwrap();
            let e = Extensions::of(&r);
            (e.mail_max, e.rcpt_max)
        };
        assert_eq!(limits("RCPTMAX=20 MAILMAX=5 RCPTDOMAINMAX=1"), (5, 20));
        assert_eq!(limits("rcptmax=7"), (0, 7));
        assert_eq!(limits("RCPTMAX=0 MAILMAX=1234567"), (0, 0));
        assert_eq!(limits("RCPTMAX MAILMAX=+5"), (0, 0));
    }

    #[test]
    fn too_many_recipients_is_not_a_full_mailbox() {
        let of = |t: &str| parse(format!("{t}\r\n").as_bytes()).unwrap().unwrap().0.is_too_many_recipients();
        for t in [
            "452 4.5.3 Too many recipients",
            "552 5.5.3 Maximum limit of 2 recipients reached",
            "552 Too many recipients",
            "452 too many rcpts",
        ] {
            assert!(of(t), "{t}");
        }
        for t in [
            "552 5.2.2 Mailbox full",
            "552 storage allocation exceeded",
            "452 4.3.1 out of memory",
            "550 5.5.3 too many recipients",
        ] {
            assert!(!of(t), "{t}");
        }
    }

    #[test]
    fn the_enhanced_status_must_agree_with_the_code() {
        let s = |t: &[u8]| parse(t).unwrap().unwrap().0.enhanced_status();
        assert_eq!(s(b"550 5.1.1 no such user\r\n"), "5.1.1");
        assert_eq!(s(b"450 5.1.1 no such user\r\n"), "4.0.0");
        assert_eq!(s(b"550 127.0.0.1 blocked\r\n"), "5.0.0");
    }

    #[test]
    fn rubbish_is_an_error() {
        assert!(parse(b"HTTP/1.1 200 OK\r\n").is_err());
        assert!(parse(b"999 no\r\n").is_err());
        assert!(parse(&vec![b'2'; REPLY_BYTES_MAX + 1]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_handled(b in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(Some((r, n))) = parse(&b) {
                prop_assert!(n <= b.len());
                let _ = (r.text(), r.enhanced_status(), Extensions::of(&r));
            }
        }
    }
}
