//! I7: whatever a stranger does, innocent mail beside it flows on, and the server is soon as small as before (see
//! [`tests::beside`]). Attacks by connections that say nothing are in [`super::i7_hostile_input_is_contained`].

use std::io::Write;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use tests::beside::Innocents;
use tests::client::Client;
use tests::dns::{Dns, Name};
use tests::engine::Engine;
use tests::{eventually, many_descriptors};

/// What an attack may take above rest, but that of receivers that hold connections.
const MEMORY_MAX: u64 = 64 << 20;
const DESCRIPTORS_MAX: u64 = 200;
/// Domains whose name server says nothing.
const MUTE: usize = 1500;

#[test]
fn large_messages_of_many_clients_at_once() {
    let innocents = Innocents::new();
    let engine = Engine::start(2, &format!("<domain evil.test>\n type discard\n</domain>\n{}", innocents.config()));
    let impact = innocents.beside(&engine, || {
        let line = format!("{}\r\n", "x".repeat(1022)).repeat(1024);
        std::thread::scope(|s| {
            for n in 0..20u8 {
                let line = &line;
                let engine = &engine;
                s.spawn(move || {
                    let Ok(mut c) = Client::dial_from([127, 66, n, 1].into(), engine.smtp) else { return };
                    let commands = ["EHLO x.test", "MAIL FROM:<a@evil.test>", "RCPT TO:<b@evil.test>", "DATA"];
                    // Whatever is said: who attacks goes on.
                    let _ = c.reply();
                    commands.iter().for_each(|line| drop(c.command(line)));
                    let _ = c.raw(b"Subject: x\r\n\r\n");
                    for _ in 0..25 {
                        if c.raw(line.as_bytes()).is_err() {
                            return;
                        }
                        std::thread::sleep(Duration::from_millis(50));
                    }
                    let _ = c.command("\r\n.");
                });
            }
        });
    });
    assert!(impact.above_rest.memory <= MEMORY_MAX && impact.above_rest.descriptors <= DESCRIPTORS_MAX, "{impact:?}");
}

#[test]
fn a_message_with_much_of_everything() {
    let innocents = Innocents::new();
    let rules = "<pattern-list kinds>\n header X-Kind /(a|b)+c$/ recipient-priority=90\n</pattern-list>\n\
                 <source 127/8>\n pattern-list kinds\n</source>";
    let config = format!("{rules}\n<domain evil.test>\n type discard\n</domain>\n{}", innocents.config());
    let engine = Engine::start(1, &config);
    let impact = innocents.beside(&engine, || {
        for _ in 0..3 {
            let mut c = Client::connect(engine.smtp).unwrap();
            assert_eq!(c.command("MAIL FROM:<a@evil.test>").unwrap().0, 250);
            for some in 0..16 {
                let flight: String = (0..500).map(|n| format!("RCPT TO:<u{some}.{n}@evil.test>\r\n")).collect();
                c.raw(flight.as_bytes()).unwrap();
                (0..500).for_each(|_| assert_eq!(c.reply().unwrap().0, 250));
            }
            let folded = format!("X-Kind:{}", " abababababababababab\r\n".repeat(40_000));
            assert_eq!(c.send_content(&format!("Subject: x\r\n{folded}\r\nx")).unwrap().0, 250);
        }
    });
    assert!(impact.above_rest.descriptors <= DESCRIPTORS_MAX, "{impact:?}");
}

#[test]
fn name_servers_that_answer_nothing() {
    let (innocents, dns) = (Innocents::new().beside_many_names(), Dns::start());
    (0..MUTE).for_each(|n| dns.set(&format!("mute{n}.test"), Name { silent: true, ..Name::default() }));
    let engine = Engine::start(1, &format!("{}\n{}", dns.directive(), innocents.config()));
    innocents.beside(&engine, || {
        let mut c = Client::connect(engine.smtp).unwrap();
        for some in (0..MUTE).collect::<Vec<_>>().chunks(500) {
            let to: Vec<String> = some.iter().map(|n| format!("u@mute{n}.test")).collect();
            let to: Vec<&str> = to.iter().map(String::as_str).collect();
            assert_eq!(c.send("a@evil.test", &to, "Subject: x\r\n\r\nx").unwrap().0, 250);
        }
        let given_up = || {
            let queues = engine.json(&["show", "queues", "--json"]);
            let failed =
                |q: &&serde_json::Value| q["last_error"].as_str().is_some_and(|e| e.contains("does not answer"));
            queues.as_array().map_or(0, |all| all.iter().filter(failed).count())
        };
        eventually("all are given up", Duration::from_secs(90), || given_up() == MUTE);
    });
}

#[test]
fn users_of_this_machine_that_connect_and_say_nothing() {
    many_descriptors();
    let innocents = Innocents::new();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let engine = Engine::start(1, &format!("http-mgmt-port {port}\n{}", innocents.config()));
    let control = engine.path().join("run/control.sock");
    let impact = innocents.beside(&engine, || {
        let by_http = || {
            let mut c = TcpStream::connect(("127.0.0.1", port)).unwrap();
            c.write_all(b"GET /status HTTP/1.1\r\nX-Half: ").unwrap();
            c
        };
        let web: Vec<TcpStream> = (0..700).map(|_| by_http()).collect();
        let local: Vec<UnixStream> = (0..700).map(|_| UnixStream::connect(&control).unwrap()).collect();
        assert!(engine.sluice(&["status"]).status.success());
        std::thread::sleep(Duration::from_secs(2));
        (web, local)
    });
    assert!(impact.above_rest.memory <= MEMORY_MAX && impact.above_rest.descriptors <= DESCRIPTORS_MAX, "{impact:?}");
}

#[test]
fn a_configuration_that_is_wrong_a_million_times() {
    let innocents = Innocents::new();
    let engine = Engine::start(1, &format!("{}\n#more", innocents.config()));
    let impact = innocents.beside(&engine, || {
        engine.edit_config("#more", &"max-smtp-uot 1\n".repeat(1_000_000));
        for _ in 0..2 {
            let refused = engine.sluice(&["reload"]);
            assert!(!refused.status.success());
            let said = String::from_utf8_lossy(&refused.stderr);
            assert!(said.contains("max-smtp-uot") && said.len() < 1 << 20, "{} bytes", said.len());
        }
    });
    assert!(impact.above_rest.memory <= MEMORY_MAX && impact.above_rest.descriptors <= DESCRIPTORS_MAX, "{impact:?}");
}
