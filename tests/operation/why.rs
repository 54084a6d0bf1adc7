//! `sluice why`: equal causes are one line, with the line of the configuration, the time and what the receiver said.

use std::time::Duration;

use tests::client::Client;
use tests::dns::Dns;
use tests::engine::Engine;
use tests::eventually;
use tests::receiver::Receiver;

const WAIT: Duration = Duration::from_secs(20);

fn send(engine: &Engine, to: &str, vmta: &str) {
    let mut c = Client::connect(engine.smtp).unwrap();
    let (code, text) = c.send("s@x.test", &[to], &format!("x-virtual-mta: {vmta}\r\nSubject: x\r\n\r\nx")).unwrap();
    assert_eq!(code, 250, "{text}");
}

/// `FILE:LINE` of the first line that holds a text.
fn place(engine: &Engine, of: &str) -> String {
    let file = engine.path().join("sluice.conf");
    let text = std::fs::read_to_string(&file).unwrap();
    format!("{}:{}", file.display(), 1 + text.lines().position(|l| l.contains(of)).unwrap())
}

fn lines<'a>(said: &'a str, of: &str) -> Vec<&'a str> {
    said.lines().filter(|l| l.contains(of)).collect()
}

/// A pool of virtual MTAs at 127.0.7.1 and up.
fn pool(members: u8) -> String {
    let (mut vmtas, mut pool) = (String::new(), String::new());
    for n in 1..=members {
        vmtas.push_str(&format!("<virtual-mta v{n}>\n smtp-source-host 127.0.7.{n} v{n}.test\n</virtual-mta>\n"));
        pool.push_str(&format!(" virtual-mta v{n}\n"));
    }
    format!("{vmtas}<virtual-mta-pool p>\n{pool}</virtual-mta-pool>\n")
}

#[test]
fn equal_causes_of_paths_and_queues_are_one_line_with_counts() {
    let r = Receiver::start();
    let engine = Engine::start(
        2,
        &format!("{}<domain *>\n {}\n retry-after 1h\n spread 2\n</domain>", pool(6), r.hosts())
            .replace(" spread 2\n</domain>", "</domain>\n<domain hot.test>\n spread 2\n</domain>"),
    );
    r.script(|s| s.greeting = "421 4.3.2 not now");
    for n in 0..12 {
        send(&engine, &format!("u{n}@hot.test"), "p");
        send(&engine, &format!("u@d{n}.test"), "v1");
    }
    let said = || engine.run(&["why", "hot.test"]);
    eventually("all members wait in both shards", WAIT, || {
        let said = said();
        said.contains("6 paths") && said.contains("in 2 shards")
    });
    let said = said();
    let now = lines(&said, "  now ");
    assert_eq!(now.len(), 1, "{said}");
    let of = format!("retry: retry-after 1h ({}), ", place(&engine, "retry-after"));
    assert!(now[0].contains(&of) && now[0].contains("until 20") && now[0].contains("not now"), "{said}");
    assert!(said.contains("hot.test/p: 12 recipients"), "{said}");
    // Queues with the same causes are told of together; the pool's is one of those that v1 serves.
    eventually("all are tried", WAIT, || lines(&engine.run(&["why", "*/v1"]), "  now ").len() == 1);
    let all = engine.run(&["why", "*/v1"]);
    assert!(all.contains("13 queues (hot.test/p, d0.test/v1, d1.test/v1 and 10 more): 24 recipients"), "{all}");
    let json = engine.json(&["why", "hot.test", "--json"]);
    let row = &json[0];
    assert_eq!((json.as_array().unwrap().len(), row["now"].as_array().unwrap().len()), (1, 1), "{json}");
    assert_eq!(row["now"][0]["paths"].as_array().unwrap().len(), 6, "{json}");
}

#[test]
fn who_rolled_up_and_into_what_is_said_and_when_its_own_hosts_are_tried_again() {
    let dns = Dns::start();
    let r = Receiver::at("127.0.0.71:0");
    dns.host("a.edge.test", [127, 0, 0, 71]);
    // Nobody listens there.
    dns.host("dead.edge.test", [127, 0, 0, 72]);
    for n in 0..6 {
        dns.mx(&format!("tenant{n}.test"), &[(10, "a.edge.test")]);
    }
    dns.mx("dead.test", &[(10, "dead.edge.test")]);
    r.script(|s| s.rcpt_reply = Some(("451 4.3.0 later", None)));
    let engine = Engine::start(
        1,
        &format!(
            "{}\n<mx-rollup-list>\n mx *.edge.test edge.rollup\n</mx-rollup-list>\n<domain *>\n default-smtp-port {}\n \
             retry-after 1h\n retry-recipients-after 2h\n</domain>",
            dns.directive(),
            r.address.port()
        ),
    );
    for n in 0..6 {
        send(&engine, &format!("u@tenant{n}.test"), "{default}");
    }
    send(&engine, "u@dead.test", "{default}");
    send(&engine, "v@dead.test", "{default}");
    eventually("all were tried", WAIT, || {
        r.with(|s| s.deferred.len()) == 6 && engine.run(&["why", "dead.test"]).contains("retry-after")
    });
    let said = engine.run(&["why", "tenant3.test"]);
    assert!(said.starts_with("tenant3.test, which rolls up into edge.rollup/{default}: 1 recipient,"), "{said}");
    let of = format!("recipients wait: retry-recipients-after 2h ({})", place(&engine, "retry-recipients-after"));
    assert!(said.contains(&of) && said.contains("451 4.3.0 later"), "{said}");
    let dead = engine.run(&["why", "dead.test"]);
    assert!(dead.contains("retry: retry-after 1h") && dead.contains("127.0.0.72") && !dead.contains("1970"), "{dead}");
    let all = engine.run(&["why", "edge.rollup"]);
    assert!(all.contains("edge.rollup/{default}: 8 recipients of 7 domains that roll up into it"), "{all}");
    assert!(all.contains("dead.test 2") && lines(&all, "  now ").len() == 2, "{all}");
}

