//! Supervisor ⇄ worker.
//!
//! The worker connects to `run/supervisor.sock` and says [`Hello`]; the supervisor answers
//! [`Welcome`] with the snapshot, the ledger and the listening sockets. A new supervisor
//! that finds workers alive gets the same descriptors back from them ([`ToSupervisor::Return`]).

#![allow(missing_docs)] // for what derive(Archive) generates beside the documented types

use rkyv::{Archive, Deserialize, Serialize};

use crate::operator::{Listed, Listing, MessageRow, WhyRow};
use crate::queue_orders::{Deletion, Given, QueueOrder, QueuePattern, Switches};
use crate::shard_map::ShardMap;

/// Kind of the only frame from a worker: archive [`ToSupervisor`].
pub const TO_SUPERVISOR: u8 = 1;
/// Kind of the only frame to a worker: archive [`ToWorker`].
pub const TO_WORKER: u8 = 2;

/// Worker → supervisor.
#[derive(Debug, Clone, Archive, Serialize, Deserialize)]
pub enum ToSupervisor {
    /// First frame.
    Hello(Hello),
    /// Second frame of a worker that already serves: snapshot, ledger, then listeners as
    /// descriptors, the listeners named by their addresses.
    Return {
        /// Addresses of the listeners, in the order of their descriptors.
        listeners: Vec<String>,
        /// Accounting files in use.
        accounting: Vec<AccountingFile>,
        /// The shard map in force.
        map: ShardMap,
    },
    /// Recovered and serving.
    Serving,
    /// Alive; twice a second.
    Heartbeat(Heartbeat),
    /// A snapshot is in force, or why it is not.
    Reloaded {
        /// The snapshot's generation.
        generation: u64,
        /// Why it was refused.
        error: Option<String>,
    },
    /// Answer to [`ToWorker::Rows`].
    Rows {
        /// The request's number.
        request: u64,
        /// Its rows.
        rows: Rows,
    },
    /// Accounting has switched and everything written to the old file is on disk.
    AccountingSwitched {
        /// Number of the switch.
        switch: u64,
    },
    /// A program is to be given mail (`type pipe`); the content comes along as a sealed descriptor.
    RunProgram {
        /// Number for the answer.
        number: u64,
        /// The `command` of the configuration.
        command: String,
        /// Its words with macros replaced, the program first.
        words: Vec<String>,
    },
    /// Stopped taking work; the process exits when everything is on disk.
    Leaving,
    /// Everything that happened is on disk and in accounting files; the process exits next.
    Complete,
}

/// How a program ended that was given mail.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum ProgramEnd {
    /// With an exit code.
    Code(i32),
    /// By a signal.
    Signal,
    /// It was not started, or nobody knows how it ended: why.
    Unknown(String),
}

/// The first frame.
#[derive(Debug, Clone, Archive, Serialize, Deserialize)]
pub struct Hello {
    /// Shard number.
    pub shard: u8,
    /// Process id.
    pub pid: i32,
    /// Program version.
    pub version: String,
    /// Generation of the snapshot in force; 0 when there is none yet.
    pub generation: u64,
    /// Already serving.
    pub serving: bool,
    /// CPU that the process is pinned to.
    pub cpu: u32,
}

