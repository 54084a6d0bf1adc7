//! Where a shard's mail meets the lists: at RCPT, before an attempt, and when replies fill them.

use std::rc::Rc;
use std::time::Duration;

use ipc::message::{ArchivedEnvelope, notify};
use ipc::rules::DomainRules;

use super::gate::{Note, now_s};
use super::{GLOBAL, Suppresses, normal_address, normal_list, short};
use crate::classify::bounce_category;
use crate::classify::bounce_rules::{Kind, Scope};
use crate::classify::outcome::Stage;
use crate::classify::outcome::{Outcome, Verdict};
use crate::shard::Shard;

/// Time between two looks for what other processes changed.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Keeps a shard's view of the lists fresh.
pub async fn watch(shard: Rc<Shard>) {
    let mut failed = false;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        match shard.suppression.look() {
            Ok(()) => failed = false,
            Err(e) if !failed => {
                failed = true;
                tracing::error!(error = %e, "the suppression lists cannot be read or written; what is known of them holds");
            }
            Err(_) => {}
        }
    }
}

impl Suppresses for Shard {
    fn list_of(&self, named: &[String], address: &str) -> Option<String> {
        if named.is_empty() && self.suppression.is_empty() {
            return None;
        }
        let address = normal_address(address).ok()?;
        let config = self.config();
        let named: Vec<String> = named.iter().filter_map(|n| normal_list(n).ok()).collect();
        let configured = named.iter().find(|n| config.address_lists.has(n, &address)).cloned();
        configured
            .or_else(|| self.suppression.find([GLOBAL].into_iter().chain(named.iter().map(String::as_str)), &address))
    }
}

/// Verdicts on those recipients of a message, of some, that get no mail by `vmta`.
pub fn refused(shard: &Shard, e: &ArchivedEnvelope, vmta: &str, pool: Option<&str>, of: &[u16]) -> Vec<(u16, Verdict)> {
    let marks = |r: &u16| e.recipients.get(usize::from(*r)).map_or(0, |to| to.notify & !notify::GIVEN);
    if shard.suppression.is_empty() && of.iter().all(|r| marks(r) == 0) {
        return Vec::new();
    }
    let mut lists = vec![GLOBAL.to_owned(), list_of_vmta(vmta)];
    lists.extend(pool.map(list_of_pool));
    if !e.job_id.is_empty() {
        lists.push(list_of_job(e.job_id.as_str()));
    }
    let mut all = Vec::new();
    for r in of {
        let Some(to) = e.recipients.get(usize::from(*r)) else { continue };
        let marked = to.notify & notify::NOT_TO_BE_SENT != 0;
        if to.notify & notify::NO_ADDRESS != 0 {
            all.push((*r, not_an_address(&to.address)));
            continue;
        }
        let Ok(address) = normal_address(&to.address) else { continue };
        let mut list = shard.suppression.find(lists.iter().map(String::as_str), &address);
        if marked && list.is_none() {
            list = Some(some_list(shard, &address));
        }
        all.extend(list.map(|list| (*r, suppressed(&list, &to.address))));
    }
    all
}

/// The list that a recipient was in when it was accepted (`accept-invalid-recipients`).
fn some_list(shard: &Shard, address: &str) -> String {
    let config = shard.config();
    let configured = config.address_lists.names().find(|n| config.address_lists.has(n, address)).map(str::to_owned);
    let named = || {
        let names = shard.suppression.names();
        shard.suppression.find(names.iter().map(String::as_str), address)
    };
    configured.or_else(named).unwrap_or_else(|| "(it was, when the message came)".into())
}

fn refusal(status: &str, diagnostic: String) -> Verdict {
    let (status, outcome) = (status.to_owned(), Outcome::Bounced);
    Verdict { outcome, status, diagnostic, remote: true, code: 0, stage: Stage::Suppressed }
}

fn suppressed(list: &str, address: &str) -> Verdict {
    refusal("5.7.1", format!("550 5.7.1 recipient is in suppression list \"{list}\": <{address}>"))
}

fn not_an_address(address: &str) -> Verdict {
    refusal("5.1.3", format!("501 5.1.3 <{address}> is not an e-mail address"))
}

fn list_of_vmta(name: &str) -> String {
    format!("virtual-mta:{}", name.to_lowercase())
}

fn list_of_pool(name: &str) -> String {
    format!("pool:{}", name.to_lowercase())
}

fn list_of_job(id: &str) -> String {
    format!("job:{}", id.to_lowercase())
}

/// The recipient that a reply was about, and the lists that it may be added to.
#[derive(Debug, Clone, Copy)]
pub struct About<'a> {
    /// Recipient.
    pub address: &'a str,
    /// Virtual MTA that the mail left by.
    pub vmta: &'a str,
    /// Its pool, if one was chosen.
    pub pool: Option<&'a str>,
    /// Its job; empty for none.
    pub job: &'a str,
}

/// Notes a receiver's refusal of a recipient, if `suppress-on` counts it. Only what was said of the
/// mailbox counts, never what was said of the sender. `tried_before`: it was not the first attempt.
pub fn note(shard: &Shard, rules: &DomainRules, about: About, v: &Verdict, tried_before: bool) {
    let of_mail = matches!(v.stage, Stage::Recipient | Stage::Message);
    if rules.suppress_on.is_empty() || v.outcome == Outcome::Delivered || !v.remote || !of_mail {
        return;
    }
    let Some(list) = list_to_fill(rules, about) else { return };
    let config = shard.config();
    let class = bounce_category::class(config.bounce_rules(), v);
    let of_mailbox = class.scope.is_none_or(|s| s == Scope::Recipient);
    let counts = rules.suppress_on.iter().any(|c| c.eq_ignore_ascii_case(class.category));
    // What may pass counts only where it has to come back to count.
    let lasting = match class.kind {
        None | Some(Kind::Hard) => true,
        // Of one message it counts once, however often it is tried again.
        Some(Kind::Soft) => rules.suppress_after.count > 1 && !tried_before,
        Some(Kind::Reputation | Kind::Config) => false,
    };
    if !counts || !of_mailbox || !lasting {
        return;
    }
    let Ok(address) = normal_address(about.address) else { return };
    let (at_s, rate) = (now_s(), rules.suppress_after);
    let lasts_s = rules.suppress_for.as_secs();
    let forever = rules.suppress_for.as_millis() >= u128::from(ipc::rules::NEVER_MS);
    shard.suppression.note(Note {
        list,
        address,
        category: short(class.category),
        at_s,
        needed: rate.count.max(1) as usize,
        within_s: rate.per.as_secs().min(u64::from(u32::MAX)) as u32,
        expires_s: if forever { 0 } else { (u64::from(at_s) + lasts_s).min(u64::from(u32::MAX)) as u32 },
    });
}

/// The list that `suppress-in` means.
fn list_to_fill(rules: &DomainRules, about: About) -> Option<String> {
    match rules.suppress_in {
        1 => Some(list_of_vmta(about.vmta)),
        2 => Some(about.pool.map_or_else(|| list_of_vmta(about.vmta), list_of_pool)),
        3 => Some(about.job).filter(|j| !j.is_empty()).map(list_of_job),
        _ => Some(GLOBAL.to_owned()),
    }
}
