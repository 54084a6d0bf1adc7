//! Who goes first: recipients' priorities, jobs in turn, reserved connections, and queues that
//! take the places of others.

use std::time::{Duration, Instant};

use tests::client::Client;
use tests::engine::Engine;
use tests::eventually;
use tests::receiver::Receiver;

const WAIT: Duration = Duration::from_secs(40);

fn load(engine: &Engine, sender: &str, names: &str, n: usize, domain: &str, header: &str) {
    let mut c = Client::connect(engine.smtp).unwrap();
    for i in 0..n {
        let sent = c.send(sender, &[&format!("{names}{i}@{domain}")], &format!("{header}Subject: x\r\n\r\nx")).unwrap();
        assert_eq!(sent.0, 250, "{}", sent.1);
    }
}

/// Recipients in the order that they were taken.
fn order(r: &Receiver) -> Vec<String> {
    r.with(|s| s.messages.iter().flat_map(|m| m.rcpts.clone()).collect())
}

/// Messages of others that were taken between the first and the last of `names`.
fn others_among(all: &[String], names: &str) -> usize {
    let is = |r: &String| r.contains(names);
    let first = all.iter().position(is).unwrap_or_else(|| panic!("no {names} in {all:?}"));
    let last = all.iter().rposition(is).unwrap();
    all[first..=last].iter().filter(|r| !is(r)).count()
}

#[test]
fn jobs_take_turns_so_that_a_campaign_holds_nobody_up() {
    let r = Receiver::start();
    r.script(|s| s.delay = Duration::from_millis(20));
    let engine = Engine::start(1, &format!("<domain *>\n {}\n max-smtp-out 1\n</domain>", r.hosts()));
    load(&engine, "s@x.test", "campaign", 300, "one.test", "x-job: campaign\r\n");
    load(&engine, "s@x.test", "reset", 10, "one.test", "x-job: resets\r\n");
    let jobs = engine.json(&["show", "jobs", "--json"]);
    let names: Vec<&str> = jobs.as_array().unwrap().iter().filter_map(|j| j["job"].as_str()).collect();
    assert!(names.contains(&"campaign"), "{jobs}");
    eventually("all are delivered", WAIT, || r.unique() == 310);
    let all = order(&r);
    assert!(others_among(&all, "reset") <= 12, "{all:?}");
}

#[test]
fn recipients_go_by_priority_that_a_pattern_list_gives() {
    let r = Receiver::start();
    let engine = Engine::start(
        1,
        &format!(
            "<pattern-list kinds>\n mail-from /^urgent@/ <pattern-list>\n  rcpt-to /never/ recipient-priority=1\n  \
             * recipient-priority=90\n </pattern-list>\n header X-Kind /^\\s*bulk$/ recipient-priority=20\n</pattern-list>\n\
             <source 127.0.0.1>\n pattern-list kinds\n</source>\n<domain *>\n {}\n max-smtp-out 1\n</domain>",
            r.hosts()
        ),
    );
    engine.sluice(&["pause", "queue", "one.test"]);
    load(&engine, "s@x.test", "bulk", 10, "one.test", "X-Kind: bulk\r\n");
    load(&engine, "s@x.test", "plain", 10, "one.test", "");
    load(&engine, "urgent@x.test", "urgent", 10, "one.test", "");
    // Priorities outlive the process.
    for pid in engine.workers() {
        Engine::kill(pid);
    }
    engine.wait_ready();
    // That they were killed may not be known yet, and then nobody has the order.
    eventually("it is resumed", WAIT, || engine.sluice(&["resume", "queue", "one.test"]).status.success());
    eventually("all are delivered", WAIT, || r.unique() == 30);
    let all = order(&r);
    for (i, name) in ["urgent", "plain", "bulk"].iter().enumerate() {
        let here = &all[i * 10..(i + 1) * 10];
        assert!(here.iter().all(|r| r.contains(name)), "{name}: {all:?}");
    }
}

#[test]
fn reserved_connections_are_free_for_what_is_urgent() {
    let r = Receiver::start();
    r.script(|s| s.delay = Duration::from_secs(3));
    let engine = Engine::start(
        1,
        &format!(
            "<pattern-list kinds>\n mail-from /^urgent@/ recipient-priority=80\n</pattern-list>\n<source 127.0.0.1>\n \
             pattern-list kinds\n</source>\n<domain *>\n {}\n max-smtp-out 3\n reserved-smtp-out 1\n</domain>",
            r.hosts()
        ),
    );
    load(&engine, "s@x.test", "campaign", 50, "one.test", "");
    std::thread::sleep(Duration::from_millis(700));
    r.with(|s| assert_eq!(s.open_max, 2, "one of three is reserved"));
    let begin = Instant::now();
    load(&engine, "urgent@x.test", "urgent", 1, "one.test", "");
    eventually("the urgent one is being taken", WAIT, || r.with(|s| s.open_max == 3));
    assert!(begin.elapsed() < Duration::from_millis(1500), "{:?}", begin.elapsed());
    eventually("the urgent one is taken", WAIT, || order(&r).iter().any(|r| r.contains("urgent")));
    let all = order(&r);
    assert!(all.iter().position(|r| r.contains("urgent")).unwrap() <= 5, "{all:?}");
}

