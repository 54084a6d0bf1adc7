//! One frame: a 32-byte header, an rkyv archive, and raw bytes (a message's content).
//!
//! ```text
//! 0  magic   u16   0x51CE, little endian like every field
//! 2  version u8    PROTOCOL_VERSION
//! 3  kind    u8    meaning of the archive, per channel
//! 4  archive u32   bytes of the archive
//! 8  raw     u32   bytes behind it
//! 12 fds     u32   descriptors that travel with the frame
//! 16 a       u64   per kind: a sequence number
//! 24 b       u64   per kind: a watermark
//! ```
//! Lengths are checked before anything is allocated, archives before they are read.

use bytes::{Buf, Bytes, BytesMut};
use rkyv::util::AlignedVec;

use crate::limits::{ARCHIVE_BYTES_MAX, CONTENT_BYTES_MAX, DESCRIPTORS_PER_FRAME_MAX, PROTOCOL_VERSION};

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 32;
const MAGIC: u16 = 0x51CE;

/// Why a frame is refused. Every variant means that the peer cannot be trusted any further.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The first bytes are not a frame.
    #[error("expected a frame of Sluice's protocol, found bytes {0:#06x}")]
    Magic(u16),
    /// The peer is another version of the program.
    #[error("expected protocol version {expected}, found {found}: restart the older process", expected = PROTOCOL_VERSION)]
    Version {
        /// What the peer speaks.
        found: u8,
    },
    /// A length field above its bound.
    #[error("frame announces {found} bytes of {what}, more than the limit of {max}")]
    TooLarge {
        /// archive, content or descriptors
        what: &'static str,
        /// What the header says.
        found: usize,
        /// The bound.
        max: usize,
    },
    /// A kind that this channel does not have.
    #[error("frame of unknown kind {0}")]
    Kind(u8),
    /// The archive does not validate.
    #[error("archive of a frame of kind {kind} is not valid: {reason}")]
    Archive {
        /// The frame's kind.
        kind: u8,
        /// What validation says.
        reason: String,
    },
    /// The header announces descriptors that did not arrive.
    #[error("frame announces {0} descriptors that did not arrive")]
    Descriptors(usize),
    /// The peer closed in the middle of a frame.
    #[error("connection closed inside a frame")]
    Truncated,
    /// The socket failed.
    #[error("socket: {0}")]
    Io(#[from] std::io::Error),
}

/// The fixed part of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Meaning of the archive; each channel numbers its own.
    pub kind: u8,
    /// Bytes of the archive.
    pub archive_len: usize,
    /// Bytes of content behind the archive.
    pub raw_len: usize,
    /// Descriptors that travel with the frame.
    pub fds: usize,
    /// A sequence number, by kind.
    pub a: u64,
    /// A watermark, by kind.
    pub b: u64,
}

impl Header {
    /// A header for an archive and content of these lengths.
    pub fn new(kind: u8, archive_len: usize, raw_len: usize) -> Self {
        Header { kind, archive_len, raw_len, fds: 0, a: 0, b: 0 }
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut h = [0u8; HEADER_BYTES];
        h[0..2].copy_from_slice(&MAGIC.to_le_bytes());
        h[2] = PROTOCOL_VERSION;
        h[3] = self.kind;
        h[4..8].copy_from_slice(&(self.archive_len as u32).to_le_bytes());
        h[8..12].copy_from_slice(&(self.raw_len as u32).to_le_bytes());
        h[12..16].copy_from_slice(&(self.fds as u32).to_le_bytes());
        h[16..24].copy_from_slice(&self.a.to_le_bytes());
        h[24..32].copy_from_slice(&self.b.to_le_bytes());
        h
    }

    /// Reads and checks a header.
    ///
    /// # Errors
    /// [`FrameError`] for another magic or version and for lengths above their bounds.
    pub fn decode(h: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let h: &mut &[u8] = &mut h.as_slice();
        let magic = h.get_u16_le();
        if magic != MAGIC {
            return Err(FrameError::Magic(magic));
        }
        let version = h.get_u8();
        if version != PROTOCOL_VERSION {
            return Err(FrameError::Version { found: version });
        }
        let kind = h.get_u8();
        let bounded = |what, found: u32, max: usize| {
            let found = found as usize;
            if found > max { Err(FrameError::TooLarge { what, found, max }) } else { Ok(found) }
        };
        Ok(Header {
            kind,
            archive_len: bounded("archive", h.get_u32_le(), ARCHIVE_BYTES_MAX)?,
            raw_len: bounded("content", h.get_u32_le(), CONTENT_BYTES_MAX)?,
            fds: bounded("descriptors", h.get_u32_le(), DESCRIPTORS_PER_FRAME_MAX)?,
            a: h.get_u64_le(),
            b: h.get_u64_le(),
        })
    }
}

