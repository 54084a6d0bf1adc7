//! DNS answers that a validating resolver vouches for (RFC 4035 §3.2.3, RFC 6840 §5.7): asked
//! with DO, trusted by AD. Only resolvers that the configuration trusts are asked, for
//! whoever sits between can set that bit; those on this machine are trusted by themselves.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use hickory_proto::op::Message;
use hickory_proto::rr::{RData, RecordType};
use tokio::time::Instant;

use super::cache::Cache;
use super::dns::{CACHE_BYTES, CACHE_ENTRIES, bytes_of};
use super::exchange::{Question, Trouble, alias_of, data_of};
use super::mx::of_the_system;
use super::name_servers::NameServers;
use crate::ports::Dns;

/// How long a failure is remembered.
const FAILURE_TTL: Duration = Duration::from_secs(10);
/// Shortest and longest time that an answer is kept.
const TTL: (u32, u32) = (5, 86_400);

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The resolver validated it.
    pub secure: bool,
    /// What aliases led to; the name asked for when there were none.
    pub canonical: String,
    /// Data of the type asked for; none where it authoritatively does not exist.
    pub data: Vec<RData>,
}

/// Asks trusted resolvers.
#[derive(Debug)]
pub struct SecureResolver {
    servers: NameServers,
    /// The operator named them (`dnssec-name-server`).
    named: bool,
    known: RefCell<Cache<(String, RecordType), Known>>,
}

/// An answer, or why there is none.
pub type Known = Result<Rc<Answer>, String>;

impl SecureResolver {
    /// One that asks `trusted`, else those of `servers` (or of the system, when there are none)
    /// that are on this machine.
    pub fn new(trusted: &[String], servers: &[String], udp_bytes: u16, dns: &Rc<dyn Dns>) -> SecureResolver {
        let parsed = |all: &[String]| all.iter().filter_map(|s| s.parse().ok()).collect::<Vec<SocketAddr>>();
        let servers = match (trusted.is_empty(), servers.is_empty()) {
            (false, _) => parsed(trusted),
            (true, false) => parsed(servers).into_iter().filter(|s| s.ip().is_loopback()).collect(),
            (true, true) => of_the_system().unwrap_or_default().into_iter().filter(|s| s.ip().is_loopback()).collect(),
        };
        let known = RefCell::new(Cache::new(CACHE_ENTRIES, CACHE_BYTES));
        SecureResolver { servers: NameServers::at(servers, udp_bytes, dns), named: !trusted.is_empty(), known }
    }

    /// There is a resolver to trust.
    pub fn is_available(&self) -> bool {
        !self.servers.is_empty()
    }

    /// What failed to be found out is an error where the operator relies on these resolvers (RFC
    /// 7672 section 2.1.1). Of one that just happens to be on this machine it is taken to know
    /// nothing of DNSSEC, so that it defers no mail.
    ///
    /// # Errors
    /// The failure.
    pub fn vouched(&self, answer: Known) -> Result<Known, String> {
        match answer {
            Err(e) if self.named => Err(e),
            other => Ok(other),
        }
    }

    /// What is known of a name.
    ///
    /// # Errors
    /// A sentence when no server could say; also when what it found does not validate.
    pub async fn look_up(&self, name: &str, kind: RecordType) -> Known {
        let key = (name.to_owned(), kind);
        if let Some(answer) = self.known.borrow().get(&key) {
            return answer.clone();
        }
        let (ttl, answer) = self.ask(name, kind).await;
        let bytes = answer.as_ref().map_or_else(String::len, |a| bytes_of(&a.data));
        self.known.borrow_mut().insert(key, answer.clone(), bytes, Instant::now() + ttl);
        answer
    }

    async fn ask(&self, name: &str, kind: RecordType) -> (Duration, Known) {
        let failed = |why: String| (FAILURE_TTL, Err(format!("{kind} of {name}: {why}")));
        let Some(asked) = super::mx::name_of(name) else {
            return failed("not a domain name".into());
        };
        // A name server that validates sets AD also without EDNS; where it does not validate, no answer counts as secure.
        let question = Question { name: &asked, kind, authentic: true };
        match self.servers.ask(&question, |m| read(m, &question)).await {
            Ok((ttl, answer)) => (ttl, Ok(Rc::new(answer))),
            // None could find out, or what they found is forged.
            Err(e) => failed(e.to_string()),
        }
    }
}

/// Reads an answer, and how long it holds.
///
/// # Errors
/// The server does not know.
pub fn read(m: &Message, question: &Question<'_>) -> Result<(Duration, Answer), Trouble> {
    let (canonical, data) = data_of(m, question)?;
    if data.is_empty() && alias_of(m, &canonical).is_some() {
        return Err(Trouble::Aliases);
    }
    let lives = m.answers.iter().chain(m.authorities.iter().filter(|_| data.is_empty()));
    let ttl = lives.map(|r| r.ttl).min().unwrap_or(TTL.1).clamp(TTL.0, TTL.1);
    let canonical = canonical.to_ascii().trim_end_matches('.').to_ascii_lowercase();
    Ok((Duration::from_secs(u64::from(ttl)), Answer { secure: m.metadata.authentic_data, canonical, data }))
}
