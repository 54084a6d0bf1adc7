//! MX roll-up: domains whose preferred mail hosts are shared are one queue, with one set of limits,
//! and each one's mail goes to its own hosts.

use std::time::Duration;

use tests::client::Client;
use tests::dns::{Dns, Name};
use tests::engine::Engine;
use tests::receiver::Receiver;
use tests::{accounting, eventually};

const WAIT: Duration = Duration::from_secs(40);

fn send(engine: &Engine, domain: &str, n: usize) {
    let mut c = Client::connect(engine.smtp).unwrap();
    for i in 0..n {
        assert_eq!(c.send("s@x.test", &[&format!("u{i}@{domain}")], "Subject: x\r\n\r\nx").unwrap().0, 250);
    }
}

/// The `queue` cell of a recipient's delivery.
fn queue_of(engine: &Engine, recipient: &str) -> String {
    let mut found = None;
    eventually(&format!("a row of {recipient}"), WAIT, || {
        let rows = accounting::lines(engine.path());
        let row = rows.iter().find(|l| l.starts_with("d,") && l.contains(recipient)).cloned();
        found = row.map(|r| r.rsplit(',').nth(1).unwrap_or_default().to_owned());
        found.is_some()
    });
    found.unwrap()
}

fn domains(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("tenant{i}.test")).collect()
}

#[test]
fn limits_hold_over_all_domains_of_an_edge_and_each_goes_to_its_own_host() {
    let dns = Dns::start();
    let a = Receiver::at("127.0.0.61:0");
    let b = Receiver::at(&format!("127.0.0.62:{}", a.address.port()));
    for r in [&a, &b] {
        r.script(|s| s.delay = Duration::from_millis(20));
    }
    dns.host("a.edge.test", [127, 0, 0, 61]);
    dns.host("b.edge.test", [127, 0, 0, 62]);
    let all = domains(12);
    for (i, d) in all.iter().enumerate() {
        dns.mx(d, &[(10, if i % 2 == 0 { "a.edge.test" } else { "b.edge.test" })]);
    }
    dns.mx("alone.test", &[(10, "a.edge.test")]);
    // Two shards: the domains lie in both, their queue in one.
    let engine = Engine::start(
        2,
        &format!(
            "{}\n<mx-rollup-list>\n mx *.edge.test edge.rollup\n</mx-rollup-list>\n<domain *>\n default-smtp-port {}\n\
             </domain>\n<domain edge.rollup>\n max-smtp-out 2\n</domain>\n<domain alone.test>\n disable-mx-rollup \
             yes\n</domain>",
            dns.directive(),
            a.address.port()
        ),
    );
    all.iter().for_each(|d| send(&engine, d, 1));
    eventually("the first are delivered", WAIT, || a.unique() + b.unique() == 12);
    // Known by now: a flood of all of them at once keeps to the queue's limit.
    for r in [&a, &b] {
        r.with(|s| s.open_max = 0);
    }
    eventually("connections are closed", WAIT, || a.with(|s| s.open) + b.with(|s| s.open) == 0);
    all.iter().for_each(|d| send(&engine, d, 20));
    eventually("all are delivered", WAIT, || {
        let open = a.with(|s| s.open) + b.with(|s| s.open);
        assert!(open <= 3, "{open} connections, one of which may be closing");
        a.unique() + b.unique() == 240
    });
    assert!(a.with(|s| s.open_max) <= 2 && b.with(|s| s.open_max) <= 2);
    a.with(|s| assert!(s.delivered.keys().all(|r| r.ends_with("0.test") || even(r)), "{:?}", s.delivered));
    b.with(|s| assert!(s.delivered.keys().all(|r| !even(r)), "{:?}", s.delivered));
    send(&engine, "alone.test", 1);
    assert_eq!(queue_of(&engine, "u19@tenant3.test"), "edge.rollup/{default}");
    assert_eq!(queue_of(&engine, "u0@alone.test"), "alone.test/{default}");
}

fn even(recipient: &str) -> bool {
    let digits: String =
        recipient.rsplit_once("tenant").map_or("", |(_, d)| d).chars().take_while(char::is_ascii_digit).collect();
    digits.parse::<u32>().is_ok_and(|n| n % 2 == 0)
}

