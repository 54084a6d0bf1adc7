//! Measures Sluice, and Postfix beside it: `cargo run --release -p tests --bin bench -- --help`.
#![allow(clippy::unwrap_used, missing_docs)] // a bench that cannot set up should stop there

mod business;
mod configuration;
mod load;
mod queues;
mod servers;
mod sink;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use load::{Load, Session, inject};
use servers::Server;
use sink::Sink;

const HELP: &str = "\
Measures the release binary (SLUICE_BIN, or target/release/sluice) and prints tables.

usage: bench [throughput] [signed] [hot] [accept] [latency] [queue] [queues] [depth] [scheduling] [tls] [config] [business] [all]
       bench queue --recipients N       recipients queued (1000000)
                   --bytes N         bytes of a message there (1000)
       bench queues --queues N     queues with one message each (100000)
                    --vmtas N      virtual MTAs that they take turns with (0: the default one)
       bench throughput --messages N    messages a run (30000)
                        --sessions N    client sessions (100)

throughput  CPU per message with 1, 2 and 4 shards, even and skewed domains; Postfix
signed      CPU per message with DKIM, beside the bare signature
hot         one destination delivered by one of two shards, by both, and as load asks
accept      one shard, 100 sessions: messages per second, syncs and bytes written
latency     single messages on an idle system
queue       memory, restarts and rebuild with many recipients deferred
queues      memory and CPU of many queues that wait for their retry, and a restart with them
depth       memory of --messages N (200000) of --bytes N (1000) behind a receiver that is down, and after them
scheduling  CPU per message beside 1,000, 10,000 and 100,000 queues that wait
tls         CPU per message with and without STARTTLS, and how many sessions are resumed
config      time and memory of large configurations
business    CPU of accounting with all fields and of suppression; an import of --addresses N (5000000)
";

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |name: &str, default: u64| {
        let at = args.iter().position(|a| a == name).map(|i| i + 1);
        at.and_then(|i| args.get(i)).map_or(default, |v| v.parse().expect("a number"))
    };
    let asked = |name: &str| args.iter().any(|a| a == name || a == "all");
    let known = [
        "throughput",
        "signed",
        "hot",
        "accept",
        "latency",
        "queue",
        "queues",
        "depth",
        "scheduling",
        "tls",
        "config",
        "business",
        "all",
    ];
    if !args.iter().any(|a| known.contains(&a.as_str())) {
        print!("{HELP}");
        return;
    }
    let binary = std::env::var_os("SLUICE_BIN")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/sluice"), PathBuf::from);
    let binary = std::fs::canonicalize(binary).expect("build the binary first: cargo build --release");
    if asked("config") {
        configuration::measure(&binary);
    }
    let sink = Sink::start(50);
    if asked("throughput") {
        throughput(&binary, &sink, number("--messages", 30_000), number("--sessions", 100));
    }
    if asked("signed") {
        signed(&binary, &sink, number("--messages", 20_000));
    }
    if asked("hot") {
        hot(&binary, &sink, number("--messages", 300_000));
    }
    if asked("business") {
        business::measure(&binary, &sink, number("--messages", 30_000), number("--addresses", 5_000_000));
    }
    if asked("accept") {
        accept(&binary, &sink);
    }
    if asked("latency") {
        latency(&binary, &sink);
    }
    if asked("queue") {
        queue(&binary, &sink, number("--recipients", 1_000_000), number("--bytes", 1000) as usize);
    }
    if asked("queues") {
        queues::waiting(&binary, &sink, number("--queues", 100_000), number("--vmtas", 0));
    }
    if asked("depth") {
        queues::depth(&binary, &sink, number("--messages", 200_000), number("--bytes", 1_000) as usize);
    }
    if asked("scheduling") {
        queues::scheduling(&binary, &sink, number("--messages", 30_000));
    }
    if asked("tls") {
        tls(&binary, &sink, number("--messages", 30_000));
    }
}

