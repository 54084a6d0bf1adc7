//! What outcomes do to recipients: reports, accounting rows, and their records in the spool.

use std::borrow::Cow;
use std::rc::Rc;

use bytes::Bytes;
use ipc::dice::HashMap;
use ipc::message::ArchivedEnvelope;
use ipc::rules::DomainRules;
use spool::layout::UpdateEntry;
use spool::{Outcomes, RecipientState, Settled};

use super::contained::{InHand, contained, hold_after_panic};
use super::delivery_type::Type;
use super::path::{ServedPath, path_of_queue};
use super::session::ClientSession;
use crate::account::field;
use crate::account::file::Shown;
use crate::account::record::{self, Row, stored};
use crate::classify::bounce_category;
use crate::classify::bounce_rules::Rules;
use crate::classify::health;
use crate::classify::outcome::{Failure, Outcome, Stage, Verdict};
use crate::clock;
use crate::connect::tls;
use crate::engine::failures::Judgement;
use crate::holds::{Pieces, Work, doing};
use crate::prepare::content::Content;
use crate::report::recorded::{self, Report};
use crate::report::{copy, dsn};
use crate::route::stored::load;
use crate::schedule::{Batch, Entry, QueueId};
use crate::shard::{Shard, add};
use crate::suppression::refusals;
use crate::tasks::may_panic;

/// So many recipients of a message are concluded at a time; other tasks run between two such pieces.
const CONCLUDED_AT_ONCE: usize = 64;

/// Where an attempt was made, for accounting and reports.
#[derive(Debug, Default)]
pub(super) struct Attempt {
    host: String,
    ip: String,
    local: String,
    extensions: String,
    /// The receiver was told of the sender's wishes for reports (RFC 3461), and sends them itself.
    reports: bool,
    tls: Option<tls::Negotiated>,
    /// When the transaction began, Unix milliseconds; `None` where there was none.
    began_ms: Option<i64>,
    /// What opening the connection took, for its first message.
    connect_ms: Option<u64>,
    /// The message's header as it came, where that is not what went out.
    header: Option<Bytes>,
}

impl Attempt {
    fn of_failure(f: &Failure) -> Attempt {
        Attempt { host: f.host.clone(), ip: f.ip.clone(), ..Default::default() }
    }

    /// A delivery that met no host.
    pub(super) fn without_session(began_ms: i64) -> Attempt {
        Attempt { began_ms: Some(began_ms), ..Default::default() }
    }

    /// A transaction that began then.
    pub(super) fn of_session(s: &mut ClientSession, began_ms: i64, content: &Content) -> Attempt {
        Attempt {
            host: s.host.clone(),
            ip: s.peer.ip().to_string(),
            local: s.local.to_string(),
            extensions: s.extensions.names.clone(),
            reports: s.extensions.dsn,
            tls: s.tls.clone(),
            began_ms: Some(began_ms),
            connect_ms: s.connect_ms.take(),
            header: Some(content.body[0].clone()),
        }
    }
}

