//! How the number of shards that own destinations changes: what the supervisor decides, without processes, sockets and clocks. Shards that
//! own nothing any more leave as [`crate::retiring`] says.

use std::time::{Duration, Instant};

use thiserror::Error;

use crate::fleet::{Known, Seen};

/// How long the change before may take to end.
const SETTLES_WITHIN: Duration = Duration::from_secs(5);
/// How long shards that are to take part may take to serve.
const SERVE_WITHIN: Duration = Duration::from_secs(60);
/// How long it may take to tell them what operators switched.
const TOLD_WITHIN: Duration = Duration::from_secs(60);

/// Why the number of shards does not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Trouble {
    /// Another change is being made.
    #[error("another change of the number of workers is under way; try again when it is over")]
    Busy,
    /// Destinations that the last change moved are still with the shards that owned them before.
    #[error(
        "the last change of the number of workers is still under way: destinations are being released; try again in a moment"
    )]
    Unsettled,
    /// Shards that are to take part do not begin to serve.
    #[error("the new workers do not serve; see the log")]
    NotServing,
    /// No shard tells what operators paused and disabled, or a new one does not take it: mail that is to wait would go there.
    #[error(
        "what operators paused and disabled could not be passed to the new workers; try again when all shards serve"
    )]
    NotTold,
}

/// What is done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing, until something changes.
    Wait,
    /// Nothing at all: there are as many owners as wanted.
    IsSo,
    /// Processes of these shards, of which there is none, are started; they own nothing yet.
    Start(Vec<u8>),
    /// A shard that owns destinations says what operators switched, and these take it over; when all have it on disk, [`Scaling::are_told`].
    Tell(Vec<u8>),
    /// The next map is put in force, and shards that own nothing by it leave.
    Publish,
    /// The number of owners stays. Shards that were started for more leave.
    GiveUp(Trouble),
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waits {
    UntilSettled,
    UntilServing,
    UntilTold,
    ForNothing,
}

/// A change of the number of shards.
#[derive(Debug)]
pub struct Scaling {
    workers: u8,
    waits: Waits,
    since: Instant,
    /// Shards that were started for this.
    started: Vec<u8>,
}

impl Scaling {
    /// So many shards are to own destinations: 0 up to `workers`.
    pub fn to(workers: u8, now: Instant) -> Scaling {
        Scaling { workers, waits: Waits::UntilSettled, since: now, started: Vec::new() }
    }

    fn wait(&mut self, waits: Waits, now: Instant) {
        (self.waits, self.since) = (waits, now);
    }

    /// The shards of [`Step::Tell`] have on disk what operators switched.
    pub fn are_told(&mut self) {
        self.waits = Waits::ForNothing;
    }

    /// Shards that were started for this change.
    pub fn started(&self) -> &[u8] {
        &self.started
    }

    /// What is to be done now; to be asked again whenever something changes. What it answers has been done when it is asked next, but for
    /// [`Step::Tell`], which may have been tried in vain.
    pub fn step(&mut self, now: Instant, seen: Seen<'_>) -> Step {
        let since = now.saturating_duration_since(self.since);
        if self.waits == Waits::UntilSettled {
            return match seen.is_settled() {
                true if seen.owners.len() == usize::from(self.workers) => Step::IsSo,
                true => {
                    self.wait(Waits::UntilServing, now);
                    Step::Start(self.missing(seen))
                }
                false if since >= SETTLES_WITHIN => Step::GiveUp(Trouble::Unsettled),
                false => Step::Wait,
            };
        }
        // One that was leaving since the change before may have gone meanwhile.
        let missing = self.missing(seen);
        if !missing.is_empty() {
            self.waits = Waits::UntilServing;
            return Step::Start(missing);
        }
        let is_new = |s: &&Known<'_>| s.number < self.workers && !seen.owners.contains(&s.number);
        let mut new = seen.shards.iter().filter(is_new);
        match self.waits {
            // One that has served and is down keeps nobody from taking part.
            Waits::UntilServing if new.all(|s| s.has_served) => {
                self.wait(Waits::UntilTold, now);
                self.step(now, seen)
            }
            Waits::UntilServing if since >= SERVE_WITHIN => Step::GiveUp(Trouble::NotServing),
            Waits::UntilTold if since >= TOLD_WITHIN => Step::GiveUp(Trouble::NotTold),
            Waits::UntilTold => {
                // One that was there before and is down has what it was told then. Of later orders operators heard that it did not answer.
                let untold = new.filter(|s| !s.is_down || self.started.contains(&s.number));
                let untold: Vec<&Known<'_>> = untold.collect();
                match untold.iter().all(|s| s.serves) {
                    true if untold.is_empty() => Step::Publish,
                    true => Step::Tell(untold.iter().map(|s| s.number).collect()),
                    false => Step::Wait,
                }
            }
            Waits::ForNothing => Step::Publish,
            Waits::UntilSettled | Waits::UntilServing => Step::Wait,
        }
    }

    /// Wanted shards that are not there; they are noted as started.
    fn missing(&mut self, seen: Seen<'_>) -> Vec<u8> {
        let is_there = |n: &u8| seen.shards.iter().any(|s| s.number == *n);
        let missing: Vec<u8> = (0..self.workers).filter(|n| !is_there(n)).collect();
        self.started.extend(&missing);
        missing
    }
}

