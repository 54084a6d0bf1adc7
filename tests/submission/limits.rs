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

/// Connections from an address that are greeted, of so many, and the reply to the first that is not.
fn greeted(engine: &Engine, from: [u8; 4], n: usize) -> (Vec<Client>, String) {
    let (mut held, mut refusal) = (Vec::new(), String::new());
    for _ in 0..n {
        let mut c = Client::dial_from(from.into(), engine.smtp).unwrap();
        match c.reply().unwrap() {
            (220, _) => held.push(c),
            (_, text) if refusal.is_empty() => refusal = text,
            _ => {}
        }
    }
    (held, refusal)
}

#[test]
fn sources_have_the_places_that_are_theirs() {
    let groups = "total-max-smtp-in 40\n<source-group apps>\n max-smtp-in 12\n reserved-smtp-in 8\n</source-group>\n\
                  <source 127.70/16>\n source-group APPS\n</source>\n<source 0/0>\n max-smtp-in-per-address unlimited\n \
                  max-smtp-in-per-network unlimited\n</source>";
    let receiver = Receiver::start();
    let engine = Engine::start(2, &format!("{groups}\n<domain *>\n {}\n</domain>", receiver.hosts()));
    // Of the 32 that are not reserved 8 are for clients that the configuration names.
    let (strangers, refusal) = greeted(&engine, [127, 80, 0, 1], 30);
    assert_eq!(strangers.len(), 24, "{refusal}");
    assert!(refusal.starts_with("421 4.3.2") && refusal.contains("total-max-smtp-in"), "{refusal}");
    let (known, _) = greeted(&engine, [127, 0, 0, 1], 9);
    assert_eq!(known.len(), 8);
    let (apps, _) = greeted(&engine, [127, 70, 0, 1], 9);
    assert_eq!(apps.len(), 8);
    drop((strangers, known));
    eventually("the others are free again", Duration::from_secs(10), || {
        greeted(&engine, [127, 80, 0, 1], 24).0.len() == 24
    });
    let (more, refusal) = greeted(&engine, [127, 70, 9, 2], 6);
    assert_eq!(more.len(), 4, "{refusal}");
    assert!(refusal.starts_with("421 4.3.2") && refusal.contains("max-smtp-in"), "{refusal}");
}

#[test]
fn strangers_have_so_many_places_for_an_address_and_a_network() {
    let receiver = Receiver::start();
    let engine = Engine::start(2, &format!("total-max-smtp-in 80\n<domain *>\n {}\n</domain>", receiver.hosts()));
    let (held, refusal) = greeted(&engine, [127, 80, 0, 1], 20);
    assert_eq!(held.len(), 10);
    assert!(refusal.starts_with("421 4.7.0") && refusal.contains("max-smtp-in-per-address"), "{refusal}");
    let (neighbours, _) = greeted(&engine, [127, 80, 0, 2], 10);
    let (third, refusal) = greeted(&engine, [127, 80, 0, 3], 1);
    assert_eq!((neighbours.len(), third.len()), (10, 0));
    assert!(refusal.starts_with("421 4.7.0") && refusal.contains("max-smtp-in-per-network"), "{refusal}");
    assert_eq!(greeted(&engine, [127, 80, 1, 1], 1).0.len(), 1, "another network");
    engine.edit_config(
        "total-max-smtp-in 80",
        "total-max-smtp-in 80\n<source 0/0>\n max-smtp-in-per-network unlimited\n</source>",
    );
    assert!(engine.sluice(&["reload"]).status.success());
    assert_eq!(greeted(&engine, [127, 80, 0, 3], 1).0.len(), 1);
    drop(held);
    eventually("its places are free again", Duration::from_secs(10), || {
        greeted(&engine, [127, 80, 0, 1], 1).0.len() == 1
    });
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
