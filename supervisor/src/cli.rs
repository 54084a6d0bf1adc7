//! The command line: which function serves each command.

mod commands;

use clap::CommandFactory;
use ipc::queue_orders::{QueueAction, QueueOrder, QueuePattern};
use worker::account::privacy::{self, Privacy};

use crate::config::{self, Overrides};
use crate::operator::client::{self, until};
use crate::operator::listings::Sort;
use crate::operator::output::print;
use crate::operator::{self, configurations, listings, suppress, why};
use crate::{Failure, acct, run, sink, title};
use commands::{
    Bounce, Command, ConfigCommand, Disable, Dkim, Enable, Of, Paused, Reroute, Rotate, Set, ShardCommand, Show,
    UserCommand,
};
pub use commands::{Cli, HashForm, WorkerCli};

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
        Command::Status(o) => listings::status(&control, o.json),
        Command::Show { what: Show::Shards(o) } | Command::Shard { what: ShardCommand::List(o) } => {
            listings::shards(&control, o.json)
        }
        Command::Show { what: Show::Queues(o) } => {
            let as_json = o.output.json;
            listings::queues(&control, &o.shown(), as_json)
        }
        Command::Show { what: Show::Paths(o) } => listings::paths(&control, o.json),
        Command::Show { what: Show::Pools(o) } => listings::pools(&control, o.json),
        Command::Show { what: Show::Vmtas(o) } => {
            listings::vmtas(&control, o.sort.unwrap_or(Sort::Rcpt), o.output.json)
        }
        Command::Show { what: Show::VmtaSettings { vmta, output } } => {
            operator::vmta_settings::show(&control, vmta, output.json)
        }
        Command::Show { what: Show::Domains(o) } => listings::domains(&control, o.json),
        Command::Show { what: Show::Message(m) } => operator::message::show(&control, m.id, m.content, m.output.json),
        Command::Show { what: Show::Orders { queue, output } } => {
            operator::standing_orders::show(&control, queue, output.json)
        }
        Command::Show { what: Show::Disabled(o) } => operator::disabled::show(&control, o.of()?, o.output.json),
        Command::Show { what: Show::Jobs(o) } => listings::jobs(&control, o.sort.unwrap_or(Sort::Name), o.output.json),
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
        Command::User { what: UserCommand::Hash { form, iterations } } => {
            print(crate::user::hash(form, iterations)?.as_bytes())
        }
        Command::Rotate { what: Rotate::Acct { file } } => {
            let file = file.unwrap_or_default();
            client::act(&control, ipc::operator::Request::RotateAccounting { file })
        }
        Command::Sink(options) => sink::run(options),
        Command::Acct { what } => acct::run(what),
        Command::Inject { from, to, vmta, file } => operator::inject::inject(&control, from, to, vmta, &file),
        Command::Config { what: ConfigCommand::Check { file, data_dir, hide_pending, all, output } } => {
            operator::config::check(&file, data_dir, hide_pending, all, output.json)
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
            operator::config::explain(&control, config.as_deref(), asked, output.json)
        }
        Command::Config { what: ConfigCommand::Diff { new, config, output } } => {
            operator::config::diff(&control, &new, config.as_deref(), output.json)
        }
        Command::Config {
            what: ConfigCommand::Trace { file, from, to, header, client, source, user, lookup, output },
        } => {
            let asked = config::trace::Asked { from, to, headers: header, client, source, user, lookup };
            operator::config::trace(&file, &asked, output.json)
        }
        Command::Config { what: ConfigCommand::Log { diff, output } } => {
            configurations::log(&control, diff, output.json)
        }
        Command::Config { what: ConfigCommand::Rollback { number, yes } } => {
            configurations::rollback(&control, number, yes)
        }
        Command::Config { what: ConfigCommand::Profiles { name } } => operator::config::profiles(name.as_deref()),
        Command::Config { what: ConfigCommand::Directives { markdown: true, .. } } => {
            print(config::manual::markdown().as_bytes())
        }
        Command::Config { what: ConfigCommand::Directives { output, .. } } => operator::config::directives(output.json),
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

fn log_to_stderr() {
    use std::io::IsTerminal;
    let filter =
        tracing_subscriber::EnvFilter::try_from_env("SLUICE_LOG").unwrap_or_else(|_| "info,rustls=error".into());
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // It would say so on the same standard error, and panic: a full disk under the log must
        // stop no delivery.
        .log_internal_errors(false)
        .try_init();
}
