//! The append-only log in segment files: the truth.
//!
//! Two streams: *hot* takes what happens now, *cold* takes mail copied forward out of nearly
//! empty segments. A record never spans segments. Space is allocated before it is needed,
//! so that outcomes can still be written when the disk is full.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};

use bytes::Bytes;

use crate::disk::Disk;
use crate::layout::{BODY_BYTES_MAX, HEADER_BYTES, Header, Kind, Location, MAGIC_BYTES, META_BYTES_MAX, StartMeta};

/// A segment is sealed when the next group would pass this size.
pub const SEGMENT_BYTES: u64 = 64 << 20;
/// Space is allocated in steps of this size.
pub const STEP_BYTES: u64 = 8 << 20;
/// Bytes read at once when a segment is scanned.
const SCAN_BYTES: usize = 256 << 10;

/// Which of the two streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// What happens now.
    Hot,
    /// What was copied forward.
    Cold,
}

/// A record to be appended.
#[derive(Debug)]
pub struct Pending {
    /// What it says.
    pub kind: Kind,
    /// Its meta part.
    pub meta: Bytes,
    /// Its body, in two pieces.
    pub body: [Bytes; 2],
}

impl Pending {
    /// A record without body.
    pub fn of(kind: Kind, meta: impl AsRef<[u8]>) -> Pending {
        Pending { kind, meta: Bytes::copy_from_slice(meta.as_ref()), body: [Bytes::new(), Bytes::new()] }
    }

    /// What is written must be accepted when it is read.
    pub fn reads_back(&self) -> bool {
        self.meta.len() <= META_BYTES_MAX && self.body[0].len() + self.body[1].len() <= BODY_BYTES_MAX
    }

    /// What a cold segment begins with.
    pub fn cold_start() -> Pending {
        Pending::of(Kind::Start, ipc::frame::archive(&StartMeta { cold: true, ..Default::default() }))
    }

    /// Bytes that it will take on disk.
    pub fn bytes(&self) -> u64 {
        (HEADER_BYTES + self.meta.len() + self.body[0].len() + self.body[1].len()).next_multiple_of(8) as u64
    }
}

/// A segment file and what keeps it.
#[derive(Debug)]
pub struct Segment<F> {
    file: F,
    /// Belongs to the cold stream.
    pub cold: bool,
    /// Bytes written.
    pub len: u64,
    allocated: u64,
    /// Messages and recipients' states that live here.
    pub live: u64,
    /// Bytes of the messages that live here.
    pub live_bytes: u64,
    /// Segments that hold mail whose end is recorded here: while one of them exists, this one
    /// must too, or a rebuild would bring delivered mail back. Of a cold segment, in which
    /// nothing ends: the segments that its mail was copied from, which may still hold it.
    pub refs: BTreeSet<u32>,
    /// What could be copied forward has been: the rest does not validate.
    pub copied: bool,
    /// Highest sequence in it.
    pub last_sequence: u64,
    /// `live`, `refs` or `last_sequence` differ from what the index holds.
    pub changed: bool,
}

/// A record read back.
#[derive(Debug)]
pub struct Record {
    /// Its header.
    pub header: Header,
    /// Its meta part, checked.
    pub meta: Vec<u8>,
    /// Where it lies.
    pub location: Location,
}

/// A stretch of a segment that does not validate.
#[derive(Debug)]
pub struct Damage {
    /// Segment.
    pub segment: u32,
    /// First byte.
    pub from: u64,
    /// Byte behind the last.
    pub to: u64,
}

/// All segments of a shard.
#[derive(Debug)]
pub struct Log<D: Disk> {
    /// The folder.
    pub disk: D,
    /// By number, ascending.
    pub segments: BTreeMap<u32, Segment<D::File>>,
    hot: Option<u32>,
    cold: Option<u32>,
    /// Number of the next segment.
    pub next_segment: u32,
    /// Sequence of the next record.
    pub next_sequence: u64,
    /// Bytes appended since opening.
    pub written: u64,
}

