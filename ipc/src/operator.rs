//! Operator's client ⇄ supervisor, over `run/control.sock`.
//!
//! An answer for each request, one after the other. Rows carry the names that `--json` prints.

#![allow(missing_docs)] // for what derive(Archive) generates beside the documented types

use rkyv::{Archive, Deserialize, Serialize};

use crate::control::RerouteOrder;
use crate::queue_orders::{Deletion, QueueOrder, QueuePattern};

/// Kind of a request: archive [`Request`].
pub const REQUEST: u8 = 1;
/// Kind of an answer: archive [`Answer`].
pub const ANSWER: u8 = 2;

/// What an operator asks.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Request {
    /// `status`
    Status,
    /// `show shards`, `shard list`
    Shards,
    /// A page of a listing.
    Page {
        /// Which.
        of: Listed,
        /// Where it begins; what the last answer said.
        at: Place,
    },
    /// `pause job`, `resume job`
    PauseJob {
        /// x-job
        job: String,
        /// Paused from now on.
        paused: bool,
    },
    /// `shard restart N`
    ShardRestart {
        /// Shard number.
        shard: u8,
        /// Answer when it serves again.
        wait: bool,
    },
    /// `scale N`
    Scale {
        /// Number of workers.
        workers: u32,
        /// Answer when all mail has moved.
        wait: bool,
    },
    /// `reload`
    Reload {
        /// Answer when every worker has taken it.
        wait: bool,
        /// Say what would change, and change nothing.
        dry_run: bool,
    },
    /// `config explain`
    Explain {
        /// Domain.
        destination: String,
        /// Virtual MTA or pool; empty for `{default}`.
        via: String,
        /// The only directive asked about; empty for all.
        only: String,
        /// Look up the domain's mail hosts, to say whether its mail rolls up.
        lookup: bool,
    },
    /// `config explain --source`
    ExplainSource {
        /// Address of a client, name of a `<source>`, or both.
        who: String,
        /// The only directive asked about; empty for all.
        only: String,
    },
    /// `config diff`: these files against what is in force.
    Diff {
        /// What was read with the rights of whoever asks.
        files: GivenFiles,
        /// Answer as JSON.
        json: bool,
    },
    /// `show vmta-settings`
    VmtaSettings {
        /// Name of a virtual MTA.
        vmta: String,
    },
    /// `config log`
    Configurations,
    /// `config log --diff`: what a configuration changed.
    ConfigurationChanges {
        /// Its number.
        number: u64,
        /// Answer as JSON.
        json: bool,
    },
    /// `config rollback`: the files are those of an earlier configuration again.
    Rollback {
        /// Its number.
        number: u64,
    },
    /// `why`: the id of a message.
    WhyMessage([u8; 16]),
    /// `show message`
    Message([u8; 16]),
    /// `show message --content`: for those who may read mail.
    MessageContent([u8; 16]),
    /// `pause queue`, `set queue`, `schedule`, `disable source` and their like.
    Order(QueueOrder),
    /// `delete`
    Delete(Deletion),
    /// `reroute`
    Reroute(RerouteOrder),
    /// `stop`
    Stop {
        /// Answer when all workers have ended.
        wait: bool,
    },
    /// `rotate acct`
    RotateAccounting {
        /// Path of an `<acct-file>`; empty for all.
        file: String,
    },
    /// `suppress add`
    Suppress(Vec<SuppressionRow>),
    /// `suppress remove`
    Unsuppress {
        /// Addresses.
        addresses: Vec<String>,
        /// List; empty for all that they are in.
        list: String,
    },
    /// `suppress list` and `suppress export`
    Suppressed {
        /// List; empty for all.
        list: String,
        /// The only address asked for; empty for all.
        address: String,
        /// Where the page begins; 0 for the first, then what the last answer said.
        after: u64,
        /// Rows to answer, about.
        most: u32,
    },
    /// `suppress import`: rows of an import of this connection, in force with the last.
    ImportSuppressed {
        /// Rows.
        rows: Vec<SuppressionRow>,
        /// There are no more.
        last: bool,
    },
    /// Where a worker takes injected mail.
    InjectSocket,
}

/// A configuration as an operator's command has read it: the server reads no file for somebody who might not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct GivenFiles {
    /// The main file, and those that it includes.
    pub files: Vec<GivenFile>,
    /// What each `include` stands for.
    pub includes: Vec<GivenInclude>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct GivenFile {
    /// Its path as the `include` gave it, of the main file the absolute one.
    pub path: String,
    /// Its text.
    pub text: String,
}

/// One `include`.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct GivenInclude {
    /// Its path, behind the folder of the file that it stands in.
    pub pattern: String,
    /// Paths of the files, in order.
    pub files: Vec<String>,
}

