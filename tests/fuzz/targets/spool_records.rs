//! What a disk gives back: the spool opened over segments that were damaged or forged.
//!
//! The input chooses one of a few spools made in the ordinary way, what became of its index,
//! and then changes to its files. Unless a change wrote valid checksums, what it did not touch
//! must still be there.
#![no_main]

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::ops::Range;

use bytes::Bytes;
use fuzz::{Choices, peak};
use ipc::message::{BodyType, Envelope, HandoffId, MessageId, Recipient, Ret, SourceType};
use libfuzzer_sys::{Corpus, fuzz_target};
use spool::disk::Disk;
use spool::group::Group;
use spool::index::Index;
use spool::layout::{
    DoneMeta, ForgetMeta, HEADER_BYTES, Header, Kind, MovedMeta, PutMeta, RecipientState, StartMeta, UpdateEntry,
    UpdateMeta,
};
use spool::memory::{MemoryDisk, MemoryIndex};
use spool::store::Store;
use spool::{NewMessage, Projection, Settled, SpoolError};

const SHARD: u8 = 3;
const CAPACITY: u64 = 1 << 30;
/// What opening a spool of some 100 KB may take, whatever its records say of their lengths.
const MEMORY_MAX: usize = 8 << 20;

fn envelope(recipients: u16, handoff: Option<u64>) -> Bytes {
    let e = Envelope {
        id: MessageId([1; 16]),
        received_unix_ms: 5,
        sender: "s@x.test".into(),
        vmta: "v".into(),
        job_id: String::new(),
        envid: String::new(),
        ret: Ret::Unset,
        body_type: BodyType::SevenBit,
        smtputf8: false,
        suppress_dsn: false,
        source_type: SourceType::Smtp,
        kept: 0,
        source_name: String::new(),
        source_ip: String::new(),
        local_ip: String::new(),
        handoff: handoff.map(|sequence| HandoffId { origin: 9, incarnation: 0, sequence }),
        asked: None,
        moved: None,
        recipients: (0..recipients)
            .map(|i| Recipient {
                address: format!("r{i}@d.test"),
                destination: "d.test".into(),
                notify: 0,
                priority_given: 0,
                given_again: 0,
                orcpt: String::new(),
            })
            .collect(),
    };
    Bytes::copy_from_slice(&ipc::frame::archive(&e))
}

/// Messages with the recipients left, and when these are due.
type Found = BTreeMap<u64, BTreeMap<u16, i64>>;

fn open(disk: &Small, index: &MemoryIndex, boot: &str) -> (Store<Small, MemoryIndex>, Found, bool) {
    let mut found = Found::new();
    let (mut store, opened) = Store::open(disk.clone(), index.clone(), SHARD, boot, &mut |r| {
        let left = r.recipients.iter().map(|x| (x.index, x.due_unix_ms)).collect();
        assert!(found.insert(r.key, left).is_none(), "message {} twice", r.key);
    })
    .expect("damage is no reason not to open");
    assert_eq!(opened.messages, found.len() as u64);
    for (key, left) in &found {
        match store.read(*key) {
            Ok(_) | Err(SpoolError::Unreadable { .. }) => {}
            Err(e) => panic!("reading {key}: {e}"),
        }
        for recipient in left.keys() {
            store.state(*key, *recipient).expect("an index that was just read or made");
        }
    }
    let mut quarantine = disk.folder("quarantine").expect("a folder in memory");
    while store.quarantine_waits() {
        store.write_quarantine(&mut quarantine).expect("a disk that works");
    }
    store.project_from(&mut Nowhere).expect("a disk that works");
    (store, found, opened.rebuilt.is_some())
}

/// The disk in memory, but as one that cannot allocate room ahead: 8 MB for each segment would
/// take longer than all the rest.
#[derive(Debug, Clone)]
struct Small(MemoryDisk);

impl Disk for Small {
    type File = String;