/// One run of a load: seconds from the first byte to the last delivery.
fn run(server: &Server, sink: &Sink, load: Load) -> f64 {
    let before = sink.messages.load(Relaxed);
    let began = Instant::now();
    let accepted = inject(server.smtp, load);
    assert_eq!(accepted, load.messages, "all messages are accepted");
    assert!(sink.wait_for(before + load.messages), "all messages are delivered");
    began.elapsed().as_secs_f64()
}

fn throughput(binary: &Path, sink: &Arc<Sink>, messages: u64, sessions: u64) {
    let load = Load { messages, sessions, ..Load::default() };
    println!(
        "| server | domains | CPU per message | user + system | messages/s | syncs/message | log bytes/body | memory |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for workers in [1, 2, 4] {
        for skewed in [false, true] {
            let mut server = Server::sluice(binary, workers, 50, sink.port, "");
            let seconds = run(&server, sink, Load { skewed, ..load });
            std::thread::sleep(Duration::from_millis(700)); // one more heartbeat
            let (syncs, bytes, rss) = (server.sum("syncs"), server.sum("log_bytes"), server.sum("rss_bytes"));
            let cpu = server.stop();
            println!(
                "| Sluice, {workers} shards | {} | {:.0} µs | {:.0} + {:.0} | {:.0} | {:.3} | {:.2} | {} MB |",
                if skewed { "skewed" } else { "even" },
                (cpu.0 + cpu.1) * 1e6 / messages as f64,
                cpu.0 * 1e6 / messages as f64,
                cpu.1 * 1e6 / messages as f64,
                messages as f64 / seconds,
                syncs as f64 / messages as f64,
                bytes as f64 / (messages * load.bytes as u64) as f64,
                rss >> 20,
            );
        }
    }
    let Some(mut server) = Server::postfix(50, sink.port) else {
        println!("Postfix is not installed, or this is not root: not measured");
        return;
    };
    let few = messages / 10;
    let seconds = run(&server, sink, Load { messages: few, skewed: true, ..load });
    let cpu = server.stop();
    println!(
        "| Postfix | skewed | {:.0} µs | {:.0} + {:.0} | {:.0} | | | |",
        (cpu.0 + cpu.1) * 1e6 / few as f64,
        cpu.0 * 1e6 / few as f64,
        cpu.1 * 1e6 / few as f64,
        few as f64 / seconds,
    );
}

fn signed(binary: &Path, sink: &Arc<Sink>, messages: u64) {
    let dir = tempfile::tempdir_in(".").unwrap();
    let load = Load { messages, ..Load::default() };
    println!("| signature | CPU per message | more than without | bare signature |\n|---|---|---|---|");
    let mut without = 0.0;
    for (name, more) in [("none", None), ("rsa-2048", Some("rsa")), ("ed25519", Some("ed25519"))] {
        let mut lines = String::new();
        let mut bare = 0.0;
        if let Some(algorithm) = more {
            let file = std::path::absolute(dir.path().join(algorithm)).unwrap();
            let made = std::process::Command::new(binary)
                .args(["dkim", "generate", "s", "bench.test", "--algorithm", algorithm, "--file"])
                .arg(&file)
                .output()
                .unwrap();
            assert!(made.status.success());
            lines = format!("dkim-sign yes\n</domain>\ndomain-key s,bench.test,{}\n<domain none.test>", file.display());
            bare = bare_signature(algorithm);
        }
        let mut server = Server::sluice(binary, 1, 50, sink.port, &lines);
        run(&server, sink, load);
        let cpu = server.stop();
        let each = (cpu.0 + cpu.1) * 1e6 / messages as f64;
        without = if more.is_none() { each } else { without };
        println!("| {name} | {each:.0} µs | {:.0} µs | {bare:.0} µs |", each - without);
        if more == Some("rsa") {
            let mut server = Server::sluice(binary, 2, 1, sink.port, &lines);
            let seconds = run(&server, sink, Load { domains: 1, ..load });
            let cpu = server.stop();
            let each = (cpu.0 + cpu.1) * 1e6 / messages as f64;
            println!("| {name}, one destination, two shards: {:.0}/s | {each:.0} µs | | |", messages as f64 / seconds);
        }
    }
}

