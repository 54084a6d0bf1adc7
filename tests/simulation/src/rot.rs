//! Rot: bits of what a disk had synced flip, and what came of the mail that they held.
//!
//! Records of messages, of recipients' states and of outcomes rot, and values of the index. What a segment begins with and
//! values of the log do not: everything else depends on them, and only a second disk would help.

use std::collections::BTreeMap;

use ipc::message::ArchivedEnvelope;
use rkyv::util::AlignedVec;
use spool::disk::Disk;
use spool::layout::{DoneMeta, HEADER_BYTES, Header, Kind, MAGIC_BYTES, MovedMeta};
use spool::memory::MemoryDisk;
use worker::account::record::{View, stored};

use crate::dice::Dice;
use crate::host::Host;

/// How often a value of the index rots, in cases of a thousand.
const IN_THE_INDEX: u64 = 200;

/// A record of a log that rotted.
#[derive(Debug)]
pub struct Rotted {
    segment: u32,
    /// The byte that is another one.
    at: u64,
    /// Key of the message, where it is one.
    key: Option<u64>,
    /// Where the record begins.
    from: u64,
    /// Whose mail, or whose outcome, the record held.
    recipients: Vec<String>,
}

/// A record of a log.
struct Found {
    file: String,
    from: usize,
    to: usize,
    header: Header,
    meta: Vec<u8>,
    is_last: bool,
}

impl Host {
    /// Flips a bit, of the last record of its log where that is wanted; answers where.
    pub fn rot(&self, dice: &Dice, at_the_end: bool) -> String {
        if !at_the_end && dice.permille(IN_THE_INDEX) {
            let n = dice.next();
            return if self.index.rot(n) { "a value of its index".into() } else { "an index without values".into() };
        }
        let Ok(log) = self.disk.folder("log") else { return "no log".into() };
        let found = records(files(&log));
        let rots = |f: &&Found| {
            let kinds = [Kind::Message, Kind::Moved, Kind::Update, Kind::Done];
            kinds.contains(&f.header.kind) && log.is_synced(&f.file, f.from as u64, f.to as u64)
        };
        let all: Vec<&Found> = found.iter().filter(rots).collect();
        // The newest: an older segment was ended in order.
        let last: Vec<&Found> = all.iter().rfind(|f| f.is_last).copied().into_iter().collect();
        let Some(f) = dice.pick(if at_the_end && !last.is_empty() { &last } else { &all }) else {
            return "an empty log".into();
        };
        // Mail whose end rots comes back with its segment, too.
        let gone = records(log.removed());
        let (at, bit) = (f.from + dice.below((f.to - f.from) as u64) as usize, dice.below(8));
        let rotted = Rotted {
            segment: f.header.segment,
            at: at as u64,
            key: key(f),
            from: f.from as u64,
            recipients: recipients(f, || found.iter().chain(&gone)),
        };
        log.rot(&f.file, at, 1 << bit);
        let told = format!("byte {at} of {}, in a {:?} of {:?}", f.file, f.header.kind, rotted.recipients);
        self.rotted.borrow_mut().push(rotted);
        told
    }

    /// Recipients of which the quarantine has a word: their record rotted, and a file there holds the byte.
    pub fn in_quarantine(&self) -> Vec<String> {
        let quarantine = self.disk.folder("quarantine").map(|q| files(&q)).unwrap_or_default();
        let holds = |name: String, from: u64, at: u64| {
            quarantine.get(&name).is_some_and(|bytes| (from..from + bytes.len() as u64).contains(&at))
        };
        let stretches = |segment: u32, at: u64| {
            let prefix = format!("segment-{segment}-");
            let begins = quarantine.keys().filter_map(|name| name.strip_prefix(&prefix)?.parse::<u64>().ok());
            begins.into_iter().any(|from| holds(format!("{prefix}{from}"), from, at))
        };
        let mut all = Vec::new();
        for r in &*self.rotted.borrow() {
            if stretches(r.segment, r.at) || r.key.is_some_and(|key| holds(format!("message-{key}"), r.from, r.at)) {
                all.extend(r.recipients.iter().cloned());
            }
        }
        all
    }
}

