//! The receiver for tests that the server brings along (`dummy-smtp-…`).

use std::time::{Duration, Instant};

use tests::client::Client;
use tests::engine::Engine;
use tests::eventually;

fn port() -> u16 {
    std::net::TcpListener::bind("127.0.0.71:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn it_takes_everything_at_its_own_pace_and_keeps_nothing() {
    let port = port();
    let config = |options: &str| {
        format!(
            "dummy-smtp-ip 127.0.0.71\ndummy-smtp-port {port}\n{options}<domain *>\n smtp-hosts [127.0.0.71]:{port}\n\
             </domain>"
        )
    };
    let engine = Engine::start(2, &config("dummy-smtp-has-pipelining yes\ndummy-smtp-has-chunking yes\n"));
    let mut c = Client::connect(engine.smtp).unwrap();
    for i in 0..50 {
        let content = format!("Subject: x\r\n\r\n{}\r\n.\r\n", "a line\r\n".repeat(i));
        let content = content.replace("\r\n.\r\n", "\r\n..\r\n");
        assert_eq!(c.send("s@x.test", &[&format!("u{i}@one.test")], &content).unwrap().0, 250);
    }
    crate::row(&engine, "d", "u49@one.test");
    eventually("all are gone", Duration::from_secs(20), || engine.queued() == 0);
    let mut c = Client::dial(format!("127.0.0.71:{port}").parse().unwrap()).unwrap();
    assert_eq!(c.reply().unwrap().0, 220);
    let (code, text) = c.command("EHLO me").unwrap();
    assert!(
        code == 250 && text.contains("PIPELINING") && text.contains("CHUNKING") && !text.contains("VERP"),
        "{text}"
    );
    c.raw(b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\nDATA\r\n").unwrap();
    let codes: Vec<u16> = (0..3).map(|_| c.reply().unwrap().0).collect();
    assert_eq!(codes, [250, 250, 354]);
    // The lone dot may come in pieces, and may be all there is.
    for part in ["a\r\n.", "b\r\n", ".", "\r", "\nNOOP\r\n"] {
        c.raw(part.as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!((c.reply().unwrap().0, c.reply().unwrap().0), (250, 250));
    c.raw(b"DATA\r\n").unwrap();
    assert_eq!(c.reply().unwrap().0, 354);
    c.raw(b".\r\n").unwrap();
    assert_eq!(c.reply().unwrap().0, 250);
    drop(engine);
    let slow = Engine::start(1, &config("dummy-smtp-latency 200\n"));
    let begin = Instant::now();
    let mut c = Client::connect(slow.smtp).unwrap();
    assert_eq!(c.send("s@x.test", &["u@one.test"], "Subject: x\r\n\r\nx").unwrap().0, 250);
    crate::row(&slow, "d", "u@one.test");
    // Greeting, EHLO, MAIL, RCPT, DATA, end of data.
    assert!(begin.elapsed() >= Duration::from_millis(1200), "{:?}", begin.elapsed());
}
