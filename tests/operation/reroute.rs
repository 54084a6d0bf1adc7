//! `sluice reroute`: mail that waits goes by another virtual MTA or pool, with all that is known of it, once.

use std::time::Duration;

use tests::client::Client;
use tests::engine::Engine;
use tests::receiver::Receiver;
use tests::{accounting, eventually};

const WAIT: Duration = Duration::from_secs(30);

const VMTAS: &str = "<virtual-mta a>\n smtp-source-host 127.0.6.31 a.test\n</virtual-mta>\n\
    <virtual-mta b>\n smtp-source-host 127.0.6.32 b.test\n</virtual-mta>\n\
    <virtual-mta-pool p>\n virtual-mta b\n</virtual-mta-pool>\n\
    <virtual-mta back>\n smtp-source-host 127.0.6.33 back.test\n <domain *>\n  reroute-to-virtual-mta a\n </domain>\n</virtual-mta>\n";

fn start(workers: u32, r: &Receiver, more: &str) -> Engine {
    let rules =
        format!("{VMTAS}<domain *>\n {}\n retry-after 1h\n retry-recipients-after 1h\n{more}\n</domain>", r.hosts());
    Engine::start(workers, &rules)
}

fn send(engine: &Engine, to: &[&str], headers: &str) {
    let mut c = Client::connect(engine.smtp).unwrap();
    let (code, text) = c.send("s@x.test", to, &format!("{headers}Subject: x\r\n\r\nx")).unwrap();
    assert_eq!(code, 250, "{text}");
}

fn queue(engine: &Engine, name: &str) -> serde_json::Value {
    let rows = engine.json(&["show", "queues", "--json"]);
    rows.as_array().and_then(|r| r.iter().find(|q| q["queue"] == name).cloned()).unwrap_or_default()
}

#[test]
fn mail_moves_with_all_that_is_known_of_it() {
    let r = Receiver::start();
    let mut engine = start(2, &r, " bounce-after 1h");
    // Deferred by its receiver, and never tried.
    r.script(|s| s.rcpt_reply = Some(("451 4.2.1 wait a while", None)));
    send(&engine, &["u@d.test"], "x-virtual-mta: a\r\nx-job: spring\r\nX-Envid: e7\r\n");
    eventually("it is deferred", WAIT, || r.with(|s| s.deferred.len()) == 1);
    r.script(|s| s.rcpt_reply = None);
    engine.run(&["pause", "queue", "*/a"]);
    send(&engine, &["v@d.test", "w@d.test"], "x-virtual-mta: a\r\nx-job: spring\r\n");
    send(&engine, &["x@d.test", "x@e.test"], "x-virtual-mta: a\r\nx-job: autumn\r\n");
    eventually("all wait", WAIT, || engine.queued() == 5);
    let said = engine.run(&["reroute", "d.test/a", "--job", "spring", "--to", "b", "--dry-run"]);
    assert_eq!(said, "3 recipients would be moved.\n  d.test/a to d.test/b: 3\n");
    assert_eq!(queue(&engine, "d.test/a")["recipients"], 4);
    engine.run(&["pause", "queue", "*/b"]);
    let said = engine.run(&["reroute", "d.test/a", "--job", "spring", "--to", "B"]);
    assert_eq!(said, "3 recipients moved.\n  d.test/a to d.test/b: 3\n");
    assert_eq!((queue(&engine, "d.test/a")["recipients"].clone(), engine.queued()), (1.into(), 5));
    let said = engine.run(&["reroute", "d.test", "--job=spring", "--to=b"]);
    assert_eq!(said, "0 recipients moved.\n3 recipients are in that queue already.\n");
    assert!(engine.stop());
    engine.start_again();
    assert_eq!(queue(&engine, "d.test/b")["recipients"], 3);
    engine.run(&["resume", "queue", "*/b"]);
    eventually("what was never tried goes", WAIT, || r.unique() == 2);
    assert_eq!(r.message_to("v@d.test").unwrap().hello, "b.test");
    // The other waits as long as it would have.
    std::thread::sleep(Duration::from_millis(500));
    assert!(r.message_to("u@d.test").is_none());
    engine.run(&["schedule", "--retry-recipients", "d.test/b"]);
    eventually("it goes", WAIT, || r.message_to("u@d.test").is_some_and(|m| m.hello == "b.test"));
    let said = engine.run(&["reroute", "--job", "autumn", "--to", "p"]);
    assert_eq!(said, "2 recipients moved.\n  d.test/a to d.test/p: 1\n  e.test/a to e.test/p: 1\n");
    eventually("it goes by the pool", WAIT, || r.unique() == 5 && engine.queued() == 0);
    assert_eq!(r.duplicates(), 0);
    eventually("each has one record", WAIT, || {
        accounting::rows(engine.path()).iter().filter(|(k, _)| k.0 == "d").count() == 5
    });
    let rows = accounting::rows(engine.path());
    assert!(rows.values().all(|n| *n == 1), "{rows:?}");
}

