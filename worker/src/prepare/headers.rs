//! The header section as received (RFC 5322 §2.2), without copying it.

use std::ops::Range;

use ipc::text;

/// One field: its name and where it lies, folds and final CR LF included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field<'a> {
    /// Name as written.
    pub name: &'a str,
    /// Bytes of the whole field.
    pub range: Range<usize>,
    /// Bytes behind the colon, final CR LF excluded.
    pub value: &'a [u8],
    /// Where they begin.
    pub value_at: usize,
}

impl Field<'_> {
    /// Where the value lies.
    pub fn place_of_value(&self) -> Range<usize> {
        self.value_at..self.value_at + self.value.len()
    }
}

/// Appends a section to `out` with other bytes at some places, which are in order and do not overlap.
pub fn edit(section: &[u8], edits: &[(Range<usize>, Vec<u8>)], out: &mut Vec<u8>) {
    let mut at = 0;
    for (place, bytes) in edits {
        out.extend_from_slice(&section[at..place.start]);
        out.extend_from_slice(bytes);
        at = place.end;
    }
    out.extend_from_slice(&section[at..]);
}

/// Longest header section of a message that is accepted, bytes: what is said of a header below is said of so much.
pub const HEADER_BYTES_MAX: usize = 1 << 20;
/// Most fields that it may have.
pub const HEADER_FIELDS_MAX: usize = 10_000;

/// A header section that is more than anybody needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TooMuch {
    /// More than [`HEADER_BYTES_MAX`].
    Bytes,
    /// More than [`HEADER_FIELDS_MAX`].
    Fields,
}

/// The same as [`parse`] of a message that is to be accepted.
///
/// # Errors
/// [`TooMuch`]
pub fn parse_bounded(content: &[u8]) -> Result<(Vec<Field<'_>>, usize), TooMuch> {
    // One byte more tells whether the section goes on.
    let (fields, end) = parse_some(&content[..content.len().min(HEADER_BYTES_MAX + 1)], HEADER_FIELDS_MAX + 1);
    match (fields.len() > HEADER_FIELDS_MAX, end > HEADER_BYTES_MAX) {
        (_, true) => Err(TooMuch::Bytes),
        (true, _) => Err(TooMuch::Fields),
        _ => Ok((fields, end)),
    }
}

/// The fields of a message, and where the header section ends (the empty line is not part
/// of it). A line that is not a field ends the section, as receivers see it.
pub fn parse(content: &[u8]) -> (Vec<Field<'_>>, usize) {
    parse_some(content, usize::MAX)
}

fn parse_some(content: &[u8], most: usize) -> (Vec<Field<'_>>, usize) {
    let mut fields = Vec::new();
    let mut at = 0;
    while at < content.len() && fields.len() < most && !content[at..].starts_with(b"\r\n") {
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
        let value_at = at + colon + 1;
        fields.push(Field { name, range: at..end, value: content[value_at..end].trim_ascii_end(), value_at });
        at = end;
    }
    (fields, at)
}

/// A field's value on one line.
pub fn unfolded(value: &[u8]) -> String {
    String::from_utf8_lossy(value).replace("\r\n", "").trim().to_owned()
}

/// The beginning of a field's value on one line, fit to be shown (see [`ipc::text`]), `max` bytes at most.
pub fn shown(value: &[u8], max: usize) -> String {
    // Folds and blanks around the value do not count, as far as they are usual.
    let some = &value[..value.len().min(2 * max + 256)];
    text::clean(&unfolded(some), max).into_owned()
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

    #[test]
    fn a_header_has_bounds() {
        let folded = |bytes: usize| [b"A:".to_vec(), b" x\r\n".repeat(bytes / 4), b"\r\nbody".to_vec()].concat();
        let largest = folded(HEADER_BYTES_MAX - 8);
        let (fields, end) = parse_bounded(&largest).unwrap_or_default();
        assert_eq!((fields.len(), end), (1, HEADER_BYTES_MAX - 6));
        assert_eq!(parse_bounded(&folded(HEADER_BYTES_MAX)), Err(TooMuch::Bytes));
        let many = |n| [b"A:\r\n".repeat(n), b"\r\nB: in the body\r\n".to_vec()].concat();
        assert_eq!(parse_bounded(&many(HEADER_FIELDS_MAX)).map(|(f, _)| f.len()), Ok(HEADER_FIELDS_MAX));
        assert_eq!(parse_bounded(&many(HEADER_FIELDS_MAX + 1)), Err(TooMuch::Fields));
    }

    #[test]
    fn what_is_shown_is_fit() {
        assert_eq!(shown(b" a\x1b[1m\r\n\tb\xff ", 99), "a?[1m b\u{fffd}");
        assert_eq!(shown(&b" x\r\n".repeat(1 << 20), 5), "x x x");
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
