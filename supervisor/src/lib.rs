//! `sluice`: the supervisor, its workers, and the operator's commands.

mod accounting;
mod bounce;
mod cli;
pub mod config;
mod dkim;
mod http;
mod listen;
mod operator;
mod programs;
mod queue_time;
mod rates;
mod rights;
mod run;
mod shards;
mod status;
mod suppression;

use std::io::Write;
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
    let mut args = std::env::args_os().skip(1).peekable();
    let done = match args.next_if(|a| a == "worker") {
        Some(name) => cli::work(cli::WorkerCli::parse_from(std::iter::once(name).chain(args))),
        // The name alone is the server: `cargo run` starts one.
        None if args.peek().is_none() => cli::execute(cli::Cli::parse_from(["sluice", "run"])),
        None => cli::execute(cli::Cli::parse()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(f) => f.into(),
    }
}
