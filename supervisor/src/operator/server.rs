//! Answers operators.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ipc::control::{Rows, RowsOf};
use ipc::frame::{FrameError, HEADER_BYTES, Header, archive, unarchive};
use ipc::limits::{ARCHIVE_BYTES_MAX, SUPPRESSION_ROWS_MAX};
use ipc::operator::{ANSWER, Answer, Listed, Listing, Place, REQUEST, Request, SuppressionRow, WhyCause, WhyRow};
use ipc::queue_orders::Deletion;
use ipc::rules::{Setting, Value};
use ipc::snapshot::{Pool, Snapshot};
use rkyv::util::AlignedVec;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use worker::suppression::compaction::Staged;

use crate::config::directives;
use crate::config::source::{Given, Source};
use crate::configurations::By;
use crate::listen::{self, Places};
use crate::state::Supervisor;
use crate::suppression::Imported;

/// Commands that may be connected at once.
const CONNECTIONS_MAX: usize = 64;
/// How long a command may take to say what it wants, and to go on; an import waits for its input meanwhile.
const FIRST_WAIT: Duration = Duration::from_secs(10);
const NEXT_WAIT: Duration = Duration::from_secs(600);
/// How long it may take to send a request that it has begun, and to take an answer.
const TRANSFER_WAIT: Duration = Duration::from_secs(30);
/// Bytes of requests that are held at once, and how many a request may have without counting.
const REQUESTS_BYTES_MAX: usize = ARCHIVE_BYTES_MAX;
const SMALL_REQUEST_BYTES: usize = 64 << 10;

/// Serves the control socket.
pub async fn serve(sup: Rc<Supervisor>, listener: UnixListener) {
    let accept = async || listener.accept().await.map(|(io, _)| io);
    let room = Arc::new(Semaphore::new(REQUESTS_BYTES_MAX));
    let serve =
        |io, place| serve_one(Rc::clone(&sup), Connection { io, place, room: Arc::clone(&room), waits: FIRST_WAIT });
    listen::serve_each(accept, Places::new(CONNECTIONS_MAX), serve).await;
}

/// A command's connection. Descriptors that it may send along are not taken.
struct Connection {
    io: UnixStream,
    place: Rc<listen::Place>,
    /// For requests that are not small.
    room: Arc<Semaphore>,
    /// For the next request.
    waits: Duration,
}

impl Connection {
    /// The client is root, or the user that the server runs as: both may read the spool itself.
    fn may_read_mail(&self) -> bool {
        let own = nix::unistd::geteuid().as_raw();
        self.io.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own)
    }

    /// The next request, with its part of the room for requests; `None` when the command has gone or says nothing.
    async fn next(&mut self) -> Result<Option<(Request, Option<OwnedSemaphorePermit>)>, FrameError> {
        let mut head = [0; HEADER_BYTES];
        self.place.is_silent();
        match timeout(self.waits, self.io.read_exact(&mut head)).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return Ok(None),
        }
        self.waits = NEXT_WAIT;
        let header = Header::decode(&head)?;
        if header.kind != REQUEST {
            return Err(FrameError::Kind(header.kind));
        }
        let too_large = |what, found| Err(FrameError::TooLarge { what, found, max: 0 });
        match (header.raw_len, header.fds) {
            (0, 0) => {}
            (0, found) => return too_large("descriptors", found),
            (found, _) => return too_large("content", found),
        }
        let bytes = header.archive_len;
        // Closed it never is.
        let room = match bytes <= SMALL_REQUEST_BYTES {
            true => None,
            false => Arc::clone(&self.room).acquire_many_owned(bytes as u32).await.ok(),
        };
        let mut archive = AlignedVec::<16>::with_capacity(bytes);
        archive.resize(bytes, 0);
        match timeout(TRANSFER_WAIT, self.io.read_exact(&mut archive[..])).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return Err(FrameError::Truncated),
        }
        self.place.is_answered();
        Ok(Some((unarchive::<Request>(REQUEST, &archive)?, room)))
    }
}

