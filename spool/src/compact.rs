//! Long-deferred mail is copied forward into cold segments, so that one message does not
//! keep 64 MB of delivered ones on disk.

use bytes::Bytes;

use crate::SpoolError;
use crate::disk::Disk;
use crate::index::Index;
use crate::layout::{Kind, Location, MovedMeta, UpdateEntry, UpdateMeta, aligned};
use crate::segment::{Pending, Record, STEP_BYTES, Stream};
use crate::store::{Compaction, Dirty, INDEX_BYTES, LIVE_SHARE, RESERVE_BYTES, Store};

/// Bytes copied in one slice.
const SLICE_BYTES: u64 = 1 << 20;

impl<D: Disk, I: Index> Store<D, I> {
    /// Whether a segment is being copied forward.
    pub fn compacting(&self) -> bool {
        self.compaction.is_some()
    }

    /// Chooses a segment to copy forward, if one is worth it: the oldest sealed one of which
    /// little lives, once the index has caught up with it.
    pub fn choose_compaction(&mut self) -> bool {
        if self.compaction.is_none() && !self.index_failed {
            let log = &self.log;
            let worth = log.segments.iter().find(|(id, s)| {
                s.live > 0
                    && !s.copied
                    && !log.is_active(**id)
                    && s.last_sequence <= self.checkpointed
                    && s.live_bytes.saturating_mul(LIVE_SHARE) < s.len
            });
            self.compaction = worth.map(|(id, _)| Compaction { segment: *id, at: 0 });
        }
        self.compaction.is_some()
    }

    /// Copies a slice; answers true when the segment is empty of life.
    ///
    /// # Errors
    /// When the cold stream has no room or the disk fails; it is tried again later.
    pub fn step_compaction(&mut self) -> Result<bool, SpoolError> {
        let Some(Compaction { segment, at }) = self.compaction.take() else { return Ok(true) };
        let io = |e: std::io::Error| SpoolError::Write(e.to_string());
        let mut found: Vec<Record> = Vec::new();
        let mut next = at;
        let mut enough = false;
        let stop = std::io::ErrorKind::Interrupted;
        let scanned = self.log.scan(segment, at, false, &mut Vec::new(), &mut |r| {
            if enough {
                return Err(stop.into());
            }
            next = u64::from(r.location.offset) + r.header.record_len() as u64;
            enough = next - at >= SLICE_BYTES;
            found.push(r);
            Ok(())
        });
        let finished = match scanned {
            Ok(_) => true,
            Err(e) if e.kind() == stop => false,
            Err(e) => return Err(io(e)),
        };
        self.copy_forward(segment, found)?;
        if finished {
            self.log.segments.get_mut(&segment).into_iter().for_each(|s| s.copied = true);
        } else {
            self.compaction = Some(Compaction { segment, at: next });
        }
        Ok(finished)
    }

    fn copy_forward(&mut self, segment: u32, found: Vec<Record>) -> Result<(), SpoolError> {
        let mut records = Vec::new();
        let mut moved = Vec::new();
        let mut states = UpdateMeta::default();
        for r in found {
            match r.header.kind {
                Kind::Message | Kind::Moved => {
                    if let Some((key, p, dirty)) = self.moved_record(&r)? {
                        records.push(p);
                        moved.push((key, r.location, dirty));
                    }
                }
                Kind::Update => self.live_states(segment, &r, &mut states)?,
                _ => {}
            }
        }
        if !states.entries.is_empty() {
            records.push(Pending::of(Kind::Update, ipc::frame::archive(&states)));
        }
        if records.is_empty() {
            return Ok(());
        }
        let io = |e: std::io::Error| SpoolError::Write(e.to_string());
        let bytes: u64 = records.iter().map(Pending::bytes).sum();
        // Outcomes need the last room more, for which a process that has just begun has no
        // reserve yet, and so does the index, without which nothing is given back.
        let outcomes = 2 * RESERVE_BYTES.saturating_sub(self.log.spare(Stream::Hot));
        let more = bytes.saturating_sub(self.log.spare(Stream::Cold)).next_multiple_of(STEP_BYTES);
        let needed = outcomes + more + INDEX_BYTES;
        if more > 0 && self.log.disk.free_bytes().map_err(io)? < needed {
            return Err(SpoolError::Full("outcomes and the index need what is left".into()));
        }
        self.log.reserve(Stream::Cold, bytes, 0, || vec![Pending::cold_start()]).map_err(io)?;
        let before = self.log.position(Stream::Cold).map_or(0, |(_, len)| len);
        let placed = self.log.append(Stream::Cold, &records).map_err(|e| {
            self.log.take_back(Stream::Cold, before);
            io(e)
        })?;
        if !ipc::planted!("copied-message-not-synced")
            && let Err(e) = self.log.sync(Stream::Cold)
        {
            self.log.take_back(Stream::Cold, before);
            return Err(SpoolError::Sync(e.to_string()));
        }
        for ((key, from, meta), (_, to)) in moved.into_iter().zip(&placed) {
            self.note_moved(key, *to, &meta, from.segment);
        }
        if let Some((_, at)) = placed.last().filter(|_| !states.entries.is_empty()) {
            self.note_update(&states, at.segment);
        }
        Ok(())
    }