/// A received frame. The archive is aligned and not yet validated; the content is a view of
/// the receive buffer.
#[derive(Debug)]
pub struct Frame {
    /// The fixed part.
    pub header: Header,
    /// The archive.
    pub archive: AlignedVec<16>,
    /// The content.
    pub raw: Bytes,
}

impl Frame {
    /// Takes the next whole frame from `buf`, or `None` while more bytes are needed.
    ///
    /// # Errors
    /// See [`Header::decode`]; `buf` is then of no further use.
    pub fn take(buf: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        let Some(head) = buf.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let header = Header::decode(head)?;
        let total = HEADER_BYTES + header.archive_len + header.raw_len;
        if buf.len() < total {
            buf.reserve((total - buf.len()).min(1 << 20));
            return Ok(None);
        }
        buf.advance(HEADER_BYTES);
        let mut archive = AlignedVec::with_capacity(header.archive_len);
        archive.extend_from_slice(&buf[..header.archive_len]);
        buf.advance(header.archive_len);
        let raw = buf.split_to(header.raw_len).freeze();
        Ok(Some(Frame { header, archive, raw }))
    }
}

/// Serialises `value`; every archive of ours fits in memory, so this cannot fail but for
/// a broken allocator.
pub fn archive<T>(value: &T) -> AlignedVec<16>
where
    T: for<'a> rkyv::Serialize<
            rkyv::api::high::HighSerializer<AlignedVec, rkyv::ser::allocator::ArenaHandle<'a>, rkyv::rancor::Error>,
        >,
{
    rkyv::to_bytes::<rkyv::rancor::Error>(value).expect("serialising to memory")
}

/// Validates and deserialises an archive of kind `kind`.
///
/// # Errors
/// [`FrameError::Archive`] when the bytes are not a valid `T`.
pub fn unarchive<T>(kind: u8, bytes: &[u8]) -> Result<T, FrameError>
where
    T: rkyv::Archive,
    T::Archived: for<'a> rkyv::bytecheck::CheckBytes<rkyv::api::high::HighValidator<'a, rkyv::rancor::Error>>
        + rkyv::Deserialize<T, rkyv::api::high::HighDeserializer<rkyv::rancor::Error>>,
{
    rkyv::from_bytes::<T, rkyv::rancor::Error>(bytes).map_err(|e| FrameError::Archive { kind, reason: e.to_string() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_length_above_its_bound_is_refused_before_allocation() {
        let mut h = Header::new(1, 0, 0).encode();
        h[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(Header::decode(&h), Err(FrameError::TooLarge { what: "archive", .. })));
    }

    #[test]
    fn another_version_is_named() {
        let mut h = Header::new(1, 0, 0).encode();
        h[2] = PROTOCOL_VERSION + 1;
        assert!(Header::decode(&h).unwrap_err().to_string().contains("protocol version"));
    }

    proptest! {
        #[test]
        fn frames_survive_any_split(a in 0usize..300, r in 0usize..300, cut in 0usize..632) {
            let mut bytes = Header { fds: 2, a: 7, b: 9, ..Header::new(3, a, r) }.encode().to_vec();
            bytes.extend(std::iter::repeat_n(1u8, a));
            bytes.extend(std::iter::repeat_n(2u8, r));
            let cut = cut.min(bytes.len());
            let mut buf = BytesMut::from(&bytes[..cut]);
            if cut < bytes.len() {
                prop_assert!(Frame::take(&mut buf).unwrap().is_none());
                buf.extend_from_slice(&bytes[cut..]);
            }
            let f = Frame::take(&mut buf).unwrap().unwrap();
            prop_assert_eq!(f.header.a, 7);
            prop_assert!(f.archive.iter().all(|b| *b == 1) && f.archive.len() == a);
            prop_assert!(f.raw.iter().all(|b| *b == 2) && f.raw.len() == r);
        }

        #[test]
        fn any_bytes_are_an_error_or_a_frame(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Frame::take(&mut BytesMut::from(&bytes[..]));
        }
    }
}
