//! `sluice reroute`: mail that waits gets another virtual MTA or pool, in every shard, a part at a time.

use std::collections::BTreeMap;
use std::rc::Rc;

use ipc::control::{RerouteOrder, Rows, RowsOf};

use super::orders::check_via;
use crate::state::Supervisor;

/// Pairs of queues that an answer shows.
const SHOWN_MAX: usize = 20;

/// What moved in all shards so far.
#[derive(Default)]
struct So {
    moves: BTreeMap<(String, String), u64>,
    stays: u64,
    in_delivery: u64,
}

/// Moves mail, and says what became of it.
///
/// # Errors
/// A sentence when there is nothing to move, or not all of it was moved.
pub async fn rerouted(sup: &Rc<Supervisor>, order: RerouteOrder) -> Result<String, String> {
    let order = RerouteOrder { to: order.to.to_lowercase(), ..order };
    {
        let compiled = sup.compiled.borrow();
        if order.to == "*" {
            return Err("expected a virtual MTA or pool behind --to, found *".into());
        }
        check_via(&compiled.snapshot, &order.to)?;
    }
    let shards: Vec<u8> = sup.slots.borrow().iter().map(|s| s.number).collect();
    let mut so = So::default();
    for shard in shards {
        let mut after = None;
        loop {
            let what = RowsOf::Reroute { order: order.clone(), after };
            match sup.ask_those(|n| n == shard, what).await.pop() {
                Some(Rows::Rerouted(part)) => {
                    part.moves.into_iter().for_each(|m| *so.moves.entry((m.from, m.to)).or_default() += m.recipients);
                    (so.stays, so.in_delivery) = (so.stays + part.stays, so.in_delivery + part.in_delivery);
                    after = part.after;
                }
                Some(Rows::Refused(e)) => return Err(format!("{}; shard {shard}: {e}", moved(&so, false))),
                _ => {
                    let so = moved(&so, false);
                    return Err(format!("{so}; shard {shard} did not answer: give the order again"));
                }
            }
            if after.is_none() {
                break;
            }
        }
    }
    if so.moves.is_empty() && so.stays + so.in_delivery == 0 {
        check_via(&sup.compiled.borrow().snapshot, &order.of.via)?;
        let of = order.job.as_ref().map_or_else(|| order.of.to_string(), |j| format!("job {j} in {}", order.of));
        return Err(format!("0 recipients moved: no mail waits in {of}"));
    }
    let mut text = format!("{}.", moved(&so, order.dry_run));
    for ((from, to), n) in so.moves.iter().take(SHOWN_MAX) {
        text.push_str(&format!("\n  {from} to {to}: {n}"));
    }
    if so.moves.len() > SHOWN_MAX {
        text.push_str(&format!("\n  and between {} more pairs of queues", so.moves.len() - SHOWN_MAX));
    }
    if so.stays > 0 {
        text.push_str(&format!("\n{} in that queue already.", are(so.stays)));
    }
    if so.in_delivery > 0 {
        text.push_str(&format!(
            "\n{} in delivery now and not moved: give the order again for what is deferred.",
            are(so.in_delivery)
        ));
    }
    if !sup.map.borrow().previous.is_empty() {
        text.push_str("\nMail is moving between shards: give the order again when that is over.");
    }
    Ok(text)
}

fn moved(so: &So, dry_run: bool) -> String {
    let n: u64 = so.moves.values().sum();
    let what = if dry_run { "would be moved" } else { "moved" };
    format!("{n} recipient{} {what}", if n == 1 { "" } else { "s" })
}

fn are(n: u64) -> String {
    if n == 1 { "1 recipient is".into() } else { format!("{n} recipients are") }
}
