//! Checks of clients and senders by DNS, where mail comes in and where it leaves.

use std::time::Duration;

use tests::client::Client;
use tests::dns::{Dns, Name};
use tests::engine::Engine;
use tests::eventually;
use tests::receiver::Receiver;

const WAIT: Duration = Duration::from_secs(20);

fn spf(text: &str) -> Name {
    Name { txt: vec!["other".into(), text.into()], ..Name::default() }
}

fn from(last: u8, engine: &Engine) -> Client {
    let mut c = Client::dial_from([127, 0, 0, last].into(), engine.smtp).unwrap();
    c.reply().unwrap();
    c.command("EHLO client.test").unwrap();
    c
}

#[test]
fn mail_is_taken_from_whom_its_domain_names() {
    let (dns, r) = (Dns::start(), Receiver::start());
    dns.set("pass.test", spf("v=spf1 a:hosts.test -all"));
    dns.host("hosts.test", [127, 0, 0, 2]);
    dns.set("fail.test", spf("v=spf1 -all"));
    dns.set("soft.test", spf("v=spf1 include:pass.test ~all"));
    dns.set("wrong.test", spf("v=spf1 nothing:x -all"));
    dns.set("client.test", spf("v=spf1 ip4:127.0.0.2 -all"));
    dns.set("away.test", Name { servfail: true, ..Name::default() });
    dns.set("voids.test", spf("v=spf1 a:n1.test a:n2.test a:n3.test +all"));
    let source = "always-allow-relaying yes\n check-spf-inbound yes\n";
    let engine = Engine::start(
        1,
        &format!(
            "{}\n<domain *>\n {}\n</domain>\n<source 127/8>\n {source}</source>\n\
             <source 127.0.0.3>\n {source} reject-spf-check-fail no\n reject-spf-check-permerror no\n reject-spf-check-temperror no\n\
             check-spf-inbound-max-void-lookups 3\n trace-spf-check yes\n</source>\n",
            dns.directive(),
            r.hosts()
        ),
    );
    for (sender, code, said) in [
        ("s@pass.test", 250, ""),
        ("s@none.test", 250, ""),
        ("", 250, ""),
        ("s@soft.test", 250, ""),
        ("s@fail.test", 550, "5.7.23 SPF of fail.test says fail to 127.0.0.2 (reject-spf-check-fail)"),
        ("s@wrong.test", 550, "5.7.24 SPF of wrong.test says permerror"),
        ("s@voids.test", 550, "5.7.24 SPF of voids.test says permerror"),
        ("s@away.test", 451, "4.7.24 SPF of away.test says temperror"),
    ] {
        let (got, text) = from(2, &engine).command(&format!("MAIL FROM:<{sender}>")).unwrap();
        assert!(got == code && text.contains(said), "{sender}: {got} {text}");
    }
    // What is found stands in the message, and nobody else writes it. Commands behind MAIL may come at once.
    let forged = "Authentication-Results: (x (a) \\) ) \"mta\\.test\" ; spf=pass\r\nauthentication-results: other.test; spf=pass\r\n";
    for (last, sender, to, says) in [
        (2, "s@pass.test", "a@d.test", "mta.test;\r\n\tspf=pass smtp.mailfrom=pass.test\r\n"),
        (2, "", "b@d.test", "mta.test;\r\n\tspf=pass smtp.helo=client.test\r\n"),
        (
            3,
            "s@fail.test",
            "c@d.test",
            "mta.test;\r\n\tspf=fail\r\n\t(fail.test TXT: v=spf1 -all)\r\n\t smtp.mailfrom=fail.test\r\n",
        ),
        (3, "s@voids.test", "d@d.test", "smtp.mailfrom=voids.test\r\n"),
    ] {
        let mut c = from(last, &engine);
        c.raw(format!("MAIL FROM:<{sender}>\r\nRCPT TO:<{to}>\r\nDATA\r\n").as_bytes()).unwrap();
        assert_eq!([c.reply().unwrap().0, c.reply().unwrap().0, c.reply().unwrap().0], [250, 250, 354], "{to}");
        c.raw(format!("{forged}Subject: x\r\n\r\nx\r\n.\r\n").as_bytes()).unwrap();
        assert_eq!(c.reply().unwrap().0, 250);
        eventually("it arrives", WAIT, || r.message_to(to).is_some());
        let content = r.message_to(to).unwrap().content;
        assert!(content.contains(says), "{content}");
        assert!(!content.contains("(x (a)") && content.contains("other.test; spf=pass"), "{content}");
    }
}

