//! Outbound STARTTLS (RFC 3207): opportunistic, and demanded.

use std::time::Duration;

use tests::engine::Engine;
use tests::receiver::{Receiver, Script};
use tests::{accounting, eventually};

use crate::send;

const WAIT: Duration = Duration::from_secs(20);

/// Receivers on addresses of their own: what is known of a host's TLS is known by its name.
fn receivers(n: usize) -> Vec<Receiver> {
    (0..n).map(|n| Receiver::at(&format!("127.0.0.{}:0", 31 + n))).collect()
}

#[test]
fn used_where_it_is_offered() {
    let (with, without) = (Receiver::start(), Receiver::start());
    with.script(|s| s.extensions.push("STARTTLS"));
    let config =
        format!("<domain with.test>\n {}\n</domain>\n<domain *>\n {}\n</domain>", with.hosts(), without.hosts());
    let engine = Engine::start(1, &config);
    send(&engine, &["u@with.test", "u@without.test"]);
    eventually("both arrive", Duration::from_secs(10), || with.unique() == 1 && without.unique() == 1);
    assert!(with.message_to("u@with.test").unwrap().tls);
    assert!(!without.message_to("u@without.test").unwrap().tls);
}

#[test]
fn broken_tls_falls_back_unless_it_is_demanded() {
    let r = Receiver::start();
    r.script(|s| {
        s.extensions.push("STARTTLS");
        s.broken_tls = true;
    });
    let config = format!(
        "<domain demanded.test>\n {}\n require-starttls yes\n retry-after 1s\n</domain>\n\
         <domain off.test>\n {}\n use-starttls no\n</domain>\n<domain *>\n {}\n</domain>",
        r.hosts(),
        r.hosts(),
        r.hosts()
    );
    let engine = Engine::start(1, &config);
    send(&engine, &["u@demanded.test", "u@off.test", "u@any.test"]);
    eventually("two arrive", Duration::from_secs(10), || r.unique() == 2);
    std::thread::sleep(Duration::from_secs(2));
    assert!(r.message_to("u@demanded.test").is_none() && engine.queued() == 1, "it waits");
    r.script(|s| s.broken_tls = false);
    eventually("it arrives once TLS works", Duration::from_secs(10), || r.unique() == 3);
    assert!(r.message_to("u@demanded.test").unwrap().tls);
}

#[test]
fn a_receiver_that_closes_at_starttls_is_greeted_in_the_clear() {
    let r = Receiver::start();
    r.script(|s| {
        s.extensions.push("STARTTLS");
        s.close_at = Some("STARTTLS");
    });
    let engine = Engine::start(1, &format!("<domain *>\n {}\n</domain>", r.hosts()));
    send(&engine, &["u@d.test"]);
    eventually("it arrives", Duration::from_secs(10), || r.unique() == 1);
    send(&engine, &["v@d.test"]);
    eventually("the next as well", Duration::from_secs(10), || r.unique() == 2);
    let asked = r.with(|s| s.commands.iter().filter(|c| *c == "STARTTLS").count());
    assert_eq!(asked, 2, "once more, and then it is remembered");
}