#[test]
fn what_the_receiver_said_last_is_known_after_restarts_and_a_kill() {
    let r = Receiver::start();
    let mut engine = Engine::start(
        1,
        &format!("<domain *>\n {}\n retry-after 1h\n retry-recipients-after 1h\n</domain>", r.hosts()),
    );
    r.script(|s| s.rcpt_reply = Some(("451 4.7.1 Greylisted, come back", None)));
    send(&engine, "one@grey.test", "{default}");
    eventually("it is deferred", WAIT, || r.with(|s| s.deferred.len()) == 1);
    r.script(|s| s.greeting = "421 4.3.2 not now");
    send(&engine, "two@busy.test", "{default}");
    let busy = |e: &Engine| e.run(&["why", "busy.test"]);
    eventually("the other waits", WAIT, || busy(&engine).contains("not now"));
    let said_at = engine.json(&["why", "busy.test", "--json"])[0]["now"][0]["said_at"].as_str().unwrap().to_owned();
    assert!(said_at.starts_with("20"), "{said_at}");
    let known = |e: &Engine, what: &str| {
        let said = e.run(&["why", "grey.test"]);
        let wanted = ["451 4.7.1 Greylisted, come back", "retry-recipients-after 1h", "until 20"];
        assert!(wanted.iter().all(|w| said.contains(w)), "{what}: {said}");
        let said = busy(e);
        assert!(said.contains("421 4.3.2 not now") && said.contains("retry-after 1h"), "{what}: {said}");
        let at = &e.json(&["why", "busy.test", "--json"])[0]["now"][0]["said_at"];
        assert!(
            at.as_str().is_some_and(|at| at == said_at && said.contains(&format!(", at {at}"))),
            "{what}: {at} {said}"
        );
    };
    engine.run(&["shard", "restart", "0"]);
    engine.wait_ready();
    known(&engine, "shard restart");
    assert!(engine.stop());
    engine.start_again();
    known(&engine, "stop and start");
    // What was kept over one restart is kept over the next, too, though nothing was tried meanwhile.
    engine.run(&["shard", "restart", "0"]);
    engine.wait_ready();
    known(&engine, "second restart");
    engine.kill_all();
    engine.start_again();
    let said = engine.run(&["why", "grey.test"]);
    assert!(said.contains("451 4.7.1 Greylisted, come back") && said.contains("until 20"), "{said}");
}

#[test]
fn nothing_is_blamed_that_limits_nothing() {
    let r = Receiver::start();
    let engine = Engine::start(
        1,
        &format!(
            "{}<domain *>\n {}\n max-smtp-out unlimited\n</domain>\n<domain off.test>\n source-ip-max-smtp-out 127.0.7.0/24 1\n</domain>",
            pool(2),
            r.hosts()
        ),
    );
    // The receiver takes its time: nothing of ours holds the mail up.
    r.script(|s| s.delay = Duration::from_secs(3));
    for n in 0..4 {
        send(&engine, &format!("u{n}@d.test"), "v1");
        send(&engine, &format!("u{n}@off.test"), "v2");
    }
    let mut seen = String::new();
    eventually("the limit of the source is named", WAIT, || {
        seen = engine.run(&["why", "off.test"]);
        seen.contains(&format!(
            "source addresses: source-ip-max-smtp-out 1 ({})",
            place(&engine, "source-ip-max-smtp-out")
        ))
    });
    assert!(!seen.contains("(default)"), "{seen}");
    let said = engine.run(&["why", "d.test"]);
    assert!(!said.contains("default)") && !said.contains("unlimited"), "{said}");
    // What an operator did has no directive, and a time.
    engine.run(&["disable", "source", "--reenable-after=2h", "127.0.7.1", "d.test/v1"]);
    send(&engine, "x@d.test", "v1");
    eventually("the address and the time are named", WAIT, || {
        let said = engine.run(&["why", "d.test"]);
        said.contains("disabled: 127.0.7.1") && lines(&said, "disabled:")[0].contains("until 20")
    });
}
