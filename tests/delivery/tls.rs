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