    fn list(&self) -> io::Result<Vec<String>> {
        self.0.list()
    }
    fn oldest_first(&self) -> io::Result<Vec<String>> {
        self.0.oldest_first()
    }
    fn create(&mut self, name: &str) -> io::Result<String> {
        self.0.create(name)
    }
    fn open(&mut self, name: &str) -> io::Result<String> {
        self.0.open(name)
    }
    fn preallocate(&mut self, _: &String, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn write(&mut self, file: &String, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        self.0.write(file, offset, parts)
    }
    fn sync(&mut self, file: &String) -> io::Result<()> {
        self.0.sync(file)
    }
    fn truncate(&mut self, file: &String, len: u64) -> io::Result<()> {
        self.0.truncate(file, len)
    }
    fn read(&self, file: &String, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(file, offset, buf)
    }
    fn len(&self, file: &String) -> io::Result<u64> {
        self.0.len(file)
    }
    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }
    fn free_bytes(&self) -> io::Result<u64> {
        self.0.free_bytes()
    }
    fn folder(&self, name: &str) -> io::Result<Small> {
        self.0.folder(name).map(Small)
    }
}

/// Accounting that keeps nothing.
struct Nowhere;

impl Projection for Nowhere {
    fn message(&mut self, _: &[u8], _: &[u8]) {}
    fn row(&mut self, _: &[u8]) {}
    fn write(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn sync(&mut self) -> io::Result<Vec<u8>> {
        Ok(Vec::new())
    }
    fn resume(&mut self, _: &[u8]) {}
}

fn read_all(disk: &mut Small, name: &str) -> Vec<u8> {
    let file = disk.open(name).expect("a file");
    let mut bytes = vec![0; disk.len(&file).expect("a length") as usize];
    disk.read(&file, 0, &mut bytes).expect("bytes");
    bytes
}

/// A record of a spool as it was made.
#[derive(Debug, Clone)]
struct Place {
    file: usize,
    range: Range<usize>,
    header: Header,
}

/// A spool as it was made.
#[derive(Debug, Default)]
struct Base {
    files: Vec<(String, Vec<u8>)>,
    index: Vec<(Vec<u8>, Vec<u8>)>,
    boot: String,
    found: Found,
    bodies: BTreeMap<u64, Bytes>,
    records: Vec<Place>,
    /// Where each message lies, once or, copied forward, twice.
    places: BTreeMap<u64, Vec<Place>>,
}

struct Making {
    disk: Small,
    index: MemoryIndex,
    store: Store<Small, MemoryIndex>,
    bodies: BTreeMap<u64, Bytes>,
}

impl Making {
    fn new() -> Making {
        let (disk, index) = (Small(MemoryDisk::new(CAPACITY)), MemoryIndex::default());
        let (store, ..) = open(&disk, &index, "0");
        Making { disk, index, store, bodies: BTreeMap::new() }
    }

    fn store(&mut self, recipients: u16, body: usize, handoff: Option<u64>) -> u64 {
        let body = Bytes::from(vec![b'a' + self.bodies.len() as u8 % 26; body]);
        let halves = [body.slice(..body.len() / 2), body.slice(body.len() / 2..)];
        let m = NewMessage { envelope: envelope(recipients, handoff), body: halves, in_progress: false };
        let stored = self.store.commit(&Group { store: vec![m], ..Default::default() }).expect("room").remove(0);
        let key = stored.expect("room");
        self.bodies.insert(key, body);
        key
    }

    fn update(&mut self, key: u64, recipient: u16, due_unix_ms: i64) {
        let mut g = Group::default();
        let state = RecipientState { due_unix_ms, delay_reports: 1, attempts: 2, last_reply: "450 later".into() };
        g.update.entries.push(UpdateEntry { key, recipient, state });
        g.update.rows.push(b"row".to_vec());
        self.store.commit(&g).expect("room");
    }

