//! Orders about queues do what they say they did: to the queues and paths that carry the mail, by name, and where there
//! are none they fail.

use std::time::Duration;

use tests::client::Client;
use tests::dns::Dns;
use tests::engine::Engine;
use tests::eventually;
use tests::receiver::Receiver;

const WAIT: Duration = Duration::from_secs(20);

/// `b` takes the mail of `away`, and that of `weak` when it is in backoff.
const VMTAS: &str = "<virtual-mta a>\n smtp-source-host 127.0.6.11 a.test\n</virtual-mta>\n\
    <virtual-mta b>\n smtp-source-host 127.0.6.12 b.test\n</virtual-mta>\n\
    <virtual-mta away>\n smtp-source-host 127.0.6.13 away.test\n <domain *>\n  reroute-to-virtual-mta b\n </domain>\n</virtual-mta>\n\
    <virtual-mta weak>\n smtp-source-host 127.0.6.14 weak.test\n <domain *>\n  backoff-reroute-to-virtual-mta b\n </domain>\n</virtual-mta>\n\
    <virtual-mta-pool p>\n virtual-mta a\n virtual-mta b\n</virtual-mta-pool>\n";

fn send(engine: &Engine, to: &str, vmta: &str) {
    let mut c = Client::connect(engine.smtp).unwrap();
    let (code, text) = c.send("s@x.test", &[to], &format!("x-virtual-mta: {vmta}\r\nSubject: x\r\n\r\nx")).unwrap();
    assert_eq!(code, 250, "{text}");
}

/// What an order that must fail says.
fn refused(engine: &Engine, args: &[&str]) -> String {
    let out = engine.sluice(args);
    let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
    assert_eq!(out.status.code(), Some(1), "{args:?}: {said}");
    said
}

/// A row of a listing by the value of a column.
fn row(engine: &Engine, what: &str, column: &str, is: &str) -> serde_json::Value {
    let rows = engine.json(&["show", what, "--json"]);
    rows.as_array().and_then(|r| r.iter().find(|r| r[column] == is).cloned()).unwrap_or_default()
}

#[test]
fn an_order_that_means_nothing_fails_and_one_for_mail_to_come_says_so() {
    let r = Receiver::start();
    let engine = Engine::start(2, &format!("{VMTAS}<domain *>\n {}\n</domain>", r.hosts()));
    for args in [
        &["set", "queue", "--mode=backoff", "no.test/a"][..],
        &["set", "queue", "--mode=normal", "no.test"],
        &["schedule", "no.test/*"],
        &["enable", "source", "127.0.6.11", "no.test/a"],
        &["resume", "queue", "no.test/a"],
    ] {
        let said = refused(&engine, args);
        assert!(said.contains('0'), "{args:?}: {said}");
    }
    // A source that nobody has, or not this virtual MTA: with reroutes mail may go by others.
    let said = refused(&engine, &["disable", "source", "127.0.6.99", "*/*"]);
    assert!(said.contains("no virtual MTA has the source address 127.0.6.99"), "{said}");
    let said = refused(&engine, &["pause", "queue", "d.test/awai"]);
    assert!(said.contains("there is no virtual MTA or pool awai; did you mean away?"), "{said}");
    // It waits, although there is nothing yet, and nothing is said to be paused now.
    let said = engine.run(&["pause", "queue", "new.test/a"]);
    assert_eq!(said, "0 queues match now; mail that comes for new.test/a is paused.\n");
    send(&engine, "u@new.test", "a");
    send(&engine, "u@other.test", "a");
    eventually("the other goes", WAIT, || r.message_to("u@other.test").is_some());
    assert_eq!(row(&engine, "queues", "queue", "new.test/a")["paused"], true);
    let said = engine.run(&["resume", "queue", "*/*"]);
    assert_eq!(said, "Queue(s) resumed. 2 queues match now.\n  new.test/a\n");
    eventually("it goes", WAIT, || r.unique() == 2);
}

