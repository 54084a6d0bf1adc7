//! How mail reaches receivers: DNS, connections, TLS, transactions.
#![allow(clippy::unwrap_used, missing_docs)]

mod addresses;
mod backoff;
mod blackhole;
mod bounces;
mod dead_addresses;
mod dkim;
mod limits;
mod mail_hosts;
mod name_servers;
mod pools;
mod priorities;
mod rollup;
mod source_addresses;
mod spread;
mod tls;
mod tls_policies;
mod transactions;
mod types;

use std::time::Duration;

use tests::client::Client;
use tests::engine::Engine;
use tests::{accounting, eventually};

/// Sends one small message; it is accepted.
fn send(engine: &Engine, to: &[&str]) {
    let mut c = Client::connect(engine.smtp).unwrap();
    let (code, text) = c.send("s@sender.test", to, "Subject: x\r\n\r\nx").unwrap();
    assert_eq!(code, 250, "{text}");
}

/// Waits for a recipient's row of a type, and answers it.
fn row(engine: &Engine, kind: &str, recipient: &str) -> String {
    let mut found = None;
    eventually(&format!("a {kind} row for {recipient}"), Duration::from_secs(20), || {
        found = accounting::lines(engine.path())
            .into_iter()
            .find(|l| l.starts_with(&format!("{kind},")) && l.contains(recipient));
        found.is_some()
    });
    found.unwrap()
}
