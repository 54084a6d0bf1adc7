//! Many queues: what they cost while they wait, and what they cost those that do not.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::load::{Load, inject};
use super::servers::Server;
use super::sink::Sink;

/// A receiver that refuses every connection, for all domains that have none of their own.
const AWAY: &str = " smtp-hosts [127.0.2.99]:9\n retry-after 4h\n";

/// Domains that are delivered to are numbered up to this one.
const REACHED: u64 = 50;

/// Queues of one message, each by a path of its own.
pub fn waiting(binary: &Path, sink: &Arc<Sink>, n: u64, vmtas: u64) {
    let named: String = (1..=vmtas)
        .map(|v| format!("<virtual-mta v{v}>\n smtp-source-host 127.0.0.1 v{v}.bench.test\n</virtual-mta>\n"))
        .collect();
    let source = if vmtas > 0 { "<source 127.0.0.1>\n process-x-virtual-mta yes\n</source>\n" } else { "" };
    let more = format!("{AWAY}</domain>\n{named}{source}<domain none.test>");
    let mut server = Server::sluice(binary, 1, 0, sink.port, &more);
    let idle = server.sum("rss_bytes");
    let load = Load { messages: n, sessions: 50, domains: n, bytes: 1000, vmtas, ..Load::default() };
    assert_eq!(inject(server.smtp, load), n);
    let report = |server: &Server| {
        // Every queue has been tried once.
        std::thread::sleep(Duration::from_secs(20 + n / 10_000));
        let rss = server.sum("rss_bytes");
        let before = server.workers_cpu();
        std::thread::sleep(Duration::from_secs(30));
        let cpu = (server.workers_cpu() - before) / 30.0;
        let a_queue = rss.saturating_sub(idle) as f64 / n as f64;
        println!(
            "{} queues: {} MB, {a_queue:.0} bytes a queue, its path and its message, {:.2} % of a core while they wait",
            server.sum("recipients"),
            rss >> 20,
            cpu * 100.0,
        );
    };
    report(&server);
    server.kill();
    println!("start after SIGKILL: {:.2} s", server.start_again().as_secs_f64());
    report(&server);
    server.kill();
}

/// CPU per message of a load beside queues that wait.
pub fn scheduling(binary: &Path, sink: &Arc<Sink>, messages: u64) {
    println!("| queues that wait | CPU per message |\n|---|---|");
    for n in [0, 1_000, 10_000, 100_000, 0] {
        let mut server = Server::sluice(binary, 1, REACHED, sink.port, AWAY);
        let beside =
            Load { messages: n, sessions: 50, domains: n.max(1), bytes: 1000, behind: REACHED, ..Load::default() };
        assert_eq!(inject(server.smtp, beside), n);
        std::thread::sleep(Duration::from_secs(10 + n / 1_500));
        let load = Load { messages, domains: REACHED, ..Load::default() };
        let before = server.workers_cpu();
        super::run(&server, sink, load);
        let cpu = server.workers_cpu() - before;
        println!("| {n} | {:.0} µs |", cpu * 1e6 / messages as f64);
        server.kill();
    }
}

/// Memory of messages behind a receiver that is down, and what is left of it when they are gone.
pub fn depth(binary: &Path, sink: &Arc<Sink>, n: u64, bytes: usize) {
    let server = Server::sluice(binary, 1, 0, sink.port, AWAY);
    let load = Load { sessions: 50, domains: 1, bytes, ..Load::default() };
    // Buffers and caches of a worker that has seen mail are no queue's.
    assert_eq!(inject(server.smtp, Load { messages: 2_000, ..load }), 2_000);
    std::thread::sleep(Duration::from_secs(3));
    let before = server.sum("rss_bytes");
    assert_eq!(inject(server.smtp, Load { messages: n, ..load }), n);
    std::thread::sleep(Duration::from_secs(10));
    let deep = server.sum("rss_bytes");
    let a_message = deep.saturating_sub(before) as f64 / n as f64;
    println!(
        "{} messages: {} MB above {} MB, {a_message:.0} bytes a message",
        server.sum("recipients"),
        (deep - before) >> 20,
        before >> 20
    );
    server.ask(&["delete", "--queue=d1.test/*"]);
    while server.sum("recipients") > 0 {
        std::thread::sleep(Duration::from_millis(100));
    }
    for s in [0, 5, 10] {
        std::thread::sleep(Duration::from_secs(if s > 0 { 5 } else { 0 }));
        println!("{s} s after the last of them: {} MB above", server.sum("rss_bytes").saturating_sub(before) >> 20);
    }
}
