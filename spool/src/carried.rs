//! What a new segment takes over from those before it: values and handoffs taken, which have
//! no other home and must outlive older segments.
//!
//! The first record holds them when they fit, which is nearly always. What does not fit follows it in
//! records of their own, all of them synced before the segment counts: one record for all would
//! at some size not be read back any more.

use std::collections::{BTreeMap, BTreeSet};

use crate::layout::{CARRIED_BYTES_MAX, Kind, StartMeta};
use crate::segment::Pending;

/// Name of the value by which a first record says how many records follow it.
const PARTS: &str = "spool/parts";

/// Sequences of the handoffs taken and not yet forgotten, by origin and its incarnation.
pub(crate) type Seen = BTreeMap<(u8, u32), BTreeSet<u64>>;

/// The records that a hot segment begins with.
pub(crate) fn records(values: &BTreeMap<String, Vec<u8>>, seen: &Seen) -> Vec<Pending> {
    let mut parts = vec![StartMeta::default()];
    let mut bytes = 0;
    let mut room = |parts: &mut Vec<StartMeta>, more: usize| {
        bytes += more;
        if bytes > CARRIED_BYTES_MAX && bytes > more {
            bytes = more;
            parts.push(StartMeta::default());
        }
    };
    for (name, value) in values {
        room(&mut parts, name.len() + value.len() + 32);
        parts.last_mut().into_iter().for_each(|p| p.values.push((name.clone(), value.clone())));
    }
    for ((origin, incarnation), s) in seen {
        let all: Vec<u64> = s.iter().copied().collect();
        let mut some = all.chunks(CARRIED_BYTES_MAX / 16);
        // One without sequences takes the place of what was read before.
        for part in std::iter::once(some.next().unwrap_or_default()).chain(some) {
            room(&mut parts, part.len() * 8 + 32);
            parts.last_mut().into_iter().for_each(|p| p.seen.push((*origin, *incarnation, 0, part.to_vec())));
        }
    }
    let pending = |kind, m: &StartMeta| Pending::of(kind, ipc::frame::archive(m));
    if let [only] = &parts[..] {
        return vec![pending(Kind::Start, only)];
    }
    let count = (parts.len() as u32).to_le_bytes().to_vec();
    let first = StartMeta { values: vec![(PARTS.to_owned(), count)], ..Default::default() };
    std::iter::once(pending(Kind::Start, &first)).chain(parts.iter().map(|p| pending(Kind::Carried, p))).collect()
}

/// What a replay has read of them so far.
#[derive(Debug, Default)]
pub(crate) struct Carried {
    pub values: BTreeMap<String, Vec<u8>>,
    pub seen: Seen,
    /// Records that follow.
    pub missing: u32,
}

impl Carried {
    /// Begins with a first record.
    pub fn after(start: StartMeta) -> Carried {
        let parts = start.values.iter().find(|(name, _)| name == PARTS).and_then(|(_, v)| v.first_chunk::<4>());
        match parts {
            Some(n) => Carried { missing: u32::from_le_bytes(*n), ..Default::default() },
            None => {
                let mut c = Carried { missing: 1, ..Default::default() };
                c.add(start);
                c
            }
        }
    }

    /// Adds one that follows.
    pub fn add(&mut self, part: StartMeta) {
        self.missing = self.missing.saturating_sub(1);
        self.values.extend(part.values);
        for (origin, incarnation, _, sequences) in part.seen {
            self.seen.entry((origin, incarnation)).or_default().extend(sequences);
        }
    }
}
