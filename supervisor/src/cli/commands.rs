//! The commands, their arguments and what the help says of them.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::{ArgGroup, Args, Parser, Subcommand};
use ipc::queue_orders::{Deletion, QueuePattern};
use worker::accept::auth::stored::{ITERATIONS, ITERATIONS_MAX, ITERATIONS_MIN};

use crate::config::value::duration;
use crate::operator::listings::{ShownQueues, Sort};
use crate::operator::output::Output;
use crate::operator::suppress;
use crate::{Failure, acct, sink};

/// Outbound mail transfer agent for senders of millions of messages a day.
#[derive(Debug, Parser)]
#[command(name = "sluice", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
    /// Control socket of the running server [default: <run-dir>/control.sock]
    #[arg(long, global = true, env = "SLUICE_CONTROL", value_name = "PATH")]
    pub(super) control: Option<PathBuf>,
}

/// How the supervisor starts a worker; not for operators, so neither in help nor completion.
#[derive(Debug, Parser)]
#[command(name = "sluice worker")]
pub struct WorkerCli {
    #[arg(long)]
    pub(super) shard: u8,
    #[arg(long)]
    pub(super) cpu: usize,
    #[arg(long)]
    pub(super) run_dir: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the server in the foreground; `sluice` alone does so with the built-in configuration
    Run {
        /// Configuration file; without one a built-in configuration serves 127.0.0.1
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Number of workers, instead of the configuration's
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=ipc::limits::SHARDS_MAX as i64))]
        workers: Option<u32>,
        /// Folder for spool, accounting and sockets, instead of the configuration's
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
    },
    /// Show counters of the running server
    Status(Output),
    /// Show live state
    Show {
        #[command(subcommand)]
        what: Show,
    },
    /// List or restart shards
    Shard {
        #[command(subcommand)]
        what: ShardCommand,
    },
    /// Change the number of workers of the running server
    Scale {
        /// Number of workers
        workers: u32,
        /// Return at once
        #[arg(long)]
        no_wait: bool,
    },
    /// Put the changed configuration file in force
    Reload {
        /// Return when the file has been checked, before every worker has taken it
        #[arg(long)]
        no_wait: bool,
        /// Say what would change, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Say what holds queues back, or the queues that a message waits in
    Why {
        /// DOMAIN[/VMTA], either of which may be *, or the id of a message
        #[arg(value_name = "QUEUE|MESSAGE-ID")]
        what: String,
        #[command(flatten)]
        output: Output,
    },
    /// Stop sending what matches, until it is resumed; it survives restarts
    Pause {
        #[command(subcommand)]
        what: Paused,
    },
    /// Send again what was paused
    Resume {
        #[command(subcommand)]
        what: Paused,
    },
    /// Change the mode of paths
    Set {
        #[command(subcommand)]
        what: Set,
    },
    /// End the wait of queues for their next attempt
    Schedule {
        /// Let recipients go that wait for a time of their own, too
        #[arg(long)]
        retry_recipients: bool,
        #[command(flatten)]
        queue: Of,
    },
    /// Take recipients out of their queues, with a record each that says so: those that wait, not those
    /// that are being delivered or move to another shard at the moment
    Delete(Delete),
    /// Give mail that waits another virtual MTA or pool
    ///
    /// All that is known of it goes along: envelope, job, attempts, when it was accepted and is tried next. What is in
    /// delivery at the moment is not moved, and counted in the answer.
    Reroute(Reroute),
    /// Stop using a source address
    Disable {
        #[command(subcommand)]
        what: Disable,
    },
    /// Use a source address again
    Enable {
        #[command(subcommand)]
        what: Enable,
    },
    /// Say what kind of refusal replies of receivers are
    Bounce {
        #[command(subcommand)]
        what: Bounce,
    },
    /// Passwords of those that applications authenticate as
    User {
        #[command(subcommand)]
        what: UserCommand,
    },
    /// Make DKIM keys, and check that they are published
    Dkim {
        #[command(subcommand)]
        what: Dkim,
    },
    /// Addresses that get no mail
    Suppress {
        #[command(subcommand)]
        what: suppress::Command,
    },
    /// What privacy-policy of an accounting file makes of a local part
    Digest {
        /// Keyed hash by RFC 2104, as hmac-sha256 does; the default
        #[arg(long, conflicts_with = "siphash")]
        hmac_sha256: bool,
        /// SipHash-2-4, as siphash does
        #[arg(long)]
        siphash: bool,
        /// The key; for SipHash at most 16 bytes
        #[arg(long, required_unless_present = "hexkey", conflicts_with = "hexkey")]
        key: Option<String>,
        /// The key in hexadecimal digits
        #[arg(long)]
        hexkey: Option<String>,
        /// Local part of an address; its case does not matter
        string: String,
    },
    /// Stop the running server in order; returns when it has stopped
    Stop {
        /// Return at once
        #[arg(long)]
        no_wait: bool,
    },
    /// Begin new files
    Rotate {
        #[command(subcommand)]
        what: Rotate,
    },
    /// Search accounting files, or make statistics from them
    Acct {
        #[command(subcommand)]
        what: acct::Command,
    },
    /// Submit a message from a file or standard input
    Inject {
        /// Envelope sender; empty for the null sender
        #[arg(long, default_value = "")]
        from: String,
        /// Recipient; repeat for several
        #[arg(long, required = true)]
        to: Vec<String>,
        /// Virtual MTA or pool
        #[arg(long, default_value = "")]
        vmta: String,
        /// File, or - for standard input
        file: PathBuf,
    },
    /// Run a test receiver: an SMTP server that takes mail, delivers none, and misbehaves by rules
    Sink(sink::Options),
    /// Check and explain configurations
    Config {
        #[command(subcommand)]
        what: ConfigCommand,
    },
    /// Print the completion script for a shell
    Completions {
        /// bash, elvish, fish, powershell, zsh
        shell: clap_complete::Shell,
    },
    /// Print a manual page
    Man {
        /// The command that it is about, such as `config check`; none for the program
        command: Vec<String>,
        /// Write the pages of all commands into this folder instead
        #[arg(long, value_name = "DIR", conflicts_with = "command")]
        dir: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Show {
    /// Worker processes
    Shards(Output),
    /// Queues with mail or connections
    Queues(ShowQueues),
    /// Paths: connections and limits of each virtual MTA at each destination
    Paths(Output),
    /// Members of pools at each destination: weight, share, health
    Pools(Output),
    /// Virtual MTAs and pools with mail
    Vmtas(Sorted),
    /// What the block of one virtual MTA says, its source addresses and DKIM keys
    VmtaSettings {
        /// Virtual MTA
        vmta: String,
        #[command(flatten)]
        output: Output,
    },
    /// Destinations with mail
    Domains(Output),
    /// Jobs (x-job) with mail
    Jobs(Sorted),
    /// One queued message: envelope, recipients with their state, attempts and last reply
    Message(ShowMessage),
    /// Source addresses that are not used: where, since when, until when and why
    Disabled(ShowDisabled),
    /// Orders that stand, also for mail to come: pauses, disabled sources, modes set by hand, paused jobs
    Orders {
        /// Those for DOMAIN[/VMTA], either of which may be *
        #[arg(value_name = "QUEUE", value_parser = |t: &str| QueuePattern::parse(t), default_value = "*")]
        queue: QueuePattern,
        #[command(flatten)]
        output: Output,
    },
}

/// A listing by name, and its order.
#[derive(Debug, Args)]
pub(super) struct Sorted {
    /// Order of the rows [default: jobs by name, virtual MTAs by rcpt]
    #[arg(long, value_enum)]
    pub(super) sort: Option<Sort>,
    #[command(flatten)]
    pub(super) output: Output,
}

/// `sluice show message`
#[derive(Debug, Args)]
pub(super) struct ShowMessage {
    /// Its id: what the server answered to its content, `messageId` in accounting
    #[arg(value_name = "ID", value_parser = |t: &str| t.parse::<ipc::message::MessageId>())]
    pub(super) id: ipc::message::MessageId,
    /// Print the message as it would be sent; for root and the user that the server runs as
    #[arg(long, conflicts_with = "json")]
    pub(super) content: bool,
    #[command(flatten)]
    pub(super) output: Output,
}

/// `sluice show disabled`
#[derive(Debug, Args)]
pub(super) struct ShowDisabled {
    /// DOMAIN[/VMTA], either of which may be *; none for all. The word sources may stand before it
    #[arg(value_name = "[sources] QUEUE", num_args = 0..=2)]
    pub(super) words: Vec<String>,
    #[command(flatten)]
    pub(super) output: Output,
}

impl ShowDisabled {
    pub(super) fn of(&self) -> Result<QueuePattern, Failure> {
        let queue = match &self.words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            [] | ["sources"] => "*",
            [queue] | ["sources", queue] => queue,
            [other, ..] => {
                return Err(Failure::Wrong(format!("expected show disabled [sources] [QUEUE], found {other:?}")));
            }
        };
        QueuePattern::parse(queue).map_err(Failure::Wrong)
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum ShardCommand {
    /// Same as `show shards`
    List(Output),
    /// Restart one shard; the others go on
    Restart {
        /// Shard number
        shard: u8,
        /// Return at once
        #[arg(long)]
        no_wait: bool,
    },
}

/// `sluice show queues`
#[derive(Debug, Args)]
pub(super) struct ShowQueues {
    /// DOMAIN[/VMTA]; either may be *, and VMTA a pool
    #[arg(value_name = "QUEUE", value_parser = |t: &str| QueuePattern::parse(t), default_value = "*")]
    pub(super) queue: QueuePattern,
    /// Only those whose paths are all in backoff, or the others
    #[arg(long, value_parser = ["normal", "backoff"])]
    pub(super) mode: Option<String>,
    /// Only those that are paused, or not
    #[arg(long, value_name = "yes|no", value_parser = yes_or_no)]
    pub(super) paused: Option<bool>,
    /// Only those with open connections, or without
    #[arg(long, value_name = "yes|no", value_parser = yes_or_no)]
    pub(super) connected: Option<bool>,
    /// By name, recipients or kbytes
    #[arg(long, value_parser = ["name", "rcpt", "size"], default_value = "rcpt")]
    pub(super) sort: String,
    /// No more than so many
    #[arg(long = "maxitems", alias = "max-items", value_name = "N")]
    pub(super) max_items: Option<usize>,
    #[command(flatten)]
    pub(super) output: Output,
}

impl ShowQueues {
    pub(super) fn shown(self) -> ShownQueues {
        let ShowQueues { queue: of, mode, paused, connected, sort, max_items, output: _ } = self;
        ShownQueues { of, mode, paused, connected, sort, max_items }
    }
}

fn milliseconds(text: &str) -> Result<u64, String> {
    duration(text).map_err(|p| p.message)
}

fn yes_or_no(text: &str) -> Result<bool, String> {
    match text {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err("expected yes or no".into()),
    }
}

/// Which queues.
#[derive(Debug, Args)]
pub(super) struct Of {
    /// DOMAIN[/VMTA]; either may be *, and VMTA a pool
    #[arg(value_name = "QUEUE", value_parser = |t: &str| QueuePattern::parse(t))]
    pub(super) queue: QueuePattern,
}

/// `sluice reroute`
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("mail").required(true).multiple(true).args(["queue", "job"]))]
pub(super) struct Reroute {
    /// DOMAIN[/VMTA]; either may be *, and VMTA a pool
    #[arg(value_name = "QUEUE", value_parser = |t: &str| QueuePattern::parse(t))]
    pub(super) queue: Option<QueuePattern>,
    /// Of this job
    #[arg(long, alias = "jobId", value_name = "J", value_parser = NonEmptyStringValueParser::new())]
    pub(super) job: Option<String>,
    /// Who is to deliver it
    #[arg(long, value_name = "VMTA|POOL", value_parser = NonEmptyStringValueParser::new())]
    pub(super) to: String,
    /// Say what would be moved, and move nothing
    #[arg(long)]
    pub(super) dry_run: bool,
}

/// `sluice delete`
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("meant").required(true).multiple(true).args(["queue", "job_id"]))]
pub(super) struct Delete {
    /// DOMAIN[/VMTA]; either may be *, and VMTA a pool
    #[arg(long, value_name = "QUEUE", value_parser = |t: &str| QueuePattern::parse(t))]
    pub(super) queue: Option<QueuePattern>,
    /// Of this job
    #[arg(long = "jobId", alias = "job-id", value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    pub(super) job_id: Option<String>,
    /// From this sender; * stands for any characters, "" for the one of reports
    #[arg(long, value_name = "ADDRESS")]
    pub(super) orig: Option<String>,
    /// To this recipient; * stands for any characters
    #[arg(long, value_name = "ADDRESS", value_parser = NonEmptyStringValueParser::new())]
    pub(super) rcpt: Option<String>,
    /// With this envelope ID
    #[arg(long = "envId", alias = "env-id", value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    pub(super) env_id: Option<String>,
    /// Accepted so long ago at least
    #[arg(long, value_name = "DURATION", value_parser = milliseconds)]
    pub(super) older_than: Option<u64>,
    /// Tell senders by a report
    #[arg(long)]
    pub(super) dsn: bool,
    /// Write no records
    #[arg(long)]
    pub(super) no_accounting: bool,
}

