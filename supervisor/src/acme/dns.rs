//! Records of challenges: set and removed by a command of the operator's, or at a name server (RFC 2136, signed by RFC 8945).

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hickory_proto::op::{Message, Query, ResponseCode, update_message};
use hickory_proto::rr::rdata::TXT;
use hickory_proto::rr::rdata::tsig::TsigAlgorithm;
use hickory_proto::rr::{Name, RData, Record, RecordSet, RecordType, TSigner};
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::{Instant, timeout};
use worker::connect::exchange::by_tcp;
use worker::connect::mx::Resolver;
use worker::ports::dns_of_the_system;
use worker::programs;

use super::error::AcmeError;
use crate::config::acme::{Acme, DnsUpdate};

/// How long a command, or a name server, may take.
const WAIT: Duration = Duration::from_secs(120);
/// How long a record may take to be seen through this server's own name servers, and how often they are asked.
const SEEN_WAIT: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// Seconds that others may keep the record.
const TTL: u32 = 60;
/// Seconds by which clocks may differ (RFC 8945 §10 says 300).
const FUDGE: u16 = 300;
/// Bytes of what a command says that are shown.
const SAID_MAX: usize = 500;

/// What is done to a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Added to those of its name.
    Add,
    /// Removed from them.
    Remove,
}

impl Change {
    fn word(self) -> &'static str {
        match self {
            Change::Add => "add",
            Change::Remove => "remove",
        }
    }
}

/// The name of the record for a name: that of all of a domain is the domain's (RFC 8555 §8.4).
pub fn record_name(name: &str) -> String {
    format!("_acme-challenge.{}", name.trim_start_matches("*."))
}

/// Adds or removes a TXT record.
///
/// # Errors
/// [`AcmeError::Record`]
pub async fn change(
    acme: &Acme,
    change: Change,
    name: &str,
    value: &str,
    cpus_of_workers: &[usize],
) -> Result<(), AcmeError> {
    let done = async {
        match &acme.dns_update {
            Some(update) => by_update(update, change, name, value).await,
            None => by_command(&acme.dns_command, change, name, value, cpus_of_workers).await,
        }
    };
    let late = || format!("it takes more than {} s", WAIT.as_secs());
    let done = timeout(WAIT, done).await.unwrap_or_else(|_| Err(late()));
    done.map_err(|why| AcmeError::Record { name: name.to_owned(), why })
}

async fn by_command(
    command: &[String],
    change: Change,
    name: &str,
    value: &str,
    cpus_of_workers: &[usize],
) -> Result<(), String> {
    let [program, arguments @ ..] = command else { return Err("there is neither dns-command nor dns-update".into()) };
    let mut started = Command::new(program);
    started.args(arguments).args([change.word(), name, value]);
    started.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let child = programs::start(started, cpus_of_workers.to_vec()).await;
    let mut child = child.map_err(|e| format!("{program} cannot be started: {e}"))?;
    let mut errors = child.stderr.take();
    let (mut said, mut block) = (Vec::new(), [0; 4096]);
    let status = loop {
        // All that it says is read, or it would end at a closed pipe; what it leaves running is not waited for.
        let read = async {
            match &mut errors {
                Some(e) => e.read(&mut block).await.unwrap_or(0),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            status = child.wait() => break status.map_err(|e| format!("{program}: {e}"))?,
            n = read => {
                let room = SAID_MAX.saturating_sub(said.len());
                said.extend_from_slice(&block[..n.min(room)]);
                if n == 0 {
                    errors = None;
                }
            }
        }
    };
    if let Some(mut e) = errors {
        // What it said last; where that is nothing, the wait has ended.
        let _ = timeout(Duration::from_millis(100), e.read(&mut block)).await.map(|n| {
            let n = n.unwrap_or(0).min(SAID_MAX.saturating_sub(said.len()));
            said.extend_from_slice(&block[..n]);
        });
    }
    match status.success() {
        true => Ok(()),
        false => Err(format!("{program} {}: {status}: {}", change.word(), ipc::text::clean_bytes(&said, SAID_MAX))),
    }
}

async fn by_update(update: &DnsUpdate, change: Change, name: &str, value: &str) -> Result<(), String> {
    let name = Name::from_ascii(format!("{name}.")).map_err(|e| e.to_string())?;
    let zone = zone_of(update.server, &name).await?;
    let mut set = RecordSet::new(name.clone(), RecordType::TXT, 0);
    set.insert(Record::from_rdata(name, TTL, RData::TXT(TXT::new(vec![value.to_owned()]))), 0);
    let mut message = match change {
        Change::Add => update_message::append(set, zone, false, false),
        Change::Remove => update_message::delete_by_rdata(set, zone, false),
    };
    let algorithm = TsigAlgorithm::from_name(Name::from_ascii(&update.algorithm).map_err(|e| e.to_string())?);
    let key = Name::from_ascii(&update.key).map_err(|e| e.to_string())?;
    let signer = TSigner::new(update.secret.clone(), algorithm, key, FUDGE).map_err(|e| e.to_string())?;
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let verifier = message.finalize(&signer, now_s).map_err(|e| e.to_string())?;
    let answer = exchange(update.server, &message).await?;
    let said = Message::from_vec(&answer).map_err(|e| e.to_string())?;
    match said.metadata.response_code {
        ResponseCode::NoError => {}
        code => return Err(format!("{} says {code} (key {}, {})", update.server, update.key, update.algorithm)),
    }
    // Whoever has the key has done it.
    match verifier.map(|mut v| v.verify(&answer)) {
        Some(Err(e)) => Err(format!("the answer of {} is not signed by the key {}: {e}", update.server, update.key)),
        _ => Ok(()),
    }
}

/// The zone of a name, as a name server that has it says.
async fn zone_of(server: SocketAddr, name: &Name) -> Result<Name, String> {
    let mut zone = name.clone();
    while !zone.is_root() {
        let mut question = Message::query();
        question.add_query(Query::query(zone.clone(), RecordType::SOA));
        let answer = Message::from_vec(&exchange(server, &question).await?).map_err(|e| e.to_string())?;
        if answer.answers.iter().any(|r| r.record_type() == RecordType::SOA && r.name == zone) {
            return Ok(zone);
        }
        zone = zone.base_name();
    }
    Err(format!("{server} has no zone that {name} is in"))
}

async fn exchange(server: SocketAddr, message: &Message) -> Result<Vec<u8>, String> {
    let bytes = message.to_vec().map_err(|e| e.to_string())?;
    by_tcp(server, &bytes).await.map_err(|e| format!("{server}: {e}"))
}

/// Waits until records are seen by the server's name servers; false where not all are in the time that there is. The authority
/// asks others, which may see them all the same.
pub async fn are_seen(name_servers: &[String], udp_bytes: u16, records: &[(String, String)]) -> bool {
    let until = Instant::now() + SEEN_WAIT;
    let mut unseen: Vec<&(String, String)> = records.iter().collect();
    while !unseen.is_empty() {
        // Each look begins anew: what is not there is remembered as well.
        if let Ok(resolver) = Resolver::new(name_servers, udp_bytes, &dns_of_the_system()) {
            let mut left = Vec::new();
            for record in unseen {
                // Where that cannot be said now, it is asked again.
                let found = resolver.txt(&record.0).await.unwrap_or_default();
                if !found.contains(&record.1) {
                    left.push(record);
                }
            }
            unseen = left;
        }
        if unseen.is_empty() || Instant::now() >= until {
            break;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    unseen.is_empty()
}