#[test]
fn clients_have_the_names_that_lead_back_to_them() {
    let (dns, r) = (Dns::start(), Receiver::start());
    let named = |name| Name { ptr: vec![name], ..Name::default() };
    dns.set("2.0.0.127.in-addr.arpa", named("good.test"));
    dns.host("good.test", [127, 0, 0, 2]);
    dns.set("3.0.0.127.in-addr.arpa", named("forged.test"));
    dns.host("forged.test", [127, 0, 0, 9]);
    dns.set("6.0.0.127.in-addr.arpa", named("silent.test"));
    dns.set("silent.test", Name { servfail: true, ..Name::default() });
    dns.set("5.0.0.127.in-addr.arpa", Name { servfail: true, ..Name::default() });
    let source = |rejects: &str| {
        let all =
            ["fail", "permerror", "temperror"].map(|what| format!(" reject-iprev-check-{what} {rejects}\n")).concat();
        format!(" always-allow-relaying yes\n check-iprev-inbound yes\n trace-iprev-check yes\n{all}")
    };
    let engine = Engine::start(
        1,
        &format!(
            "{}\n<domain *>\n {}\n</domain>\n<source 127/8>\n{}</source>\n<source 127.0.0.16/28>\n{}</source>\n",
            dns.directive(),
            r.hosts(),
            source("yes"),
            source("no")
        ),
    );
    for (last, code, said) in [
        (2, 250, ""),
        (3, 550, "5.7.25 Reverse DNS of 127.0.0.3 says fail: no name of the address has it as an address"),
        (4, 550, "5.7.25 Reverse DNS of 127.0.0.4 says permerror: the address has no name (PTR)"),
        (5, 451, "4.7.25 Reverse DNS of 127.0.0.5 says temperror"),
        (6, 451, "4.7.25 Reverse DNS of 127.0.0.6 says temperror"),
        (17, 250, ""),
    ] {
        let (got, text) = from(last, &engine).command("MAIL FROM:<s@x.test>").unwrap();
        assert!(got == code && text.contains(said), "{last}: {got} {text}");
    }
    assert_eq!(from(2, &engine).send("s@x.test", &["a@d.test"], "Subject: x\r\n\r\nx").unwrap().0, 250);
    assert_eq!(from(17, &engine).send("s@x.test", &["b@d.test"], "Subject: x\r\n\r\nx").unwrap().0, 250);
    eventually("both arrive", WAIT, || r.unique() == 2);
    let content = |to: &str| r.message_to(to).unwrap().content;
    assert!(
        content("a@d.test").contains("iprev=pass\r\n\t(good.test)\r\n\t policy.iprev=127.0.0.2\r\n"),
        "{}",
        content("a@d.test")
    );
    assert!(content("b@d.test").contains("iprev=permerror\r\n\t("), "{}", content("b@d.test"));
}

#[test]
fn mail_leaves_where_its_domain_lets_it() {
    let (dns, r) = (Dns::start(), Receiver::start());
    dns.set("mine.test", spf("v=spf1 ip4:127.0.4.1 -all"));
    dns.set("soft.test", spf("v=spf1 ~all"));
    dns.set("away.test", Name { servfail: true, ..Name::default() });
    let engine = Engine::start(
        1,
        &format!(
            "{}\n<domain *>\n {}\n check-spf-outbound yes\n retry-recipients-after 1s\n</domain>\n\
             <virtual-mta v>\n smtp-source-host 127.0.4.1 v.test\n</virtual-mta>\n<virtual-mta w>\n</virtual-mta>\n\
             <source 127/8>\n always-allow-relaying yes\n process-x-virtual-mta yes\n</source>\n",
            dns.directive(),
            r.hosts()
        ),
    );
    let mut c = Client::connect(engine.smtp).unwrap();
    for (vmta, sender, to) in [
        ("v", "s@mine.test", "pass@d.test"),
        ("v", "s@soft.test", "soft@d.test"),
        ("v", "s@away.test", "later@d.test"),
        ("w", "s@mine.test", "w@d.test"),
    ] {
        let content = format!("X-Virtual-MTA: {vmta}\r\nSubject: x\r\n\r\nx");
        assert_eq!(c.send(sender, &[to], &content).unwrap().0, 250);
    }
    let row = |kind: &str, to: &str| {
        let lines = tests::accounting::lines(engine.path());
        lines.into_iter().find(|l| l.starts_with(&format!("{kind},")) && l.contains(to)).unwrap_or_default()
    };
    eventually("it bounces", WAIT, || row("b", "soft@d.test").contains("SPF of soft.test says softfail to 127.0.4.1"));
    eventually("it waits", WAIT, || row("t", "later@d.test").contains("says temperror"));
    eventually("it waits", WAIT, || row("t", "w@d.test").contains("has no smtp-source-host"));
    assert!(r.message_to("pass@d.test").is_some() && r.unique() == 1);
    dns.set("away.test", spf("v=spf1 +all"));
    eventually("it goes when DNS answers", WAIT, || r.message_to("later@d.test").is_some());
}
