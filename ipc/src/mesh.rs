//! Worker ⇄ worker: handoff of accepted mail to the shard that owns its destination.
//!
//! The connecting side is the *origin*, the listening side the *owner*. A handoff carries
//! its identity in the frame's header: `a` is the origin's sequence number, `b` the lowest
//! sequence that the origin may still repeat, so that the owner can forget older ones.

use rkyv::{Archive, Deserialize, Serialize};

/// Origin → owner, first frame. Archive: [`Hello`].
pub const HELLO: u8 = 1;
/// Origin → owner. Archive: [`crate::message::Envelope`]; raw: content.
pub const HANDOFF: u8 = 2;
/// Owner → origin: durable. No archive; `a` is the sequence.
pub const ACCEPTED: u8 = 3;
/// Owner → origin: not taken, keep it. `a` is the sequence; archive: [`Refusal`].
pub const REFUSED: u8 = 4;
/// Origin → owner: archive [`Release`]; the origin has stopped delivering to a destination.
pub const RELEASE: u8 = 5;
/// Client → worker: archive [`Inject`], raw: message. Answered by [`INJECTED`].
pub const INJECT: u8 = 6;
/// Worker → client: archive [`Injected`].
pub const INJECTED: u8 = 7;

/// Who speaks.
#[derive(Debug, Clone, Archive, Serialize, Deserialize)]
pub struct Hello {
    /// The origin's shard number; `None` for a client of [`INJECT`].
    pub shard: Option<u8>,
    /// Shard map epoch in force at the origin.
    pub epoch: u64,
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
}

/// The origin moved everything of these destinations, and their rate windows.
#[derive(Debug, Clone, Archive, Serialize, Deserialize)]
pub struct Release {
    /// Epoch of the shard map that caused the move.
    pub epoch: u64,
    /// Rate windows that go with the mail.
    pub windows: Vec<Window>,
    /// Nothing more follows for this epoch.
    pub done: bool,
}

/// The state of one path's rate limit.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Window {
    /// `destination/vmta`
    pub path: String,
    /// Theoretical arrival time of the next recipient, Unix nanoseconds.
    pub tat_unix_ns: i64,
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