/// Records outcomes: reports, states and final records with their accounting rows, as one.
#[allow(clippy::too_many_arguments)]
pub(super) async fn conclude(
    shard: &Rc<Shard>,
    path: &ServedPath,
    batch: &Batch,
    e: &ArchivedEnvelope,
    body: &[Bytes; 2],
    verdicts: Vec<(u16, Verdict)>,
    at: &Attempt,
) {
    may_panic("conclude");
    let heard = verdicts;
    let recorded: Vec<(u16, Verdict)>;
    let verdicts = match path.rules.replace_smtp_421_service_response {
        true => {
            recorded = heard.iter().map(|(r, v)| (*r, v.clone().recorded(&path.rules))).collect();
            &recorded
        }
        false => &heard,
    };
    let (now, key) = (clock::now_ms(), batch.key);
    let before = delay_reports(shard, path, key, e, verdicts).await;
    let due_reports = delay_reports_due(late_since_ms(e), now, &path.rules);
    let is_due = |r| due_reports > before.get(&r).copied().unwrap_or(0);
    let reports = reports(shard, path, e, body, verdicts, at, is_due).await;
    let size = (body[0].len() + body[1].len()) as u64;
    let (mut ended, mut rows, mut retry, mut updates, mut t_rows) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let due = now + path.rules.retry_recipients_after.as_millis() as i64;
    let (mut delivered, mut all_ended) = (0, 0);
    let mut common = Common::default();
    let mut pieces = Pieces::default();
    for (n, (r, v)) in verdicts.iter().enumerate() {
        if n % CONCLUDED_AT_ONCE == CONCLUDED_AT_ONCE - 1 {
            pieces.pause().await;
        }
        let line = doing(Work::Conclude, || accounted(shard, path, batch, e, body, *r, v, at, &mut common));
        tracing::debug!(message = %ipc::message::MessageId(e.id.0), shard = shard.number, queue = path.name, recipient = *r, outcome = ?v.outcome, status = v.status, "attempt");
        if v.outcome == Outcome::Deferred {
            retry.push(*r);
            let reported = before.get(r).map_or(0, |n| due_reports.max(*n));
            let attempts = batch.attempts.saturating_add(1);
            let state = RecipientState {
                due_unix_ms: due,
                delay_reports: reported,
                attempts,
                last_reply: v.diagnostic.clone(),
            };
            updates.push(UpdateEntry { key, recipient: *r, state });
            t_rows.extend(line);
        } else {
            let times = e.recipients.get(usize::from(*r)).map_or(1, |to| to.times_given()) as u64;
            delivered += if v.outcome == Outcome::Delivered { times } else { 0 };
            all_ended += times;
            ended.push(*r);
            rows.extend(line);
        }
    }
    let c = &shard.counters;
    add(&c.delivered, [delivered, u64::from(delivered > 0), if delivered > 0 { size } else { 0 }]);
    c.bounced.set(c.bounced.get() + all_ended - delivered);
    c.deferred.set(c.deferred.get() + retry.len() as u64);
    let change = judge(shard, path, &heard, at, delivered);
    if let Some(change) = change {
        shard.decide(|e, now| e.mode_changed(path.id, change, "backoff-to-normal-after-delivery", now));
    }
    let waits = !retry.is_empty();
    if waits {
        shard.decide(|e, _| e.retry(batch, &retry, due));
        path.is_done_with(&retry);
    }
    let settled = (!ended.is_empty()).then(|| {
        path.is_done_with(&ended);
        let last = shard.decide(|e, _| e.settle(batch.queue, batch.slot, key, ended.len()));
        Settled { key, recipients: ended, last, rows }
    });
    if waits || settled.is_some() {
        let outcomes = Outcomes { settled, entries: updates, rows: t_rows, ..Default::default() };
        recorded::record(shard, outcomes, reports);
    }
    if waits {
        // The rest of this queue was rerouted while these recipients were in flight: they are sent the same way.
        shard.decide(|e, now| e.reroute(batch.queue, now));
    }
}

/// The parts of accounting rows that all recipients of one message share. They are made once, however many recipients there are.
#[derive(Default)]
pub(super) struct Common<'v> {
    /// Headers that files show in records of a type.
    headers: Option<(u8, Vec<(String, String)>)>,
    /// The last verdict that was classified, and its category: the next is often the same.
    category: Option<(&'v Verdict, String)>,
}

impl<'v> Common<'v> {
    fn headers(&mut self, shown: &Shown, kind: u8, content: &[u8]) -> Vec<(String, String)> {
        match &self.headers {
            Some((k, headers)) if *k == kind => headers.clone(),
            _ => self.headers.insert((kind, shown.headers_of(kind, content))).1.clone(),
        }
    }

    fn category(&mut self, rules: &Rules, v: &'v Verdict) -> String {
        match &self.category {
            Some((last, category)) if *last == v => category.clone(),
            _ => self.category.insert((v, bounce_category::of(rules, v).to_owned())).1.clone(),
        }
    }
}

