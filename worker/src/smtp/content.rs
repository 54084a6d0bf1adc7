//! Message content as it arrives: DATA with its dots (RFC 5321 §4.5.2), BDAT by length
//! (RFC 3030).
//!
//! Only CR LF . CR LF ends DATA. A bare LF anywhere, and a bare CR before a dot, refuse the
//! message: servers behind that read one as a line end could be made to see a second
//! message where we saw one (SMTP smuggling). Another bare CR becomes CR LF here, before dots are doubled, the message is
//! signed and its size is told: bulk mailers do send them, and there are receivers that never take them.

use bytes::{BufMut, BytesMut};

/// Longest line of content, CR LF excluded. RFC 5321 says 998; bulk mailers send longer ones
/// and receivers take them, but beyond this nothing good is meant.
pub const LINE_MAX: usize = 100 * 1024;

/// Bytes that a buffer may be larger than an eighth more than its content.
const SPARE_MAX: usize = 128;
/// Longest content that is copied into a buffer of its size.
const FITTED_MAX: usize = 1 << 20;

/// What is wrong with the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentFault {
    /// An LF without CR, or a CR without LF before a dot.
    BareLineEnd,
    /// More bytes than `max-message-size`.
    TooLarge,
    /// A line longer than [`LINE_MAX`].
    LineTooLong,
    /// The server has no room for it, see [`super::receiving`].
    NoRoom,
}

/// Collects the content of one message. After a fault it goes on to the end without keeping
/// anything.
#[derive(Debug)]
pub struct ContentReader {
    bytes: BytesMut,
    max: usize,
    /// The end of the last piece: how far into CR LF . CR LF.
    tail: Tail,
    line: usize,
    /// First thing found wrong.
    pub fault: Option<ContentFault>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tail {
    LineStart,
    Line,
    Cr,
    Dot,
    DotCr,
}

impl ContentReader {
    /// For a message of at most `max` bytes (0: the protocol's own limit), `hint` expected.
    pub fn new(max: u64, hint: u64) -> ContentReader {
        let limit = ipc::limits::CONTENT_BYTES_MAX as u64;
        let max = if max == 0 { limit } else { max.min(limit) } as usize;
        let hint = (hint as usize).clamp(4096, 256 << 10).min(max);
        ContentReader { bytes: BytesMut::with_capacity(hint), max, tail: Tail::LineStart, line: 0, fault: None }
    }

    /// Takes bytes of DATA; answers how many, and whether the end was among them.
    pub fn data(&mut self, input: &[u8]) -> (usize, bool) {
        let mut at = 0;
        while at < input.len() {
            let b = input[at];
            match self.tail {
                Tail::LineStart if b == b'.' => {
                    self.tail = Tail::Dot;
                    at += 1;
                }
                Tail::LineStart | Tail::Line => at += self.line(&input[at..]),
                Tail::Cr => {
                    if b == b'\n' {
                        self.keep(b"\r\n");
                        self.tail = Tail::LineStart;
                        self.line = 0;
                        at += 1;
                    } else if b == b'.' {
                        self.fail(ContentFault::BareLineEnd);
                        self.tail = Tail::Line;
                    } else {
                        self.keep(b"\r\n");
                        self.line = 0;
                        self.tail = if b == b'\r' { Tail::Cr } else { Tail::Line };
                        at += usize::from(b == b'\r');
                    }
                }
                Tail::Dot => {
                    if b == b'\r' {
                        self.tail = Tail::DotCr;
                        at += 1;
                    } else {
                        // The dot was stuffing, or should have been: RFC 5321 drops it.
                        self.tail = Tail::Line;
                    }
                }
                Tail::DotCr => {
                    if b == b'\n' {
                        return (at + 1, true);
                    }
                    self.fail(ContentFault::BareLineEnd);
                    self.tail = Tail::Line;
                }
            }
        }
        (at, false)
    }

    /// Takes the rest of a line up to its CR, or what there is of it.
    fn line(&mut self, input: &[u8]) -> usize {
        let end = memchr::memchr2(b'\r', b'\n', input).unwrap_or(input.len());
        self.keep_in_line(&input[..end]);
        self.tail = Tail::Line;
        match input.get(end) {
            Some(b'\r') => {
                self.tail = Tail::Cr;
                end + 1
            }
            Some(_) => {
                self.fail(ContentFault::BareLineEnd);
                end + 1
            }
            None => end,
        }
    }

