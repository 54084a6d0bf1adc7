//! I1 and I2 while shards come and go: workers, supervisor and the whole tree are killed during
//! scale, restart and reload, with shares kept for a shard that stands still, while the machine's
//! clock is set and the disk is full. `SLUICE_ROUNDS` kills more often than usual.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::client::Client;
use tests::engine::{Engine, binary};
use tests::receiver::Receiver;
use tests::{Seed, accounting, eventually};

use crate::i1_full_disk::Mounted;
use crate::i1_nothing_lost::inject;

/// Rounds between two looks at what has arrived.
const ROUNDS: u64 = 4;
const LANES: u32 = 3;

/// A clock that the servers share and that is set while they run.
struct Clock {
    folder: tempfile::TempDir,
    library: PathBuf,
}

impl Clock {
    fn new() -> Option<Clock> {
        let library = format!("/usr/lib/{}-linux-gnu/faketime/libfaketimeMT.so.1", std::env::consts::ARCH).into();
        if !Path::new(&library).exists() {
            println!("skipped: clocks that are set, for libfaketime is not installed");
            return None;
        }
        let clock = Clock { folder: tempfile::tempdir().unwrap(), library };
        clock.set("+0");
        Some(clock)
    }

    /// How far it is off. Servers that run look once a second.
    fn set(&self, step: &str) {
        let new = self.folder.path().join("new");
        std::fs::write(&new, format!("{step}\n")).unwrap();
        std::fs::rename(new, self.file()).unwrap();
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("clock")
    }

    /// The server under this clock. What is not set in a real machine is not touched here: with a
    /// faked monotonic clock waits that end by the kernel's never end, and outcomes that wait for
    /// company are not written until something else comes.
    fn command(&self) -> Command {
        let mut c = Command::new(binary());
        c.env("LD_PRELOAD", &self.library)
            .env("FAKETIME_TIMESTAMP_FILE", self.file())
            .env("FAKETIME_CACHE_DURATION", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        c
    }
}

fn one_of<T: Copy>(seed: &mut Seed, all: &[T]) -> Option<T> {
    (!all.is_empty()).then(|| all[seed.below(all.len() as u64) as usize])
}

/// Begins something that moves mail between shards, and does not wait for its end.
fn disturb(engine: &Engine, seed: &mut Seed) {
    let n = (1 + seed.below(4)).to_string();
    match seed.below(5) {
        0 | 1 => drop(engine.sluice(&["scale", &n, "--no-wait"])),
        2 => drop(engine.sluice(&["shard", "restart", "0", "--no-wait"])),
        3 => drop(engine.sluice(&["reload"])),
        _ => {
            // Its owner does not answer: shares are kept.
            if let Some(pid) = one_of(seed, &engine.workers()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGSTOP);
                std::thread::sleep(Duration::from_millis(1500));
                let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
            }
        }
    }
}

/// What happens to the machine meanwhile.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Machine {
    Well,
    ClockSet,
    ClockSetDiskFull,
}

#[derive(Debug, Default)]
struct Figures {
    kills: u64,
    recipients: usize,
    twice: u32,
}

struct Scene<'a> {
    engine: Engine,
    receiver: Receiver,
    clock: Option<Clock>,
    disk: Option<Mounted<'a>>,
    seed: Seed,
}

