//! The ballast: a file that only takes room, and is removed when the disk is full, so that outcomes
//! and the index can still be written. New mail is taken only while it stands.

use std::io::{self, IoSlice};

use crate::disk::Disk;

/// The ballast's file in the shard's folder.
const NAME: &str = "ballast";
/// Bytes that it takes.
const BYTES: u64 = 16 << 20;
/// It is written in pieces of so many bytes where room cannot be allocated.
const STEP: usize = 1 << 20;

/// Whether the ballast of a shard's folder is there.
#[derive(Debug)]
pub(crate) struct Ballast {
    stands: bool,
}

impl Ballast {
    /// Bytes that have to be free before it is made anew: as many as it takes stay free beside it.
    pub const ROOM_BYTES: u64 = 2 * BYTES;

    /// Looks whether it is there. It is removed at once where fewer bytes are free than it takes.
    pub fn open<D: Disk>(folder: &mut D, free_bytes: u64) -> Ballast {
        if free_bytes < BYTES {
            // The size that it has when it is opened below tells whether removing it gave room back.
            let _ = folder.remove(NAME);
        }
        // A ballast that was being made when the process was killed is removed.
        let kept = folder.open(NAME).and_then(|file| folder.len(&file));
        Ballast { stands: kept.is_ok_and(|len| len >= BYTES) }
    }

    /// It keeps its room.
    pub fn stands(&self) -> bool {
        self.stands
    }

    /// Removes it; answers whether that gave room back.
    pub fn release<D: Disk>(&mut self, folder: &mut D) -> bool {
        let released = folder.remove(NAME).is_ok();
        self.stands &= !released;
        released
    }

    /// Makes it anew if it is gone and there is room.
    pub fn restore<D: Disk>(&mut self, folder: &mut D, free_bytes: impl FnOnce() -> u64) {
        if self.stands || free_bytes() < Self::ROOM_BYTES {
            return;
        }
        self.stands = make(folder).is_ok();
        if !self.stands {
            // A part that stays is replaced by the next attempt.
            let _ = folder.remove(NAME);
        }
    }
}

fn make<D: Disk>(folder: &mut D) -> io::Result<()> {
    // A part of one may be there; one that stays makes the next call fail.
    let _ = folder.remove(NAME);
    let file = folder.create(NAME)?;
    folder.preallocate(&file, 0, BYTES)?;
    let mut len = folder.len(&file)?;
    // A file system that cannot allocate takes bytes. They are not on the stack: what stands there is made ready whether or not it is used.
    let zeros = if len < BYTES { vec![0; STEP] } else { Vec::new() };
    while len < BYTES {
        let step = &zeros[..zeros.len().min((BYTES - len) as usize)];
        folder.write(&file, len, &[IoSlice::new(step)])?;
        len += step.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::memory::MemoryDisk;

    #[test]
    fn it_stands_whole_or_not_at_all() {
        let mut folder = MemoryDisk::new(2 * BYTES);
        let mut ballast = Ballast::open(&mut folder, 2 * BYTES);
        assert!(!ballast.stands());
        ballast.restore(&mut folder, || Ballast::ROOM_BYTES - 1);
        assert!(!ballast.stands(), "as much as it takes has to stay free beside it");
        ballast.restore(&mut folder, || Ballast::ROOM_BYTES);
        assert!(ballast.stands() && Ballast::open(&mut folder, BYTES).stands());
        assert!(ballast.release(&mut folder) && !ballast.stands());
        assert!(!ballast.release(&mut folder), "it gives its room back once");
        // A crash while it was being made.
        let file = folder.create(NAME).unwrap();
        folder.preallocate(&file, 0, BYTES - 1).unwrap();
        assert!(!Ballast::open(&mut folder, BYTES).stands());
        ballast.restore(&mut folder, || Ballast::ROOM_BYTES);
        assert!(Ballast::open(&mut folder, BYTES).stands());
        // At a start without room for the index it is given up at once.
        assert!(!Ballast::open(&mut folder, BYTES - 1).stands());
        assert!(folder.open(NAME).is_err());
    }
}
