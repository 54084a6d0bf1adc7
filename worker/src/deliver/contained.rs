//! A panic is an error of this program and ends what it happened in, but nothing else: connections,
//! places and mail in hand are given back behind it as behind any other failure.

use std::cell::Cell;
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;

use super::path::ServedPath;
use crate::classify::outcome::Failure;
use crate::clock;
use crate::log_limit;
use crate::schedule::{Batch, Entry, PathId, QueueId};
use crate::shard::Shard;
use crate::tasks::{Panicked, caught};

thread_local! {
    /// The last panic here, until it is told of.
    static LAST: Cell<Option<Panicked>> = const { Cell::new(None) };
}

/// Does something to its end; `None` when it panicked, which is told of by [`rest_after_panic`] or [`hold_after_panic`]. What it borrows is as
/// it was left.
pub(super) async fn contained<T>(work: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    caught(work).await.map_err(|panic| LAST.set(Some(panic))).ok()
}

fn tell(shard: &Shard, path: &str, task: &'static str, then: &str) {
    let Panicked { place, why } = LAST.take().unwrap_or_default();
    if log_limit::allows_line("ended by a panic", path) {
        tracing::error!(shard = shard.number, path, task, place, why, "ended by a panic; {then}");
    }
}

/// What connects or serves for a path panicked: it waits for its retry, or the same would happen
/// again at once.
pub(super) fn rest_after_panic(shard: &Shard, id: PathId) {
    let name = shard.scheduler().paths.get(id).map(|p| p.name()).unwrap_or_default();
    tell(shard, &name, "connection", "its mail waits for the retry of the path");
    let failure = Failure::own("4.3.0", "an error of this server; see its log");
    shard.decide(|e, now| e.path_rests(id, failure, true, now));
}

/// What became of a batch is not known of all its recipients, for the attempt panicked: those wait
/// as after a reply of their own.
pub(super) fn hold_after_panic(shard: &Shard, path: &ServedPath, batch: &Batch) {
    let left = path.left_of(batch);
    let recipients = format!("{} recipients of message {} are tried again later", left.len(), batch.key);
    tell(shard, &path.name, "attempt", &recipients);
    let due = clock::now_ms() + path.rules.retry_recipients_after.as_millis() as i64;
    shard.decide(|e, _| e.retry(batch, &left, due));
}

/// How long what was in hand waits when a panic ends who had it.
const HELD_MS: i64 = 60_000;

/// Entries that were taken out of their queue to be concluded one after the other. Those that a panic leaves go back, and wait.
pub(super) struct InHand {
    shard: Rc<Shard>,
    queue: QueueId,
    /// The one that is concluded now.
    now: Option<Entry>,
    left: VecDeque<Entry>,
}

impl InHand {
    pub(super) fn new(shard: &Rc<Shard>, queue: QueueId, entries: impl IntoIterator<Item = Entry>) -> InHand {
        InHand { shard: Rc::clone(shard), queue, now: None, left: entries.into_iter().collect() }
    }

    /// The next one; the one before is done with.
    pub(super) fn next(&mut self) -> Option<Entry> {
        self.now = self.left.pop_front();
        self.now
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let due = clock::now_ms() + HELD_MS;
        for entry in self.now.take().into_iter().chain(self.left.drain(..)) {
            let batch = Batch::of(self.queue, 0, entry);
            self.shard.decide(|e, _| e.hold(&batch, &batch.recipients, due, batch.attempts));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "a panic of what tests begin is a failure of theirs")]

    use std::time::Duration;

    use ipc::ledger::Class;
    use ipc::rules::DomainRules;
    use ipc::shard_map::ShardMap;
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::TcpListener;
    use tokio::task::{LocalSet, spawn_local};

    use super::*;
    use crate::tasks::PANICS_AT;

    /// A shard whose only place of `total-max-smtp-out` shows what is kept.
    async fn shard(dir: &std::path::Path) -> Rc<Shard> {
        let map = ShardMap::first(1, Vec::new());
        let shard = crate::shard::alone::shard(dir, map, |s| s.global.total_max_smtp_out = 1).await;
        spawn_local(crate::deliver::connection::begin_openers(Rc::clone(&shard)));
        shard
    }

    /// Two recipients of one message in a queue, and its path.
    async fn queued(shard: &Rc<Shard>, rules: DomainRules) -> (QueueId, PathId) {
        let id = crate::shard::alone::queued(shard, &["0@d.test", "1@d.test"]).await;
        shard.decide(|e, now| {
            let path = e.path_for(id, 0, now).unwrap();
            let p = e.scheduler_mut().paths.get_mut(path).unwrap();
            (p.rules, p.retry_at_ms) = (Rc::new(rules), 0);
            (id, path)
        })
    }

