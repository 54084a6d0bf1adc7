//! Checks of passwords: how many are made at once, and who has failed too often.

use std::cell::RefCell;
use std::net::IpAddr;
use std::sync::Arc;

use ipc::dice::HashMap;
use ipc::ledger::failures::FAILURES_MAX;
use ipc::network::Network;
use ipc::rules::Rate;
use ipc::text;
use tokio::sync::Semaphore;

use super::stored::NAME_MAX;
use super::users::{Answer, Check, Users};
use crate::shard::Shard;
use crate::smtp::command::Refusal;
use crate::{clock, log_limit, rights};

/// Checks that take long, at once in one shard: of those that need much memory, and of others.
const AT_ONCE: usize = 2;
/// Checks that are made or wait. One client has no more of them than are free then, so that the first has half of all.
const CHECKS_MAX: u32 = 1000;

/// Checks that are made or wait, by client (of IPv6 one /64).
type Counted = HashMap<Network, u32>;

/// The checks of a shard.
#[derive(Debug)]
pub struct Attempts {
    with_memory: Semaphore,
    /// They take less time, and do not wait for those.
    others: Semaphore,
    counted: RefCell<Counted>,
}

impl Default for Attempts {
    fn default() -> Self {
        let (with_memory, others) = (Semaphore::new(AT_ONCE), Semaphore::new(AT_ONCE));
        Attempts { with_memory, others, counted: RefCell::default() }
    }
}

/// A check among those of its client; it counts until it is dropped.
struct Place<'a> {
    counted: &'a RefCell<Counted>,
    client: Network,
}

impl<'a> Place<'a> {
    fn take(counted: &'a RefCell<Counted>, client: Network) -> Option<Place<'a>> {
        let mut all = counted.borrow_mut();
        let (own, taken) = (all.get(&client).copied().unwrap_or(0), all.values().sum::<u32>());
        if own >= CHECKS_MAX.saturating_sub(taken) {
            return None;
        }
        all.insert(client, own + 1);
        Some(Place { counted, client })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut all = self.counted.borrow_mut();
        match all.get_mut(&self.client) {
            Some(n) if *n > 1 => *n -= 1,
            _ => drop(all.remove(&self.client)),
        }
    }
}

impl Attempts {
    /// Makes a check of a client unless `refusal` has a reply instead; one that takes long on a thread of its own, and `refusal` is asked
    /// when its turn comes: those that waited together may have failed meanwhile.
    async fn make(
        &self,
        users: &Arc<Users>,
        client: Network,
        check: Check,
        refusal: impl Fn() -> Option<Refusal>,
    ) -> Result<Answer, Refusal> {
        refusal().map_or(Ok(()), Err)?;
        if users.is_quick(&check) {
            return Ok(users.check(check));
        }
        let _place = Place::take(&self.counted, client).ok_or_else(busy)?;
        let slots = if users.needs_memory(&check) { &self.with_memory } else { &self.others };
        let Ok(_one) = slots.acquire().await else { return Err(busy()) };
        refusal().map_or(Ok(()), Err)?;
        let users = Arc::clone(users);
        let made = tokio::task::spawn_blocking(move || {
            rights::unpin_thread();
            users.check(check)
        });
        made.await.map_err(|_| busy())
    }
}

fn busy() -> Refusal {
    Refusal(454, "4.7.0", "Too many clients authenticate at once, try again later".into())
}

/// Checks what a client at `ip` claims, unless its address, or the user that it claims to be, has failed too often
/// (`smtp-max-auth-failure-rate`).
///
/// # Errors
/// The reply where the check cannot be made now.
pub async fn attempt(
    shard: &Shard,
    users: &Arc<Users>,
    ip: IpAddr,
    rate: Rate,
    check: Check,
) -> Result<Answer, Refusal> {
    let name = check.name().to_owned();
    let client = Network::of_one_host(ip);
    let address = client.to_string();
    let window_s = rate.per.as_secs().max(1);
    // Of sources with other windows a user has a count for each.
    let counts =
        [users.secret_number("failed from", &address, window_s), users.secret_number("failed as", &name, window_s)];
    let answer = shard.attempts.make(users, client, check, || locked(shard, &counts, rate)).await?;
    let tells = |what: &'static str| log_limit::allows_line_of_client(what, &address);
    let user = &*text::clean(&name, NAME_MAX);
    match answer {
        Answer::Wrong => {
            if rate.count > 0 {
                counts.iter().for_each(|c| shard.ledger.count_failure(*c, now_s(), window_s));
            }
            if tells("authentication failed") {
                tracing::warn!(shard = shard.number, client = %ip, user, "authentication failed");
            }
        }
        Answer::Unusable if tells("mechanism of no use") => {
            // The line does not say whether there is such a user: it is written for names that nobody has as well.
            let shard = shard.number;
            tracing::info!(shard, client = %ip, user, "the mechanism is of no use for how the password is stored");
        }
        _ => {}
    }
    Ok(answer)
}

fn now_s() -> u64 {
    (clock::now_ms() / 1000).unsigned_abs()
}

/// The reply where one of these has failed as often as it may.
fn locked(shard: &Shard, counts: &[u64], rate: Rate) -> Option<Refusal> {
    let (most, now_s) = (rate.count.min(FAILURES_MAX), now_s());
    let counted = counts.iter().map(|c| shard.ledger.failures_of(*c, now_s));
    let seconds = counted.filter(|(n, _)| most > 0 && *n >= most).map(|(_, seconds)| seconds).max()?;
    let text = format!("Too many failures to authenticate (smtp-max-auth-failure-rate), try again in {seconds} s");
    Some(Refusal(454, "4.7.0", text))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn one_client_leaves_places_to_others() {
        let attempts = Attempts::default();
        let of = |last: u8| Network::of_one_host(IpAddr::from([192, 0, 2, last]));
        let take = |last| Place::take(&attempts.counted, of(last));
        let first: Vec<_> = std::iter::from_fn(|| take(1)).collect();
        let second: Vec<_> = std::iter::from_fn(|| take(2)).collect();
        assert_eq!((first.len(), second.len()), (500, 250));
        drop(first);
        assert!(take(3).is_some());
        drop(second);
        assert!(attempts.counted.borrow().is_empty());
    }
}
