//! Directives that keep mail out, or keep what goes out from going otherwise: in force, or their mail is not taken.

use std::time::Duration;

use tests::client::Client;
use tests::engine::{Engine, checked};
use tests::eventually;
use tests::receiver::Receiver;

use crate::start;

/// A client at another address of this machine, after EHLO.
fn from(last: u8, engine: &Engine) -> Client {
    let mut c = Client::dial_from([127, 0, 0, last].into(), engine.smtp).unwrap();
    assert_eq!(c.reply().unwrap().0, 220);
    assert_eq!(c.command("EHLO client.test").unwrap().0, 250);
    c
}

#[test]
fn clients_that_have_to_authenticate_send_nothing_without() {
    // The whole guard of many servers: everybody may relay, and everybody has to log in.
    let (r, engine) = start("<source 127/8>\n always-allow-relaying yes\n require-auth true\n</source>");
    for last in [1, 9] {
        let mut c = from(last, &engine);
        assert!(!c.command("EHLO client.test").unwrap().1.contains("AUTH"));
        let (code, text) = c.command("MAIL FROM:<s@x.test>").unwrap();
        assert!(code == 530 && text.contains(" 5.7.0 ") && text.contains("require-auth"), "{code} {text}");
        assert_eq!(c.command("RCPT TO:<u@mta.test>").unwrap().0, 503, "nor mail for here");
        assert_eq!(c.command("NOOP").unwrap().0, 250);
    }
    assert_eq!(r.unique(), 0);
    // A narrower source takes it back.
    let (r, engine) =
        start("<source 127/8>\n require-auth yes\n</source>\n<source 127.0.0.1>\n require-auth no\n</source>");
    let mut c = from(1, &engine);
    assert_eq!(c.send("s@x.test", &["u@d.test"], "Subject: x\r\n\r\nx").unwrap().0, 250);
    eventually("it arrives", Duration::from_secs(10), || r.unique() == 1);
    assert_eq!(from(9, &engine).command("MAIL FROM:<s@x.test>").unwrap().0, 530);
}

#[test]
fn mail_for_processors_is_not_sent_elsewhere() {
    let (r, engine) = start(
        "<bounce-processor>\n deliver-matched-email no\n <address-list>\n  domain bounces.test\n  address fbl@d.test\n \
         </address-list>\n</bounce-processor>",
    );
    let mut c = from(1, &engine);
    assert_eq!(c.command("MAIL FROM:<s@x.test>").unwrap().0, 250);
    for (to, directive) in [
        ("abuse@d.test", ""),
        ("x-1@bounces.test", "bounce-processor"),
        ("fbl@d.test", "bounce-processor"),
        ("u@d.test", ""),
    ] {
        let (code, text) = c.command(&format!("RCPT TO:<{to}>")).unwrap();
        match directive {
            "" => assert_eq!(code, 250, "{to}: {text}"),
            d => assert!(code == 451 && text.contains(&format!(" 4.3.5 {d} ")), "{to}: {code} {text}"),
        }
    }
    assert_eq!(c.command("DATA").unwrap().0, 354);
    assert_eq!(c.command("Subject: x\r\n\r\nx\r\n.").unwrap().0, 250);
    eventually("the others get it", Duration::from_secs(10), || r.unique() == 2);
    // Nor is what operators hand over.
    let file = engine.path().join("message");
    std::fs::write(&file, "Subject: x\r\n\r\nx\r\n").unwrap();
    let inject = |to: &str| engine.sluice(&["inject", "--from", "s@x.test", "--to", to, file.to_str().unwrap()]);
    let refused = inject("x-1@bounces.test");
    assert!(
        !refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("bounce-processor"),
        "{refused:?}"
    );
    assert!(inject("v@d.test").status.success());
}

#[test]
fn schedules_leave_only_where_that_is_asked_for() {
    let (r, engine) = start("<source 127.0.0.3>\n retain-x-schedule yes\n always-allow-relaying yes\n</source>");
    let content = "Subject: x\r\nX-Schedule: 2030-01-01 00:00:00 /\r\n\t2030-01-02 00:00:00\r\nTo: u\r\n\r\nx";
    for (last, has) in [(1, false), (3, true)] {
        let to = format!("u{last}@d.test");
        let (got, text) = from(last, &engine).send("s@x.test", &[&to], content).unwrap();
        assert_eq!(got, 250, "{text}");
        eventually("it arrives", Duration::from_secs(10), || r.message_to(&to).is_some());
        assert_eq!(r.message_to(&to).unwrap().content.to_lowercase().contains("2030-01"), has);
    }
}

