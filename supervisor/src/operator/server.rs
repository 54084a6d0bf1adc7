//! Answers operators.

use std::collections::BTreeSet;
use std::path::Path;
use std::rc::Rc;

use ipc::control::{Rows, RowsOf};
use ipc::frame::{archive, unarchive};
use ipc::limits::SUPPRESSION_ROWS_MAX;
use ipc::operator::{ANSWER, Answer, Listed, Listing, Place, REQUEST, Request, SuppressionRow, WhyCause, WhyRow};
use ipc::queue_orders::{Deletion, QueueAction, QueueOrder};
use ipc::rules::{Setting, Value};
use ipc::snapshot::{Pool, Snapshot};
use ipc::stream::FrameStream;
use tokio::net::UnixListener;
use worker::suppression::compaction::Staged;

use crate::config::directives;
use crate::listen;
use crate::run::Supervisor;
use crate::suppression::Imported;

/// Serves the control socket.
pub async fn serve(sup: Rc<Supervisor>, listener: UnixListener) {
    listen::serve_each(listener, |io| serve_one(Rc::clone(&sup), FrameStream::new(io))).await;
}

async fn serve_one(sup: Rc<Supervisor>, mut stream: FrameStream) {
    // An import is its connection's: whoever goes away in the middle has imported nothing.
    let mut import = None;
    loop {
        let (answer, more) = match stream.next().await {
            Ok(Some((f, _))) if f.header.kind == REQUEST => match unarchive::<Request>(REQUEST, &f.archive) {
                Ok(Request::ImportSuppressed { rows, last }) => {
                    (said(import_rows(&sup, &mut import, rows, last).await), true)
                }
                Ok(r @ Request::Stop { wait: true }) => {
                    sup.stop_waiters.set(sup.stop_waiters.get() + 1);
                    let answer = answer(&sup, r).await;
                    let _ = send(&stream, &answer).await;
                    sup.stop_waiters.set(sup.stop_waiters.get() - 1);
                    sup.changed.notify_waiters();
                    // Open until the process ends, which is what was waited for.
                    std::future::pending().await
                }
                Ok(r) => (answer(&sup, r).await, true),
                Err(e) => (Answer::Wrong(e.to_string()), true),
            },
            Ok(Some((f, _))) => (Answer::Wrong(format!("frame of unknown kind {}", f.header.kind)), true),
            Ok(None) => return,
            // A client's rubbish is its own matter: it is told and left.
            Err(e) => (Answer::Wrong(e.to_string()), false),
        };
        if send(&stream, &answer).await.is_err() || !more {
            return;
        }
    }
}

async fn send(stream: &FrameStream, answer: &Answer) -> std::io::Result<()> {
    match stream.send(ANSWER, &archive(answer), &[], &[]).await {
        Err(e) if e.kind() == std::io::ErrorKind::InvalidInput => {
            let failed = Answer::Failed(format!("the answer is too large: {e}"));
            stream.send(ANSWER, &archive(&failed), &[], &[]).await
        }
        sent => sent,
    }
}

async fn answer(sup: &Rc<Supervisor>, request: Request) -> Answer {
    match request {
        Request::Status => Answer::Status(crate::status::as_json(sup).to_string()),
        Request::Shards => Answer::Shards(crate::status::shard_rows(sup)),
        Request::Page { of, at } => page(sup, of, at).await,
        Request::PauseJob { job, paused } => said(pause_job(sup, job, paused).await),
        Request::ShardRestart { shard, wait } => said(sup.restart_shard(shard, wait).await),
        Request::Scale { workers, wait } => said(sup.scale(workers, wait).await),
        Request::Reload { wait, dry_run } => match sup.reload(wait, dry_run).await {
            Ok(t) => Answer::Done(t),
            Err(t) => Answer::Wrong(t),
        },
        Request::Explain { destination, via, only } => match sup.explain(&destination, &via, &only) {
            Ok(t) => Answer::Status(t),
            Err(t) => Answer::Wrong(t),
        },
        Request::Diff { file, json } => match sup.diff(Path::new(&file), json).await {
            Ok(t) => Answer::Done(t),
            Err(t) => Answer::Wrong(t),
        },
        Request::WhyMessage(id) => {
            let of = |r| if let Rows::Why(w) = r { w } else { Vec::new() };
            let mut rows: Vec<WhyRow> =
                sup.ask_workers(RowsOf::WhyMessage(id)).await.into_iter().flat_map(of).collect();
            name_origins(sup, &mut rows);
            Answer::Why(rows)
        }
        Request::Order(order) => said(ordered(sup, order).await),
        Request::Delete(what) => said(deleted(sup, what).await),
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

async fn pause_job(sup: &Rc<Supervisor>, job: String, paused: bool) -> Result<String, String> {
    let shards = sup.slots.borrow().len();
    let (mut recipients, mut answered) = (0, 0);
    for rows in sup.ask_workers(RowsOf::PauseJob { job: job.clone(), paused }).await {
        match rows {
            Rows::Done { matched, .. } => (recipients, answered) = (recipients + matched, answered + 1),
            Rows::Refused(e) => return Err(e),
            _ => {}
        }
    }
    if answered < shards {
        return Err(format!("{} of {shards} shards did not answer: give the order again", shards - answered));
    }
    let what = if paused { "paused" } else { "resumed" };
    Ok(format!("{what} job. {recipients} recipient{} queued in {job} now.", if recipients == 1 { "" } else { "s" }))
}

/// Says where shared limits are written, which shards do not know.
fn name_origins(sup: &Supervisor, rows: &mut [WhyRow]) {
    for cause in rows.iter_mut().flat_map(|r| r.last_5_min.iter_mut().chain(&mut r.now)) {
        if cause.cause == "shared limit" && cause.origin.is_empty() {
            cause.origin = written_at(&sup.compiled.borrow().snapshot, cause);
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

/// Has an order carried out by every shard, and says what came of it.
async fn ordered(sup: &Rc<Supervisor>, order: QueueOrder) -> Result<String, String> {
    let shards = sup.slots.borrow().len();
    let (mut matched, mut changed, mut answered) = (0, 0, 0);
    for rows in sup.ask_workers(RowsOf::Ordered(order.clone())).await {
        match rows {
            Rows::Done { matched: m, changed: c } => {
                (matched, changed, answered) = (matched + m, changed + c, answered + 1)
            }
            Rows::Refused(e) => return Err(e),
            _ => {}
        }
    }
    if answered < shards {
        return Err(format!("{} of {shards} shards did not answer: give the order again", shards - answered));
    }
    let s = |n: u64| if n == 1 { "" } else { "s" };
    Ok(match order.action {
        QueueAction::Pause(true) => format!("Queue(s) paused. {matched} queue{} match now.", s(matched)),
        QueueAction::Pause(false) => format!("Queue(s) resumed. {matched} queue{} match now.", s(matched)),
        QueueAction::Schedule { .. } => format!("{changed} of {matched} matching queues scheduled."),
        QueueAction::Mode(backoff) => {
            let mode = if backoff { "backoff" } else { "normal" };
            format!("{changed} of {matched} matching paths set to {mode} mode.")
        }
        QueueAction::DisableSource { ip, .. } => {
            format!("Source {ip} disabled at {changed} of {matched} matching paths, and at those to come.")
        }
        QueueAction::EnableSource { ip } => format!("Source {ip} enabled at {changed} of {matched} matching paths."),
    })
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
