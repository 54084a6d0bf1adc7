//! Bytes on disk, described once: log records, and the values of the index.
//!
//! A record is a 40-byte header, `meta`, `body`, and zeroes up to a multiple of 8:
//!
//! ```text
//! 0  magic     u32
//! 4  version   u8    FORMAT_VERSION
//! 5  kind      u8    Kind
//! 6  reserved  u16
//! 8  sequence  u64   order over all segments of the shard; the key of a message
//! 16 segment   u32   segment that the record was written for
//! 20 meta_len  u32
//! 24 body_len  u32
//! 28 body_crc  u32   CRC-32C of body
//! 32 crc       u32   CRC-32C of bytes 0..32 and meta
//! 36 reserved  u32
//! ```
//! The body has a checksum of its own so that a restart can trust a record without reading
//! the message's content.

use ipc::message::PRIORITY_DEFAULT;
use rkyv::{Archive, Deserialize, Serialize};

/// Version of records and index values. Older versions are read by `recover`.
pub const FORMAT_VERSION: u8 = 1;
/// Bytes of a record's header.
pub const HEADER_BYTES: usize = 40;
/// Largest meta part accepted from disk.
pub const META_BYTES_MAX: usize = 64 << 20;
/// Bytes of outcomes and rows in one record, about; more are parted over several.
pub const OUTCOMES_BYTES_MAX: usize = 1 << 20;
/// Bytes of values in one record that a segment begins with, about.
pub const CARRIED_BYTES_MAX: usize = 1 << 20;
/// Bytes of a value, and of an accounting row.
pub const VALUE_BYTES_MAX: usize = 16 << 20;
/// Bytes of a recipient's last reply that are kept: as many as the index holds at most.
pub const REPLY_BYTES_MAX: usize = 255;
/// Largest body accepted from disk.
pub const BODY_BYTES_MAX: usize = 1 << 30;
/// Largest sequence accepted from disk: far from any that is given, and from where counting
/// on would overflow.
pub const SEQUENCE_MAX: u64 = 1 << 62;
/// Recipients in one value of the index.
pub const RECIPIENTS_PER_CHUNK: usize = 4;
/// Bytes of last replies in one chunk.
const REPLIES_BYTES_MAX: usize = 248;
/// In place of a reply's length: the same as that of the recipient before.
const SAME_REPLY: u8 = 255;

const MAGIC: u32 = 0x4C53_4D31;
/// The magic as it stands on disk, for finding the next record after damage.
pub const MAGIC_BYTES: [u8; 4] = MAGIC.to_le_bytes();

/// What a record says. Append only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// First record of a segment: [`StartMeta`].
    Start = 1,
    /// A message: meta is the archived envelope, body the content. Its sequence is its key.
    Message = 2,
    /// Recipients' states after an attempt: [`UpdateMeta`].
    Update = 3,
    /// Final outcomes: [`DoneMeta`].
    Done = 4,
    /// A message copied forward with its state: [`MovedMeta`], body the content.
    Moved = 5,
    /// A value that outlives the index: [`PutMeta`].
    Put = 6,
    /// An origin will not repeat handoffs below a sequence: [`ForgetMeta`].
    Forget = 7,
    /// More of what a segment begins with than its first record holds: [`StartMeta`].
    Carried = 8,
}

impl Kind {
    fn from_byte(b: u8) -> Option<Kind> {
        [Kind::Start, Kind::Message, Kind::Update, Kind::Done, Kind::Moved, Kind::Put, Kind::Forget, Kind::Carried]
            .into_iter()
            .find(|k| *k as u8 == b)
    }
}

/// A record's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What it says.
    pub kind: Kind,
    /// Order over all segments.
    pub sequence: u64,
    /// Segment it was written for.
    pub segment: u32,
    /// Bytes of meta.
    pub meta_len: usize,
    /// Bytes of body.
    pub body_len: usize,
    /// CRC-32C of body.
    pub body_crc: u32,
}

impl Header {
    /// Bytes that the whole record takes.
    pub fn record_len(&self) -> usize {
        (HEADER_BYTES + self.meta_len + self.body_len).next_multiple_of(8)
    }