async fn serve_one(sup: Rc<Supervisor>, mut connection: Connection) {
    let user = connection.io.peer_cred().ok().map(|c| c.uid());
    // An import lives as long as its connection: a command that is ended in the middle has imported nothing.
    let mut import = None;
    loop {
        let (answer, more) = match connection.next().await {
            Ok(Some((Request::ImportSuppressed { rows, last }, _room))) => {
                (said(import_rows(&sup, &mut import, rows, last).await), true)
            }
            Ok(Some((r @ Request::Stop { wait: true }, _))) => {
                sup.stop_waiters.set(sup.stop_waiters.get() + 1);
                let answer = answer(&sup, user, r).await;
                // The client may have gone; the stop goes on.
                let _ = send(&mut connection.io, &answer).await;
                sup.stop_waiters.set(sup.stop_waiters.get() - 1);
                sup.changed.notify_waiters();
                // Open until the process ends, which is what was waited for.
                std::future::pending().await
            }
            Ok(Some((Request::MessageContent(id), _room))) => {
                (super::message::content(&sup, id, connection.may_read_mail()).await, true)
            }
            Ok(Some((r, _room))) => (answer(&sup, user, r).await, true),
            Ok(None) => return,
            // A client's rubbish is its own matter: it is told and left.
            Err(e @ FrameError::Archive { .. }) => (Answer::Wrong(e.to_string()), true),
            Err(e) => (Answer::Wrong(e.to_string()), false),
        };
        if send(&mut connection.io, &answer).await.is_err() || !more {
            return;
        }
    }
}

async fn send(io: &mut UnixStream, answer: &Answer) -> std::io::Result<()> {
    let mut bytes = archive(answer);
    if bytes.len() > ARCHIVE_BYTES_MAX {
        bytes = archive(&Answer::Failed(format!("the answer is too large: {} bytes", bytes.len())));
    }
    let header = Header::new(ANSWER, bytes.len(), 0).encode();
    let sent = async {
        io.write_all(&header).await?;
        io.write_all(&bytes).await
    };
    timeout(TRANSFER_WAIT, sent).await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}

async fn answer(sup: &Rc<Supervisor>, user: Option<u32>, request: Request) -> Answer {
    match request {
        Request::Status => Answer::Status(crate::status::as_json(sup).to_string()),
        Request::Shards => Answer::Shards(crate::status::shard_rows(sup)),
        Request::Page { of, at } => page(sup, of, at).await,
        Request::PauseJob { job, paused } => said(pause_job(sup, job, paused, By::User(user).to_string()).await),
        Request::ShardRestart { shard, wait } => said(sup.restart_shard(shard, wait).await),
        Request::Scale { workers, wait } => said(sup.scale(workers, wait).await),
        Request::Reload { wait, dry_run } => match sup.reload(wait, dry_run, By::User(user)).await {
            Ok(t) => Answer::Done(t),
            Err(t) => Answer::Wrong(t),
        },
        Request::Explain { destination, via, only, lookup } => {
            sup.explain(destination, via, only, lookup).await.map_or_else(Answer::Wrong, Answer::Status)
        }
        Request::VmtaSettings { vmta } => {
            let found = super::vmta_settings::of(&sup.compiled.borrow().snapshot, &vmta);
            let text = found.and_then(|f| serde_json::to_string(&f).map_err(|e| e.to_string()));
            text.map_or_else(Answer::Wrong, Answer::Status)
        }
        Request::Configurations => sup.configurations().await.map_or_else(Answer::Failed, Answer::Status),
        Request::ConfigurationChanges { number, json } => {
            sup.configuration_changes(number, json).await.map_or_else(Answer::Wrong, Answer::Done)
        }
        Request::Rollback { number } => {
            sup.reload(true, false, By::Rollback(user, number)).await.map_or_else(Answer::Wrong, Answer::Done)
        }
        Request::ExplainSource { who, only } => {
            sup.explain_source(who, only).await.map_or_else(Answer::Wrong, Answer::Status)
        }
        Request::Diff { files, json } => {
            let (given, main) = Given::of(files);
            sup.diff(Source::Given(given), main, json).await.map_or_else(Answer::Wrong, Answer::Done)
        }
        Request::WhyMessage(id) => {
            let of = |r| if let Rows::Why(w) = r { w } else { Vec::new() };
            let mut rows: Vec<WhyRow> =
                sup.ask_workers(RowsOf::WhyMessage(id)).await.into_iter().flat_map(of).collect();
            name_origins(sup, &mut rows);
            Answer::Why(rows)
        }
        Request::Message(id) => super::message::rows(sup, id).await,
        // Taken by the connection, which knows who asks.
        Request::MessageContent(_) => Answer::Failed("content needs its connection".into()),
        Request::Order(order) => said(super::orders::ordered(sup, order, By::User(user).to_string()).await),
        Request::Delete(what) => said(deleted(sup, what).await),
        Request::Reroute(order) => said(super::reroute::rerouted(sup, order).await),
        Request::Stop { wait: false } => {
            sup.stop.notify_one();
            Answer::Done("stopping".into())
        }
        Request::Stop { wait: true } => said(sup.stop_and_wait().await),
        Request::RotateAccounting { file } => {
            said(sup.rotate_now(file).await.map(|()| "Accounting file rotated.".into()))
        }
        Request::Suppress(rows) => {
            let given = rows.len();
            let lists: BTreeSet<String> = rows.iter().map(|r| r.list.to_lowercase()).collect();
            let added = sup.suppression.add(rows).await;
            let notes =
                || lists.iter().filter_map(|l| unconsulted(&sup.compiled.borrow().snapshot, l)).collect::<String>();
            said_of_input(added.map(|new| format!("{} suppressed, {} of them new.{}", counted(given), new, notes())))
        }
        Request::Unsuppress { addresses, list } => {
            let given = addresses.len();
            let removed = sup.suppression.remove(addresses, list).await;
            said_of_input(removed.map(|found| format!("{found} of {} removed.", counted(given))))
        }
        Request::Suppressed { list, address, after, most } => {
            let most = (most as usize).clamp(1, SUPPRESSION_ROWS_MAX);
            let found = match address.is_empty() {
                true => sup.suppression.page(list.to_lowercase(), after, most).await,
                false => sup.suppression.find(&address, &list).await.map(|rows| (rows, None)),
            };
            found.map_or_else(Answer::Wrong, |(rows, next)| Answer::Suppressed { rows, next })
        }
        // Taken by the connection.
        Request::ImportSuppressed { .. } => Answer::Wrong("an import needs its connection".into()),
        Request::InjectSocket => match sup.serving_socket() {
            Some(p) => Answer::Socket(p),
            None => Answer::Failed("no worker serves".into()),
        },
    }
}

