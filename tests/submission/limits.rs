//! What is refused, with which reply, and that deliveries go on meanwhile.

use std::time::Duration;

use tests::client::Client;
use tests::engine::Engine;
use tests::eventually;
use tests::receiver::Receiver;

use crate::start;

#[test]
fn only_sources_that_may_relay() {
    let r = Receiver::start();
    let mut engine = Engine::start(1, &format!("<domain *>\n {}\n</domain>", r.hosts()));
    engine.edit_config("always-allow-relaying yes", "always-allow-relaying no");
    assert!(engine.sluice(&["reload"]).status.success());
    let mut c = Client::connect(engine.smtp).unwrap();
    assert_eq!(c.send("s@x.test", &["u@d.test"], "Subject: x\r\n\r\nx").unwrap().0 / 100, 5);
    drop(c);
    engine.edit_config("always-allow-relaying no", "smtp-service no");
    assert!(engine.sluice(&["reload"]).status.success());
    assert!(Client::connect(engine.smtp).is_err());
    assert!(engine.stop());
}

#[test]
fn sizes_counts_and_hops() {
    let (_r, engine) = start("<source 127.0.0.1>\n max-message-size 10000\n max-rcpt-per-message 3\n</source>");
    let mut c = Client::connect(engine.smtp).unwrap();
    assert_eq!(c.command("MAIL FROM:<s@x.test> SIZE=10001").unwrap().0, 552);
    let large = format!("Subject: x\r\n\r\n{}", "0123456789\r\n".repeat(1000));
    assert_eq!(c.send("s@x.test", &["u@d.test"], &large).unwrap().0, 552);
    c.command("RSET").unwrap();
    let four = c.send("s@x.test", &["1@d.test", "2@d.test", "3@d.test", "4@d.test"], "Subject: x\r\n\r\nx").unwrap();
    assert_eq!(four.0, 452, "{}", four.1);
    c.command("RSET").unwrap();
    let hops = "Received: from a by b; Mon, 01 Jan 2024 00:00:00 +0000\r\n".repeat(120);
    let looping = c.send("s@x.test", &["u@d.test"], &format!("{hops}Subject: x\r\n\r\nx")).unwrap();
    assert_eq!(looping.0, 554, "{}", looping.1);
    let (code, text) = c.command(&format!("NOOP {}", "x".repeat(9000))).unwrap();
    assert_eq!(code, 500, "{text}");
    assert_eq!(c.send("s@x.test", &["u@d.test"], "Subject: x\r\n\r\nx").unwrap().0, 250, "the session goes on");
}

#[test]
fn sessions_at_once() {
    let (_r, engine) = start("total-max-smtp-in 3");
    let held: Vec<Client> = (0..3).map(|_| Client::connect(engine.smtp).unwrap()).collect();
    let mut c = Client::dial(engine.smtp).unwrap();
    assert_eq!(c.reply().unwrap().0, 421);
    drop(held);
    eventually("places are free again", Duration::from_secs(10), || Client::connect(engine.smtp).is_ok());
}

#[test]
fn recipients_queued() {
    let (r, engine) = start("spool-max-recipients 20");
    r.script(|s| s.greeting = "421 later");
    let mut c = Client::connect(engine.smtp).unwrap();
    let mut send = |n: u32| c.send("s@x.test", &[&format!("u{n}@d.test")], "Subject: x\r\n\r\nx").unwrap();
    let replies: Vec<(u16, String)> = (0..30).map(&mut send).collect();
    let accepted = replies.iter().filter(|r| r.0 == 250).count();
    assert!((10..=20).contains(&accepted), "{accepted}");
    assert!(replies.iter().any(|r| r.1.starts_with("452 4.3.1")), "{replies:?}");
    r.script(|s| s.greeting = "220 receiver.test");
    eventually("what was accepted is delivered", Duration::from_secs(15), || r.unique() == accepted);
    eventually("there is room again", Duration::from_secs(10), || send(99).0 == 250);
}

#[test]
fn a_full_disk_stops_injection_and_not_delivery() {
    let (r, mut engine) = start("");
    r.script(|s| s.greeting = "421 later");
    let mut c = Client::connect(engine.smtp).unwrap();
    for n in 0..30 {
        let sent = c.send("s@x.test", &[&format!("u{n}@d{n}.test")], "Subject: x\r\n\r\nx").unwrap();
        assert_eq!(sent.0, 250);
    }
    assert!(engine.stop());
    let spool = engine.path().join("spool");
    let full = format!("\n</domain>\n<spool {}>\n min-free-space 900T\n</spool>", spool.display());
    engine.edit_config("\n</domain>", &full);
    engine.start_again();
    let mut c = Client::connect(engine.smtp).unwrap();
    let (code, text) = c.send("s@x.test", &["late@d.test"], "Subject: x\r\n\r\nx").unwrap();
    assert!(code == 452 && text.starts_with("452 4.3.1") && text.contains("min-free-space"), "{text}");
    r.script(|s| s.greeting = "220 receiver.test");
    eventually("what was there is delivered", Duration::from_secs(15), || r.unique() == 30);
}