    /// Appends the header's bytes, checksummed together with `meta`, to `out`.
    pub fn encode(&self, meta: &[u8], out: &mut Vec<u8>) {
        let at = out.len();
        out.extend_from_slice(&MAGIC_BYTES);
        out.extend_from_slice(&[FORMAT_VERSION, self.kind as u8, 0, 0]);
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&self.segment.to_le_bytes());
        out.extend_from_slice(&(self.meta_len as u32).to_le_bytes());
        out.extend_from_slice(&(self.body_len as u32).to_le_bytes());
        out.extend_from_slice(&self.body_crc.to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&out[at..]), meta);
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
    }

    /// Reads a header; `None` for anything that is not one. The checksum is left to
    /// [`Header::checks`], which needs the meta part.
    pub fn decode(b: &[u8]) -> Option<Header> {
        let b: &[u8; HEADER_BYTES] = b.first_chunk()?;
        let u32_at = |i: usize| u32::from_le_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]]);
        if u32_at(0) != MAGIC || b[4] != FORMAT_VERSION {
            return None;
        }
        let h = Header {
            kind: Kind::from_byte(b[5])?,
            sequence: u64::from(u32_at(8)) | u64::from(u32_at(12)) << 32,
            segment: u32_at(16),
            meta_len: u32_at(20) as usize,
            body_len: u32_at(24) as usize,
            body_crc: u32_at(28),
        };
        (h.sequence <= SEQUENCE_MAX && h.meta_len <= META_BYTES_MAX && h.body_len <= BODY_BYTES_MAX).then_some(h)
    }

    /// Whether header bytes and meta are what was written.
    pub fn checks(header: &[u8], meta: &[u8]) -> bool {
        let Some(h) = header.first_chunk::<HEADER_BYTES>() else { return false };
        let crc = crc32c::crc32c_append(crc32c::crc32c(&h[..32]), meta);
        crc.to_le_bytes() == h[32..36]
    }
}

/// Meta of [`Kind::Start`]: everything that must outlive older segments.
#[derive(Debug, Clone, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct StartMeta {
    /// Whether this is a cold segment (whose other fields are empty).
    pub cold: bool,
    /// All values of [`Kind::Put`].
    pub values: Vec<(String, Vec<u8>)>,
    /// Handoffs taken and not yet forgotten, by origin and its incarnation (which lies where there
    /// was nothing before, see [`ipc::message::HandoffId`]): a number that has no meaning any more, and
    /// the sequences.
    pub seen: Vec<(u8, u32, u64, Vec<u64>)>,
}

/// State of one recipient that has been tried and will be tried again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct RecipientState {
    /// When it may be tried next, Unix milliseconds.
    pub due_unix_ms: i64,
    /// Delay reports sent so far, up to 255.
    pub delay_reports: u8,
    /// Attempts made so far, up to 255.
    pub attempts: u8,
    /// The last reply.
    pub last_reply: String,
}

/// A recipient's new state.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct UpdateEntry {
    /// The message.
    pub key: u64,
    /// Index in its envelope.
    pub recipient: u16,
    /// The state.
    pub state: RecipientState,
}

/// Meta of [`Kind::Update`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct UpdateMeta {
    /// New states.
    pub entries: Vec<UpdateEntry>,
    /// Accounting rows, opaque to the spool.
    pub rows: Vec<Vec<u8>>,
}

impl UpdateMeta {
    /// Nothing to say.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.rows.is_empty()
    }
}

/// Meta of [`Kind::Done`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct DoneMeta {
    /// Recipients that ended: message and index.
    pub entries: Vec<(u64, u16)>,
    /// Messages of which nothing is left.
    pub settled: Vec<u64>,
    /// Accounting rows, opaque to the spool.
    pub rows: Vec<Vec<u8>>,
}

impl DoneMeta {
    /// Nothing to say.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.settled.is_empty() && self.rows.is_empty()
    }
}

/// Meta of [`Kind::Moved`].
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct MovedMeta {
    /// The message's key: the sequence of its first record.
    pub key: u64,
    /// Archived envelope.
    pub envelope: Vec<u8>,
    /// Recipients' states.
    pub states: Vec<(u16, RecipientState)>,
    /// Recipients that have ended.
    pub done: Vec<u16>,
}