#[cfg(test)]
mod tests {
    use ipc::control::Heartbeat;

    use super::*;

    /// Asks what is done, where shards are as `how` says of each: `_` has not served, `s` serves, `d` is down, `b` is behind the map, and
    /// `w` has served and waits to be started again.
    fn step(s: &mut Scaling, now: Instant, owners: &[u8], how: &str) -> Step {
        let beats =
            how.chars().map(|c| Heartbeat { settled_epoch: if c == 'b' { 6 } else { 7 }, ..Default::default() });
        let beats: Vec<Heartbeat> = beats.collect();
        let shards = (0u8..).zip(how.chars()).zip(&beats).map(|((number, c), heartbeat)| Known {
            number,
            runs: matches!(c, 's' | 'b'),
            serves: matches!(c, 's' | 'b'),
            has_served: c != '_',
            is_down: c == 'd',
            heartbeat,
            beat_at: now,
            left_complete: false,
        });
        let shards: Vec<Known<'_>> = shards.collect();
        s.step(now, Seen { epoch: 7, owners, shards: &shards })
    }

    #[test]
    fn more_shards_serve_and_know_what_is_paused_before_they_own_something() {
        let begun = Instant::now();
        let at = |s: u64| begun + Duration::from_secs(s);
        let mut s = Scaling::to(4, begun);
        assert_eq!(step(&mut s, at(0), &[0, 1], "sb"), Step::Wait, "the last change is under way");
        assert_eq!(step(&mut s, at(1), &[0, 1], "ss"), Step::Start(vec![2, 3]));
        assert_eq!(step(&mut s, at(2), &[0, 1], "sss_"), Step::Wait);
        assert_eq!(step(&mut s, at(3), &[0, 1], "ssss"), Step::Tell(vec![2, 3]));
        assert_eq!(step(&mut s, at(4), &[0, 1], "sssw"), Step::Wait, "told in vain, and one has ended");
        assert_eq!(step(&mut s, at(4), &[0, 1], "sssd"), Step::Wait, "it is new, and knows nothing");
        assert_eq!(step(&mut s, at(4), &[0, 1], "ssss"), Step::Tell(vec![2, 3]));
        s.are_told();
        assert_eq!(step(&mut s, at(5), &[0, 1], "ssss"), Step::Publish);
    }

    #[test]
    fn one_that_leaves_while_more_are_wanted_is_started_again() {
        let now = Instant::now();
        let mut s = Scaling::to(4, now);
        assert_eq!(step(&mut s, now, &[0, 1], "sss"), Step::Start(vec![3]));
        assert_eq!(step(&mut s, now, &[0, 1], "ssss"), Step::Tell(vec![2, 3]));
        // Shard 3 is gone: it was leaving since the change before.
        assert_eq!(step(&mut s, now, &[0, 1], "sss"), Step::Start(vec![3]));
        assert_eq!(step(&mut s, now, &[0, 1], "sss_"), Step::Wait);
        assert_eq!(step(&mut s, now, &[0, 1], "ssss"), Step::Tell(vec![2, 3]));
        s.are_told();
        assert_eq!(step(&mut s, now, &[0, 1], "sss"), Step::Start(vec![3]), "also when all was told");
    }

    #[test]
    fn fewer_need_nobody_and_as_many_nothing() {
        let now = Instant::now();
        assert_eq!(step(&mut Scaling::to(2, now), now, &[0, 1], "ss"), Step::IsSo);
        let mut s = Scaling::to(1, now);
        assert_eq!(step(&mut s, now, &[0, 1], "ss"), Step::Start(Vec::new()));
        assert_eq!(step(&mut s, now, &[0, 1], "sd"), Step::Publish);
    }

    #[test]
    fn one_that_is_down_and_was_there_before_takes_part() {
        let now = Instant::now();
        let mut s = Scaling::to(3, now);
        assert_eq!(step(&mut s, now, &[0, 1], "ssd"), Step::Start(Vec::new()));
        assert_eq!(step(&mut s, now, &[0, 1], "ssd"), Step::Publish);
    }

    #[test]
    fn it_is_given_up_when_nothing_comes_of_it() {
        let begun = Instant::now();
        let at = |s: u64| begun + Duration::from_secs(s);
        assert_eq!(step(&mut Scaling::to(2, begun), at(5), &[0], "b"), Step::GiveUp(Trouble::Unsettled));
        let mut s = Scaling::to(2, begun);
        assert_eq!(step(&mut s, at(4), &[0], "s"), Step::Start(vec![1]));
        assert_eq!(step(&mut s, at(63), &[0], "s_"), Step::Wait);
        assert_eq!(step(&mut s, at(64), &[0], "s_"), Step::GiveUp(Trouble::NotServing));
        let mut s = Scaling::to(2, begun);
        assert_eq!(step(&mut s, at(0), &[0], "s"), Step::Start(vec![1]));
        assert_eq!(step(&mut s, at(1), &[0], "ss"), Step::Tell(vec![1]));
        assert_eq!(step(&mut s, at(60), &[0], "ss"), Step::Tell(vec![1]));
        assert_eq!(step(&mut s, at(61), &[0], "ss"), Step::GiveUp(Trouble::NotTold));
    }
}
