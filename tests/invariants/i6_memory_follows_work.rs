//! I6: memory does not follow the depth of the queue, virtual MTAs configured, or domains
//! ever seen.

use std::time::Duration;

use tests::client::Client;
use tests::engine::Engine;
use tests::eventually;
use tests::receiver::Receiver;

fn memory(engine: &Engine) -> i64 {
    let rows = engine.json(&["show", "shards", "--json"]);
    rows.as_array().unwrap().iter().filter_map(|s| s["rss_bytes"].as_i64()).sum()
}

fn send(engine: &Engine, messages: u32, recipients: u32, name: impl Fn(u32) -> String) {
    let mut c = Client::connect(engine.smtp).unwrap();
    for m in 0..messages {
        let to: Vec<String> = (0..recipients).map(|r| name(m * recipients + r)).collect();
        let to: Vec<&str> = to.iter().map(String::as_str).collect();
        assert_eq!(c.send("", &to, "Subject: x\r\n\r\nx").unwrap().0, 250);
    }
}

#[test]
fn a_deep_queue_costs_little() {
    let r = Receiver::start();
    let rules = "retry-after 1h\n retry-recipients-after 1h";
    let engine = Engine::start(1, &format!("<domain *>\n {}\n {rules}\n</domain>", r.hosts()));
    let idle = memory(&engine);
    send(&engine, 6000, 15, |n| format!("later-{n}@deep.test"));
    eventually("all are deferred", Duration::from_secs(60), || r.with(|s| s.deferred.len() == 90_000));
    std::thread::sleep(Duration::from_secs(4));
    let grown = memory(&engine) - idle;
    // The index's cache and what the allocator keeps are not the queue's.
    let constant = 40 << 20;
    assert!(grown <= 200 * 90_000 + constant, "{grown} bytes for 90,000 recipients");
}

#[test]
fn domains_that_were_served_are_forgotten() {
    let r = Receiver::start();
    // No more at once than the receiver's listen queue holds.
    let engine = Engine::start(1, &format!("total-max-smtp-out 100\n<domain *>\n {}\n</domain>", r.hosts()));
    send(&engine, 100, 50, |n| format!("u@d{n}.test"));
    eventually("all arrive", Duration::from_secs(60), || r.unique() == 5000);
    eventually("no path is left", Duration::from_secs(20), || {
        engine.json(&["show", "paths", "--json"]).as_array().is_some_and(Vec::is_empty)
    });
}

#[test]
fn virtual_mtas_cost_their_memory_once() {
    let vmtas = |n: u32| {
        (0..n).map(|i| format!("<virtual-mta v{i}>\n host-name v{i}.test\n</virtual-mta>\n")).collect::<String>()
    };
    let few = memory(&Engine::start(2, &vmtas(1)));
    let many = memory(&Engine::start(2, &vmtas(10_000)));
    assert!(many - few < 16 << 20, "{} bytes for 10,000", many - few);
}
