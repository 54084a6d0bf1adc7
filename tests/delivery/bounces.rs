//! What kind of refusal a reply is: in accounting, and by `sluice bounce`.

use std::process::Command;
use std::time::Duration;

use tests::engine::{Engine, binary};
use tests::receiver::Receiver;
use tests::{eventually, fed};

use super::{row, send};

/// What the program prints for replies on its standard input.
fn classified(args: &[&str], replies: &str) -> String {
    let out = fed(Command::new(binary()).args(["bounce", "classify"]).args(args), replies);
    assert!(out.status.success());
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn rows_of_failures_have_the_category_of_the_reply() {
    for (reply, kind, category) in [
        ("550 5.7.1 Service unavailable; client [192.0.2.1] blocked using zen.spamhaus.org", "b", "spam-related"),
        ("550 5.1.1 no such user here", "b", "bad-mailbox"),
        ("452 4.2.2 mailbox full", "t", "quota-issues"),
        ("550 unsere eigene Regel", "b", "ours"),
        ("554 5.9.9 by its status", "b", "by-status"),
    ] {
        let r = Receiver::start();
        r.script(|s| s.rcpt_reply = Some((reply, None)));
        let own = "<bounce-category-patterns>\n /eigene/ ours\n /^5\\.9\\.9/ by-status\n</bounce-category-patterns>";
        let engine = Engine::start(1, &format!("{own}\n<domain *>\n {}\n</domain>", r.hosts()));
        send(&engine, &["u@d.test"]);
        let row = row(&engine, kind, "u@d.test");
        assert!(row.contains(&format!(",{category},smtp,")), "{reply}: {row}");
    }
}

#[test]
fn a_refusal_of_the_session_says_nothing_about_the_mailbox() {
    let r = Receiver::start();
    r.script(|s| s.greeting = "550 5.1.1 mailbox unavailable for 127.0.0.1");
    let engine = Engine::start(1, &format!("<domain *>\n {}\n</domain>", r.hosts()));
    send(&engine, &["u@d.test"]);
    let bounced = row(&engine, "b", "u@d.test");
    assert!(!bounced.contains("bad-mailbox"), "{bounced}");
}

#[test]
fn mail_that_expires_is_expired_whatever_the_last_reply_was() {
    let r = Receiver::start();
    r.script(|s| s.rcpt_reply = Some(("450 4.2.2 mailbox full", None)));
    let engine = Engine::start(
        1,
        &format!("<domain *>\n {}\n bounce-after 2s\n retry-recipients-after 1h\n</domain>", r.hosts()),
    );
    send(&engine, &["u@d.test"]);
    let expired = row(&engine, "b", "u@d.test");
    assert!(expired.contains(",message-expired,") && expired.contains("mailbox full"), "{expired}");
    eventually("nothing is left", Duration::from_secs(5), || engine.queued() == 0);
}

#[test]
fn replies_on_standard_input_are_classified_without_a_server() {
    let replies = "550 5.1.1 <full@spam.test>: User unknown\nsmtp;421 4.7.0 [TSS04] deferred due to user complaints\n\
                   host mx.test[192.0.2.1] said: 552 5.2.2 Mailbox full (in reply to RCPT TO command)\n\n";
    assert_eq!(classified(&[], replies), "bad-mailbox\nspam-related\nquota-issues\nother\n");
    let json = classified(&["--json"], replies);
    let first: serde_json::Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
    assert_eq!((first["kind"].as_str(), first["scope"].as_str()), (Some("hard"), Some("recipient")));
    assert!(first["rule"].as_str().unwrap().starts_with('B') && first["hit"] == "user unknown", "{first}");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("own.conf");
    std::fs::write(&file, "<bounce-category-patterns>\n /User unknown/ mine\n</bounce-category-patterns>\n").unwrap();
    let own = classified(&["--json", "--config", file.to_str().unwrap()], replies);
    let first: serde_json::Value = serde_json::from_str(own.lines().next().unwrap()).unwrap();
    assert_eq!(first["category"], "mine");
    assert_eq!(first["rule"].as_str().unwrap(), format!("{}:2", file.display()));
}

#[test]
fn who_was_never_tried_does_not_expire_with_the_reply_to_another() {
    let r = Receiver::start();
    r.script(|s| s.rcpt_reply = Some(("451 4.7.0 not you", None)));
    let engine = Engine::start(
        1,
        &format!(
            "<domain *>\n {}\n max-msg-rate 1/m\n bounce-after 5s\n retry-recipients-after 10m\n</domain>",
            r.hosts()
        ),
    );
    send(&engine, &["first@d.test"]);
    eventually("the first was refused", Duration::from_secs(10), || r.with(|s| s.deferred.len()) == 1);
    send(&engine, &["second@d.test"]);
    assert!(row(&engine, "b", "first@d.test").contains("not you"));
    let second = row(&engine, "b", "second@d.test");
    assert!(second.contains("no attempt was made within bounce-after"), "{second}");
}

#[test]
fn what_a_receiver_says_behind_421_is_recorded_where_that_is_wanted() {
    for (flag, shown) in
        [("no", "smtp;421 4.7.0 only we and 192.0.2.7 may know"), ("yes", "smtp;421 service unavailable")]
    {
        for greets in [true, false] {
            let r = Receiver::start();
            let reply = "421 4.7.0 only we and 192.0.2.7 may know";
            r.script(|s| match greets {
                true => s.greeting = reply,
                false => s.rcpt_reply = Some((reply, None)),
            });
            // Patterns see the original.
            let engine = Engine::start(
                1,
                &format!(
                    "<smtp-pattern-list all>\n reply /only we/ mode=backoff\n</smtp-pattern-list>\n<domain *>\n {}\n \
                     replace-smtp-421-service-response {flag}\n bounce-after 3s\n retry-after 1s\n backoff-retry-after 1s\n \
                     retry-recipients-after 1s\n smtp-pattern-list all\n</domain>",
                    r.hosts()
                ),
            );
            send(&engine, &["u@d.test"]);
            eventually("the pattern matches", Duration::from_secs(4), || {
                engine.run(&["show", "paths"]).contains("backoff")
            });
            let hides = flag == "yes";
            assert_eq!(hides, !engine.run(&["why", "d.test"]).contains("192.0.2.7"), "{flag} {greets}");
            let ended = row(&engine, "b", "u@d.test");
            assert!(ended.contains(shown), "{flag} {greets}: {ended}");
        }
    }
}

#[test]
fn a_senders_domain_may_want_no_reports() {
    let r = Receiver::start();
    r.script(|s| s.rcpt_reply = Some(("550 5.1.1 no such user", None)));
    let engine = Engine::start(
        1,
        &format!("<domain *>\n {}\n</domain>\n<domain quiet.test>\n deliver-local-dsn no\n</domain>", r.hosts()),
    );
    let mut c = tests::client::Client::connect(engine.smtp).unwrap();
    for from in ["s@quiet.test", "s@loud.test"] {
        assert_eq!(c.send(from, &["u@d.test"], "Subject: x\r\n\r\nx").unwrap().0, 250);
    }
    row(&engine, "b", "s@loud.test");
    eventually("both ended", Duration::from_secs(10), || engine.queued() == 0);
    let rows = tests::accounting::lines(engine.path());
    assert_eq!(rows.iter().filter(|l| l.contains("s@loud.test")).count(), 2, "{rows:?}");
    assert_eq!(rows.iter().filter(|l| l.contains("s@quiet.test")).count(), 1, "{rows:?}");
}
