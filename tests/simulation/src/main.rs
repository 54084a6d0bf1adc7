//! `sluice-sim`: whole shards in simulated time, on simulated disks and networks, from one seed.

mod book;
mod dice;
mod fleet;
mod fragile;
mod host;
mod injector;
mod net;
mod operator;
mod pipe;
mod plan;
mod receiver;
mod rot;
mod rows;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tokio::task::LocalSet;
use tokio::time::Instant;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

use crate::plan::{Options, Plan, Trouble};
use crate::world::World;

#[global_allocator]
static HEAP: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs a world of shards, receivers and clients in which things go wrong, all of it from one seed, and says what must not be.
#[derive(Debug, Parser)]
#[command(name = "sluice-sim")]
struct Args {
    /// What everything follows from; 1 where no world says another
    #[arg(long)]
    seed: Option<u64>,
    /// A file that describes the world, see docs/simulation.md; options come before what it says
    #[arg(long, value_name = "FILE")]
    world: Option<PathBuf>,
    /// Shards, 1 to 8; where nothing says how many the seed decides, 1 to 4
    #[arg(long)]
    shards: Option<u8>,
    /// Simulated minutes in which clients inject and things go wrong, 10 where nothing is said
    #[arg(long)]
    minutes: Option<u64>,
    /// Receivers whose manners chance decides, 50 where nothing is said
    #[arg(long)]
    receivers: Option<usize>,
    /// Clients, 20 where nothing is said
    #[arg(long)]
    clients: Option<u16>,
    /// What may go wrong at any time; all of it where nothing is said
    #[arg(long, value_enum, value_delimiter = ',')]
    faults: Option<Vec<Trouble>>,
    /// Puts a fault in force that the code has for this; tests/simulation/planted names them
    #[arg(long, value_name = "FAULT")]
    planted: Option<String>,
    /// Tells on standard error what happens, and what shards log
    #[arg(long)]
    trace: bool,
}

/// Seconds since the world began, as lines of logs have them.
struct Simulated(Instant);

impl FormatTime for Simulated {
    fn format_time(&self, w: &mut Writer<'_>) -> std::fmt::Result {
        write!(w, "{:>10.3}", self.0.elapsed().as_secs_f64())
    }
}

/// Lets shards log to standard error.
fn log() {
    let lines = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_target(false);
    // Nothing else logs in this process.
    let _ = lines.with_max_level(tracing::Level::DEBUG).with_timer(Simulated(Instant::now())).try_init();
}

fn main() -> ExitCode {
    let args = Args::parse();
    let options = Options {
        seed: args.seed,
        shards: args.shards,
        minutes: args.minutes,
        receivers: args.receivers,
        clients: args.clients,
        faults: args.faults,
        trace: args.trace,
    };
    let plan = match Plan::of(options, args.world.as_deref()) {
        Ok(plan) => plan,
        Err(e) => {
            eprintln!("{e}");
            return ExitCode::from(2);
        }
    };
    let seed = plan.seed;
    worker::tasks::tell_of_panics();
    ipc::planted::plant(args.planted.as_deref().unwrap_or_default());
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build() {
        Ok(r) => r,
        Err(e) => {
            eprintln!("the runtime cannot be built: {e}");
            return ExitCode::from(2);
        }
    };
    let local = LocalSet::new();
    let trace = plan.trace;
    let done = runtime.block_on(local.run_until(async {
        if trace {
            log();
        }
        let world = World::new(plan)?;
        let sums = world.run().await?;
        let book = world.book.borrow();
        Ok::<_, String>((sums, book.violations().to_vec(), book.digest()))
    }));
    // Processes that were killed in the world are never dropped, and need not be.
    let code = match done {
        Ok((sums, violations, digest)) => {
            println!("seed {seed}: {sums:?}, {digest:016x}");
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
    if let Some(fault) = &args.planted
        && !ipc::planted::was_reached()
    {
        println!("nothing came by the place of the fault {fault}, if there is one of that name");
    }
    std::process::exit(code.into());
}