    fn settle(&mut self, key: u64, recipients: Vec<u16>, last: bool) {
        let mut g = Group::default();
        g.settle(Settled { key, recipients, last, rows: vec![b"row".to_vec()] });
        g.put.push(PutMeta { name: "name".into(), value: b"value".to_vec() });
        g.forget.push(ForgetMeta { origin: 9, incarnation: 0, below: 2 });
        self.store.commit(&g).expect("room");
    }

    fn projected(&mut self) {
        let put = self.store.set_projected(self.store.last_sequence(), b"state");
        self.store.commit(&Group { put: vec![put], ..Default::default() }).expect("room");
    }

    fn checkpoint(&mut self) {
        self.store.begin_checkpoint();
        while !self.store.step_checkpoint().expect("an index that works") {}
    }

    fn stop(&mut self) {
        self.projected();
        self.store.close().expect("an index that works");
        self.store = open(&self.disk, &self.index, "0").0;
    }

    /// Lets a write fail, which seals the segment.
    fn seal(&mut self) {
        self.disk.0.fail_in(Some(0));
        let m = NewMessage { envelope: envelope(1, None), body: Default::default(), in_progress: false };
        let stored = self.store.commit(&Group { store: vec![m], ..Default::default() });
        assert!(stored.is_err() || stored.is_ok_and(|s| s[0].is_err()));
        self.disk.0.fail_in(None);
    }

    fn compact(&mut self) {
        assert!(self.store.choose_compaction(), "nothing to copy forward");
        while !self.store.step_compaction().expect("room") {}
    }

    /// The spool as a kill leaves it, with some of the room that was allocated ahead.
    fn kill(mut self) -> Base {
        let mut base = Base { boot: "0".into(), bodies: self.bodies, ..Default::default() };
        let mut names = self.disk.list().expect("names");
        names.sort();
        for name in names {
            let mut bytes = read_all(&mut self.disk, &name);
            let mut end = 0;
            while let Some(header) = bytes.get(end..).and_then(Header::decode) {
                let range = end..end + header.record_len();
                end = range.end;
                let place = Place { file: base.files.len(), range: range.clone(), header };
                let key = match header.kind {
                    Kind::Message => Some(header.sequence),
                    Kind::Moved => {
                        let meta = &bytes[range.start + HEADER_BYTES..][..header.meta_len];
                        Some(ipc::frame::unarchive::<MovedMeta>(0, meta).expect("a record").key)
                    }
                    _ => None,
                };
                if let Some(key) = key {
                    base.places.entry(key).or_default().push(place.clone());
                }
                base.records.push(place);
            }
            bytes.resize(end + 64, 0);
            base.files.push((name, bytes));
        }
        self.index
            .scan(b"", &mut |k, v| {
                base.index.push((k.to_vec(), v.to_vec()));
                Ok(())
            })
            .expect("an index that works");
        let (disk, index) = base.world(true);
        base.found = open(&disk, &index, &base.boot).1;
        assert_eq!(base.found.len(), base.places.keys().filter(|k| base.found.contains_key(k)).count());
        base
    }
}

impl Base {
    /// Nothing but the log.
    fn young() -> Base {
        let mut m = Making::new();
        let keys = [m.store(1, 10, None), m.store(3, 300, Some(4)), m.store(1, 0, None), m.store(2, 2000, None)];
        m.update(keys[1], 1, 77);
        m.settle(keys[1], vec![0], false);
        m.settle(keys[0], vec![0], true);
        m.kill()
    }

    /// Three segments, and an index that knows two and a half of them.
    fn grown() -> Base {
        let mut m = Making::new();
        let keys = [m.store(2, 100, Some(5)), m.store(1, 50, None), m.store(5, 400, None)];
        m.update(keys[0], 1, 78);
        m.stop();
        m.settle(keys[1], vec![0], true);
        m.store(1, 70, None);
        m.update(keys[0], 1, 79);
        m.stop();
        let more = [m.store(1, 30, None), m.store(2, 600, Some(6))];
        m.settle(keys[2], vec![0, 1], false);
        m.checkpoint();
        m.update(more[1], 0, 80);
        m.settle(more[0], vec![0], true);
        m.store(1, 33, None);
        m.kill()
    }