impl Delete {
    pub(super) fn deletion(self) -> Deletion {
        let everything = || QueuePattern { destination: "*".into(), via: "*".into() };
        Deletion {
            of: self.queue.unwrap_or_else(everything),
            orig: self.orig,
            rcpt: self.rcpt,
            job_id: self.job_id,
            env_id: self.env_id,
            older_than_ms: self.older_than,
            dsn: self.dsn,
            accounting: !self.no_accounting,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Paused {
    /// Queues of a domain, by virtual MTA or pool
    Queue(Of),
    /// All mail of a job
    Job {
        /// x-job, as `show jobs` prints it
        #[arg(value_name = "JOB-ID")]
        job: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Set {
    /// Paths of a domain, by virtual MTA or pool
    Queue {
        /// The mode
        #[arg(long, value_parser = ["normal", "backoff"])]
        mode: String,
        #[command(flatten)]
        queue: Of,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Disable {
    /// For some queues
    Source {
        /// How long, such as 2h; without it until it is enabled
        #[arg(long, value_name = "DURATION", value_parser = milliseconds)]
        reenable_after: Option<u64>,
        /// The address
        ip: IpAddr,
        #[command(flatten)]
        queue: Of,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Enable {
    /// For some queues
    Source {
        /// The address
        ip: IpAddr,
        #[command(flatten)]
        queue: Of,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Bounce {
    /// Read replies from standard input, one a line; print one category a line
    ///
    /// A reply is `550 5.1.1 no such user`, or a diagnostic or log line that holds one. With --json a
    /// line has category, kind (hard, soft, reputation, config), scope, rule, and what the rule hit.
    Classify {
        /// Configuration file whose <bounce-category-patterns> go first
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        #[command(flatten)]
        output: Output,
    },
    /// List the rules that come with the program
    Rules(Output),
}

#[derive(Debug, Subcommand)]
pub(super) enum Dkim {
    /// Make a key; print the record to publish and the lines to configure
    Generate {
        /// Name of the key within the domain
        selector: String,
        /// Domain that signs
        domain: String,
        /// Algorithm
        #[arg(long, default_value = "rsa", value_parser = ["rsa", "ed25519"])]
        algorithm: String,
        /// Length of an RSA key: 2048, 3072 or 4096
        #[arg(long, default_value_t = 2048)]
        bits: usize,
        /// File for the private key, which must not exist; without it SELECTOR.DOMAIN.pem
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Compare every domain-key of a configuration with what is published
    ///
    /// Ends with 1 where a record is missing or holds another key.
    Check {
        /// Configuration file
        file: PathBuf,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum UserCommand {
    /// Print what `password` of an <smtp-user> is to say, for a password that is asked for, or that standard input has on its first line
    ///
    /// A form that proves passwords and does not show them. argon2id is the hardest to guess from, and clients have to send the
    /// password (PLAIN, LOGIN); with scram-sha-256 they need not (SCRAM-SHA-256).
    Hash {
        /// How the password is stored
        #[arg(long, value_enum, default_value_t)]
        form: HashForm,
        #[arg(long, value_name = "N", help = iterations(), value_parser = clap::value_parser!(u32).range(i64::from(ITERATIONS_MIN)..=i64::from(ITERATIONS_MAX)))]
        iterations: Option<u32>,
    },
}

/// The default is none of clap's: beside another form the option is an error.
fn iterations() -> String {
    format!(
        "Iterations of scram-sha-256 [default: {ITERATIONS}]: more of them make guessing, and each check, take longer"
    )
}

/// Forms of stored passwords.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum HashForm {
    /// For PLAIN and LOGIN
    #[default]
    #[value(name = "argon2id")]
    Argon2id,
    /// For SCRAM-SHA-256, PLAIN and LOGIN
    #[value(name = "scram-sha-256")]
    ScramSha256,
}

#[derive(Debug, Subcommand)]
pub(super) enum Rotate {
    /// Accounting files, or one of them
    Acct {
        /// Path of the <acct-file> as written, or its name without folders
        file: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Report all errors and warnings of a file
    Check {
        /// Configuration file, or - for standard input
        file: PathBuf,
        /// Leave out what is only stored so far
        #[arg(long)]
        hide_pending: bool,
        /// Show each finding in full, also those that are like others
        #[arg(long, conflicts_with = "json")]
        all: bool,
        /// Folder for spool, accounting and sockets that `run` is given, instead of the configuration's
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
        #[command(flatten)]
        output: Output,
    },
    /// Show every directive in force for a destination, and which line says so
    Explain {
        /// Domain that mail is addressed to
        #[arg(required_unless_present = "source")]
        destination: Option<String>,
        /// Virtual MTA or pool that it goes through
        #[arg(value_name = "VMTA|POOL")]
        via: Option<String>,
        /// Configuration file; without one the running server is asked
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Look up the domain's mail hosts, to say which queue its mail rolls up to
        #[arg(long, conflicts_with = "source")]
        lookup: bool,
        /// Show what is in force for a client instead: its address, names of <source>s, or both as in 192.0.2.1,NAME
        #[arg(long, value_name = "IP|NAME", conflicts_with_all = ["destination", "via"])]
        source: Option<String>,
        /// Show only this directive, with everything that it overrode
        #[arg(long, value_name = "DIRECTIVE")]
        why: Option<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Show what a file would change, path by path
    Diff {
        /// The new configuration file
        new: PathBuf,
        /// The old one; without it the running server's configuration
        #[arg(long, value_name = "OLD")]
        config: Option<PathBuf>,
        #[command(flatten)]
        output: Output,
    },
    /// Say what would become of one message: source, virtual MTA, queue, limits, signature, and the lines that say so
    Trace {
        /// Configuration file
        file: PathBuf,
        /// Envelope sender; "" for none
        #[arg(long, value_name = "ADDRESS")]
        from: String,
        /// Recipient; may be given again
        #[arg(long, value_name = "ADDRESS", required = true)]
        to: Vec<String>,
        /// Header field as in a message; may be given again
        #[arg(long, value_name = "NAME: VALUE")]
        header: Vec<String>,
        /// Address of the client that sends it
        #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
        client: IpAddr,
        /// Named <source> of the listener that the client comes to
        #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
        source: String,
        /// <smtp-user> that the client has authenticated as
        #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
        user: String,
        /// Look up mail hosts, to say which queue mail rolls up to
        #[arg(long)]
        lookup: bool,
        #[command(flatten)]
        output: Output,
    },
    /// List the last configurations that were in force: who put them there, and when
    Log {
        /// Show what this one changed against the one before, path by path
        #[arg(long, value_name = "N")]
        diff: Option<u64>,
        #[command(flatten)]
        output: Output,
    },
    /// Put an earlier configuration in force again: its files are written in their places and loaded
    Rollback {
        /// Its number, as `config log` lists it; without one the configuration before the one in force
        #[arg(value_name = "N")]
        number: Option<u64>,
        /// Write what was shown: asked of root where the server's user can write to the folder that it comes from
        #[arg(long)]
        yes: bool,
    },
    /// List the receiver profiles that come with the program, or print one
    Profiles {
        /// Name of a profile
        name: Option<String>,
    },
    /// Print the table of directives
    Directives {
        #[command(flatten)]
        output: Output,
        /// Print the reference as Markdown
        #[arg(long, conflicts_with = "json")]
        markdown: bool,
    },
}