#[test]
fn orders_about_a_domain_that_rolled_up_reach_the_queue_of_all() {
    let dns = Dns::start();
    let r = Receiver::at("127.0.6.21:0");
    dns.host("a.edge.test", [127, 0, 6, 21]);
    dns.mx("one.test", &[(10, "a.edge.test")]);
    dns.mx("two.test", &[(10, "a.edge.test")]);
    r.script(|s| s.greeting = "421 later");
    let mut engine = Engine::start(
        2,
        &format!(
            "{VMTAS}{}\n<mx-rollup-list>\n mx *.edge.test edge.rollup\n</mx-rollup-list>\n<domain *>\n default-smtp-port {}\n \
             retry-after 1h\n backoff-retry-after 1h\n backoff-to-normal-after 1h\n</domain>",
            dns.directive(),
            r.address.port()
        ),
    );
    send(&engine, "u@one.test", "a");
    send(&engine, "u@two.test", "a");
    let queue = |engine: &Engine| row(engine, "queues", "queue", "edge.rollup/a");
    eventually("both wait in one queue", WAIT, || {
        queue(&engine)["recipients"] == 2 && queue(&engine)["next_retry"] != ""
    });
    let said = engine.run(&["set", "queue", "--mode=backoff", "one.test/a"]);
    assert_eq!(said, "1 of 1 matching paths set to backoff mode.\n  edge.rollup/a\n");
    let path = |engine: &Engine| {
        let (owner, rows) = (queue(engine)["shard"].clone(), engine.json(&["show", "paths", "--json"]));
        let is_it = |p: &&serde_json::Value| p["path"] == "edge.rollup/a" && p["shard"] == owner;
        rows.as_array().and_then(|r| r.iter().find(is_it).cloned()).unwrap_or_default()
    };
    assert_eq!((&path(&engine)["mode"], &path(&engine)["forced"]), (&"backoff".into(), &true.into()));
    let said = engine.run(&["disable", "source", "127.0.6.11", "one.test/a"]);
    assert_eq!(said, "Source 127.0.6.11 disabled at 1 of 1 matching paths, and at those to come.\n  edge.rollup/a\n");
    assert_eq!(path(&engine)["disabled_sources"][0], "127.0.6.11");
    // Each domain's part of the queue may be paused by itself.
    let said = engine.run(&["pause", "queue", "two.test/a"]);
    assert_eq!(said, "Queue(s) paused. 1 queue match now.\n  edge.rollup/a (two.test)\n");
    assert!(engine.stop());
    engine.start_again();
    eventually("it is as it was", WAIT, || {
        path(&engine)["disabled_sources"][0] == "127.0.6.11" && path(&engine)["forced"] == true
    });
    engine.run(&["set", "queue", "--mode=normal", "one.test/a"]);
    // The mail of that domain alone brings the source back, whatever the shard that it came to.
    engine.run(&["enable", "source", "127.0.6.11", "two.test/*"]);
    r.script(|s| s.greeting = "220 receiver.test");
    let said = engine.run(&["schedule", "one.test"]);
    assert!(said.starts_with("1 of 1 matching queues scheduled.\n  edge.rollup/a (one.test)\n"), "{said}");
    eventually("the one goes", WAIT, || r.message_to("u@one.test").is_some());
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(r.unique(), 1);
    engine.run(&["resume", "queue", "two.test"]);
    eventually("the other goes", WAIT, || r.unique() == 2);
}

#[test]
fn a_source_disabled_for_a_domain_is_left_out_when_its_first_mail_rolls_up() {
    let dns = Dns::start();
    let r = Receiver::at("127.0.6.22:0");
    dns.host("a.edge.test", [127, 0, 6, 22]);
    dns.mx("one.test", &[(10, "a.edge.test")]);
    let engine = Engine::start(
        2,
        &format!(
            "{VMTAS}{}\n<mx-rollup-list>\n mx *.edge.test edge.rollup\n</mx-rollup-list>\n<domain *>\n default-smtp-port {}\n</domain>",
            dns.directive(),
            r.address.port()
        ),
    );
    engine.run(&["disable", "source", "127.0.6.11", "one.test/p"]);
    for n in 0..6 {
        send(&engine, &format!("u{n}@one.test"), "p");
    }
    eventually("all go", WAIT, || r.unique() == 6);
    assert!((0..6).all(|n| r.message_to(&format!("u{n}@one.test")).unwrap().hello == "b.test"));
}

