//! The quarantine: a copy of each damaged stretch of the log, in a file that is named in the server's log.
//!
//! Bytes that fail their checksums at the end of a segment may have been torn by a crash, and were never acknowledged then, or
//! have been synced and have rotted since. Nobody can tell which, so nothing is cut off that is not in a synced file here. A
//! disk that does not take the file is waited for: until then the segment stays as it is, and so does its name in the
//! index's position, so that the next start finds the same stretch.
//!
//! Each loss of power can tear a group and leave a file, so files and their bytes are limited: the oldest go.

use std::collections::{BTreeMap, VecDeque};

/// Files in a shard's quarantine at most.
pub const FILES_MAX: usize = 64;
/// Bytes of these files at most. Of a longer stretch the beginning is kept.
pub const BYTES_MAX: u64 = 64 << 20;

/// A damaged stretch of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    /// Name of the file that it is copied to.
    pub name: String,
    /// Segment that it lies in.
    pub segment: u32,
    /// First byte.
    pub from: u64,
    /// Byte behind the last.
    pub to: u64,
}

impl Stretch {
    /// The bytes that are kept of it.
    pub(crate) fn kept(&self) -> u64 {
        (self.to - self.from).min(BYTES_MAX)
    }
}

/// What has yet to be copied.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    pub(crate) stretches: VecDeque<Stretch>,
    /// Segments that are cut when nothing of them waits any more, with the bytes that stay of each.
    pub(crate) cuts: BTreeMap<u32, u64>,
}

impl Waiting {
    /// Notes a stretch. More than the quarantine has places for would drive one another out of it.
    pub fn push(&mut self, stretch: Stretch) {
        self.stretches.retain(|s| s.name != stretch.name);
        if self.stretches.len() >= FILES_MAX
            && let Some(oldest) = self.stretches.pop_front()
        {
            tracing::warn!(
                file = oldest.name,
                "more damaged bytes wait than the quarantine has places for; the oldest are left out"
            );
        }
        self.stretches.push_back(stretch);
    }

    /// Lets a segment be cut behind its first `len` bytes, once nothing of it waits.
    pub fn cut_later(&mut self, segment: u32, len: u64) {
        self.cuts.insert(segment, len);
    }

    /// A segment ends where it does: it was read once more, and there is nothing to be cut off.
    pub fn cut_never(&mut self, segment: u32) {
        self.cuts.remove(&segment);
    }

    /// Whether the bytes of a segment are still needed.
    pub fn needs(&self, segment: u32) -> bool {
        self.cuts.contains_key(&segment) || self.stretches.iter().any(|s| s.segment == segment)
    }

    /// Segments that the next start has to read again, should the process end before their bytes are copied, and the length
    /// that they are to be cut at, if they are.
    pub fn segments(&self) -> BTreeMap<u32, Option<u64>> {
        let waiting = self.stretches.iter().map(|s| (s.segment, None));
        waiting.chain(self.cuts.iter().map(|(id, len)| (*id, Some(*len)))).collect()
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.stretches.is_empty() && self.cuts.is_empty()
    }
}
