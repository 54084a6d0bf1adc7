//! From a domain to a host (RFC 5321 §5, RFC 7505).

use std::time::{Duration, Instant};

use tests::dns::{Dns, Name};
use tests::engine::Engine;
use tests::eventually;
use tests::receiver::Receiver;

use crate::{row, send};

/// Two receivers on one port, DNS, and a server that delivers by it.
fn start(config: &str) -> (Dns, Receiver, Receiver, Engine) {
    let dns = Dns::start();
    let (first, second) = loop {
        let first = Receiver::at("127.0.1.1:0");
        let port = first.address.port();
        if std::net::TcpListener::bind(("127.0.1.2", port)).is_ok() {
            break (first, Receiver::at(&format!("127.0.1.2:{port}")));
        }
    };
    dns.host("mx1.test", [127, 0, 1, 1]);
    dns.host("mx2.test", [127, 0, 1, 2]);
    dns.host("down.test", [127, 0, 1, 3]);
    let port = first.address.port();
    let config = format!(
        "{}\n<domain *>\n default-smtp-port {port}\n retry-after 1s\n use-starttls no\n {config}\n</domain>",
        dns.directive()
    );
    let engine = Engine::start(1, &config);
    (dns, first, second, engine)
}

#[test]
fn lower_preference_first_and_the_next_when_it_is_down() {
    let (dns, first, second, engine) = start("");
    dns.mx("both.test", &[(20, "mx2.test"), (10, "mx1.test")]);
    dns.mx("half.test", &[(10, "down.test"), (20, "mx2.test")]);
    for n in 0..10 {
        send(&engine, &[&format!("u{n}@both.test"), &format!("u{n}@half.test")]);
    }
    eventually("all arrive", Duration::from_secs(10), || first.unique() == 10 && second.unique() == 10);
    assert!(first.with(|s| s.delivered.keys().all(|r| r.ends_with("@both.test"))));
}

#[test]
fn the_fifth_host_is_tried_when_four_are_down() {
    let (dns, first, _, engine) = start("");
    dns.mx("many.test", &[(1, "down.test"), (2, "down.test"), (3, "down.test"), (4, "down.test"), (5, "mx1.test")]);
    send(&engine, &["u@many.test"]);
    eventually("it arrives", Duration::from_secs(10), || first.unique() == 1);
}

#[test]
fn a_domain_without_mx_is_its_own_host() {
    let (dns, first, second, engine) = start("");
    dns.host("plain.test", [127, 0, 1, 1]);
    dns.set("alias.test", Name { cname: Some("both.test"), ..Name::default() });
    dns.mx("both.test", &[(10, "mx2.test")]);
    send(&engine, &["u@plain.test", "u@alias.test"]);
    eventually("both arrive", Duration::from_secs(10), || first.unique() == 1 && second.unique() == 1);
}

#[test]
fn address_literals_need_no_dns() {
    let (_, first, _, engine) = start("");
    send(&engine, &["u@[127.0.1.1]"]);
    eventually("it arrives", Duration::from_secs(10), || first.unique() == 1);
}

#[test]
fn absence_that_is_certain_bounces_at_once() {
    let (dns, _, _, engine) = start("");
    dns.set("null.test", Name { mx: vec![(0, "")], ..Name::default() });
    dns.set("empty.test", Name::default());
    dns.mx("dangling.test", &[(10, "nowhere.test")]);
    send(&engine, &["u@null.test", "u@gone.test", "u@empty.test", "u@dangling.test"]);
    assert!(row(&engine, "b", "u@null.test").contains("5.1.10"));
    assert!(row(&engine, "b", "u@gone.test").contains("5.1.2"));
    assert!(row(&engine, "b", "u@empty.test").contains("5.4.4"));
    assert!(row(&engine, "b", "u@dangling.test").contains("5.4.4"));
}

#[test]
fn servers_that_cannot_say_mean_later() {
    let (dns, first, _, engine) = start("");
    dns.set("fails.test", Name { servfail: true, ..Name::default() });
    dns.set("refuses.test", Name { refused: true, ..Name::default() });
    dns.set("silent.test", Name { silent: true, ..Name::default() });
    dns.mx("fine.test", &[(10, "mx1.test")]);
    send(&engine, &["u@fails.test", "u@refuses.test", "u@silent.test"]);
    let began = Instant::now();
    send(&engine, &["u@fine.test"]);
    eventually("another domain goes on", Duration::from_secs(3), || first.unique() == 1);
    assert!(began.elapsed() < Duration::from_secs(3));
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(engine.queued(), 3, "none bounced");
    assert!(dns.mx_questions("fails.test") <= 4, "failures are remembered: {}", dns.mx_questions("fails.test"));
    for name in ["fails.test", "refuses.test", "silent.test"] {
        dns.mx(name, &[(10, "mx1.test")]);
    }
    eventually("all arrive when it can", Duration::from_secs(40), || first.unique() == 4);
}

