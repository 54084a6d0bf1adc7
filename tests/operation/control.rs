//! What the supervisor and its workers owe each other: nobody is killed without need, nothing that was
//! held leaks, and a stop has happened when it says so.

use std::process::{Child, Command};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::client::Client;
use tests::engine::Engine;
use tests::eventually;
use tests::receiver::Receiver;

use super::send;

const WAIT: Duration = Duration::from_secs(20);

#[test]
fn adopted_workers_end_with_a_stop_and_their_numbers_mean_nobody_else() {
    let mut engine = Engine::start(2, "stop-grace 1s");
    let before = engine.workers();
    engine.kill_supervisor();
    engine.start_again();
    assert_eq!(engine.workers(), before, "both were adopted");
    assert_eq!(engine.run(&["stop"]), "Stopped.\n");
    let exists = |pid: &i32| kill(Pid::from_raw(*pid), None).is_ok();
    // The process that adopts orphans on this machine may be slow to collect them.
    let is_zombie = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| s.contains(") Z "));
    assert!(before.iter().all(|p| !exists(p) || is_zombie(p)), "when the answer comes they are gone");
    assert!(!engine.log().contains("is hung"));
    assert_eq!(engine.sluice(&["status"]).status.code(), Some(3), "so is the supervisor");
}

#[test]
fn a_number_in_a_lock_that_is_somebody_elses_kills_nobody() {
    let mut engine = Engine::start(1, "");
    let lock = engine.path().join("spool/shard-00/lock");
    engine.kill_all();
    // Another process holds the lock, and the number in it is a stranger's.
    let mut stranger = Command::new("sleep").arg("60").spawn().unwrap();
    std::fs::write(&lock, format!("{}\n", stranger.id())).unwrap();
    let mut held = Command::new("flock").arg(&lock).args(["sleep", "13"]).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    engine.start_again();
    assert!(stranger.try_wait().unwrap().is_none(), "it lives");
    let end = |c: &mut Child| {
        let _ = c.kill();
        let _ = c.wait();
    };
    end(&mut stranger);
    end(&mut held);
}

#[test]
fn places_of_a_worker_that_died_with_its_supervisor_are_free() {
    let r = Receiver::start();
    let mut engine = Engine::start(2, &format!("total-max-smtp-out 1\n<domain *>\n {}\n</domain>", r.hosts()));
    // The connection stays in use.
    r.script(|s| s.delay = Duration::from_secs(600));
    for n in 0..8 {
        send(&engine, 1, "u", &format!("d{n}.test"));
    }
    let busy = |engine: &Engine| -> Vec<u64> {
        let rows = engine.json(&["show", "shards", "--json"]);
        rows.as_array().unwrap().iter().map(|s| s["connections_out"].as_u64().unwrap()).collect()
    };
    eventually("the only place is taken", WAIT, || busy(&engine).iter().sum::<u64>() == 1);
    let holder = busy(&engine).iter().position(|n| *n > 0).unwrap();
    let dies = engine.workers()[holder];
    engine.kill_supervisor();
    Engine::kill(dies);
    r.script(|s| s.delay = Duration::ZERO);
    engine.start_again();
    assert_eq!(engine.workers().iter().filter(|p| **p == dies).count(), 0);
    eventually("all arrive", WAIT * 3, || engine.queued() == 0);
}

#[test]
fn a_supervisor_that_stood_still_kills_nobody() {
    let engine = Engine::start(2, "");
    let before = engine.workers();
    kill(Pid::from_raw(engine.pid()), Signal::SIGSTOP).unwrap();
    std::thread::sleep(Duration::from_secs(12));
    kill(Pid::from_raw(engine.pid()), Signal::SIGCONT).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(engine.workers(), before);
    assert!(!engine.log().contains("is hung"));
}

#[test]
fn queues_are_listed_in_pages_and_filtered() {
    let r = Receiver::start();
    r.script(|s| s.greeting = "421 later");
    let config = format!("<domain *>\n {}\n retry-after 1h\n</domain>", r.hosts());
    let engine = Engine::start(2, &config);
    // Rows of some 400 bytes, of which a page holds a few thousand.
    let long = format!("{0}.{0}.test", "a".repeat(60));
    let mut c = Client::connect(engine.smtp).unwrap();
    let to: Vec<String> = (0..9_000).map(|n| format!("u@d{n}.{long}")).collect();
    for part in to.chunks(500) {
        let to: Vec<&str> = part.iter().map(String::as_str).collect();
        assert_eq!(c.send("", &to, "Subject: x\r\n\r\nx").unwrap().0, 250);
    }
    let rows = |args: &[&str]| {
        let all = engine.json(&[&["show"], args, &["--json"]].concat());
        all.as_array().map_or(0, Vec::len)
    };
    eventually("each domain is a queue", WAIT, || rows(&["queues"]) == 9_000);
    assert_eq!(rows(&["domains"]), 9_000);
    assert_eq!(rows(&["queues", "--maxitems=7", "--sort=name"]), 7);
    assert_eq!(rows(&["queues", &format!("d17.{long}")]), 1);
    engine.run(&["pause", "queue", &format!("d18.{long}")]);
    assert_eq!((rows(&["queues", "--paused=yes"]), rows(&["queues", "--paused=no"])), (1, 8_999));
    assert!(rows(&["paths"]) > 0);
    engine.run(&["set", "queue", "--mode=backoff", &format!("d19.{long}")]);
    let backoff = engine.json(&["show", "queues", "--mode=backoff", "--json"]);
    assert_eq!(backoff.as_array().unwrap().len(), 1);
    assert_eq!(backoff[0]["destination"], format!("d19.{long}"));
    assert_eq!(rows(&["queues", "--mode=normal"]), 8_999);
    assert_eq!(engine.sluice(&["show", "queues", "--mode=odd"]).status.code(), Some(2));
}

#[test]
fn a_stop_waits_for_no_receiver_that_has_no_content_yet() {
    let r = Receiver::start();
    let engine = Engine::start(1, &format!("stop-grace 2m\n<domain *>\n {}\n</domain>", r.hosts()));
    let restarts_at_once = |what: &str| {
        let before = engine.workers();
        std::thread::scope(|s| {
            s.spawn(|| engine.run(&["shard", "restart", "0"]));
            eventually(what, WAIT, || engine.workers() != before);
        });
    };
    r.script(|s| s.hang = true);
    send(&engine, 1, "u", "d.test");
    eventually("it waits for the greeting", WAIT, || r.with(|s| s.connections) == 1);
    restarts_at_once("a connection without a session is dropped");
    r.script(|s| (s.hang, s.drips) = (false, Some("250 2.1.5")));
    eventually("it waits for the reply to RCPT", Duration::from_secs(60), || {
        r.with(|s| s.commands.iter().any(|c| c.starts_with("RCPT")))
    });
    restarts_at_once("a transaction without content is dropped");
    r.script(|s| s.drips = None);
    eventually("the mail arrives once", Duration::from_secs(60), || r.unique() == 1);
    assert_eq!(r.duplicates(), 0);
}
