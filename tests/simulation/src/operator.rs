//! What operators do by way of the supervisor: orders about queues, deleting, rerouting.

use std::rc::Rc;
use std::time::Duration;

use ipc::control::RerouteOrder;
use ipc::queue_orders::{Deletion, QueueAction, QueueOrder, QueuePattern};
use tokio::sync::oneshot;
use tokio::task::spawn_local;
use tokio::time::{Instant, timeout};
use worker::clock;
use worker::deliver::{deletion, rerouting};
use worker::shard::Shard;
use worker::switches;

use crate::book::Deleted;
use crate::host::Host;
use crate::world::World;

/// How long the supervisor waits for a shard's answer.
const ANSWER_WAIT: Duration = Duration::from_secs(60);
/// Where mail can be sent.
const SENDERS: [&str; 4] = ["a", "b", "c", "pool"];

impl World {
    /// An operator does something, and takes it back then.
    pub fn give_orders(self: &Rc<Self>, until: Instant) {
        let dice = &self.dice;
        let of = match dice.permille(300) {
            true => "*/*".to_owned(),
            false => format!("d{}.test/*", dice.below(self.plan.receivers.len() as u64)),
        };
        let (action, back) = match dice.below(4) {
            0 => (QueueAction::Pause(true), QueueAction::Pause(false)),
            1 => (QueueAction::Mode(true), QueueAction::Mode(false)),
            2 => {
                let ip = format!("10.10.0.{}", dice.between(1, 3));
                let until_unix_ms = clock::now_ms() + dice.between(1, 60_000) as i64;
                (QueueAction::DisableSource { ip: ip.clone(), until_unix_ms }, QueueAction::EnableSource { ip })
            }
            _ => (QueueAction::Schedule { recipients: true }, QueueAction::Schedule { recipients: false }),
        };
        self.note(|| format!("order about {of}: {action:?}"));
        self.order(&of, action);
        self.later(until, move |w| w.order(&of, back));
    }

    /// Deletes a recipient that has mail to come, or all that is queued for a receiver. Only of one recipient it is known without an
    /// accounting row that it was deleted.
    pub fn delete_some(self: &Rc<Self>) {
        if self.is_unattended.get() {
            return;
        }
        let dice = &self.dice;
        let one = self.book.borrow().any_that_waits(dice).filter(|_| dice.permille(600));
        let domain = || format!("d{}.test", dice.below(self.plan.receivers.len() as u64));
        let (of, deleted) = match one {
            Some(rcpt) => ("*".to_owned(), Deleted::Recipient(rcpt)),
            None => {
                let domain = domain();
                (domain.clone(), Deleted::Domain(domain))
            }
        };
        let Ok(of) = QueuePattern::parse(&format!("{of}/*")) else { return };
        let (rcpt, accounting) = match &deleted {
            Deleted::Recipient(r) => (Some(r.clone()), dice.permille(700)),
            Deleted::Domain(_) => (None, true),
        };
        let dsn = dice.permille(300);
        let what = Deletion { of, orig: None, rcpt, job_id: None, env_id: None, older_than_ms: None, dsn, accounting };
        self.note(|| format!("order to delete {deleted:?}, in accounting: {accounting}"));
        spawn_local(Rc::clone(self).delete(what, deleted));
    }

    /// Deletes in every shard, a part at a time.
    async fn delete(self: Rc<Self>, what: Deletion, deleted: Deleted) {
        let accounting = what.accounting;
        self.book.borrow_mut().is_to_be_deleted(deleted.clone(), accounting);
        for host in self.wanted() {
            let mut after = None;
            loop {
                let what = what.clone();
                let delete = async move |shard: Rc<Shard>| deletion::delete(&shard, &what, after).await;
                let Some(Ok((recipients, next))) = self.ask(host, delete).await else { return };
                self.note(|| format!("shard {} has deleted {recipients} of {deleted:?}", host.number));
                self.book.borrow_mut().was_deleted(&deleted, recipients, accounting);
                after = next;
                if after.is_none() {
                    break;
                }
            }
        }
    }

    /// Gives what waits in some queues another virtual MTA or pool.
    pub fn reroute_some(self: &Rc<Self>) {
        if self.is_unattended.get() {
            return;
        }
        let dice = &self.dice;
        let destination = match dice.permille(300) {
            true => "*".to_owned(),
            false => format!("d{}.test", dice.below(self.plan.receivers.len() as u64)),
        };
        let sender = || SENDERS[dice.below(SENDERS.len() as u64) as usize];
        let from = if dice.permille(500) { "*" } else { sender() };
        spawn_local(Rc::clone(self).reroute(format!("{destination}/{from}"), sender()));
    }

    /// Sends what waits in some queues to another virtual MTA or pool, in every shard, a part at a time.
    async fn reroute(self: Rc<Self>, of: String, to: &'static str) {
        self.note(|| format!("order to reroute {of} to {to}"));
        let Ok(of) = QueuePattern::parse(&of) else { return };
        let order = RerouteOrder { of, job: None, to: to.to_owned(), dry_run: false };
        for host in self.wanted() {
            let mut after = None;
            loop {
                let order = order.clone();
                let reroute = async move |shard: Rc<Shard>| rerouting::reroute(&shard, &order, after).await;
                let Some(Ok(rerouted)) = self.ask(host, reroute).await else { return };
                self.note(|| format!("shard {}: {rerouted:?}", host.number));
                after = rerouted.after;
                if after.is_none() {
                    break;
                }
            }
        }
    }

    /// Has a shard do something, and waits for its answer; `None` where none comes, or the supervisor that asked is gone.
    async fn ask<T: 'static>(&self, host: &Host, what: impl AsyncFnOnce(Rc<Shard>) -> T + 'static) -> Option<T> {
        let supervisor = self.supervisor.get();
        let (reply, answer) = oneshot::channel();
        host.order(move |shard| {
            let shard = Rc::clone(shard);
            spawn_local(async move { drop(reply.send(what(shard).await)) });
        });
        let answer = timeout(ANSWER_WAIT, answer).await.ok()?.ok()?;
        (self.supervisor.get() == supervisor).then_some(answer)
    }

    /// Gives all shards that run an order about queues.
    pub fn order(&self, of: &str, action: QueueAction) {
        let Ok(of) = QueuePattern::parse(of) else { return };
        let order = QueueOrder { of, action };
        for host in self.wanted().filter(|_| !self.is_unattended.get()) {
            let order = order.clone();
            host.order(move |shard| drop(switches::obey(shard, &order, "an operator")));
        }
    }
}