#[test]
fn a_queue_of_higher_priority_takes_the_place_of_a_lower_one() {
    // Several low ones: some share the shard of the high one and some do not.
    let several = &["low1.test", "low2.test", "low3.test"][..];
    for (interruption, low) in [("yes", several), ("no", &several[..1])] {
        let r = Receiver::start();
        r.script(|s| s.delay = Duration::from_millis(50));
        let engine = Engine::start(
            2,
            &format!(
                "total-max-smtp-out 1\n<domain *>\n {}\n queue-priority 30\n allow-priority-interruption {interruption}\n\
                 </domain>\n<domain high.test>\n queue-priority 80\n</domain>",
                r.hosts()
            ),
        );
        low.iter().for_each(|d| load(&engine, "s@x.test", "low", 50, d, ""));
        eventually("the low ones are under way", WAIT, || r.unique() > 0);
        load(&engine, "s@x.test", "high", 3, "high.test", "");
        let before = r.unique();
        eventually("all are delivered", WAIT, || r.unique() == low.len() * 50 + 3);
        let all = order(&r);
        let last = all.iter().rposition(|r| r.contains("high")).unwrap();
        match interruption {
            "yes" => assert!(last < before + 30, "{before}, {last}: {all:?}"),
            _ => assert!(last >= 50, "{last}: {all:?}"),
        }
        r.with(|s| assert_eq!(s.open_max, 1));
    }
}

#[test]
fn an_interruption_during_transfer_comes_at_once_and_loses_nothing() {
    let r = Receiver::start();
    r.script(|s| s.data_delay = Duration::from_secs(8));
    let engine = Engine::start(
        1,
        &format!(
            "total-max-smtp-out 1\n<domain *>\n {}\n queue-priority 30\n allow-priority-interruption-during-transfer \
             yes\n</domain>\n<domain high.test>\n queue-priority 80\n</domain>",
            r.hosts()
        ),
    );
    load(&engine, "s@x.test", "low", 1, "low.test", "");
    eventually("the low one is under way", WAIT, || r.with(|s| !s.rcpts.is_empty()));
    r.script(|s| s.data_delay = Duration::ZERO);
    let begin = Instant::now();
    load(&engine, "s@x.test", "high", 1, "high.test", "");
    eventually("the high one is taken", WAIT, || order(&r).iter().any(|r| r.contains("high")));
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    eventually("the low one is delivered, too", WAIT, || engine.queued() == 0);
}

#[test]
fn equals_share_what_a_limit_allows() {
    let r = Receiver::start();
    r.script(|s| s.delay = Duration::from_millis(20));
    let vmtas = "<virtual-mta a>\n smtp-source-host 127.0.3.1 a.test\n</virtual-mta>\n<virtual-mta b>\n smtp-source-host \
                 127.0.3.2 b.test\n</virtual-mta>\n";
    let engine =
        Engine::start(1, &format!("{vmtas}<domain *>\n {}\n destination-max-smtp-out 4\n</domain>", r.hosts()));
    load(&engine, "s@x.test", "a", 500, "one.test", "x-virtual-mta: a\r\n");
    load(&engine, "s@x.test", "b", 40, "one.test", "x-virtual-mta: b\r\n");
    eventually("all of b are delivered", WAIT, || {
        r.with(|s| s.delivered.keys().filter(|k| k.starts_with('b')).count() == 40)
    });
    let of_a = r.with(|s| s.delivered.keys().filter(|k| k.starts_with('a')).count());
    assert!(of_a < 420, "{of_a} of a went before the last of b");
    r.with(|s| assert!(s.open_max <= 4, "{}", s.open_max));
}

#[test]
fn a_paused_job_waits_and_survives_a_restart() {
    let r = Receiver::start();
    let engine = Engine::start(1, &format!("<domain *>\n {}\n</domain>", r.hosts()));
    let said = engine.sluice(&["pause", "job", "stop-me"]);
    assert!(String::from_utf8_lossy(&said.stdout).starts_with("paused job."), "{said:?}");
    load(&engine, "s@x.test", "stop", 5, "one.test", "x-job: stop-me\r\n");
    load(&engine, "s@x.test", "go", 5, "one.test", "x-job: other\r\n");
    eventually("the other job is delivered", WAIT, || r.unique() == 5);
    for pid in engine.workers() {
        Engine::kill(pid);
    }
    engine.wait_ready();
    load(&engine, "s@x.test", "go-on", 5, "one.test", "x-job: other\r\n");
    eventually("the other job is delivered", WAIT, || r.unique() == 10);
    let jobs = engine.json(&["show", "jobs", "--json"]);
    assert_eq!(
        (&jobs[0]["job"], &jobs[0]["recipients"], &jobs[0]["paused"]),
        (&"stop-me".into(), &5.into(), &true.into())
    );
    assert!(order(&r).iter().all(|r| !r.contains("stop")));
    engine.sluice(&["resume", "job", "stop-me"]);
    eventually("all are delivered", WAIT, || r.unique() == 15);
}
