//! Checks of passwords: how many are made at once, and who has failed too often.

use std::cell::Cell;
use std::net::IpAddr;
use std::sync::Arc;

use ipc::ledger::failures::FAILURES_MAX;
use ipc::ledger::shared_limits::key;
use ipc::network::Network;
use ipc::rules::Rate;
use ipc::text;
use tokio::sync::Semaphore;

use super::stored::NAME_MAX;
use super::users::{Answer, Check, Users};
use crate::shard::Shard;
use crate::smtp::command::Refusal;
use crate::{clock, log_limit, rights};

/// Checks that take long, at once in one shard: each may need much memory.
const AT_ONCE: usize = 2;
/// Checks that wait for those.
const WAITING_MAX: u32 = 1000;

/// The checks of a shard.
#[derive(Debug)]
pub struct Attempts {
    running: Semaphore,
    waiting: Cell<u32>,
}

impl Default for Attempts {
    fn default() -> Self {
        Attempts { running: Semaphore::new(AT_ONCE), waiting: Cell::new(0) }
    }
}

/// One that waits; it counts until it is dropped.
struct Waiting<'a>(&'a Cell<u32>);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

impl Attempts {
    /// Makes a check unless `refusal` has a reply instead; one that takes long on a thread of its own, and `refusal` is asked when its turn
    /// comes: those that waited together may have failed meanwhile.
    async fn make(
        &self,
        users: &Arc<Users>,
        check: Check,
        refusal: impl Fn() -> Option<Refusal>,
    ) -> Result<Answer, Refusal> {
        refusal().map_or(Ok(()), Err)?;
        if users.is_quick(&check) {
            return Ok(users.check(check));
        }
        if self.waiting.get() >= WAITING_MAX {
            return Err(busy());
        }
        self.waiting.set(self.waiting.get() + 1);
        let _waiting = Waiting(&self.waiting);
        let Ok(_one) = self.running.acquire().await else { return Err(busy()) };
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
    let address = Network::of_one_host(ip).to_string();
    let keys = [key("failed to authenticate from", &address), key("failed to authenticate as", &name)];
    let answer = shard.attempts.make(users, check, || locked(shard, &keys, rate)).await?;
    let tells = |what: &'static str| log_limit::allows_line_of_client(what, &address);
    let user = &*text::clean(&name, NAME_MAX);
    match answer {
        Answer::Wrong => {
            if rate.count > 0 {
                let window_s = rate.per.as_secs().max(1);
                keys.iter().for_each(|k| shard.ledger.count_failure(*k, now_s(), window_s));
            }
            if tells("authentication failed") {
                tracing::warn!(shard = shard.number, client = %ip, user, "authentication failed");
            }
        }
        Answer::Unusable if tells("mechanism of no use") => {
            // Without the word whether there is such a user: names that nobody has are likened to one.
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

/// The reply where one of these names has failed as often as it may.
fn locked(shard: &Shard, keys: &[u64], rate: Rate) -> Option<Refusal> {
    let (most, now_s) = (rate.count.min(FAILURES_MAX), now_s());
    let counted = keys.iter().map(|k| shard.ledger.failures_of(*k, now_s));
    let seconds = counted.filter(|(n, _)| most > 0 && *n >= most).map(|(_, seconds)| seconds).max()?;
    let text = format!("Too many failures to authenticate (smtp-max-auth-failure-rate), try again in {seconds} s");
    Some(Refusal(454, "4.7.0", text))
}
