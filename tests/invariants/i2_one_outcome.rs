//! I2: every recipient ends in one row, whatever its end and whatever restarts.

use std::time::Duration;

use tests::client::Client;
use tests::engine::Engine;
use tests::receiver::Receiver;
use tests::{accounting, eventually};

#[test]
fn one_final_row_for_every_recipient() {
    let receiver = Receiver::start();
    let mut engine = Engine::start(
        2,
        &format!(
            "<domain *>\n {}\n retry-after 1s\n retry-recipients-after 1s\n bounce-after 4s\n</domain>",
            receiver.hosts()
        ),
    );
    let mut all = Vec::new();
    let mut send = |engine: &Engine, from: u32| {
        let mut c = Client::connect(engine.smtp).unwrap();
        for n in from..from + 40 {
            let to: Vec<String> = ["u", "bad-", "later-"].iter().map(|k| format!("{k}{n}@d{}.test", n % 7)).collect();
            let to: Vec<&str> = to.iter().map(String::as_str).collect();
            assert_eq!(c.send("", &to, "Subject: x\r\n\r\nx").unwrap().0, 250);
            all.extend(to.iter().map(|t| (*t).to_owned()));
        }
    };
    send(&engine, 0);
    assert!(engine.sluice(&["shard", "restart", "1"]).status.success());
    send(&engine, 40);
    assert!(engine.sluice(&["scale", "3"]).status.success());
    send(&engine, 80);
    assert!(engine.stop());
    engine.start_again();
    eventually("all have ended", Duration::from_secs(30), || engine.queued() == 0);
    assert!(engine.stop());
    let rows = accounting::rows(engine.path());
    for r in &all {
        let of = |kind: &str| rows.get(&(kind.into(), r.clone())).copied().unwrap_or(0);
        let expected = if r.starts_with('u') { (1, 0) } else { (0, 1) };
        assert_eq!((of("d"), of("b")), expected, "{r}");
    }
    assert_eq!(receiver.duplicates(), 0);
}

#[test]
fn reports_to_senders_of_other_shards_come_whatever_restarts() {
    let receiver = Receiver::start();
    let mut engine = Engine::start(3, &format!("<domain *>\n {}\n retry-after 1s\n</domain>", receiver.hosts()));
    let send = |engine: &Engine, from: u32| {
        let mut c = Client::connect(engine.smtp).unwrap();
        for n in from..from + 40 {
            let (sender, to) = (format!("s{n}@from{n}.test"), format!("bad-{n}@d{n}.test"));
            assert_eq!(c.send(&sender, &[&to], "Subject: x\r\n\r\nx").unwrap().0, 250);
        }
    };
    send(&engine, 0);
    assert!(engine.sluice(&["shard", "restart", "1"]).status.success());
    send(&engine, 40);
    eventually("all are reported", Duration::from_secs(30), || receiver.unique() == 80);
    assert_eq!(receiver.duplicates(), 0, "an orderly restart reports nothing twice");
    send(&engine, 80);
    Engine::kill(engine.workers()[2]);
    send(&engine, 120);
    engine.kill_all();
    engine.start_again();
    eventually("all are reported after kills, too", Duration::from_secs(30), || receiver.unique() == 160);
    eventually("nothing is left", Duration::from_secs(30), || engine.queued() == 0);
    let rows = accounting::rows(engine.path());
    for n in 0..160 {
        let of = |kind: &str, who: String| rows.get(&(kind.into(), who)).copied().unwrap_or(0);
        assert!(of("b", format!("bad-{n}@d{n}.test")) >= 1 && of("d", format!("s{n}@from{n}.test")) >= 1, "{n}");
    }
}
