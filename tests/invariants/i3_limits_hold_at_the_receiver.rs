//! I3: connections, messages per connection and rate, counted by the receiver.

use std::time::Duration;

use tests::client::Client;
use tests::engine::Engine;
use tests::eventually;
use tests::receiver::Receiver;

#[test]
fn connections_and_messages_per_connection() {
    let receiver = Receiver::start();
    let engine = Engine::start(
        2,
        &format!("<domain *>\n {}\n max-smtp-out 3\n max-msg-per-connection 4\n</domain>", receiver.hosts()),
    );
    let mut c = Client::connect(engine.smtp).unwrap();
    for n in 0..200 {
        assert_eq!(c.send("s@x.test", &[&format!("u{n}@one.test")], "Subject: x\r\n\r\nx").unwrap().0, 250);
    }
    eventually("all are delivered", Duration::from_secs(30), || receiver.unique() == 200);
    receiver.with(|s| {
        assert!(s.open_max <= 3, "{} connections", s.open_max);
        assert!(s.messages_per_connection_max <= 4, "{} messages", s.messages_per_connection_max);
    });
}

#[test]
fn rate_over_any_window_and_across_a_reload() {
    let receiver = Receiver::start();
    let engine = Engine::start(1, &format!("<domain *>\n {}\n max-msg-rate 20/s\n</domain>", receiver.hosts()));
    let mut c = Client::connect(engine.smtp).unwrap();
    for n in 0..80 {
        assert_eq!(c.send("s@x.test", &[&format!("u{n}@one.test")], "Subject: x\r\n\r\nx").unwrap().0, 250);
    }
    std::thread::sleep(Duration::from_millis(700));
    assert!(engine.sluice(&["reload"]).status.success());
    eventually("all are delivered", Duration::from_secs(30), || receiver.unique() == 80);
    receiver.assert_rate(21, Duration::from_secs(1));
    receiver.with(|s| {
        let all = *s.rcpts.last().unwrap() - s.rcpts[0];
        assert!(all < Duration::from_millis(4600), "80 at 20/s took {all:?}");
    });
}

fn send(engine: &Engine, n: usize, domain: &str) {
    let mut c = Client::connect(engine.smtp).unwrap();
    for i in 0..n {
        let sent = c.send("s@x.test", &[&format!("u{i}@{domain}")], "Subject: x\r\n\r\nx").unwrap();
        assert_eq!(sent.0, 250, "{}", sent.1);
    }
}

/// Domains of which some change their owner whichever way the number of workers goes.
const DOMAINS: [&str; 6] = ["one.test", "two.test", "three.test", "four.test", "five.test", "six.test"];

#[test]
fn rate_across_restarts_kills_and_scaling() {
    let receivers: Vec<Receiver> = DOMAINS.iter().map(|_| Receiver::start()).collect();
    let domains: String = DOMAINS
        .iter()
        .zip(&receivers)
        .map(|(d, r)| format!("<domain {d}>\n {}\n max-msg-rate 100/10s\n</domain>\n", r.hosts()))
        .collect();
    let engine = Engine::start(1, &domains);
    DOMAINS.iter().for_each(|d| send(&engine, 220, d));
    let pause = || std::thread::sleep(Duration::from_millis(1500));
    pause();
    engine.run(&["shard", "restart", "0"]);
    pause();
    engine.run(&["scale", "3"]);
    pause();
    Engine::kill(engine.workers()[1]);
    pause();
    engine.wait_ready();
    engine.run(&["scale", "2"]);
    for (d, r) in DOMAINS.iter().zip(&receivers) {
        eventually(d, Duration::from_secs(40), || r.unique() == 220);
        r.assert_rate(101, Duration::from_secs(10));
    }
}

#[test]
fn connections_across_restarts_and_scaling() {
    let receivers: Vec<Receiver> = DOMAINS.iter().map(|_| Receiver::start()).collect();
    let domains: String = DOMAINS
        .iter()
        .zip(&receivers)
        .map(|(d, r)| format!("<domain {d}>\n {}\n max-smtp-out 2\n</domain>\n", r.hosts()))
        .collect();
    receivers.iter().for_each(|r| r.script(|s| s.delay = Duration::from_millis(100)));
    let engine = Engine::start(1, &domains);
    DOMAINS.iter().for_each(|d| send(&engine, 60, d));
    engine.run(&["scale", "3"]);
    engine.run(&["shard", "restart", "0"]);
    engine.run(&["scale", "2"]);
    for (d, r) in DOMAINS.iter().zip(&receivers) {
        eventually(d, Duration::from_secs(30), || r.unique() == 60);
        r.with(|s| assert!(s.open_max <= 2, "{} connections for {d}", s.open_max));
        assert_eq!(r.duplicates(), 0);
    }
}

#[test]
fn a_reload_lowers_the_number_of_connections() {
    let receiver = Receiver::start();
    receiver.script(|s| s.delay = Duration::from_millis(100));
    let engine = Engine::start(1, &format!("<domain *>\n {}\n max-smtp-out 6\n</domain>", receiver.hosts()));
    send(&engine, 200, "one.test");
    eventually("six connections are open", Duration::from_secs(10), || receiver.with(|s| s.open == 6));
    engine.edit_config("max-smtp-out 6", "max-smtp-out 2");
    engine.run(&["reload"]);
    std::thread::sleep(Duration::from_millis(400));
    receiver.with(|s| s.open_max = s.open);
    eventually("all are delivered", Duration::from_secs(30), || receiver.unique() == 200);
    receiver.with(|s| assert!(s.open_max <= 2, "{} connections", s.open_max));
}
