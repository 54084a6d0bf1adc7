//! The delta: what changed since the table was made, as a log that any process appends to.
//!
//! A record is its length (u32), a CRC-32C of what follows (u32), and one [`Change`]. A record
//! that is not whole is what a kill left of an append; the next one to append cuts it off.

use std::collections::VecDeque;

use ipc::dice::HashMap;

use super::{Entry, TEXT_MAX};

/// Bytes before a record's own.
const FRAME: usize = 8;
/// Largest record.
const RECORD_MAX: usize = 4096;
/// Hits of an address that are remembered.
const HITS_MAX: usize = 100;

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// An address is in a list from now on.
    Add(Entry),
    /// It is not any more.
    Remove {
        /// List.
        list: String,
        /// Address.
        address: String,
    },
    /// A reply that counts towards `suppress-after`.
    Hit {
        /// List that it would be added to.
        list: String,
        /// Address.
        address: String,
        /// Unix seconds.
        at_s: u32,
        /// From the delta before: it makes no new table worth its making.
        carried: bool,
    },
}

impl Change {
    /// Its list and address.
    pub fn key(&self) -> (&str, &str) {
        match self {
            Change::Add(e) => (&e.list, &e.address),
            Change::Remove { list, address } | Change::Hit { list, address, .. } => (list, address),
        }
    }

    /// Appends the record's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut body = Vec::with_capacity(64);
        let put = |text: &str, body: &mut Vec<u8>| {
            body.extend_from_slice(&(text.len() as u16).to_le_bytes());
            body.extend_from_slice(text.as_bytes());
        };
        let (list, address) = self.key();
        body.push(match self {
            Change::Add(_) => 1,
            Change::Remove { .. } => 2,
            Change::Hit { carried: false, .. } => 3,
            Change::Hit { carried: true, .. } => 4,
        });
        put(list, &mut body);
        put(address, &mut body);
        match self {
            Change::Add(e) => {
                body.extend_from_slice(&e.added_s.to_le_bytes());
                body.extend_from_slice(&e.expires_s.to_le_bytes());
                put(&e.reason[..e.reason.floor_char_boundary(TEXT_MAX)], &mut body);
                put(&e.source[..e.source.floor_char_boundary(TEXT_MAX)], &mut body);
            }
            Change::Remove { .. } => {}
            Change::Hit { at_s, .. } => body.extend_from_slice(&at_s.to_le_bytes()),
        }
        out.extend_from_slice(&(body.len() as u32).to_le_bytes());
        out.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
        out.extend_from_slice(&body);
    }

    /// The record at the beginning of `b` and how many bytes it takes; `None` for what is not a
    /// whole record.
    pub fn decode(b: &[u8]) -> Option<(Change, usize)> {
        let (len, rest) = b.split_first_chunk::<4>()?;
        let (crc, rest) = rest.split_first_chunk::<4>()?;
        let len = u32::from_le_bytes(*len) as usize;
        let body = rest.get(..len).filter(|_| len <= RECORD_MAX)?;
        if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
            return None;
        }
        let (kind, mut at) = body.split_first()?;
        let (list, address) = (text(&mut at)?, text(&mut at)?);
        let change = match kind {
            1 => {
                let (added_s, expires_s) = (number(&mut at)?, number(&mut at)?);
                Change::Add(Entry { list, address, reason: text(&mut at)?, source: text(&mut at)?, added_s, expires_s })
            }
            2 => Change::Remove { list, address },
            3 | 4 => Change::Hit { list, address, at_s: number(&mut at)?, carried: *kind == 4 },
            _ => return None,
        };
        Some((change, FRAME + len))
    }
}

