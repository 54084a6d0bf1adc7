//! Commands that ask the running server.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::BytesMut;
use ipc::frame::{Frame, Header, archive, unarchive};
use ipc::limits::ARCHIVE_BYTES_MAX;
use ipc::mesh;
use ipc::operator::{ANSWER, Answer, JobRow, Listed, Listing, PathRow, Place, PoolRow, QueueRow, REQUEST, Request};
use ipc::queue_orders::QueuePattern;

use crate::Failure;
use crate::cli::print;
use crate::config::diff;
use crate::config::explain::{self, Explained};
use crate::operator::state;

/// How long a server that has stopped may take to let its process end.
const ENDED_WAIT: Duration = Duration::from_secs(5);

/// The server to ask: its control socket, if one was named.
#[derive(Debug)]
pub struct Target(pub Option<PathBuf>);

impl Target {
    fn path(&self) -> PathBuf {
        self.0.clone().unwrap_or_else(|| {
            let places =
                ["./sluice-data/run/control.sock", "/run/sluice/control.sock", "/var/lib/sluice/run/control.sock"];
            places.iter().map(PathBuf::from).find(|p| p.exists()).unwrap_or_else(|| places[0].into())
        })
    }
}

/// A connection to a server that answers one request after the other.
#[derive(Debug)]
pub struct Conversation {
    io: UnixStream,
    path: PathBuf,
    buf: BytesMut,
}

impl Conversation {
    /// Connects to the server.
    ///
    /// # Errors
    /// [`Failure`]
    pub fn with(target: &Target) -> Result<Conversation, Failure> {
        Self::at(&target.path())
    }

    fn at(path: &Path) -> Result<Conversation, Failure> {
        let io = UnixStream::connect(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::PermissionDenied => Failure::Failed(format!(
                "you may not speak to the server at {} ({e}); run this as root or as the user that it runs as",
                path.display()
            )),
            _ => Failure::NoServer(format!(
                "no server answers at {} ({e}); start one with `sluice run`, or name its socket with --control",
                path.display()
            )),
        })?;
        Ok(Conversation { io, path: path.to_owned(), buf: BytesMut::new() })
    }

    fn lost(&self, e: &std::io::Error) -> Failure {
        Failure::Failed(format!("the server at {} broke off: {e}", self.path.display()))
    }

    fn send(&mut self, kind: u8, request: &[u8], raw: &[u8]) -> Result<(), Failure> {
        let header = Header::new(kind, request.len(), raw.len()).encode();
        let sent = [&header[..], request, raw].into_iter().try_for_each(|part| self.io.write_all(part));
        sent.map_err(|e| self.lost(&e))
    }

    fn frame(&mut self) -> Result<Frame, Failure> {
        let mut chunk = vec![0u8; 64 << 10];
        loop {
            if let Some(f) = Frame::take(&mut self.buf).map_err(|e| Failure::Failed(e.to_string()))? {
                return Ok(f);
            }
            match self.io.read(&mut chunk).map_err(|e| self.lost(&e))? {
                0 => {
                    let path = self.path.display();
                    return Err(Failure::Failed(format!("the server at {path} closed without an answer")));
                }
                n => self.buf.extend_from_slice(&chunk[..n]),
            }
        }
    }

    /// Asks, and answers what the server did not refuse.
    ///
    /// # Errors
    /// [`Failure`]
    pub fn ask(&mut self, request: &Request) -> Result<Answer, Failure> {
        let request = archive(request);
        if request.len() > ARCHIVE_BYTES_MAX {
            let why = "larger than the server takes from an operator";
            return Err(Failure::Failed(format!("this takes {} bytes, {why} ({ARCHIVE_BYTES_MAX})", request.len())));
        }
        self.send(REQUEST, &request, &[])?;
        let f = self.frame()?;
        match unarchive::<Answer>(ANSWER, &f.archive).map_err(|e| Failure::Failed(e.to_string()))? {
            Answer::Failed(t) => Err(Failure::Failed(t)),
            Answer::Wrong(t) => Err(Failure::Wrong(t)),
            a => Ok(a),
        }
    }
}