    /// Mail copied forward, which the index learns before or after.
    fn moved(indexed: bool) -> Base {
        let mut m = Making::new();
        let keys = [m.store(2, 40, None), m.store(1, 3000, None), m.store(1, 20, Some(7))];
        m.update(keys[0], 1, 81);
        m.settle(keys[0], vec![0], false);
        m.stop();
        m.settle(keys[1], vec![0], true);
        m.store(1, 500, None);
        m.projected();
        m.checkpoint();
        m.compact();
        if indexed {
            m.checkpoint();
        }
        m.update(keys[0], 1, 82);
        m.store(1, 44, None);
        m.kill()
    }

    /// Mail copied forward into a segment that is older than its own.
    fn crossed() -> Base {
        let mut m = Making::new();
        let keys = [m.store(2, 40, None), m.store(1, 3000, None)];
        m.update(keys[0], 1, 83);
        m.stop();
        m.settle(keys[1], vec![0], true);
        m.checkpoint();
        m.compact();
        m.seal();
        let more = [m.store(1, 10, None), m.store(3, 60, Some(8)), m.store(1, 4000, None)];
        m.update(keys[0], 0, 84);
        m.update(more[1], 2, 85);
        m.seal();
        m.settle(more[2], vec![0], true);
        m.projected();
        m.checkpoint();
        m.compact();
        m.update(more[1], 0, 86);
        m.store(1, 45, None);
        m.kill()
    }

    /// A disk and an index that hold this spool.
    fn world(&self, indexed: bool) -> (Small, MemoryIndex) {
        let (mut disk, mut index) = (Small(MemoryDisk::new(CAPACITY)), MemoryIndex::default());
        for (name, bytes) in &self.files {
            put(&mut disk, name, bytes);
        }
        if indexed {
            index.apply(self.index.iter().map(|(k, v)| (k.clone(), Some(v.clone()))).collect()).expect("an index");
        }
        (disk, index)
    }
}

fn put(disk: &mut Small, name: &str, bytes: &[u8]) {
    let file = disk.create(name).expect("a file");
    disk.write(&file, 0, &[IoSlice::new(bytes)]).expect("room");
}

/// A spool being damaged: its files' bytes now, `None` when one was removed.
struct Damaged<'a> {
    base: &'a Base,
    files: Vec<Option<Vec<u8>>>,
    /// Files that no spool made.
    stray: Vec<(&'static str, Vec<u8>)>,
    /// Valid checksums were written.
    forged: bool,
}

impl Damaged<'_> {
    fn file(&mut self, c: &mut Choices<'_>) -> Option<&mut Vec<u8>> {
        let n = usize::from(c.byte()) % self.files.len();
        self.files[n].as_mut().filter(|f| !f.is_empty())
    }