/// Rows of an import; it is over after an error.
async fn import_rows(
    sup: &Rc<Supervisor>,
    import: &mut Option<Staged>,
    rows: Vec<SuppressionRow>,
    last: bool,
) -> Result<String, String> {
    let staged = match import.take() {
        Some(s) => s,
        None => sup.suppression.begin_import().await?,
    };
    match sup.suppression.import(staged, rows, last).await? {
        Imported::So(staged) => {
            let entries = staged.entries;
            *import = Some(staged);
            Ok(format!("{entries} so far"))
        }
        Imported::Whole(entries) => Ok(format!("{} imported.", counted(entries as usize))),
    }
}

fn counted(n: usize) -> String {
    format!("{n} address{}", if n == 1 { "" } else { "es" })
}

/// What is wrong is most likely what was given.
fn said_of_input(result: Result<String, String>) -> Answer {
    result.map_or_else(Answer::Wrong, Answer::Done)
}

/// A remark on a suppression list that no mail of this configuration is held against.
fn unconsulted(snapshot: &Snapshot, list: &str) -> Option<String> {
    let known = |s: &Setting| match &s.value {
        Value::TextList(names) => {
            directives::all()[usize::from(s.key)].name == "suppression-lists"
                && names.iter().any(|n| n.eq_ignore_ascii_case(list))
        }
        _ => false,
    };
    let missing = match list.split_once(':') {
        Some(("virtual-mta", name)) => {
            (!snapshot.vmta_by_name.contains_key(name)).then(|| format!("virtual MTA {name}"))
        }
        Some(("pool", name)) => (!snapshot.pool_by_name.contains_key(name)).then(|| format!("pool {name}")),
        Some(_) => None,
        None if list == worker::suppression::GLOBAL => None,
        None => {
            let named = snapshot.written.iter().flat_map(|w| &w.settings).any(known);
            (!named).then(|| format!("suppression-lists {list}"))
        }
    };
    missing.map(|m| format!("\nNothing goes by the list {list} yet: the configuration has no {m}."))
}

/// A page of a listing, all of one shard. One that does not answer is left out.
async fn page(sup: &Rc<Supervisor>, of: Listed, at: Place) -> Answer {
    let behind = |n: u8| sup.slots.borrow().iter().map(|s| s.number).filter(|s| *s >= n).min();
    let first = |shard| Place { shard, from: 0 };
    let next_shard = |n: u8| n.checked_add(1).and_then(behind).map(first);
    let none = match of {
        Listed::Queues(_) => Listing::Queues(Vec::new()),
        Listed::Paths => Listing::Paths(Vec::new()),
        Listed::Pools => Listing::Pools(Vec::new()),
        Listed::Jobs => Listing::Jobs(Vec::new()),
        Listed::Why(_) => Listing::Why(Vec::new()),
        Listed::Disabled(_) => Listing::Disabled(Vec::new()),
        Listed::Orders(_) => Listing::Orders(Vec::new()),
    };
    let Some(shard) = behind(at.shard) else { return Answer::Page { rows: none, next: None } };
    let from = if shard == at.shard { at.from } else { 0 };
    match sup.ask_those(|n| n == shard, RowsOf::Page { of, from }).await.pop() {
        Some(Rows::Page { mut rows, next }) => {
            if let Listing::Why(rows) = &mut rows {
                name_origins(sup, rows);
            }
            let next = next.map(|from| Place { shard, from }).or_else(|| next_shard(shard));
            Answer::Page { rows, next }
        }
        Some(Rows::Refused(e)) => Answer::Failed(e),
        _ => Answer::Page { rows: none, next: next_shard(shard) },
    }
}