/// The row of an outcome, if some file takes it.
#[allow(clippy::too_many_arguments)]
pub(super) fn accounted<'v>(
    shard: &Shard,
    path: &ServedPath,
    batch: &Batch,
    e: &ArchivedEnvelope,
    body: &[Bytes; 2],
    recipient: u16,
    v: &'v Verdict,
    at: &Attempt,
    common: &mut Common<'v>,
) -> Option<Vec<u8>> {
    let kind = match v.outcome {
        Outcome::Delivered => b'd',
        Outcome::Bounced => b'b',
        Outcome::Deferred => b't',
    };
    let shown = shard.accounting.borrow();
    if !is_accounted(&shown, path, kind) {
        return None;
    }
    let config = shard.config();
    let category = if kind == b'd' { String::new() } else { common.category(config.bounce_rules(), v) };
    let (now, size) = (clock::now_ms(), (body[0].len() + body[1].len()) as u64);
    let mut row = row(kind, path, e, recipient, v, &category, at, now, size);
    if shown.own {
        set_own(&mut row, shard.number, e, batch, at, now);
    }
    row.headers = common.headers(&shown, kind, at.header.as_ref().unwrap_or(&body[0]));
    Some(row.encode())
}

/// Bounces the suppressed recipients of a batch, and answers the rest of it; `None` where nothing is left.
pub(super) async fn without_suppressed(
    shard: &Rc<Shard>,
    path: &ServedPath,
    mut batch: Batch,
    e: &ArchivedEnvelope,
    body: &[Bytes; 2],
) -> Option<Batch> {
    let refused = refusals::refused(shard, e, &path.vmta_name, path.pool.as_deref(), &batch.recipients);
    if refused.is_empty() {
        return Some(batch);
    }
    // The receiver never sees these recipients, so they use up none of its rate.
    shard.decide(|e, now| e.not_attempted(path.id, path.source, refused.len() as u64, now));
    path.rates().not_attempted(&shard.ledger, refused.len() as u64);
    batch.recipients.retain(|r| !refused.iter().any(|(out, _)| out == r));
    conclude(shard, path, &batch, e, body, refused, &Attempt::default()).await;
    (!batch.recipients.is_empty()).then_some(batch)
}

/// What an attempt says of the path.
fn judge(
    shard: &Shard,
    path: &ServedPath,
    verdicts: &[(u16, Verdict)],
    at: &Attempt,
    delivered: u64,
) -> Option<crate::schedule::path::ModeChange> {
    // Where no host was asked the verdicts are this server's own and say nothing of the path.
    if verdicts.iter().all(|(_, v)| matches!(v.stage, Stage::Suppressed | Stage::Unasked)) {
        return None;
    }
    let failure = verdicts
        .iter()
        .rev()
        .find(|(_, v)| v.outcome != Outcome::Delivered)
        .map(|(_, v)| Rc::new(Failure::at(v.clone(), &at.host, &at.ip).recorded(&path.rules)));
    let speaks_ill = || health::speak_ill(shard.config().bounce_rules(), verdicts.iter().map(|(_, v)| v));
    let judgement = Judgement { failure, delivered: delivered > 0, speaks_ill: delivered == 0 && speaks_ill() };
    shard.decide(|e, now| e.judge(path.id, path.queue, judgement, now))
}

/// The reports that the sender asked for, each of so many recipients at most, and the copy for `bcc-upon-delivery`.
pub(super) async fn reports(
    shard: &Rc<Shard>,
    path: &ServedPath,
    e: &ArchivedEnvelope,
    body: &[Bytes; 2],
    verdicts: &[(u16, Verdict)],
    at: &Attempt,
    delay_is_due: impl Fn(u16) -> bool,
) -> Vec<Report> {
    let mut reports = Vec::new();
    for outcome in [Outcome::Bounced, Outcome::Deferred, Outcome::Delivered] {
        let action = match outcome {
            Outcome::Bounced => "failed",
            Outcome::Deferred => "delayed",
            Outcome::Delivered => "relayed",
        };
        // A receiver that supports DSN reports success itself.
        if outcome == Outcome::Delivered && at.reports && !path.rules.ignore_dsn {
            continue;
        }
        let parts: Vec<dsn::Part> = verdicts
            .iter()
            .filter(|(r, v)| v.outcome == outcome && dsn::wanted(e, *r, &outcome))
            .filter(|(r, _)| outcome != Outcome::Deferred || delay_is_due(*r))
            .map(|(r, v)| dsn::Part { recipient: *r, verdict: v.clone(), action, remote: at.host.clone() })
            .collect();
        // A report to a sender that names its recipient is about that one.
        let most = if e.is_verp() { 1 } else { dsn::RECIPIENTS_MAX };
        for some in parts.chunks(most) {
            reports.extend(doing(Work::Report, || dsn::about(shard, e, some, body)));
            if parts.len() > most {
                tokio::task::yield_now().await;
            }
        }
    }
    let delivered = verdicts.iter().any(|(_, v)| v.outcome == Outcome::Delivered);
    if delivered && !path.rules.bcc_upon_delivery.is_empty() {
        reports.extend(doing(Work::Report, || copy::of(shard, e, &path.rules.bcc_upon_delivery, body)));
    }
    reports
}

