//! I4: a shard that dies or restarts, and a receiver that hangs, delay nobody else.

use std::time::{Duration, Instant};

use tests::client::Client;
use tests::engine::Engine;
use tests::eventually;
use tests::receiver::Receiver;

#[test]
fn injection_goes_on_while_each_shard_restarts() {
    let receiver = Receiver::start();
    let engine = Engine::start(2, &format!("<domain *>\n {}\n</domain>", receiver.hosts()));
    let restarting = {
        let control = engine.path().join("run/control.sock");
        std::thread::spawn(move || {
            (0..2).all(|n| {
                std::process::Command::new(tests::engine::binary())
                    .args(["shard", "restart", &n.to_string()])
                    .env("SLUICE_CONTROL", &control)
                    .status()
                    .unwrap()
                    .success()
            })
        })
    };
    let mut sent = 0;
    while !restarting.is_finished() || sent < 100 {
        let Ok(mut c) = Client::connect(engine.smtp) else { continue };
        let (code, text) = c
            .send("s@x.test", &[&format!("u{sent}@d{}.test", sent % 9)], "Subject: x\r\n\r\nx")
            .unwrap_or((421, String::new()));
        assert!(code == 250 || code == 421, "{text}");
        sent += usize::from(code == 250);
    }
    assert!(restarting.join().unwrap(), "both shards restart");
    eventually("everything is delivered", Duration::from_secs(30), || receiver.unique() >= sent);
    assert_eq!(receiver.duplicates(), 0);
}

#[test]
fn a_receiver_that_hangs_slows_no_other() {
    let (hanging, fine) = (Receiver::start(), Receiver::start());
    hanging.script(|s| s.hang = true);
    let engine = Engine::start(
        1,
        &format!("<domain slow.test>\n {}\n</domain>\n<domain *>\n {}\n</domain>", hanging.hosts(), fine.hosts()),
    );
    let mut c = Client::connect(engine.smtp).unwrap();
    for n in 0..100 {
        c.send("s@x.test", &[&format!("u{n}@slow.test")], "Subject: x\r\n\r\nx").unwrap();
    }
    let began = Instant::now();
    c.send("s@x.test", &["u@quick.test"], "Subject: x\r\n\r\nx").unwrap();
    eventually("the other is delivered", Duration::from_secs(5), || fine.unique() == 1);
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn thousands_of_silent_domains_at_one_address_slow_nobody() {
    let (silent, fine) = (Receiver::start(), Receiver::at("127.0.0.10:0"));
    silent.script(|s| s.hang = true);
    let others: String = (0..20).map(|n| format!("<domain fine{n}.test>\n {}\n</domain>\n", fine.hosts())).collect();
    let config = format!("{others}<domain *>\n {}\n max-smtp-out 2\n</domain>", silent.hosts());
    let engine = Engine::start(1, &config);
    let mut c = Client::connect(engine.smtp).unwrap();
    for n in 0..10 {
        let to: Vec<String> = (0..500).map(|m| format!("u@silent{n}-{m}.test")).collect();
        let to: Vec<&str> = to.iter().map(String::as_str).collect();
        assert_eq!(c.send("s@x.test", &to, "Subject: x\r\n\r\nx").unwrap().0, 250);
    }
    eventually("some are waited for", Duration::from_secs(20), || silent.with(|s| s.connections) >= 200);
    std::thread::sleep(Duration::from_secs(5));
    for n in 0..20 {
        assert_eq!(c.send("s@x.test", &[&format!("u@fine{n}.test")], "Subject: x\r\n\r\nx").unwrap().0, 250);
    }
    eventually("the others are delivered meanwhile", Duration::from_secs(10), || fine.unique() == 20);
    assert!(silent.with(|s| s.connections) < 1000, "no more is waited for at an address than it may hold up");
    let why = engine.run(&["why", "silent9-499.test"]);
    assert!(why.contains("so many connections to 127.0.0.9 are waited for"), "{why}");
}
