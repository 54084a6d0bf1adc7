//! Destinations that several shards own (`spread`): limits hold over all of them.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use tests::client::Client;
use tests::engine::Engine;
use tests::eventually;
use tests::receiver::Receiver;

const WAIT: Duration = Duration::from_secs(40);

fn load(engine: &Engine, n: usize, tag: &str) {
    let mut c = Client::connect(engine.smtp).unwrap();
    for i in 0..n {
        let sent = c.send("s@x.test", &[&format!("{tag}{i}@hot.test")], "Subject: x\r\n\r\nx").unwrap();
        assert_eq!(sent.0, 250, "{}", sent.1);
    }
}

/// Shards that have a path with connections, or had.
fn shards(engine: &Engine) -> HashSet<u64> {
    let rows = engine.json(&["show", "paths", "--json"]);
    let of_hot = rows.as_array().unwrap().iter().filter(|p| p["destination"] == "hot.test");
    of_hot.map(|p| p["shard"].as_u64().unwrap()).collect()
}

#[test]
fn all_limits_of_the_path_hold_over_its_shards() {
    for (rules, connections, per_second) in [
        ("max-smtp-out 3", 3, usize::MAX),
        ("max-smtp-out 20\n max-msg-rate 60/s", 20, 61),
        ("max-smtp-out 20\n source-ip-max-smtp-out 0/0 2", 2, usize::MAX),
        ("max-smtp-out 20\n source-ip-max-msg-rate 0/0 60/s", 20, 61),
    ] {
        let r = Receiver::start();
        r.script(|s| s.delay = Duration::from_millis(5));
        let engine = Engine::start(
            3,
            &format!(
                "<virtual-mta v>\n smtp-source-host 127.0.3.1 a.test\n</virtual-mta>\n<source 127.0.0.1>\n \
                 default-virtual-mta v\n</source>\n<domain hot.test>\n {}\n spread 2\n {rules}\n</domain>",
                r.hosts()
            ),
        );
        let mut both = HashSet::new();
        for n in 0..8 {
            load(&engine, 30, &format!("u{n}-"));
            both.extend(shards(&engine));
        }
        assert_eq!(both.len(), 2, "{rules}: {both:?}");
        eventually("all are delivered", WAIT, || r.unique() == 240);
        assert_eq!(r.duplicates(), 0);
        r.with(|s| assert!(s.open_max <= connections && s.open_max > 0, "{rules}: {} connections", s.open_max));
        if per_second < usize::MAX {
            r.assert_rate(per_second, Duration::from_secs(1));
            r.with(|s| {
                let all = *s.rcpts.last().unwrap() - s.rcpts[0];
                assert!(all < Duration::from_millis(4500), "{rules}: 240 at 60/s took {all:?}");
            });
        }
    }
}

#[test]
fn connections_are_opened_at_the_rate_of_one_path() {
    let r = Receiver::start();
    r.script(|s| s.delay = Duration::from_millis(50));
    let engine = Engine::start(
        2,
        &format!(
            "<domain hot.test>\n {}\n spread 2\n max-connect-rate 4/2s\n max-msg-per-connection 2\n</domain>",
            r.hosts()
        ),
    );
    load(&engine, 16, "u");
    eventually("all are delivered", WAIT, || r.unique() == 16);
    let opened: Vec<(Instant, usize)> = r.with(|s| s.opened.iter().map(|(t, _)| (*t, 1)).collect());
    assert!(opened.len() >= 8, "{}", opened.len());
    Receiver::assert_window(&opened, 5, Duration::from_secs(2));
}

