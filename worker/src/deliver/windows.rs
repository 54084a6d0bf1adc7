//! Mail that may be delivered at some times only (`x-schedule`), by the machine's clock.

use std::collections::BTreeMap;
use std::rc::Rc;

use ipc::message::ArchivedEnvelope;

use super::conclusion::expire;
use super::path::ServedPath;
use crate::clock;
use crate::schedule::Batch;
use crate::shard::Shard;
use crate::tasks;

/// Leaves in a batch those recipients that a window is open for; `None` where none is left. The others wait for their next window, or end where
/// there is none.
pub(super) fn within_windows(
    shard: &Rc<Shard>,
    path: &ServedPath,
    mut batch: Batch,
    e: &ArchivedEnvelope,
) -> Option<Batch> {
    let now_ms = clock::now_ms();
    let now_s = clock::wall_ms(now_ms).div_euclid(1000);
    let mut later: BTreeMap<Option<i64>, Vec<u16>> = BTreeMap::new();
    batch.recipients.retain(|r| {
        let windows = e.recipients.get(usize::from(*r)).and_then(|r| r.windows());
        let next = windows.map_or(Some(now_s), |w| w.next(now_s));
        let is_open = next == Some(now_s);
        if !is_open {
            later.entry(next).or_default().push(*r);
        }
        is_open
    });
    for (next, recipients) in later {
        let count = recipients.len() as u64;
        shard.decide(|e, now| e.not_attempted(path.id, path.source, count, now));
        path.rates().not_attempted(&shard.ledger, count);
        path.is_done_with(&recipients);
        match next {
            Some(at_s) => {
                let due = now_ms + (at_s - now_s) * 1000;
                shard.decide(|e, _| e.hold(&batch, &recipients, due, batch.attempts));
            }
            None => {
                let (shard, entries, queue) = (Rc::clone(shard), batch.entries(&recipients), batch.queue);
                tasks::begin("expiry", move || expire(shard, queue, entries));
            }
        }
    }
    (!batch.recipients.is_empty()).then_some(batch)
}
