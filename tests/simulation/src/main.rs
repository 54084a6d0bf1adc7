//! `sluice-sim`: whole shards in simulated time, on simulated disks and networks, from one seed.

mod book;
mod dice;
mod host;
mod injector;
mod net;
mod pipe;
mod receiver;
mod rows;
mod world;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use tokio::task::LocalSet;

use crate::world::{Plan, Trouble, World};

/// Runs a world of shards, receivers and clients in which things go wrong, all of it from one seed, and says what must not be.
#[derive(Debug, Parser)]
#[command(name = "sluice-sim")]
struct Args {
    /// What everything follows from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Shards; without it the seed decides, 1 to 4
    #[arg(long)]
    shards: Option<u8>,
    /// Simulated minutes in which clients inject and things go wrong
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Receivers
    #[arg(long, default_value_t = 50)]
    receivers: usize,
    /// Clients
    #[arg(long, default_value_t = 20)]
    clients: u16,
    /// What may go wrong; all of it without this option
    #[arg(long, value_enum, value_delimiter = ',')]
    faults: Option<Vec<Trouble>>,
    /// Tells on standard error what happens
    #[arg(long)]
    trace: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let plan = Plan {
        seed: args.seed,
        shards: args.shards.unwrap_or(1 + (args.seed % 4) as u8),
        domains: args.receivers,
        clients: args.clients,
        busy: Duration::from_secs(60 * args.minutes),
        faults: args.faults.unwrap_or_else(|| Trouble::value_variants().to_vec()),
        trace: args.trace,
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build() {
        Ok(r) => r,
        Err(e) => {
            eprintln!("the runtime cannot be built: {e}");
            return ExitCode::from(2);
        }
    };
    let local = LocalSet::new();
    let done = runtime.block_on(local.run_until(async {
        let world = World::new(plan)?;
        let sums = world.run().await?;
        let violations = std::mem::take(&mut world.book.borrow_mut().violations);
        Ok::<_, String>((sums, violations, world.dice_state()))
    }));
    // Processes that were killed in the world are never dropped, and need not be.
    let code = match done {
        Ok((sums, violations, end)) => {
            println!("seed {}: {sums:?}, ended at {end:016x}", args.seed);
            violations.iter().take(20).for_each(|v| println!("  {v}"));
            if violations.len() > 20 {
                println!("  and {} more", violations.len() - 20);
            }
            u8::from(!violations.is_empty())
        }
        Err(e) => {
            eprintln!("{e}");
            2
        }
    };
    std::process::exit(code.into());
}
