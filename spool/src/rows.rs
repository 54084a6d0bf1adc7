//! Reads accounting rows back from the log, for accounting files that do not have them yet, and notes in the log up to where
//! the files have them.

use std::io;

use bytes::Bytes;

use crate::disk::Disk;
use crate::index::Index;
use crate::layout::PutMeta;
use crate::projection::{Item, Projection, Wanted, items_of};
use crate::store::Store;

/// Name of the value that says up to which sequence rows are durable in accounting files, and what these files were.
pub(crate) const PROJECTED: &str = "spool/projected";

/// Where in the log reading goes on.
#[derive(Debug)]
pub(crate) struct Cursor {
    sequence: u64,
    /// The segment read last, and where the next record lies in it.
    at: Option<(u32, u64)>,
    /// Where the first record behind a sequence lies.
    begun: Option<(u64, (u32, u64))>,
}

impl Cursor {
    /// Reading begins behind the record of this sequence.
    pub fn behind(sequence: u64) -> Cursor {
        Cursor { sequence, at: None, begun: None }
    }

    /// Everything up to this sequence was read and passed on.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Reading begins once more behind a sequence. Where the place of that record is known, nothing before it is read.
    pub fn back_to(&mut self, sequence: u64) {
        let known = self.begun.filter(|(behind, _)| *behind == sequence);
        *self = Cursor { sequence, at: known.map(|(_, at)| at), begun: known };
    }
}

impl<D: Disk, I: Index> Store<D, I> {
    /// Passes every row behind the last durable accounting position.
    ///
    /// # Errors
    /// By the disk.
    pub fn project_from(&mut self, projection: &mut dyn Projection) -> io::Result<()> {
        let wanted = Wanted::by(projection);
        self.items_from(&mut Cursor::behind(self.projected), wanted, &mut |i| {
            i.pass_to(projection);
            true
        })?;
        Ok(())
    }

    /// Passes what accounting may show of the records behind the cursor, as long as `take` wants
    /// more; answers whether the end of the log is reached.
    ///
    /// # Errors
    /// By the disk.
    pub(crate) fn items_from(
        &self,
        cursor: &mut Cursor,
        wanted: Wanted,
        take: &mut dyn FnMut(Item) -> bool,
    ) -> io::Result<bool> {
        let from = cursor.sequence;
        let behind: Vec<u32> =
            self.log.segments.iter().filter(|(_, s)| s.last_sequence > from && !s.cold).map(|(id, _)| *id).collect();
        for id in behind {
            let offset = cursor.at.filter(|(segment, _)| *segment == id).map_or(0, |(_, offset)| offset);
            let mut enough = false;
            let read = self.log.scan(id, offset, false, &mut Vec::new(), &mut |r| {
                let sequence = r.header.sequence;
                if sequence <= cursor.sequence {
                    return Ok(());
                }
                let begins = u64::from(r.location.offset);
                cursor.begun.get_or_insert((cursor.sequence, (id, begins)));
                // Damaged content leaves headers out, not the row.
                let headers = || match wanted.headers {
                    true => self.log.read(r.location, true).map(|(_, content)| content).unwrap_or_default(),
                    false => Bytes::new(),
                };
                let mut more = true;
                let headers: Option<&dyn Fn() -> Bytes> = if wanted.messages { Some(&headers) } else { None };
                items_of(r.header.kind, &r.meta, headers, &mut |i| more &= take(i));
                (cursor.sequence, cursor.at) = (sequence, Some((id, begins + r.header.record_len() as u64)));
                enough = !more;
                if enough { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
            });
            if enough {
                return Ok(false);
            }
            read?;
        }
        Ok(true)
    }

    /// Notes that rows up to `sequence` are durable in accounting; `state` is the
    /// projection's, and goes into the log with the next group.
    pub fn set_projected(&mut self, sequence: u64, state: &[u8]) -> PutMeta {
        self.projected = sequence;
        let mut value = sequence.to_le_bytes().to_vec();
        value.extend_from_slice(state);
        PutMeta { name: PROJECTED.into(), value }
    }

    /// The projection's state at the last durable position.
    pub fn projection_state(&self) -> &[u8] {
        self.value(PROJECTED).and_then(|v| v.get(8..)).unwrap_or_default()
    }
}