#[test]
fn a_tenant_whose_host_fails_holds_no_neighbour_up_and_mail_survives_a_kill() {
    let dns = Dns::start();
    let good = Receiver::at("127.0.0.63:0");
    dns.host("good.edge.test", [127, 0, 0, 63]);
    // Nobody listens there.
    dns.host("dead.edge.test", [127, 0, 0, 64]);
    dns.mx("good.test", &[(10, "good.edge.test")]);
    dns.mx("dead.test", &[(10, "dead.edge.test")]);
    dns.set("lost.test", Name { mx: vec![(10, "nowhere.edge.test")], ..Name::default() });
    let engine = Engine::start(
        1,
        &format!(
            "{}\n<mx-rollup-list>\n mx *.edge.test edge.rollup\n</mx-rollup-list>\n<domain *>\n default-smtp-port {}\n \
             retry-after 2s\n max-smtp-out 1\n</domain>",
            dns.directive(),
            good.address.port()
        ),
    );
    send(&engine, "dead.test", 3);
    send(&engine, "good.test", 3);
    eventually("the good ones arrive", WAIT, || good.unique() == 3);
    let queues = engine.json(&["show", "queues", "--json"]);
    let row = queues.as_array().unwrap().iter().find(|q| q["queue"] == "edge.rollup/{default}").cloned().unwrap();
    assert_eq!(row["recipients"], 3, "{queues}");
    // Paused by its own name it stays, and the others go on.
    engine.sluice(&["pause", "queue", "dead.test"]);
    for pid in engine.workers() {
        Engine::kill(pid);
    }
    engine.wait_ready();
    let dead = Receiver::at(&format!("127.0.0.64:{}", good.address.port()));
    send(&engine, "good.test", 5);
    eventually("the good ones arrive", WAIT, || good.unique() == 5);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(dead.unique(), 0);
    engine.sluice(&["resume", "queue", "dead.test"]);
    eventually("the others arrive once their host is there", WAIT, || dead.unique() == 3);
    // A domain without a host is a matter of its own.
    send(&engine, "lost.test", 1);
    eventually("it bounces", WAIT, || engine.queued() == 0);
}

#[test]
fn lists_of_hosts_the_like_of_a_domain_and_shipped_patterns() {
    let dns = Dns::start();
    let r = Receiver::at("127.0.0.65:0");
    for h in ["h1.list.test", "h2.list.test", "h3.list.test", "mx.shop.test", "aspmx.l.google.com"] {
        dns.host(h, [127, 0, 0, 65]);
    }
    dns.mx("both.test", &[(10, "h1.list.test"), (10, "h2.list.test"), (10, "h3.list.test")]);
    dns.mx("one.test", &[(10, "h1.list.test"), (20, "h2.list.test")]);
    dns.mx("shop.test", &[(10, "mx.shop.test")]);
    dns.mx("like-shop.test", &[(5, "mx.shop.test")]);
    dns.mx("workspace.test", &[(1, "aspmx.l.google.com")]);
    dns.mx("mine.test", &[(1, "aspmx.l.google.com")]);
    let engine = Engine::start(
        1,
        &format!(
            "{}\n<mx-rollup-list>\n mx h1.list.test list.rollup\n mx h2.list.test list.rollup\n</mx-rollup-list>\n<domain \
             shop.test>\n mx-rollup shop.test\n</domain>\n<domain mine.test>\n max-smtp-out 3\n</domain>\n<domain *>\n \
             default-smtp-port {}\n</domain>",
            dns.directive(),
            r.address.port()
        ),
    );
    for d in ["both", "one", "shop", "like-shop", "workspace", "mine"] {
        send(&engine, &format!("{d}.test"), 1);
    }
    eventually("all arrive", WAIT, || r.unique() == 6);
    for (d, queue) in [
        ("both", "list.rollup"),
        ("one", "one.test"),
        ("shop", "shop.test"),
        ("like-shop", "shop.test"),
        ("workspace", "google.rollup"),
        // What an operator says of a domain goes before what comes with the program.
        ("mine", "mine.test"),
    ] {
        assert_eq!(queue_of(&engine, &format!("u0@{d}.test")), format!("{queue}/{{default}}"), "{d}");
    }
}