#[test]
fn limits_hold_while_a_destination_is_spread_and_gathered_again() {
    let r = Receiver::start();
    r.script(|s| s.delay = Duration::from_millis(20));
    let engine = Engine::start(
        3,
        &format!("<domain hot.test>\n {}\n spread 1\n max-smtp-out 4\n max-msg-rate 300/5s\n</domain>", r.hosts()),
    );
    load(&engine, 300, "a");
    assert_eq!(shards(&engine).len(), 1);
    engine.edit_config("spread 1", "spread 3");
    engine.run(&["reload"]);
    let mut turn = 0;
    eventually("three shards take part", WAIT, || {
        turn += 1;
        load(&engine, 6, &format!("b{turn}-"));
        shards(&engine).len() == 3
    });
    Engine::kill(engine.workers()[1]);
    load(&engine, 300, "c");
    engine.wait_ready();
    engine.edit_config("spread 3", "spread 1");
    engine.run(&["reload"]);
    load(&engine, 100, "d");
    eventually("all are delivered", WAIT, || {
        let rows = engine.json(&["show", "shards", "--json"]);
        rows.as_array().unwrap().iter().all(|s| s["recipients"] == 0)
    });
    eventually("one shard is left", WAIT, || shards(&engine).len() <= 1);
    assert!(r.unique() >= 706);
    r.with(|s| assert!(s.open_max <= 4, "{} connections", s.open_max));
    r.assert_rate(301, Duration::from_secs(5));
}

#[test]
fn backoff_of_one_is_backoff_of_all() {
    let r = Receiver::start();
    let engine = Engine::start(
        2,
        &format!(
            "<smtp-pattern-list l>\n reply /slow down/ mode=backoff\n</smtp-pattern-list>\n<domain hot.test>\n {}\n \
             spread 2\n smtp-pattern-list l\n retry-after 1s\n backoff-retry-after 1s\n retry-recipients-after 1s\n \
             max-smtp-out 8\n backoff-max-smtp-out 1\n backoff-to-normal-after 1h\n</domain>",
            r.hosts()
        ),
    );
    load(&engine, 20, "a");
    eventually("the first are delivered", WAIT, || r.unique() == 20);
    assert_eq!(shards(&engine).len(), 2);
    r.script(|s| s.rcpt_reply = Some(("451 4.7.1 slow down", None)));
    load(&engine, 1, "one");
    let modes = || {
        let rows = engine.json(&["show", "paths", "--json"]);
        let all = rows.as_array().unwrap().iter().map(|p| p["mode"].as_str().unwrap().to_owned());
        all.collect::<Vec<_>>()
    };
    eventually("both are in backoff", WAIT, || modes() == ["backoff", "backoff"]);
    r.script(|s| {
        s.rcpt_reply = None;
        s.delay = Duration::from_millis(10);
    });
    std::thread::sleep(Duration::from_millis(700));
    r.with(|s| s.open_max = s.open);
    load(&engine, 60, "b");
    eventually("all are delivered", WAIT, || r.unique() == 81);
    r.with(|s| assert!(s.open_max <= 1, "{} connections in backoff", s.open_max));
    engine.run(&["set", "queue", "--mode=normal", "hot.test/*"]);
    eventually("both are back", WAIT, || modes().iter().all(|m| m.starts_with("normal")));
}

#[test]
fn it_speaks_for_a_destination_and_not_for_a_virtual_mta() {
    let engine = Engine::start(1, "");
    let text = std::fs::read_to_string(engine.path().join("sluice.conf")).unwrap();
    let wrong = format!("{text}\n<virtual-mta v>\n<domain d.test>\n spread 2\n</domain>\n</virtual-mta>\n");
    std::fs::write(engine.path().join("wrong.conf"), wrong).unwrap();
    let out = engine.sluice(&["config", "check", engine.path().join("wrong.conf").to_str().unwrap()]);
    let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && said.contains("over all its virtual MTAs"), "{said}");
}

#[test]
fn mail_that_needs_no_host_is_spread_as_well() {
    let engine = Engine::start(2, "<domain hot.test>\n type discard\n spread 2\n</domain>");
    load(&engine, 40, "u");
    eventually("all are discarded", WAIT, || engine.queued() == 0);
}
