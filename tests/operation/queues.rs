//! What operators do to queues, and what the server says holds them back.

use std::time::Duration;

use tests::client::Client;
use tests::engine::Engine;
use tests::eventually;
use tests::receiver::Receiver;

const WAIT: Duration = Duration::from_secs(20);

const VMTAS: &str = "<virtual-mta a>\n smtp-source-host 127.0.6.1 a.test\n</virtual-mta>\n<virtual-mta b>\n \
    smtp-source-host 127.0.6.2 b.test\n</virtual-mta>\n<virtual-mta-pool p>\n virtual-mta a\n virtual-mta b\n</virtual-mta-pool>\n";

fn send(engine: &Engine, to: &str, vmta: &str) -> String {
    let mut c = Client::connect(engine.smtp).unwrap();
    let (code, text) = c.send("s@x.test", &[to], &format!("x-virtual-mta: {vmta}\r\nSubject: x\r\n\r\nx")).unwrap();
    assert_eq!(code, 250, "{text}");
    text
}

#[test]
fn what_is_paused_waits_over_a_restart_until_it_is_resumed() {
    let r = Receiver::start();
    let mut engine = Engine::start(2, &format!("{VMTAS}<domain *>\n {}\n</domain>", r.hosts()));
    let said = engine.run(&["pause", "queue", "d.test/a"]);
    assert_eq!(said, "0 queues match now; mail that comes for d.test/a is paused.\n");
    send(&engine, "one@d.test", "a");
    send(&engine, "two@d.test", "b");
    send(&engine, "three@e.test", "a");
    eventually("the others go", WAIT, || r.unique() == 2);
    // The path is paused; the pool's mail goes by the other member.
    for n in 0..4 {
        send(&engine, &format!("p{n}@d.test"), "p");
    }
    eventually("the pool's mail goes", WAIT, || r.unique() == 6);
    assert!((0..4).all(|n| r.message_to(&format!("p{n}@d.test")).unwrap().hello == "b.test"));
    assert!(engine.stop());
    engine.start_again();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(r.unique(), 6);
    let rows = engine.json(&["show", "queues", "--json"]);
    assert_eq!((rows[0]["queue"].as_str(), rows[0]["paused"].as_bool()), (Some("d.test/a"), Some(true)));
    assert_eq!(engine.run(&["resume", "queue", "*/*"]), "Queue(s) resumed. 1 queue match now.\n  d.test/a\n");
    eventually("it goes", WAIT, || r.unique() == 7);
    // A pool's queue is paused as such, and its members go on with other mail.
    engine.run(&["pause", "queue", "d.test/p"]);
    send(&engine, "q@d.test", "p");
    send(&engine, "r@d.test", "a");
    eventually("the member's own mail goes", WAIT, || r.message_to("r@d.test").is_some());
    std::thread::sleep(Duration::from_millis(500));
    assert!(r.message_to("q@d.test").is_none());
    engine.run(&["resume", "queue", "d.test"]);
    eventually("the pool's goes", WAIT, || r.message_to("q@d.test").is_some());
    let wrong = engine.sluice(&["pause", "queue", "a/b/c"]);
    assert_eq!(wrong.status.code(), Some(2));
}