    fn change(&mut self, c: &mut Choices<'_>) {
        let op = c.byte();
        match op % 9 {
            0 => {
                let Some(f) = self.file(c) else { return };
                let at = usize::from(c.short()) % f.len();
                f[at] ^= c.byte().max(1);
            }
            1 => {
                let Some(f) = self.file(c) else { return };
                let (at, n, value) = (usize::from(c.short()) % f.len(), usize::from(c.byte()), c.byte());
                f.iter_mut().skip(at).take(n).for_each(|b| *b = value);
            }
            2 => {
                let Some(f) = self.file(c) else { return };
                f.truncate(usize::from(c.short()) % f.len());
            }
            3 => {
                let Some(f) = self.file(c) else { return };
                let (at, n) = (usize::from(c.short()) % f.len(), usize::from(c.short() % 4096));
                let piece: Vec<u8> = f[at & !7..].iter().copied().take(n).collect();
                let Some(f) = self.file(c) else { return };
                let at = usize::from(c.short()) % f.len() & !7;
                f.resize(f.len().max(at + piece.len()), 0);
                f[at..at + piece.len()].copy_from_slice(&piece);
            }
            4 => {
                let n = usize::from(c.byte());
                let more = c.bytes(n);
                if let Some(f) = self.file(c) {
                    f.extend_from_slice(more);
                }
            }
            5 => {
                let n = usize::from(c.byte()) % self.files.len();
                self.files[n] = None;
            }
            6 => {
                const NAMES: [&str; 8] = [
                    "1.log",
                    "+2.log",
                    "4294967295.log",
                    "4294967296.cold",
                    "00000000.log",
                    "00000077.cold",
                    "00000001.log.old",
                    "x",
                ];
                let name = NAMES[usize::from(c.byte()) % NAMES.len()];
                let copy = self.file(c).map_or_else(Vec::new, |f| f.clone());
                // No folder has a name twice.
                if self.stray.iter().all(|(other, _)| *other != name) {
                    self.stray.push((name, copy));
                }
            }
            7 => self.reseal(c),
            _ => self.forge(c),
        }
    }

    /// Changes a record, or what its header says of it, and makes its checksums right.
    fn reseal(&mut self, c: &mut Choices<'_>) {
        self.forged = true;
        let place = &self.base.records[usize::from(c.byte()) % self.base.records.len()];
        let Some(bytes) = self.files[place.file].as_mut().and_then(|f| f.get_mut(place.range.clone())) else { return };
        let mut h = place.header;
        match c.byte() % 5 {
            0 => h.sequence = u64::MAX - u64::from(c.byte()),
            1 => h.sequence = c.byte().into(),
            2 => h.meta_len = usize::from(c.short()).min(bytes.len() - HEADER_BYTES),
            3 => h.body_len = usize::from(c.short()).min(bytes.len() - HEADER_BYTES - h.meta_len),
            _ => {}
        }
        h.body_len = h.body_len.min(bytes.len() - HEADER_BYTES - h.meta_len);
        for _ in 0..c.byte() % 8 {
            let at = HEADER_BYTES + usize::from(c.short()) % (bytes.len() - HEADER_BYTES).max(1);
            if let Some(b) = bytes.get_mut(at) {
                *b ^= c.byte();
            }
        }
        let (meta, body) = bytes[HEADER_BYTES..].split_at(h.meta_len);
        h.body_crc = crc32c::crc32c(&body[..h.body_len]);
        let mut head = Vec::new();
        h.encode(meta, &mut head);
        bytes[..HEADER_BYTES].copy_from_slice(&head);
    }

