//! How long mail waits after a failure.

use std::time::Duration;

use ipc::rules::DomainRules;

use crate::classify::outcome::Failure;

/// `retry-after-dns-error` where it is not given and the retry list is not shorter.
const DNS_WAIT: Duration = Duration::from_secs(60);

/// How long mail waits after a failure, milliseconds: by `retry-after-dns-error`, which stays on its step of the retry list,
/// or by that list.
pub(super) fn failure_wait_ms(failure: &Failure, rules: &DomainRules, list: &[Duration], step: &mut u32) -> i64 {
    match failure.is_of_dns {
        true => dns_wait(rules, list, *step).as_millis().min(1 << 50) as i64,
        false => next_wait_ms(list, step),
    }
}

/// `retry-after-dns-error`, at a step of the retry list.
pub fn dns_wait(rules: &DomainRules, list: &[Duration], mut step: u32) -> Duration {
    rules.retry_after_dns_error.unwrap_or_else(|| {
        let normal_ms = next_wait_ms(list, &mut step);
        DNS_WAIT.min(Duration::from_millis(normal_ms.unsigned_abs()))
    })
}

/// The wait of a retry list at a step, milliseconds, and one step on; its last one goes on.
pub(super) fn next_wait_ms(list: &[Duration], step: &mut u32) -> i64 {
    let wait = list.get((*step as usize).min(list.len().saturating_sub(1)));
    *step = step.saturating_add(1);
    wait.map_or(600_000, |d| d.as_millis().min(1 << 50) as i64)
}