/// `stop`: waits until the server's process has ended, as far as it says so by its socket.
///
/// # Errors
/// [`Failure`]
pub fn stop(target: &Target, wait: bool) -> Result<(), Failure> {
    let mut server = Conversation::with(target)?;
    let answer = server.ask(&Request::Stop { wait });
    if wait {
        // The kernel closes the socket with the process; what it says before does not matter any more.
        let _ = server.io.set_read_timeout(Some(ENDED_WAIT)).and_then(|()| server.io.read(&mut [0]));
    }
    match answer? {
        Answer::Done(t) => print(format!("{t}\n").as_bytes()),
        _ => Err(unexpected()),
    }
}

/// The server's answer to one request.
///
/// # Errors
/// [`Failure`]
pub fn ask(target: &Target, request: &Request) -> Result<Answer, Failure> {
    Conversation::with(target)?.ask(request)
}

/// The server's answer to a request for JSON, read.
pub(super) fn read<T: serde::de::DeserializeOwned>(target: &Target, request: &Request) -> Result<T, Failure> {
    let Answer::Status(text) = ask(target, request)? else { return Err(unexpected()) };
    serde_json::from_str(&text).map_err(|e| Failure::Failed(e.to_string()))
}

/// A request whose answer is a sentence.
///
/// # Errors
/// [`Failure`]
pub fn act(target: &Target, request: Request) -> Result<(), Failure> {
    match ask(target, &request)? {
        Answer::Done(t) => print(format!("{t}\n").as_bytes()),
        _ => Err(unexpected()),
    }
}

/// All pages of a listing. Whose rows they are is for `take` to say.
pub(super) fn pages<R>(
    target: &Target,
    of: &Listed,
    take: impl Fn(Listing) -> Option<Vec<R>>,
) -> Result<Vec<R>, Failure> {
    let mut server = Conversation::with(target)?;
    let (mut all, mut at) = (Vec::new(), Place::default());
    loop {
        let Answer::Page { rows, next } = server.ask(&Request::Page { of: of.clone(), at })? else {
            return Err(unexpected());
        };
        all.extend(take(rows).ok_or_else(unexpected)?);
        match next {
            Some(n) => at = n,
            None => return Ok(all),
        }
    }
}

/// Which queues `show queues` shows, and how.
#[derive(Debug)]
pub struct ShownQueues {
    /// Those that match.
    pub of: QueuePattern,
    /// `normal` or `backoff`.
    pub mode: Option<String>,
    /// Paused, or not.
    pub paused: Option<bool>,
    /// With open connections, or without.
    pub connected: Option<bool>,
    /// By `name`, `rcpt` or `size`.
    pub sort: String,
    /// No more than so many.
    pub max_items: Option<usize>,
}

impl ShownQueues {
    /// Every queue, the longest first.
    fn all() -> ShownQueues {
        let of = QueuePattern { destination: "*".into(), via: "*".into() };
        ShownQueues { of, mode: None, paused: None, connected: None, sort: "rcpt".into(), max_items: None }
    }

    fn takes(&self, r: &QueueRow) -> bool {
        self.mode.as_ref().is_none_or(|m| *m == r.mode)
            && self.paused.is_none_or(|p| p == r.paused)
            && self.connected.is_none_or(|c| c == (r.connections > 0))
    }

    /// The rows to be shown. What rolled up to one queue has come as a row for each domain.
    fn of_rows(&self, rows: Vec<QueueRow>) -> Vec<QueueRow> {
        let mut at: HashMap<(String, u8), usize> = HashMap::new();
        let mut all: Vec<QueueRow> = Vec::new();
        for row in rows {
            match at.entry((row.queue.clone(), row.shard)) {
                Entry::Occupied(e) => all[*e.get()].join(row),
                Entry::Vacant(e) => {
                    e.insert(all.len());
                    all.push(row);
                }
            }
        }
        all.retain(|r| self.takes(r));
        let by_name = |a: &QueueRow, b: &QueueRow| a.queue.cmp(&b.queue).then(a.shard.cmp(&b.shard));
        match self.sort.as_str() {
            "name" => all.sort_by(by_name),
            "size" => all.sort_by(|a, b| b.kbytes.cmp(&a.kbytes).then_with(|| by_name(a, b))),
            _ => all.sort_by(|a, b| b.recipients.cmp(&a.recipients).then_with(|| by_name(a, b))),
        }
        all.truncate(self.max_items.unwrap_or(usize::MAX));
        all
    }

    fn rows(&self, target: &Target) -> Result<Vec<QueueRow>, Failure> {
        let of = Listed::Queues(self.of.clone());
        pages(target, &of, |l| if let Listing::Queues(r) = l { Some(r) } else { None }).map(|r| self.of_rows(r))
    }
}