#[test]
fn mail_that_may_not_come_in_the_clear_waits_for_tls() {
    type Change = fn(&mut Script);
    let cases: [(&str, Change, Change, (&str, &str)); 5] = [
        (
            "refused.test",
            |s| s.answers = Some(("STARTTLS", "454 4.7.0 not now")),
            |s| s.answers = None,
            ("MAIL", "530 5.7.0 Must issue a STARTTLS command first"),
        ),
        (
            "closed.test",
            |s| s.close_at = Some("STARTTLS"),
            |s| s.close_at = None,
            ("MAIL", "550 5.7.10 Encryption required"),
        ),
        ("broken.test", |s| s.broken_tls = true, |s| s.broken_tls = false, ("MAIL", "530 STARTTLS first")),
        (
            "recipient.test",
            |s| s.broken_tls = true,
            |s| s.broken_tls = false,
            ("RCPT", "550 5.7.10 Encryption required"),
        ),
        // For a while it does not even offer it.
        (
            "hidden.test",
            |s| s.extensions.retain(|x| *x != "STARTTLS"),
            |s| s.extensions.push("STARTTLS"),
            ("MAIL", "550 5.7.10 Encryption required"),
        ),
    ];
    let receivers = receivers(cases.len());
    let domain = |(domain, r): (&str, &Receiver)| {
        format!(
            "<domain {domain}>\n {}\n retry-after 1s\n retry-recipients-after 1s\n max-smtp-out 1\n</domain>\n",
            r.hosts()
        )
    };
    let config: String = cases.iter().map(|c| c.0).zip(&receivers).map(domain).collect();
    for (r, (_, begin, _, refusal)) in receivers.iter().zip(&cases) {
        r.script(|s| {
            s.extensions.push("STARTTLS");
            s.needs_tls = Some(*refusal);
            begin(s);
        });
    }
    let engine = Engine::start(1, &config);
    cases.iter().for_each(|c| send(&engine, &[&format!("u@{}", c.0)]));
    for (r, (domain, _, end, (command, _))) in receivers.iter().zip(&cases) {
        let refused = || r.with(|s| s.commands.iter().any(|c| c.starts_with(command)));
        eventually(&format!("{domain} refuses it"), WAIT, refused);
        let greeted = r.with(|s| s.connections);
        eventually(&format!("{domain} is greeted again"), WAIT, || r.with(|s| s.connections) > greeted);
        r.script(end);
        eventually(&format!("{domain} takes it"), WAIT, || r.unique() == 1);
        assert!(r.message_to(&format!("u@{domain}")).unwrap().tls);
        let mails = r.with(|s| s.commands.iter().filter(|c| c.starts_with("MAIL")).count());
        assert_eq!(mails, 2, "{domain}: nothing more was tried in the clear");
    }
    eventually("nothing waits", WAIT, || engine.queued() == 0);
    assert!(accounting::lines(engine.path()).iter().all(|l| !l.starts_with("b,")), "nothing bounced");
}

#[test]
fn refusals_that_tls_does_not_help_bounce() {
    let [r, off] = &receivers(2)[..] else { panic!("two") };
    r.script(|s| {
        s.extensions.push("STARTTLS");
        s.mail_reply = Some("530 5.7.0 Authentication required");
    });
    off.script(|s| {
        s.extensions.push("STARTTLS");
        s.mail_reply = Some("550 5.7.10 Encryption required");
    });
    let config = format!(
        "<domain auth.test>\n {}\n</domain>\n<domain off.test>\n {}\n use-starttls no\n</domain>",
        r.hosts(),
        off.hosts()
    );
    let engine = Engine::start(1, &config);
    send(&engine, &["u@auth.test", "u@off.test"]);
    let bounced = |to: &str| accounting::rows(engine.path()).keys().any(|(kind, rcpt)| kind == "b" && rcpt == to);
    eventually("both bounce", WAIT, || bounced("u@auth.test") && bounced("u@off.test"));
}

#[test]
fn sessions_that_a_receiver_forgot_are_negotiated_anew() {
    let rules = [
        ("any.test", ""),
        ("demanded.test", "require-starttls yes"),
        ("old.test", "require-starttls yes\n smtp-tls-allow-tlsv1.3 no"),
    ];
    let receivers = receivers(rules.len());
    let mut config = String::new();
    for (r, (domain, more)) in receivers.iter().zip(rules) {
        r.script(|s| {
            s.extensions.push("STARTTLS");
            // One that keeps its sessions.
            s.tls = Some(tests::tls::server());
        });
        let host = r.hosts();
        config +=
            &format!("<domain {domain}>\n {host}\n retry-after 1s\n max-msg-per-connection 1\n {more}\n</domain>\n");
    }
    let engine = Engine::start(1, &config);
    for (r, (domain, _)) in receivers.iter().zip(rules) {
        let sessions = |resumed: bool| r.with(|s| s.tls.iter().filter(|t| t.0 == resumed).count());
        send(&engine, &[&format!("first@{domain}")]);
        eventually("a session", WAIT, || sessions(false) == 1);
        send(&engine, &[&format!("second@{domain}")]);
        eventually("one resumed", WAIT, || sessions(true) == 1);
        r.script(|s| s.refuses_resumption = true);
        for n in ["third", "fourth"] {
            send(&engine, &[&format!("{n}@{domain}")]);
            eventually(&format!("{n} at {domain}"), WAIT, || r.message_to(&format!("{n}@{domain}")).is_some());
        }
        assert!(r.with(|s| s.messages.iter().all(|m| m.tls)), "{domain}");
    }
}

