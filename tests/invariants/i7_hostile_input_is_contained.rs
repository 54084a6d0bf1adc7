//! I7: rubbish from clients ends in an error for them and in nothing for others.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use tests::beside::Innocents;
use tests::client::Client;
use tests::dns::{Dns, Name};
use tests::engine::Engine;
use tests::receiver::Receiver;
use tests::tarpit::Tarpit;
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

/// A server whose mail, but that of the innocent, goes by DNS to the port of a tarpit.
fn beside_tarpit(innocents: &Innocents, dns: &Dns, tarpit: &Tarpit, workers: u32, config: &str) -> Engine {
    let all = format!("<domain *>\n default-smtp-port {}\n max-smtp-out 2\n</domain>", tarpit.port);
    Engine::start(workers, &format!("{}\n{config}\n{}{all}", dns.directive(), innocents.config()))
}

/// Mail to so many domains `NAME0.test` and on, 500 in a message.
fn send_to_each(engine: &Engine, name: &str, domains: usize) {
    let mut c = Client::connect(engine.smtp).unwrap();
    let all: Vec<String> = (0..domains).map(|n| format!("u@{name}{n}.test")).collect();
    for some in all.chunks(500) {
        let to: Vec<&str> = some.iter().map(String::as_str).collect();
        assert_eq!(c.send("s@x.test", &to, "Subject: x\r\n\r\nx").unwrap().0, 250);
    }
}

#[test]
fn silent_receivers_at_thousands_of_addresses_slow_nobody() {
    tests::many_descriptors();
    for line in ["", "220-x\r\n"] {
        let (innocents, dns, tarpit) = (Innocents::new().beside_many_names(), Dns::start(), Tarpit::start(line));
        for n in 0..4600 {
            let at = n % 2000;
            dns.host(&format!("silent{n}.test"), [127, 101, (at / 200) as u8, (at % 200 + 1) as u8]);
        }
        let engine = beside_tarpit(&innocents, &dns, &tarpit, 1, "");
        innocents.beside(&engine, || {
            send_to_each(&engine, "silent", 4600);
            eventually("thousands are waited for", Duration::from_secs(60), || tarpit.connections() >= 3000);
            std::thread::sleep(Duration::from_secs(3));
            tarpit
        });
    }
}

#[test]
fn the_hosts_of_an_mx_group_count_as_one() {
    tests::many_descriptors();
    let (innocents, dns, tarpit) = (Innocents::new().beside_many_names(), Dns::start(), Tarpit::start(""));
    let hosts: Vec<(u16, &'static str)> = (0..10).map(|n| (10, format!("mx{n}.evil.test").leak() as &str)).collect();
    for (n, (_, host)) in hosts.iter().enumerate() {
        dns.set(host, Name { a: vec![[127, 110, n as u8, 1].into()], ..Name::default() });
    }
    (0..1000).for_each(|n| dns.mx(&format!("evil{n}.test"), &hosts));
    let engine = beside_tarpit(&innocents, &dns, &tarpit, 1, "");
    innocents.beside(&engine, || {
        send_to_each(&engine, "evil", 1000);
        eventually("some are waited for", Duration::from_secs(30), || tarpit.connections() >= 250);
        std::thread::sleep(Duration::from_secs(6));
        let connections = tarpit.connections();
        assert!(connections < 600, "{connections} connections to one group of hosts");
        tarpit
    });
}

#[test]
fn silent_receivers_leave_a_part_of_few_connections_free() {
    let (innocents, dns, tarpit) = (Innocents::new(), Dns::start(), Tarpit::start(""));
    (0..600).for_each(|n| dns.host(&format!("silent{n}.test"), [127, 120, (n / 100) as u8, (n % 100 + 1) as u8]));
    let engine = beside_tarpit(&innocents, &dns, &tarpit, 2, "total-max-smtp-out 80");
    innocents.beside(&engine, || {
        send_to_each(&engine, "silent", 600);
        eventually("some are waited for", Duration::from_secs(30), || tarpit.connections() >= 60);
        std::thread::sleep(Duration::from_secs(6));
        tarpit
    });
}
