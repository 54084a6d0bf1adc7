//! Mail that may be delivered at some times only (`x-schedule`), by the machine's clock.

use std::rc::Rc;

use ipc::message::ArchivedEnvelope;

use super::conclusion::expire;
use super::path::ServedPath;
use crate::clock;
use crate::schedule::Batch;
use crate::shard::Shard;
use crate::tasks;

/// Gives a batch back while a window is open. Else its recipients wait for the next one, or end where there is none, and nothing is left of it.
pub(super) fn within_windows(
    shard: &Rc<Shard>,
    path: &ServedPath,
    batch: Batch,
    e: &ArchivedEnvelope,
) -> Option<Batch> {
    let Some(windows) = e.windows() else { return Some(batch) };
    let now_ms = clock::now_ms();
    let now_s = clock::wall_ms(now_ms).div_euclid(1000);
    let next = windows.next(now_s);
    if next == Some(now_s) {
        return Some(batch);
    }
    let (recipients, count) = (&batch.recipients, batch.recipients.len() as u64);
    shard.decide(|e, now| e.not_attempted(path.id, path.source, count, now));
    path.rates().not_attempted(&shard.ledger, count);
    path.is_done_with(recipients);
    match next {
        Some(at_s) => {
            let due = now_ms + (at_s - now_s) * 1000;
            shard.decide(|e, _| e.hold(&batch, recipients, due, batch.attempts));
        }
        None => {
            let (shard, entries, queue) = (Rc::clone(shard), batch.entries(recipients), batch.queue);
            tasks::begin("expiry", move || expire(shard, queue, entries));
        }
    }
    None
}