pub(super) fn unexpected() -> Failure {
    Failure::Failed("the server gave an answer of another kind; is it another version?".into())
}

pub(super) fn json<T: serde::Serialize>(rows: &T) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(rows).map_err(|e| Failure::Failed(e.to_string()))?;
    print(format!("{text}\n").as_bytes())
}

/// Prints rows: aligned columns for a terminal and for pipes alike, no colour.
///
/// # Errors
/// When standard output fails.
pub fn table(head: &[&str], rows: Vec<Vec<String>>) -> Result<(), Failure> {
    let mut widths: Vec<usize> = head.iter().map(|h| h.chars().count()).collect();
    for r in &rows {
        for (w, c) in widths.iter_mut().zip(r) {
            *w = (*w).max(c.chars().count());
        }
    }
    let last = widths.len() - 1;
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut out = String::new();
        for (i, c) in cells.enumerate() {
            out.push_str(c);
            if i < last {
                out.push_str(&" ".repeat(widths[i] - c.chars().count() + 2));
            }
        }
        out.push('\n');
        out
    };
    let mut out = line(&mut head.iter().copied());
    if std::io::stdout().is_terminal() {
        out.push_str(&line(&mut widths.iter().map(|w| "-".repeat(*w)).collect::<Vec<_>>().iter().map(String::as_str)));
    }
    for r in &rows {
        out.push_str(&line(&mut r.iter().map(String::as_str)));
    }
    print(out.as_bytes())
}

/// `status`
///
/// # Errors
/// [`Failure`]
pub fn status(target: &Target, as_json: bool) -> Result<(), Failure> {
    let Answer::Status(text) = ask(target, &Request::Status)? else { return Err(unexpected()) };
    if as_json {
        return print(format!("{text}\n").as_bytes());
    }
    let v: serde_json::Value = serde_json::from_str(&text).map_err(|e| Failure::Failed(e.to_string()))?;
    print(crate::status::as_text(&v).as_bytes())
}

/// `show shards`
///
/// # Errors
/// [`Failure`]
pub fn shards(target: &Target, as_json: bool) -> Result<(), Failure> {
    let Answer::Shards(rows) = ask(target, &Request::Shards)? else { return Err(unexpected()) };
    if as_json {
        return json(&rows);
    }
    let cells = rows.iter().map(|r| {
        vec![
            r.shard.to_string(),
            r.pid.to_string(),
            r.cpu.to_string(),
            r.state.clone(),
            r.restarts.to_string(),
            r.uptime_s.to_string(),
            (r.rss_bytes >> 20).to_string(),
            r.recipients.to_string(),
            r.connections_out.to_string(),
            r.connections_in.to_string(),
        ]
    });
    table(
        &["shard", "pid", "cpu", "state", "restarts", "uptime_s", "rss_mb", "recipients", "out", "in"],
        cells.collect(),
    )
}

/// `show queues`
///
/// # Errors
/// [`Failure`]
pub fn queues(target: &Target, shown: &ShownQueues, as_json: bool) -> Result<(), Failure> {
    let rows = shown.rows(target)?;
    if as_json {
        return json(&rows);
    }
    let cells = rows.iter().map(|r| {
        vec![
            r.queue.clone(),
            r.recipients.to_string(),
            r.kbytes.to_string(),
            r.connections.to_string(),
            r.shard.to_string(),
            state::of_queue(r),
            r.next_retry.clone(),
            r.last_error.clone(),
        ]
    });
    table(&["queue", "#rcpt", "kbytes", "conn", "shard", "mode", "retry", "last error"], cells.collect())
}

/// `show paths`
///
/// # Errors
/// [`Failure`]
pub fn paths(target: &Target, as_json: bool) -> Result<(), Failure> {
    let mut rows: Vec<PathRow> =
        pages(target, &Listed::Paths, |l| if let Listing::Paths(r) = l { Some(r) } else { None })?;
    rows.sort_by(|a, b| a.path.cmp(&b.path));
    if as_json {
        return json(&rows);
    }
    let cells = rows.iter().map(|r| {
        vec![
            r.path.clone(),
            r.shard.to_string(),
            r.connections.to_string(),
            state::cell(&r.mode, r.forced, r.paused, &r.disabled_sources),
            format!("{:.2}", r.health),
            r.max_smtp_out.map_or_else(|| "unlimited".into(), |n| n.to_string()),
            r.max_msg_rate.clone(),
        ]
    });
    table(&["path", "shard", "conn", "mode", "health", "max-smtp-out", "max-msg-rate"], cells.collect())
}