    /// That many more bytes are within the limit.
    pub fn has_room(&self, more: u64) -> bool {
        (self.max - self.bytes.len()) as u64 >= more
    }

    /// Bytes that are kept.
    pub fn held(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// There is no room for it: nothing is kept any more.
    pub fn give_up(&mut self) {
        self.fail(ContentFault::NoRoom);
    }

    /// Takes bytes of a BDAT chunk, whose lines and chunks need not end together. A dot means nothing here; behind a bare CR
    /// it is the same fault as in DATA.
    pub fn chunk(&mut self, input: &[u8]) {
        let mut at = 0;
        while at < input.len() && self.fault.is_none() {
            match (self.tail, input[at]) {
                (Tail::Cr, b'\n') => {
                    self.keep(b"\r\n");
                    self.tail = Tail::LineStart;
                    self.line = 0;
                    at += 1;
                }
                (Tail::Cr, b'.') => self.fail(ContentFault::BareLineEnd),
                (Tail::Cr, b) => {
                    self.keep(b"\r\n");
                    self.line = 0;
                    self.tail = if b == b'\r' { Tail::Cr } else { Tail::Line };
                    at += usize::from(b == b'\r');
                }
                _ => at += self.line(&input[at..]),
            }
        }
    }

    /// The content.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn finish(mut self) -> Result<BytesMut, ContentFault> {
        if self.tail == Tail::Cr {
            // The last byte of the last chunk is a bare CR.
            self.keep(b"\r\n");
        }
        match self.fault {
            Some(f) => Err(f),
            None => Ok(fitted(self.bytes)),
        }
    }

    fn keep_in_line(&mut self, b: &[u8]) {
        // No further than the longest line: of two limits the one passed first is the fault,
        // whatever the pieces.
        let room = LINE_MAX.saturating_sub(self.line);
        self.keep(&b[..b.len().min(room)]);
        self.line += b.len();
        if self.line > LINE_MAX {
            self.fail(ContentFault::LineTooLong);
        }
    }

    fn keep(&mut self, b: &[u8]) {
        if self.fault.is_some() {
            return;
        }
        if self.bytes.len() + b.len() > self.max {
            self.fail(ContentFault::TooLarge);
            return;
        }
        self.bytes.put_slice(b);
    }