    async fn until(what: &str, done: impl Fn() -> bool) {
        for _ in 0..2000 {
            if done() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{what}");
    }

    /// Nothing is counted any more of what panicked.
    fn nothing_is_kept(shard: &Shard, path: PathId) -> bool {
        let counts = shard.scheduler().paths.get(path).map(|p| (p.connecting, p.connections, p.ordinary, p.idle));
        let place = shard.ledger.take(Class::SmtpOut, 0, 1, 0);
        let is_free = place.is_some();
        place.into_iter().for_each(|p| shard.ledger.give(p));
        shard.connections.get() == 0 && counts.is_none_or(|c| c == (0, 0, 0, 0)) && is_free
    }

    /// A receiver that takes everything.
    async fn receiver() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                spawn_local(async move {
                    let (read, mut write) = stream.into_split();
                    let mut lines = BufReader::new(read).lines();
                    let mut data = false;
                    let _ = write.write_all(b"220 r.test\r\n").await;
                    while let Ok(Some(line)) = lines.next_line().await {
                        let reply: &[u8] = match line.as_str() {
                            "DATA" => b"354 go on\r\n",
                            "QUIT" => b"221 bye\r\n",
                            _ => b"250 ok\r\n",
                        };
                        data = line == "DATA" || (data && line != ".");
                        if !data || line == "DATA" {
                            let _ = write.write_all(reply).await;
                        }
                    }
                });
            }
        });
        port
    }

    #[test]
    fn what_panics_gives_back_what_it_counted_and_its_mail_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            let shard = shard(dir.path()).await;
            let port = receiver().await;
            let by_smtp = DomainRules {
                smtp_hosts: format!("[127.0.0.1]:{port}"),
                retry_after: vec![Duration::from_millis(100)],
                ..Default::default()
            };
            let discarded = DomainRules { delivery_type: 3, ..Default::default() };
            for (place, rules) in [
                ("open", &by_smtp),
                ("serve", &by_smtp),
                ("attempt", &by_smtp),
                ("conclude", &by_smtp),
                ("conclude", &discarded),
            ] {
                let (queue, path) = queued(&shard, rules.clone()).await;
                PANICS_AT.set(place);
                let before = crate::tasks::panics();
                shard.pump(path);
                until(place, || PANICS_AT.get().is_empty() && nothing_is_kept(&shard, path)).await;
                assert_eq!(shard.scheduler().recipients, 2, "{place}: nobody is lost");
                assert!(crate::tasks::panics() > before, "{place}: it is counted");
                let rests = shard.scheduler().paths.get(path).is_some_and(|p| p.retry_at_ms > 0);
                assert_eq!(rests, matches!(place, "open" | "serve"), "{place}: what would happen again at once waits");
                tokio::time::sleep(Duration::from_millis(150)).await;
                shard.scheduler_mut().promote_all(queue);
                shard.pump(path);
                until(place, || shard.scheduler().recipients == 0 && nothing_is_kept(&shard, path)).await;
            }
        });
    }

    /// All that a connection counted in is given back behind a panic at a place, and its mail is delivered.
    fn is_given_back_behind(place: &'static str) {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            let shard = shard(dir.path()).await;
            let rules = DomainRules { smtp_hosts: format!("[127.0.0.1]:{}", receiver().await), ..Default::default() };
            let (_, path) = queued(&shard, rules).await;
            PANICS_AT.set(place);
            shard.pump(path);
            until(place, || {
                PANICS_AT.get().is_empty() && shard.scheduler().recipients == 0 && nothing_is_kept(&shard, path)
            })
            .await;
        });
    }

    /// What no [`contained`] is around is given back as well: the lease of a connection ends with its task.
    #[test]
    fn a_connection_whose_task_panics_is_counted_no_more_and_another_is_opened() {
        is_given_back_behind("carry");
    }

    /// A path that counts one which is gone among its idle connections would wait for it to take the next message.
    #[test]
    fn a_connection_that_panics_while_it_idles_does_not_count_as_idle() {
        is_given_back_behind("idle");
    }

    #[test]
    fn what_was_taken_out_of_its_queue_goes_back_when_its_task_panics() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            let shard = shard(dir.path()).await;
            let discarded = DomainRules { delivery_type: 3, ..Default::default() };
            let (queue, path) = queued(&shard, discarded).await;
            let taken: Vec<Entry> = shard.scheduler_mut().drain(queue).into_iter().map(|(e, _)| e).collect();
            let waits = || shard.scheduler().queues.get(queue).map_or(0, |q| q.waiting.len());
            assert_eq!((taken.len(), waits()), (1, 0));
            PANICS_AT.set("in hand");
            let of_task = Rc::clone(&shard);
            crate::tasks::begin("expiry", move || crate::deliver::conclusion::expire(of_task, queue, taken));
            until("it panics", || PANICS_AT.get().is_empty() && waits() == 1).await;
            shard.scheduler_mut().promote_all(queue);
            shard.pump(path);
            until("it is delivered", || shard.scheduler().recipients == 0 && nothing_is_kept(&shard, path)).await;
        });
    }

    #[test]
    fn a_message_that_panics_each_time_waits_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            let shard = shard(dir.path()).await;
            let port = receiver().await;
            let rules = DomainRules {
                smtp_hosts: format!("[127.0.0.1]:{port}"),
                retry_after: vec![Duration::from_millis(10)],
                retry_recipients_after: Duration::from_secs(60),
                ..Default::default()
            };
            for place in ["attempt", "conclude"] {
                let (queue, path) = queued(&shard, rules.clone()).await;
                for round in 0..3 {
                    PANICS_AT.set(place);
                    shard.pump(path);
                    until(place, || PANICS_AT.get().is_empty() && nothing_is_kept(&shard, path)).await;
                    // It would panic again, if it were tried.
                    PANICS_AT.set(place);
                    for _ in 0..20 {
                        shard.scheduler_mut().due(clock::now_ms());
                        shard.pump(path);
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    assert_eq!(PANICS_AT.get(), place, "{place}, round {round}: it waits");
                    let waits = shard.scheduler().queues.get(queue).map_or(0, |q| q.waiting.len());
                    assert!(waits > 0, "{place}, round {round}: it waits for a time of its own");
                    shard.scheduler_mut().promote_all(queue);
                }
                PANICS_AT.set("");
                shard.pump(path);
                until(place, || shard.scheduler().recipients == 0 && nothing_is_kept(&shard, path)).await;
            }
        });
    }
}