#[test]
fn waits_are_ended_and_modes_and_sources_are_switched() {
    let r = Receiver::start();
    let engine = Engine::start(
        1,
        &format!(
            "{VMTAS}<domain *>\n {}\n retry-after 1h\n retry-recipients-after 1h\n backoff-max-smtp-out 3\n</domain>",
            r.hosts()
        ),
    );
    r.script(|s| s.greeting = "421 later");
    send(&engine, "one@d.test", "a");
    eventually("the queue waits", WAIT, || {
        !engine.json(&["show", "queues", "--json"])[0]["next_retry"].as_str().unwrap().is_empty()
    });
    r.script(|s| s.greeting = "220 receiver.test");
    assert_eq!(engine.run(&["schedule", "d.test/a"]), "1 of 1 matching queues scheduled.\n  d.test/a\n");
    eventually("it goes", WAIT, || r.unique() == 1);
    r.script(|s| s.rcpt_reply = Some(("451 wait", None)));
    send(&engine, "two@d.test", "a");
    eventually("it is deferred", WAIT, || r.with(|s| s.deferred.len()) == 1);
    r.script(|s| s.rcpt_reply = None);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(engine.run(&["schedule", "d.test/a"]), "0 of 1 matching queues scheduled.\n");
    assert_eq!(engine.run(&["schedule", "--retry-recipients", "*"]), "1 of 1 matching queues scheduled.\n  d.test/a\n");
    eventually("it goes", WAIT, || r.unique() == 2);

    send(&engine, "three@d.test", "a");
    eventually("it goes", WAIT, || r.unique() == 3);
    assert_eq!(
        engine.run(&["set", "queue", "--mode=backoff", "d.test/*"]),
        "1 of 1 matching paths set to backoff mode.\n  d.test/a\n"
    );
    let path = || engine.json(&["show", "paths", "--json"])[0].clone();
    assert_eq!((path()["mode"].as_str(), path()["max_smtp_out"].as_u64()), (Some("backoff"), Some(3)));
    engine.run(&["set", "queue", "--mode", "normal", "d.test"]);
    assert!(path()["mode"].as_str().unwrap().starts_with("normal"));

    engine.run(&["disable", "source", "127.0.6.1", "e.test/a"]);
    send(&engine, "four@e.test", "a");
    std::thread::sleep(Duration::from_secs(1));
    assert!(r.message_to("four@e.test").is_none());
    let why = engine.run(&["why", "e.test/a"]);
    assert!(why.contains("source addresses") && why.contains("disabled: 127.0.6.1"), "{why}");
    engine.run(&["enable", "source", "127.0.6.1", "*/*"]);
    eventually("it goes", WAIT, || r.message_to("four@e.test").is_some());
}

#[test]
fn why_names_the_directive_and_the_line_that_hold_a_queue_back() {
    let r = Receiver::start();
    let engine = Engine::start(
        1,
        &format!(
            "<domain *>\n {}\n retry-after 1h\n</domain>\n<domain slow.test>\n max-msg-rate 20/m\n</domain>",
            r.hosts()
        ),
    );
    let line = std::fs::read_to_string(engine.path().join("sluice.conf")).unwrap();
    let line = 1 + line.lines().position(|l| l.contains("max-msg-rate 20/m")).unwrap();
    for n in 0..20 {
        send(&engine, &format!("u{n}@slow.test"), "{default}");
    }
    r.script(|s| s.greeting = "421 4.3.2 not now");
    let id = send(&engine, "v@down.test", "{default}");
    std::thread::sleep(Duration::from_secs(5));
    let why = engine.run(&["why", "slow.test"]);
    let expected = format!("message rate: max-msg-rate 20/m ({}:{line})", engine.path().join("sluice.conf").display());
    assert!(why.contains(&expected) && why.contains("% of the last 5 min"), "{why}\n{expected}");
    let down = engine.json(&["why", "down.test", "--json"]);
    let now = &down[0]["now"][0];
    assert_eq!((now["cause"].as_str(), now["directive"].as_str()), (Some("retry"), Some("retry-after")));
    assert!(now["detail"].as_str().unwrap().contains("not now"), "{now}");
    // The same by the id of a message.
    let id = id.split(|c: char| !c.is_ascii_alphanumeric()).find(|w| w.len() == 26).unwrap_or_else(|| panic!("{id}"));
    let by_id = engine.json(&["why", id, "--json"]);
    assert_eq!(by_id[0]["queue"].as_str(), Some("down.test/{default}"));
    assert_eq!(engine.sluice(&["why", "nobody.test"]).status.code(), Some(1));
}

