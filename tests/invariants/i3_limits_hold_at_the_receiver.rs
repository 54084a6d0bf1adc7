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
    receiver.with(|s| {
        for (i, t) in s.rcpts.iter().enumerate() {
            let n = s.rcpts[i..].iter().take_while(|u| **u - *t < Duration::from_secs(1)).count();
            assert!(n <= 21, "{n} in a second");
        }
        let all = *s.rcpts.last().unwrap() - s.rcpts[0];
        assert!(all < Duration::from_millis(4600), "80 at 20/s took {all:?}");
    });
}
