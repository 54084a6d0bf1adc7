//! I7: rubbish from clients ends in an error for them and in nothing for others.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use tests::beside::Innocents;
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

/// Writes `bytes` again and again, with a pause, until the server closes.
fn drips(smtp: std::net::SocketAddr, begin: &'static str, bytes: &'static [u8]) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut c = Client::connect(smtp).unwrap();
        for line in begin.lines() {
            c.command(line).unwrap();
        }
        let began = Instant::now();
        // Nothing is read meanwhile: once the server has closed, writing fails.
        while c.raw(bytes).is_ok() {
            assert!(began.elapsed() < Duration::from_secs(40), "{begin:?} goes on");
            std::thread::sleep(Duration::from_millis(200));
        }
    })
}

#[test]
fn sessions_of_clients_that_drip_or_read_nothing_end() {
    let folder = tempfile::tempdir().unwrap();
    let pem = folder.path().join("tls.pem");
    std::fs::write(&pem, tests::tls::pem()).unwrap();
    let engine = Engine::start(
        1,
        &format!(
            "smtp-server-tls-certificate {}\n<source 127.0.0.1>\n smtp-command-timeout 2s\n smtp-data-timeout 2s\n \
             smtp-session-timeout 4s\n allow-starttls yes\n</source>",
            pem.display()
        ),
    );
    let message = "MAIL FROM:<s@x.test>\nRCPT TO:<u@d.test>\n";
    let all = [
        drips(engine.smtp, "", b"x"),
        drips(engine.smtp, message, b"x"),
        drips(engine.smtp, message, b"NOOP\r\n"),
        drips(engine.smtp, "MAIL FROM:<s@x.test>\nRCPT TO:<u@d.test>\nDATA", b"y"),
        drips(engine.smtp, message, b"BDAT 1\r\nx"),
    ];
    // One that reads no replies while the server has more to say than the connection holds.
    let mut deaf = Client::dial_with_little_room(engine.smtp).unwrap();
    assert_eq!(deaf.reply().unwrap().0, 220);
    deaf.command("EHLO client.test").unwrap();
    deaf.start_tls().unwrap();
    deaf.command("MAIL FROM:<s@x.test>").unwrap();
    let lines = format!("RCPT TO:<{}@d.test>\r\n", "u".repeat(400)).repeat(1000);
    let deaf = std::thread::spawn(move || while deaf.raw(lines.as_bytes()).is_ok() {});
    all.into_iter().for_each(|t| t.join().unwrap());
    deaf.join().unwrap();
    let open = || engine.json(&["status", "--json"])["data"]["status"]["conn"]["smtpIn"]["cur"].as_u64();
    eventually("no session is left", Duration::from_secs(10), || open() == Some(0));
}

/// A client that connects from one of the addresses of a stranger's and says nothing; `None` when it is refused at once.
fn silent(from: [u8; 4], to: std::net::SocketAddr) -> Option<Client> {
    let mut c = Client::dial_from(from.into(), to).unwrap();
    matches!(c.reply(), Ok((220, _))).then_some(c)
}

#[test]
fn silent_connections_of_one_stranger_keep_nobody_out() {
    let innocents = Innocents::new();
    let engine = Engine::start(2, &format!("total-max-smtp-in 200\n{}", innocents.config()));
    let impact = innocents.beside(&engine, || {
        let held: Vec<Client> = (0..520).filter_map(|_| silent([127, 66, 0, 1], engine.smtp)).collect();
        assert_eq!(held.len(), 25, "an eighth");
        assert!(silent([127, 66, 1, 1], engine.smtp).is_some(), "another stranger is served");
        std::thread::sleep(Duration::from_secs(3));
        held
    });
    assert!(impact.above_rest.descriptors <= 200, "{impact:?}");
}

#[test]
fn silent_strangers_of_many_networks_make_room() {
    let innocents = Innocents::new();
    let engine = Engine::start(2, &format!("total-max-smtp-in 80\n{}", innocents.config()));
    innocents.beside(&engine, || {
        // All of the 60 that are not set apart for clients which the configuration names.
        let says = |c: &mut Client, line: &str| c.command(line).is_ok_and(|(code, _)| code == 250);
        let begun = (0..20).filter_map(|n| silent([127, 66, n / 4, 1], engine.smtp));
        let mut busy: Vec<Client> = begun.filter_map(|mut c| says(&mut c, "EHLO slow.test").then_some(c)).collect();
        assert_eq!(busy.len(), 20);
        let mut mute: Vec<Client> = (0..40).filter_map(|n| silent([127, 67, n / 4, 1], engine.smtp)).collect();
        for _ in 0..5 {
            busy.iter_mut().for_each(|c| assert!(says(c, "NOOP")));
            std::thread::sleep(Duration::from_millis(200));
        }
        eventually("a stranger from elsewhere is served", Duration::from_secs(10), || {
            silent([127, 68, 0, 1], engine.smtp).is_some()
        });
        let told = mute.iter_mut().filter_map(|c| c.reply_within(Duration::from_millis(50))).collect::<Vec<_>>();
        assert!(told.len() >= 5 && told.iter().all(|(_, text)| text.starts_with("421 4.3.2")), "{told:?}");
        busy.iter_mut().for_each(|c| assert!(says(c, "NOOP"), "who talks keeps its place"));
        (busy, mute)
    });
}
