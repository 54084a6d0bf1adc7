//! The command line, and which function serves each command.

use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::builder::NonEmptyStringValueParser;
use clap::{ArgGroup, Args, CommandFactory, Parser, Subcommand};
use ipc::queue_orders::{Deletion, QueueAction, QueueOrder, QueuePattern};
use worker::account::privacy::{self, Privacy};

use crate::config::diagnostic::Diagnostic;
use crate::config::{self, Overrides};
use crate::operator::{self, client, configurations, suppress, why};
use crate::{Failure, acct, run, sink, title};

/// Outbound mail transfer agent for senders of millions of messages a day.
#[derive(Debug, Parser)]
#[command(name = "sluice", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Control socket of the running server [default: <run-dir>/control.sock]
    #[arg(long, global = true, env = "SLUICE_CONTROL", value_name = "PATH")]
    control: Option<PathBuf>,
}

/// How the supervisor starts a worker; not for operators, so neither in help nor completion.
#[derive(Debug, Parser)]
#[command(name = "sluice worker")]
pub struct WorkerCli {
    #[arg(long)]
    shard: u8,
    #[arg(long)]
    cpu: usize,
    #[arg(long)]
    run_dir: PathBuf,
}

/// How a command prints.
#[derive(Debug, Args)]
pub struct Output {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
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
enum Show {
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
struct Sorted {
    /// Order of the rows [default: jobs by name, virtual MTAs by rcpt]
    #[arg(long, value_enum)]
    sort: Option<client::Sort>,
    #[command(flatten)]
    output: Output,
}

/// `sluice show message`
#[derive(Debug, Args)]
struct ShowMessage {
    /// Its id: what the server answered to its content, `messageId` in accounting
    #[arg(value_name = "ID", value_parser = |t: &str| t.parse::<ipc::message::MessageId>())]
    id: ipc::message::MessageId,
    /// Print the message as it would be sent; for root and the user that the server runs as
    #[arg(long, conflicts_with = "json")]
    content: bool,
    #[command(flatten)]
    output: Output,
}

/// `sluice show disabled`
#[derive(Debug, Args)]
struct ShowDisabled {
    /// DOMAIN[/VMTA], either of which may be *; none for all. The word sources may stand before it
    #[arg(value_name = "[sources] QUEUE", num_args = 0..=2)]
    words: Vec<String>,
    #[command(flatten)]
    output: Output,
}

impl ShowDisabled {
    fn of(&self) -> Result<QueuePattern, Failure> {
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
enum ShardCommand {
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
struct ShowQueues {
    /// DOMAIN[/VMTA]; either may be *, and VMTA a pool
    #[arg(value_name = "QUEUE", value_parser = |t: &str| QueuePattern::parse(t), default_value = "*")]
    queue: QueuePattern,
    /// Only those whose paths are all in backoff, or the others
    #[arg(long, value_parser = ["normal", "backoff"])]
    mode: Option<String>,
    /// Only those that are paused, or not
    #[arg(long, value_name = "yes|no", value_parser = yes_or_no)]
    paused: Option<bool>,
    /// Only those with open connections, or without
    #[arg(long, value_name = "yes|no", value_parser = yes_or_no)]
    connected: Option<bool>,
    /// By name, recipients or kbytes
    #[arg(long, value_parser = ["name", "rcpt", "size"], default_value = "rcpt")]
    sort: String,
    /// No more than so many
    #[arg(long = "maxitems", alias = "max-items", value_name = "N")]
    max_items: Option<usize>,
    #[command(flatten)]
    output: Output,
}

impl ShowQueues {
    fn shown(self) -> client::ShownQueues {
        let ShowQueues { queue: of, mode, paused, connected, sort, max_items, output: _ } = self;
        client::ShownQueues { of, mode, paused, connected, sort, max_items }
    }
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
struct Of {
    /// DOMAIN[/VMTA]; either may be *, and VMTA a pool
    #[arg(value_name = "QUEUE", value_parser = |t: &str| QueuePattern::parse(t))]
    queue: QueuePattern,
}

/// `sluice reroute`
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("mail").required(true).multiple(true).args(["queue", "job"]))]
struct Reroute {
    /// DOMAIN[/VMTA]; either may be *, and VMTA a pool
    #[arg(value_name = "QUEUE", value_parser = |t: &str| QueuePattern::parse(t))]
    queue: Option<QueuePattern>,
    /// Of this job
    #[arg(long, alias = "jobId", value_name = "J", value_parser = NonEmptyStringValueParser::new())]
    job: Option<String>,
    /// Who is to deliver it
    #[arg(long, value_name = "VMTA|POOL", value_parser = NonEmptyStringValueParser::new())]
    to: String,
    /// Say what would be moved, and move nothing
    #[arg(long)]
    dry_run: bool,
}

/// `sluice delete`
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("meant").required(true).multiple(true).args(["queue", "job_id"]))]
struct Delete {
    /// DOMAIN[/VMTA]; either may be *, and VMTA a pool
    #[arg(long, value_name = "QUEUE", value_parser = |t: &str| QueuePattern::parse(t))]
    queue: Option<QueuePattern>,
    /// Of this job
    #[arg(long = "jobId", alias = "job-id", value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    job_id: Option<String>,
    /// From this sender; * stands for any characters, "" for the one of reports
    #[arg(long, value_name = "ADDRESS")]
    orig: Option<String>,
    /// To this recipient; * stands for any characters
    #[arg(long, value_name = "ADDRESS", value_parser = NonEmptyStringValueParser::new())]
    rcpt: Option<String>,
    /// With this envelope ID
    #[arg(long = "envId", alias = "env-id", value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    env_id: Option<String>,
    /// Accepted so long ago at least
    #[arg(long, value_name = "DURATION", value_parser = |t: &str| crate::config::value::duration(t).map_err(|p| p.message))]
    older_than: Option<u64>,
    /// Tell senders by a report
    #[arg(long)]
    dsn: bool,
    /// Write no records
    #[arg(long)]
    no_accounting: bool,
}

impl Delete {
    fn deletion(self) -> Deletion {
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
enum Paused {
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
enum Set {
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
enum Disable {
    /// For some queues
    Source {
        /// How long, such as 2h; without it until it is enabled
        #[arg(long, value_name = "DURATION", value_parser = |t: &str| crate::config::value::duration(t).map_err(|p| p.message))]
        reenable_after: Option<u64>,
        /// The address
        ip: IpAddr,
        #[command(flatten)]
        queue: Of,
    },
}

#[derive(Debug, Subcommand)]
enum Enable {
    /// For some queues
    Source {
        /// The address
        ip: IpAddr,
        #[command(flatten)]
        queue: Of,
    },
}

#[derive(Debug, Subcommand)]
enum Bounce {
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
enum Dkim {
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
enum Rotate {
    /// Accounting files, or one of them
    Acct {
        /// Path of the <acct-file> as written, or its name without folders
        file: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
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
        /// Show what is in force for a client instead: its address, the name of a <source>, or both as in 192.0.2.1,NAME
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

/// Runs a worker until it is told to stop.
///
/// # Errors
/// [`Failure`], after the reason was logged.
pub fn work(cli: WorkerCli) -> Result<(), Failure> {
    log_to_stderr();
    let WorkerCli { shard, cpu, run_dir } = cli;
    title::name_worker(shard);
    worker::run(worker::Start { shard, cpu, run_dir }).map_err(|e| {
        tracing::error!(shard, error = e, "worker ends");
        Failure::Failed(String::new())
    })
}

/// Runs the command.
///
/// # Errors
/// [`Failure`] with the exit code and the sentence to print.
pub fn execute(cli: Cli) -> Result<(), Failure> {
    let control = client::Target(cli.control);
    match cli.command {
        Command::Run { config, workers, data_dir } => {
            log_to_stderr();
            title::become_supervisor();
            run::run(config, Overrides { workers, data_dir })
        }
        Command::Status(o) => client::status(&control, o.json),
        Command::Show { what: Show::Shards(o) } | Command::Shard { what: ShardCommand::List(o) } => {
            client::shards(&control, o.json)
        }
        Command::Show { what: Show::Queues(o) } => {
            let as_json = o.output.json;
            client::queues(&control, &o.shown(), as_json)
        }
        Command::Show { what: Show::Paths(o) } => client::paths(&control, o.json),
        Command::Show { what: Show::Pools(o) } => client::pools(&control, o.json),
        Command::Show { what: Show::Vmtas(o) } => {
            client::vmtas(&control, o.sort.unwrap_or(client::Sort::Rcpt), o.output.json)
        }
        Command::Show { what: Show::VmtaSettings { vmta, output } } => {
            operator::vmta_settings::show(&control, vmta, output.json)
        }
        Command::Show { what: Show::Domains(o) } => client::domains(&control, o.json),
        Command::Show { what: Show::Message(m) } => operator::message::show(&control, m.id, m.content, m.output.json),
        Command::Show { what: Show::Orders { queue, output } } => {
            operator::standing_orders::show(&control, queue, output.json)
        }
        Command::Show { what: Show::Disabled(o) } => operator::disabled::show(&control, o.of()?, o.output.json),
        Command::Show { what: Show::Jobs(o) } => {
            client::jobs(&control, o.sort.unwrap_or(client::Sort::Name), o.output.json)
        }
        Command::Shard { what: ShardCommand::Restart { shard, no_wait } } => {
            client::act(&control, ipc::operator::Request::ShardRestart { shard, wait: !no_wait })
        }
        Command::Scale { workers, no_wait } => {
            client::act(&control, ipc::operator::Request::Scale { workers, wait: !no_wait })
        }
        Command::Reload { no_wait, dry_run } => {
            client::act(&control, ipc::operator::Request::Reload { wait: !no_wait, dry_run })
        }
        Command::Why { what, output } => why::why(&control, what, output.json),
        Command::Pause { what: Paused::Queue(Of { queue }) } => order(&control, queue, QueueAction::Pause(true)),
        Command::Resume { what: Paused::Queue(Of { queue }) } => order(&control, queue, QueueAction::Pause(false)),
        Command::Pause { what: Paused::Job { job } } => {
            client::act(&control, ipc::operator::Request::PauseJob { job, paused: true })
        }
        Command::Resume { what: Paused::Job { job } } => {
            client::act(&control, ipc::operator::Request::PauseJob { job, paused: false })
        }
        Command::Set { what: Set::Queue { mode, queue: Of { queue } } } => {
            order(&control, queue, QueueAction::Mode(mode == "backoff"))
        }
        Command::Schedule { retry_recipients, queue: Of { queue } } => {
            order(&control, queue, QueueAction::Schedule { recipients: retry_recipients })
        }
        Command::Delete(what) => client::act(&control, ipc::operator::Request::Delete(what.deletion())),
        Command::Reroute(Reroute { queue, job, to, dry_run }) => {
            let of = queue.unwrap_or(QueuePattern { destination: "*".into(), via: "*".into() });
            let order = ipc::control::RerouteOrder { of, job, to, dry_run };
            client::act(&control, ipc::operator::Request::Reroute(order))
        }
        Command::Disable { what: Disable::Source { reenable_after, ip, queue: Of { queue } } } => {
            let until_unix_ms = reenable_after.map_or(i64::MAX, until);
            order(&control, queue, QueueAction::DisableSource { ip: ip.to_string(), until_unix_ms })
        }
        Command::Enable { what: Enable::Source { ip, queue: Of { queue } } } => {
            order(&control, queue, QueueAction::EnableSource { ip: ip.to_string() })
        }
        Command::Suppress { what } => suppress::run(&control, what),
        Command::Digest { hmac_sha256: _, siphash, key, hexkey, string } => {
            let key = match hexkey {
                Some(digits) => privacy::hex(&digits),
                None => Ok(key.unwrap_or_default().into_bytes()),
            };
            let of = if siphash { Privacy::siphash } else { Privacy::hmac };
            let policy = key.and_then(|k| of(&k)).map_err(Failure::Wrong)?;
            print(format!("Result: {}\n", policy.digest(&string)).as_bytes())
        }
        Command::Stop { no_wait } => client::stop(&control, !no_wait),
        Command::Bounce { what: Bounce::Classify { config, output } } => {
            crate::bounce::classify(config.as_deref(), output.json)
        }
        Command::Bounce { what: Bounce::Rules(output) } => print(crate::bounce::rules(output.json)?.as_bytes()),
        Command::Dkim { what: Dkim::Generate { selector, domain, algorithm, bits, file } } => {
            print(crate::dkim::generate(&selector, &domain, &algorithm, bits, file)?.as_bytes())
        }
        Command::Dkim { what: Dkim::Check { file, output } } => {
            let (said, well) = crate::dkim::check(&file, output.json)?;
            print(said.as_bytes())?;
            if well { Ok(()) } else { Err(Failure::Failed("not every key is published".into())) }
        }
        Command::Rotate { what: Rotate::Acct { file } } => {
            let file = file.unwrap_or_default();
            client::act(&control, ipc::operator::Request::RotateAccounting { file })
        }
        Command::Sink(options) => sink::run(options),
        Command::Acct { what } => acct::run(what),
        Command::Inject { from, to, vmta, file } => client::inject(&control, from, to, vmta, &file),
        Command::Config { what: ConfigCommand::Check { file, data_dir, hide_pending, all, output } } => {
            check(&file, data_dir, hide_pending, all, output.json)
        }
        Command::Config { what: ConfigCommand::Explain { destination, via, config, lookup, source, why, output } } => {
            let (via, only) = (via.unwrap_or_default(), why.unwrap_or_default());
            let asked = match source {
                Some(who) => ipc::operator::Request::ExplainSource { who, only },
                None => {
                    let destination = destination.unwrap_or_default();
                    ipc::operator::Request::Explain { destination, via, only, lookup }
                }
            };
            client::explain(&control, config.as_deref(), asked, output.json)
        }
        Command::Config { what: ConfigCommand::Diff { new, config, output } } => {
            client::diff(&control, &new, config.as_deref(), output.json)
        }
        Command::Config { what: ConfigCommand::Trace { file, from, to, header, client, source, lookup, output } } => {
            let asked = config::trace::Asked { from, to, headers: header, client, source, lookup };
            client::trace(&file, &asked, output.json)
        }
        Command::Config { what: ConfigCommand::Log { diff, output } } => {
            configurations::log(&control, diff, output.json)
        }
        Command::Config { what: ConfigCommand::Rollback { number, yes } } => {
            configurations::rollback(&control, number, yes)
        }
        Command::Config { what: ConfigCommand::Profiles { name } } => profiles(name.as_deref()),
        Command::Config { what: ConfigCommand::Directives { markdown: true, .. } } => {
            print(config::manual::markdown().as_bytes())
        }
        Command::Config { what: ConfigCommand::Directives { output, .. } } => directives(output.json),
        Command::Completions { shell } => {
            let mut out = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "sluice", &mut out);
            print(&out)
        }
        Command::Man { dir: Some(dir), .. } => clap_mangen::generate_to(Cli::command(), &dir)
            .and_then(|()| acct::manual_pages_by_name(&dir))
            .map_err(|e| Failure::Failed(format!("cannot write manual pages to {}: {e}", dir.display()))),
        Command::Man { command, dir: None } => man(&command),
    }
}

fn order(control: &client::Target, of: QueuePattern, action: QueueAction) -> Result<(), Failure> {
    client::act(control, ipc::operator::Request::Order(QueueOrder { of, action }))
}

/// Unix milliseconds in so many from now.
pub fn until(ms: u64) -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64);
    now.saturating_add(i64::try_from(ms).unwrap_or(i64::MAX))
}

fn man(words: &[String]) -> Result<(), Failure> {
    let mut program = Cli::command();
    program.build();
    let mut about = &program;
    for w in words {
        about = about.find_subcommand(w).ok_or_else(|| {
            Failure::Wrong(format!("there is no command `sluice {}`; see `sluice help`", words.join(" ")))
        })?;
    }
    let mut out = Vec::new();
    clap_mangen::Man::new(about.clone()).render(&mut out).map_err(|e| Failure::Failed(e.to_string()))?;
    print(&out)
}

/// Writes to standard output; a reader that has gone is no failure.
pub fn print(bytes: &[u8]) -> Result<(), Failure> {
    match std::io::stdout().write_all(bytes) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::Failed(e.to_string())),
        _ => Ok(()),
    }
}

fn log_to_stderr() {
    use std::io::IsTerminal;
    let filter = tracing_subscriber::EnvFilter::try_from_env("SLUICE_LOG").unwrap_or_else(|_| "info".into());
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // It would say so on the same standard error, and panic: a full disk under the log must
        // stop no delivery.
        .log_internal_errors(false)
        .try_init();
}

fn check(file: &Path, data_dir: Option<PathBuf>, hide_pending: bool, all: bool, json: bool) -> Result<(), Failure> {
    let from = if file == Path::new("-") { Path::new("/dev/stdin") } else { file };
    let overrides = Overrides { data_dir, ..Overrides::default() };
    let checked = match config::compile(Some(from), &overrides) {
        Ok(mut c) => {
            c.look_at_folders();
            c
        }
        Err(e) if json => {
            let error = serde_json::json!({ "file": file, "line": 0, "column": 0, "code": "unreadable",
                "message": e.to_string(), "suggestion": "" });
            let v = serde_json::json!({ "errors": [error], "warnings": [] });
            print(format!("{v:#}\n").as_bytes())?;
            return Err(Failure::Wrong(String::new()));
        }
        Err(e) => return Err(Failure::Wrong(format!("cannot read {}: {e}", file.display()))),
    };
    let shown = checked.diagnostics.iter().filter(|d| !hide_pending || d.code != "pending");
    let (errors, warnings): (Vec<&Diagnostic>, Vec<&Diagnostic>) = shown.clone().partition(|d| d.is_error);
    if json {
        let list =
            |all: &[&Diagnostic]| -> Vec<serde_json::Value> { all.iter().map(|d| d.as_json(&checked.files)).collect() };
        let v = serde_json::json!({
            "errors": list(&errors), "warnings": list(&warnings),
            "more_errors": checked.left_out.errors, "more_warnings": checked.left_out.warnings,
        });
        print(format!("{v:#}\n").as_bytes())?;
    } else {
        let shown: Vec<&Diagnostic> = shown.collect();
        let mut text = config::summary::as_text(&shown, &checked.files, all);
        let count = |shown: usize, more: usize, what: &str| {
            let first = if more > 0 { format!(" (the first {shown} are shown)") } else { String::new() };
            format!("{} {what}{}{first}", shown + more, if shown + more == 1 { "" } else { "s" })
        };
        let left_out = checked.left_out;
        let errors = count(errors.len(), left_out.errors, "error");
        let warnings = count(warnings.len(), left_out.warnings, "warning");
        text.push_str(&format!("{}: {errors}, {warnings}\n", file.display()));
        print(text.as_bytes())?;
    }
    if errors.is_empty() { Ok(()) } else { Err(Failure::Wrong(String::new())) }
}

fn profiles(name: Option<&str>) -> Result<(), Failure> {
    use config::profiles::{ALL, text, title};
    match name {
        Some(n) => match text(n) {
            Some(t) => print(t.as_bytes()),
            None => {
                Err(Failure::Wrong(format!("there is no receiver profile {n}; `sluice config profiles` lists them")))
            }
        },
        None => {
            let rows = ALL.iter().map(|(n, t)| vec![(*n).to_owned(), title(t).to_owned()]);
            client::table(&["profile", "receiver"], rows.collect())
        }
    }
}

fn directives(json: bool) -> Result<(), Failure> {
    let all = config::directives::all();
    if json {
        let mut list = Vec::with_capacity(all.len());
        for d in all {
            let mut v = serde_json::to_value(d).map_err(|e| Failure::Failed(e.to_string()))?;
            v["example"] = config::manual::example(d).into();
            v["see_also"] = config::manual::see_also(d).into();
            list.push(v);
        }
        return print(format!("{:#}\n", serde_json::Value::from(list)).as_bytes());
    }
    let rows = all.iter().map(|d| {
        let status = format!("{:?}", d.status).to_lowercase();
        vec![d.name.to_owned(), d.blocks.join(","), status, d.unit.to_owned(), d.default.to_owned()]
    });
    client::table(&["directive", "blocks", "status", "value", "default"], rows.collect())
}