#[test]
fn orders_about_a_virtual_mta_reach_the_queues_that_its_mail_is_sent_on_to() {
    let r = Receiver::start();
    r.script(|s| s.greeting = "421 later");
    let rules = " retry-after 1h\n backoff-retry-after 1h\n backoff-to-normal-after 1h";
    let mut engine = Engine::start(2, &format!("{VMTAS}<domain *>\n {}\n{rules}\n</domain>", r.hosts()));
    send(&engine, "one@d.test", "away");
    send(&engine, "one@e.test", "weak");
    let waits = |engine: &Engine, queue: &str| {
        row(engine, "queues", "queue", queue)["next_retry"].as_str().is_some_and(|at| !at.is_empty())
    };
    eventually("both wait", WAIT, || waits(&engine, "d.test/b") && waits(&engine, "e.test/weak"));
    let said = engine.run(&["set", "queue", "--mode=backoff", "d.test/away"]);
    assert_eq!(said, "1 of 1 matching paths set to backoff mode.\n  d.test/b\n");
    let said = engine.run(&["disable", "source", "127.0.6.12", "d.test/away"]);
    assert!(said.starts_with("Source 127.0.6.12 disabled at 1 of 1 matching paths"), "{said}");
    engine.run(&["enable", "source", "127.0.6.12", "d.test/away"]);
    // Backoff sends the mail of the one on.
    engine.run(&["set", "queue", "--mode=backoff", "e.test/weak"]);
    eventually("it is sent on", WAIT, || row(&engine, "queues", "queue", "e.test/b")["recipients"] == 1);
    let said = engine.run(&["pause", "queue", "*/away"]);
    assert!(said.contains("\n  d.test/b\n"), "{said}");
    let said = engine.run(&["pause", "queue", "e.test/weak"]);
    assert!(said.contains("\n  e.test/b\n"), "{said}");
    assert!(engine.sluice(&["reload"]).status.success());
    assert!(engine.stop());
    engine.start_again();
    r.script(|s| s.greeting = "220 receiver.test");
    // What comes now waits as well; the other's own mail elsewhere goes.
    send(&engine, "two@d.test", "away");
    send(&engine, "two@e.test", "weak");
    send(&engine, "three@f.test", "b");
    eventually("the other goes", WAIT, || r.unique() == 1);
    for q in ["d.test", "e.test/*"] {
        let _ = engine.sluice(&["schedule", q]);
    }
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(r.unique(), 1, "{:?}", r.with(|s| s.delivered.clone()));
    engine.run(&["resume", "queue", "d.test/away"]);
    engine.run(&["resume", "queue", "e.test/weak"]);
    engine.run(&["schedule", "*"]);
    eventually("all go", WAIT, || r.unique() == 5);
    assert_eq!(r.message_to("two@d.test").unwrap().hello, "b.test");
}

#[test]
fn an_order_holds_for_all_members_of_a_pool_and_an_exception_of_it_holds_too() {
    let r = Receiver::start();
    r.script(|s| s.greeting = "421 later");
    let rules = " retry-after 1h\n backoff-retry-after 1h\n backoff-to-normal-after 1h";
    let engine = Engine::start(1, &format!("{VMTAS}<domain *>\n {}\n{rules}\n</domain>", r.hosts()));
    engine.run(&["pause", "queue", "d.test/p"]);
    send(&engine, "u@d.test", "p");
    eventually("it waits", WAIT, || row(&engine, "queues", "queue", "d.test/p")["recipients"] == 1);
    // Nothing was tried, and no member has a path: they get one.
    let said = engine.run(&["set", "queue", "--mode=backoff", "d.test/p"]);
    assert_eq!(said, "2 of 2 matching paths set to backoff mode.\n  d.test/a\n  d.test/b\n");
    engine.run(&["set", "queue", "--mode=normal", "d.test/b"]);
    let queue = row(&engine, "queues", "queue", "d.test/p");
    let member = |n: usize| (queue["members"][n]["vmta"].clone(), queue["members"][n]["mode"].clone());
    assert_eq!(member(0), ("a".into(), "backoff".into()), "{queue}");
    assert!(member(1).1.as_str().unwrap().starts_with("normal"), "{queue}");
    let shown = engine.run(&["show", "queues"]);
    assert!(shown.contains("1 of 2 in backoff") && shown.contains("paused"), "{shown}");
    // Disabled everywhere, enabled here, and that outlives the process.
    engine.run(&["disable", "source", "127.0.6.11", "*/*"]);
    engine.run(&["enable", "source", "127.0.6.11", "d.test/a"]);
    Engine::kill(engine.workers()[0]);
    engine.wait_ready();
    r.script(|s| s.greeting = "220 receiver.test");
    engine.run(&["pause", "queue", "d.test/b"]);
    engine.run(&["resume", "queue", "d.test/p"]);
    engine.run(&["set", "queue", "--mode=normal", "d.test/a"]);
    engine.run(&["schedule", "d.test/p"]);
    eventually("it goes by the one that is enabled", WAIT, || {
        r.message_to("u@d.test").is_some_and(|m| m.hello == "a.test")
    });
}

