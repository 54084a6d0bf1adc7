//! Orders about queues: every shard carries them out, and the operator hears what they changed. One that changed nothing
//! and means nothing to come has failed.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::rc::Rc;

use ipc::control::{Rows, RowsOf};
use ipc::queue_orders::{QueueAction, QueueOrder, QueuePattern};
use ipc::snapshot::Snapshot;

use crate::config::nearest::perhaps;
use crate::state::Supervisor;

/// Names that an answer shows.
const SHOWN_MAX: usize = 20;

/// What came of an order in all shards.
#[derive(Default)]
struct Came {
    matched: u64,
    changed: u64,
    names: BTreeSet<String>,
    kept: bool,
}

/// Has an order of a user carried out by every shard, and says what came of it.
///
/// # Errors
/// A sentence when it means nothing, or not every shard has it.
pub async fn ordered(sup: &Rc<Supervisor>, order: QueueOrder, by: String) -> Result<String, String> {
    if let QueueAction::DisableSource { ip, .. } = &order.action {
        check_source(&sup.compiled.borrow().snapshot, ip, &order.of)?;
    }
    let _ordering = sup.ordering.read().await;
    let shards = sup.slots.borrow().len();
    let (mut came, mut answered) = (Came::default(), 0);
    for rows in sup.ask_workers(RowsOf::Ordered { order: order.clone(), by }).await {
        match rows {
            Rows::Done { matched, changed, names, kept } => {
                (came.matched, came.changed, answered) = (came.matched + matched, came.changed + changed, answered + 1);
                came.names.extend(names);
                came.kept |= kept;
            }
            Rows::Refused(e) => return Err(e),
            _ => {}
        }
    }
    if answered < shards {
        return Err(format!("{} of {shards} shards did not answer: give the order again", shards - answered));
    }
    if came.matched == 0 {
        check_via(&sup.compiled.borrow().snapshot, &order.of.via)?;
    }
    said(&order, &came)
}

/// The answer to an operator.
fn said(order: &QueueOrder, came: &Came) -> Result<String, String> {
    let (of, matched, changed) = (&order.of, came.matched, came.changed);
    let queues = if matched == 1 { "1 queue match".into() } else { format!("{matched} queues match") };
    let nothing = matched == 0;
    let text = match &order.action {
        QueueAction::Pause(true) if nothing && came.kept => {
            format!("0 queues match now; mail that comes for {of} is paused.")
        }
        QueueAction::Pause(true) if nothing => {
            format!("0 queues match now; mail that comes for {of} is paused already.")
        }
        QueueAction::Pause(true) => format!("Queue(s) paused. {queues} now."),
        QueueAction::Pause(false) if nothing && came.kept => {
            format!("0 queues match now; mail that comes for {of} is not paused any more.")
        }
        QueueAction::Pause(false) if nothing => return Err(format!("0 queues match {of}, and none to come is paused")),
        QueueAction::Pause(false) => format!("Queue(s) resumed. {queues} now."),
        QueueAction::Schedule { .. } if nothing => {
            return Err(format!("0 of 0 matching queues scheduled: no mail waits in {of}"));
        }
        QueueAction::Schedule { .. } => format!("{changed} of {matched} matching queues scheduled."),
        QueueAction::Mode(backoff) => {
            let mode = if *backoff { "backoff" } else { "normal" };
            if nothing {
                return Err(format!("0 of 0 matching paths set to {mode} mode: {of} has no mail and no connections"));
            }
            format!("{changed} of {matched} matching paths set to {mode} mode.")
        }
        QueueAction::DisableSource { ip, .. } => {
            format!("Source {ip} disabled at {changed} of {matched} matching paths, and at those to come.")
        }
        QueueAction::EnableSource { ip } if nothing && !came.kept => {
            return Err(format!("Source {ip} enabled at 0 of 0 matching paths: it is disabled nowhere in {of}"));
        }
        QueueAction::EnableSource { ip } => format!("Source {ip} enabled at {changed} of {matched} matching paths."),
    };
    let mut text = came.names.iter().take(SHOWN_MAX).fold(text, |text, name| format!("{text}\n  {name}"));
    let more = changed.saturating_sub(came.names.len().min(SHOWN_MAX) as u64);
    if more > 0 && !came.names.is_empty() {
        text.push_str(&format!("\n  and {more} more"));
    }
    Ok(text)
}

/// Virtual MTAs and pools, as configured.
fn names(snapshot: &Snapshot) -> impl Iterator<Item = &str> {
    snapshot.vmtas.iter().map(|v| v.name.as_str()).chain(snapshot.pools.iter().map(|p| p.name.as_str()))
}

/// A virtual MTA or pool, or `*`.
///
/// # Errors
/// A sentence when it is none, with the name that was probably meant.
pub fn check_via(snapshot: &Snapshot, via: &str) -> Result<(), String> {
    let is_name = snapshot.vmta_by_name.contains_key(via) || snapshot.pool_by_name.contains_key(via);
    if via == "*" || is_name {
        return Ok(());
    }
    let near = perhaps(via, names(snapshot));
    Err(format!("there is no virtual MTA or pool {via}{near}"))
}

/// Checks that a source address is one of a virtual MTA whose mail an order may mean.
fn check_source(snapshot: &Snapshot, ip: &str, of: &QueuePattern) -> Result<(), String> {
    let Ok(wanted) = ip.parse::<IpAddr>() else { return Err(format!("expected an IP address, found {ip:?}")) };
    let has = |v: &usize| {
        let hosts = snapshot.vmtas.get(*v).map_or(&[][..], |v| &v.source_hosts);
        hosts.iter().any(|h| h.ip.parse() == Ok(wanted))
    };
    if !(0..snapshot.vmtas.len()).any(|v| has(&v)) {
        let all = snapshot.vmtas.iter().flat_map(|v| &v.source_hosts).map(|h| h.ip.as_str());
        let near = perhaps(ip, all);
        return Err(format!("0 paths match: no virtual MTA has the source address {ip}{near}"));
    }
    check_via(snapshot, &of.via)?;
    let own = snapshot.vmta_by_name.get(&of.via).map(|i| *i as usize);
    let members = snapshot.pool_by_name.get(&of.via).and_then(|i| snapshot.pools.get(*i as usize));
    let members = members.into_iter().flat_map(|p| &p.members).map(|m| m.vmta as usize);
    // Its mail may be sent on to another that has the address.
    let key = ipc::rules::DomainKey::RerouteToVirtualMta as u16;
    let backoff = ipc::rules::DomainKey::BackoffRerouteToVirtualMta as u16;
    let is_sent_on = snapshot.layers.texts(key).chain(snapshot.layers.texts(backoff)).any(|t| !t.is_empty());
    if of.via == "*" || is_sent_on || own.into_iter().chain(members).any(|v| has(&v)) {
        return Ok(());
    }
    Err(format!("0 paths match: {} does not have the source address {ip}", of.via))
}
