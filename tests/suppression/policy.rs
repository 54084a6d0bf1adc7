//! Lists that replies fill.

use std::time::Duration;

use tests::engine::{Engine, checked};
use tests::eventually;
use tests::receiver::Receiver;

use super::{row, send};

/// What the lists say of an address.
fn entries(engine: &Engine, address: &str) -> Vec<serde_json::Value> {
    serde_json::from_str(&engine.run(&["suppress", "list", address, "--json"])).unwrap()
}

#[test]
fn refusals_of_the_mailbox_suppress_and_those_of_the_sender_never() {
    let r = Receiver::start();
    let engine = Engine::start(
        2,
        &format!(
            "<domain *>\n {}\n suppress-on bad-mailbox,inactive-mailbox,quota-issues,policy-related\n</domain>",
            r.hosts()
        ),
    );
    for (i, (reply, suppressed)) in [
        ("550 5.1.1 no such user here", true),
        ("550 5.2.1 The email account that you tried to reach is disabled", true),
        ("550 5.7.1 Service unavailable; client [192.0.2.1] blocked using zen.spamhaus.org", false),
        ("550 5.7.1 message rejected due to low reputation of the sender", false),
        ("421 4.7.28 unusual rate of mail from your address", false),
        ("452 4.2.2 mailbox full", false),
        ("550 5.1.1 <u@d.test> user unknown; rejected because of too many bad recipients from your IP", false),
    ]
    .into_iter()
    .enumerate()
    {
        r.script(|s| s.rcpt_reply = Some((reply, None)));
        let to = format!("u{i}@d{i}.test");
        assert_eq!(send(&engine, &[&to], "").0, 250);
        row(&engine, if reply.starts_with('5') { "b" } else { "t" }, &to);
        if suppressed {
            eventually("it is suppressed", Duration::from_secs(2), || !entries(&engine, &to).is_empty());
            let e = &entries(&engine, &to)[0];
            assert_eq!(
                (&e["source"], &e["list"], &e["expires"]),
                (&"policy".into(), &"global".into(), &serde_json::Value::Null)
            );
            eventually("in every shard", Duration::from_secs(1), || send(&engine, &[&to], "").0 == 550);
        } else {
            std::thread::sleep(Duration::from_millis(700));
            assert!(entries(&engine, &to).is_empty(), "{reply}");
        }
    }
}

#[test]
fn as_many_refusals_as_asked_for_within_the_time_are_needed_also_across_restarts() {
    let r = Receiver::start();
    let mut engine = Engine::start(
        2,
        &format!(
            "<virtual-mta v1>\n</virtual-mta>\n<domain *>\n {}\n suppress-on quota-issues\n suppress-after 3/1h\n suppress-for 3s\n suppress-in virtual-mta\n</domain>",
            r.hosts()
        ),
    );
    r.script(|s| s.rcpt_reply = Some(("552 5.2.2 mailbox full", None)));
    let bounces = |engine: &Engine| {
        let lines = tests::accounting::lines(engine.path());
        lines.iter().filter(|l| l.starts_with("b,") && l.contains("quota-issues")).count()
    };
    for n in 1..=3 {
        assert_eq!(send(&engine, &["u@d.test"], "X-Virtual-MTA: v1\r\n").0, 250);
        eventually("it bounces", Duration::from_secs(10), || bounces(&engine) == n);
        std::thread::sleep(Duration::from_millis(600));
        if n < 3 {
            assert!(entries(&engine, "u@d.test").is_empty());
        }
        if n == 2 {
            engine.kill_all();
            engine.start_again();
        }
    }
    eventually("the third suppresses", Duration::from_secs(2), || !entries(&engine, "u@d.test").is_empty());
    assert_eq!(entries(&engine, "u@d.test")[0]["list"], "virtual-mta:v1");
    assert_eq!(send(&engine, &["u@d.test"], "X-Virtual-MTA: v1\r\n").0, 250);
    let last = row(&engine, "b", "u@d.test");
    assert_eq!(last[4], "u@d.test");
    eventually("it is suppressed by v1", Duration::from_secs(5), || {
        tests::accounting::lines(engine.path()).iter().any(|l| l.contains(",suppressed,"))
    });
    // And ends by itself.
    std::thread::sleep(Duration::from_millis(3200));
    assert!(entries(&engine, "u@d.test").is_empty());
    r.script(|s| s.rcpt_reply = None);
    assert_eq!(send(&engine, &["u@d.test"], "X-Virtual-MTA: v1\r\n").0, 250);
    row(&engine, "d", "u@d.test");
}