#[test]
fn what_is_disabled_is_shown_with_since_when_until_when_and_why() {
    let r = Receiver::start();
    let pool = "<virtual-mta-pool q>\n virtual-mta a\n virtual-mta b\n</virtual-mta-pool>\n";
    let list = "<smtp-pattern-list l>\n reply /blocked/ disable-source-ip\n</smtp-pattern-list>\n";
    let mut engine = Engine::start(
        2,
        &format!("{VMTAS}{pool}{list}<domain *>\n {}\n smtp-pattern-list l\n retry-after 1h\n</domain>", r.hosts()),
    );
    r.script(|s| s.greeting = "421 you are blocked");
    send(&engine, "u@d.test", "a");
    let shown = |engine: &Engine, args: &[&str]| {
        let rows = engine.json(&[&["show", "disabled"], args, &["--json"]].concat());
        rows.as_array().cloned().unwrap_or_default()
    };
    eventually("the source is left out", WAIT, || shown(&engine, &[]).len() == 1);
    engine.run(&["disable", "source", "--reenable-after=2h", "127.0.6.12", "e.test/b"]);
    engine.run(&["disable", "source", "127.0.6.11", "f.test/q"]);
    let check = |engine: &Engine| {
        let rows = shown(engine, &["sources"]);
        assert_eq!(rows.len(), 3, "{rows:?}");
        let of = |queue: &str| rows.iter().find(|r| r["queue"] == queue).cloned().unwrap_or_default();
        let by_reply = of("d.test/a");
        assert!(by_reply["why"].as_str().is_some_and(|w| w.contains("you are blocked")), "{by_reply}");
        assert!(by_reply["since"] != "" && by_reply["until"] != "" && by_reply["is_order"] == false, "{by_reply}");
        let for_a_time = of("e.test/b");
        assert!(for_a_time["until"] != "" && for_a_time["is_order"] == true, "{for_a_time}");
        let for_good = of("f.test/q");
        assert!(for_good["until"] == "" && for_good["since"] != "", "{for_good}");
        assert_eq!(for_good["why"], "disabled by an operator");
    };
    check(&engine);
    assert!(engine.stop());
    engine.start_again();
    check(&engine);
    assert_eq!(shown(&engine, &["e.test"]).len(), 1);
    let text = engine.run(&["show", "disabled", "sources", "e.test/b"]);
    assert!(text.contains("127.0.6.12") && !text.contains("127.0.6.11"), "{text}");
    // Also what a shard only remembers is enabled.
    let said = engine.run(&["enable", "source", "127.0.6.11", "*"]);
    assert!(said.contains("\n  d.test/a\n"), "{said}");
    assert_eq!(shown(&engine, &[]).len(), 1);
    assert_eq!(engine.sluice(&["show", "disabled", "sinks", "x"]).status.code(), Some(2));
}