/// Microseconds of a signature of 600 bytes by the library that Sluice uses.
fn bare_signature(algorithm: &str) -> f64 {
    use aws_lc_rs::rsa::KeySize;
    use aws_lc_rs::signature::{Ed25519KeyPair, RSA_PKCS1_SHA256, RsaKeyPair};
    let data = [b'x'; 600];
    let random = aws_lc_rs::rand::SystemRandom::new();
    let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let ed25519 = Ed25519KeyPair::generate().unwrap();
    let mut out = [0; 256];
    let began = Instant::now();
    for _ in 0..1000 {
        match algorithm {
            "rsa" => rsa.sign(&RSA_PKCS1_SHA256, &random, &data, &mut out).unwrap(),
            _ => drop(std::hint::black_box(ed25519.sign(&data))),
        }
    }
    began.elapsed().as_secs_f64() * 1e3
}

fn tls(binary: &Path, sink: &Arc<Sink>, messages: u64) {
    let load = Load { messages, ..Load::default() };
    println!("| STARTTLS | messages a connection | CPU per message | sessions | resumed |\n|---|---|---|---|---|");
    for (with, most) in [(false, 0), (true, 0), (false, 0), (true, 0), (false, 20), (true, 20)] {
        sink.tls.store(with, Relaxed);
        let starttls = if with { " use-starttls yes\n" } else { "" };
        let mut server =
            Server::sluice(binary, 1, 50, sink.port, &format!("{starttls} max-msg-per-connection {most}\n"));
        let (sessions, resumed) = (sink.sessions.load(Relaxed), sink.resumed.load(Relaxed));
        run(&server, sink, load);
        let cpu = server.stop();
        println!(
            "| {} | {} | {:.0} µs | {} | {} |",
            if with { "yes" } else { "no" },
            if most == 0 { "all".to_owned() } else { most.to_string() },
            (cpu.0 + cpu.1) * 1e6 / messages as f64,
            sink.sessions.load(Relaxed) - sessions,
            sink.resumed.load(Relaxed) - resumed,
        );
    }
    sink.tls.store(false, Relaxed);
}

fn hot(binary: &Path, sink: &Arc<Sink>, messages: u64) {
    let load = Load { messages, domains: 1, ..Load::default() };
    println!("| `spread` | messages/s | CPU per message | recipients delivered by each shard |\n|---|---|---|---|");
    for spread in ["1", "2", "auto"] {
        let mut server = Server::sluice(binary, 2, 1, sink.port, &format!(" spread {spread}"));
        let seconds = run(&server, sink, load);
        std::thread::sleep(Duration::from_millis(700)); // one more heartbeat
        let of_each: Vec<String> = server.shards().iter().map(|s| s["delivered"].to_string()).collect();
        let cpu = server.stop();
        println!(
            "| {spread} | {:.0} | {:.0} µs | {} |",
            messages as f64 / seconds,
            (cpu.0 + cpu.1) * 1e6 / messages as f64,
            of_each.join(", "),
        );
    }
}

fn accept(binary: &Path, sink: &Arc<Sink>) {
    let load = Load { messages: 60_000, ..Load::default() };
    let mut server = Server::sluice(binary, 1, 50, sink.port, "");
    let before = sink.messages.load(Relaxed);
    let began = Instant::now();
    let accepted = inject(server.smtp, load);
    let seconds = began.elapsed().as_secs_f64();
    let delivered = sink.messages.load(Relaxed) - before;
    std::thread::sleep(Duration::from_millis(700));
    println!(
        "One shard, 100 sessions: {:.0} messages/s accepted durably, {:.0}/s delivered meanwhile, {:.3} syncs a message, \
         {:.2} bytes written a byte accepted",
        accepted as f64 / seconds,
        delivered as f64 / seconds,
        server.sum("syncs") as f64 / accepted as f64,
        server.sum("log_bytes") as f64 / (accepted * load.bytes as u64) as f64,
    );
    assert!(sink.wait_for(before + accepted));
    server.stop();
}

