//! A stream of innocent mail beside an attack: it flows on, nothing of it is lost, and the server is afterwards as small as it was.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::engine::Engine;
use crate::eventually;
use crate::receiver::Receiver;

/// Domains that innocent mail goes to, each with a queue of its own.
const DOMAINS: usize = 20;
/// Time from one innocent message to the next.
const EVERY: Duration = Duration::from_millis(25);
/// How long the stream flows before the attack, to know how fast it is on this machine.
const BEFORE: Duration = Duration::from_secs(2);
/// Of a hundred innocent messages ninety-nine arrive within this time, or ten times what they took before the attack. On a machine
/// that does nothing else it is less than a second; one that is busy with other tests has no such figure.
const P99_MAX: Duration = Duration::from_secs(3);
/// Within this time behind the attack the server is as small as before.
const BACK_WITHIN: Duration = Duration::from_secs(10);
/// What counts as that: bytes and descriptors above rest.
const REST: Footprint = Footprint { memory: 16 << 20, descriptors: 20 };
/// Bytes where the attack brings thousands of names: mail to 4,600 honest domains leaves 25 to 30 MB of caches.
const REST_OF_MANY_NAMES: u64 = 36 << 20;

/// What the processes of a server take.
#[derive(Debug, Clone, Copy, Default)]
pub struct Footprint {
    /// Bytes that are no file's: how many others share the pages of the program does not count.
    pub memory: u64,
    pub descriptors: u64,
}

impl Footprint {
    pub fn of(engine: &Engine) -> Footprint {
        Self::of_processes(&[engine.workers(), vec![engine.pid()]].concat())
    }

    fn of_processes(pids: &[i32]) -> Footprint {
        let mut all = Footprint::default();
        for pid in pids {
            let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
            let memory = rollup.lines().find_map(|l| l.strip_prefix("Anonymous:")?.trim().strip_suffix(" kB"));
            all.memory += memory.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) << 10;
            all.descriptors += std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |d| d.count() as u64);
        }
        all
    }

    fn above(self, rest: Footprint) -> Footprint {
        Footprint {
            memory: self.memory.saturating_sub(rest.memory),
            descriptors: self.descriptors.saturating_sub(rest.descriptors),
        }
    }
}

/// Ends the threads of a stream, also when the attack panics.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// What an attack did.
#[derive(Debug)]
pub struct Impact {
    /// Time from connecting to delivery that ninety-nine of a hundred innocent messages kept, before the attack and beside it.
    pub p99_before: Duration,
    pub p99: Duration,
    /// The most that the server took above rest while the attack went on.
    pub above_rest: Footprint,
}

/// Where innocent mail goes.
#[derive(Debug)]
pub struct Innocents {
    pub receiver: Receiver,
    rest: Footprint,
}

impl Innocents {
    /// A receiver of their own.
    pub fn new() -> Innocents {
        Innocents { receiver: Receiver::at("127.0.0.10:0"), rest: REST }
    }

    /// The attack brings thousands of names, which the server remembers for a while.
    pub fn beside_many_names(mut self) -> Innocents {
        self.rest.memory = REST_OF_MANY_NAMES;
        self
    }

    /// The `<domain>` blocks that lead there.
    pub fn config(&self) -> String {
        (0..DOMAINS).map(|n| format!("<domain fine{n}.test>\n {}\n</domain>\n", self.receiver.hosts())).collect()
    }

    /// Lets innocent mail flow from 127.0.0.1, a session for each message, while `attack` runs and as long as what it answers
    /// lives afterwards; to be called once for each receiver. Asserts that the innocent notice nothing: each of their messages is
    /// taken and delivered once, 99 of 100 in time; and that the server is back at rest 10 s after the attack.
    pub fn beside<T>(&self, engine: &Engine, attack: impl FnOnce() -> T) -> Impact {
        let quiet = self.stream(engine, "before", || std::thread::sleep(BEFORE)).1;
        let rest = Footprint::of(engine);
        let (attack, p99, most) = self.stream(engine, "beside", attack);
        drop(attack);
        let impact = Impact { p99_before: quiet, p99, above_rest: most.above(rest) };
        println!("{impact:?}");
        assert!(p99 <= P99_MAX.max(quiet * 10), "innocent mail is slow: {impact:?}");
        assert_eq!(self.receiver.duplicates(), 0);
        let above = || Footprint::of(engine).above(rest);
        let is_back = |a: Footprint| a.memory <= self.rest.memory && a.descriptors <= self.rest.descriptors;
        let until = Instant::now() + BACK_WITHIN;
        while !is_back(above()) {
            assert!(Instant::now() < until, "not back at rest after {BACK_WITHIN:?}: {:?} above", above());
            std::thread::sleep(Duration::from_millis(200));
        }
        impact
    }

    /// A message every [`EVERY`] while `run` does; what that answered, the 99th percentile, and the most that the server took.
    fn stream<T>(&self, engine: &Engine, name: &str, run: impl FnOnce() -> T) -> (T, Duration, Footprint) {
        let over = AtomicBool::new(false);
        let pids = [engine.workers(), vec![engine.pid()]].concat();
        let (answer, sent, most) = std::thread::scope(|s| {
            let sender = s.spawn(|| {
                let mut sent = Vec::new();
                while !over.load(Relaxed) {
                    let to = format!("{name}{}@fine{}.test", sent.len(), sent.len() % DOMAINS);
                    let at = Instant::now();
                    let taken = Client::connect(engine.smtp)
                        .and_then(|mut c| c.send("innocent@x.test", &[&to], "Subject: innocent\r\n\r\nx"));
                    assert!(taken.as_ref().is_ok_and(|(code, _)| *code == 250), "innocent mail is refused: {taken:?}");
                    sent.push((to, at));
                    std::thread::sleep(EVERY.saturating_sub(at.elapsed()));
                }
                sent
            });
            let watcher = s.spawn(|| {
                let mut most = Footprint::default();
                while !over.load(Relaxed) {
                    let now = Footprint::of_processes(&pids);
                    most.memory = most.memory.max(now.memory);
                    most.descriptors = most.descriptors.max(now.descriptors);
                    std::thread::sleep(Duration::from_millis(250));
                }
                most
            });
            let ends = Ends(&over);
            let answer = run();
            drop(ends);
            (answer, sender.join().unwrap(), watcher.join().unwrap())
        });
        let has = |s: &crate::receiver::Seen| sent.iter().all(|(to, _)| s.delivered_at.contains_key(to));
        eventually("innocent mail is delivered", Duration::from_secs(30), || self.receiver.with(|s| has(s)));
        let mut took: Vec<Duration> = self.receiver.with(|s| {
            let took = |(to, at): &(String, Instant)| s.delivered_at.get(to).map(|d| d.saturating_duration_since(*at));
            sent.iter().filter_map(took).collect()
        });
        took.sort_unstable();
        let p99 = took.get((took.len() * 99 / 100).min(took.len().saturating_sub(1))).copied().unwrap_or_default();
        (answer, p99, most)
    }
}

impl Default for Innocents {
    fn default() -> Innocents {
        Innocents::new()
    }
}