impl Scene<'_> {
    fn set_clock(&mut self) {
        let step = ["+0", "-20s", "-10d", "+2d", "+3600s"][self.seed.below(5) as usize];
        self.clock.iter().for_each(|c| c.set(step));
    }

    /// Answers how many processes, or trees of them, were killed.
    fn kill(&mut self) -> u64 {
        let also = match self.seed.below(3) {
            0 => {
                let one = one_of(&mut self.seed, &self.engine.workers());
                one.into_iter().for_each(Engine::kill);
                u64::from(one.is_some())
            }
            1 => 0,
            _ => {
                self.engine.kill_all();
                0
            }
        };
        // A worker that dies again soon is started with growing delay; a new supervisor begins
        // to count anew.
        self.engine.kill_supervisor();
        1 + also
    }

    /// A few rounds under load, then everything must arrive. Adds what was accepted to `all`.
    fn rounds(&mut self, first_lane: u32, machine: Machine, all: &mut HashSet<String>) -> Figures {
        let (stop, accepted) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(HashSet::new())));
        let lanes: Vec<_> = (first_lane..first_lane + LANES)
            .map(|lane| {
                let (smtp, stop, accepted) = (self.engine.smtp, Arc::clone(&stop), Arc::clone(&accepted));
                std::thread::spawn(move || inject(smtp, lane, &stop, &accepted))
            })
            .collect();
        let (mut kills, twice_before) = (0, self.receiver.duplicates());
        for round in 0..ROUNDS {
            // Every other round mail stays queued, and moves.
            self.receiver.script(|s| s.content_reply = (round % 2 == 0).then_some("451 4.3.0 not now"));
            let pause = self.seed.below(400);
            std::thread::sleep(Duration::from_millis(pause));
            if machine == Machine::ClockSetDiskFull {
                match round {
                    0 => self.disk.iter().for_each(Mounted::fill),
                    2 => self.disk.iter().for_each(Mounted::free),
                    _ => {}
                }
            }
            if machine != Machine::Well {
                self.set_clock();
            }
            disturb(&self.engine, &mut self.seed);
            let pause = self.seed.below(400);
            std::thread::sleep(Duration::from_millis(pause));
            kills += self.kill();
            if machine != Machine::Well {
                self.set_clock();
            }
            self.engine.start_again_by(self.clock.as_ref().map_or_else(|| Command::new(binary()), Clock::command));
        }
        self.receiver.script(|s| s.content_reply = None);
        let before = accepted.lock().unwrap().len();
        eventually("new mail is taken", Duration::from_secs(30), || accepted.lock().unwrap().len() > before);
        stop.store(true, Relaxed);
        lanes.into_iter().for_each(|l| l.join().unwrap());
        let accepted = Arc::into_inner(accepted).unwrap().into_inner().unwrap();
        self.all_arrive(&accepted);
        let figures = Figures { kills, recipients: accepted.len(), twice: self.receiver.duplicates() - twice_before };
        if figures.twice as usize > accepted.len() / 200 {
            self.say_when(&accepted);
        }
        self.receiver.with(|s| (s.messages.clear(), s.commands.clear(), s.rcpts.clear(), s.taken.clear()));
        all.extend(accepted);
        figures
    }

    /// Prints when each that came twice came, and what the server has said.
    fn say_when(&self, accepted: &HashSet<String>) {
        println!("--- the server's log");
        println!("{}", self.engine.log());
        self.receiver.with(|s| {
            let of = |m: &tests::receiver::Message| m.rcpts.iter().any(|r| accepted.contains(r) && s.delivered[r] > 1);
            println!("--- came twice, by milliseconds before now");
            for ((at, _, _), m) in s.taken.iter().zip(&s.messages).filter(|(_, m)| of(m)) {
                println!("{} {} {}", at.elapsed().as_millis(), m.rcpts.join(" "), m.hello);
            }
        });
    }

    /// What no start of everything brings is lost; what one brings was stranded.
    fn all_arrive(&mut self, accepted: &HashSet<String>) {
        let receiver = self.receiver.clone();
        let missing = || receiver.with(|s| accepted.iter().filter(|r| !s.delivered.contains_key(*r)).count());
        let arrives = |engine: &Engine| {
            (0..1200).any(|_| {
                std::thread::sleep(Duration::from_millis(50));
                missing() == 0 && engine.queued() == 0
            })
        };
        if arrives(&self.engine) {
            return;
        }
        let (waiting, queued) = (missing(), self.engine.queued());
        self.engine.kill_all();
        self.engine.start_again();
        arrives(&self.engine);
        let lost = missing();
        panic!("of {} recipients {} stranded, {lost} lost; {queued} were queued", accepted.len(), waiting - lost);
    }
}