fn latency(binary: &Path, sink: &Arc<Sink>) {
    let mut server = Server::sluice(binary, 1, 50, sink.port, "");
    let content = load::content(10_000);
    let mut session = Session::open(server.smtp).unwrap();
    let (mut all, mut syncs) = (Vec::new(), Vec::new());
    let probe = std::fs::File::create(server.dir.path().join("probe")).unwrap();
    for n in 0..1000u64 {
        let before = sink.messages.load(Relaxed);
        let began = sink::now_ns();
        assert_eq!(session.send(&format!("u{n}@d{}.test", 1 + n % 50), "", content.as_bytes()).unwrap(), 250);
        assert!(sink.wait_for(before + 1));
        all.push(sink.last_ns.load(Relaxed) - began);
        let at = Instant::now();
        std::os::unix::fs::FileExt::write_all_at(&probe, &content.as_bytes()[..8192], n * 8192).unwrap();
        probe.sync_data().unwrap();
        syncs.push(at.elapsed().as_nanos() as u64);
        std::thread::sleep(Duration::from_millis(2));
    }
    server.stop();
    let ms = |v: &mut Vec<u64>, part: usize| {
        v.sort_unstable();
        v[v.len() * part / 1000] as f64 / 1e6
    };
    println!(
        "Single messages, first command to the receiver's end of data: median {:.1} ms, p99 {:.1} ms; a sync of the same disk: \
         median {:.1} ms, p99 {:.1} ms",
        ms(&mut all, 500),
        ms(&mut all, 990),
        ms(&mut syncs, 500),
        ms(&mut syncs, 990),
    );
}

fn queue(binary: &Path, sink: &Arc<Sink>, recipients: u64, bytes: usize) {
    sink.defer.store(true, Relaxed);
    let rules = " retry-after 1h\n retry-recipients-after 10h\n";
    let mut server = Server::sluice(binary, 1, 50, sink.port, rules);
    let idle = server.sum("rss_bytes");
    println!("An idle worker: {} MB", idle >> 20);
    let load = Load { messages: recipients, sessions: 50, bytes, ..Load::default() };
    let began = Instant::now();
    assert_eq!(inject(server.smtp, load), recipients);
    while sink.deferred.load(Relaxed) < recipients {
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("{recipients} recipients queued and deferred in {:.0} s", began.elapsed().as_secs_f64());
    std::thread::sleep(Duration::from_secs(5));
    let report = |server: &Server, what: &str| {
        std::thread::sleep(Duration::from_secs(2));
        let (rss, queued) = (server.sum("rss_bytes"), server.sum("recipients"));
        println!(
            "{what}: {queued} queued, {} MB, {:.0} bytes a recipient",
            rss >> 20,
            (rss - idle) as f64 / queued as f64
        );
    };
    report(&server, "as they came");
    server.stop();
    let took = server.start_again();
    println!("start after a stop: {:.2} s", took.as_secs_f64());
    report(&server, "after a start");
    server.kill();
    let took = server.start_again();
    println!("start after SIGKILL: {:.2} s", took.as_secs_f64());
    server.kill();
    let spool = server.dir.path().join("spool/shard-00");
    let log: u64 = std::fs::read_dir(spool.join("log")).unwrap().flatten().map(|e| e.metadata().unwrap().len()).sum();
    std::fs::remove_dir_all(spool.join("index")).unwrap();
    let took = server.start_again();
    println!("start without the index: {:.2} s for {:.2} GB of log", took.as_secs_f64(), log as f64 / 1e9);
    report(&server, "after a rebuild");
    sink.defer.store(false, Relaxed);
    server.kill();
}