    /// The record that takes a living message forward.
    fn moved_record(&mut self, r: &Record) -> Result<Option<(u64, Pending, MovedMeta)>, SpoolError> {
        let (key, envelope) = match r.header.kind {
            Kind::Message => (r.header.sequence, r.meta.clone()),
            _ => match ipc::frame::unarchive::<MovedMeta>(0, &aligned(&r.meta)) {
                Ok(m) => (m.key, m.envelope),
                Err(_) => return Ok(None),
            },
        };
        let Some(s) = self.summary(key)?.filter(|s| s.location == r.location) else { return Ok(None) };
        let body = match self.log.read(r.location, true) {
            Ok((_, body)) => body,
            // A damaged message stays in its segment, which it pins, until it is read for delivery and then set aside.
            Err(_) => return Ok(None),
        };
        let each = || s.recipients.iter().enumerate();
        let meta = MovedMeta {
            key,
            envelope,
            states: each()
                .filter(|(_, r)| !r.done && r.state_segment != 0)
                .map(|(i, r)| (i as u16, r.state.clone()))
                .collect(),
            done: each().filter(|(_, r)| r.done).map(|(i, _)| i as u16).collect(),
        };
        let pending = Pending {
            kind: Kind::Moved,
            meta: Bytes::from_owner(ipc::frame::archive(&meta)),
            body: [body, Bytes::new()],
        };
        Ok(Some((key, pending, meta)))
    }

    fn live_states(&mut self, segment: u32, r: &Record, states: &mut UpdateMeta) -> Result<(), SpoolError> {
        let Ok(u) = ipc::frame::unarchive::<UpdateMeta>(0, &aligned(&r.meta)) else { return Ok(()) };
        for e in u.entries {
            let Some(s) = self.summary(e.key)? else { continue };
            let current = s.recipients.get(usize::from(e.recipient));
            let already = states.entries.iter().any(|x| x.key == e.key && x.recipient == e.recipient);
            if current
                .is_some_and(|c| !c.done && c.state_segment == segment && c.state.due_unix_ms == e.state.due_unix_ms)
                && !already
            {
                states.entries.push(UpdateEntry { state: e.state, ..e });
            }
        }
        Ok(())
    }

    /// What a [`Kind::Moved`] record means, for compaction and replays alike. `from` is the
    /// segment that it supersedes; 0 when not known.
    pub(crate) fn note_moved(&mut self, key: u64, to: Location, meta: &MovedMeta, from: u32) {
        let bytes = self.body_len_at(to);
        if from != 0 {
            self.log.pin(from, -1, -i64::from(bytes));
            self.log.refer(to.segment, from);
        }
        self.log.pin(to.segment, 1, i64::from(bytes));
        let d = self.dirty.entry(key).or_insert_with(Dirty::of_index);
        d.location = Some(to);
        d.body_len = bytes;
        d.done.extend(&meta.done);
        let states = UpdateMeta {
            entries: meta.states.iter().map(|(i, s)| UpdateEntry { key, recipient: *i, state: s.clone() }).collect(),
            rows: Vec::new(),
        };
        self.note_update(&states, to.segment);
    }

    fn body_len_at(&self, at: Location) -> u32 {
        self.log.read(at, false).map_or(0, |(r, _)| r.header.body_len as u32)
    }
}
