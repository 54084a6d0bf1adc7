//! What a world is made of: from the command line, from a file, and the rest by chance.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use crate::receiver::{Manner, Most};

/// Connections that a virtual MTA may have with a receiver that nothing else is said of.
const CONNECTIONS_MAX: usize = 3;
/// Messages that one connection may carry to a receiver that nothing else is said of.
const MESSAGES_MAX: usize = 20;
/// Shards of a world at most.
pub const SHARDS_MAX: u8 = 8;
/// Receivers of a world at most.
const RECEIVERS_MAX: usize = 10_000;

/// What a world is made of.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Everything that is left to chance follows from it.
    pub seed: u64,
    /// Shards, from 1 to 8.
    pub shards: u8,
    /// Receivers, one domain each.
    pub receivers: Vec<Given>,
    /// Clients.
    pub clients: u16,
    /// Time between two messages of a client on average, milliseconds.
    pub pause_ms: u64,
    /// How long clients inject and things go wrong.
    pub busy: Duration,
    /// What may go wrong at any time.
    pub faults: Vec<Trouble>,
    /// What goes wrong at a time that is known.
    pub events: Vec<Event>,
    /// Directives beside those that every world has.
    pub configuration: String,
    /// Shards use TLS where receivers offer it, and some do.
    pub tls: bool,
    /// What happens is told on standard error.
    pub trace: bool,
}

/// What is known of a receiver before a world begins.
#[derive(Debug, Clone, Copy)]
pub struct Given {
    /// How it behaves; `None` leaves that to chance.
    pub manner: Option<Manner>,
    /// What the shards' configuration allows at it.
    pub most: Most,
}

impl Given {
    /// A receiver of which nothing is known.
    const ANY: Given = Given { manner: None, most: Most { connections: CONNECTIONS_MAX, messages: MESSAGES_MAX } };
}

/// A kind of thing that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trouble {
    /// A shard is killed.
    Kill,
    /// A shard leaves in order, and another process takes its place.
    Restart,
    /// The machine loses its power: all shards, and what disks had not synced.
    Power,
    /// A disk is full for a while.
    Full,
    /// Writes fail for a while.
    Writes,
    /// Syncs fail for a while.
    Syncs,
    /// A disk is slow for a while, up to 30 s a group.
    Slow,
    /// Two shards do not reach each other for a while.
    Part,
    /// Bytes between shards take long for a while.
    Mesh,
    /// Connections of shards with receivers and clients are cut.
    Cut,
    /// Name servers do not answer for a while.
    Dns,
    /// The machine's clock is set forward or back, by hours.
    Clock,
    /// Receivers change their manners.
    Receivers,
    /// The number of shards changes.
    Scale,
    /// Shards get another configuration.
    Reload,
    /// An operator pauses queues, disables a source address, or lets mail go before its time.
    Orders,
    /// An operator deletes mail.
    Delete,
    /// An operator gives waiting mail another virtual MTA.
    Reroute,
    /// A bit flips in what a disk had synced.
    Rot,
    /// The supervisor is gone for a while.
    Away,
    /// Tasks of shards panic where they read or write.
    Panic,
}

/// Something that goes wrong at a time that is known.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Event {
    /// When, seconds from the beginning.
    pub at: f64,
    /// What.
    pub trouble: Trouble,
    /// The shard that it happens to; without it chance decides.
    pub shard: Option<u8>,
}

/// A file that describes a world. What it does not name is as without a file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    seed: Option<u64>,
    shards: Option<u8>,
    minutes: Option<u64>,
    clients: Option<u16>,
    pause_ms: Option<u64>,
    faults: Option<Vec<Trouble>>,
    configuration: Option<String>,
    tls: Option<bool>,
    #[serde(default)]
    receivers: Vec<Receivers>,
    #[serde(default)]
    events: Vec<Event>,
}

/// Receivers of one kind.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Receivers {
    count: usize,
    connections: Option<usize>,
    messages: Option<usize>,
    manner: Option<Manner>,
}

/// What the command line says of a world; it comes before what a file says.
#[derive(Debug, Default)]
pub struct Options {
    /// `--seed`
    pub seed: Option<u64>,
    /// `--shards`
    pub shards: Option<u8>,
    /// `--minutes`
    pub minutes: Option<u64>,
    /// `--receivers`
    pub receivers: Option<usize>,
    /// `--clients`
    pub clients: Option<u16>,
    /// `--faults`
    pub faults: Option<Vec<Trouble>>,
    /// `--trace`
    pub trace: bool,
}

impl Plan {
    /// A world by its file, if there is one, and the command line.
    ///
    /// # Errors
    /// A sentence when the file cannot be read or does not describe a world.
    pub fn of(options: Options, file: Option<&Path>) -> Result<Plan, String> {
        let described = match file {
            Some(path) => read(path).map_err(|e| format!("{}: {e}", path.display()))?,
            None => File::default(),
        };
        let seed = options.seed.or(described.seed).unwrap_or(1);
        let shards = options.shards.or(described.shards).unwrap_or(1 + (seed % 4) as u8);
        let receivers = match (options.receivers, described.receivers.is_empty()) {
            (None, true) => vec![Given::ANY; 50],
            (Some(n), _) => vec![Given::ANY; n],
            (None, false) => described.receivers.iter().flat_map(Receivers::each).take(RECEIVERS_MAX + 1).collect(),
        };
        if !(1..=SHARDS_MAX).contains(&shards) {
            return Err(format!("expected 1 to {SHARDS_MAX} shards, found {shards}"));
        }
        if !(1..=RECEIVERS_MAX).contains(&receivers.len()) {
            return Err(format!("expected 1 to {RECEIVERS_MAX} receivers"));
        }
        if let Some(e) = described.events.iter().find(|e| e.shard.is_some_and(|s| s >= SHARDS_MAX)) {
            let shard = e.shard.unwrap_or_default();
            return Err(format!("the event at {} s names shard {shard}, and numbers end at {}", e.at, SHARDS_MAX - 1));
        }
        let faults = options.faults.or(described.faults);
        Ok(Plan {
            seed,
            shards,
            receivers,
            clients: options.clients.or(described.clients).unwrap_or(20),
            pause_ms: described.pause_ms.unwrap_or(1000),
            busy: Duration::from_secs(60 * options.minutes.or(described.minutes).unwrap_or(10)),
            faults: faults.unwrap_or_else(|| <Trouble as clap::ValueEnum>::value_variants().to_vec()),
            events: described.events,
            configuration: described.configuration.unwrap_or_default(),
            tls: described.tls.unwrap_or(true),
            trace: options.trace,
        })
    }
}

impl Receivers {
    fn each(&self) -> impl Iterator<Item = Given> {
        let most = Most {
            connections: self.connections.unwrap_or(CONNECTIONS_MAX),
            messages: self.messages.unwrap_or(MESSAGES_MAX),
        };
        std::iter::repeat_n(Given { manner: self.manner, most }, self.count)
    }
}

fn read(path: &Path) -> Result<File, String> {
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    toml::from_str(&text).map_err(|e| e.to_string())
}