#[test]
fn a_refusal_of_starttls_that_is_demanded_ends_no_mail() {
    let r = Receiver::start();
    r.script(|s| {
        s.extensions.push("STARTTLS");
        s.answers = Some(("STARTTLS", "502 5.5.1 not in force"));
    });
    let rules = "require-starttls yes\n retry-after 1s\n bounce-upon-5xx-greeting yes";
    let engine = Engine::start(1, &format!("<domain *>\n {}\n {rules}\n</domain>", r.hosts()));
    send(&engine, &["u@d.test"]);
    let asked = || r.with(|s| s.commands.iter().filter(|c| *c == "STARTTLS").count());
    eventually("it is tried again", WAIT, || asked() >= 2);
    r.script(|s| s.answers = None);
    eventually("it arrives", WAIT, || r.unique() == 1);
    assert!(r.message_to("u@d.test").unwrap().tls);
}

#[test]
fn connections_that_do_not_fit_other_rules_end_behind_their_message() {
    let r = Receiver::start();
    r.script(|s| s.extensions.push("STARTTLS"));
    let other = Receiver::start();
    let engine = Engine::start(
        1,
        &format!("<domain *>\n {}\n use-starttls no\n max-msg-rate 10/s\n max-smtp-out 1\n</domain>", r.hosts()),
    );
    (0..60).for_each(|n| send(&engine, &[&format!("u{n}@d.test")]));
    eventually("some arrive", Duration::from_secs(10), || r.unique() >= 3);
    engine.edit_config("use-starttls no", "require-starttls yes");
    engine.run(&["reload"]);
    let clear = r.with(|s| s.messages.iter().filter(|m| !m.tls).count());
    eventually("more arrive", Duration::from_secs(20), || r.unique() >= clear + 5);
    let now = r.with(|s| s.messages.iter().filter(|m| !m.tls).count());
    assert!(now <= clear + 1, "{} went in the clear after the reload", now - clear);
    engine.edit_config(&r.hosts(), &other.hosts());
    engine.edit_config("require-starttls yes", "use-starttls no");
    engine.run(&["reload"]);
    let before = r.unique();
    eventually("the rest goes to the other host", Duration::from_secs(20), || r.unique() + other.unique() == 60);
    assert!(r.unique() <= before + 1);
}

#[test]
fn a_certificate_that_is_not_trusted_is_no_reason_to_bounce_what_may_not_come_in_the_clear() {
    let r = Receiver::start();
    r.script(|s| {
        s.extensions.push("STARTTLS");
        s.needs_tls = Some(("MAIL", "530 5.7.0 Must issue a STARTTLS command first"));
    });
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, tests::tls::Authority::new().pem).unwrap();
    let rules = format!("smtp-tls-ca-file {}\n retry-after 1s\n retry-recipients-after 1s", ca.display());
    let engine = Engine::start(1, &format!("<domain *>\n {}\n {rules}\n</domain>", r.hosts()));
    send(&engine, &["u@d.test"]);
    let asked = |command: &str| r.with(|s| s.commands.iter().filter(|c| c.starts_with(command)).count());
    eventually("it is tried again", WAIT, || asked("STARTTLS") >= 3);
    assert_eq!((asked("MAIL"), engine.queued()), (1, 1), "once in the clear, and then it waits");
}
