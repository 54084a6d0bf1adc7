//! The index follows the log: a checkpoint writes what changed since the last one, in slices
//! between groups, and then the position up to which the index holds everything.
//!
//! Until the position is durable a replay repeats what the slices already wrote; every
//! change is written so that repeating it is harmless.

use crate::SpoolError;
use crate::disk::Disk;
use crate::index::{Change, Index};
use crate::layout::{FORMAT_VERSION, POSITION_KEY, Position, SegmentEntry, message_key, segment_key};
use crate::segment::Stream;
use crate::store::{Checkpoint, INDEX_BYTES, Store};

/// Messages written in one slice: about 3 ms of sled 0.34.
pub(crate) const SLICE: usize = 200;

impl<D: Disk, I: Index> Store<D, I> {
    /// Whether a checkpoint is in progress.
    pub fn checkpointing(&self) -> bool {
        self.checkpoint.is_some()
    }

    /// Messages that the index does not know as they are.
    pub fn behind(&self) -> usize {
        self.dirty.len()
    }

    /// Bytes that have to be free before the index is written to.
    pub fn index_room(&self) -> u64 {
        if self.index_failed {
            return INDEX_BYTES;
        }
        INDEX_BYTES.min((2 << 20) + (self.dirty.len() as u64) * 1024)
    }

    /// Something was appended since the last checkpoint.
    pub fn needs_checkpoint(&self) -> bool {
        !self.index_failed && self.checkpointed + 1 < self.log.next_sequence
    }

    /// Begins a checkpoint of everything appended so far.
    pub fn begin_checkpoint(&mut self) {
        if self.checkpoint.is_some() || self.index_failed {
            return;
        }
        let position = Position {
            version: FORMAT_VERSION,
            boot: self.boot.clone(),
            clean: false,
            next_sequence: self.log.next_sequence,
            next_segment: self.log.next_segment,
            active: self.read_again(),
        };
        let mut keys: Vec<u64> = self.dirty.keys().copied().collect();
        // Keys are written in ascending order (the list is taken from its end): sled then writes each leaf once.
        keys.sort_unstable_by(|a, b| b.cmp(a));
        self.checkpoint = Some(Checkpoint { position, keys });
    }

    /// Segments that the next start reads from where the index knows them: those in use, and those of which damaged bytes wait
    /// for the quarantine.
    fn read_again(&self) -> Vec<(u32, u64)> {
        let in_use = [Stream::Hot, Stream::Cold].into_iter().filter_map(|s| self.log.position(s));
        let waiting = self.quarantine.segments().into_iter().filter(|(id, _)| !self.log.is_active(*id));
        let len = |id: u32| self.log.segments.get(&id).map(|s| s.len);
        let waiting = waiting.filter_map(|(id, cut)| Some((id, cut.or_else(|| len(id))?)));
        in_use.chain(waiting).collect()
    }

    /// Does a slice of the checkpoint; answers true when it is finished and durable.
    ///
    /// # Errors
    /// [`SpoolError::Index`]: the index is given up until [`Store::restore_index`]; the log
    /// goes on.
    pub fn step_checkpoint(&mut self) -> Result<bool, SpoolError> {
        let Some(mut c) = self.checkpoint.take() else { return Ok(true) };
        let result = self.slice(&mut c);
        match result {
            Ok(true) => Ok(true),
            Ok(false) => {
                self.checkpoint = Some(c);
                Ok(false)
            }
            Err(e) => {
                self.give_index_up();
                Err(e)
            }
        }
    }

    /// The index failed: it is not used any more, and taken out of the way at once, so that no
    /// start trusts what a failure left of it.
    pub(crate) fn give_index_up(&mut self) {
        self.index_failed = true;
        (self.checkpoint, self.compaction) = (None, None);
        if let Err(e) = self.index.set_aside() {
            tracing::warn!(error = %e, "a failed index is still where it was; tried again");
        }
    }

    fn slice(&mut self, c: &mut Checkpoint) -> Result<bool, SpoolError> {
        let mut changes = Vec::new();
        for _ in 0..SLICE {
            let Some(key) = c.keys.pop() else { break };
            self.write_message(key, &mut changes)?;
        }
        if !c.keys.is_empty() {
            self.index.apply(changes)?;
            return Ok(false);
        }
        for (id, s) in self.log.segments.iter_mut().filter(|(_, s)| s.changed) {
            let entry = SegmentEntry { refs: s.refs.iter().copied().collect(), last_sequence: s.last_sequence };
            changes.push((segment_key(*id), Some(ipc::frame::archive(&entry).to_vec())));
            s.changed = false;
        }
        self.index.apply(changes)?;
        // The position goes in when everything that it stands for is durable: in one flush, an
        // engine that failed half-way (the disk was full) could keep it and lose the rest.
        self.index.flush()?;
        self.index.apply(vec![(POSITION_KEY.to_vec(), Some(ipc::frame::archive(&c.position).to_vec()))])?;
        self.index.flush()?;
        self.checkpointed = c.position.next_sequence - 1;
        self.free_segments()?;
        Ok(true)
    }