#[test]
fn answers_are_remembered() {
    let (dns, first, _, engine) = start("max-smtp-out 1\n max-msg-per-connection 1");
    dns.mx("often.test", &[(10, "mx1.test")]);
    for n in 0..20 {
        send(&engine, &[&format!("u{n}@often.test"), &format!("u{n}@gone.test")]);
    }
    eventually("all arrive", Duration::from_secs(10), || first.unique() == 20);
    eventually("all others bounce", Duration::from_secs(10), || engine.queued() == 0);
    assert_eq!(dns.mx_questions("often.test"), 1);
    assert_eq!(dns.mx_questions("gone.test"), 1, "absence too");
}

#[test]
fn mail_that_waits_goes_where_the_mx_leads_by_then() {
    let (dns, first, _, engine) = start("");
    let mx = |host| Name { mx: vec![(10, host)], ttl: 2, ..Name::default() };
    dns.set("moves.test", mx("down.test"));
    send(&engine, &["u@moves.test", "v@moves.test"]);
    eventually("it was tried", Duration::from_secs(10), || engine.run(&["why", "moves.test"]).contains("down.test"));
    dns.set("moves.test", mx("mx1.test"));
    eventually("both arrive", Duration::from_secs(20), || first.unique() == 2);
    assert_eq!(first.duplicates(), 0);
    eventually("nothing is left", Duration::from_secs(5), || engine.queued() == 0);
}

#[test]
fn a_recipient_that_met_a_421_goes_to_the_next_host_at_once() {
    let (dns, first, second, engine) = start("retry-recipients-after 10m\n smtp-421-means-mx-unavailable yes");
    dns.mx("busy.test", &[(10, "mx1.test"), (20, "mx2.test")]);
    first.script(|s| s.rcpt_reply = Some(("421 4.7.0 busy", None)));
    send(&engine, &["u@busy.test"]);
    eventually("the second has it", Duration::from_secs(10), || second.unique() == 1);
    assert_eq!(first.with(|s| s.deferred.get("u@busy.test").copied()), Some(1));
}

#[test]
fn mail_that_would_come_back_bounces_at_the_first_look() {
    let dns = Dns::start();
    let r = Receiver::at("127.0.1.1:0");
    let engine = Engine::start_by(
        1,
        &format!(
            "{}\n<domain *>\n use-starttls no\n</domain>\n<domain own.test>\n default-smtp-port 25\n</domain>\n\
             <domain backup.test>\n default-smtp-port {}\n</domain>\n<domain listed.test>\n {}\n</domain>",
            dns.directive(),
            r.address.port(),
            r.hosts()
        ),
        |_| std::process::Command::new(tests::engine::binary()),
    );
    let port = engine.smtp.port();
    engine.edit_config(
        "<domain *>",
        &format!("smtp-listener 127.0.1.9:{}\n<domain *>\n default-smtp-port {port}", r.address.port()),
    );
    engine.run(&["reload"]);
    dns.host("self.test", [127, 0, 0, 1]);
    dns.host("any.test", [0, 0, 0, 0]);
    dns.host("second.test", [127, 0, 1, 9]);
    dns.host("mx1.test", [127, 0, 1, 1]);
    dns.mx("loop.test", &[(10, "self.test"), (20, "mx1.test")]);
    dns.mx("named.test", &[(10, "self.test")]);
    dns.mx("own.test", &[(10, "MTA.test")]);
    dns.mx("backup.test", &[(10, "mx1.test"), (20, "second.test"), (30, "nowhere.test")]);
    dns.mx("listed.test", &[(10, "self.test")]);
    let looping =
        ["u@loop.test", "u@self.test", "u@any.test", "u@own.test", "u@[127.0.0.1]", "u@[IPv6:::ffff:127.0.0.1]"];
    send(&engine, &looping);
    send(&engine, &["u@backup.test", "u@listed.test"]);
    for to in looping {
        assert!(row(&engine, "b", to).contains("5.4.6"), "{to}");
        let lines = tests::accounting::lines(engine.path());
        assert_eq!(lines.iter().filter(|l| l.starts_with("d,") && l.contains(to)).count(), 0, "{to} went round");
    }
    eventually("better hosts, and those that are configured, are tried", Duration::from_secs(10), || r.unique() == 2);
}
