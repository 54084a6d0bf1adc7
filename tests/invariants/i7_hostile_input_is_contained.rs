//! I7: rubbish from clients ends in an error for them and in nothing for others.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use tests::client::Client;
use tests::engine::Engine;
use tests::receiver::Receiver;
use tests::{Seed, eventually};

#[test]
fn smuggled_mail_is_refused() {
    let receiver = Receiver::start();
    let engine = Engine::start(1, &format!("<domain *>\n {}\n</domain>", receiver.hosts()));
    for end in ["\n.\n", "\n.\r\n", "\r.\r", "\r\n.\n", "\r.\r\n"] {
        let mut c = Client::connect(engine.smtp).unwrap();
        let smuggled = format!("Subject: x\r\n\r\nx{end}MAIL FROM:<evil@x.test>\r\nRCPT TO:<v@d.test>\r\nDATA\r\nevil");
        let (code, text) = c.send("s@x.test", &["a@d.test"], &smuggled).unwrap();
        assert_eq!(code, 550, "{end:?}: {text}");
    }
    assert_eq!(receiver.unique(), 0);
}

#[test]
fn rubbish_on_every_socket_disturbs_nobody() {
    let receiver = Receiver::start();
    let engine = Engine::start(2, &format!("<domain *>\n {}\n</domain>", receiver.hosts()));
    let workers = engine.workers();
    let mut seed = Seed::new();
    for _ in 0..50 {
        let bytes: Vec<u8> = (0..seed.below(3000)).map(|_| seed.below(256) as u8).collect();
        let mut c = Client::connect(engine.smtp).unwrap();
        let _ = c.raw(&bytes);
        for name in ["control.sock", "supervisor.sock", "shard-00.sock", "shard-01.sock"] {
            let mut s = UnixStream::connect(engine.path().join("run").join(name)).unwrap();
            let _ = s.write_all(&bytes);
        }
    }
    let mut c = Client::connect(engine.smtp).unwrap();
    assert_eq!(c.send("s@x.test", &["a@d.test"], "Subject: x\r\n\r\nx").unwrap().0, 250);
    eventually("mail goes through", Duration::from_secs(10), || receiver.unique() == 1);
    assert_eq!(engine.workers(), workers, "no worker was restarted");
}
