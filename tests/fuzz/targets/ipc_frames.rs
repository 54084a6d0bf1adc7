//! What other processes send: `ipc::frame`, `ipc::stream`, and every archive that comes with
//! a frame or lies in the memory that is handed over.
//!
//! The input is a byte that chooses the archive's type or a stream of frames, a byte that
//! cuts a stream into pieces, and bytes that either are the archive or, more often, make a
//! valid one and then change it.
#![no_main]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use fuzz::{Choices, peak, pieces};
use ipc::control::{AccountingFile, Heartbeat, Hello, ProgramEnd, Rows, RowsOf, ToSupervisor, ToWorker, Welcome};
use ipc::frame::{Frame, FrameError, HEADER_BYTES, Header, archive, unarchive};
use ipc::layers::{LayersBuilder, Named, Profile, Scope};
use ipc::limits::{ARCHIVE_BYTES_MAX, CONTENT_BYTES_MAX, DESCRIPTORS_PER_FRAME_MAX};
use ipc::mesh::{self, Claim, Inject, Injected, Origin, PathState, Refusal, Release, SourceState, Speaker, Windows};
use ipc::message::{
    ArchivedEnvelope, BodyType, Envelope, HandoffId, MessageId, Moved, Recipient, Ret, SourceType, destination_of,
};
use ipc::network::Network;
use ipc::operator::{
    Answer, GivenFile, GivenFiles, GivenInclude, Listed, Listing, PathRow, Place, QueueRow, Request, ShardRow,
};
use ipc::rules::{Setting, Value};
use ipc::shard_map::{ShardMap, Spread};
use ipc::snapshot::{Accounting, ArchivedSnapshot, Global, Pool, RecordFields, Snapshot, Source, VirtualMta};
use ipc::stream::{FrameReader, FrameStream};
use libfuzzer_sys::{Corpus, fuzz_target};
use rkyv::util::AlignedVec;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};