/// Delay reports sent so far, for the deferred recipients whose sender wants them.
async fn delay_reports(
    shard: &Rc<Shard>,
    path: &ServedPath,
    key: u64,
    e: &ArchivedEnvelope,
    verdicts: &[(u16, Verdict)],
) -> HashMap<u16, u8> {
    let mut all = HashMap::default();
    if path.rules.notify_of_delay_every.is_zero() {
        return all;
    }
    for (r, v) in verdicts {
        if v.outcome == Outcome::Deferred && dsn::wanted(e, *r, &v.outcome) {
            let state = shard.spool.state(key, *r).await.ok().flatten();
            all.insert(*r, state.map_or(0, |s| s.delay_reports));
        }
    }
    all
}

/// From when on mail is late: it was accepted, and its first window has opened. Queue time, milliseconds.
fn late_since_ms(e: &ArchivedEnvelope) -> i64 {
    e.received_unix_ms.to_native().max(e.windows().map_or(0, |w| w.due_ms))
}

/// Delay reports that are due by now: one each time `notify-of-delay-every` has passed.
fn delay_reports_due(received: i64, now: i64, rules: &DomainRules) -> u8 {
    let every = rules.notify_of_delay_every.as_millis().clamp(1, i64::MAX as u128) as i64;
    ((now - received).max(0) / every).min(i64::from(u8::MAX)) as u8
}

#[allow(clippy::too_many_arguments)]
fn row(
    kind: u8,
    path: &ServedPath,
    e: &ArchivedEnvelope,
    r: u16,
    v: &Verdict,
    category: &str,
    at: &Attempt,
    now: i64,
    size: u64,
) -> Row {
    let rcpt = e.recipients.get(usize::from(r));
    let mta = if at.host.is_empty() { String::new() } else { format!("{} ({})", at.host, at.ip) };
    let mut row = Row {
        kind,
        logged_ms: clock::wall_ms(now),
        queued_ms: clock::wall_ms(e.received_unix_ms.to_native()),
        ..Default::default()
    };
    let sender = rcpt.map_or(Cow::Borrowed(e.sender.as_str()), |r| e.sender_to(&r.address));
    row.set(const { stored("orig") }, sender.as_ref());
    if let Some(r) = rcpt {
        row.set(const { stored("rcpt") }, r.address.as_str());
        row.set(const { stored("orcpt") }, r.orcpt.as_str());
        if kind != b't' {
            row.times = r.times_given();
        }
    }
    let action = match kind {
        b'd' => "relayed",
        b'b' => "failed",
        _ => "delayed",
    };
    row.set(const { stored("dsnAction") }, action);
    set_verdict(&mut row, v);
    row.set(const { stored("dsnMta") }, mta);
    row.set(const { stored("bounceCat") }, category);
    row.set(const { stored("srcType") }, record::source_type(&e.source_type));
    row.set(const { stored("srcMta") }, record::source_mta(e));
    row.set(const { stored("rcvSmtpUser") }, e.smtp_user());
    row.set(const { stored("dlvType") }, Type::of(path.rules.delivery_type).name());
    row.set(const { stored("dlvSourceIp") }, at.local.as_str());
    row.set(const { stored("dlvDestinationIp") }, at.ip.as_str());
    row.set(const { stored("dlvEsmtpAvailable") }, at.extensions.as_str());
    if kind == b'd' {
        row.set(const { stored("dlvSize") }, size.to_string());
    }
    row.set(const { stored("vmta") }, path.vmta_name.as_ref());
    row.set(const { stored("jobId") }, e.job_id.as_str());
    row.set(const { stored("envId") }, e.envid.as_str());
    row.set(const { stored("queue") }, path.name.as_str());
    row.set(const { stored("vmtaPool") }, path.pool.as_deref().unwrap_or_default());
    if let Some(t) = &at.tls {
        row.set(const { stored("dlvTlsProtocol") }, t.version.as_str());
        row.set(const { stored("dlvTlsCipher") }, t.cipher.as_str());
        row.set(const { stored("dlvTlsVerified") }, t.verified);
        row.set(const { stored("dlvTlsPolicy") }, t.policy);
    }
    row
}

