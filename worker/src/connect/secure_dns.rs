//! DNS answers that a validating resolver vouches for (RFC 4035 §3.2.3, RFC 6840 §5.7): asked
//! with DO, trusted by AD. Only resolvers that the configuration trusts are asked, for
//! whoever sits between can set that bit; those on this machine are trusted by themselves.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hickory_resolver::proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// Answers that are kept.
const CACHE_ENTRIES: usize = 16_384;
/// How long a server has for its answer.
const WAIT: Duration = Duration::from_secs(3);
/// Rounds over all servers.
const ROUNDS: usize = 2;
/// How long a failure is remembered.
const FAILURE_TTL: Duration = Duration::from_secs(10);
/// Shortest and longest time that an answer is kept.
const TTL: (u32, u32) = (5, 86_400);
/// Bytes of an answer by UDP that arrive unfragmented (RFC 6891 §6.2.5, flag day 2020).
const UDP_BYTES: u16 = 1232;

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
#[derive(Debug, Default)]
pub struct SecureResolver {
    servers: Vec<SocketAddr>,
    /// The operator named them (`dnssec-name-server`).
    named: bool,
    known: RefCell<HashMap<(String, RecordType), (Instant, Known)>>,
}

/// An answer, or why there is none.
pub type Known = Result<Rc<Answer>, String>;

impl SecureResolver {
    /// One that asks `trusted`, else those of `servers` (or of the system, when there are none)
    /// that are on this machine.
    pub fn new(trusted: &[String], servers: &[String]) -> SecureResolver {
        let parsed = |all: &[String]| all.iter().filter_map(|s| s.parse().ok()).collect::<Vec<SocketAddr>>();
        let servers = match (trusted.is_empty(), servers.is_empty()) {
            (false, _) => parsed(trusted),
            (true, false) => parsed(servers).into_iter().filter(|s| s.ip().is_loopback()).collect(),
            (true, true) => of_the_system().into_iter().filter(|s| s.ip().is_loopback()).collect(),
        };
        SecureResolver { servers, named: !trusted.is_empty(), known: RefCell::default() }
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
        if let Some((until, answer)) = self.known.borrow().get(&key)
            && *until > Instant::now()
        {
            return answer.clone();
        }
        let (ttl, answer) = self.ask(name, kind).await;
        let mut known = self.known.borrow_mut();
        if known.len() >= CACHE_ENTRIES {
            let now = Instant::now();
            known.retain(|_, (until, _)| *until > now);
            if known.len() >= CACHE_ENTRIES {
                known.clear();
            }
        }
        known.insert(key, (Instant::now() + ttl, answer.clone()));
        answer
    }

    async fn ask(&self, name: &str, kind: RecordType) -> (Duration, Known) {
        let failed = |why: String| (FAILURE_TTL, Err(format!("{kind} of {name}: {why}")));
        let Some(asked) = super::mx::name_of(name) else {
            return failed("not a domain name".into());
        };
        let mut last = "no resolver is trusted".to_owned();
        for server in self.servers.iter().cycle().take(self.servers.len() * ROUNDS) {
            match timeout(WAIT, exchange(*server, &asked, kind)).await {
                Ok(Ok(m)) => match m.metadata.response_code {
                    ResponseCode::NoError | ResponseCode::NXDomain => return read(&m, &asked, kind),
                    // It could not find out, or what it found is forged; others will say the same.
                    code => last = format!("{server} says {code}"),
                },
                Ok(Err(e)) => last = format!("{server}: {e}"),
                Err(_) => last = format!("{server} does not answer"),
            }
        }
        failed(last)
    }
}

fn of_the_system() -> Vec<SocketAddr> {
    let Ok((config, _)) = hickory_resolver::system_conf::read_system_conf() else { return Vec::new() };
    config.name_servers().iter().map(|s| SocketAddr::new(s.ip, 53)).collect()
}

fn read(m: &Message, asked: &Name, kind: RecordType) -> (Duration, Known) {
    let mut canonical = asked.clone();
    let mut ttl = TTL.1;
    // Who asks for an alias wants to see it.
    let aliases = if kind == RecordType::CNAME { 0 } else { m.answers.len() };
    for _ in 0..aliases {
        let alias = m.answers.iter().find(|r| r.name == canonical && r.record_type() == RecordType::CNAME);
        let Some(RData::CNAME(target)) = alias.map(|r| &r.data) else { break };
        canonical = target.0.clone();
    }
    let of_type = m.answers.iter().filter(|r| r.name == canonical && r.record_type() == kind);
    let data: Vec<RData> = of_type.map(|r| r.data.clone()).collect();
    let lives = m.answers.iter().chain(m.authorities.iter().filter(|_| data.is_empty()));
    lives.for_each(|r| ttl = ttl.min(r.ttl));
    let canonical = canonical.to_ascii().trim_end_matches('.').to_ascii_lowercase();
    let answer = Answer { secure: m.metadata.authentic_data, canonical, data };
    (Duration::from_secs(u64::from(ttl.clamp(TTL.0, TTL.1))), Ok(Rc::new(answer)))
}

async fn exchange(server: SocketAddr, name: &Name, kind: RecordType) -> std::io::Result<Message> {
    let wrong = |e: &dyn std::fmt::Display| std::io::Error::other(e.to_string());
    let id = rustls_random()?;
    let mut m = Message::new(id, MessageType::Query, OpCode::Query);
    m.metadata.recursion_desired = true;
    m.metadata.authentic_data = true;
    m.add_query(Query::query(name.clone(), kind));
    let mut edns = Edns::new();
    edns.set_dnssec_ok(true).set_max_payload(UDP_BYTES).set_version(0);
    m.set_edns(edns);
    let query = m.to_vec().map_err(|e| wrong(&e))?;
    let local: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(local).await?;
    socket.connect(server).await?;
    socket.send(&query).await?;
    let mut buf = vec![0; usize::from(u16::MAX)];
    loop {
        let n = socket.recv(&mut buf).await?;
        let Ok(answer) = Message::from_vec(&buf[..n]) else { continue };
        if !fits(&answer, id, name, kind) {
            continue;
        }
        return if answer.metadata.truncation { by_tcp(server, &query, id, name, kind).await } else { Ok(answer) };
    }
}

async fn by_tcp(server: SocketAddr, query: &[u8], id: u16, name: &Name, kind: RecordType) -> std::io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(&[&(query.len() as u16).to_be_bytes(), query].concat()).await?;
    let len = stream.read_u16().await?;
    let mut buf = vec![0; usize::from(len)];
    stream.read_exact(&mut buf).await?;
    let answer = Message::from_vec(&buf).map_err(|e| std::io::Error::other(e.to_string()))?;
    if fits(&answer, id, name, kind) { Ok(answer) } else { Err(std::io::Error::other("an answer to something else")) }
}

/// The answer belongs to the question (RFC 5452 §9.1).
fn fits(m: &Message, id: u16, name: &Name, kind: RecordType) -> bool {
    m.metadata.id == id
        && m.metadata.message_type == MessageType::Response
        && m.queries.first().is_some_and(|q| q.name() == name && q.query_type() == kind)
}

/// A number that nobody can guess.
fn rustls_random() -> std::io::Result<u16> {
    let mut id = [0; 2];
    let random = rustls::crypto::aws_lc_rs::default_provider().secure_random;
    random.fill(&mut id).map_err(|_| std::io::Error::other("no random numbers"))?;
    Ok(u16::from_be_bytes(id))
}