async fn pause_job(sup: &Rc<Supervisor>, job: String, paused: bool, by: String) -> Result<String, String> {
    let _ordering = sup.ordering.read().await;
    let shards = sup.slots.borrow().len();
    let (mut recipients, mut changed, mut answered) = (0, 0, 0);
    for rows in sup.ask_workers(RowsOf::PauseJob { job: job.clone(), paused, by }).await {
        match rows {
            Rows::Done { matched, changed: c, .. } => {
                (recipients, changed, answered) = (recipients + matched, changed + c, answered + 1)
            }
            Rows::Refused(e) => return Err(e),
            _ => {}
        }
    }
    if answered < shards {
        return Err(format!("{} of {shards} shards did not answer: give the order again", shards - answered));
    }
    if !paused && recipients + changed == 0 {
        return Err(format!("0 recipients are queued in {job}, and it is not paused"));
    }
    let what = if paused { "paused" } else { "resumed" };
    Ok(format!("{what} job. {recipients} recipient{} queued in {job} now.", if recipients == 1 { "" } else { "s" }))
}

/// Says where shared limits are written, which shards do not know.
fn name_origins(sup: &Supervisor, rows: &mut [WhyRow]) {
    for cause in rows.iter_mut().flat_map(|r| r.last_5_min.iter_mut().chain(&mut r.now)) {
        if cause.cause == "shared limit" && cause.origin.is_empty() && !cause.directive.is_empty() {
            cause.origin = written_at(&sup.compiled.borrow().snapshot, cause);
            // The others have no default that limits anything.
            cause.is_default = cause.origin.is_empty() && cause.directive == "total-max-smtp-out";
        }
    }
}

/// File and line of a limit that is not a `<domain>`'s; empty where it is the default, or
/// several lines may be meant.
fn written_at(snapshot: &Snapshot, cause: &WhyCause) -> String {
    let is_named = |s: &&Setting| directives::all()[usize::from(s.key)].name == cause.directive;
    let vmta = cause.path.rsplit_once('/').map_or("", |(_, v)| v);
    let index = snapshot.vmta_by_name.get(&vmta.to_lowercase()).copied();
    let own = index.and_then(|i| snapshot.vmtas.get(i as usize)).map(|v| &v.settings);
    let is_member = |p: &&Pool| index.is_some_and(|i| p.members.iter().any(|m| m.vmta == i));
    let pools = snapshot.pools.iter().filter(is_member).map(|p| &p.settings);
    let top = snapshot.written.iter().filter(|w| w.block.is_empty()).map(|w| &w.settings);
    for settings in own.into_iter().chain(pools).chain(top) {
        let mut lines = settings.iter().filter(is_named);
        if let (Some(s), None) = (lines.next(), lines.next()) {
            let file = snapshot.files.get(usize::from(s.file)).map_or("", String::as_str);
            return format!("{file}:{}", s.line);
        }
    }
    String::new()
}

/// Deletes in every shard, a part at a time.
async fn deleted(sup: &Rc<Supervisor>, what: Deletion) -> Result<String, String> {
    let shards: Vec<u8> = sup.slots.borrow().iter().map(|s| s.number).collect();
    let mut deleted = 0;
    for shard in shards {
        let mut after = None;
        loop {
            let what = RowsOf::Delete { what: what.clone(), after };
            match sup.ask_those(|n| n == shard, what).await.pop() {
                Some(Rows::Deleted { recipients, after: next }) => {
                    deleted += recipients;
                    after = next;
                }
                Some(Rows::Refused(e)) => return Err(e),
                _ => {
                    return Err(format!(
                        "{} deleted; shard {shard} did not answer: give the order again",
                        recipients(deleted)
                    ));
                }
            }
            if after.is_none() {
                break;
            }
        }
    }
    let moves = !sup.map.borrow().previous.is_empty();
    let remark = if moves { "\nMail is moving between shards: give the order again when that is over." } else { "" };
    Ok(format!("{} deleted.{remark}", recipients(deleted)))
}

fn recipients(n: u64) -> String {
    if n == 1 { "1 recipient".into() } else { format!("{n} recipients") }
}

fn said(r: Result<String, String>) -> Answer {
    r.map_or_else(Answer::Failed, Answer::Done)
}
