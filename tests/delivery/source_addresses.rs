//! Virtual MTAs: addresses and names that receivers see.

use std::time::Duration;

use tests::client::Client;
use tests::engine::Engine;
use tests::eventually;
use tests::receiver::Receiver;

#[test]
fn a_message_leaves_by_the_virtual_mta_it_names() {
    let r = Receiver::start();
    let engine = Engine::start(
        2,
        &format!(
            "<virtual-mta a>\n smtp-source-host 127.0.2.1 a.sender.test\n</virtual-mta>\n\
             <virtual-mta b>\n smtp-source-host 127.0.2.2 b.sender.test\n</virtual-mta>\n\
             <virtual-mta-pool both>\n virtual-mta a\n virtual-mta b\n</virtual-mta-pool>\n\
             <domain *>\n {}\n</domain>",
            r.hosts()
        ),
    );
    let mut c = Client::connect(engine.smtp).unwrap();
    for (to, vmta) in [("a@d.test", "a"), ("b@d.test", "B"), ("p@d.test", "both"), ("q@d.test", "both")] {
        let content = format!("Subject: x\r\nx-virtual-mta: {vmta}\r\n\r\nx");
        assert_eq!(c.send("s@sender.test", &[to], &content).unwrap().0, 250);
    }
    eventually("all arrive", Duration::from_secs(10), || r.unique() == 4);
    let of = |to: &str| {
        let m = r.message_to(to).unwrap();
        assert!(!m.content.to_lowercase().contains("x-virtual-mta"), "{}", m.content);
        (m.from.to_string(), m.hello)
    };
    let (a, b) = (("127.0.2.1".into(), "a.sender.test".into()), ("127.0.2.2".into(), "b.sender.test".into()));
    assert_eq!((of("a@d.test"), of("b@d.test")), (a.clone(), b.clone()));
    let pool = [of("p@d.test"), of("q@d.test")];
    assert!(pool.contains(&a) && pool.contains(&b), "{pool:?}");
}

#[test]
fn a_reload_that_reorders_virtual_mtas_mixes_none_up() {
    let r = Receiver::start();
    r.script(|s| s.greeting = "421 later");
    let (a, b) = (
        "<virtual-mta a>\n smtp-source-host 127.0.2.1 a.sender.test\n</virtual-mta>\n",
        "<virtual-mta b>\n smtp-source-host 127.0.2.2 b.sender.test\n</virtual-mta>\n",
    );
    let engine = Engine::start(1, &format!("{a}{b}<domain *>\n {}\n retry-after 1s\n</domain>", r.hosts()));
    let mut c = Client::connect(engine.smtp).unwrap();
    for v in ["a", "b"] {
        let content = format!("Subject: x\r\nx-virtual-mta: {v}\r\n\r\nx");
        assert_eq!(c.send("s@sender.test", &[&format!("{v}@d.test")], &content).unwrap().0, 250);
    }
    eventually("both queues wait", Duration::from_secs(10), || r.with(|s| s.connections >= 2));
    engine.edit_config(&format!("{a}{b}"), &format!("{b}{a}"));
    assert!(engine.sluice(&["reload"]).status.success());
    r.script(|s| s.greeting = "220 receiver.test");
    eventually("both arrive", Duration::from_secs(10), || r.unique() == 2);
    assert_eq!(r.message_to("a@d.test").unwrap().hello, "a.sender.test");
    assert_eq!(r.message_to("b@d.test").unwrap().hello, "b.sender.test");
}