/// `show pools`
///
/// # Errors
/// [`Failure`]
pub fn pools(target: &Target, as_json: bool) -> Result<(), Failure> {
    let mut rows: Vec<PoolRow> =
        pages(target, &Listed::Pools, |l| if let Listing::Pools(r) = l { Some(r) } else { None })?;
    rows.sort_by(|a, b| (&a.pool, &a.destination, &a.vmta).cmp(&(&b.pool, &b.destination, &b.vmta)));
    if as_json {
        return json(&rows);
    }
    let cells = rows.iter().map(|r| {
        vec![
            r.pool.clone(),
            r.destination.clone(),
            r.vmta.clone(),
            r.recipients.to_string(),
            r.weight.to_string(),
            format!("{}%", r.share_percent),
            format!("{:.2}{}", r.health, if r.probed { " (probed)" } else { "" }),
            r.connections.to_string(),
            state::cell(&r.mode, r.forced, r.paused, &r.disabled_sources),
            r.last_error.clone(),
        ]
    });
    let head = ["pool", "destination", "vmta", "#rcpt", "weight", "share", "health", "conn", "mode", "last error"];
    table(&head, cells.collect())
}

/// `show jobs`
///
/// # Errors
/// [`Failure`]
pub fn jobs(target: &Target, sort: Sort, as_json: bool) -> Result<(), Failure> {
    let of_shards = pages(target, &Listed::Jobs, |l| if let Listing::Jobs(r) = l { Some(r) } else { None })?;
    let mut by_name: BTreeMap<String, JobRow> = BTreeMap::new();
    for row in of_shards {
        let of = by_name.entry(row.job.clone()).or_insert_with(|| JobRow { job: row.job, ..Default::default() });
        // A destination is in one shard, so their numbers add up.
        of.domains += row.domains;
        of.recipients += row.recipients;
        of.kbytes += row.kbytes;
        of.paused |= row.paused;
    }
    let mut rows: Vec<JobRow> = by_name.into_values().collect();
    sort.apply(&mut rows, |r| (r.recipients, r.kbytes));
    if as_json {
        return json(&rows);
    }
    let cells = rows.iter().map(|r| {
        let paused = if r.paused { "yes" } else { "" };
        vec![r.job.clone(), r.domains.to_string(), r.recipients.to_string(), r.kbytes.to_string(), paused.to_owned()]
    });
    table(&["job-id", "domains", "#rcpt", "kbytes", "paused"], cells.collect())
}

/// A row of `show domains` or `show vmtas`.
#[derive(Debug, Default, serde::Serialize)]
struct Sum {
    name: String,
    domains: usize,
    recipients: u64,
    kbytes: u64,
    connections: u32,
    /// Queues that are paused, in backoff, with modes that were set by hand.
    paused: usize,
    backoff: usize,
    forced: usize,
    disabled_sources: BTreeSet<String>,
}

/// Sums of queues by a name that each has.
fn sums(rows: &[QueueRow], name: impl Fn(&QueueRow) -> String) -> Vec<Sum> {
    let mut by_name: BTreeMap<String, (Sum, BTreeSet<&str>)> = BTreeMap::new();
    for q in rows {
        let (sum, domains) = by_name.entry(name(q)).or_default();
        domains.insert(&q.destination);
        sum.recipients += q.recipients;
        sum.kbytes += q.kbytes;
        sum.connections += q.connections;
        sum.paused += usize::from(q.paused);
        sum.backoff += usize::from(q.mode == "backoff" || q.members.iter().any(|m| m.mode == "backoff"));
        sum.forced += usize::from(q.forced);
        sum.disabled_sources.extend(q.disabled_sources.iter().cloned());
    }
    let whole = |(name, (sum, domains)): (String, (Sum, BTreeSet<&str>))| Sum { name, domains: domains.len(), ..sum };
    by_name.into_iter().map(whole).collect()
}

/// The order of a listing by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Sort {
    /// By name
    Name,
    /// The most recipients first
    Rcpt,
    /// The most kilobytes first
    Size,
}

