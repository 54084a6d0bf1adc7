//! Keeps over an orderly stop why paths wait. A path's retry clock goes on in the next process (see [`super::paths`]), and operators
//! who ask why mail waits are told the reply that set the clock. After a kill the path is tried at once, and the receiver says it anew.

use std::rc::Rc;

use ipc::dice::HashMap;
use ipc::stored;
use rkyv::{Archive, Deserialize, Serialize};

use crate::classify::outcome::{Failure, Outcome, Stage, Verdict};
use crate::clock;
use crate::schedule::Path;
use crate::shard::Shard;

/// Names of the pieces among the spool's values begin so.
const KEPT_AS: &str = "last-failures/";
/// Names of the pieces that tell when they were. What an earlier version kept has none.
const TIMES_KEPT_AS: &str = "last-failure-times/";
/// Paths in one piece.
const PATHS_PER_PIECE: usize = 4096;
/// Bytes of a diagnostic that are kept.
const DIAGNOSTIC_MAX: usize = 255;

/// As it lies in the spool. Most paths that wait share their failure with others.
#[derive(Debug, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
struct Piece {
    failures: Vec<Kept>,
    /// Destination, virtual MTA, and place in the failures.
    paths: Vec<(String, String, u32)>,
}

impl stored::Stored for Piece {
    const WHAT: &'static str = "what receivers said last";
    const VERSION: u8 = 1;
}

/// When the failures of a piece were, in the order of its paths.
#[derive(Debug, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
struct Times(Vec<u32>);

impl stored::Stored for Times {
    const WHAT: &'static str = "when receivers said it";
    const VERSION: u8 = 1;
}

#[derive(Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
struct Kept {
    status: String,
    diagnostic: String,
    remote: bool,
    host: String,
    ip: String,
    is_of_dns: bool,
}

impl Kept {
    fn of(f: &Failure) -> Kept {
        let v = &f.verdict;
        Kept {
            status: v.status.clone(),
            diagnostic: beginning(&v.diagnostic).to_owned(),
            remote: v.remote,
            host: f.host.clone(),
            ip: f.ip.clone(),
            is_of_dns: f.is_of_dns,
        }
    }

    fn into_failure(self) -> Failure {
        let Kept { status, diagnostic, remote, host, ip, is_of_dns } = self;
        let stage = Stage::Session;
        Failure {
            verdict: Verdict { outcome: Outcome::Deferred, status, diagnostic, remote, code: 0, stage },
            host,
            ip,
            is_of_dns,
        }
    }
}

fn beginning(text: &str) -> &str {
    let mut end = text.len().min(DIAGNOSTIC_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Keeps why each path waits that waits, before a stop.
pub fn keep_all(shard: &Shard) {
    let now = clock::now_ms();
    let s = shard.scheduler();
    let waiting = s.paths.iter().map(|(_, p)| p).filter(|p| p.retry_at_ms > now);
    let known: Vec<(&Path, &Rc<Failure>)> = waiting.filter_map(|p| Some((p, p.last_failure.as_ref()?))).collect();
    for (n, some) in known.chunks(PATHS_PER_PIECE).enumerate() {
        let mut piece = Piece::default();
        let mut places: HashMap<*const Failure, u32> = HashMap::default();
        let times = Times(some.iter().map(|(p, _)| p.failed_s).collect());
        for (p, f) in some {
            let place = *places.entry(Rc::as_ptr(f)).or_insert_with(|| {
                piece.failures.push(Kept::of(f));
                piece.failures.len() as u32 - 1
            });
            piece.paths.push((p.destination.as_ref().to_owned(), p.vmta_name.as_ref().to_owned(), place));
        }
        shard.spool.put(&format!("{KEPT_AS}{n}"), stored::bytes(&piece));
        shard.spool.put(&format!("{TIMES_KEPT_AS}{n}"), stored::bytes(&times));
    }
}

/// Takes over what the process before kept. It counts for this start alone.
pub fn restore(shard: &Shard, values: &[(String, Vec<u8>)]) {
    for (name, value) in values {
        let Some(n) = name.strip_prefix(KEPT_AS) else { continue };
        let times_name = format!("{TIMES_KEPT_AS}{n}");
        let times = values.iter().find(|(k, _)| *k == times_name);
        // Without them it is shown what was said, and not when.
        let times = times.and_then(|(_, v)| stored::read::<Times>(v).ok());
        shard.spool.put(&times_name, Vec::new());
        match stored::read::<Piece>(value) {
            Ok(piece) => take_in(shard, piece, &times.unwrap_or_default().0),
            Err(e) => tracing::warn!(name, error = %e, "what receivers said last cannot be read; forgotten"),
        }
        shard.spool.put(name, Vec::new());
    }
}

fn take_in(shard: &Shard, piece: Piece, times: &[u32]) {
    let failures: Vec<Rc<Failure>> = piece.failures.into_iter().map(|k| Rc::new(k.into_failure())).collect();
    shard.decide(|e, _| {
        for (n, (destination, vmta, place)) in piece.paths.into_iter().enumerate() {
            let failed_s = times.get(n).copied().unwrap_or(0);
            let Some(failure) = failures.get(place as usize) else { continue };
            e.inherit_failure(&destination, &vmta, Rc::clone(failure), failed_s);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_lie_in_spools_as_they_always_did() {
        let of = |host: &str| Kept {
            status: "4.7.1".into(),
            diagnostic: "smtp;421 4.7.1 come back later".into(),
            remote: true,
            host: host.into(),
            ip: "192.0.2.1".into(),
            is_of_dns: false,
        };
        let to = |destination: &str, place| (destination.to_owned(), "a-name-that-lies-out-of-line".to_owned(), place);
        let piece = Piece {
            failures: vec![of("mx.test"), Kept { is_of_dns: true, remote: false, ..of("") }],
            paths: vec![to("d.test", 0), to("another.test", 1)],
        };
        ipc::assert_layout!(piece, 1: "\
            736d74703b34323120342e372e3120636f6d65206261636b206c617465723139322e302e322e31736d74703b34323120342e372e3120636f
            6d65206261636b206c617465723139322e302e322e310000342e372e31ffffff9e000000a8ffffff010000006d782e74657374ff89000000
            b2ffffff00000000342e372e31ffffff9e000000a7ffffff00000000ffffffffffffffff89000000b1ffffff01000000612d6e616d652d74
            6861742d6c6965732d6f75742d6f662d6c696e65616e6f746865722e74657374612d6e616d652d746861742d6c6965732d6f75742d6f662d
            6c696e65642e74657374ffff9c000000b4ffffff000000008c000000c4ffffff9c000000c8ffffff0100000044ffffff02000000d0ffffff
            02000000");
        ipc::assert_layout!(Times(vec![0, 1, u32::MAX]), 1: "0000000001000000fffffffff4ffffff03000000");
    }
}