/// Files of a folder.
fn files(folder: &MemoryDisk) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for name in folder.list().unwrap_or_default() {
        let Ok(file) = folder.clone().open(&name) else { continue };
        let mut bytes = vec![0; folder.len(&file).unwrap_or(0) as usize];
        let n = folder.read(&file, 0, &mut bytes).unwrap_or(0);
        bytes.truncate(n);
        all.insert(name, bytes);
    }
    all
}

/// All records of segments that are as they were written, but for contents.
fn records(segments: impl IntoIterator<Item = (String, Vec<u8>)>) -> Vec<Found> {
    let mut all: Vec<Found> = Vec::new();
    for (file, bytes) in segments {
        let mut at = 0;
        let first = all.len();
        while let Some(rest) = bytes.get(at..).filter(|rest| rest.len() >= HEADER_BYTES) {
            let header = Header::decode(rest);
            let meta = header.and_then(|h| rest.get(HEADER_BYTES..HEADER_BYTES + h.meta_len));
            match (header, meta) {
                (Some(header), Some(meta)) if Header::checks(rest, meta) => {
                    let to = at + HEADER_BYTES + header.meta_len + header.body_len;
                    all.push(Found { file: file.clone(), from: at, to, header, meta: meta.to_vec(), is_last: false });
                    at += header.record_len();
                }
                _ => match rest[8..].chunks(8).position(|c| c.starts_with(&MAGIC_BYTES)) {
                    Some(n) => at += 8 * (n + 1),
                    None => break,
                },
            }
        }
        all[first..].iter_mut().next_back().into_iter().for_each(|f| f.is_last = true);
    }
    all
}

/// The message that a record holds.
fn key(f: &Found) -> Option<u64> {
    match f.header.kind {
        Kind::Message => Some(f.header.sequence),
        Kind::Moved => ipc::frame::unarchive::<MovedMeta>(0, &aligned(&f.meta)).ok().map(|m| m.key),
        _ => None,
    }
}

/// Recipients of the message that a record holds.
fn of_envelope(f: &Found) -> Vec<String> {
    let envelope = match f.header.kind {
        Kind::Message => f.meta.clone(),
        Kind::Moved => ipc::frame::unarchive::<MovedMeta>(0, &aligned(&f.meta)).map(|m| m.envelope).unwrap_or_default(),
        _ => return Vec::new(),
    };
    let envelope = aligned(&envelope);
    let envelope = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&envelope);
    envelope.map(|e| e.recipients.iter().map(|r| r.address.as_str().to_owned()).collect()).unwrap_or_default()
}

/// Recipients whose mail or whose end a record holds: a message without the record that ends it is delivered again by a process
/// that has nothing else to go by.
fn recipients<'a, All: Iterator<Item = &'a Found>>(f: &Found, all: impl Fn() -> All) -> Vec<String> {
    let rcpt = const { stored("rcpt") };
    let (rows, keys) = match f.header.kind {
        Kind::Done => match ipc::frame::unarchive::<DoneMeta>(0, &aligned(&f.meta)) {
            Ok(m) => (m.rows, m.entries.iter().map(|(key, _)| *key).chain(m.settled).collect()),
            Err(_) => Default::default(),
        },
        Kind::Update => return Vec::new(),
        _ => (Vec::new(), Vec::new()),
    };
    let of_rows = rows.iter().filter_map(|row| Some(View::of(row)?.field(rcpt).into_owned()));
    let of_keys = all().filter(|other| key(other).is_some_and(|k| keys.contains(&k))).flat_map(of_envelope);
    let mut some: Vec<String> = of_rows.chain(of_keys).chain(of_envelope(f)).collect();
    some.sort_unstable();
    some.dedup();
    some
}

/// Bytes of an archive where it can be read in place.
fn aligned(bytes: &[u8]) -> AlignedVec<16> {
    let mut aligned = AlignedVec::new();
    aligned.extend_from_slice(bytes);
    aligned
}