#[test]
fn an_order_that_cannot_be_followed_says_why() {
    let r = Receiver::start();
    let engine = start(2, &r, "");
    r.script(|s| s.greeting = "421 later");
    send(&engine, &["u@d.test"], "x-virtual-mta: a\r\n");
    eventually("it waits", WAIT, || queue(&engine, "d.test/a")["next_retry"].as_str().is_some_and(|at| !at.is_empty()));
    let refused = |args: &[&str]| {
        let out = engine.sluice(args);
        assert_eq!(out.status.code(), Some(1), "{args:?}");
        String::from_utf8_lossy(&out.stderr).into_owned()
    };
    let said = refused(&["reroute", "d.test/a", "--to", "bakc"]);
    assert!(said.contains("no virtual MTA or pool bakc; did you mean back?"), "{said}");
    let said = refused(&["reroute", "nowhere.test", "--to", "b"]);
    assert!(said.contains("0 recipients moved"), "{said}");
    assert!(refused(&["reroute", "--job", "none", "--to", "b"]).contains("job none"));
    assert!(refused(&["reroute", "d.test/aa", "--to", "b"]).contains("no virtual MTA or pool aa"));
    // It would come back at once.
    let said = engine.run(&["reroute", "d.test/a", "--to", "back"]);
    assert_eq!(said, "0 recipients moved.\n1 recipient is in that queue already.\n");
    for wrong in [&["reroute", "--to", "b"][..], &["reroute", "d.test"], &["reroute", "a/b/c", "--to", "b"]] {
        assert_eq!(engine.sluice(wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn of_mail_that_was_sent_on_to_another_only_what_is_meant_moves_or_is_deleted() {
    let r = Receiver::start();
    r.script(|s| s.greeting = "421 later");
    let engine = start(1, &r, "");
    send(&engine, &["of-back@d.test"], "x-virtual-mta: back\r\n");
    send(&engine, &["of-a@d.test"], "x-virtual-mta: a\r\n");
    send(&engine, &["of-back@e.test"], "x-virtual-mta: back\r\n");
    send(&engine, &["of-a@e.test"], "x-virtual-mta: a\r\n");
    eventually("all wait", WAIT, || engine.queued() == 4);
    let said = engine.run(&["reroute", "d.test/back", "--to", "b", "--dry-run"]);
    assert_eq!(said, "1 recipient would be moved.\n  d.test/a to d.test/b: 1\n");
    let said = engine.run(&["reroute", "d.test/back", "--to", "b"]);
    assert_eq!(said, "1 recipient moved.\n  d.test/a to d.test/b: 1\n");
    assert_eq!(engine.run(&["delete", "--queue", "e.test/back"]), "1 recipient deleted.\n");
    r.script(|s| s.greeting = "220 receiver.test");
    engine.run(&["schedule", "*"]);
    eventually("the others go", WAIT, || r.unique() == 3 && engine.queued() == 0);
    let hello = |to: &str| r.message_to(to).map(|m| m.hello).unwrap_or_default();
    assert_eq!((hello("of-back@d.test"), hello("of-a@d.test")), ("b.test".into(), "a.test".into()));
    assert_eq!(hello("of-a@e.test"), "a.test");
}

#[test]
fn what_is_being_delivered_is_counted_and_stays() {
    let r = Receiver::start();
    r.script(|s| s.delay = Duration::from_secs(2));
    let engine = start(1, &r, " max-smtp-out 1");
    send(&engine, &["one@d.test"], "x-virtual-mta: a\r\n");
    eventually("it is under way", WAIT, || r.with(|s| s.open) == 1);
    std::thread::sleep(Duration::from_millis(500));
    send(&engine, &["two@d.test"], "x-virtual-mta: a\r\n");
    let said = engine.run(&["reroute", "d.test/a", "--to", "b"]);
    assert!(
        said.starts_with("1 recipient moved.\n  d.test/a to d.test/b: 1\n1 recipient is in delivery now"),
        "{said}"
    );
    r.script(|s| s.delay = Duration::ZERO);
    eventually("both go", WAIT, || r.unique() == 2);
    assert_eq!(
        (r.message_to("one@d.test").unwrap().hello, r.message_to("two@d.test").unwrap().hello),
        ("a.test".into(), "b.test".into())
    );
    assert_eq!(r.duplicates(), 0);
}

#[test]
fn a_kill_in_the_middle_loses_nothing_and_delivers_nothing_twice() {
    const N: usize = 1500;
    let r = Receiver::start();
    let engine = start(1, &r, "");
    engine.run(&["pause", "queue", "*"]);
    let mut c = Client::connect(engine.smtp).unwrap();
    for n in 0..N / 3 {
        let to = ["u", "v", "w"].map(|u| format!("{u}{n}@d.test"));
        let to: Vec<&str> = to.iter().map(String::as_str).collect();
        assert_eq!(c.send("", &to, "x-virtual-mta: a\r\nSubject: x\r\n\r\nx").unwrap().0, 250);
    }
    drop(c);
    let mut torn = 0;
    for round in 0..4 {
        let pid = engine.workers()[0];
        std::thread::scope(|s| {
            s.spawn(|| engine.sluice(&["reroute", "d.test", "--to", if round % 2 == 0 { "b" } else { "a" }]));
            std::thread::sleep(Duration::from_millis(10 + 20 * round));
            Engine::kill(pid);
        });
        engine.wait_ready();
        assert_eq!(engine.queued() as usize, N, "round {round}");
        let here = queue(&engine, "d.test/b")["recipients"].as_u64().unwrap_or(0) as usize;
        torn += usize::from(here > 0 && here < N);
    }
    println!("rounds that were killed in the middle: {torn}");
    let said = engine.run(&["reroute", "*", "--to", "b"]);
    assert!(said.contains("moved"), "{said}");
    assert_eq!(queue(&engine, "d.test/b")["recipients"], N);
    engine.run(&["resume", "queue", "*"]);
    eventually("all go", WAIT, || r.unique() == N && engine.queued() == 0);
    assert_eq!(r.duplicates(), 0);
    assert!(r.with(|s| s.messages.iter().all(|m| m.hello == "b.test")));
    eventually("each has a record", WAIT, || accounting::rows(engine.path()).len() == N);
    assert!(accounting::rows(engine.path()).values().all(|n| *n == 1));
}

/// Makes the log of a shard end where power went before its last record of outcomes was written.
fn tear_off_last_outcome(log: &std::path::Path) {
    let newest = std::fs::read_dir(log).unwrap().flatten().map(|f| f.path()).max_by_key(|p| {
        let bytes = std::fs::read(p).unwrap();
        records(&bytes).last().map_or(0, |(_, _, sequence)| *sequence)
    });
    let path = newest.unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let (at, _, _) = *records(&bytes).iter().rfind(|(_, kind, _)| *kind == 4).unwrap();
    bytes[at..].fill(0);
    std::fs::write(path, bytes).unwrap();
}

/// Where records begin, of what kind they are, and their sequence.
fn records(bytes: &[u8]) -> Vec<(usize, u8, u64)> {
    let magic = 0x4C53_4D31u32.to_le_bytes();
    let at = (0..bytes.len().saturating_sub(40)).step_by(8).filter(|i| bytes[*i..].starts_with(&magic));
    at.map(|i| (i, bytes[i + 5], u64::from_le_bytes(bytes[i + 8..i + 16].try_into().unwrap()))).collect()
}

#[test]
fn what_a_torn_group_left_twice_is_ended_once() {
    let r = Receiver::start();
    let mut engine = start(1, &r, "");
    engine.run(&["pause", "queue", "*"]);
    send(&engine, &["u@d.test", "v@d.test"], "x-virtual-mta: a\r\n");
    send(&engine, &["w@d.test"], "x-virtual-mta: a\r\n");
    engine.run(&["reroute", "d.test/a", "--to", "b"]);
    engine.kill_all();
    tear_off_last_outcome(&engine.path().join("spool/shard-00/log"));
    engine.start_again();
    assert!(engine.log().contains("rerouted by the process before"), "the log was torn where it should be");
    assert_eq!((queue(&engine, "d.test/b")["recipients"].clone(), engine.queued()), (3.into(), 3));
    // And once more: what was ended then is ended.
    engine.kill_all();
    engine.start_again();
    assert_eq!(engine.queued(), 3);
    engine.run(&["resume", "queue", "*"]);
    eventually("all go", WAIT, || r.unique() == 3 && engine.queued() == 0);
    assert_eq!(r.duplicates(), 0);
}