    fn fail(&mut self, f: ContentFault) {
        if self.fault.is_none() {
            self.fault = Some(f);
            self.bytes = BytesMut::new();
        }
    }
}

/// The content in a buffer of its size, where the one it grew in is much larger: what waits in a
/// queue holds its whole buffer. Of a large one the spare pages were never touched, and cost nothing.
fn fitted(bytes: BytesMut) -> BytesMut {
    let spare = bytes.capacity() - bytes.len();
    let is_worth_it = bytes.len() < FITTED_MAX && spare > bytes.len() / 8 + SPARE_MAX;
    if is_worth_it { BytesMut::from(&bytes[..]) } else { bytes }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn whole(input: &[u8]) -> (Result<BytesMut, ContentFault>, usize, bool) {
        let mut c = ContentReader::new(0, 0);
        let (n, end) = c.data(input);
        (c.finish(), n, end)
    }

    fn chunks(pieces: &[&[u8]]) -> Result<BytesMut, ContentFault> {
        let mut c = ContentReader::new(0, 0);
        pieces.iter().for_each(|p| c.chunk(p));
        c.finish()
    }

    #[test]
    fn only_crlf_dot_crlf_ends_and_nothing_else_does() {
        let (c, n, end) = whole(b"a\r\n..b\r\n.\r\nQUIT");
        assert!(end && n == 11 && c.unwrap() == b"a\r\n.b\r\n"[..]);
        for smuggled in [&b"a\n.\n"[..], b"a\n.\r\n", b"a\r\n.\n", b"a\r.\r", b"a\r\n.\r", b"a\n.\r\nMAIL"] {
            let (_, _, end) = whole(smuggled);
            assert!(!end, "{smuggled:?}");
        }
        let (c, _, end) = whole(b"a\n.\r\nb\r\n.\r\n");
        assert!(end && c == Err(ContentFault::BareLineEnd));
        assert!(whole(b".\r\n").2);
        let (c, _, end) = whole(b"a\rb\r\r\n.\r\n");
        assert!(end && c == Ok(BytesMut::from(&b"a\r\nb\r\n\r\n"[..])), "a bare CR is a line end");
        assert_eq!(chunks(&[b"a\r.\r\n"]), Err(ContentFault::BareLineEnd));
        assert_eq!(chunks(&[b"a\r", b".\r\n"]), Err(ContentFault::BareLineEnd));
        assert_eq!(chunks(&[b"a\r", b"\nb\n"]), Err(ContentFault::BareLineEnd));
        assert_eq!(chunks(&[b"a\rb\r", b"\n.c\r", b"\r"]), Ok(BytesMut::from(&b"a\r\nb\r\n.c\r\n\r\n"[..])));
    }

    #[test]
    fn what_is_kept_is_as_large_as_the_content() {
        for len in [0, 1, 300, 4_000, 9_000, 70_000, 300_000] {
            for hint in [0, len as u64, 1 << 30] {
                let mut c = ContentReader::new(0, hint);
                vec![b'a'; len].chunks(LINE_MAX - 2).for_each(|line| c.chunk(&[line, b"\r\n"].concat()));
                let (len, held) = c.finish().map_or((0, 1), |c| (c.len(), c.capacity()));
                assert!(held <= len + len / 8 + SPARE_MAX, "{held} for {len}, {hint} announced");
            }
        }
    }

    #[test]
    fn the_limit_passed_first_is_the_fault_whatever_the_pieces() {
        let line = vec![b'a'; 2 * LINE_MAX];
        for (max, want) in [(LINE_MAX - 1, ContentFault::TooLarge), (LINE_MAX, ContentFault::LineTooLong)] {
            for piece in [line.len(), LINE_MAX, 1000] {
                let mut c = ContentReader::new(max as u64, 0);
                line.chunks(piece).for_each(|p| assert!(!c.data(p).1));
                assert_eq!(c.fault, Some(want), "{max} in pieces of {piece}");
            }
        }
    }

    #[test]
    fn line_ends_that_are_made_count() {
        let mut c = ContentReader::new(6, 0);
        assert_eq!((c.data(b"a\rb\rc\r\n.\r\n"), c.fault), ((10, true), Some(ContentFault::TooLarge)));
        for (max, fits) in [(8, false), (9, true)] {
            let mut c = ContentReader::new(max, 0);
            assert!(c.has_room(6) && !c.has_room(max + 1));
            c.chunk(b"a\rb\rc\r\n");
            assert_eq!(c.finish().is_ok(), fits, "{max}");
        }
        let lines = [vec![b'a'; LINE_MAX], b"\r".to_vec(), vec![b'b'; LINE_MAX]].concat();
        assert_eq!(chunks(&[&lines]).map(|c| c.len()), Ok(2 * LINE_MAX + 2));
    }

    proptest! {
        #[test]
        fn chunks_become_what_lines_do(text in "([ab]{0,3}(\r|\r\n)?){0,8}", piece in 1usize..9) {
            let mut c = ContentReader::new(0, 0);
            text.as_bytes().chunks(piece).for_each(|p| c.chunk(p));
            let want = text.replace("\r\n", "\n").replace('\r', "\n").replace('\n', "\r\n");
            let chunked = c.finish();
            prop_assert_eq!(chunked.as_deref(), Ok(want.as_bytes()));
            if text.ends_with("\r\n") {
                let (by_data, _, end) = whole(&[text.as_bytes(), b".\r\n"].concat());
                prop_assert!(end);
                prop_assert_eq!(by_data, chunked);
            }
        }

        #[test]
        fn pieces_make_no_difference(parts in proptest::collection::vec("[a.\r\n]{0,6}", 0..8)) {
            let all = parts.concat();
            let (want, n, end) = whole(all.as_bytes());
            let mut c = ContentReader::new(0, 0);
            let (mut taken, mut ended) = (0, false);
            for p in &parts {
                if ended { break; }
                let (k, e) = c.data(p.as_bytes());
                taken += k;
                ended = e;
            }
            prop_assert_eq!((taken, ended), (n, end));
            prop_assert_eq!(c.finish(), want);
        }
    }
}