fn name_of(id: u32, cold: bool) -> String {
    format!("{id:08}.{}", if cold { "cold" } else { "log" })
}

/// The segment of this name, if [`name_of`] gives it: `1.log` must not take the place of
/// `00000001.log`. 0 stands for no segment, and behind the last number there is no next one.
fn id_of(name: &str) -> Option<(u32, bool)> {
    let (stem, kind) = name.split_once('.')?;
    let (id, cold) = (stem.parse().ok()?, kind == "cold");
    ((1..u32::MAX).contains(&id) && name_of(id, cold) == name).then_some((id, cold))
}

impl<D: Disk> Log<D> {
    /// Opens every segment in the folder; nothing is read yet.
    ///
    /// # Errors
    /// As `readdir(3)` and `open(2)`.
    pub fn open(mut disk: D) -> io::Result<Self> {
        let mut segments = BTreeMap::new();
        for name in disk.list()? {
            let Some((id, cold)) = id_of(&name) else { continue };
            let file = disk.open(&name)?;
            let len = disk.len(&file)?;
            segments.insert(
                id,
                Segment {
                    file,
                    cold,
                    len,
                    allocated: len,
                    live: 0,
                    live_bytes: 0,
                    refs: BTreeSet::new(),
                    copied: false,
                    last_sequence: 0,
                    changed: true,
                },
            );
        }
        let next_segment = segments.last_key_value().map_or(1, |(id, _)| id + 1);
        Ok(Log { disk, segments, hot: None, cold: None, next_segment, next_sequence: 1, written: 0 })
    }

    fn active(&mut self, stream: Stream) -> &mut Option<u32> {
        match stream {
            Stream::Hot => &mut self.hot,
            Stream::Cold => &mut self.cold,
        }
    }

    /// The segment that `stream` appends to, and its length.
    pub fn position(&self, stream: Stream) -> Option<(u32, u64)> {
        let id = match stream {
            Stream::Hot => self.hot,
            Stream::Cold => self.cold,
        }?;
        Some((id, self.segments.get(&id)?.len))
    }

    /// Whether `id` still takes records.
    pub fn is_active(&self, id: u32) -> bool {
        self.hot == Some(id) || self.cold == Some(id)
    }

    /// Makes room for `bytes` in `stream`, with `keep` bytes allocated behind them. A new
    /// segment begins with what `start` gives.
    ///
    /// # Errors
    /// `ENOSPC` when there is no room; others by the disk.
    pub fn reserve(
        &mut self,
        stream: Stream,
        bytes: u64,
        keep: u64,
        start: impl FnOnce() -> Vec<Pending>,
    ) -> io::Result<()> {
        let full =
            self.position(stream).is_none_or(|(_, len)| len + bytes > SEGMENT_BYTES && len > HEADER_BYTES as u64);
        if full {
            self.roll(stream, bytes + keep, &start())?;
        }
        let Some((id, len)) = self.position(stream) else { return Err(io::ErrorKind::NotFound.into()) };
        self.allocate(id, len + bytes + keep)
    }

    /// Bytes that `stream` can take without asking the disk for more.
    pub fn spare(&self, stream: Stream) -> u64 {
        let Some((id, len)) = self.position(stream) else { return 0 };
        self.segments.get(&id).map_or(0, |s| s.allocated.saturating_sub(len))
    }

    fn allocate(&mut self, id: u32, end: u64) -> io::Result<()> {
        let Some(s) = self.segments.get_mut(&id) else { return Err(io::ErrorKind::NotFound.into()) };
        if end > s.allocated {
            let step = end.next_multiple_of(STEP_BYTES);
            let to = match self.disk.preallocate(&s.file, s.allocated, step) {
                Ok(()) => step,
                // What is asked for may still fit where a whole step does not.
                Err(e) if e.kind() == io::ErrorKind::StorageFull => {
                    self.disk.preallocate(&s.file, s.allocated, end)?;
                    end
                }
                Err(e) => return Err(e),
            };
            s.allocated = to;
        }
        Ok(())
    }