/// Meta of [`Kind::Put`]; an empty value removes the name.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct PutMeta {
    /// Name.
    pub name: String,
    /// Value.
    pub value: Vec<u8>,
}

/// Meta of [`Kind::Forget`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct ForgetMeta {
    /// Origin shard.
    pub origin: u8,
    /// Its incarnation; it lies where there was nothing before.
    pub incarnation: u32,
    /// Lowest sequence that may still be repeated; the largest when none will be.
    pub below: u64,
}

/// Where a message's record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Location {
    /// Segment.
    pub segment: u32,
    /// Offset of the record's header.
    pub offset: u32,
}

/// What the index knows of one recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexedRecipient {
    /// What it is queued under.
    pub destination: String,
    /// Ended.
    pub done: bool,
    /// 0 to 100.
    pub priority: u8,
    /// Its state; the default before the first attempt.
    pub state: RecipientState,
    /// Segment of the record that holds the state; 0 for none.
    pub state_segment: u32,
}

/// What the index knows of one message: enough to queue it without reading the log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Summary {
    /// Where its record lies.
    pub location: Location,
    /// Bytes of content.
    pub body_len: u32,
    /// When it was accepted, Unix milliseconds.
    pub received_unix_ms: i64,
    /// Kept for another shard.
    pub handoff: bool,
    /// The sender of some recipient wants to hear of delays (RFC 3461 NOTIFY=DELAY).
    pub notify_delay: bool,
    /// Each recipient has a transaction of its own.
    pub alone: bool,
    /// When the last of the windows ends that its mail is delivered within, Unix milliseconds; 0 for none.
    pub windows_end_ms: i64,
    /// Virtual MTA or pool chosen.
    pub vmta: String,
    /// x-job
    pub job: String,
    /// All recipients in order.
    pub recipients: Vec<IndexedRecipient>,
}

impl Summary {
    /// The values of the index for this message: chunk number and bytes. Last replies share
    /// a chunk's budget, so that a value stays near 500 bytes; one that repeats the reply
    /// before it, as replies of one receiver do, takes a byte.
    pub fn encode(&self) -> Vec<Vec<u8>> {
        let mut chunks = Vec::with_capacity(self.recipients.len().div_ceil(RECIPIENTS_PER_CHUNK));
        for (n, part) in self.recipients.chunks(RECIPIENTS_PER_CHUNK).enumerate() {
            let mut v = vec![FORMAT_VERSION];
            if n == 0 {
                v.extend_from_slice(&self.location.segment.to_le_bytes());
                v.extend_from_slice(&self.location.offset.to_le_bytes());
                v.extend_from_slice(&self.body_len.to_le_bytes());
                v.extend_from_slice(&self.received_unix_ms.to_le_bytes());
                v.extend_from_slice(&(self.recipients.len() as u16).to_le_bytes());
                let has_job = !self.job.is_empty();
                let flags = [self.handoff, self.notify_delay, has_job, self.alone, self.windows_end_ms != 0];
                v.push((0..).zip(flags).map(|(bit, on)| u8::from(on) << bit).sum());
                put_text(&mut v, &self.vmta, 255);
                if has_job {
                    put_text(&mut v, &self.job, 255);
                }
                if self.windows_end_ms != 0 {
                    v.extend_from_slice(&self.windows_end_ms.to_le_bytes());
                }
            }
            let (mut room, mut before) = (REPLIES_BYTES_MAX, "");
            for (i, r) in part.iter().enumerate() {
                // The usual priority reads as in values that had none.
                v.push(u8::from(r.done) | (r.priority ^ PRIORITY_DEFAULT) << 1);
                put_text(&mut v, &r.destination, 255);
                v.extend_from_slice(&r.state.due_unix_ms.to_le_bytes());
                v.extend_from_slice(&[r.state.delay_reports, r.state.attempts]);
                v.extend_from_slice(&r.state_segment.to_le_bytes());
                let reply = r.state.last_reply.as_str();
                if !reply.is_empty() && reply == before {
                    v.push(SAME_REPLY);
                } else {
                    // Those that follow are left a share each.
                    let share = REPLIES_BYTES_MAX / RECIPIENTS_PER_CHUNK * (part.len() - i - 1);
                    let at = v.len();
                    put_text(&mut v, reply, room.saturating_sub(share));
                    room -= v.len() - at - 1;
                }
                before = reply;
            }
            chunks.push(v);
        }
        chunks
    }

