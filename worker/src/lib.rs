//! One shard as a process: accepts mail, routes it, spools what it owns, schedules, connects,
//! delivers, accounts. Reading the modules from `accept` to `account` is following a message.

pub mod accept;
pub mod account;
pub mod classify;
pub mod clock;
pub mod config;
pub mod connect;
pub mod control;
pub mod deliver;
mod disabled;
pub mod dkim;
pub mod engine;
pub mod folder;
pub mod heat;
pub mod holds;
mod inbox;
pub mod log_limit;
mod meant;
mod one_message;
pub mod ports;
pub mod prepare;
pub mod programs;
pub mod regular_file;
pub mod report;
pub mod rights;
pub mod route;
pub mod rows;
pub mod sandbox;
pub mod schedule;
pub mod shard;
mod signal;
pub mod smtp;
pub mod spf;
mod standing_orders;
pub mod suppression;
pub mod switches;
pub mod tasks;
mod why;

use std::path::PathBuf;

/// What the supervisor tells a worker on its command line; the rest comes over control.
#[derive(Debug, Clone)]
pub struct Start {
    /// Shard number.
    pub shard: u8,
    /// CPU to be pinned to.
    pub cpu: usize,
    /// Folder of the sockets.
    pub run_dir: PathBuf,
}

/// Runs the worker until it is told to stop.
///
/// # Errors
/// A sentence when it cannot serve; the supervisor starts it again.
pub fn run(start: Start) -> Result<(), String> {
    tasks::tell_of_panics();
    ipc::memory::keep_large_apart();
    // Before anything starts a thread, so that all of them inherit it.
    rights::pin(start.cpu);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .event_interval(31)
        .build()
        .map_err(|e| format!("the runtime cannot be built: {e}"))?;
    let local = tokio::task::LocalSet::new();
    runtime.block_on(holds::watched(local.run_until(control::serve(start))))
}

/// A local time by a `strftime` pattern.
pub fn local_time(unix_s: i64, pattern: &str) -> String {
    let Ok(t) = jiff::Timestamp::from_second(unix_s) else { return String::new() };
    t.to_zoned(jiff::tz::TimeZone::system()).strftime(pattern).to_string()
}

/// A local time as operators read it, such as `2024-03-01 09:00:07`.
pub fn shown_time(unix_ms: i64) -> String {
    local_time(unix_ms / 1000, "%Y-%m-%d %H:%M:%S")
}

/// The same of a time on the queues' clock; empty for one that is past, or never comes.
pub(crate) fn shown_if_to_come(queue_ms: i64, now_ms: i64) -> String {
    if queue_ms > now_ms { shown_time(clock::wall_ms(queue_ms)) } else { String::new() }
}

/// A date by RFC 5322 §3.3.
pub fn rfc5322_date(unix_s: i64) -> String {
    local_time(unix_s, "%a, %d %b %Y %H:%M:%S %z")
}