/// Statistics of one shard.
#[derive(Debug, Clone, Default, Archive, Serialize, Deserialize)]
pub struct Heartbeat {
    /// `recovering`, `serving`, `draining`.
    pub state: String,
    /// Recipients queued.
    pub recipients: u64,
    /// Messages queued.
    pub messages: u64,
    /// Bytes of content queued.
    pub queued_bytes: u64,
    /// Destinations with mail.
    pub domains: u64,
    /// Outbound connections.
    pub connections_out: u32,
    /// Inbound sessions.
    pub connections_in: u32,
    /// Shares kept under handoff.
    pub handoffs: u64,
    /// Shards that may have a share of this one and have not answered for it; `None` while it is not known.
    pub shares_open_at: Option<Vec<u8>>,
    /// Recipients, messages, bytes accepted since start.
    pub received: [u64; 3],
    /// Recipients, messages, bytes delivered since start.
    pub delivered: [u64; 3],
    /// Recipients bounced since start.
    pub bounced: u64,
    /// Attempts deferred since start.
    pub deferred: u64,
    /// Sessions that ended for a reply about the order or the form of our commands, since start.
    pub out_of_step: u64,
    /// Group commits since start.
    pub syncs: u64,
    /// Bytes written to the segment log since start.
    pub log_bytes: u64,
    /// Part of the time that the worker had work of late, in a thousand; 0 where it is not measured
    /// (`spread auto`).
    pub busy_permille: u32,
    /// The destination that most recipients were attempted at of late, and its part of all.
    pub hottest: Option<(String, u32)>,
    /// Epoch of the shard map when every destination that it moved has been released by its
    /// owner before; 0 until then.
    pub settled_epoch: u64,
    /// Since when (Unix milliseconds) and why new mail is refused.
    pub refusal: Option<(i64, String)>,
    /// Nothing is delivered, because what comes of it cannot be written.
    pub held: bool,
    /// Since when (Unix milliseconds) and why rows wait for accounting files.
    pub accounting_behind: Option<(i64, String)>,
    /// How long the worker's loop was held.
    pub holds: Holds,
    /// Panics since start: each ended a task and nothing else.
    pub panics: u64,
}

/// How often and how long a worker's loop was held by one piece of work.
#[derive(Debug, Clone, Default, Archive, Serialize, Deserialize)]
pub struct Holds {
    /// Times that it was held longer than a piece of work may, since start.
    pub count: u64,
    /// CPU time of the longest, milliseconds; 0 for none.
    pub cpu_ms: u32,
    /// How long that took, milliseconds.
    pub ms: u32,
    /// The work that it was.
    pub by: String,
}

/// An accounting file that all workers append to.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct AccountingFile {
    /// The `<acct-file>`, whatever the configuration has become since it was begun.
    pub of: crate::snapshot::Accounting,
    /// The file now written.
    pub path: String,
}

/// Supervisor → worker.
#[derive(Debug, Clone, Archive, Serialize, Deserialize)]
pub enum ToWorker {
    /// Answer to [`Hello`]; descriptors: snapshot, ledger, then the listeners.
    Welcome(Welcome),
    /// Answer to the hello of a worker that serves already: adopted, go on.
    Adopted,
    /// New configuration: descriptors are the snapshot, then the listeners that are new.
    Reload {
        /// Every listener that shall be served, by address.
        listeners: Vec<String>,
        /// Those whose descriptors come along, in order.
        added: Vec<String>,
    },
    /// A new shard map; hand over what is no longer owned.
    Map(ShardMap),
    /// Write accounting to these files from now on, acknowledge when the old are synced.
    SwitchAccounting {
        /// Number of the switch.
        switch: u64,
        /// The new files.
        files: Vec<AccountingFile>,
    },
    /// Report live state.
    Rows {
        /// Number for the answer.
        request: u64,
        /// What to report.
        what: RowsOf,
    },
    /// Answer to [`ToSupervisor::RunProgram`].
    ProgramEnded {
        /// The request's number.
        number: u64,
        /// How it ended.
        how: ProgramEnd,
    },
    /// Finish transactions within the grace time, flush, exit.
    Stop {
        /// Milliseconds.
        grace_ms: u64,
    },
}

/// What a worker starts with.
#[derive(Debug, Clone, Archive, Serialize, Deserialize)]
pub struct Welcome {
    /// The shard map.
    pub map: ShardMap,
    /// Addresses of the listeners, in the order of their descriptors.
    pub listeners: Vec<String>,
    /// Accounting files.
    pub accounting: Vec<AccountingFile>,
    /// Folders of files that the shard's processes before may have written rows to.
    pub accounting_before: Vec<String>,
}