#[test]
fn received_fields_that_came_go_where_that_is_asked_for() {
    let (r, engine) = start("<source 127.0.0.1>\n remove-received-headers true\n</source>");
    let content = "Received: from inside ([10.0.0.1])\r\n\tby gw.inside; today\r\nSubject: x\r\nreceived: a\r\n\r\nReceived: text";
    from(1, &engine).send("s@x.test", &["u@d.test"], content).unwrap();
    eventually("it arrives", Duration::from_secs(10), || r.unique() == 1);
    let got = r.message_to("u@d.test").unwrap().content;
    assert!(got.starts_with("Received: ") && got.contains("by mta.test (Sluice)"), "{got}");
    assert_eq!(got.matches("eceived: ").count(), 2, "its own, and the text's: {got}");
    assert!(!got.contains("inside") && got.contains("Subject: x\r\n"), "{got}");
}

#[test]
fn what_is_withheld_is_said() {
    let said = |config: &str| checked(config).1;
    for (config, directive) in [
        ("<domain *>\n auth-username u\n auth-password p\n</domain>", "auth-username"),
        ("<proxy p>\n server 127.0.0.1:9\n client 192.0.2.1 p.test\n</proxy>\nuse-proxy p", "use-proxy"),
        (
            "<bounce-processor>\n <address-list>\n  domain b.test\n </address-list>\n</bounce-processor>",
            "<bounce-processor>",
        ),
    ] {
        let text = said(config);
        let warning = format!("warning[withheld]: {directive} is not in force yet: ");
        assert!(text.contains(&warning) && text.contains("0 errors"), "{text}");
    }
    let text = said("<source 0/0>\n always-allow-relaying yes\n require-auth true\n</source>");
    assert!(text.contains("warning[contradiction]: require-auth, and there is no <smtp-user>"), "{text}");
    // Lines that say what happens anyway.
    for config in [
        "<source 0/0>\n check-spf-inbound no\n log-data no\n allow-auth no\n reject-spf-check-fail yes\n</source>",
        "<domain *>\n log-data no\n auth-username \"\"\n check-spf-outbound no\n deliver-local-dsn yes\n</domain>",
        "<virtual-mta v>\n use-proxy none\n</virtual-mta>",
    ] {
        let text = said(config);
        assert!(text.ends_with("0 errors, 0 warnings\n"), "{text}");
    }
    let text = said("<domain *>\n log-data yes\n</domain>\n<source 0/0>\n allow-mailmerge yes\n</source>");
    assert!(text.contains("log-data is not in force yet") && text.contains("allow-mailmerge is not"), "{text}");
}

#[test]
fn mail_that_would_leave_otherwise_than_meant_waits() {
    let r = Receiver::start();
    let engine = Engine::start(
        1,
        &format!(
            "<domain *>\n {}\n</domain>\n\
             <domain auth.test>\n auth-username u\n auth-password secret-word\n</domain>\n\
             <proxy p>\n server 127.0.0.1:9\n client 192.0.2.1 p.test\n</proxy>\nuse-proxy p\n\
             <virtual-mta v>\n smtp-source-host 127.0.4.1 v.test\n</virtual-mta>\n\
             <virtual-mta free>\n use-proxy p\n use-proxy none\n</virtual-mta>\n\
             <source 127.0.0.1>\n default-virtual-mta free\n</source>",
            r.hosts()
        ),
    );
    let mut c = from(1, &engine);
    for to in ["u@auth.test", "u@d.test"] {
        assert_eq!(c.send("s@x.test", &[to], "Subject: x\r\n\r\nx").unwrap().0, 250);
    }
    assert_eq!(c.send("s@x.test", &["v@d.test"], "X-Virtual-MTA: v\r\nSubject: x\r\n\r\nx").unwrap().0, 250);
    eventually("the free one arrives", Duration::from_secs(10), || r.unique() == 1 && engine.queued() == 2);
    let why = |queue: &str| engine.run(&["why", queue]);
    for (queue, directive) in [("auth.test", "auth-username"), ("d.test/v", "use-proxy")] {
        eventually("the queue says why", Duration::from_secs(10), || why(queue).contains(directive));
        assert!(!why(queue).contains("secret-word"), "{}", why(queue));
    }
    assert!(engine.log().contains("use-proxy is not in force yet"), "{}", engine.log());
    assert!(r.message_to("u@d.test").is_some());
    // A connection that is open ends when a line comes that mail must not go without.
    assert_eq!(c.send("s@x.test", &["x@d.test"], "Subject: x\r\n\r\nx").unwrap().0, 250);
    eventually("it arrives", Duration::from_secs(10), || r.unique() == 2);
    engine.edit_config("</domain>\n<domain auth", " auth-username u\n</domain>\n<domain auth");
    engine.run(&["reload"]);
    assert_eq!(c.send("s@x.test", &["y@d.test"], "Subject: x\r\n\r\nx").unwrap().0, 250);
    eventually("the queue says why", Duration::from_secs(10), || why("d.test/free").contains("auth-username"));
    assert_eq!(r.unique(), 2);
}
