//! The quarantine: a copy of each damaged stretch of the log, in a file that is named in the server's log.
//!
//! Bytes that fail their checksums at the end of a segment may have been torn by a crash, and were never acknowledged then, or
//! have been synced and have rotted since. Nobody can tell which, so nothing is cut off that is not in a synced file here. A
//! disk that does not take the file is waited for: until then the segment stays as it is, and so does its name in the
//! index's position, so that the next start finds the same stretch.
//!
//! Each loss of power can tear a group and leave a file, so files and their bytes are limited: the oldest go.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSlice};

use crate::disk::Disk;
use crate::index::Index;
use crate::segment::Log;
use crate::store::{INDEX_BYTES, RESERVE_BYTES, Store};

/// Files in a shard's quarantine at most.
pub const FILES_MAX: usize = 64;
/// Bytes of these files at most. Of a longer stretch the beginning is kept.
pub const BYTES_MAX: u64 = 64 << 20;
/// Bytes copied at once.
const PIECE_BYTES: u64 = 256 << 10;
/// Room that outcomes and the index need more than the quarantine does.
const LEFT_BYTES: u64 = INDEX_BYTES + RESERVE_BYTES;

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
    fn kept(&self) -> u64 {
        (self.to - self.from).min(BYTES_MAX)
    }
}

/// What has yet to be copied.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    stretches: VecDeque<Stretch>,
    /// Segments that are cut when nothing of them waits any more, with the bytes that stay of each.
    cuts: BTreeMap<u32, u64>,
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

impl<D: Disk, I: Index> Store<D, I> {
    /// Whether damaged bytes wait to be copied. A checkpoint that goes on names their segments, which stay until it is over.
    pub fn quarantine_waits(&self) -> bool {
        !self.quarantine.is_empty() && !self.checkpointing()
    }

    /// Copies the next damaged stretch to the folder of the quarantine; what lies at the end of a segment is cut off then.
    ///
    /// # Errors
    /// By the disk, or when it has no room to spare; to be tried again later.
    pub fn write_quarantine(&mut self, quarantine: &mut D) -> io::Result<()> {
        if let Some(stretch) = self.quarantine.stretches.front() {
            keep(&self.log, stretch, quarantine)?;
            let cut_short = stretch.to - stretch.from - stretch.kept();
            tracing::info!(file = stretch.name, bytes = stretch.kept(), cut_short, "damaged bytes are in quarantine");
            self.quarantine.stretches.pop_front();
        }
        let waits = |id: u32| self.quarantine.stretches.iter().any(|s| s.segment == id);
        let (later, now) = std::mem::take(&mut self.quarantine.cuts).into_iter().partition(|(id, _)| waits(*id));
        self.quarantine.cuts = later;
        let now: BTreeMap<u32, u64> = now;
        now.into_iter().for_each(|(id, len)| self.log.set_len(id, len));
        Ok(())
    }
}

/// Copies a stretch to a file, durably. The same bytes may have been found, and copied, before.
fn keep<D: Disk>(log: &Log<D>, stretch: &Stretch, quarantine: &mut D) -> io::Result<()> {
    if quarantine.list()?.contains(&stretch.name) {
        let file = quarantine.open(&stretch.name)?;
        if quarantine.len(&file)? == stretch.kept() && is_copy(log, stretch, quarantine, &file)? {
            return quarantine.sync(&file);
        }
        quarantine.remove(&stretch.name)?;
    }
    if quarantine.free_bytes()? < stretch.kept() + LEFT_BYTES {
        return Err(io::ErrorKind::StorageFull.into());
    }
    make_room(quarantine, stretch.kept())?;
    let file = quarantine.create(&stretch.name)?;
    for (at, len) in pieces(stretch) {
        let bytes = log.raw(stretch.segment, stretch.from + at, stretch.from + at + len)?;
        quarantine.write(&file, at, &[IoSlice::new(&bytes)])?;
    }
    if ipc::planted!("quarantine-not-synced") {
        return Ok(());
    }
    quarantine.sync(&file)
}

fn is_copy<D: Disk>(log: &Log<D>, stretch: &Stretch, quarantine: &D, file: &D::File) -> io::Result<bool> {
    for (at, len) in pieces(stretch) {
        let mut copy = vec![0; len as usize];
        let n = quarantine.read(file, at, &mut copy)?;
        copy.truncate(n);
        if copy != log.raw(stretch.segment, stretch.from + at, stretch.from + at + len)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Offsets and lengths of the pieces that a stretch is copied in.
fn pieces(stretch: &Stretch) -> impl Iterator<Item = (u64, u64)> {
    let all = stretch.kept();
    (0..all.div_ceil(PIECE_BYTES)).map(move |n| (n * PIECE_BYTES, PIECE_BYTES.min(all - n * PIECE_BYTES)))
}

/// Drops the oldest files, until one more of so many bytes is within the limits.
fn make_room<D: Disk>(quarantine: &mut D, bytes: u64) -> io::Result<()> {
    let mut files = VecDeque::new();
    for name in quarantine.oldest_first()? {
        let file = quarantine.open(&name)?;
        files.push_back((name, quarantine.len(&file)?));
    }
    let mut all: u64 = files.iter().map(|(_, len)| len).sum();
    while files.len() >= FILES_MAX || all + bytes > BYTES_MAX {
        let Some((name, len)) = files.pop_front() else { break };
        quarantine.remove(&name)?;
        all -= len;
        tracing::warn!(file = name, bytes = len, "the quarantine is full; its oldest file is dropped");
    }
    Ok(())
}