#[test]
fn why_names_limits_over_several_paths_too() {
    let r = Receiver::start();
    let limits = " max-smtp-msg-rate 20/m\n";
    let vmtas = VMTAS.replace("a.test\n", &format!("a.test\n{limits}"));
    let engine = Engine::start(
        2,
        &format!(
            "{vmtas}<domain *>\n {}\n</domain>\n<domain hot.test>\n destination-max-msg-rate 20/m\n</domain>",
            r.hosts()
        ),
    );
    let text = std::fs::read_to_string(engine.path().join("sluice.conf")).unwrap();
    let line = |of: &str| 1 + text.lines().position(|l| l.contains(of)).unwrap();
    for n in 0..10 {
        send(&engine, &format!("u{n}@cold.test"), "a");
        send(&engine, &format!("u{n}@hot.test"), "b");
    }
    for (queue, directive) in [("cold.test/a", "max-smtp-msg-rate"), ("hot.test/b", "destination-max-msg-rate")] {
        let expected = format!(
            "shared limit: {directive} 20/m ({}:{})",
            engine.path().join("sluice.conf").display(),
            line(directive)
        );
        eventually(&expected, WAIT, || engine.run(&["why", queue]).contains(&expected));
    }
}

#[test]
fn a_shard_that_is_new_knows_what_is_paused_and_disabled() {
    let r = Receiver::start();
    let engine = Engine::start(1, &format!("{VMTAS}<domain *>\n {}\n</domain>", r.hosts()));
    engine.run(&["pause", "queue", "*/a"]);
    engine.run(&["pause", "job", "j"]);
    engine.run(&["scale", "4"]);
    for n in 0..8 {
        send(&engine, &format!("u@d{n}.test"), "a");
        send(&engine, &format!("u@e{n}.test"), "b\r\nx-job: j");
        send(&engine, &format!("u@f{n}.test"), "b");
    }
    eventually("what is not paused goes", WAIT, || r.unique() == 8);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(r.unique(), 8);
    engine.run(&["resume", "queue", "*/*"]);
    engine.run(&["resume", "job", "j"]);
    eventually("the rest goes", WAIT, || r.unique() == 24);
}

#[test]
fn the_settings_of_a_virtual_mta_are_shown_and_listings_have_an_order() {
    let r = Receiver::start();
    r.script(|s| s.rcpt_reply = Some(("450 4.2.0 later", None)));
    let engine = Engine::start(
        1,
        &format!(
            "<virtual-mta Big>\n smtp-source-host 127.0.5.1 big.mta.test\n max-smtp-out 7\n max-smtp-msg-rate 100/m\n</virtual-mta>\n\
             <domain *>\n {}\n</domain>",
            r.hosts()
        ),
    );
    let text = engine.run(&["show", "vmta-settings", "big"]);
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines[0].chars().all(|c| c == '-') && lines[1..4] == ["max-smtp-msg-rate 100/m", "max-smtp-out 7", ""],
        "{text}"
    );
    assert!(
        text.contains("\n     127.0.5.1  big.mta.test\n") && text.contains("Domain Key selector  domain  source"),
        "{text}"
    );
    assert_eq!(engine.json(&["show", "vmta-settings", "BIG", "--json"])["source_hosts"][0][0], "127.0.5.1");
    let out = engine.sluice(&["show", "vmta-settings", "bigg"]);
    assert!(
        out.status.code() == Some(2) && String::from_utf8_lossy(&out.stderr).contains("did you mean big?"),
        "{out:?}"
    );
    let mut c = Client::connect(engine.smtp).unwrap();
    for (job, n, bytes) in [("small", 3, 10), ("large", 1, 20_000)] {
        for i in 0..n {
            let content = format!("X-Job: {job}\r\nSubject: x\r\n\r\n{}", "x\r\n".repeat(bytes / 3));
            assert_eq!(c.send("s@x.test", &[&format!("{job}{i}@d.test")], &content).unwrap().0, 250);
        }
    }
    let jobs = |sort: &str| {
        let rows = engine.json(&["show", "jobs", sort, "--json"]);
        rows.as_array().unwrap().iter().map(|r| r["job"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(jobs("--sort=name"), ["large", "small"]);
    assert_eq!(jobs("--sort=rcpt"), ["small", "large"]);
    assert_eq!(jobs("--sort=size"), ["large", "small"]);
}
