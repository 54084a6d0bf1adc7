//! What a path shares with the paths of its name at the other owners of its destination.

use std::net::IpAddr;

use ipc::ledger::shared_limits::key;

/// What a path shares with the paths of its name at the other owners: the names of it in the ledger, and what all agreed on last.
#[derive(Debug)]
pub struct SpreadPath {
    /// Recipients, recipients in an hour, bytes, connections: as [`super::path::Paces::under`] has them.
    pub windows: [u64; 4],
    /// `smtp-out-rampup-interval`
    pub ramp_up: u64,
    /// Places of `max-smtp-out`.
    pub connections: u64,
    pub(super) mode: u64,
    pub(super) retry: u64,
    /// When backoff ends, Unix milliseconds; 0 when there is none.
    pub(super) agreed_mode_ms: i64,
    /// The retry clock, Unix milliseconds.
    pub(super) agreed_retry_ms: i64,
    /// Windows of limits that are not in force any more are to be cut.
    pub limits_changed: bool,
    /// Names of windows of source addresses: looked at with each turn, they are made once.
    sources: Vec<(IpAddr, [u64; 3])>,
}

impl SpreadPath {
    /// Those of a path.
    pub(super) fn of(destination: &str, vmta: &str) -> SpreadPath {
        let name = format!("{destination}/{vmta}");
        let of = |what| key(what, &name);
        SpreadPath {
            windows: ["path recipients", "path hour", "path volume", "path connects"].map(of),
            ramp_up: of("path ramp-up"),
            connections: of("path connections"),
            mode: of("path mode"),
            retry: of("path retry"),
            agreed_mode_ms: 0,
            agreed_retry_ms: 0,
            limits_changed: false,
            sources: Vec::new(),
        }
    }

    /// Names of a source address's windows at the path.
    pub(super) fn windows_of(&mut self, destination: &str, vmta: &str, ip: IpAddr) -> [u64; 3] {
        if let Some((_, known)) = self.sources.iter().find(|(of, _)| *of == ip) {
            return *known;
        }
        let made = source_names(destination, vmta, ip).0;
        self.sources.push((ip, made));
        made
    }
}

/// Names of a source address's windows at a path (recipients, bytes, connections), and of its
/// places.
pub(super) fn source_names(destination: &str, vmta: &str, ip: IpAddr) -> ([u64; 3], u64) {
    let name = format!("{destination}/{vmta}/{ip}");
    let windows = ["source recipients", "source volume", "source connects"].map(|what| key(what, &name));
    (windows, key("source connections", &name))
}
