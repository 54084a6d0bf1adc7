#!/usr/bin/env bash
# What a server must know of rustls 0.23.46 (crates.io) before it writes what libraries say into its log: what does a client
# cause that asks for an address in place of a name?
#
# RFC 6066 section 3 has only names in SNI. Programs that are given an address to connect to put it there all the same; openssl
# s_client does with -servername. Seen, for five handshakes from one client:
#   -servername mail.test     0 lines, the name is known
#   -servername 192.0.2.25    5 lines at level WARN "Illegal SNI extension: ignoring IP address presented as hostname ...", no name
# The handshakes succeed. The library has a line for each, without the client's address and without a limit, so a single client that
# comes again and again fills the log of a server that shows warnings of its libraries.
# Needs cargo, a C compiler and openssl. Fails when rustls does otherwise.
set -euo pipefail
at=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$at"' EXIT
cd "$at"
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "names"
version = "0.1.0"
edition = "2024"

[dependencies]
rustls = { version = "=0.23.46", default-features = false, features = ["std", "aws_lc_rs", "tls12", "logging"] }
rcgen = { version = "=0.14.10", default-features = false, features = ["aws_lc_rs"] }
log = "=0.4.33"
TOML
cat >src/main.rs <<'RUST'
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

static WARNINGS: AtomicU32 = AtomicU32::new(0);
struct Counts;

impl log::Log for Counts {
    fn enabled(&self, m: &log::Metadata) -> bool {
        m.level() <= log::Level::Warn
    }
    fn log(&self, r: &log::Record) {
        if self.enabled(r.metadata()) && r.target().starts_with("rustls") {
            WARNINGS.fetch_add(1, Ordering::Relaxed);
            eprintln!("{} {}", r.level(), r.args());
        }
    }
    fn flush(&self) {}
}

/// Serves five handshakes at a port, and says what was seen.
fn main() {
    log::set_logger(&Counts).unwrap();
    log::set_max_level(log::LevelFilter::Warn);
    let made = rcgen::generate_simple_self_signed(vec!["mail.test".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let config = rustls::ServerConfig::builder().with_no_client_auth();
    let config = Arc::new(config.with_single_cert(vec![made.cert.der().clone()], key.into()).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("{}", listener.local_addr().unwrap().port());
    let (mut done, mut named) = (0, 0);
    for _ in 0..5 {
        let (mut io, _) = listener.accept().unwrap();
        let mut tls = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
        while tls.is_handshaking() {
            tls.complete_io(&mut io).unwrap();
        }
        done += 1;
        named += u32::from(tls.server_name().is_some());
    }
    println!("{done} handshakes, {named} with a name, {} warnings", WARNINGS.load(Ordering::Relaxed));
}
RUST
cargo build --quiet
served() {
    local port
    ./target/debug/names >out 2>said &
    until port=$(head -1 out) && [ -n "$port" ]; do sleep 0.1; done
    for _ in 1 2 3 4 5; do
        openssl s_client -connect "127.0.0.1:$port" -servername "$1" </dev/null >/dev/null 2>&1 || true
    done
    wait $!
    echo "$1: $(tail -1 out)"
    sort -u said
}
{ served mail.test; served 192.0.2.25; } | tee seen
grep -q '^mail.test: 5 handshakes, 5 with a name, 0 warnings$' seen
grep -q '^192.0.2.25: 5 handshakes, 0 with a name, 5 warnings$' seen
grep -q '^WARN Illegal SNI extension: ignoring IP address presented as hostname' seen
