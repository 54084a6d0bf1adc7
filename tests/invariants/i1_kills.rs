//! I1 and I2 while shards come and go: workers, supervisor and the whole tree are killed during
//! scale, restart and reload, with shares kept for a shard that stands still, and come back under
//! clocks that somebody has set (libfaketime, where it is installed). `SLUICE_ROUNDS` kills more
//! often than usual.

use std::collections::HashSet;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::accounting;
use tests::engine::{Engine, binary};
use tests::receiver::Receiver;
use tests::{Seed, eventually};

use crate::i1_nothing_lost::inject;

const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

/// A server that starts under another clock; not one by which accounting files were old enough to be
/// deleted (`delete-after`).
fn under_a_clock(seed: &mut Seed) -> Command {
    let mut c = Command::new(binary());
    let step = ["+0", "-20s", "-10d", "+2d", "+3600s"][seed.below(5) as usize];
    if Path::new(FAKETIME).exists() {
        c.env("LD_PRELOAD", FAKETIME).env("FAKETIME", step);
    }
    c
}

fn one_of(seed: &mut Seed, all: &[i32]) -> Option<i32> {
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

#[test]
fn nothing_is_lost_or_stranded_by_kills_while_mail_moves() {
    let rounds: u64 = std::env::var("SLUICE_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(12);
    let receiver = Receiver::start();
    let mut engine = Engine::start(
        3,
        &format!("<domain *>\n {}\n retry-after 1s\n retry-recipients-after 1s\n</domain>", receiver.hosts()),
    );
    let (stop, accepted) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(HashSet::new())));
    let lanes: Vec<_> = (0..3)
        .map(|lane| {
            let (smtp, stop, accepted) = (engine.smtp, Arc::clone(&stop), Arc::clone(&accepted));
            std::thread::spawn(move || inject(smtp, lane, &stop, &accepted))
        })
        .collect();
    let mut seed = Seed::new();
    for round in 0..rounds {
        // Every other round mail stays queued, and moves.
        receiver.script(|s| s.content_reply = (round % 2 == 0).then_some("451 4.3.0 not now"));
        std::thread::sleep(Duration::from_millis(seed.below(400)));
        disturb(&engine, &mut seed);
        std::thread::sleep(Duration::from_millis(seed.below(400)));
        match seed.below(3) {
            0 => one_of(&mut seed, &engine.workers()).into_iter().for_each(Engine::kill),
            1 => {}
            _ => engine.kill_all(),
        }
        // A worker that dies again soon is started with growing delay; a new supervisor begins
        // to count anew.
        engine.kill_supervisor();
        engine.start_again_by(under_a_clock(&mut seed));
    }
    receiver.script(|s| s.content_reply = None);
    stop.store(true, Relaxed);
    lanes.into_iter().for_each(|l| l.join().unwrap());
    let accepted = Arc::into_inner(accepted).unwrap().into_inner().unwrap();
    engine.wait_ready();
    let missing = || accepted.iter().filter(|r| !receiver.with(|s| s.delivered.contains_key(*r))).count();
    eventually("everything accepted is delivered", Duration::from_secs(180), || missing() == 0);
    eventually("the queues are empty", Duration::from_secs(60), || engine.queued() == 0);
    assert!(engine.stop(), "an orderly stop exits 0");
    let rows = accounting::rows(engine.path());
    let without = accepted.iter().filter(|r| !rows.contains_key(&("d".into(), (*r).clone()))).count();
    let bounced = rows.keys().filter(|(kind, _)| kind == "b").count();
    assert_eq!((without, bounced), (0, 0), "of {} accepted some have no row, or bounced", accepted.len());
    let twice = receiver.duplicates() as usize;
    println!("{} recipients, {rounds} rounds: lost 0, delivered twice {twice}", accepted.len());
    // What was in flight in the moment of each kill.
    assert!(twice as u64 <= 40 * rounds, "{twice} duplicates of {}", accepted.len());
}
