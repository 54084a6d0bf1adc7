//! What senders run their business on: accounting with everything in it, and large suppression lists.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use super::load::Load;
use super::servers::Server;
use super::sink::Sink;

/// Every field that outcomes have, as CSV and as JSON, beside the file that all runs have.
const ALL_FIELDS: &str = "</domain>\n<acct-file all/all.csv>\n records d,b,t\n \
    record-fields d *,totalSecondsQueued,userString,dlvTlsProtocol,dlvTlsCipher,dlvTlsVerified,dlvTlsPolicy,messageId,shard,attempt,msQueued,msConnect,msTransaction,header_Subject\n</acct-file>\n\
    <acct-file all/all.json>\n records d,b,t\n format json\n \
    record-fields d *,totalSecondsQueued,userString,dlvTlsProtocol,dlvTlsCipher,dlvTlsVerified,dlvTlsPolicy,messageId,shard,attempt,msQueued,msConnect,msTransaction,header_Subject\n</acct-file>\n<domain none.test>";

fn cpu(binary: &Path, sink: &Arc<Sink>, load: Load, more: &str, prepare: impl Fn(&Server)) -> f64 {
    let mut server = Server::sluice(binary, 1, 50, sink.port, more);
    prepare(&server);
    let before = server.workers_cpu();
    super::run(&server, sink, load);
    // Rows are written after their mail.
    std::thread::sleep(std::time::Duration::from_millis(500));
    let used = server.workers_cpu() - before;
    server.stop();
    used * 1e6 / load.messages as f64
}

/// CPU per message with two more accounting files that show everything, and with a suppression list.
pub fn measure(binary: &Path, sink: &Arc<Sink>, messages: u64, addresses: u64) {
    let load = Load { messages, ..Load::default() };
    println!("| one shard, 10 KB | CPU per message | more |\n|---|---|---|");
    let mut plain = Vec::new();
    // The plain run comes between the others: the machine changes its mind while it measures.
    for round in 0..3 {
        plain.push(cpu(binary, sink, load, "", |_| ()));
        let least = || plain.iter().copied().fold(f64::MAX, f64::min);
        println!("| default accounting | {:.1} µs | |", plain[round]);
        let all = cpu(binary, sink, load, ALL_FIELDS, |_| ());
        println!("| and all fields as CSV and JSON | {all:.1} µs | {:.1} µs |", all - least());
        let held = cpu(binary, sink, load, "", |s| {
            import(binary, s, 1_000_000.min(addresses));
        });
        println!("| with a million suppressed addresses | {held:.1} µs | {:.1} µs |", held - least());
    }
    let server = Server::sluice(binary, 1, 1, sink.port, "");
    let seconds = import(binary, &server, addresses);
    let folder = server.dir.path().join("suppression");
    let bytes: u64 = std::fs::read_dir(&folder).unwrap().flatten().map(|e| e.metadata().unwrap().len()).sum();
    println!(
        "\n{addresses} addresses: imported in {seconds:.1} s, {:.1} bytes each on disk, supervisor and worker {} MB",
        bytes as f64 / addresses as f64,
        server.sum("rss_bytes") >> 20
    );
    let began = Instant::now();
    let runs = 20;
    for i in 0..runs {
        let address = format!("subscriber{}@provider{}.example", i * 37, (i * 37) % 1000);
        let out = sluice(binary, &server, &["suppress", "list", &address, "--json"]);
        assert!(out.contains(&address), "{out}");
    }
    println!("`suppress list ADDRESS`: {:.1} ms a command", began.elapsed().as_secs_f64() * 1e3 / f64::from(runs));
}

fn sluice(binary: &Path, server: &Server, args: &[&str]) -> String {
    let control = server.dir.path().join("run/control.sock");
    let out = Command::new(binary).args(args).env("SLUICE_CONTROL", control).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Imports so many addresses of about 33 bytes; seconds that it took.
fn import(binary: &Path, server: &Server, addresses: u64) -> f64 {
    let file = server.dir.path().join("addresses.csv");
    let mut out = std::io::BufWriter::new(std::fs::File::create(&file).unwrap());
    writeln!(out, "address,reason").unwrap();
    for i in 0..addresses {
        writeln!(out, "subscriber{i}@provider{}.example,bad-mailbox", i % 1000).unwrap();
    }
    drop(out);
    let began = Instant::now();
    sluice(binary, server, &["suppress", "import", file.to_str().unwrap()]);
    let seconds = began.elapsed().as_secs_f64();
    std::fs::remove_file(file).unwrap();
    seconds
}
