#!/usr/bin/env bash
# What a mail server must know of hickory-resolver 0.26.3 (crates.io) before it trusts a list of name servers to it: when does
# the second one get a question?
#
# Two name servers in the order given, one question at a time (num_concurrent_reqs 1), MX of one name. The second answers
# everything; the first does what is said on the left. Seen:
#   REFUSED                              error "Query Refused"        only the first is asked, three times
#   SERVFAIL                             error "Server Failure"       likewise
#   FORMERR to EDNS, and knows the name  error "Form Error"           likewise, never without EDNS
#   that FORMERR as a bare header        "request timed out"          likewise: the answer is dropped, for it repeats no question
#   silent to EDNS only                  "request timed out"          likewise
#   NOERROR, no answer, NS but no SOA    "no records found"           asked once: a referral is told as "there is no MX"
# With the default of two at a time both are asked at once, so that the second one's answer wins where it is quicker; SERVFAIL of
# one may still be the result. The documentation says that other errors are retried with other name servers.
# Needs cargo and python3. Fails when the resolver does otherwise.
set -euo pipefail
at=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$at"' EXIT
cd "$at"
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "asks"
version = "0.1.0"
edition = "2024"

[dependencies]
hickory-resolver = { version = "=0.26.3", default-features = false, features = ["tokio"] }
tokio = { version = "1", features = ["rt", "macros", "time"] }
TOML
cat >src/main.rs <<'RUST'
use hickory_resolver::Resolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig, ServerOrderingStrategy};
use hickory_resolver::net::runtime::TokioRuntimeProvider;

/// Asks the name servers 127.0.0.N, in this order, for MX of d.test: asks PORT N...
#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut args = std::env::args().skip(1);
    let port: u16 = args.next().unwrap().parse().unwrap();
    let servers = args.map(|n| {
        let mut s = NameServerConfig::udp(std::net::Ipv4Addr::new(127, 0, 0, n.parse().unwrap()).into());
        s.connections.iter_mut().for_each(|c| c.port = port);
        s
    });
    let config = ResolverConfig::from_parts(None, vec![], servers.collect());
    let mut builder = Resolver::builder_with_config(config, TokioRuntimeProvider::default());
    let o = builder.options_mut();
    o.timeout = std::time::Duration::from_secs(1);
    o.num_concurrent_reqs = 1;
    o.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
    o.edns0 = true;
    match builder.build().unwrap().mx_lookup("d.test.").await {
        Ok(found) => println!("{} records", found.answers().len()),
        Err(e) => println!("{e}"),
    }
}
RUST
cat >server.py <<'PY'
import socket, struct, sys, threading

def reply(q, rcode=0, mx=False, ns=False):
    end = 12
    while q[end]: end += q[end] + 1
    out = q[:2] + struct.pack(">HHHHH", 0x8180 | rcode, 1, mx, ns, 0) + q[12:end + 5]
    if mx: out += b"\xc0\x0c" + struct.pack(">HHIHH", 15, 1, 60, 6, 10) + b"\x01m\xc0\x0c"
    if ns: out += b"\xc0\x0e" + struct.pack(">HHIH", 2, 1, 60, 5) + b"\x02ns\xc0\x0e"
    return out

def serve(n):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind((f"127.0.0.{n}", int(sys.argv[1])))
    while True:
        q, client = s.recvfrom(4096)
        edns = q[10:12] != b"\0\0"
        print(n, flush=True)
        knows = reply(q, mx=True)
        out = {1: knows, 2: reply(q, rcode=5), 3: reply(q, rcode=2),
               4: reply(q, rcode=1) if edns else knows,
               5: q[:2] + struct.pack(">HHHHH", 0x8181, 0, 0, 0, 0) if edns else knows,
               6: None if edns else knows, 7: reply(q, ns=True)}[n]
        if out: s.sendto(out, client)

for n in range(1, 8): threading.Thread(target=serve, args=(n,), daemon=True).start()
threading.Event().wait()
PY
cargo build --quiet 2>/dev/null
port=15353
python3 server.py $port >asked &
sleep 1
failed=0
expect() {
    : >asked
    local said servers
    said=$(target/debug/asks $port $2)
    servers=$(tr -d '\0' <asked | sort -u | tr '\n' ' ')
    echo "$1: \"$said\", asked: $servers"
    [[ $said == *"$3"* && $servers == "${2%% *} " ]] || { echo "  expected \"$3\" and only ${2%% *} asked"; failed=1; }
}
expect "the one that answers" "1" "1 records"
expect "REFUSED, then it" "2 1" "Query Refused"
expect "SERVFAIL, then it" "3 1" "Server Failure"
expect "FORMERR to EDNS, then it" "4 1" "Form Error"
expect "bare FORMERR to EDNS, then it" "5 1" "request timed out"
expect "silence to EDNS, then it" "6 1" "request timed out"
expect "a referral, then it" "7 1" "no records found"
exit $failed