    /// Ends the segment in use and begins another with `start`, with room for as much more.
    ///
    /// # Errors
    /// As [`Log::reserve`]; the one before stays in use.
    pub fn roll(&mut self, stream: Stream, room: u64, start: &[Pending]) -> io::Result<()> {
        let id = self.next_segment;
        let cold = stream == Stream::Cold;
        self.next_segment += 1;
        let name = name_of(id, cold);
        let file = self.disk.create(&name)?;
        let segment = Segment {
            file,
            cold,
            len: 0,
            allocated: 0,
            live: 0,
            live_bytes: 0,
            refs: BTreeSet::new(),
            copied: false,
            last_sequence: 0,
            changed: true,
        };
        self.segments.insert(id, segment);
        let own: u64 = start.iter().map(Pending::bytes).sum();
        let before = self.active(stream).replace(id);
        let begun =
            self.allocate(id, room + own).and_then(|()| self.append(stream, start)).and_then(|_| self.sync(stream));
        let new = std::mem::replace(self.active(stream), before);
        if let Err(e) = begun {
            // A segment counts only once its first record is durable: older ones that hold
            // the same values may be freed after that.
            self.segments.remove(&id);
            let _ = self.disk.remove(&name);
            return Err(e);
        }
        self.seal(stream);
        *self.active(stream) = new;
        Ok(())
    }

    /// Ends the active segment of `stream` at what was written, giving its spare room back.
    /// Also how a group that failed half-way is kept from being read back.
    pub fn seal(&mut self, stream: Stream) {
        let Some(id) = self.active(stream).take() else { return };
        if let Some(s) = self.segments.get_mut(&id) {
            if let Err(e) = self.disk.truncate(&s.file, s.len) {
                tracing::warn!(segment = id, error = %e, "spare room of a segment could not be given back");
            }
            s.allocated = s.len;
        }
    }

