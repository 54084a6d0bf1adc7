//! The files of the quarantine: stretches are copied there, durably, and the oldest make room.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSlice};

use crate::disk::Disk;
use crate::index::Index;
use crate::quarantine::{BYTES_MAX, FILES_MAX, Stretch};
use crate::segment::Log;
use crate::store::{INDEX_BYTES, RESERVE_BYTES, Store};

/// Bytes copied at once.
const PIECE_BYTES: u64 = 256 << 10;
/// Room that outcomes and the index need more than the quarantine does.
const LEFT_BYTES: u64 = INDEX_BYTES + RESERVE_BYTES;

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