    /// Writes a record of its own at some place.
    fn forge(&mut self, c: &mut Choices<'_>) {
        self.forged = true;
        let n = usize::from(c.byte()) % self.files.len();
        let key = u64::from(c.byte() % 32);
        let recipient = u16::from(c.byte() % 8) * 8191;
        let state = RecipientState {
            due_unix_ms: c.short().into(),
            delay_reports: 1,
            attempts: 2,
            last_reply: "x".repeat(300),
        };
        let (kind, meta) = match c.byte() % 9 {
            0 => (Kind::Message, envelope(u16::from(c.byte()), Some(c.byte().into())).to_vec()),
            1 => (Kind::Message, c.bytes(40).to_vec()),
            2 => {
                let m = StartMeta {
                    cold: false,
                    values: vec![("spool/projected".into(), c.bytes(9).to_vec())],
                    seen: vec![(9, 0, u64::MAX, vec![key])],
                };
                (Kind::Start, ipc::frame::archive(&m).to_vec())
            }
            3 => {
                let m = UpdateMeta { entries: vec![UpdateEntry { key, recipient, state }; 2], rows: vec![Vec::new()] };
                (Kind::Update, ipc::frame::archive(&m).to_vec())
            }
            4 => {
                let m = DoneMeta { entries: vec![(key, recipient); 2], settled: vec![key, key], rows: vec![vec![0]] };
                (Kind::Done, ipc::frame::archive(&m).to_vec())
            }
            5 => {
                let envelope = if c.byte() % 2 == 0 { envelope(2, None).to_vec() } else { c.bytes(20).to_vec() };
                let m = MovedMeta { key, envelope, states: vec![(recipient, state)], done: vec![u16::from(c.byte())] };
                (Kind::Moved, ipc::frame::archive(&m).to_vec())
            }
            6 => (
                Kind::Put,
                ipc::frame::archive(&PutMeta { name: "spool/projected".into(), value: c.bytes(9).to_vec() }).to_vec(),
            ),
            7 => {
                (Kind::Forget, ipc::frame::archive(&ForgetMeta { origin: 9, incarnation: 0, below: u64::MAX }).to_vec())
            }
            _ => (Kind::Done, c.bytes(40).to_vec()),
        };
        let body = vec![b'f'; usize::from(c.byte())];
        let mut header = Header {
            kind,
            sequence: key + u64::from(c.byte()),
            segment: c.byte().into(),
            meta_len: meta.len(),
            body_len: body.len(),
            body_crc: crc32c::crc32c(&body),
        };
        let at = usize::from(c.short());
        let end = c.byte() % 4 > 0;
        // Most belong where they stand.
        if header.segment % 8 > 0 {
            header.segment = self.base.files[n].0[..8].parse().expect("a number");
        }
        let Some(f) = self.files[n].as_mut() else { return };
        let at = if end { f.len().next_multiple_of(8) } else { at % (f.len() + 1) & !7 };
        let mut record = Vec::new();
        header.encode(&meta, &mut record);
        record.extend_from_slice(&meta);
        record.extend_from_slice(&body);
        f.resize(f.len().max(at + header.record_len()), 0);
        f[at..at + record.len()].copy_from_slice(&record);
    }

    fn intact(&self, p: &Place) -> bool {
        let now = self.files[p.file].as_ref().and_then(|f| f.get(p.range.clone()));
        now == self.base.files[p.file].1.get(p.range.clone())
    }

    fn untouched(&self) -> bool {
        let same = |(now, (_, was)): (&Option<Vec<u8>>, &(String, Vec<u8>))| now.as_ref() == Some(was);
        !self.forged && self.files.iter().zip(&self.base.files).all(same)
    }

    fn world(&self, indexed: bool) -> (Small, MemoryIndex) {
        let (_, index) = self.base.world(indexed);
        let mut disk = Small(MemoryDisk::new(CAPACITY));
        for ((name, _), now) in self.base.files.iter().zip(&self.files) {
            if let Some(bytes) = now {
                put(&mut disk, name, bytes);
            }
        }
        for (name, bytes) in &self.stray {
            put(&mut disk, name, bytes);
        }
        (disk, index)
    }

    /// What the changes did not touch is there.
    fn check(&self, store: &mut Store<Small, MemoryIndex>, found: &Found) {
        if self.untouched() {
            assert_eq!(*found, self.base.found, "damage out of nothing");
        }
        for (key, left) in &self.base.found {
            let places = &self.base.places[key];
            let intact = places.iter().filter(|p| self.intact(p)).count();
            if intact == 0 {
                continue;
            }
            let now = found.get(key).unwrap_or_else(|| panic!("message {key} is lost"));
            for recipient in left.keys() {
                assert!(now.contains_key(recipient), "recipient {recipient} of message {key} is lost");
            }
            if intact == places.len() {
                let (_, body) = store.read(*key).expect("an intact message");
                assert!(body == self.base.bodies[key], "content of message {key}");
            }
        }
    }
}

/// A spool whose life the input chooses, without damage: what is found at each start is what
/// was left.
struct Life {
    making: Making,
    model: Found,
    handoffs: BTreeSet<u64>,
    boot: u32,
}