fn text(at: &mut &[u8]) -> Option<String> {
    let (len, rest) = at.split_first_chunk::<2>()?;
    let (text, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
    *at = rest;
    String::from_utf8(text.to_vec()).ok()
}

fn number(at: &mut &[u8]) -> Option<u32> {
    let (n, rest) = at.split_first_chunk::<4>()?;
    *at = rest;
    Some(u32::from_le_bytes(*n))
}

/// A delta as a process holds it.
#[derive(Debug, Default)]
pub struct Delta {
    /// By list and address: the entry, or that it was removed.
    changes: HashMap<String, HashMap<String, Option<Entry>>>,
    hits: HashMap<(String, String), VecDeque<u32>>,
    records: u64,
}

impl Delta {
    /// Applies a record.
    pub fn apply(&mut self, c: Change) {
        self.records += u64::from(!matches!(c, Change::Hit { carried: true, .. }));
        match c {
            Change::Add(e) => {
                self.hits.remove(&(e.list.clone(), e.address.clone()));
                self.changes.entry(e.list.clone()).or_default().insert(e.address.clone(), Some(e));
            }
            Change::Remove { list, address } => {
                self.hits.remove(&(list.clone(), address.clone()));
                self.changes.entry(list).or_default().insert(address, None);
            }
            Change::Hit { list, address, at_s, .. } => {
                let hits = self.hits.entry((list, address)).or_default();
                hits.push_back(at_s);
                if hits.len() > HITS_MAX {
                    hits.pop_front();
                }
            }
        }
    }

    /// What it says of an address: its entry, that it was removed, or nothing.
    pub fn find(&self, list: &str, address: &str) -> Option<Option<&Entry>> {
        self.changes.get(list)?.get(address).map(Option::as_ref)
    }

    /// It adds and removes nobody.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Lists that it knows of.
    pub fn lists(&self) -> impl Iterator<Item = &str> {
        self.changes.keys().map(String::as_str)
    }

    /// Everything that it says.
    pub fn changes(&self) -> impl Iterator<Item = (&str, &str, Option<&Entry>)> {
        self.changes
            .iter()
            .flat_map(|(list, all)| all.iter().map(move |(a, e)| (list.as_str(), a.as_str(), e.as_ref())))
    }

    /// Hits that were not enough yet.
    pub fn hits(&self) -> impl Iterator<Item = (&(String, String), &VecDeque<u32>)> {
        self.hits.iter()
    }

    /// Hits of an address since then, this one included.
    pub fn hits_since(&self, list: &str, address: &str, since_s: u32) -> usize {
        let key = (list.to_owned(), address.to_owned());
        self.hits.get(&key).map_or(0, |h| h.iter().filter(|at| **at >= since_s).count())
    }

    /// Records that were applied and are no hits of the delta before.
    pub fn records(&self) -> u64 {
        self.records
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_change() -> impl Strategy<Value = Change> {
        let names = ("[a-z:]{1,9}", "[a-zé@.]{1,20}");
        (names, 0..3u8, any::<u32>(), any::<u32>(), ".{0,20}").prop_map(
            |((list, address), kind, a, b, text)| match kind {
                0 => Change::Add(Entry { list, address, reason: text.clone(), source: text, added_s: a, expires_s: b }),
                1 => Change::Remove { list, address },
                _ => Change::Hit { list, address, at_s: a, carried: b % 2 == 0 },
            },
        )
    }

    proptest! {
        #[test]
        fn records_come_back_and_torn_ones_do_not(changes in proptest::collection::vec(any_change(), 1..8), cut in 1usize..30) {
            let mut bytes = Vec::new();
            changes.iter().for_each(|c| c.encode(&mut bytes));
            let whole = bytes.len();
            bytes.truncate(whole - cut.min(whole));
            let (mut at, mut read) = (0, Vec::new());
            while let Some((c, n)) = Change::decode(&bytes[at..]) {
                at += n;
                read.push(c);
            }
            prop_assert!(read.len() < changes.len());
            prop_assert_eq!(&changes[..read.len()], &read[..]);
        }

        #[test]
        fn any_bytes_are_a_record_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Change::decode(&bytes);
        }
    }
}