/// Status and reply.
fn set_verdict(row: &mut Row, v: &Verdict) {
    row.set(const { stored("dsnStatus") }, format!("{} ({})", v.status, bounce_category::words(&v.status, v.remote)));
    let reply = if v.remote { format!("smtp;{}", v.diagnostic) } else { v.diagnostic.clone() };
    row.set(const { stored("dsnDiag") }, reply);
}

/// Our own fields: which message it was, and how long each stage of its way took.
fn set_own(row: &mut Row, shard: u8, e: &ArchivedEnvelope, batch: &Batch, at: &Attempt, now: i64) {
    row.set(const { stored("messageId") }, ipc::message::MessageId(e.id.0).to_string());
    row.set(const { stored("shard") }, shard.to_string());
    let made = batch.attempts.saturating_add(u8::from(at.began_ms.is_some()));
    row.set(const { stored("attempt") }, made.to_string());
    if let Some(began) = at.began_ms {
        row.set(const { stored("msQueued") }, (began - e.received_unix_ms.to_native()).max(0).to_string());
        row.set(const { stored("msTransaction") }, (now - began).max(0).to_string());
    }
    if let Some(ms) = at.connect_ms {
        row.set(const { stored("msConnect") }, ms.to_string());
    }
}

/// Records of this type are written for the path's queue, and some file takes them.
fn is_accounted(shown: &Shown, path: &ServedPath, kind: u8) -> bool {
    shown.takes(kind) && !path.rules.disable_acct_records.iter().any(|k| k == field::name_of(kind))
}

/// The `tq` row of a failure that was no message's.
pub(super) fn account_for_queue(shard: &Shard, path: &ServedPath, f: &Failure) {
    let shown = shard.accounting.borrow().clone();
    if !is_accounted(&shown, path, b'q') {
        return;
    }
    let mut row = Row { kind: b'q', logged_ms: clock::wall_ms(clock::now_ms()), ..Default::default() };
    set_verdict(&mut row, &f.verdict);
    if !f.host.is_empty() {
        row.set(const { stored("dsnMta") }, format!("{} ({})", f.host, f.ip));
    }
    row.set(const { stored("dlvType") }, Type::of(path.rules.delivery_type).name());
    row.set(const { stored("dlvSourceIp") }, path.source.map(|ip| ip.to_string()).unwrap_or_default());
    row.set(const { stored("dlvDestinationIp") }, f.ip.as_str());
    row.set(const { stored("vmta") }, path.vmta_name.as_ref());
    row.set(const { stored("queue") }, path.name.as_str());
    row.set(const { stored("shard") }, shard.number.to_string());
    shard.spool.update(Vec::new(), vec![row.encode()]);
}

/// Bounces recipients that were accepted only for that, as they come, as long as the shard lives.
pub async fn bounce_all_refused(shard: Rc<Shard>) {
    loop {
        let (id, entry) = shard.refused.next().await;
        let shard = Rc::clone(&shard);
        crate::tasks::begin("refusal", move || bounce_refused(shard, id, entry));
    }
}

