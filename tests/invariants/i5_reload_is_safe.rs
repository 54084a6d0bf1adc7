//! I5: a wrong configuration changes nothing, a right one takes effect without a loss.

use std::time::Duration;

use tests::client::Client;
use tests::engine::Engine;
use tests::eventually;
use tests::receiver::Receiver;

#[test]
fn wrong_is_refused_whole_and_right_takes_effect() {
    let (first, second) = (Receiver::start(), Receiver::start());
    let engine = Engine::start(2, &format!("<domain *>\n {}\n</domain>", first.hosts()));
    let mut c = Client::connect(engine.smtp).unwrap();
    engine.edit_config(&first.hosts(), "max-smtp-uot 5");
    let refused = engine.sluice(&["reload"]);
    assert_eq!(refused.status.code(), Some(2));
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("max-smtp-out") && text.contains("sluice.conf:"), "{text}");
    c.send("s@x.test", &["a@d.test"], "Subject: x\r\n\r\nx").unwrap();
    eventually("the old configuration delivers", Duration::from_secs(10), || first.unique() == 1);
    engine.edit_config("max-smtp-uot 5", &second.hosts());
    assert!(engine.sluice(&["reload"]).status.success());
    for n in 0..20 {
        assert_eq!(c.send("s@x.test", &[&format!("b{n}@e{n}.test")], "Subject: x\r\n\r\nx").unwrap().0, 250);
    }
    eventually("the new one delivers, over the same session", Duration::from_secs(10), || second.unique() == 20);
}