/// Live state that is answered in pages: a node may have any number of queues, and no frame does.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Listed {
    /// `show queues`: those that match.
    Queues(QueuePattern),
    /// `show paths`
    Paths,
    /// `show pools`
    Pools,
    /// `show jobs`
    Jobs,
    /// `why QUEUE`
    Why(QueuePattern),
    /// `show disabled`: those that match.
    Disabled(QueuePattern),
    /// `show orders`: those that match.
    Orders(QueuePattern),
}

/// Where a page begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Place {
    /// In this shard, or where it is gone in the next.
    pub shard: u8,
    /// Behind what was listed there, in the shard's own numbers; 0 for its first page.
    pub from: u64,
}

/// Rows of a page.
#[derive(Debug, Clone, Archive, Serialize, Deserialize)]
pub enum Listing {
    /// `show queues`
    Queues(Vec<QueueRow>),
    /// `show paths`
    Paths(Vec<PathRow>),
    /// `show pools`
    Pools(Vec<PoolRow>),
    /// `show jobs`
    Jobs(Vec<JobRow>),
    /// `why`
    Why(Vec<WhyRow>),
    /// `show disabled`
    Disabled(Vec<DisabledRow>),
    /// `show orders`
    Orders(Vec<OrderRow>),
}

/// What the supervisor answers.
#[derive(Debug, Clone, Archive, Serialize, Deserialize)]
pub enum Answer {
    /// Done; a sentence for the operator.
    Done(String),
    /// The operation failed or is refused.
    Failed(String),
    /// The request is wrong (exit code 2), such as a configuration with errors.
    Wrong(String),
    /// `status`, as JSON text in PowerMTA's shape; `config explain`, as JSON text.
    Status(String),
    /// `show shards`
    Shards(Vec<ShardRow>),
    /// A page of a listing.
    Page {
        /// Its rows; there may be none though there are more.
        rows: Listing,
        /// Where the next page begins; `None` behind the last.
        next: Option<Place>,
    },
    /// `why MESSAGE-ID`
    Why(Vec<WhyRow>),
    /// `show message`: a row for each record of it.
    Message(Vec<MessageRow>),
    /// `show message --content`
    MessageContent(Vec<u8>),
    /// Path of a worker's socket.
    Socket(String),
    /// A page of the suppression lists.
    Suppressed {
        /// Entries.
        rows: Vec<SuppressionRow>,
        /// Where the next page begins; `None` behind the last.
        next: Option<u64>,
    },
}

/// An address in a suppression list.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, Archive, Serialize, Deserialize)]
pub struct SuppressionRow {
    /// In lower case.
    pub address: String,
    /// Name of the list.
    pub list: String,
    /// Why.
    pub reason: String,
    /// Who added it: `policy`, `operator`, `import`, or what an import says.
    pub source: String,
    /// When; 0 lets the server say.
    pub added_unix_s: u32,
    /// When it ends; 0 for never.
    pub expires_unix_s: u32,
}

/// One row of `show shards`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, Archive, Serialize, Deserialize)]
pub struct ShardRow {
    /// Shard number.
    pub shard: u8,
    /// Process id; 0 while down.
    pub pid: i32,
    /// CPU that it is pinned to.
    pub cpu: u32,
    /// `starting`, `recovering`, `serving`, `draining`, `waiting` (for its restart), `hung`.
    pub state: String,
    /// Restarts since the supervisor started.
    pub restarts: u32,
    /// Seconds since the process started.
    pub uptime_s: u64,
    /// Resident memory, bytes.
    pub rss_bytes: u64,
    /// Recipients queued.
    pub recipients: u64,
    /// Outbound connections.
    pub connections_out: u32,
    /// Inbound sessions.
    pub connections_in: u32,
    /// Shares kept under handoff for other shards.
    pub handoffs: u64,
    /// Recipients delivered since start.
    pub delivered: u64,
    /// Group commits since start.
    pub syncs: u64,
    /// Bytes written to the segment log since start.
    pub log_bytes: u64,
}

/// One row of `show queues`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, Archive, Serialize, Deserialize)]
pub struct QueueRow {
    /// `destination/vmta`
    pub queue: String,
    /// Destination.
    pub destination: String,
    /// Virtual MTA; empty when a pool's queue.
    pub vmta: String,
    /// Pool; empty when a virtual MTA's queue.
    pub pool: String,
    /// Shard.
    pub shard: u8,
    /// Recipients waiting.
    pub recipients: u64,
    /// Kilobytes of content waiting, counted once a message.
    pub kbytes: u64,
    /// Open connections of its paths.
    pub connections: u32,
    /// `normal` or `backoff`.
    pub mode: String,
    /// Paused by an operator: the queue, or all of its paths.
    pub paused: bool,
    /// An operator set the mode of some of its paths.
    pub forced: bool,
    /// Source addresses that are not used at some of its paths.
    pub disabled_sources: Vec<String>,
    /// Of a pool's queue the members that have a path here, with the mode of each.
    pub members: Vec<MemberRow>,
    /// When the queue is tried again, `YYYY-MM-DD HH:MM:SS` local; empty when it is runnable.
    pub next_retry: String,
    /// The last failure; empty for none.
    pub last_error: String,
    /// Age of the oldest recipient, seconds.
    pub oldest_s: u64,
}