impl Life {
    fn pick(&self, c: &mut Choices<'_>) -> Option<u64> {
        let n = self.model.len().max(1);
        self.model.keys().nth(usize::from(c.byte()) % n).copied()
    }

    fn start(&mut self) {
        let m = &mut self.making;
        let (store, found, _) = open(&m.disk, &m.index, &self.boot.to_string());
        m.store = store;
        assert_eq!(found, self.model, "a start finds something else");
        for key in self.model.keys() {
            assert!(m.store.read(*key).expect("an intact message").1 == m.bodies[key], "content of message {key}");
        }
        for sequence in &self.handoffs {
            assert!(
                m.store.has_seen(HandoffId { origin: 9, incarnation: 0, sequence: *sequence }),
                "handoff {sequence} is forgotten"
            );
        }
    }

    /// Ends one recipient, or all. That nothing is left may be said later.
    fn settle(&mut self, key: u64, some: Option<u16>, later: bool) {
        let Some(left) = self.model.get_mut(&key) else { return };
        let recipients: Vec<u16> = left.keys().copied().filter(|r| some.is_none_or(|s| s == *r)).collect();
        left.retain(|r, _| !recipients.contains(r));
        let last = left.is_empty() && !later;
        if last {
            self.model.remove(&key);
        }
        let mut g = Group::default();
        g.settle(Settled { key, recipients, last, rows: Vec::new() });
        if !g.is_empty() {
            self.making.store.commit(&g).expect("room");
        }
    }

    fn act(&mut self, c: &mut Choices<'_>) {
        match c.byte() % 14 {
            0 | 1 => {
                let (n, body) = (c.byte(), 16 * usize::from(c.byte()));
                let handoff = (n & 128 != 0).then(|| self.making.bodies.len() as u64 + 1);
                self.handoffs.extend(handoff);
                let n = u16::from(n % 4) + 1;
                let key = self.making.store(n, body, handoff);
                self.model.insert(key, (0..n).map(|r| (r, 0)).collect());
            }
            2 => {
                let Some(key) = self.pick(c) else { return };
                self.settle(key, None, false);
            }
            3 => {
                let Some(key) = self.pick(c) else { return };
                let which = c.byte();
                self.settle(key, Some(u16::from(which % 4)), which & 128 != 0);
            }
            4 | 5 => {
                let (Some(key), recipient, due) = (self.pick(c), u16::from(c.byte() % 4), c.byte().into()) else {
                    return;
                };
                if let Some(d) = self.model.get_mut(&key).and_then(|left| left.get_mut(&recipient)) {
                    *d = due;
                    self.making.update(key, recipient, due);
                }
            }
            6 => self.making.checkpoint(),
            7 => self.making.store.begin_checkpoint(),
            8 => drop(self.making.store.step_checkpoint().expect("an index that works")),
            9 => {
                if self.making.store.choose_compaction() {
                    self.making.store.step_compaction().expect("room");
                }
            }
            10 => self.making.seal(),
            11 => {
                self.making.store.close().expect("an index that works");
                self.boot += 1;
                self.start();
            }
            12 => self.start(),
            _ => {
                self.making.disk.0.lose_power(c.byte().into());
                self.making.index.lose_power();
                self.boot += 1;
                self.start();
            }
        }
        self.making.store.set_projected(self.making.store.last_sequence(), b"");
    }

    fn live(mut c: Choices<'_>) {
        let mut life = Life { making: Making::new(), model: Found::new(), handoffs: BTreeSet::new(), boot: 0 };
        for _ in 0..200 {
            if c.0.is_empty() {
                break;
            }
            life.act(&mut c);
        }
        life.start();
        life.boot += 1;
        life.start();
        // An empty spool keeps no more than the segment that begins with the values.
        for key in life.model.keys().copied().collect::<Vec<_>>() {
            life.settle(key, None, false);
        }
        for _ in 0..3 {
            life.making.store.set_projected(life.making.store.last_sequence(), b"");
            life.making.store.close().expect("an index that works");
        }
        let files = life.making.disk.list().expect("names");
        assert!(files.len() <= 1, "an empty spool keeps {files:?}");
    }
}