#[test]
fn orders_that_stand_are_listed_once_with_who_gave_them_when_and_how_they_are_taken_back() {
    let r = Receiver::start();
    let mut engine = Engine::start(
        2,
        &format!("{VMTAS}<domain *>\n {}\n backoff-to-normal-after 1h\n retry-after 1h\n</domain>", r.hosts()),
    );
    engine.run(&["pause", "queue", "*/a"]);
    engine.run(&["resume", "queue", "one.test/a"]);
    engine.run(&["disable", "source", "--reenable-after=2h", "127.0.6.12", "new.test/b"]);
    engine.run(&["pause", "job", "night run"]);
    send(&engine, "u@d.test", "a");
    // In the shard that owns it, it is queued some moments after the 250.
    eventually("it waits", WAIT, || row(&engine, "queues", "queue", "d.test/a")["recipients"] == 1);
    engine.run(&["set", "queue", "--mode=backoff", "d.test/a"]);
    let shown = |engine: &Engine, args: &[&str]| {
        let rows = engine.json(&[&["show", "orders"], args, &["--json"]].concat());
        rows.as_array().cloned().unwrap_or_default()
    };
    let user = String::from_utf8(std::process::Command::new("id").arg("-un").output().unwrap().stdout).unwrap();
    let check = |engine: &Engine, knows_since_of_mode: bool| {
        let rows = shown(engine, &[]);
        assert_eq!(rows.len(), 5, "{rows:#?}");
        let expected = [
            ("pause queue", "*/a", "", "resume queue '*/a'"),
            ("resume queue", "one.test/a", "", "pause queue one.test/a"),
            ("disable source", "new.test/b", "127.0.6.12", "enable source 127.0.6.12 new.test/b"),
            ("pause job", "night run", "", "resume job 'night run'"),
        ];
        for (order, of, source, taken_back_by) in expected {
            let row = rows.iter().find(|r| r["order"] == order).cloned().unwrap_or_default();
            assert_eq!((&row["of"], &row["source"]), (&of.into(), &source.into()), "{row}");
            assert_eq!((&row["taken_back_by"], &row["by"]), (&taken_back_by.into(), &user.trim().into()), "{row}");
            assert!(row["since"] != "" && (row["until"] == "") == source.is_empty(), "{row}");
        }
        let mode = rows.iter().find(|r| r["order"] == "set queue --mode=backoff").cloned().unwrap_or_default();
        assert_eq!(
            (&mode["of"], &mode["taken_back_by"]),
            (&"d.test/a".into(), &"set queue --mode=normal d.test/a".into())
        );
        assert_eq!(mode["since"] != "", knows_since_of_mode, "{mode}");
    };
    check(&engine, true);
    assert!(engine.stop());
    engine.start_again();
    check(&engine, false);
    engine.run(&["scale", "3"]);
    check(&engine, false);
    assert_eq!(shown(&engine, &["new.test"]).len(), 1);
    let text = engine.run(&["show", "orders"]);
    assert!(text.contains("sluice resume queue '*/a'"), "{text}");
    engine.run(&["resume", "queue", "*/*"]);
    engine.run(&["enable", "source", "127.0.6.12", "new.test/b"]);
    engine.run(&["resume", "job", "night run"]);
    engine.run(&["set", "queue", "--mode=normal", "d.test/a"]);
    assert_eq!(shown(&engine, &[]), Vec::<serde_json::Value>::new());
}

#[test]
fn a_new_worker_knows_what_is_paused_where_the_first_does_not_answer() {
    let r = Receiver::start();
    let engine = Engine::start(2, &format!("{VMTAS}<domain *>\n {}\n</domain>", r.hosts()));
    engine.run(&["pause", "queue", "*/a"]);
    let hung = nix::unistd::Pid::from_raw(engine.workers()[0]);
    nix::sys::signal::kill(hung, nix::sys::signal::Signal::SIGSTOP).unwrap();
    // The supervisor kills the worker that hangs, and starts another; the command waits for that.
    engine.run(&["scale", "3"]);
    let destinations: Vec<String> = (0..16).map(|n| format!("d{n}.test")).collect();
    destinations.iter().for_each(|d| send(&engine, &format!("u@{d}"), "a"));
    eventually("all of it is queued", WAIT, || engine.queued() == 16);
    let queues = engine.json(&["show", "queues", "--json"]);
    for d in destinations {
        let queue = format!("{d}/a");
        let row = queues.as_array().and_then(|all| all.iter().find(|q| q["queue"] == queue.as_str()));
        assert_eq!(row.map(|q| &q["paused"]), Some(&true.into()), "{queue}");
    }
    assert_eq!(r.unique(), 0);
}