    /// Reads chunk `n` into the summary; chunks come in order.
    pub fn decode_chunk(&mut self, n: u16, mut v: &[u8]) -> Option<()> {
        let v = &mut v;
        if take::<1>(v)?[0] != FORMAT_VERSION {
            return None;
        }
        if n == 0 {
            self.location.segment = u32::from_le_bytes(take(v)?);
            self.location.offset = u32::from_le_bytes(take(v)?);
            self.body_len = u32::from_le_bytes(take(v)?);
            self.received_unix_ms = i64::from_le_bytes(take(v)?);
            let count = u16::from_le_bytes(take(v)?);
            let flags = take::<1>(v)?[0];
            (self.handoff, self.notify_delay, self.alone) = (flags & 1 != 0, flags & 2 != 0, flags & 8 != 0);
            self.vmta = take_text(v)?;
            self.job = if flags & 4 != 0 { take_text(v)? } else { String::new() };
            self.windows_end_ms = if flags & 16 != 0 { i64::from_le_bytes(take(v)?) } else { 0 };
            self.recipients = Vec::with_capacity(usize::from(count));
        }
        while !v.is_empty() {
            let first = take::<1>(v)?[0];
            let (done, priority) = (first & 1 != 0, first >> 1 ^ PRIORITY_DEFAULT);
            let destination = take_text(v)?;
            let due_unix_ms = i64::from_le_bytes(take(v)?);
            let [delay_reports, attempts] = take(v)?;
            let state = RecipientState { due_unix_ms, delay_reports, attempts, last_reply: String::new() };
            let state_segment = u32::from_le_bytes(take(v)?);
            let same = v.first() == Some(&SAME_REPLY);
            let last_reply = if same {
                take::<1>(v)?;
                self.recipients.last()?.state.last_reply.clone()
            } else {
                take_text(v)?
            };
            let state = RecipientState { last_reply, ..state };
            self.recipients.push(IndexedRecipient { destination, done, priority, state, state_segment });
        }
        Some(())
    }
}

/// Key in the index of the position that it holds.
pub(crate) const POSITION_KEY: &[u8] = b"c";

/// The position that the index holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(crate) struct Position {
    pub version: u8,
    /// Boot of the machine that wrote it.
    pub boot: String,
    /// Written by an orderly stop.
    pub clean: bool,
    pub next_sequence: u64,
    /// Segments from this number on are newer than the index.
    pub next_segment: u32,
    /// Segments that were active, and how far the index had read them.
    pub active: Vec<(u32, u64)>,
}

/// A segment's pins as the index holds them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(crate) struct SegmentEntry {
    pub refs: Vec<u32>,
    pub last_sequence: u64,
}

/// Key in the index of what it holds of a segment.
pub(crate) fn segment_key(id: u32) -> Vec<u8> {
    let mut k = vec![b's'];
    k.extend_from_slice(&id.to_be_bytes());
    k
}

/// Key of chunk `n` of a message in the index.
pub(crate) fn message_key(key: u64, n: u16) -> Vec<u8> {
    let mut k = Vec::with_capacity(11);
    k.push(b'm');
    k.extend_from_slice(&key.to_be_bytes());
    k.extend_from_slice(&n.to_be_bytes());
    k
}

/// A copy that rkyv can read in place.
pub(crate) fn aligned(bytes: &[u8]) -> rkyv::util::AlignedVec<16> {
    let mut a = rkyv::util::AlignedVec::with_capacity(bytes.len());
    a.extend_from_slice(bytes);
    a
}

