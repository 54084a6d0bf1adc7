//! Running it: systemd's protocol, files on disk, the spool's care for itself.
#![allow(clippy::unwrap_used, missing_docs)]

mod control;
mod delete;
mod local_rights;
mod log_lines;
mod message;
mod orders;
mod planted;
mod queues;
mod reroute;
mod sandbox;
mod scenarios;
mod sink;
mod spool;
mod strangers;
mod structure;
mod systemd;
mod why;

use std::time::Duration;

use tests::client::Client;
use tests::engine::Engine;
use tests::receiver::Receiver;
use tests::{accounting, eventually};

/// Sends one message each to `u0@DOMAIN` and so on; all are accepted.
fn send(engine: &Engine, n: u32, prefix: &str, domain: &str) {
    let mut c = Client::connect(engine.smtp).unwrap();
    for i in 0..n {
        let sent = c.send("", &[&format!("{prefix}{i}@{domain}")], "Subject: x\r\n\r\nx").unwrap();
        assert_eq!(sent.0, 250, "{}", sent.1);
    }
}

#[test]
fn accounting_files_are_switched_and_moved_whole() {
    let r = Receiver::start();
    let mut engine = Engine::start(
        2,
        &format!(
            "<domain *>\n {}\n</domain>\n<acct-file moved/moved.csv>\n records d\n move-to done\n move-interval 1s\n</acct-file>",
            r.hosts()
        ),
    );
    for round in 0..4 {
        send(&engine, 30, &format!("r{round}-"), &format!("d{round}.test"));
        std::thread::sleep(Duration::from_millis(700));
    }
    eventually("all arrive", Duration::from_secs(10), || r.unique() == 120);
    let done = engine.path().join("done");
    let moved = || std::fs::read_dir(&done).map_or(0, |d| d.count());
    eventually("files were moved", Duration::from_secs(10), || moved() >= 2);
    assert!(engine.sluice(&["rotate", "acct"]).status.success());
    assert!(engine.stop());
    let mut rows = std::collections::HashMap::new();
    for folder in ["done", "moved"] {
        for f in std::fs::read_dir(engine.path().join(folder)).unwrap().flatten() {
            let text = std::fs::read_to_string(f.path()).unwrap();
            assert!(text.starts_with("type,timeLogged,") && text.ends_with("\r\n"), "{text}");
            for line in text.lines().skip(1) {
                *rows.entry(line.split(',').nth(4).unwrap().to_owned()).or_insert(0) += 1;
            }
        }
    }
    assert_eq!(rows.len(), 120);
    assert!(rows.values().all(|n| *n == 1), "no row is in two files");
    assert_eq!(accounting::rows(engine.path()).len(), 120, "the other file has them too");
}

#[test]
fn a_worker_that_hangs_is_replaced() {
    let r = Receiver::start();
    let engine = Engine::start(2, &format!("<domain *>\n {}\n</domain>", r.hosts()));
    let before = engine.workers();
    let hung = nix::unistd::Pid::from_raw(before[0]);
    nix::sys::signal::kill(hung, nix::sys::signal::Signal::SIGSTOP).unwrap();
    eventually("another has its place", Duration::from_secs(30), || {
        let now = engine.workers();
        now.len() == 2 && now[0] != before[0]
    });
    engine.wait_ready();
    assert_eq!(engine.workers()[1], before[1], "the other is left alone");
    send(&engine, 20, "u", "d.test");
    eventually("all arrive", Duration::from_secs(10), || r.unique() == 20);
}

#[test]
fn a_shard_that_is_down_starts_at_once_when_an_operator_restarts_it() {
    let engine = Engine::start(2, "");
    let (spool, away) = (engine.path().join("spool/shard-01"), engine.path().join("away"));
    let worker = engine.workers()[1];
    std::fs::rename(&spool, &away).unwrap();
    std::fs::write(&spool, "a file in the place of a folder").unwrap();
    Engine::kill(worker);
    let waits = || engine.log().contains("starting it again after a delay shard=1 seconds=16");
    eventually("it has failed five times", Duration::from_secs(60), waits);
    std::fs::remove_file(&spool).unwrap();
    std::fs::rename(&away, &spool).unwrap();
    engine.run(&["shard", "restart", "--no-wait", "1"]);
    eventually("it serves before its delay is over", Duration::from_secs(10), || {
        let rows = engine.json(&["show", "shards", "--json"]);
        rows.as_array().is_some_and(|r| r.len() == 2 && r.iter().all(|s| s["state"] == "serving"))
    });
}

#[test]
fn fewer_workers_after_a_restart_drain_what_the_others_left() {
    let r = Receiver::start();
    r.script(|s| s.greeting = "421 later");
    let config = format!("<domain *>\n {}\n retry-after 1s\n</domain>", r.hosts());
    let mut engine = Engine::start(4, &config);
    for n in 0..20 {
        send(&engine, 1, &format!("u{n}-"), &format!("d{n}.test"));
    }
    assert!(engine.stop());
    engine.edit_config("workers 4", "workers 1");
    engine.start_again();
    r.script(|s| s.greeting = "220 receiver.test");
    eventually("all arrive", Duration::from_secs(20), || r.unique() == 20);
    eventually("one worker is left", Duration::from_secs(20), || engine.workers().len() == 1);
    assert_eq!(r.duplicates(), 0);
}

#[test]
fn a_reload_rotation_and_restart_on_top_of_each_other_lose_no_row() {
    let r = Receiver::start();
    let engine = Engine::start(1, &format!("<domain *>\n {}\n</domain>", r.hosts()));
    let first = "<acct-file acct/acct.csv>";
    engine.edit_config(first, &format!("<acct-file other/receipts.csv>\n records r\n</acct-file>\n{first}"));
    assert!(engine.sluice(&["reload"]).status.success());
    assert!(engine.sluice(&["rotate", "acct"]).status.success());
    assert!(engine.sluice(&["shard", "restart", "0"]).status.success());
    send(&engine, 1, "u", "d.test");
    eventually("its row is written", Duration::from_secs(10), || {
        accounting::rows(engine.path()).contains_key(&("d".into(), "u0@d.test".into()))
    });
}

#[test]
fn counters_outlive_workers_and_files_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let r = Receiver::start();
    let engine = Engine::start(2, &format!("<domain *>\n {}\n</domain>", r.hosts()));
    let total = |engine: &Engine| {
        engine.json(&["status", "--json"])["data"]["status"]["traffic"]["total"]["out"]["rcp"].as_u64()
    };
    for n in 0..10 {
        send(&engine, 1, "u", &format!("d{n}.test"));
    }
    eventually("ten are counted", Duration::from_secs(10), || total(&engine) == Some(10));
    assert!(engine.sluice(&["shard", "restart", "0"]).status.success());
    assert!(engine.sluice(&["scale", "1"]).status.success());
    assert_eq!(total(&engine), Some(10));
    for f in std::fs::read_dir(engine.path().join("spool/shard-00/log")).unwrap().flatten() {
        assert_eq!(f.metadata().unwrap().permissions().mode() & 0o007, 0, "{:?}", f.path());
    }
}

#[test]
fn nobody_waits_at_a_server_that_stops() {
    let mut engine = Engine::start(2, "");
    let mut held = Client::connect(engine.smtp).unwrap();
    held.command("MAIL FROM:<s@x.test>").unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(engine.pid()), nix::sys::signal::Signal::SIGTERM).unwrap();
    eventually("new connections are refused", Duration::from_secs(5), || Client::dial(engine.smtp).is_err());
    held.command("RSET").unwrap();
    drop(held);
    assert!(engine.stop());
}
