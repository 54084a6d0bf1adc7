//! Worker ⇄ worker: handoff of accepted mail to the shard that owns its destination.
//!
//! The connecting side is the *origin*, the listening side the *owner*. A handoff carries
//! its identity in its envelope ([`crate::message::HandoffId`]); `a` in the frame's header is a
//! number by which the answer is known on this connection. What the origin may still repeat it
//! says in [`OPEN`], so that the owner can forget all other identities.

use rkyv::{Archive, Deserialize, Serialize};

/// Origin → owner, first frame. Archive: [`Hello`].
pub const HELLO: u8 = 1;
/// Origin → owner. Archive: [`crate::message::Envelope`]; raw: content.
pub const HANDOFF: u8 = 2;
/// Like [`HANDOFF`], of a share that the origin has on disk and will free: taken although
/// limits of room are reached, for the machine holds it either way. It may have been offered
/// before.
pub const HANDOFF_KEPT: u8 = 9;
/// Owner → origin: durable. No archive; `a` as asked.
pub const ACCEPTED: u8 = 3;
/// Owner → origin: not taken, keep it. `a` as asked; archive: [`Refusal`].
pub const REFUSED: u8 = 4;
/// New owner → owner before: archive [`Claim`], answered by [`RELEASE`]s until nothing is
/// busy.
pub const CLAIM: u8 = 5;
/// Owner before → new owner: archive [`Release`].
pub const RELEASE: u8 = 8;
/// Owner of a domain → all others: archive [`RolledUp`].
pub const ROLLED_UP: u8 = 10;
/// Origin → owner: archive [`Open`].
pub const OPEN: u8 = 11;
/// Origin → owner: a place under a limit over all shards, for which the hearing shard has a request in the ledger, may be free; a mark on the
/// request says which ([`crate::ledger::requests`]). No archive.
pub const PLACE_FREE: u8 = 12;
/// Client → worker: archive [`Inject`], raw: message. Answered by [`INJECTED`].
pub const INJECT: u8 = 6;
/// Worker → client: archive [`Injected`].
pub const INJECTED: u8 = 7;

/// First frame of a connection.
#[derive(Debug, Clone, Archive, Serialize, Deserialize)]
pub struct Hello {
    /// Who speaks, and what for.
    pub from: Speaker,
    /// Shard map epoch in force at a shard that speaks; 0 for a client.
    pub epoch: u64,
}

/// Who opened a connection, and what for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Speaker {
    /// A client, which submits messages ([`INJECT`]).
    Client,
    /// The shard that asks what it owns from now on ([`CLAIM`]).
    Claimant(u8),
    /// The shard that offers shares ([`HANDOFF`], [`HANDOFF_KEPT`]). It does so on one connection at a time.
    Origin(Origin),
}

/// A shard that offers shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Origin {
    /// Its number.
    pub shard: u8,
    /// When it opened the connection, nanoseconds since the machine was booted: of several the latest is the one in use.
    pub opened_ns: i64,
}

/// Why an owner does not take a handoff now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Refusal {
    /// No room: disk or recipients limit.
    Full,
    /// Stopping.
    Stopping,
    /// The spool failed.
    Spool,
    /// The envelope does not validate.
    Invalid,
    /// An earlier offer of it is being stored, or may be on disk: ask again.
    InProgress,
    /// The shard owns nothing any more: it does not have the share and never will.
    Retired,
}

/// What an origin may still repeat to one owner: no other identity of it comes again.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Open {
    /// The lowest sequence of each of its incarnations that has any; that of the process is always
    /// among them.
    pub from: Vec<(u32, u64)>,
}

/// Asks which of the destinations that moved to the speaker still have connections.
#[derive(Debug, Clone, Archive, Serialize, Deserialize)]
pub struct Claim {
    /// Epoch of the shard map that moved them.
    pub epoch: u64,
}

/// What the owner before still holds of the destinations that moved to one shard. All
/// others are free, and the new owner may connect.
#[derive(Debug, Clone, Archive, Serialize, Deserialize)]
pub struct Release {
    /// Destinations that still have connections here; `None` while more paths follow.
    pub busy: Option<Vec<String>>,
    /// Clocks and rate windows of paths that have none.
    pub paths: Vec<PathState>,
}

/// What a path carries along when its destination moves or its shard restarts, so that
/// limits hold at the receiver.
#[derive(Debug, Clone, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct PathState {
    /// Destination.
    pub destination: String,
    /// Virtual MTA.
    pub vmta: String,
    /// Its rate windows.
    pub windows: Windows,
    /// When the queue may be tried again, Unix milliseconds; 0 when it may.
    pub retry_at_unix_ms: i64,
    /// Position in `retry-after`.
    pub retry_step: u32,
    /// An operator set the mode. It lies where states had nothing before.
    pub forced: bool,
    /// When its backoff ends, Unix milliseconds; 0 where it is in none.
    pub backoff_until_unix_ms: i64,
    /// Source addresses with windows of their own, or that are left out.
    pub sources: Vec<SourceState>,
}

impl crate::stored::Stored for PathState {
    const WHAT: &'static str = "the state of a path";
    const VERSION: u8 = 1;
}

