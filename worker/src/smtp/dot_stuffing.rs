//! Content with dots doubled where a line begins with one (RFC 5321 section 4.5.2), and ended: made by the piece, for content
//! of nothing but dots is as good as any other, and would be millions of parts at once.

use bytes::{BufMut, Bytes, BytesMut};

/// Bytes of content of one piece.
const PIECE_BYTES: usize = 256 << 10;
/// Dots of a piece that are sent in parts of their own; of one that has more a copy is made.
const PARTS_MAX: usize = 64;

/// The pieces of a message's content.
pub struct DotStuffed<'a> {
    body: &'a [Bytes; 2],
    piece_bytes: usize,
    /// Which part of the content, and how much of it is done.
    part: usize,
    at: usize,
    at_line_start: bool,
    is_done: bool,
}

impl<'a> DotStuffed<'a> {
    /// From the beginning.
    pub fn of(body: &'a [Bytes; 2]) -> Self {
        Self::by(body, PIECE_BYTES)
    }

    fn by(body: &'a [Bytes; 2], piece_bytes: usize) -> Self {
        DotStuffed { body, piece_bytes, part: 0, at: 0, at_line_start: true, is_done: false }
    }

    /// The last piece was made, whose last part is the end of data.
    pub fn is_done(&self) -> bool {
        self.is_done
    }

    fn push(&mut self, content: &Bytes, out: &mut Vec<Bytes>) {
        let doubled = memchr::memmem::find_iter(content, b"\n.").map(|nl| nl + 1);
        let first = Some(0).filter(|_| self.at_line_start && content.starts_with(b"."));
        let mut dots = first.into_iter().chain(doubled);
        let some: Vec<usize> = dots.by_ref().take(PARTS_MAX + 1).collect();
        let mut from = 0;
        if some.len() <= PARTS_MAX {
            for dot in some {
                if dot > from {
                    out.push(content.slice(from..dot));
                }
                if !ipc::planted!("dots-not-doubled") {
                    out.push(Bytes::from_static(b"."));
                }
                from = dot;
            }
            out.push(content.slice(from..));
        } else {
            let mut copy = BytesMut::with_capacity(content.len() + content.len() / 2 + 1);
            for dot in some.into_iter().chain(dots) {
                copy.put_slice(&content[from..dot]);
                copy.put_u8(b'.');
                from = dot;
            }
            copy.put_slice(&content[from..]);
            out.push(copy.freeze());
        }
        self.at_line_start = content.ends_with(b"\n");
    }
}

impl Iterator for DotStuffed<'_> {
    type Item = Vec<Bytes>;

    fn next(&mut self) -> Option<Vec<Bytes>> {
        if self.is_done {
            return None;
        }
        let mut out = Vec::with_capacity(4);
        let mut room = self.piece_bytes;
        while let Some(part) = self.body.get(self.part).filter(|_| room > 0) {
            let some = part.slice(self.at..part.len().min(self.at + room));
            self.at += some.len();
            room -= some.len();
            if self.at == part.len() {
                (self.part, self.at) = (self.part + 1, 0);
            }
            if !some.is_empty() {
                self.push(&some, &mut out);
            }
        }
        if self.part == self.body.len() {
            self.is_done = true;
            out.push(Bytes::from_static(if self.at_line_start { b".\r\n" } else { b"\r\n.\r\n" }));
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sent(body: &[Bytes; 2]) -> Vec<u8> {
        DotStuffed::of(body).flatten().flatten().collect()
    }

    fn sent_by(body: &[Bytes; 2], piece_bytes: usize) -> Vec<u8> {
        DotStuffed::by(body, piece_bytes).flatten().flatten().collect()
    }

    #[test]
    fn dots_are_doubled_at_line_starts_only() {
        let body = |a: &'static [u8], b: &'static [u8]| [Bytes::from_static(a), Bytes::from_static(b)];
        assert_eq!(sent(&body(b".a\r\n.", b".b.\r\n")), b"..a\r\n...b.\r\n.\r\n");
        assert_eq!(sent(&body(b"a\r\n", b".b")), b"a\r\n..b\r\n.\r\n");
        assert_eq!(sent(&body(b"", b"")), b".\r\n");
        assert_eq!(DotStuffed::of(&body(b"S: x\r\n", b"\r\nx\r\n")).count(), 1, "a small message is one piece");
    }

    #[test]
    fn dots_alone_are_few_parts_at_once() {
        let body = [Bytes::from_static(b"S: x\r\n\r\n"), Bytes::from(b".\r\n".repeat(1 << 20))];
        let pieces: Vec<Vec<Bytes>> = DotStuffed::of(&body).collect();
        assert!(pieces.iter().all(|p| p.len() <= 2 * PARTS_MAX + 4), "{}", pieces.len());
        let bytes: usize = pieces.iter().flatten().map(Bytes::len).sum();
        assert_eq!(bytes, body[0].len() + body[1].len() / 3 * 4 + 3);
    }

    proptest! {
        #[test]
        fn unstuffing_gives_the_content_back(a in "[.a\n]{0,30}", b in "[.a\n]{0,200}", piece in 1usize..400) {
            let crlf = |s: &str| Bytes::from(s.replace('\n', "\r\n"));
            let body = [crlf(&a), crlf(&b)];
            let sent = sent_by(&body, piece);
            let mut lines: Vec<&[u8]> = sent.split_inclusive(|b| *b == b'\n').collect();
            prop_assert_eq!(lines.pop(), Some(&b".\r\n"[..]));
            prop_assert!(lines.iter().all(|l| *l != b".\r\n"));
            let back: Vec<u8> = lines.iter().flat_map(|l| l.strip_prefix(b".").unwrap_or(l).iter().copied()).collect();
            let mut want = body.concat();
            if !want.is_empty() && !want.ends_with(b"\n") { want.extend_from_slice(b"\r\n"); }
            prop_assert!(back == want);
        }
    }
}