#[test]
fn nothing_is_lost_or_stranded_by_kills_while_mail_moves() {
    let rounds: u64 = std::env::var("SLUICE_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(12);
    let folder = tempfile::tempdir().unwrap();
    let disk = Mounted::at(folder.path(), 600);
    // What a server says on a full disk is read too.
    let log = tempfile::NamedTempFile::new().unwrap();
    std::os::unix::fs::symlink(log.path(), folder.path().join("log")).unwrap();
    let receiver = Receiver::start();
    // Clocks are set by a library that reads them from a file, which a worker in the sandbox must not.
    let config = format!(
        "sandbox no\n<domain *>\n {}\n retry-after 1s\n retry-recipients-after 1s\n</domain>",
        receiver.hosts()
    );
    let clock = Clock::new();
    let engine = Engine::start_in(folder.path(), 3, &config, |_| {
        clock.as_ref().map_or_else(|| Command::new(binary()), Clock::command)
    });
    // Files are counted at the end, whatever the clock says of their age.
    engine.edit_config(" records d,b,t\n", " records d,b\n delete-after never\n");
    engine.run(&["reload"]);
    let mut scene = Scene { engine, receiver, clock, disk, seed: Seed::new() };
    let (mut accepted, mut total) = (HashSet::new(), Figures::default());
    for n in 0..rounds.div_ceil(ROUNDS) {
        let machine = [Machine::Well, Machine::ClockSet, Machine::ClockSetDiskFull][(n % 3) as usize];
        let f = scene.rounds(n as u32 * LANES, machine, &mut accepted);
        println!("{machine:?}: {f:?}");
        total = Figures {
            kills: total.kills + f.kills,
            recipients: total.recipients + f.recipients,
            twice: total.twice + f.twice,
        };
    }
    assert!(scene.engine.stop(), "an orderly stop exits 0");
    let rows = accounting::rows(folder.path());
    let without = accepted.iter().filter(|r| !rows.contains_key(&("d".into(), (*r).clone()))).count();
    let bounced = rows.keys().filter(|(kind, _)| kind == "b").count();
    assert_eq!((without, bounced), (0, 0), "of {} accepted some have no row, or bounced", accepted.len());
    println!("lost 0, stranded 0, {total:?}");
    // What was in flight in the moment of a kill, of which there is one for every few hundred
    // recipients; a short run may meet a burst.
    let most = total.recipients / 200 + 60;
    assert!(total.twice as usize <= most, "{} of {} came twice", total.twice, total.recipients);
}

#[test]
fn what_an_owner_was_offered_before_a_kill_is_not_sent_by_both() {
    let receiver = Receiver::start();
    receiver.script(|s| s.greeting = "421 later");
    let config = format!("<domain *>\n {}\n retry-after 1s\n</domain>", receiver.hosts());
    let mut engine = Engine::start(2, &config);
    let mut c = Client::connect(engine.smtp).unwrap();
    for n in 0..60 {
        let to = format!("r{n}@d{}.test", n % 6);
        assert_eq!(c.send("s@s.test", &[&to], "Subject: x\r\n\r\nx").unwrap().0, 250);
    }
    let workers = engine.workers();
    // The one that stays reads what it is offered when the one that leaves has been killed.
    let signal = |s| kill(Pid::from_raw(workers[0]), s).unwrap();
    signal(Signal::SIGSTOP);
    engine.run(&["scale", "1", "--no-wait"]);
    std::thread::sleep(Duration::from_millis(500));
    Engine::kill(workers[1]);
    signal(Signal::SIGCONT);
    receiver.script(|s| s.greeting = "220 receiver.test");
    eventually("all arrive", Duration::from_secs(30), || receiver.unique() == 60 && engine.queued() == 0);
    assert_eq!(receiver.duplicates(), 0);
    assert!(engine.stop());
}
