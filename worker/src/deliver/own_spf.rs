//! `check-spf-outbound`: mail leaves only where its sender's domain says that this server may send it.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use ipc::message::ArchivedEnvelope;
use tokio::time::timeout;

use super::conclusion::{Attempt, conclude};
use super::path::ServedPath;
use crate::classify::outcome::{Stage, Verdict};
use crate::schedule::Batch;
use crate::shard::Shard;
use crate::spf::{self, SpfResult};

/// How long a check may take (RFC 7208 section 4.6.4).
const CHECK_MAX: Duration = Duration::from_secs(20);
/// Answers of DNS without records that receivers put up with (same section).
const VOIDS_MAX: u32 = 2;

/// Gives a batch back if it may go; else its recipients wait, or bounce, and nothing is left of it.
pub(super) async fn allowed_by_spf(
    shard: &Rc<Shard>,
    path: &ServedPath,
    batch: Batch,
    e: &ArchivedEnvelope,
    sender: &str,
    body: &[Bytes; 2],
) -> Option<Batch> {
    if !path.rules.check_spf_outbound {
        return Some(batch);
    }
    let verdict = refusal(shard, path, sender).await;
    let Some(verdict) = verdict else { return Some(batch) };
    // The receiver never sees these recipients, so they use up none of its rate.
    let count = batch.recipients.len() as u64;
    shard.decide(|e, now| e.not_attempted(path.id, path.source, count, now));
    path.rates().not_attempted(&shard.ledger, count);
    let verdicts = batch.recipients.iter().map(|r| (*r, verdict.clone())).collect();
    conclude(shard, path, &batch, e, body, verdicts, &Attempt::default()).await;
    None
}

/// Why mail of a sender does not go by a path; `None` where it may.
async fn refusal(shard: &Shard, path: &ServedPath, sender: &str) -> Option<Verdict> {
    let own = |status, text: String| Some(Verdict { stage: Stage::Unasked, ..Verdict::own(status, text) });
    let Some(ip) = path.source else {
        let text = format!("virtual MTA {} has no smtp-source-host that SPF could be asked for", path.vmta_name);
        return own("4.7.24", format!("{text} (check-spf-outbound)"));
    };
    let resolver = Rc::clone(&shard.resolver.borrow());
    let asked = spf::Asked { ip, hello: &path.hello, sender, voids_max: VOIDS_MAX };
    let Ok(checked) = timeout(CHECK_MAX, spf::check(&*resolver, &asked)).await else {
        return own("4.7.24", "DNS took too long to say whether SPF lets this mail go (check-spf-outbound)".to_owned());
    };
    let text = || {
        let (domain, result) = (&checked.domain, checked.result.word());
        format!("SPF of {domain} says {result} to {ip}, which this mail would leave from (check-spf-outbound)")
    };
    match checked.result {
        SpfResult::Pass => None,
        SpfResult::TempError => own("4.7.24", text()),
        SpfResult::PermError => own("5.7.24", text()),
        SpfResult::Fail | SpfResult::SoftFail | SpfResult::Neutral | SpfResult::None => own("5.7.23", text()),
    }
}