/// A member of a pool in a row of `show queues`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, Archive, Serialize, Deserialize)]
pub struct MemberRow {
    /// Virtual MTA.
    pub vmta: String,
    /// `normal`, `backoff`, or the step on the way back.
    pub mode: String,
    /// An operator set it.
    pub forced: bool,
    /// Paused by an operator.
    pub paused: bool,
}

impl QueueRow {
    /// Adds another domain's part of a queue that domains roll up to. Its paths are the same.
    pub fn join(&mut self, part: QueueRow) {
        self.recipients += part.recipients;
        self.kbytes += part.kbytes;
        self.oldest_s = self.oldest_s.max(part.oldest_s);
        self.paused &= part.paused;
        self.forced |= part.forced;
        for ip in part.disabled_sources {
            if !self.disabled_sources.contains(&ip) {
                self.disabled_sources.push(ip);
            }
        }
        // It goes on when the first of its domains may.
        let sooner = part.next_retry.is_empty() || part.next_retry < self.next_retry;
        if !self.next_retry.is_empty() && sooner {
            self.next_retry = part.next_retry;
        }
        if self.last_error.is_empty() {
            self.last_error = part.last_error;
        }
    }
}

/// One row of `show paths`.
#[derive(Debug, Clone, PartialEq, serde::Serialize, Archive, Serialize, Deserialize)]
pub struct PathRow {
    /// `destination/vmta`
    pub path: String,
    /// Destination.
    pub destination: String,
    /// Virtual MTA.
    pub vmta: String,
    /// Shard.
    pub shard: u8,
    /// Open connections.
    pub connections: u32,
    /// `normal`, `backoff`, or the step on the way back.
    pub mode: String,
    /// An operator set it.
    pub forced: bool,
    /// Paused by an operator.
    pub paused: bool,
    /// Source addresses that are not used here.
    pub disabled_sources: Vec<String>,
    /// Share of recent attempts that succeeded, 0 to 1.
    pub health: f32,
    /// `max-smtp-out` in force; `None` when unlimited.
    pub max_smtp_out: Option<u32>,
    /// `max-msg-rate` in force; empty when unlimited.
    pub max_msg_rate: String,
    /// `max-msg-per-connection` in force; 0 when unlimited.
    pub max_msg_per_connection: u32,
}

/// One row of `show pools`: a member at a destination.
#[derive(Debug, Clone, PartialEq, serde::Serialize, Archive, Serialize, Deserialize)]
pub struct PoolRow {
    /// Pool.
    pub pool: String,
    /// Destination.
    pub destination: String,
    /// Member.
    pub vmta: String,
    /// Shard.
    pub shard: u8,
    /// Recipients that wait in the pool's queue.
    pub recipients: u64,
    /// `weight` of the member.
    pub weight: u32,
    /// What it gets of the pool's mail, by weight and health.
    pub share_percent: u32,
    /// Recent attempts: 1 when all were taken, 0 when none.
    pub health: f32,
    /// Receivers speak ill of it: it is only probed.
    pub probed: bool,
    /// Open connections.
    pub connections: u32,
    /// `normal`, `backoff`, or the step on the way back.
    pub mode: String,
    /// An operator set it.
    pub forced: bool,
    /// Paused by an operator.
    pub paused: bool,
    /// Source addresses that are not used there.
    pub disabled_sources: Vec<String>,
    /// The last failure; empty for none.
    pub last_error: String,
}

/// One row of `show disabled`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, Archive, Serialize, Deserialize)]
pub struct DisabledRow {
    /// Source address that is not used.
    pub source: String,
    /// Where: a path, or the pattern of an order.
    pub queue: String,
    /// Shard.
    pub shard: u8,
    /// It holds for every queue of that pattern, also for those to come.
    pub is_order: bool,
    /// Since when, `YYYY-MM-DD HH:MM:SS` local; empty where that is not known.
    pub since: String,
    /// Until when, likewise; empty until it is enabled.
    pub until: String,
    /// What a receiver said, or that an operator did it; empty where that is not known.
    pub why: String,
}

/// One row of `show orders`: what an operator ordered, and did not take back.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, Archive, Serialize, Deserialize)]
pub struct OrderRow {
    /// The words of the command.
    pub order: String,
    /// What it is for: the pattern as it was given, a job, or for a mode a path.
    pub of: String,
    /// The source address that it is about; empty for none.
    pub source: String,
    /// Since when, `YYYY-MM-DD HH:MM:SS` local; empty where that is not known.
    pub since: String,
    /// Until when, likewise; empty until it is taken back.
    pub until: String,
    /// The user who gave it; empty where that is not known.
    pub by: String,
    /// The command that takes it back, without the program's name.
    pub taken_back_by: String,
}

