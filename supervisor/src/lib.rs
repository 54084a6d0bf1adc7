//! `sluice`: the supervisor, its workers, and the operator's commands.

mod accounting;
mod acct;
mod acme;
mod bounce;
mod certificates;
mod cli;
pub mod config;
mod configurations;
mod dkim;
pub mod fleet;
mod http;
mod listen;
mod load;
mod operator;
mod programs;
mod queue_time;
mod rates;
pub mod retiring;
mod rights;
mod run;
mod salt_key;
pub mod scaling;
mod secret_file;
mod shards;
mod sink;
mod state;
mod status;
mod suppression;
mod title;
mod user;

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Exit codes that scripts depend on.
#[derive(Debug)]
pub enum Failure {
    /// The operation failed or the server said no.
    Failed(String),
    /// Wrong usage or wrong configuration.
    Wrong(String),
    /// No running server at the control socket.
    NoServer(String),
}

impl From<Failure> for ExitCode {
    fn from(f: Failure) -> ExitCode {
        let (code, text) = match f {
            Failure::Failed(t) => (1, t),
            Failure::Wrong(t) => (2, t),
            Failure::NoServer(t) => (3, t),
        };
        if !text.is_empty() {
            let _ = writeln!(std::io::stderr(), "sluice: {text}");
        }
        ExitCode::from(code)
    }
}

/// What the program does: a command of the operator, the server, or one of its workers.
pub fn main() -> ExitCode {
    match done_by(std::env::args_os().collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(f) => f.into(),
    }
}

fn done_by(words: Vec<OsString>) -> Result<(), Failure> {
    let mut args = words.into_iter();
    let name = PathBuf::from(args.next().unwrap_or_default());
    let args: Vec<OsString> = args.collect();
    // PowerMTA's tools are links to the program.
    if let Some(done) = acct::by_name(&name, args.iter().cloned()) {
        return done;
    }
    let word = |n: usize| args.get(n).and_then(|a| a.to_str());
    match (word(0), word(1)) {
        (Some("worker"), _) => cli::work(cli::WorkerCli::parse_from(&args)),
        // The name alone is the server: `cargo run` starts one. By PowerMTA's name it is a client.
        (None, _) if args.is_empty() && name.file_name() != Some(OsStr::new("pmta")) => {
            cli::execute(cli::Cli::parse_from(["sluice", "run"]))
        }
        (Some("acct"), Some("find")) => {
            let words = acct::with_fields_as_matches(args.into_iter());
            cli::execute(cli::Cli::parse_from(std::iter::once("sluice".into()).chain(words)))
        }
        _ => cli::execute(cli::Cli::parse_from(std::iter::once("sluice".into()).chain(args))),
    }
}
