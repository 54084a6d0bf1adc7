//! Outbound STARTTLS (RFC 3207): opportunistic, and demanded.

use std::time::Duration;

use tests::engine::Engine;
use tests::eventually;
use tests::receiver::Receiver;

use crate::send;

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
    assert_eq!(asked, 1, "it is remembered");
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
