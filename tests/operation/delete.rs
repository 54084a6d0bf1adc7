//! `sluice delete`: recipients leave their queues, with a record each, and nothing else.

use std::time::Duration;

use tests::client::Client;
use tests::engine::Engine;
use tests::receiver::Receiver;
use tests::{accounting, eventually};

const WAIT: Duration = Duration::from_secs(20);

fn send(engine: &Engine, from: &str, to: &[&str], headers: &str) {
    let mut c = Client::connect(engine.smtp).unwrap();
    let (code, text) = c.send(from, to, &format!("{headers}Subject: x\r\n\r\nx")).unwrap();
    assert_eq!(code, 250, "{text}");
}

/// Recipients with a record of type b, in order.
fn deleted(engine: &Engine) -> Vec<String> {
    let rows = accounting::lines(engine.path());
    let bounced = rows.iter().map(|l| accounting::cells(l)).filter(|c| c[0] == "b");
    let mut all: Vec<String> = bounced
        .map(|c| {
            assert!(c[7].starts_with("5.0.0") && c[8] == "deleted by administrator", "{c:?}");
            c[4].clone()
        })
        .collect();
    all.sort();
    all
}

#[test]
fn recipients_that_are_meant_are_gone_and_the_others_are_delivered() {
    let r = Receiver::start();
    let mut engine = Engine::start(3, &format!("<domain *>\n {}\n</domain>", r.hosts()));
    engine.run(&["pause", "queue", "*/*"]);
    for n in 0..20 {
        send(&engine, "a@s.test", &[&format!("u{n}@one.test"), &format!("x{n}@two.test")], "x-job: spring\r\n");
    }
    send(&engine, "b@s.test", &["keep@one.test", "drop@one.test", "also@one.test"], "");
    send(&engine, "b@s.test", &["last@three.test"], "x-job: autumn\r\n");
    eventually("all are queued", WAIT, || engine.queued() == 44);
    assert_eq!(engine.run(&["delete", "--queue", "nowhere.test"]), "0 recipients deleted.\n");
    assert_eq!(engine.run(&["delete", "--queue=one.test", "--rcpt", "DROP@one.test"]), "1 recipient deleted.\n");
    assert_eq!(engine.run(&["delete", "--queue=*/*", "--orig=a@*", "--rcpt=u1*@one.test"]), "11 recipients deleted.\n");
    assert_eq!(engine.run(&["delete", "--jobId=spring", "--queue", "two.test"]), "20 recipients deleted.\n");
    assert_eq!(engine.run(&["delete", "--jobId=spring", "--older-than", "1h"]), "0 recipients deleted.\n");
    assert_eq!(engine.run(&["delete", "--jobId=autumn", "--no-accounting"]), "1 recipient deleted.\n");
    eventually("the others stay", WAIT, || engine.queued() == 11);
    eventually("each has its record", WAIT, || deleted(&engine).len() == 32);
    let all = deleted(&engine);
    assert!(all.contains(&"drop@one.test".to_owned()) && !all.contains(&"last@three.test".to_owned()));
    // What was answered is on the disk.
    engine.kill_all();
    engine.start_again();
    eventually("what is left is there", WAIT, || engine.queued() == 11);
    engine.run(&["resume", "queue", "*/*"]);
    eventually("it is delivered", WAIT, || r.unique() == 11);
    assert!(r.message_to("keep@one.test").is_some() && r.message_to("drop@one.test").is_none());
    assert_eq!(deleted(&engine).len(), 32);
    for wrong in [
        &["delete"][..],
        &["delete", "--jobId", ""],
        &["delete", "--rcpt", "a@b.test"],
        &["delete", "--queue", "a/b/c"],
    ] {
        assert_eq!(engine.sluice(wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn senders_are_told_only_where_that_is_wanted() {
    let r = Receiver::start();
    let engine = Engine::start(1, &format!("<domain *>\n {}\n</domain>", r.hosts()));
    engine.run(&["pause", "queue", "gone.test/*"]);
    send(&engine, "one@s.test", &["a@gone.test"], "");
    send(&engine, "two@s.test", &["b@gone.test"], "");
    assert_eq!(engine.run(&["delete", "--queue", "gone.test", "--orig", "one@s.test"]), "1 recipient deleted.\n");
    assert_eq!(engine.run(&["delete", "--queue", "gone.test", "--dsn"]), "1 recipient deleted.\n");
    eventually("a report comes", WAIT, || r.message_to("two@s.test").is_some());
    let report = r.message_to("two@s.test").unwrap().content;
    assert!(report.contains("b@gone.test") && report.contains("deleted by administrator"), "{report}");
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(r.unique(), 1);
}

#[test]
fn a_queue_of_thousands_is_emptied_part_by_part() {
    let r = Receiver::start();
    let engine = Engine::start(1, &format!("<domain *>\n {}\n</domain>", r.hosts()));
    engine.run(&["pause", "queue", "big.test/*"]);
    let mut c = Client::connect(engine.smtp).unwrap();
    for n in 0..4500 {
        assert_eq!(c.send("", &[&format!("u{n}@big.test")], "Subject: x\r\n\r\nx").unwrap().0, 250);
    }
    assert_eq!(engine.run(&["delete", "--queue", "big.test", "--rcpt", "u*7@big.test"]), "450 recipients deleted.\n");
    assert_eq!(engine.run(&["delete", "--queue", "big.test"]), "4050 recipients deleted.\n");
    eventually("nothing is left", WAIT, || engine.queued() == 0);
    assert_eq!(r.unique(), 0);
    eventually("each has its record", WAIT, || deleted(&engine).len() == 4500);
}
