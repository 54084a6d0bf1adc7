//! Behaviours of a message's way, seen from outside.
#![allow(clippy::unwrap_used, missing_docs)]

use std::process::Command;
use std::time::Duration;

use tests::client::Client;
use tests::engine::{Engine, binary};
use tests::receiver::Receiver;
use tests::{accounting, eventually};

#[test]
fn replies_decide_between_delivery_bounce_and_retry() {
    let receiver = Receiver::start();
    let engine = Engine::start(2, &format!("<domain *>\n {}\n retry-recipients-after 1s\n</domain>", receiver.hosts()));
    let mut c = Client::connect(engine.smtp).unwrap();
    let content = "Subject: dots\r\nX-Job: j7\r\n\r\n..a\r\n...b";
    assert_eq!(c.send("me@x.test", &["ok@d.test", "bad-1@d.test", "later-1@d.test"], content).unwrap().0, 250);
    eventually("the report arrives", Duration::from_secs(10), || {
        receiver.with(|s| s.delivered.contains_key("me@x.test"))
    });
    eventually("the deferred one is tried again", Duration::from_secs(10), || {
        receiver.with(|s| s.deferred.get("later-1@d.test").is_some_and(|n| *n >= 3))
    });
    receiver.with(|s| {
        assert_eq!(s.delivered["ok@d.test"], 1);
        let text = &s.messages.iter().find(|m| m.rcpts == ["ok@d.test"]).unwrap().content;
        assert!(text.ends_with("\r\n\r\n.a\r\n..b\r\n") && !text.contains("X-Job"), "{text}");
        let report = &s.messages.iter().find(|m| m.rcpts == ["me@x.test"]).unwrap().content;
        assert!(
            report.contains("Action: failed") && report.contains("Final-Recipient: rfc822; bad-1@d.test"),
            "{report}"
        );
    });
    let rows = accounting::rows(engine.path());
    assert_eq!(rows.get(&("b".into(), "bad-1@d.test".into())), Some(&1));
    assert!(rows[&("t".into(), "later-1@d.test".into())] >= 2);
}

#[test]
fn expired_mail_bounces_wherever_it_waits() {
    let receiver = Receiver::start();
    let engine = Engine::start(
        1,
        &format!(
            "<domain d.test>\n {}\n bounce-after 3s\n</domain>\n<domain x.test>\n {}\n</domain>",
            receiver.hosts(),
            receiver.hosts()
        ),
    );
    let mut c = Client::connect(engine.smtp).unwrap();
    c.send("me@x.test", &["later-1@d.test"], "Subject: x\r\n\r\nx").unwrap();
    eventually("it bounces", Duration::from_secs(15), || {
        accounting::rows(engine.path()).contains_key(&("b".into(), "later-1@d.test".into()))
    });
    eventually("and is reported", Duration::from_secs(10), || {
        receiver.message_to("me@x.test").is_some_and(|m| m.content.contains("450 4.2.1 try later"))
    });
}

#[test]
fn a_stop_and_a_start_keep_deferred_mail() {
    let receiver = Receiver::start();
    let mut engine =
        Engine::start(2, &format!("<domain *>\n {}\n retry-recipients-after 1h\n</domain>", receiver.hosts()));
    let mut c = Client::connect(engine.smtp).unwrap();
    for n in 0..20 {
        c.send("me@x.test", &[&format!("later-{n}@d{n}.test")], "Subject: x\r\n\r\nx").unwrap();
    }
    // The server has read the replies: a stop waits for none of a transaction without content.
    eventually("all are deferred", Duration::from_secs(10), || {
        let queues = engine.json(&["show", "queues", "--json"]);
        queues.as_array().is_some_and(|all| {
            all.iter().filter(|q| q["last_error"].as_str().is_some_and(|e| e.contains("450"))).count() == 20
        })
    });
    assert!(engine.stop());
    engine.start_again();
    eventually("all are queued again", Duration::from_secs(10), || engine.queued() == 20);
    std::thread::sleep(Duration::from_millis(500));
    assert!(receiver.with(|s| s.deferred.values().all(|n| *n == 1)), "due times survive a restart");
}

#[test]
fn inject_from_the_shell() {
    let receiver = Receiver::start();
    let engine = Engine::start(2, &format!("<domain *>\n {}\n</domain>", receiver.hosts()));
    let file = engine.path().join("m.eml");
    std::fs::write(&file, "Subject: shell\n\nhello\n").unwrap();
    let done = engine.sluice(&[
        "inject",
        "--from",
        "a@x.test",
        "--to",
        "b@d.test",
        "--to",
        "c@e.test",
        file.to_str().unwrap(),
    ]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    eventually("both arrive", Duration::from_secs(10), || receiver.unique() == 2);
    assert_eq!(engine.sluice(&["inject", "--to", "nonsense", file.to_str().unwrap()]).status.code(), Some(1));
}

#[test]
fn exit_codes() {
    let engine = Engine::start(1, "");
    assert_eq!(engine.sluice(&["--control", "/nonexistent", "status"]).status.code(), Some(3));
    assert_eq!(engine.sluice(&["nonsense"]).status.code(), Some(2));
    assert_eq!(engine.sluice(&["shard", "restart", "77"]).status.code(), Some(1));
    let wrong = engine.path().join("wrong.conf");
    std::fs::write(&wrong, "max-smtp-out 5\n<domain *>\nretry-after soon\n").unwrap();
    let out = engine.sluice(&["config", "check", "--json", wrong.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(2));
    let v: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let codes: Vec<&str> = v["errors"].as_array().unwrap().iter().map(|e| e["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["wrong-block", "unclosed-block", "bad-value"]);
}

#[test]
fn the_name_alone_is_a_server_with_the_built_in_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let mut child = Command::new(binary())
        .current_dir(dir.path())
        .stderr(std::fs::File::create(&log).unwrap())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // Somebody may serve its port here.
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    eventually("it serves, or says who does", Duration::from_secs(20), || {
        said().contains("A first message:") || said().contains("127.0.0.1:2525") && said().contains("in use")
    });
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGTERM);
    child.wait().unwrap();
}

#[test]
fn scaling_moves_mail_and_loses_none() {
    let receiver = Receiver::start();
    let engine = Engine::start(2, &format!("<domain *>\n {}\n retry-recipients-after 1h\n</domain>", receiver.hosts()));
    let mut c = Client::connect(engine.smtp).unwrap();
    let mut send = |from: u32| {
        for n in from..from + 60 {
            let (a, b) = (format!("u{n}@d{n}.test"), format!("later-{n}@d{n}.test"));
            let sent = c.send("me@x.test", &[&a, &b], "Subject: x\r\n\r\nx").unwrap();
            assert_eq!(sent.0, 250, "{}", sent.1);
        }
    };
    send(0);
    let done = engine.sluice(&["scale", "4"]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(engine.workers().len(), 4);
    send(60);
    eventually("mail is delivered", Duration::from_secs(10), || receiver.unique() == 120);
    drop(c);
    let done = engine.sluice(&["scale", "1"]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(engine.workers().len(), 1);
    eventually("all deferred mail is with the last shard", Duration::from_secs(10), || engine.queued() == 120);
    assert_eq!(receiver.duplicates(), 0);
}