/// One row of `show jobs`.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, Archive, Serialize, Deserialize)]
pub struct JobRow {
    /// x-job
    pub job: String,
    /// Destinations that it has mail for.
    pub domains: u64,
    /// Recipients queued.
    pub recipients: u64,
    /// Kilobytes of content queued, counted once a message.
    pub kbytes: u64,
    /// Paused by an operator.
    pub paused: bool,
}

/// `show message`
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, Archive, Serialize, Deserialize)]
pub struct MessageRow {
    /// Its id.
    pub message: String,
    /// When it was accepted, `YYYY-MM-DD HH:MM:SS` local.
    pub received: String,
    /// Envelope sender; empty for reports.
    pub sender: String,
    /// x-job
    pub job: String,
    /// `ENVID=` or x-envid.
    pub envelope_id: String,
    /// Bytes of content, signatures not counted.
    pub size: u64,
    /// How it came in: `smtp`, `api`, `report`.
    pub source: String,
    /// Address of the submitter; empty for other than SMTP.
    pub source_ip: String,
    /// EHLO name of the submitter.
    pub source_name: String,
    /// User that the submitter authenticated as; empty for none.
    pub smtp_user: String,
    /// `7bit` or `8bitmime`.
    pub body: String,
    /// SMTPUTF8 was given.
    pub smtputf8: bool,
    /// `RET=`; empty when not given.
    pub ret: String,
    /// Its recipients.
    pub recipients: Vec<MessageRecipientRow>,
}

/// A recipient in `show message`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, Archive, Serialize, Deserialize)]
pub struct MessageRecipientRow {
    /// Address.
    pub recipient: String,
    /// `waits`, `paused`, `in delivery`, `kept for shard N` (which is down, and takes it later), `ended`.
    pub state: String,
    /// The queue that it waits in, or went by.
    pub queue: String,
    /// Shard.
    pub shard: u8,
    /// Virtual MTA or pool chosen.
    pub vmta: String,
    /// 0 to 100.
    pub priority: u8,
    /// Attempts made so far, up to 255.
    pub attempts: u8,
    /// The last reply to it; empty for none.
    pub last_reply: String,
    /// When it is tried next, at the earliest; empty when it may be tried now.
    pub next_attempt: String,
    /// When it is given up.
    pub expires: String,
    /// `NOTIFY=`; empty when not given.
    pub notify: String,
    /// `ORCPT=`; empty when not given.
    pub orcpt: String,
}

/// What holds one queue back, or the part of it that one domain's mail is.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, Archive, Serialize, Deserialize)]
pub struct WhyRow {
    /// `destination/vmta` or `destination/pool`
    pub queue: String,
    /// The domain that rolled up into it; empty where none did.
    pub domain: String,
    /// Shard.
    pub shard: u8,
    /// Recipients waiting.
    pub recipients: u64,
    /// Age of the oldest, seconds.
    pub oldest_s: u64,
    /// What was said last to something that waits here; empty for nothing.
    pub last_reply: String,
    /// Causes of the last five minutes, the longest first.
    pub last_5_min: Vec<WhyCause>,
    /// What holds each of its paths back now.
    pub now: Vec<WhyCause>,
}

/// A cause. What differs between paths that are held up alike (times, counts, what receivers said) stands by itself, so that
/// equal causes can be told of together.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, Archive, Serialize, Deserialize)]
pub struct WhyCause {
    /// In a word or two.
    pub cause: String,
    /// Share of the time; 0 for what is now.
    pub percent: u32,
    /// Path; empty where there is none yet.
    pub path: String,
    /// Directive behind it; empty for none.
    pub directive: String,
    /// Its value in force.
    pub value: String,
    /// `FILE:LINE`; empty where it is the default, or not known.
    pub origin: String,
    /// No line gives the value.
    pub is_default: bool,
    /// What else is to be said of it.
    pub note: String,
    /// Until when it holds, `YYYY-MM-DD HH:MM:SS` local; empty where no time ends it.
    pub until: String,
    /// The last failure, with what the receiver said.
    pub said: String,
    /// When that was, as `until`; empty where it is not known.
    pub said_at: String,
    /// `backoff`, or the step on the way back from it; empty in normal mode.
    pub mode: String,
    /// Since when, as `until`.
    pub mode_since: String,
    /// When it ends, as `until`.
    pub mode_until: String,
    /// Open connections.
    pub connections: u32,
    /// Of these idle.
    pub idle: u32,
    /// Connections that are being opened.
    pub connecting: u32,
}