    /// Appends records to `stream`, which [`Log::reserve`] has made room for; they are
    /// durable after [`Log::sync`].
    ///
    /// # Errors
    /// As `pwritev(2)`; nothing of the group counts then.
    pub fn append(&mut self, stream: Stream, records: &[Pending]) -> io::Result<Vec<(u64, Location)>> {
        let Some((id, start)) = self.position(stream) else { return Err(io::ErrorKind::NotFound.into()) };
        if records.iter().any(|r| !r.reads_back()) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a record too large to be read back"));
        }
        let mut headers = Vec::with_capacity(records.len() * HEADER_BYTES);
        let mut placed = Vec::with_capacity(records.len());
        let mut at = start;
        let mut sequence = self.next_sequence;
        for r in records {
            let body_crc = crc32c::crc32c_append(crc32c::crc32c(&r.body[0]), &r.body[1]);
            let header = Header {
                kind: r.kind,
                sequence,
                segment: id,
                meta_len: r.meta.len(),
                body_len: r.body[0].len() + r.body[1].len(),
                body_crc,
            };
            header.encode(&r.meta, &mut headers);
            placed.push((sequence, Location { segment: id, offset: at as u32 }));
            sequence += 1;
            at += r.bytes();
        }
        let mut parts = Vec::with_capacity(records.len() * 5);
        for (r, h) in records.iter().zip(headers.chunks_exact(HEADER_BYTES)) {
            let len = HEADER_BYTES + r.meta.len() + r.body[0].len() + r.body[1].len();
            for p in [h, &r.meta, &r.body[0], &r.body[1], &[0u8; 8][..len.next_multiple_of(8) - len]] {
                if !p.is_empty() {
                    parts.push(IoSlice::new(p));
                }
            }
        }
        let Some(s) = self.segments.get_mut(&id) else { return Err(io::ErrorKind::NotFound.into()) };
        self.disk.write(&s.file, start, &parts)?;
        s.len = at;
        s.last_sequence = sequence - 1;
        s.changed = true;
        self.written += at - start;
        self.next_sequence = sequence;
        Ok(placed)
    }

    /// Takes back what was appended to `stream` behind `len`, after a failed sync.
    pub fn take_back(&mut self, stream: Stream, len: u64) {
        let id = *self.active(stream);
        if let Some(s) = id.and_then(|id| self.segments.get_mut(&id)) {
            s.len = len.min(s.len);
        }
        self.seal(stream);
    }

    /// Makes everything appended to `stream` durable.
    ///
    /// # Errors
    /// As `fdatasync(2)`; what is on disk is then unknown.
    pub fn sync(&mut self, stream: Stream) -> io::Result<()> {
        let Some((id, _)) = self.position(stream) else { return Ok(()) };
        self.sync_segment(id)
    }

    /// Makes everything that a segment holds durable, in use or not.
    ///
    /// # Errors
    /// As `fdatasync(2)`.
    pub fn sync_segment(&mut self, id: u32) -> io::Result<()> {
        let Some(s) = self.segments.get(&id) else { return Ok(()) };
        self.disk.sync(&s.file)
    }

    /// Reads the record at `at`, with its body if `body`.
    ///
    /// # Errors
    /// `InvalidData` when it does not validate; others by the disk.
    pub fn read(&self, at: Location, body: bool) -> io::Result<(Record, Bytes)> {
        let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let s = self.segments.get(&at.segment).ok_or_else(|| bad("no such segment"))?;
        let from = u64::from(at.offset);
        // One read takes most messages whole.
        let mut first = vec![0u8; if body { 16 << 10 } else { 4 << 10 }];
        let n = self.disk.read(&s.file, from, &mut first)?;
        first.truncate(n);
        let header = Header::decode(&first).ok_or_else(|| bad("no record here"))?;
        if header.segment != at.segment {
            return Err(bad("a record of another segment"));
        }
        let need = HEADER_BYTES + header.meta_len + if body { header.body_len } else { 0 };
        if first.len() < need {
            // Before the room for it is made: damaged lengths may say a gigabyte.
            if from + need as u64 > s.len {
                return Err(bad("record ends behind its segment"));
            }
            let have = first.len();
            first.resize(need, 0);
            let n = self.disk.read(&s.file, from + have as u64, &mut first[have..])?;
            if have + n < need {
                return Err(bad("record ends behind its segment"));
            }
        }
        first.truncate(need);
        let meta = first[HEADER_BYTES..HEADER_BYTES + header.meta_len].to_vec();
        if !Header::checks(&first, &meta) {
            return Err(bad("checksum of the record's header"));
        }
        let content = Bytes::from(first).slice(if body { HEADER_BYTES + header.meta_len.. } else { need.. });
        if body && crc32c::crc32c(&content) != header.body_crc && !ipc::planted!("content-not-checked") {
            return Err(bad("checksum of the message's content"));
        }
        Ok((Record { header, meta, location: at }, content))
    }

    /// Visits the records of segment `id` from `from` on, in order, and answers where they
    /// end. With `bodies`, a record whose body fails its checksum counts as damage. All damage
    /// is reported; what is at the end a crash may have torn, or it rotted.
    ///
    /// # Errors
    /// By the disk, or from `visit`.
    pub fn scan(
        &self,
        id: u32,
        from: u64,
        bodies: bool,
        damage: &mut Vec<Damage>,
        visit: &mut dyn FnMut(Record) -> io::Result<()>,
    ) -> io::Result<u64> {
        let Some(s) = self.segments.get(&id) else { return Ok(from) };
        let end = self.disk.len(&s.file)?;
        let mut window = Window { at: 0, bytes: Vec::new() };
        let (mut at, mut valid_to) = (from, from);
        while at + HEADER_BYTES as u64 <= end {
            match self.record_at(&s.file, id, at, end, bodies, &mut window)? {
                Some(record) => {
                    if at > valid_to {
                        damage.push(Damage { segment: id, from: valid_to, to: at });
                    }
                    at += record.header.record_len() as u64;
                    valid_to = at;
                    visit(record)?;
                }
                None => match self.next_magic(&s.file, at + 8, end, &mut window)? {
                    Some(next) => at = next,
                    None => break,
                },
            }
        }
        if let Some(to) = self.written_to(&s.file, valid_to, end)? {
            damage.push(Damage { segment: id, from: valid_to, to });
        }
        Ok(valid_to)
    }

    /// Where the bytes behind `from` end that are not zero; `None` where there are none: room that was only allocated.
    fn written_to(&self, file: &D::File, from: u64, end: u64) -> io::Result<Option<u64>> {
        let (zeros, mut bytes) = (vec![0; SCAN_BYTES], vec![0; SCAN_BYTES]);
        let (mut at, mut to) = (from, None);
        while at < end {
            let n = self.disk.read(file, at, &mut bytes)?;
            if n == 0 {
                break;
            }
            // As a whole first: mostly there is nothing, and much of it.
            if bytes[..n] != zeros[..n]
                && let Some(last) = bytes[..n].iter().rposition(|b| *b != 0)
            {
                to = Some(at + last as u64 + 1);
            }
            at += n as u64;
        }
        Ok(to)
    }

    fn record_at(
        &self,
        file: &D::File,
        id: u32,
        at: u64,
        end: u64,
        bodies: bool,
        window: &mut Window,
    ) -> io::Result<Option<Record>> {
        let head = window.get(&self.disk, file, at, HEADER_BYTES)?;
        let Some(header) = Header::decode(head).filter(|h| h.segment == id) else { return Ok(None) };
        if at + header.record_len() as u64 > end.next_multiple_of(8) {
            return Ok(None);
        }
        let bytes = window.get(&self.disk, file, at, HEADER_BYTES + header.meta_len)?;
        let (head, meta) = bytes.split_at(HEADER_BYTES.min(bytes.len()));
        if meta.len() != header.meta_len || !Header::checks(head, meta) {
            return Ok(None);
        }
        let meta = meta.to_vec();
        if bodies && header.body_len > 0 {
            let body = window.get(&self.disk, file, at + (HEADER_BYTES + header.meta_len) as u64, header.body_len)?;
            if body.len() != header.body_len || crc32c::crc32c(body) != header.body_crc {
                return Ok(None);
            }
        }
        Ok(Some(Record { header, meta, location: Location { segment: id, offset: at as u32 } }))
    }

    fn next_magic(&self, file: &D::File, mut at: u64, end: u64, window: &mut Window) -> io::Result<Option<u64>> {
        while at < end {
            let bytes = window.get(&self.disk, file, at, SCAN_BYTES)?;
            if bytes.is_empty() {
                return Ok(None);
            }
            if let Some(i) = bytes.chunks(8).position(|c| c.starts_with(&MAGIC_BYTES)) {
                return Ok(Some(at + 8 * i as u64));
            }
            at += bytes.len().next_multiple_of(8) as u64;
        }
        Ok(None)
    }

    /// Copies a stretch of a segment, for the quarantine.
    ///
    /// # Errors
    /// By the disk.
    pub fn raw(&self, id: u32, from: u64, to: u64) -> io::Result<Vec<u8>> {
        let s = self.segments.get(&id).ok_or(io::ErrorKind::NotFound)?;
        let mut bytes = vec![0; (to - from) as usize];
        let n = self.disk.read(&s.file, from, &mut bytes)?;
        bytes.truncate(n);
        Ok(bytes)
    }

    /// Notes where the valid records of a segment end.
    pub fn set_len(&mut self, id: u32, len: u64) {
        if let Some(s) = self.segments.get_mut(&id) {
            if len < s.len {
                // What lies behind was never acknowledged; cut, it cannot be read back later.
                let _ = self.disk.truncate(&s.file, len);
            }
            s.len = len;
            s.allocated = len;
        }
    }

    /// Removes a segment's file.
    ///
    /// # Errors
    /// As `unlink(2)`.
    pub fn free(&mut self, id: u32) -> io::Result<()> {
        if let Some(s) = self.segments.remove(&id) {
            self.disk.remove(&name_of(id, s.cold))?;
            for s in self.segments.values_mut() {
                s.refs.remove(&id);
            }
        }
        Ok(())
    }

    /// Pins added to (or removed from) a segment.
    pub fn pin(&mut self, id: u32, live: i64, bytes: i64) {
        if let Some(s) = self.segments.get_mut(&id) {
            s.live = s.live.saturating_add_signed(live);
            s.live_bytes = s.live_bytes.saturating_add_signed(bytes);
            s.changed = true;
        }
    }

    /// Notes that `newer` holds the end of a message that lies in `older`, or its copy.
    pub fn refer(&mut self, newer: u32, older: u32) {
        let (Some(n), Some(o)) = (self.segments.get(&newer), self.segments.get(&older)) else { return };
        // A cold segment stands for those that its mail was copied from. Of these some may be
        // younger than the end recorded in `newer`, and hold other mail: two hot segments
        // that waited for each other would never go.
        let sources = o.refs.iter().filter(|_| o.cold);
        let holds = |r: &u32| self.segments.get(r).is_some_and(|s| n.cold || s.cold || *r < newer);
        let new: Vec<u32> =
            sources.copied().chain([older]).filter(|r| *r != newer && !n.refs.contains(r) && holds(r)).collect();
        if let Some(s) = self.segments.get_mut(&newer).filter(|_| !new.is_empty()) {
            s.refs.extend(new);
            s.changed = true;
        }
    }
}