thread_local! {
    static BASES: OnceCell<[Base; 5]> = const { OnceCell::new() };
}

fuzz_target!(|input: &[u8]| -> Corpus {
    let [which, flags, rest @ ..] = input else { return Corpus::Reject };
    if which % 2 == 0 {
        Life::live(Choices(rest));
        return Corpus::Keep;
    }
    BASES.with(|bases| {
        let bases = bases
            .get_or_init(|| [Base::young(), Base::grown(), Base::moved(false), Base::moved(true), Base::crossed()]);
        let base = &bases[usize::from(which / 2 % 5)];
        let files = base.files.iter().map(|(_, b)| Some(b.clone())).collect();
        let mut d = Damaged { base, files, stray: Vec::new(), forged: false };
        let mut c = Choices(rest);
        for _ in 0..16 {
            if c.0.is_empty() {
                break;
            }
            d.change(&mut c);
        }
        let (indexed, boot) = (flags & 1 == 0, if flags & 2 == 0 { base.boot.as_str() } else { "another boot" });
        let (disk, index) = d.world(indexed);
        let ((mut store, first, rebuilt), held) = peak(|| open(&disk, &index, boot));
        assert!(held < MEMORY_MAX, "{held} bytes held to open a spool of {}", store.disk_bytes());
        let rebuilt = rebuilt || !indexed;
        if !d.forged {
            d.check(&mut store, &first);
        }
        let mut want = first.clone();
        let settled =
            want.iter().map(|(k, left)| (*k, left.clone())).nth(usize::from(flags >> 5)).filter(|_| flags & 16 == 0);
        if let Some((key, left)) = &settled {
            let mut g = Group::default();
            g.settle(Settled { key: *key, recipients: left.keys().copied().collect(), last: true, rows: Vec::new() });
            store.commit(&g).expect("room");
            want.remove(key);
        }
        let mut new = None;
        if flags & 4 == 0 {
            let body = [Bytes::from("new"), Bytes::new()];
            let m = NewMessage { envelope: envelope(1, None), body, in_progress: false };
            let stored = store.commit(&Group { store: vec![m], ..Default::default() }).expect("room").remove(0);
            let key = stored.expect("room");
            assert!(want.insert(key, BTreeMap::from([(0, 0)])).is_none(), "key {key} was given twice");
            new = Some(key);
        }
        if flags & 8 == 0 {
            store.close().expect("an index that works");
            for _ in 0..flags >> 5 {
                if store.choose_compaction() {
                    while !store.step_compaction().expect("room") {}
                }
                store.close().expect("an index that works");
            }
        }
        drop(store);

        let (mut store, killed, _) = open(&disk, &index, boot);
        assert!(d.forged || killed == want, "a second start finds something else: {killed:?}, not {want:?}");
        store.set_projected(store.last_sequence(), b"");
        store.close().expect("an index that works");
        drop(store);
        let (mut store, stopped, _) = open(&disk, &index, boot);
        assert!(d.forged || stopped == want, "an orderly stop loses something: {stopped:?}, not {want:?}");
        if let Some(key) = new {
            assert_eq!(store.read(key).expect("new mail").1, "new");
        }
        drop(store);

        index.clone().set_aside().expect("an index that works");
        let (_, again, _) = open(&disk, &index, boot);
        if rebuilt && !d.forged {
            assert_eq!(again, want, "another index finds something else");
        }
        if let Some((key, _)) = settled {
            assert!(d.forged || !again.contains_key(&key), "message {key} came back");
        }
        let known: BTreeSet<u64> = base.places.keys().copied().chain(new).collect();
        assert!(d.forged || again.keys().all(|k| known.contains(k)), "mail out of nothing");
    });
    Corpus::Keep
});