#[test]
fn a_mailbox_that_is_full_counts_once_for_a_message_that_is_tried_again() {
    let r = Receiver::start();
    r.script(|s| s.rcpt_reply = Some(("452 4.2.2 mailbox full", None)));
    let engine = Engine::start(
        1,
        &format!(
            "<domain *>\n {}\n suppress-on quota-issues\n suppress-after 2/1h\n retry-recipients-after 1s\n</domain>",
            r.hosts()
        ),
    );
    assert_eq!(send(&engine, &["u@d.test"], "").0, 250);
    eventually("it was tried three times", Duration::from_secs(15), || {
        r.with(|s| s.deferred.get("u@d.test").copied()) >= Some(3)
    });
    std::thread::sleep(Duration::from_millis(600));
    assert!(entries(&engine, "u@d.test").is_empty());
    assert_eq!(send(&engine, &["u@d.test"], "").0, 250);
    eventually("another message", Duration::from_secs(5), || !entries(&engine, "u@d.test").is_empty());
}

#[test]
fn what_a_rule_makes_of_others_does_not_suppress_them() {
    let r = Receiver::start();
    r.script(|s| s.rcpt_reply = Some(("450 4.2.0 later", None)));
    let engine = Engine::start(
        1,
        &format!(
            "<smtp-pattern-list p>\n reply /disabled/ bounce-queue\n</smtp-pattern-list>\n\
             <domain *>\n {}\n smtp-pattern-list p\n suppress-on inactive-mailbox\n retry-recipients-after 1h\n max-smtp-out 1\n</domain>",
            r.hosts()
        ),
    );
    assert_eq!(send(&engine, &["waits@d.test"], "").0, 250);
    row(&engine, "t", "waits@d.test");
    r.script(|s| s.rcpt_reply = Some(("550 5.2.1 account disabled", None)));
    assert_eq!(send(&engine, &["gone@d.test"], "").0, 250);
    row(&engine, "b", "waits@d.test");
    eventually("the one that is gone", Duration::from_secs(3), || !entries(&engine, "gone@d.test").is_empty());
    std::thread::sleep(Duration::from_millis(700));
    assert!(entries(&engine, "waits@d.test").is_empty());
}

#[test]
fn categories_that_are_not_of_mailboxes_are_errors() {
    for (category, code) in
        [("spam-related", 2), ("authentication-failure", 2), ("bad-mailbox,spam-related", 2), ("bad-mailbox,mine", 0)]
    {
        let (found, text) = checked(&format!("<domain *>\n suppress-on {category}\n</domain>"));
        assert_eq!(found, Some(code), "{category}: {text}");
        assert_eq!(text.contains("suppress nobody"), code == 2, "{text}");
    }
}

#[test]
fn what_is_said_of_the_sender_suppresses_no_recipient() {
    let r = Receiver::start();
    let engine =
        Engine::start(1, &format!("<domain *>\n {}\n suppress-on bad-mailbox,inactive-mailbox\n</domain>", r.hosts()));
    for (n, reply) in ["550 5.1.1 user unknown", "550 no such user", "550 5.2.1 mailbox disabled for this sender"]
        .into_iter()
        .enumerate()
    {
        r.script(|s| s.mail_reply = Some(reply));
        let to = format!("m{n}@d.test");
        assert_eq!(send(&engine, &[&to], "").0, 250);
        let bounced = row(&engine, "b", &to);
        assert!(!matches!(bounced[crate::CATEGORY].as_str(), "bad-mailbox" | "inactive-mailbox"), "{bounced:?}");
    }
    std::thread::sleep(Duration::from_millis(700));
    for n in 0..3 {
        assert!(entries(&engine, &format!("m{n}@d.test")).is_empty());
    }
}