/// One source address of a path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct SourceState {
    /// The address.
    pub ip: String,
    /// As [`Windows::Until`]: recipients, bytes, connections.
    pub until_ns: [i64; 3],
    /// Not used before this time, Unix milliseconds.
    pub disabled_until_unix_ms: i64,
}

/// Rate windows of a path. Append only: spools hold them.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Windows {
    /// When the next event is due by the pace of each, Unix nanoseconds: recipients, recipients
    /// in an hour, bytes, connections.
    Until([i64; 4]),
    /// The shard died and only knows that there were some: the most that may have been is
    /// assumed.
    InUse,
    /// The same, and that they stood so when one transaction had taken much at once.
    InUseAfter([i64; 4]),
}

impl Default for Windows {
    fn default() -> Self {
        Windows::Until([0; 4])
    }
}

/// Mail for a domain is queued under another destination, for its mail hosts are shared.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct RolledUp {
    /// The domain.
    pub domain: String,
    /// The queue that it joins.
    pub queue: String,
}

/// A message from `sluice inject`.
#[derive(Debug, Clone, Archive, Serialize, Deserialize)]
pub struct Inject {
    /// Reverse-path; empty for null.
    pub sender: String,
    /// Recipients; taken from the header when empty.
    pub recipients: Vec<String>,
    /// Virtual MTA or pool; empty for none.
    pub vmta: String,
}

/// Outcome of [`Inject`].
#[derive(Debug, Clone, Archive, Serialize, Deserialize)]
pub enum Injected {
    /// Durable; the message's identity.
    Queued(String),
    /// Refused with a reply like SMTP's.
    Refused(String),
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// [`PathState`] before it told who set the mode.
    #[derive(Archive, Serialize, Deserialize)]
    struct Before {
        destination: String,
        vmta: String,
        windows: Windows,
        retry_at_unix_ms: i64,
        retry_step: u32,
        backoff_until_unix_ms: i64,
        sources: Vec<SourceState>,
    }

    #[test]
    fn a_state_that_was_kept_before_is_read_and_was_set_by_nobody() {
        let of = |ip: &str| SourceState { ip: ip.to_owned(), until_ns: [1, 2, 3], disabled_until_unix_ms: 4 };
        let before = Before {
            destination: "d.test".into(),
            vmta: "a-name-that-lies-out-of-line".into(),
            windows: Windows::InUse,
            retry_at_unix_ms: -1,
            retry_step: u32::MAX,
            backoff_until_unix_ms: -1,
            sources: vec![of("192.0.2.1")],
        };
        let kept = rkyv::to_bytes::<rkyv::rancor::Error>(&before).unwrap();
        let now = rkyv::from_bytes::<PathState, rkyv::rancor::Error>(&kept).unwrap();
        assert_eq!((now.vmta, now.retry_step, now.forced), (before.vmta, u32::MAX, false));
        assert_eq!((now.retry_at_unix_ms, now.backoff_until_unix_ms, now.sources), (-1, -1, before.sources));
    }

    #[test]
    fn states_of_paths_lie_in_spools_as_they_always_did() {
        let of = |ip: &str| SourceState { ip: ip.to_owned(), until_ns: [1, 2, 3], disabled_until_unix_ms: 4 };
        let of_windows = |windows| PathState {
            destination: "d.test".into(),
            vmta: "a-name-that-lies-out-of-line".into(),
            windows,
            retry_at_unix_ms: 0x0102_0304_0506_0708,
            retry_step: 0x090a_0b0c,
            forced: true,
            backoff_until_unix_ms: -2,
            sources: vec![of("192.0.2.1"), of("2001:db8::1")],
        };
        crate::assert_layout!(of_windows(Windows::Until([5, 6, 7, 8])), 1: "\
            612d6e616d652d746861742d6c6965732d6f75742d6f662d6c696e653139322e302e322e31323030313a6462383a3a3189000000ecffffff
            01000000000000000200000000000000030000000000000004000000000000008b000000cdffffff01000000000000000200000000000000
            03000000000000000400000000000000642e74657374ffff9c00000078ffffff000000000000000005000000000000000600000000000000
            0700000000000000080000000000000008070605040302010c0b0a0901000000feffffffffffffff60ffffff02000000");
        crate::assert_layout!(of_windows(Windows::InUse), 1: "\
            612d6e616d652d746861742d6c6965732d6f75742d6f662d6c696e653139322e302e322e31323030313a6462383a3a3189000000ecffffff
            01000000000000000200000000000000030000000000000004000000000000008b000000cdffffff01000000000000000200000000000000
            03000000000000000400000000000000642e74657374ffff9c00000078ffffff010000000000000000000000000000000000000000000000
            0000000000000000000000000000000008070605040302010c0b0a0901000000feffffffffffffff60ffffff02000000");
        crate::assert_layout!(of_windows(Windows::InUseAfter([9, 10, 11, 12])), 1: "\
            612d6e616d652d746861742d6c6965732d6f75742d6f662d6c696e653139322e302e322e31323030313a6462383a3a3189000000ecffffff
            01000000000000000200000000000000030000000000000004000000000000008b000000cdffffff01000000000000000200000000000000
            03000000000000000400000000000000642e74657374ffff9c00000078ffffff020000000000000009000000000000000a00000000000000
            0b000000000000000c0000000000000008070605040302010c0b0a0901000000feffffffffffffff60ffffff02000000");
    }
}