impl Sort {
    /// Sorts rows that are by name, whose recipients and kilobytes `of` tells.
    fn apply<R>(self, rows: &mut [R], of: impl Fn(&R) -> (u64, u64)) {
        match self {
            Sort::Name => {}
            Sort::Rcpt => rows.sort_by_key(|r| std::cmp::Reverse(of(r).0)),
            Sort::Size => rows.sort_by_key(|r| std::cmp::Reverse(of(r).1)),
        }
    }
}

/// `show domains`
///
/// # Errors
/// [`Failure`]
pub fn domains(target: &Target, as_json: bool) -> Result<(), Failure> {
    let rows = ShownQueues::all().rows(target)?;
    let mut all = sums(&rows, |q| q.destination.clone());
    Sort::Rcpt.apply(&mut all, |s| (s.recipients, s.kbytes));
    if as_json {
        let row = |s: &Sum| {
            serde_json::json!({ "domain": s.name, "recipients": s.recipients, "kbytes": s.kbytes,
            "connections": s.connections, "paused": s.paused, "backoff": s.backoff })
        };
        return json(&all.iter().map(row).collect::<Vec<_>>());
    }
    let cells =
        |s: &Sum| vec![s.name.clone(), s.recipients.to_string(), s.kbytes.to_string(), s.connections.to_string()];
    table(&["domain", "#rcpt", "kbytes", "conn"], all.iter().map(cells).collect())
}

/// `show vmtas`: virtual MTAs, and pools for what waits in their queues.
///
/// # Errors
/// [`Failure`]
pub fn vmtas(target: &Target, sort: Sort, as_json: bool) -> Result<(), Failure> {
    let rows = ShownQueues::all().rows(target)?;
    let mut all = sums(&rows, |q| if q.pool.is_empty() { q.vmta.clone() } else { q.pool.clone() });
    sort.apply(&mut all, |s| (s.recipients, s.kbytes));
    if as_json {
        let row = |s: &Sum| {
            serde_json::json!({ "vmta": s.name, "domains": s.domains, "recipients": s.recipients, "kbytes": s.kbytes,
            "connections": s.connections, "paused": s.paused, "backoff": s.backoff, "forced": s.forced,
            "disabled_sources": s.disabled_sources })
        };
        return json(&all.iter().map(row).collect::<Vec<_>>());
    }
    let total: u64 = all.iter().map(|s| s.recipients).sum::<u64>().max(1);
    let cells = |s: &Sum| {
        let share = format!("{}%", s.recipients * 100 / total);
        vec![
            s.name.clone(),
            s.domains.to_string(),
            s.recipients.to_string(),
            s.kbytes.to_string(),
            s.connections.to_string(),
            share,
            s.paused.to_string(),
            s.backoff.to_string(),
            s.forced.to_string(),
            s.disabled_sources.iter().cloned().collect::<Vec<_>>().join(" "),
        ]
    };
    let head = ["vmta", "domains", "#rcpt", "kbytes", "conn", "% total", "paused", "backoff", "by hand", "disabled"];
    table(&head, all.iter().map(cells).collect())
}

/// `config explain`: by the running server, or of a file.
///
/// # Errors
/// [`Failure`]
pub fn explain(target: &Target, config: Option<&Path>, request: Request, as_json: bool) -> Result<(), Failure> {
    let all: Vec<Explained> = match (config, &request) {
        (Some(file), Request::Explain { destination, via, only, lookup }) => {
            let snapshot = crate::config::snapshot_of(file)?;
            crate::config::explained(snapshot, destination, via, only, *lookup).map_err(Failure::Wrong)?
        }
        (Some(file), Request::ExplainSource { who, only }) => {
            let snapshot = crate::config::snapshot_of(file)?;
            explain::explain_source(snapshot.get(), who, only).map_err(Failure::Wrong)?
        }
        _ => read(target, &request)?,
    };
    if as_json {
        return json(&all);
    }
    let is_of_one = match &request {
        Request::Explain { only, .. } | Request::ExplainSource { only, .. } => !only.is_empty(),
        _ => false,
    };
    if is_of_one {
        return print(all.iter().map(chain).collect::<String>().as_bytes());
    }
    let cells = all.iter().map(|e| {
        let over: Vec<String> = e.overrides.iter().map(|o| format!("{} ({})", o.value, o.origin.layer)).collect();
        let name = if e.pending { format!("{} (pending)", e.name) } else { e.name.clone() };
        vec![name, e.value.clone(), e.origin.to_string(), over.join(", ")]
    });
    table(&["directive", "value", "from", "overrides"], cells.collect())?;
    let members = all.iter().filter(|e| !e.members.is_empty());
    print(members.map(|e| format!("\n{}{}", e.name, of_members(e))).collect::<String>().as_bytes())
}