/// A part of a file in memory, so that small records do not cost a read each.
struct Window {
    at: u64,
    bytes: Vec<u8>,
}

impl Window {
    /// `len` bytes from `at`; fewer at the end of the file.
    fn get<D: Disk>(&mut self, disk: &D, file: &D::File, at: u64, len: usize) -> io::Result<&[u8]> {
        let inside = at >= self.at && at + len as u64 <= self.at + self.bytes.len() as u64;
        if !inside {
            // Small requests read ahead: headers lie a message's length apart.
            self.bytes.resize(len.max(if len <= HEADER_BYTES { 4 << 10 } else { 64 << 10 }), 0);
            let n = disk.read(file, at, &mut self.bytes)?;
            self.bytes.truncate(n);
            self.at = at;
        }
        let from = (at - self.at) as usize;
        let to = (from + len).min(self.bytes.len());
        Ok(&self.bytes[from..to])
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_record_ends_inside_its_segment_whatever_it_says() {
        let disk = crate::memory::MemoryDisk::new(1 << 30);
        let mut log = Log::open(disk.clone()).unwrap();
        let start = || vec![Pending::of(Kind::Start, ipc::frame::archive(&StartMeta::default()))];
        log.reserve(Stream::Hot, 1000, 0, start).unwrap();
        let (_, at) = log.append(Stream::Hot, &[Pending::of(Kind::Message, b"envelope")]).unwrap()[0];
        log.seal(Stream::Hot);
        assert_eq!(log.read(at, true).unwrap().0.meta, b"envelope");
        for (meta_len, body_len) in [(8, BODY_BYTES_MAX), (META_BYTES_MAX, 0)] {
            let header =
                Header { kind: Kind::Message, sequence: 2, segment: at.segment, meta_len, body_len, body_crc: 0 };
            let mut bytes = Vec::new();
            header.encode(b"envelope", &mut bytes);
            disk.clone().write(&name_of(at.segment, false), at.offset.into(), &[IoSlice::new(&bytes)]).unwrap();
            assert!(log.read(at, true).unwrap_err().to_string().contains("ends behind its segment"));
        }
    }

    #[test]
    fn segments_have_the_names_they_were_given_and_no_others() {
        for (id, cold) in [(1, false), (7, true), (123_456_789, false), (u32::MAX - 1, true)] {
            assert_eq!(id_of(&name_of(id, cold)), Some((id, cold)));
        }
        for name in ["1.log", "+0000001.log", "00000000.log", "4294967295.log", "00000001.log.old", "00000001", ".log"]
        {
            assert_eq!(id_of(name), None, "{name}");
        }
    }
}
