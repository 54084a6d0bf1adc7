//! Addresses and names of hosts as DNS and receivers have them.

use std::time::Duration;

use tests::client::Client;
use tests::engine::Engine;
use tests::receiver::Receiver;
use tests::{accounting, eventually};

use crate::send;

#[test]
fn an_address_given_twice_is_delivered_once_and_accounted_twice() {
    let r = Receiver::start();
    let rules = "retry-after 1s\n retry-recipients-after 1s";
    let engine = Engine::start(2, &format!("<domain *>\n {}\n {rules}\n</domain>", r.hosts()));
    r.script(|s| s.rcpt_reply = Some(("450 4.2.1 later", None)));
    send(
        &engine,
        &["u@d.test", "v@e.test", "u@D.TEST.", "bad-x@d.test", "U@d.test", "v@e.test.", "bad-x@d.test", "u@d.test"],
    );
    eventually("a first attempt", Duration::from_secs(10), || {
        r.with(|s| s.deferred.contains_key("v@e.test") && s.deferred.len() >= 3)
    });
    r.script(|s| s.rcpt_reply = None);
    let rows = |start: &str, rcpt: &str| {
        let lines = accounting::lines(engine.path());
        lines.iter().filter(|l| l.starts_with(start) && l.contains(&format!(",{rcpt},"))).count()
    };
    eventually("all have ended", Duration::from_secs(20), || {
        rows("d,", "u@d.test") == 3
            && rows("d,", "U@d.test") == 1
            && rows("d,", "v@e.test") == 2
            && rows("b,", "bad-x@d.test") == 2
    });
    r.with(|s| {
        let sent = |to: &str| s.messages.iter().flat_map(|m| &m.rcpts).filter(|r| r.as_str() == to).count();
        assert_eq!([sent("u@d.test"), sent("U@d.test"), sent("v@e.test")], [1, 1, 1]);
    });
}

#[test]
fn addresses_go_out_as_they_came_but_for_the_final_dot() {
    let r = Receiver::start();
    let engine = Engine::start(1, &format!("<domain *>\n {}\n</domain>", r.hosts()));
    let verp = format!("bounce+{}@my_shop.test", "v".repeat(150));
    let all = ["a..b@d.test", ".c@d.test", "e.@d.test", "f@-x.xn--a", "g@a+b.test", &verp];
    let mut c = Client::connect(engine.smtp).unwrap();
    for to in all {
        assert_eq!(c.send("s..x.@my_shop.test.", &[to], "Subject: x\r\n\r\nx").unwrap().0, 250, "{to}");
    }
    eventually("all arrive", Duration::from_secs(10), || r.unique() == all.len());
    r.with(|s| {
        for m in &s.messages {
            assert!(all.contains(&m.rcpts[0].as_str()), "{:?}", m.rcpts);
        }
        let mails: Vec<&String> = s.commands.iter().filter(|c| c.starts_with("MAIL")).collect();
        assert!(mails.iter().all(|c| c.starts_with("MAIL FROM:<s..x.@my_shop.test>")), "{mails:?}");
    });
}