/// Values made from the fuzzer's bytes.
trait Make {
    fn make(c: &mut Choices<'_>) -> Self;
}

impl Make for String {
    fn make(c: &mut Choices<'_>) -> String {
        let n = usize::from(c.byte() % 24);
        String::from_utf8_lossy(c.bytes(n)).into_owned()
    }
}

impl Make for u8 {
    fn make(c: &mut Choices<'_>) -> u8 {
        c.byte()
    }
}

impl Make for u64 {
    fn make(c: &mut Choices<'_>) -> u64 {
        u64::from(c.short()).rotate_right(u32::from(c.byte() % 64))
    }
}

impl<T: Make> Make for Vec<T> {
    fn make(c: &mut Choices<'_>) -> Vec<T> {
        (0..c.byte() % 4).map(|_| T::make(c)).collect()
    }
}

impl<T: Make> Make for Option<T> {
    fn make(c: &mut Choices<'_>) -> Option<T> {
        (c.byte() % 2 == 1).then(|| T::make(c))
    }
}

fn make<T: Make>(c: &mut Choices<'_>) -> T {
    T::make(c)
}

impl Make for SourceState {
    fn make(c: &mut Choices<'_>) -> SourceState {
        SourceState { ip: make(c), until_ns: [u64::make(c) as i64; 3], disabled_until_unix_ms: u64::make(c) as i64 }
    }
}

impl Make for ShardMap {
    fn make(c: &mut Choices<'_>) -> ShardMap {
        ShardMap {
            epoch: make(c),
            shards: make(c),
            previous: make(c),
            spread: make(c),
            previous_spread: make(c),
            without_part: make(c),
            unreleased: make(c),
        }
    }
}

impl Make for Spread {
    fn make(c: &mut Choices<'_>) -> Spread {
        Spread { pattern: make(c), over: c.byte() }
    }
}

impl Make for Accounting {
    fn make(c: &mut Choices<'_>) -> Accounting {
        let fields = RecordFields { record: make(c), fields: make(c), headers: vec![(make(c), make(c))] };
        Accounting {
            path: make(c),
            fields: vec![fields],
            json: c.byte() % 2 == 0,
            user_string: make(c),
            ..Default::default()
        }
    }
}

impl Make for AccountingFile {
    fn make(c: &mut Choices<'_>) -> AccountingFile {
        AccountingFile { of: make(c), path: make(c) }
    }
}

impl Make for Rows {
    fn make(c: &mut Choices<'_>) -> Rows {
        Rows::Page { rows: make(c), next: make(c) }
    }
}

impl Make for Listing {
    fn make(c: &mut Choices<'_>) -> Listing {
        if c.byte() % 2 == 0 { Listing::Queues(make(c)) } else { Listing::Paths(make(c)) }
    }
}

impl Make for Listed {
    fn make(c: &mut Choices<'_>) -> Listed {
        [Listed::Paths, Listed::Pools, Listed::Jobs][usize::from(c.byte() % 3)].clone()
    }
}

impl Make for Place {
    fn make(c: &mut Choices<'_>) -> Place {
        Place { shard: c.byte(), from: make(c) }
    }
}

impl Make for QueueRow {
    fn make(c: &mut Choices<'_>) -> QueueRow {
        QueueRow {
            queue: make(c),
            destination: make(c),
            vmta: make(c),
            pool: make(c),
            shard: c.byte(),
            recipients: make(c),
            kbytes: make(c),
            connections: 1,
            mode: make(c),
            paused: c.byte() % 2 == 1,
            forced: c.byte() % 2 == 1,
            disabled_sources: make(c),
            members: Vec::new(),
            next_retry: make(c),
            last_error: make(c),
            oldest_s: 1,
        }
    }
}

impl Make for PathRow {
    fn make(c: &mut Choices<'_>) -> PathRow {
        PathRow {
            path: make(c),
            destination: make(c),
            vmta: make(c),
            shard: c.byte(),
            connections: 1,
            mode: make(c),
            forced: c.byte() % 2 == 1,
            paused: c.byte() % 2 == 1,
            disabled_sources: make(c),
            health: f32::from_bits(u32::from(c.short()) << 16),
            max_smtp_out: Some(2),
            max_msg_rate: make(c),
            max_msg_per_connection: 3,
        }
    }
}

impl Make for ShardRow {
    fn make(c: &mut Choices<'_>) -> ShardRow {
        ShardRow {
            shard: c.byte(),
            pid: c.short().into(),
            cpu: 1,
            state: make(c),
            restarts: 2,
            uptime_s: make(c),
            rss_bytes: make(c),
            recipients: 3,
            connections_out: 4,
            connections_in: 5,
            handoffs: 6,
            syncs: 7,
            delivered: 9,
            log_bytes: 8,
        }
    }
}

impl Make for ToSupervisor {
    fn make(c: &mut Choices<'_>) -> ToSupervisor {
        match c.byte() % 9 {
            0 => ToSupervisor::Hello(Hello {
                shard: c.byte(),
                pid: c.short().into(),
                version: make(c),
                generation: make(c),
                serving: c.byte() % 2 == 1,
                cpu: c.byte().into(),
            }),
            1 => ToSupervisor::Return { listeners: make(c), accounting: make(c), map: make(c) },
            2 => ToSupervisor::Serving,
            3 => ToSupervisor::Heartbeat(Heartbeat { state: make(c), recipients: make(c), ..Default::default() }),
            4 => ToSupervisor::Reloaded { generation: make(c), error: make(c) },
            5 => ToSupervisor::Rows { request: make(c), rows: make(c) },
            6 => ToSupervisor::AccountingSwitched { switch: make(c) },
            7 => ToSupervisor::RunProgram { number: make(c), command: make(c), words: make(c) },
            _ => ToSupervisor::Leaving,
        }
    }
}

impl Make for ToWorker {
    fn make(c: &mut Choices<'_>) -> ToWorker {
        match c.byte() % 8 {
            0 => ToWorker::Welcome(Welcome {
                map: make(c),
                listeners: make(c),
                accounting: make(c),
                accounting_before: make(c),
            }),
            1 => ToWorker::Adopted,
            7 => ToWorker::ProgramEnded {
                number: make(c),
                how: match c.byte() % 3 {
                    0 => ProgramEnd::Code(c.byte().into()),
                    1 => ProgramEnd::Signal,
                    _ => ProgramEnd::Unknown(make(c)),
                },
            },
            2 => ToWorker::Reload { listeners: make(c), added: make(c) },
            3 => ToWorker::Map(make(c)),
            4 => ToWorker::SwitchAccounting { switch: make(c), files: make(c) },
            5 => ToWorker::Rows { request: make(c), what: RowsOf::Page { of: make(c), from: make(c) } },
            _ => ToWorker::Stop { grace_ms: make(c) },
        }
    }
}

impl Make for mesh::Hello {
    fn make(c: &mut Choices<'_>) -> mesh::Hello {
        let from = match c.byte() % 3 {
            0 => Speaker::Client,
            1 => Speaker::Claimant(make(c)),
            _ => Speaker::Origin(Origin { shard: make(c), opened_ns: u64::make(c) as i64 }),
        };
        mesh::Hello { from, epoch: make(c) }
    }
}

impl Make for Refusal {
    fn make(c: &mut Choices<'_>) -> Refusal {
        [Refusal::Full, Refusal::Stopping, Refusal::Spool, Refusal::Invalid][usize::from(c.byte() % 4)]
    }
}

impl Make for Claim {
    fn make(c: &mut Choices<'_>) -> Claim {
        Claim { epoch: make(c) }
    }
}

impl Make for PathState {
    fn make(c: &mut Choices<'_>) -> PathState {
        PathState {
            destination: make(c),
            vmta: make(c),
            windows: match c.byte() % 2 {
                0 => Windows::InUse,
                _ => Windows::Until([u64::make(c) as i64; 4]),
            },
            retry_at_unix_ms: u64::make(c) as i64,
            retry_step: c.byte().into(),
            forced: c.byte() % 2 == 1,
            backoff_until_unix_ms: u64::make(c) as i64,
            sources: make(c),
        }
    }
}

impl Make for Release {
    fn make(c: &mut Choices<'_>) -> Release {
        Release { busy: make(c), paths: make(c) }
    }
}

impl Make for Inject {
    fn make(c: &mut Choices<'_>) -> Inject {
        Inject { sender: make(c), recipients: make(c), vmta: make(c) }
    }
}

impl Make for Injected {
    fn make(c: &mut Choices<'_>) -> Injected {
        if c.byte() % 2 == 0 { Injected::Queued(make(c)) } else { Injected::Refused(make(c)) }
    }
}

impl Make for GivenFiles {
    fn make(c: &mut Choices<'_>) -> GivenFiles {
        GivenFiles { files: make(c), includes: make(c) }
    }
}

impl Make for GivenFile {
    fn make(c: &mut Choices<'_>) -> GivenFile {
        GivenFile { path: make(c), text: make(c) }
    }
}

impl Make for GivenInclude {
    fn make(c: &mut Choices<'_>) -> GivenInclude {
        GivenInclude { pattern: make(c), files: make(c) }
    }
}

impl Make for Request {
    fn make(c: &mut Choices<'_>) -> Request {
        match c.byte() % 17 {
            0 => Request::Status,
            1 => Request::Shards,
            2 | 3 => Request::Page { of: make(c), at: make(c) },
            4 => Request::ShardRestart { shard: c.byte(), wait: c.byte() % 2 == 1 },
            5 => Request::Scale { workers: c.short().into(), wait: c.byte() % 2 == 1 },
            6 => Request::Reload { wait: c.byte() % 2 == 1, dry_run: c.byte() % 2 == 1 },
            10 => Request::Explain { destination: make(c), via: make(c), only: make(c), lookup: c.byte() % 2 == 1 },
            11 => Request::ExplainSource { who: make(c), only: make(c) },
            12 => Request::Diff { files: make(c), json: c.byte() % 2 == 0 },
            13 => Request::Configurations,
            14 => Request::ConfigurationChanges { number: c.short().into(), json: c.byte() % 2 == 1 },
            15 => Request::Rollback { number: c.short().into() },
            16 => Request::VmtaSettings { vmta: make(c) },
            7 => Request::Stop { wait: c.byte() % 2 == 1 },
            8 => Request::RotateAccounting { file: make(c) },
            9 => Request::Unsuppress { addresses: make(c), list: make(c) },
            _ => Request::InjectSocket,
        }
    }
}

impl Make for Answer {
    fn make(c: &mut Choices<'_>) -> Answer {
        match c.byte() % 8 {
            0 => Answer::Done(make(c)),
            1 => Answer::Failed(make(c)),
            2 => Answer::Wrong(make(c)),
            3 => Answer::Status(make(c)),
            4 => Answer::Shards(make(c)),
            5 | 6 => Answer::Page { rows: make(c), next: make(c) },
            _ => Answer::Socket(make(c)),
        }
    }
}

impl Make for Recipient {
    fn make(c: &mut Choices<'_>) -> Recipient {
        Recipient {
            address: make(c),
            destination: make(c),
            notify: c.byte(),
            priority_given: c.byte(),
            given_again: u16::from(c.byte()),
            orcpt: make(c),
        }
    }
}

impl Make for Envelope {
    fn make(c: &mut Choices<'_>) -> Envelope {
        Envelope {
            id: MessageId([c.byte(); 16]),
            received_unix_ms: u64::make(c) as i64,
            sender: make(c),
            vmta: make(c),
            job_id: make(c),
            envid: make(c),
            ret: Ret::Full,
            body_type: BodyType::EightBit,
            smtputf8: c.byte() % 2 == 1,
            suppress_dsn: c.byte() % 2 == 1,
            source_type: SourceType::Api,
            kept: c.byte(),
            source_name: make(c),
            source_ip: make(c),
            local_ip: String::new(),
            handoff: (c.byte() % 2 == 1).then(|| HandoffId {
                origin: c.byte(),
                incarnation: c.short().into(),
                sequence: make(c),
            }),
            asked: make(c),
            moved: (c.byte() % 2 == 1).then(|| Moved {
                due_unix_ms: u64::make(c) as i64,
                delay_reports: c.byte(),
                attempts: c.byte(),
                last_reply: make(c),
            }),
            recipients: make(c),
        }
    }
}

impl Make for Setting {
    fn make(c: &mut Choices<'_>) -> Setting {
        let value = match c.byte() % 7 {
            0 => Value::Flag(true),
            1 => Value::Number(make(c)),
            2 => Value::Millis(make(c)),
            3 => Value::MillisList(make(c)),
            4 => Value::Rate { count: make(c), per_ms: make(c) },
            5 => Value::Text(make(c)),
            _ => Value::TextList(make(c)),
        };
        Setting { key: c.byte().into(), file: 0, line: c.byte().into(), value }
    }
}

impl Make for Source {
    fn make(c: &mut Choices<'_>) -> Source {
        let network = (c.byte() % 2 == 1).then(|| Network { base: [c.byte(); 16], bits: c.byte() });
        Source { network, name: make(c), settings: make(c) }
    }
}

impl Make for Snapshot {
    fn make(c: &mut Choices<'_>) -> Snapshot {
        Snapshot {
            generation: make(c),
            global: Global { relay_domains: make(c), ..Default::default() },
            sources: make(c),
            vmtas: vec![VirtualMta { pool: Some(c.byte().into()), ..Default::default() }],
            // One at most: the order of a map differs from run to run.
            vmta_by_name: Option::<u8>::make(c).map(|n| (n.to_string(), n.into())).into_iter().collect(),
            pools: vec![Pool::default()],
            layers: {
                let mut b = LayersBuilder::default();
                b.profiles = vec![Profile { name: make(c), settings: make(c) }];
                b.add(Scope::Global, Named::Itself, "*", &Vec::<Setting>::make(c));
                b.build()
            },
            files: make(c),
            ..Default::default()
        }
    }
}

fn aligned(bytes: &[u8]) -> AlignedVec<16> {
    let mut a = AlignedVec::with_capacity(bytes.len());
    a.extend_from_slice(bytes);
    a
}

/// A type that archives may be of: how to make one, and what must hold for any bytes.
struct Type {
    make: fn(&mut Choices<'_>) -> AlignedVec<16>,
    check: fn(&[u8]),
}

macro_rules! types {
    ($($t:ty),*) => { [$( Type {
        make: |c| archive(&<$t>::make(c)),
        check: |bytes| {
            let (read, held) = peak(|| unarchive::<$t>(1, bytes));
            // Eight bytes of an archived vector or text are 24 in memory, and what refers to
            // a text twice must not be read as two.
            assert!(held <= 32 * bytes.len() + (16 << 10), "{held} bytes held for {}", bytes.len());
            match read {
                Ok(value) => {
                    let again = archive(&value);
                    assert!(again.len() <= 2 * bytes.len() + 64, "{} bytes became {}", bytes.len(), again.len());
                    let back = unarchive::<$t>(1, &again).expect("what was just written");
                    assert_eq!(archive(&back)[..], again[..], "a round trip makes a difference");
                }
                Err(e) => assert!(e.to_string().len() < 4096, "{} bytes of error", e.to_string().len()),
            }
        },
    } ),*] };
}

const TYPES: [Type; 12] = types![
    Envelope,
    ToSupervisor,
    ToWorker,
    mesh::Hello,
    Refusal,
    Claim,
    Release,
    Inject,
    Injected,
    Request,
    Answer,
    PathState
];

/// A handoff's envelope is used in place.
fn check_envelope(bytes: &[u8]) {
    let Ok(e) = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(bytes) else { return };
    let owned = unarchive::<Envelope>(1, bytes).expect("what validates");
    assert_eq!(e.recipients.len(), owned.recipients.len());
    for (r, o) in e.recipients.iter().zip(&owned.recipients) {
        assert_eq!(r.address.as_str(), o.address);
        if let Ok(d) = destination_of(&r.address) {
            assert_eq!(destination_of(&format!("x@{d}")).as_ref(), Ok(&d), "a second spelling");
        }
    }
    assert_eq!(owned.id.to_string().len(), 26);
}

/// A supervisor takes the snapshot back that a worker holds.
fn check_snapshot(bytes: &[u8]) {
    let Ok(s) = rkyv::access::<ArchivedSnapshot, rkyv::rancor::Error>(bytes) else { return };
    let _ = s.global().expect("what validates");
    for ip in ["127.0.0.1", "::1"] {
        let _ = s.source_rules(ip.parse().ok(), &["name", "user"]);
    }
    let _ = (s.domain_rules("a.b.test", 0), s.domain_rules("[127.0.0.1]", 7));
}

/// Changes bytes here and there.
fn mutate(bytes: &mut [u8], c: &mut Choices<'_>) {
    while !c.0.is_empty() && !bytes.is_empty() {
        let (op, at, value) = (c.byte(), usize::from(c.short()) % bytes.len(), c.byte());
        match op % 3 {
            0 => bytes[at] ^= value.max(1),
            // A length, or a place relative to its own.
            1 => {
                let word = i32::from(value as i8).to_le_bytes();
                bytes.iter_mut().skip(at & !3).zip(word).for_each(|(b, w)| *b = w);
            }
            _ => bytes[at] = value,
        }
    }
}

/// A header refused for its lengths costs nothing; one that is taken says what it said.
fn check_header(bytes: &[u8; HEADER_BYTES]) {
    let (decoded, held) = peak(|| Header::decode(bytes));
    assert_eq!(held, 0, "{held} bytes held for a header");
    if let Ok(h) = decoded {
        assert_eq!(h.encode(), *bytes);
        assert!(h.archive_len <= ARCHIVE_BYTES_MAX && h.raw_len <= CONTENT_BYTES_MAX);
        assert!(h.fds <= DESCRIPTORS_PER_FRAME_MAX);
    }
}

type Parts = (Header, Vec<u8>, Vec<u8>);

fn parts(f: Frame) -> Parts {
    (f.header, f.archive.to_vec(), f.raw.to_vec())
}

/// All frames of a buffer, and how it ends: the error, or the bytes left.
fn frames_of(all: &[u8]) -> (Vec<Parts>, Result<usize, String>) {
    let mut buf = BytesMut::from(all);
    let mut frames = Vec::new();
    loop {
        if let Some(head) = buf.first_chunk() {
            check_header(head);
        }
        let before = buf.len();
        let (taken, held) = peak(|| Frame::take(&mut buf));
        // Room is made for a part of what is announced, however much that is.
        assert!(held <= 4 * before + (3 << 20), "{held} bytes held for {before}");
        match taken {
            Ok(Some(f)) => frames.push(parts(f)),
            Ok(None) => return (frames, Ok(buf.len())),
            Err(e) => return (frames, Err(e.to_string())),
        }
    }
}

/// Gives pieces, and lets the reader wait before each.
struct Slow<'a> {
    pieces: VecDeque<&'a [u8]>,
    waited: bool,
}

impl AsyncRead for Slow<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.waited = !self.waited;
        if self.waited {
            return Poll::Pending;
        }
        if let Some(piece) = self.pieces.pop_front() {
            let (now, later) = piece.split_at(piece.len().min(buf.remaining()));
            buf.put_slice(now);
            if !later.is_empty() {
                self.pieces.push_front(later);
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// The frames of a reader that is cancelled whenever it waits.
fn frames_of_reader(pieces: VecDeque<&[u8]>) -> (Vec<Parts>, Result<(), String>) {
    let mut slow = Slow { pieces, waited: false };
    let mut reader = FrameReader::default();
    let mut frames = Vec::new();
    loop {
        let next = pin!(reader.next(&mut slow)).poll(&mut Context::from_waker(Waker::noop()));
        match next {
            Poll::Pending => {}
            Poll::Ready(Ok(Some(f))) => frames.push(parts(f)),
            Poll::Ready(Ok(None)) => return (frames, Ok(())),
            Poll::Ready(Err(e)) => return (frames, Err(e.to_string())),
        }
    }
}

/// The frames of a socket; none of them brings a descriptor.
fn frames_of_socket(all: &[u8]) -> (Vec<Parts>, Result<(), String>) {
    thread_local! {
        static RUNTIME: RefCell<tokio::runtime::Runtime> =
            RefCell::new(tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime"));
    }
    RUNTIME.with_borrow_mut(|r| {
        r.block_on(async {
            let (mut ours, theirs) = tokio::net::UnixStream::pair().expect("a pair of sockets");
            let mut stream = FrameStream::new(theirs);
            let mut frames = Vec::new();
            let write = async move {
                let _ = ours.write_all(all).await;
            };
            let read = async {
                loop {
                    match stream.next().await {
                        Ok(Some((f, fds))) => {
                            assert!(fds.is_empty());
                            frames.push(parts(f));
                        }
                        Ok(None) => return Ok(()),
                        Err(e) => return Err(e.to_string()),
                    }
                }
            };
            let ((), ended) = tokio::join!(write, read);
            (frames, ended)
        })
    })
}

fn check_stream(c: &mut Choices<'_>, seed: u8) {
    let mut all = Vec::new();
    for _ in 0..c.byte() % 4 {
        let t = &TYPES[usize::from(c.byte()) % TYPES.len()];
        let body = (t.make)(c);
        let raw = usize::from(c.byte() % 100);
        let header = Header { fds: usize::from(c.byte() / 250), a: make(c), ..Header::new(c.byte(), body.len(), raw) };
        all.extend_from_slice(&header.encode());
        all.extend_from_slice(&body);
        all.resize(all.len() + raw, b'r');
    }
    let n = usize::from(c.byte());
    mutate(&mut all, &mut Choices(c.bytes(n)));
    all.extend_from_slice(c.0);

    let (want, end) = frames_of(&all);
    let end = end.and_then(|left| if left == 0 { Ok(()) } else { Err(FrameError::Truncated.to_string()) });
    let got = frames_of_reader(pieces(&all, seed, 1 + usize::from(seed)).collect());
    assert!(got == (want.clone(), end.clone()), "pieces make a difference");
    for (_, body, _) in &want {
        TYPES.iter().for_each(|t| (t.check)(&aligned(body)));
    }
    if seed % 8 == 0 {
        let (mut want, mut end) = (want, end);
        if let Some(i) = want.iter().position(|(h, ..)| h.fds > 0) {
            end = Err(FrameError::Descriptors(want[i].0.fds).to_string());
            want.truncate(i);
        }
        assert!(frames_of_socket(&all) == (want, end), "a socket makes a difference");
    }
}

fuzz_target!(|input: &[u8]| -> Corpus {
    let [which, seed, rest @ ..] = input else { return Corpus::Reject };
    let mut c = Choices(rest);
    let kinds = TYPES.len() as u8 + 2;
    let (which, raw) = (usize::from(which % kinds), which / kinds % 4 == 3);
    if which == TYPES.len() + 1 {
        check_stream(&mut c, *seed);
        return Corpus::Keep;
    }
    let bytes = if raw {
        aligned(rest)
    } else {
        let n = usize::from(c.byte());
        let mut making = Choices(c.bytes(n));
        let mut made = match TYPES.get(which) {
            Some(t) => (t.make)(&mut making),
            None => archive(&Snapshot::make(&mut making)),
        };
        mutate(&mut made, &mut c);
        made
    };
    match TYPES.get(which) {
        Some(t) => (t.check)(&bytes),
        None => check_snapshot(&bytes),
    }
    if which == 0 {
        check_envelope(&bytes);
    }
    Corpus::Keep
});