/// The beginning of a text: at most `max` bytes of it.
pub fn beginning(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn put_text(out: &mut Vec<u8>, text: &str, max: usize) {
    let text = beginning(text, max.min(255));
    out.push(text.len() as u8);
    out.extend_from_slice(text.as_bytes());
}

fn take<const N: usize>(v: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = v.split_first_chunk::<N>()?;
    *v = rest;
    Some(*head)
}

fn take_text(v: &mut &[u8]) -> Option<String> {
    let n = usize::from(take::<1>(v)?[0]);
    let (head, rest) = v.split_at_checked(n)?;
    *v = rest;
    String::from_utf8(head.to_vec()).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_changed_bit_anywhere_is_noticed() {
        let meta = b"envelope";
        let h = Header { kind: Kind::Message, sequence: 9, segment: 2, meta_len: 8, body_len: 3, body_crc: 5 };
        let mut bytes = Vec::new();
        h.encode(meta, &mut bytes);
        assert_eq!(Header::decode(&bytes), Some(h));
        assert!(Header::checks(&bytes, meta));
        for bit in 0..32 * 8 {
            let mut b = bytes.clone();
            b[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&b).is_none() || !Header::checks(&b, meta), "bit {bit}");
        }
    }

    #[test]
    fn numbers_out_of_bounds_are_no_header() {
        let h = Header { kind: Kind::Done, sequence: SEQUENCE_MAX, segment: 2, meta_len: 0, body_len: 0, body_crc: 0 };
        let decoded = |h: Header| {
            let mut bytes = Vec::new();
            h.encode(&[], &mut bytes);
            Header::decode(&bytes)
        };
        assert_eq!(decoded(h), Some(h));
        assert_eq!(decoded(Header { sequence: SEQUENCE_MAX + 1, ..h }), None);
        assert_eq!(decoded(Header { sequence: u64::MAX, ..h }), None);
        assert_eq!(decoded(Header { meta_len: META_BYTES_MAX + 1, ..h }), None);
        assert_eq!(decoded(Header { body_len: BODY_BYTES_MAX + 1, ..h }), None);
    }

    #[test]
    fn values_of_ordinary_mail_stay_below_500_bytes() {
        let r = IndexedRecipient {
            destination: "mail.example.com".into(),
            done: false,
            priority: 50,
            state: RecipientState { last_reply: "x".repeat(400), ..Default::default() },
            state_segment: 7,
        };
        let others = (0..4).map(|i| IndexedRecipient {
            state: RecipientState { last_reply: format!("{i}{}", "x".repeat(400)), ..Default::default() },
            ..r.clone()
        });
        for all in [vec![r.clone()], vec![r.clone(); 1000], others.collect()] {
            let s = Summary { recipients: all, vmta: "vmta-1".into(), ..Default::default() };
            assert!(s.encode().iter().all(|v| v.len() <= 500));
        }
    }

    proptest! {
        #[test]
        fn summaries_survive_the_index(n in 1usize..20, due in any::<i64>(), replies in proptest::collection::vec("[ab]{0,1}.{0,14}", 1..3)) {
            let r = |i: usize| IndexedRecipient {
                destination: "d.test".into(), done: due % 2 == 0, priority: (i * 37 % 101) as u8,
                state: RecipientState { due_unix_ms: due, delay_reports: 1, attempts: 3, last_reply: replies[i % replies.len()].clone() },
                state_segment: 4,
            };
            let s = Summary { recipients: (0..n).map(r).collect(), vmta: "v".into(), job: "j".repeat(n % 3), body_len: 5, notify_delay: n > 3, alone: n % 2 == 1, windows_end_ms: if n % 3 == 1 { 1 << 40 } else { 0 }, ..Default::default() };
            let mut back = Summary::default();
            for (i, v) in s.encode().iter().enumerate() {
                prop_assert!(back.decode_chunk(i as u16, v).is_some());
            }
            prop_assert_eq!(s, back);
        }

        #[test]
        fn any_bytes_decode_or_not(v in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Summary::default().decode_chunk(0, &v);
            let _ = Header::decode(&v);
        }
    }

    #[test]
    fn records_lie_in_segments_as_they_always_did() {
        let state = |last_reply: &str| RecipientState {
            due_unix_ms: 0x0102_0304_0506_0708,
            delay_reports: 9,
            attempts: 10,
            last_reply: last_reply.into(),
        };
        let row = || b"an accounting row that lies out of line".to_vec();
        let start = StartMeta {
            cold: true,
            values: vec![("path/d.test/v".into(), vec![1, 2, 3])],
            seen: vec![(1, 0x0203_0405, 6, vec![7, u64::MAX])],
        };
        ipc::assert_layout!(start, record: "\
            706174682f642e746573742f760102038d000000f0fffffff5ffffff030000000700000000000000ffffffffffffffff0100000005040302
            0600000000000000e0ffffff0200000001000000c4ffffff01000000dcffffff01000000");
        let entry = |recipient, reply| UpdateEntry { key: 1 << 40, recipient, state: state(reply) };
        let update = UpdateMeta { entries: vec![entry(258, "421 4.7.0 later"), entry(1, "")], rows: vec![row()] };
        ipc::assert_layout!(update, record: "\
            34323120342e372e30206c6174657200000000000001000002010000000000000807060504030201090a00008f000000d4ffffff00000000
            000000000001000001000000000000000807060504030201090a0000ffffffffffffffff00000000616e206163636f756e74696e6720726f
            772074686174206c696573206f7574206f66206c696e6500d8ffffff2700000080ffffff02000000f0ffffff01000000");
        let done = DoneMeta { entries: vec![(1, 258), (u64::MAX, 2)], settled: vec![3], rows: vec![row()] };
        ipc::assert_layout!(done, record: "\
            01000000000000000201000000000000ffffffffffffffff02000000000000000300000000000000616e206163636f756e74696e6720726f
            772074686174206c696573206f7574206f66206c696e6500d8ffffff27000000a8ffffff02000000c0ffffff01000000e8ffffff01000000");
        let states = vec![(258, state("450 4.2.2 full"))];
        let moved = MovedMeta { key: 1, envelope: row(), states, done: vec![259] };
        ipc::assert_layout!(moved, record: "\
            616e206163636f756e74696e6720726f772074686174206c696573206f7574206f66206c696e6534353020342e322e322066756c6c000000
            02010000000000000807060504030201090a00008e000000dbffffff000000000301000000000000010000000000000098ffffff27000000
            c8ffffff01000000e0ffffff01000000");
        ipc::assert_layout!(PutMeta { name: "path/d.test/v".into(), value: vec![1, 2, 3] }, record: "\
            706174682f642e746573742f760102038d000000f0fffffff5ffffff03000000");
        ipc::assert_layout!(ForgetMeta { origin: 1, incarnation: 0x0203_0405, below: u64::MAX }, record: "0100000005040302ffffffffffffffff");
        let position = Position {
            version: FORMAT_VERSION,
            boot: "a boot that lies out of line".into(),
            clean: true,
            next_sequence: 1 << 40,
            next_segment: 2,
            active: vec![(3, 4)],
        };
        ipc::assert_layout!(position, record: "\
            6120626f6f742074686174206c696573206f7574206f66206c696e650000000003000000000000000400000000000000010000009c000000
            ccffffff01000000000000000001000002000000d4ffffff0100000000000000");
        ipc::assert_layout!(SegmentEntry { refs: vec![1, u32::MAX], last_sequence: 2 }, record: "01000000fffffffff8ffffff020000000200000000000000");
        let of = |destination: &str, reply| IndexedRecipient {
            destination: destination.into(),
            done: false,
            priority: 51,
            state: state(reply),
            state_segment: 11,
        };
        let summary = Summary {
            location: Location { segment: 1, offset: 2 },
            body_len: 3,
            received_unix_ms: -4,
            handoff: true,
            notify_delay: false,
            alone: false,
            windows_end_ms: 0,
            vmta: "v".into(),
            job: "a job".into(),
            recipients: vec![of("a.test", "421 4.7.0 later"), of("b.test", "421 4.7.0 later")],
        };
        let now: String = summary.encode().concat().iter().map(|b| format!("{b:02x}")).collect();
        let known: String = "\
            01010000000200000003000000fcffffffffffffff02000501760561206a6f620206612e746573740807060504030201090a0b0000000f34
            323120342e372e30206c617465720206622e746573740807060504030201090a0b000000ff"
            .split_whitespace()
            .collect();
        assert_eq!(
            now, known,
            "the index holds messages in another way: raise FORMAT_VERSION, so that it is built anew"
        );
    }
}