    /// Writes all that changed to the index, without a position: for a rebuild, which begins
    /// anew if it is cut short.
    pub(crate) fn write_all_dirty(&mut self) -> Result<(), SpoolError> {
        let mut keys: Vec<u64> = self.dirty.keys().copied().collect();
        // Keys are written in ascending order: sled then writes each leaf once.
        keys.sort_unstable();
        for part in keys.chunks(SLICE) {
            let mut changes = Vec::new();
            for key in part {
                self.write_message(*key, &mut changes)?;
            }
            self.index.apply(changes)?;
        }
        Ok(())
    }

    fn write_message(&mut self, key: u64, changes: &mut Vec<Change>) -> Result<(), SpoolError> {
        let Some(d) = self.dirty.remove(&key) else { return Ok(()) };
        let old = if d.indexed { self.indexed(key)? } else { None };
        if d.settled {
            let Some(old) = old else { return Ok(()) };
            for n in 0..old.encode().len() {
                changes.push((message_key(key, n as u16), None));
            }
            let at = d.location.unwrap_or(old.location);
            self.log.pin(at.segment, -1, -i64::from(old.body_len));
            for s in &d.done_in {
                self.log.refer(*s, at.segment);
            }
            for r in old.recipients.iter().filter(|r| r.state_segment != 0) {
                self.log.pin(r.state_segment, -1, 0);
            }
            return Ok(());
        }
        let base = if d.envelope.is_empty() { old.clone() } else { d.fresh_summary(self.shard) };
        let Some(mut new) = base else {
            d.states.values().for_each(|(_, segment)| self.log.pin(*segment, -1, 0));
            return Ok(());
        };
        if let Some(old) = &old {
            // A replay that began at the checkpoint may have read only the later records of these recipients.
            for (n, o) in new.recipients.iter_mut().zip(&old.recipients) {
                *n = o.clone();
            }
        }
        d.merge_into(&mut new);
        d.done_in.iter().for_each(|s| self.log.refer(*s, new.location.segment));
        let before = old.as_ref().map(|o| (o.recipients.as_slice(), o.encode()));
        if let Some((recipients, _)) = &before {
            for (i, o) in recipients.iter().enumerate().filter(|(_, o)| o.state_segment != 0) {
                // A later record says otherwise, and holds its own segment, be it the same.
                let i = i as u16;
                if d.states.contains_key(&i) || d.done.contains(&i) {
                    self.log.pin(o.state_segment, -1, 0);
                }
            }
        }
        for (n, value) in new.encode().into_iter().enumerate() {
            if before.as_ref().and_then(|(_, b)| b.get(n)) != Some(&value) {
                changes.push((message_key(key, n as u16), Some(value)));
            }
        }
        Ok(())
    }

    /// Frees segments that nothing needs any more.
    ///
    /// # Errors
    /// [`SpoolError::Index`] when their entries cannot be removed.
    pub(crate) fn free_segments(&mut self) -> Result<(), SpoolError> {
        if self.index_failed {
            return Ok(());
        }
        let mut changes = Vec::new();
        let newest_hot = self.log.segments.iter().rev().find(|(_, s)| !s.cold).map(|(id, _)| *id);
        loop {
            let log = &self.log;
            let free = log.segments.iter().find(|(id, s)| {
                s.live == 0
                    && !log.is_active(**id)
                    && newest_hot != Some(**id)
                    && !self.quarantine.needs(**id)
                    && s.last_sequence <= self.checkpointed
                    && (s.last_sequence <= self.projected || s.cold)
                    && (s.cold || !s.refs.iter().any(|r| log.segments.contains_key(r)))
                    && self.compaction.as_ref().is_none_or(|c| c.segment != **id)
            });
            let Some(id) = free.map(|(id, _)| *id) else { break };
            if let Err(e) = self.log.free(id) {
                tracing::warn!(segment = id, error = %e, "segment could not be removed");
                break;
            }
            changes.push((segment_key(id), None));
        }
        if !changes.is_empty() {
            self.index.apply(changes)?;
        }
        Ok(())
    }

    /// Writes everything to the index and marks the stop as orderly.
    ///
    /// # Errors
    /// [`SpoolError::Index`]; the next start then replays or rebuilds.
    pub fn close(&mut self) -> Result<(), SpoolError> {
        self.log.seal(Stream::Hot);
        self.log.seal(Stream::Cold);
        if self.index_failed {
            self.index.set_aside()?;
        }
        while self.checkpoint.is_some() {
            self.step_checkpoint()?;
        }
        self.begin_checkpoint();
        if let Some(c) = &mut self.checkpoint {
            c.position.clean = true;
        }
        while !self.step_checkpoint()? {}
        Ok(())
    }
}