/// Live state that a worker can report.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum RowsOf {
    /// A page of a listing.
    Page {
        /// Which.
        of: Listed,
        /// See [`crate::operator::Place`].
        from: u64,
    },
    /// `pause job`, `resume job`
    PauseJob {
        /// x-job
        job: String,
        /// Paused from now on.
        paused: bool,
        /// The user who says so.
        by: String,
    },
    /// `why MESSAGE-ID`
    WhyMessage([u8; 16]),
    /// `show message`
    Message([u8; 16]),
    /// `show message --content`
    MessageContent([u8; 16]),
    /// What came of an order, which is carried out first.
    Ordered {
        /// The order.
        order: QueueOrder,
        /// The user who gives it.
        by: String,
    },
    /// What was deleted of the next messages, and where to go on.
    Delete {
        /// Which.
        what: Deletion,
        /// Number of the last message of the request before.
        after: Option<u64>,
    },
    /// What was rerouted of the next messages, and where to go on.
    Reroute {
        /// Which, and where to.
        order: RerouteOrder,
        /// Number of the last message of the request before.
        after: Option<u64>,
    },
    /// What operators paused and disabled.
    Switches,
    /// A shard that is new takes over what others know.
    TakeSwitches(AllSwitches),
}

/// `sluice reroute`
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct RerouteOrder {
    /// What waits in these queues.
    pub of: QueuePattern,
    /// Of this job only.
    pub job: Option<String>,
    /// Virtual MTA or pool.
    pub to: String,
    /// Nothing is moved.
    pub dry_run: bool,
}

/// Mail that went, or would go, from one queue to another.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Sent {
    /// The queue that it was in.
    pub from: String,
    /// The queue that it goes to.
    pub to: String,
    /// How many recipients.
    pub recipients: u64,
}

/// What came of rerouting a part of the mail.
#[derive(Debug, Clone, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Rerouted {
    /// What moved.
    pub moves: Vec<Sent>,
    /// Recipients that are where they should go.
    pub stays: u64,
    /// Recipients that are being delivered, or on their way to another shard; known with the first part.
    pub in_delivery: u64,
    /// Number of the last message that was looked at, if there are more.
    pub after: Option<u64>,
}

/// What operators paused and disabled; every shard knows the same.
#[derive(Debug, Clone, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct AllSwitches {
    /// Of queues, paths and source addresses.
    pub queues: Switches,
    /// Paused jobs.
    pub jobs: Vec<String>,
    /// The users that gave these orders, by the name that a shard notes them under.
    pub given: Vec<(String, Given)>,
}

/// Rows of live state.
#[derive(Debug, Clone, Archive, Serialize, Deserialize)]
pub enum Rows {
    /// `delete`
    Deleted {
        /// Recipients.
        recipients: u64,
        /// Number of the last message that was looked at, if there are more.
        after: Option<u64>,
    },
    /// `reroute`
    Rerouted(Rerouted),
    /// A page of a listing.
    Page {
        /// Its rows.
        rows: Listing,
        /// Where the next page begins; `None` behind the last.
        next: Option<u64>,
    },
    /// `why MESSAGE-ID`
    Why(Vec<WhyRow>),
    /// `show message`
    Message(Vec<MessageRow>),
    /// `show message --content`: the message as it would be sent; `None` where it is not here.
    MessageContent(Option<Vec<u8>>),
    /// What operators paused and disabled.
    Switches(AllSwitches),
    /// An order was carried out.
    Done {
        /// Queues that match; paths for modes and sources, recipients for jobs.
        matched: u64,
        /// Those where something changed.
        changed: u64,
        /// Names of those, the first of them.
        names: Vec<String>,
        /// What is kept for queues and paths to come is another thing than before.
        kept: bool,
    },
    /// An order could not be carried out.
    Refused(String),
}