/// Bounces recipients that were accepted only for that; none of them waits in the queue.
async fn bounce_refused(shard: Rc<Shard>, id: QueueId, entry: Entry) {
    let mut one = InHand::new(&shard, id, [entry]);
    let (Some(path), Some(entry)) = (path_of_queue(&shard, id), one.next()) else { return };
    let Some((key, content)) = content_of(&shard, &path, &entry).await else { return };
    let Ok(e) = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&content.envelope) else { return };
    let all: Vec<u16> = (entry.start..entry.end).collect();
    let mut pieces = Pieces::default();
    let mut verdicts = Vec::new();
    for some in all.chunks(16 * CONCLUDED_AT_ONCE) {
        verdicts.extend(refusals::refused(&shard, e, &path.vmta_name, path.pool.as_deref(), some));
        pieces.pause().await;
    }
    let batch = Batch::of(id, key, entry);
    conclude_alone(&shard, &path, batch, e, &content.body, verdicts, &Attempt::default()).await;
}

/// Bounces everything that waits in a queue.
pub(super) async fn bounce_queue(shard: &Rc<Shard>, path: &ServedPath, id: QueueId, f: &Failure) {
    let waiting = shard.decide(|e, _| e.drain(id));
    let at = Attempt::of_failure(f);
    let mut waiting = InHand::new(shard, id, waiting.into_iter().map(|(entry, _)| entry));
    while let Some(entry) = waiting.next() {
        let Some((key, content)) = content_of(shard, path, &entry).await else { continue };
        let Ok(e) = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&content.envelope) else { continue };
        let verdicts = (entry.start..entry.end).map(|r| (r, f.verdict.clone())).collect();
        conclude_alone(shard, path, Batch::of(id, key, entry), e, &content.body, verdicts, &at).await;
    }
}

/// [`conclude`] for one of many: when it panics the others go on.
async fn conclude_alone(
    shard: &Rc<Shard>,
    path: &ServedPath,
    batch: Batch,
    e: &ArchivedEnvelope,
    body: &[Bytes; 2],
    verdicts: Vec<(u16, Verdict)>,
    at: &Attempt,
) {
    path.takes_in_hand();
    if contained(std::pin::pin!(conclude(shard, path, &batch, e, body, verdicts, at))).await.is_none() {
        hold_after_panic(shard, path, &batch);
    }
}

/// Ends recipients that are older than `bounce-after`, or for whom no window is left, with the last reply as their reason.
pub async fn expire(shard: Rc<Shard>, id: QueueId, entries: Vec<Entry>) {
    let mut entries = InHand::new(&shard, id, entries);
    let Some(path) = path_of_queue(&shard, id) else { return };
    let never = |within| Rc::new(Failure::own("5.4.7", format!("no attempt was made within {within}")));
    let of_queue = shard.scheduler().queues.get(id).and_then(|q| q.last_failure.clone());
    while let Some(entry) = entries.next() {
        // A recipient that was never attempted gets no reply as its reason that the receiver gave about others.
        let of_all = |f: &Rc<Failure>| !f.verdict.remote || f.verdict.stage == Stage::Session;
        let has_windows = shard.scheduler().messages.get(entry.slot as usize).is_some_and(|m| m.windows_end_s != 0);
        let within = if has_windows { "the windows of its x-schedule" } else { "bounce-after" };
        let failure = of_queue.clone().filter(|f| entry.attempts > 0 || of_all(f)).unwrap_or_else(|| never(within));
        let Some((key, content)) = content_of(&shard, &path, &entry).await else { continue };
        let Ok(e) = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&content.envelope) else { continue };
        let now_ms = clock::now_ms();
        let wall_s = clock::wall_ms(now_ms).div_euclid(1000);
        if let Some(next_s) = e.windows().and_then(|w| w.next(wall_s)) {
            // The machine's clock was set back: a window is left by it.
            let batch = Batch::of(id, key, entry);
            let due = now_ms + (next_s - wall_s) * 1000;
            shard.decide(|e, _| e.hold(&batch, &batch.recipients, due, batch.attempts));
            continue;
        }
        let mut verdicts = Vec::new();
        let mut at = Attempt::of_failure(&failure);
        for r in entry.start..entry.end {
            let last = shard.spool.state(key, r).await.ok().flatten().map(|s| s.last_reply).unwrap_or_default();
            // The spool keeps the beginning of the recipient's own reply; the path's last one
            // is whole and names its host.
            let v = if failure.verdict.diagnostic.starts_with(&last) {
                Verdict { outcome: Outcome::Bounced, status: "5.4.7".into(), ..failure.verdict.clone() }
            } else {
                at = Attempt::default();
                let (status, stage) = ("5.4.7".into(), failure.verdict.stage);
                Verdict { outcome: Outcome::Bounced, status, code: 0, stage, ..Failure::recalled(&last).verdict }
            };
            verdicts.push((r, v));
        }
        conclude_alone(&shard, &path, Batch::of(id, key, entry), e, &content.body, verdicts, &at).await;
    }
}