/// Says what would become of a message by a configuration file.
///
/// # Errors
/// [`Failure::Wrong`] when the file has errors, or what was asked is no message.
pub fn trace(file: &Path, asked: &crate::config::trace::Asked, as_json: bool) -> Result<(), Failure> {
    let trace = crate::config::trace::trace(crate::config::snapshot_of(file)?, asked).map_err(Failure::Wrong)?;
    if as_json {
        return json(&trace);
    }
    print(crate::config::trace::text(&trace).as_bytes())
}

/// A value with all that it overrode.
fn chain(e: &Explained) -> String {
    let mut text = format!("{} {}\n  {}\n", e.name, e.value, e.origin);
    for o in &e.overrides {
        text.push_str(&format!("  overrides {} from {}\n", o.value, o.origin));
    }
    if e.pending {
        text.push_str("  not in force yet: checked and stored\n");
    }
    if !e.members.is_empty() {
        text.push_str(&format!(" {}", of_members(e)));
    }
    text
}

/// What is in force for members of the pool instead, a line for those that say the same.
fn of_members(e: &Explained) -> String {
    let mut alike: Vec<(&explain::Said, Vec<&str>)> = Vec::new();
    for m in &e.members {
        match alike.iter_mut().find(|(said, _)| **said == m.said) {
            Some((_, names)) => names.push(&m.virtual_mta),
            None => alike.push((&m.said, vec![&m.virtual_mta])),
        }
    }
    let lines = alike.into_iter().map(|(said, names)| {
        let who = if names.len() > 3 { format!("{} members", names.len()) } else { names.join(", ") };
        format!(" is {} for {who}: {}\n", said.value, said.origin)
    });
    lines.collect()
}

/// `config diff`: a file against another, or against what is in force.
///
/// # Errors
/// [`Failure`]
pub fn diff(target: &Target, new: &Path, old: Option<&Path>, as_json: bool) -> Result<(), Failure> {
    let Some(old) = old else {
        // Read here, with the rights of whoever asks.
        return act(target, Request::Diff { files: crate::config::given_files(new)?, json: as_json });
    };
    let (old, new) = (crate::config::snapshot_of(old)?, crate::config::snapshot_of(new)?);
    let changes = diff::diff(old.get(), new.get());
    if as_json {
        return json(&changes);
    }
    print(format!("{}\n", diff::as_text(&changes)).as_bytes())
}

/// `inject`
///
/// # Errors
/// [`Failure`]
pub fn inject(
    target: &Target,
    sender: String,
    recipients: Vec<String>,
    vmta: String,
    file: &Path,
) -> Result<(), Failure> {
    let Answer::Socket(socket) = ask(target, &Request::InjectSocket)? else { return Err(unexpected()) };
    let mut message = Vec::new();
    let read = if file == Path::new("-") {
        std::io::stdin().read_to_end(&mut message)
    } else {
        std::fs::File::open(file).and_then(|mut f| f.read_to_end(&mut message))
    };
    read.map_err(|e| Failure::Failed(format!("cannot read {}: {e}", file.display())))?;
    let message = with_crlf(&message);
    let request = mesh::Inject { sender, recipients, vmta };
    let mut worker = Conversation::at(Path::new(&socket))?;
    worker.send(mesh::HELLO, &archive(&mesh::Hello { shard: None, epoch: 0 }), &[])?;
    worker.send(mesh::INJECT, &archive(&request), &message)?;
    let f = worker.frame()?;
    match unarchive::<mesh::Injected>(mesh::INJECTED, &f.archive).map_err(|e| Failure::Failed(e.to_string()))? {
        mesh::Injected::Queued(id) => print(format!("{id}\n").as_bytes()),
        mesh::Injected::Refused(why) => Err(Failure::Failed(why)),
    }
}

/// Text files end lines in LF; messages in CR LF.
fn with_crlf(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + text.len() / 40);
    for line in text.split_inclusive(|b| *b == b'\n') {
        let bare = line.strip_suffix(b"\n").map(|l| l.strip_suffix(b"\r").unwrap_or(l)).unwrap_or(line);
        out.extend_from_slice(bare);
        out.extend_from_slice(b"\r\n");
    }
    out
}
