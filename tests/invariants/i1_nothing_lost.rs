//! I1 and I2: workers, supervisor and the whole tree are killed at random instants under
//! load; everything that heard 250 arrives, and ends in one accounting row.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tests::accounting;
use tests::client::Client;
use tests::engine::Engine;
use tests::receiver::Receiver;
use tests::{Seed, eventually};

/// Injects until told to stop; keeps what heard 250.
pub fn inject(smtp: std::net::SocketAddr, lane: u32, stop: &AtomicBool, accepted: &Mutex<HashSet<String>>) {
    let body = "x".repeat(70) + "\r\n";
    let content = format!("Subject: t\r\n\r\n{}", body.repeat(60));
    let mut n = 0;
    while !stop.load(Relaxed) {
        let Ok(mut c) = Client::connect(smtp) else {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        for _ in 0..20 {
            n += 1;
            let (a, b) = (format!("a{lane}-{n}@d{}.test", n % 17), format!("b{lane}-{n}@e{}.test", n % 13));
            let Ok((code, _)) = c.send("s@x.test", &[&a, &b], &content) else { break };
            if code == 250 {
                accepted.lock().unwrap().extend([a, b]);
            }
        }
    }
}

fn kill_under_load(kills: u32, mut each: impl FnMut(&mut Engine, &mut Seed)) {
    let receiver = Receiver::start();
    let mut engine = Engine::start(
        2,
        &format!("<domain *>\n {}\n retry-after 1s\n retry-recipients-after 1s\n</domain>", receiver.hosts()),
    );
    let (stop, accepted) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(HashSet::new())));
    let lanes: Vec<_> = (0..6)
        .map(|lane| {
            let (smtp, stop, accepted) = (engine.smtp, Arc::clone(&stop), Arc::clone(&accepted));
            std::thread::spawn(move || inject(smtp, lane, &stop, &accepted))
        })
        .collect();
    let mut seed = Seed::new();
    for _ in 0..kills {
        std::thread::sleep(Duration::from_millis(50 + seed.below(250)));
        each(&mut engine, &mut seed);
    }
    stop.store(true, Relaxed);
    lanes.into_iter().for_each(|l| l.join().unwrap());
    let accepted = Arc::into_inner(accepted).unwrap().into_inner().unwrap();
    engine.wait_ready();
    let missing = || accepted.iter().filter(|r| !receiver.with(|s| s.delivered.contains_key(*r))).count();
    eventually("everything accepted is delivered", Duration::from_secs(90), || missing() == 0);
    eventually("the queues are empty", Duration::from_secs(60), || engine.queued() == 0);
    assert!(engine.stop(), "an orderly stop exits 0");
    let rows = accounting::rows(engine.path());
    let without: Vec<&String> = accepted.iter().filter(|r| !rows.contains_key(&("d".into(), (*r).clone()))).collect();
    assert!(without.is_empty(), "{} of {} without a row, such as {:?}", without.len(), accepted.len(), without.first());
    println!(
        "{} recipients, {kills} kills: lost 0, delivered twice {}, accounted twice {}",
        accepted.len(),
        receiver.duplicates(),
        rows.values().map(|n| n - 1).sum::<u32>()
    );
    let twice = receiver.duplicates() as usize;
    assert!(twice <= accepted.len() / 5, "{twice} duplicates of {}", accepted.len());
}

#[test]
fn workers_killed_under_load() {
    kill_under_load(50, |engine, seed| {
        let w = engine.workers();
        if !w.is_empty() {
            Engine::kill(w[seed.below(w.len() as u64) as usize]);
        }
        engine.wait_ready();
        // A worker that dies again soon is started with growing delay; a new supervisor
        // adopts the workers and begins to count anew.
        engine.kill_supervisor();
        engine.start_again();
    });
}

#[test]
fn supervisor_killed_under_load() {
    kill_under_load(40, |engine, _| {
        let before = engine.workers();
        engine.kill_supervisor();
        engine.start_again();
        assert_eq!(engine.workers(), before, "workers are adopted, not replaced");
    });
}

#[test]
fn whole_tree_killed_under_load() {
    kill_under_load(60, |engine, _| {
        engine.kill_all();
        engine.start_again();
    });
}
