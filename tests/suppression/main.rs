//! Who gets no mail: lists of the configuration, of operators, and those that replies fill.
#![allow(clippy::unwrap_used, missing_docs)]

mod commands;
mod policy;
mod refusals;

use std::time::Duration;

use tests::client::Client;
use tests::engine::Engine;
use tests::{accounting, eventually};

/// Sends one message; the reply to the first recipient that is refused, or to the content.
fn send(engine: &Engine, to: &[&str], headers: &str) -> (u16, String) {
    let mut c = Client::connect(engine.smtp).unwrap();
    c.send("", to, &format!("{headers}Subject: x\r\n\r\nx")).unwrap()
}

/// Waits for a recipient's row of a type; its cells.
fn row(engine: &Engine, kind: &str, recipient: &str) -> Vec<String> {
    let mut found = None;
    eventually(&format!("a {kind} row for {recipient}"), Duration::from_secs(20), || {
        let lines = accounting::lines(engine.path());
        let mut rows = lines.iter().map(|l| accounting::cells(l));
        found = rows.find(|c| c[0] == kind && c[4] == recipient);
        found.is_some()
    });
    found.unwrap()
}

const STATUS: usize = 7;
const DIAG: usize = 8;
const CATEGORY: usize = 10;
const SOURCE_IP: usize = 14;
