//! How a shard that owns nothing any more leaves: what the supervisor decides, without processes, sockets and clocks. The server does what
//! is decided with its workers, and the simulation with those that it runs.

use std::time::{Duration, Instant};

use crate::fleet::{Known, Seen};

/// Heartbeats that came later than this after a question was raised answer it: what they tell was looked at behind it.
const ANSWERED_AFTER: Duration = Duration::from_secs(1);

impl Known<'_> {
    /// Its process says that nothing is queued, and nothing waits to be written, and said so after `since`: one that is still reading
    /// its spool does not know.
    fn is_empty(&self, since: Instant) -> bool {
        let h = self.heartbeat;
        let serves = self.serves && h.state == "serving";
        serves && self.beat_at > since && h.recipients == 0 && !h.held && h.accounting_behind.is_none()
    }

    /// It said after `since` that it waits for no answer of shard `other` about a share.
    fn has_none_open_at(&self, other: u8, since: Instant) -> bool {
        self.beat_at > since && self.heartbeat.shares_open_at.as_ref().is_some_and(|at| !at.contains(&other))
    }
}

/// What is done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing, until something changes.
    Wait,
    /// The shard's process is told to stop, and no other is started.
    Stop,
    /// Another process is started: what came until the last moment is on disk, or nobody knows whether it is.
    StartAgain,
    /// The shard is gone: the others have its mail.
    Gone,
    /// It owns destinations again, or is not there: it does not leave.
    Stays,
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waits {
    /// The shard has to take the shard map: from then on it takes no share that it has not.
    ForMap,
    /// It must hold nothing, and no other may have a share of which it does not know whether this one took it: it would find this one
    /// gone, and give the share to a third a second time. Heartbeats of after that time count.
    UntilEmpty(Instant),
    /// Its process has to end.
    ForEnd,
}

/// A shard that leaves.
#[derive(Debug)]
pub struct Retiring {
    number: u8,
    waits: Waits,
}

impl Retiring {
    /// The shard of this number leaves.
    pub fn of(number: u8) -> Retiring {
        Retiring { number, waits: Waits::ForMap }
    }

    /// What is waited for.
    pub fn waits(&self) -> Waits {
        self.waits
    }

    /// What is to be done now; to be asked again whenever something changes. What it answers has been done when it is asked next.
    pub fn step(&mut self, now: Instant, seen: Seen<'_>) -> Step {
        let owns = seen.owners.contains(&self.number);
        let Some(it) = seen.shards.iter().find(|s| s.number == self.number) else { return Step::Stays };
        match self.waits {
            Waits::ForMap | Waits::UntilEmpty(_) if owns => Step::Stays,
            Waits::ForMap => {
                if it.heartbeat.settled_epoch == seen.epoch {
                    self.waits = Waits::UntilEmpty(now + ANSWERED_AFTER);
                }
                Step::Wait
            }
            Waits::UntilEmpty(since) => {
                let mut others = seen.shards.iter().filter(|s| s.number != self.number);
                if !it.is_empty(since) || !others.all(|s| s.has_none_open_at(self.number, since)) {
                    return Step::Wait;
                }
                self.waits = Waits::ForEnd;
                Step::Stop
            }
            Waits::ForEnd if it.runs => Step::Wait,
            Waits::ForEnd if it.left_complete && it.heartbeat.recipients == 0 && !owns => Step::Gone,
            Waits::ForEnd => {
                self.waits = Waits::ForMap;
                Step::StartAgain
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ipc::control::Heartbeat;

    use super::*;

    /// A shard that serves, has nothing, and said so at that time.
    fn beat(settled_epoch: u64, open_at: &[u8]) -> Heartbeat {
        let shares_open_at = Some(open_at.to_vec());
        Heartbeat { state: "serving".into(), settled_epoch, shares_open_at, ..Heartbeat::default() }
    }

    #[test]
    fn a_shard_leaves_when_all_have_said_that_it_may_and_comes_back_for_what_it_left() {
        let begun = Instant::now();
        let at = |s: u64| begun + Duration::from_secs(s);
        let mut r = Retiring::of(1);
        let mut step = |now: u64, owners: &[u8], of: [(&Heartbeat, u64); 2], runs: bool, left_complete: bool| {
            let shards = [(0, true), (1, runs)].map(|(number, runs)| {
                let (heartbeat, s) = of[usize::from(number)];
                Known {
                    number,
                    runs,
                    serves: runs,
                    has_served: true,
                    is_down: false,
                    heartbeat,
                    beat_at: at(s),
                    left_complete,
                }
            });
            r.step(at(now), Seen { epoch: 7, owners, shards: &shards })
        };
        let (other, open) = (beat(7, &[]), beat(7, &[1]));
        let (behind, own, full) = (beat(6, &[]), beat(7, &[]), Heartbeat { recipients: 1, ..beat(7, &[]) });
        assert_eq!(step(0, &[0], [(&other, 0), (&behind, 0)], true, false), Step::Wait, "it has another map");
        assert_eq!(step(1, &[0], [(&other, 1), (&own, 1)], true, false), Step::Wait);
        assert_eq!(step(2, &[0], [(&other, 2), (&own, 2)], true, false), Step::Wait, "said before it was asked");
        assert_eq!(step(3, &[0], [(&other, 3), (&full, 3)], true, false), Step::Wait);
        assert_eq!(step(4, &[0], [(&open, 4), (&own, 4)], true, false), Step::Wait, "another has something open there");
        assert_eq!(step(5, &[0], [(&other, 5), (&own, 5)], false, false), Step::Wait, "it does not run");
        assert_eq!(step(6, &[0], [(&other, 6), (&own, 6)], true, false), Step::Stop);
        assert_eq!(step(7, &[0], [(&other, 7), (&full, 6)], true, false), Step::Wait);
        assert_eq!(step(8, &[0], [(&other, 8), (&full, 8)], false, true), Step::StartAgain, "something came meanwhile");
        assert_eq!(step(9, &[0], [(&other, 9), (&own, 9)], true, false), Step::Wait);
        assert_eq!(step(11, &[0], [(&other, 11), (&own, 11)], true, false), Step::Stop);
        assert_eq!(
            step(12, &[0], [(&other, 12), (&own, 11)], false, false),
            Step::StartAgain,
            "nobody knows what it left"
        );
        assert_eq!(step(13, &[0], [(&other, 13), (&own, 13)], true, false), Step::Wait);
        assert_eq!(step(15, &[0], [(&other, 15), (&own, 15)], true, false), Step::Stop);
        assert_eq!(step(16, &[0], [(&other, 16), (&own, 15)], false, true), Step::Gone);
    }

    #[test]
    fn one_that_owns_destinations_again_stays() {
        let own = beat(7, &[]);
        let known = Known {
            number: 1,
            runs: true,
            serves: true,
            has_served: true,
            is_down: false,
            heartbeat: &own,
            beat_at: Instant::now(),
            left_complete: false,
        };
        let seen = Seen { epoch: 7, owners: &[0, 1], shards: &[known] };
        assert_eq!(Retiring::of(1).step(Instant::now(), seen), Step::Stays);
        assert_eq!(Retiring::of(2).step(Instant::now(), seen), Step::Stays, "there is none");
    }
}