/// Reports the delay of recipients that have waited for `notify-of-delay-every`, whether or
/// not they were attempted: a queue whose connections all fail attempts none.
pub async fn report_delays(shard: Rc<Shard>, id: QueueId, entries: Vec<(Entry, i64)>) {
    let Some(path) = path_of_queue(&shard, id) else { return };
    let waits = || Rc::new(Failure::own("4.4.7", "it waits for its turn"));
    let failure = shard.scheduler().queues.get(id).and_then(|q| q.last_failure.clone()).unwrap_or_else(waits);
    // A path may go on in spite of a 5yz, as with bounce-upon-5xx-greeting no.
    let status = failure
        .verdict
        .status
        .strip_prefix('5')
        .map_or_else(|| failure.verdict.status.clone(), |rest| format!("4{rest}"));
    let v = Verdict { outcome: Outcome::Deferred, status, ..failure.verdict.clone() };
    for (entry, due) in entries {
        let Some(key) = shard.scheduler().messages.get(entry.slot as usize).map(|m| m.key) else { continue };
        let Ok(content) = load(&shard, entry.slot, key).await else { continue };
        let Ok(e) = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&content.envelope) else { continue };
        let due_reports = delay_reports_due(late_since_ms(e), clock::now_ms(), &path.rules);
        let (mut verdicts, mut updates) = (Vec::new(), Vec::new());
        for r in (entry.start..entry.end).filter(|r| dsn::wanted(e, *r, &v.outcome)) {
            let state = shard.spool.state(key, r).await.ok().flatten().unwrap_or_default();
            if state.delay_reports < due_reports {
                verdicts.push((r, v.clone()));
                let state = RecipientState { due_unix_ms: due, delay_reports: due_reports, ..state };
                updates.push(UpdateEntry { key, recipient: r, state });
            }
        }
        let waits_still = shard.scheduler().message(entry.slot, key).is_some();
        if waits_still && !updates.is_empty() {
            let at = Attempt::of_failure(&failure);
            let reports = reports(&shard, &path, e, &content.body, &verdicts, &at, |_| true).await;
            recorded::record(&shard, Outcomes { entries: updates, ..Default::default() }, reports);
        }
    }
}

/// A waiting entry's message; `None`, and noted, when it cannot be read.
async fn content_of(shard: &Rc<Shard>, path: &ServedPath, entry: &Entry) -> Option<(u64, Rc<Content>)> {
    may_panic("in hand");
    let key = shard.scheduler().messages.get(entry.slot as usize).map(|m| m.key)?;
    match load(shard, entry.slot, key).await {
        Ok(c) => Some((key, c)),
        Err(e) => {
            unreadable(shard, path, &Batch::of(path.queue, key, *entry), &e);
            None
        }
    }
}

pub(super) fn unreadable(shard: &Rc<Shard>, path: &ServedPath, batch: &Batch, e: &spool::SpoolError) {
    tracing::error!(key = batch.key, queue = path.name, error = %e, "message cannot be read for delivery");
    set_aside(shard, batch, e);
}

/// The same of a message that was to be handed to another shard.
pub(crate) fn unreadable_in(shard: &Rc<Shard>, batch: &Batch, e: &spool::SpoolError) {
    tracing::error!(key = batch.key, error = %e, "message cannot be read to be handed over");
    set_aside(shard, batch, e);
}

fn set_aside(shard: &Rc<Shard>, batch: &Batch, e: &spool::SpoolError) {
    shard.decide(|engine, now| {
        if matches!(e, spool::SpoolError::Unreadable { .. }) {
            // The message is in quarantine, which operators look after; the queue goes on without it.
            engine.settle(batch.queue, batch.slot, batch.key, batch.recipients.len());
        } else {
            engine.hold(batch, &batch.recipients, now.ms() + 60_000, batch.attempts);
        }
    });
}
