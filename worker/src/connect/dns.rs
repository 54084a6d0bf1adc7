//! What DNS says of a name, kept as long as it holds.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{Name, RData, RecordType};
use ipc::dice::HashMap;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::cache::Cache;
use super::exchange::{ALIASES_MAX, Question, Trouble, alias_of, data_of};
use super::name_servers::{NameServers, Unanswered};
use crate::ports::Dns;

/// Answers that are kept, and bytes of their records.
pub const CACHE_ENTRIES: usize = 16_384;
/// See [`CACHE_ENTRIES`].
pub const CACHE_BYTES: usize = 32 << 20;
/// Shortest and longest time that records are kept, seconds.
const TTL: (u32, u32) = (1, 86_400);
/// The same of what does not exist.
const NEGATIVE_TTL: (u32, u32) = (10, 86_400);

/// What DNS says.
#[derive(Debug, Clone, PartialEq)]
pub enum Found {
    /// Data of the type asked for.
    Records(Vec<RData>),
    /// The name has none of the type.
    NoRecords,
    /// There is no such name.
    NoSuchName,
}

impl Found {
    /// The records; none where there are none.
    pub fn records(&self) -> &[RData] {
        match self {
            Found::Records(all) => all,
            Found::NoRecords | Found::NoSuchName => &[],
        }
    }
}

/// Why it is not known what DNS says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// No name server could say.
    #[error("{0}")]
    Unanswered(Unanswered),
    /// Aliases lead to aliases, too many of them or in a circle.
    #[error("its aliases (CNAME) come to no end")]
    Aliases,
}

/// An answer, or why there is none.
pub type Known = Result<Rc<Found>, Rc<Unknown>>;

/// What is asked for.
type Key = (Name, RecordType);

/// Asks and remembers.
#[derive(Debug)]
pub struct CachingResolver {
    servers: NameServers,
    known: RefCell<Cache<Key, Rc<Found>>>,
    /// Questions that are being asked, and their answers for all who wait for them.
    asking: RefCell<HashMap<Key, Rc<OnceCell<Known>>>>,
}

/// One who waits for an answer; the last of them takes the question away.
struct Waits<'a> {
    resolver: &'a CachingResolver,
    key: Key,
    answer: Rc<OnceCell<Known>>,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let mut asking = self.resolver.asking.borrow_mut();
        let is_that = |a: &Rc<OnceCell<Known>>| Rc::ptr_eq(a, &self.answer);
        // The map's and this one's.
        if Rc::strong_count(&self.answer) <= 2 && asking.get(&self.key).is_some_and(is_that) {
            asking.remove(&self.key);
        }
    }
}

impl CachingResolver {
    /// As the name servers at these addresses say, by UDP in so many bytes.
    pub fn of(servers: Vec<SocketAddr>, udp_bytes: u16, dns: &Rc<dyn Dns>) -> CachingResolver {
        let known = RefCell::new(Cache::new(CACHE_ENTRIES, CACHE_BYTES));
        CachingResolver { servers: NameServers::at(servers, udp_bytes, dns), known, asking: RefCell::default() }
    }

    /// What DNS says of a name. Who asks the same meanwhile waits for the same answer.
    ///
    /// # Errors
    /// It cannot be known now; only those who wait for it are told.
    pub async fn look_up(&self, name: &Name, kind: RecordType) -> Known {
        if let Some(found) = special(name, kind) {
            return Ok(Rc::new(found));
        }
        let key = (name.clone(), kind);
        if let Some(found) = self.known.borrow().get(&key) {
            return Ok(Rc::clone(found));
        }
        let answer = Rc::clone(self.asking.borrow_mut().entry(key.clone()).or_default());
        let waits = Waits { resolver: self, key, answer };
        let ask = || async {
            let (ttl, found) = self.follow(name, kind).await.map_err(Rc::new)?;
            let found = Rc::new(found);
            let until = Instant::now() + Duration::from_secs(ttl.into());
            let bytes = bytes_of(found.records());
            self.known.borrow_mut().insert(waits.key.clone(), Rc::clone(&found), bytes, until);
            Ok(found)
        };
        waits.answer.get_or_init(ask).await.clone()
    }

    /// Asks, and for what an alias leads to. Answers how long it holds, seconds.
    async fn follow(&self, name: &Name, kind: RecordType) -> Result<(u32, Found), Unknown> {
        let (mut name, mut ttl) = (name.clone(), TTL.1);
        for _ in 0..=ALIASES_MAX {
            let question = Question { name: &name, kind, authentic: false };
            let (lives, said) =
                self.servers.ask(&question, |m| read(m, &question)).await.map_err(Unknown::Unanswered)?;
            ttl = ttl.min(lives);
            match said {
                Said::Found(found) => return Ok((ttl, found)),
                Said::Alias(target) => name = target,
            }
        }
        Err(Unknown::Aliases)
    }
}

/// What records take in memory, roughly.
pub fn bytes_of(records: &[RData]) -> usize {
    let more = |r: &RData| match r {
        RData::TXT(t) => t.txt_data.iter().map(|t| t.len() + size_of::<Box<[u8]>>()).sum(),
        RData::TLSA(t) => t.cert_data.len(),
        // A name; the others asked for have none.
        _ => 64,
    };
    records.iter().map(|r| size_of::<RData>() + more(r)).sum()
}

/// What one answer says.
#[derive(Debug, PartialEq)]
pub enum Said {
    /// What was asked for.
    Found(Found),
    /// The name is another's, of which the answer says nothing.
    Alias(Name),
}

/// Reads an answer, and how long it holds, seconds.
///
/// # Errors
/// The server does not know.
pub fn read(m: &Message, question: &Question<'_>) -> Result<(u32, Said), Trouble> {
    let (canonical, data) = data_of(m, question)?;
    let ttl = m.answers.iter().map(|r| r.ttl).min().unwrap_or(TTL.1).clamp(TTL.0, TTL.1);
    if !data.is_empty() {
        return Ok((ttl, Said::Found(Found::Records(data))));
    }
    let soa = m.authorities.iter().find_map(|r| match &r.data {
        RData::SOA(soa) => Some(r.ttl.min(soa.minimum)),
        _ => None,
    });
    let negative = soa.unwrap_or_default().clamp(NEGATIVE_TTL.0, NEGATIVE_TTL.1);
    if m.metadata.response_code == ResponseCode::NXDomain {
        return Ok((negative, Said::Found(Found::NoSuchName)));
    }
    if soa.is_none() && canonical != *question.name {
        return Ok((ttl, Said::Alias(canonical)));
    }
    if soa.is_none() && alias_of(m, question.name).is_some() {
        // They lead back to it.
        return Err(Trouble::Aliases);
    }
    // Others know: that says nothing of whether there is something (RFC 2308 section 2.2). One that is neither asked to
    // find out nor in charge, and names nobody, does not know either.
    let refers = m.authorities.iter().any(|r| r.record_type() == RecordType::NS);
    let knows = m.metadata.recursion_available || m.metadata.authoritative;
    if soa.is_none() && (refers || !knows) {
        return Err(Trouble::Refers);
    }
    Ok((negative, Said::Found(Found::NoRecords)))
}

/// Names that no name server is asked for (RFC 6761 section 6, RFC 7686).
fn special(name: &Name, kind: RecordType) -> Option<Found> {
    let last = name.iter().next_back()?;
    let is = |label: &str| last.eq_ignore_ascii_case(label.as_bytes());
    if is("invalid") || is("onion") {
        return Some(Found::NoSuchName);
    }
    is("localhost").then(|| match kind {
        RecordType::A => Found::Records(vec![RData::A(A::new(127, 0, 0, 1))]),
        RecordType::AAAA => Found::Records(vec![RData::AAAA(AAAA::new(0, 0, 0, 0, 0, 0, 0, 1))]),
        _ => Found::NoRecords,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{MessageType, OpCode};
    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::{CNAME, MX, NS, SOA};

    fn name(text: &str) -> Name {
        crate::connect::mx::name_of(text).unwrap_or_default()
    }

    /// What an answer to "MX of d.test" says.
    fn said(code: ResponseCode, answers: Vec<(&str, RData)>, authorities: Vec<RData>) -> Result<Said, Trouble> {
        let mut m = Message::new(1, MessageType::Response, OpCode::Query);
        m.metadata.response_code = code;
        m.metadata.recursion_available = true;
        m.answers = answers.into_iter().map(|(of, d)| Record::from_rdata(name(of), 60, d)).collect();
        m.authorities = authorities.into_iter().map(|d| Record::from_rdata(name("test"), 60, d)).collect();
        let d = name("d.test");
        read(&m, &Question { name: &d, kind: RecordType::MX, authentic: false }).map(|(_, said)| said)
    }

    #[test]
    fn what_answers_say() {
        use ResponseCode::{NXDomain, NoError};
        let mx = || RData::MX(MX::new(10, name("mx.test")));
        let alias = || RData::CNAME(CNAME(name("e.test")));
        let soa = || RData::SOA(SOA::new(name("ns.test"), name("root.test"), 1, 2, 3, 4, 5));
        let ns = || RData::NS(NS(name("ns.test")));
        let records = || Ok(Said::Found(Found::Records(vec![mx()])));
        let (none, no_name) = (|| Ok(Said::Found(Found::NoRecords)), || Ok(Said::Found(Found::NoSuchName)));
        assert_eq!(said(NoError, vec![("D.test", mx())], vec![ns()]), records());
        assert_eq!(said(NoError, vec![("e.test", mx()), ("d.test", alias())], vec![]), records());
        assert_eq!(said(NoError, vec![("f.test", mx())], vec![]), none(), "another's");
        assert_eq!(said(NoError, vec![("d.test", alias())], vec![]), Ok(Said::Alias(name("e.test"))));
        assert_eq!(said(NoError, vec![("d.test", alias())], vec![soa()]), none());
        assert_eq!(said(NoError, vec![("f.test", alias())], vec![]), none(), "another's alias");
        let back = ("e.test", RData::CNAME(CNAME(name("d.test"))));
        assert_eq!(said(NoError, vec![("d.test", alias()), back], vec![]), Err(Trouble::Aliases), "a circle");
        assert_eq!(said(NXDomain, vec![("d.test", alias())], vec![]), no_name());
        // Aliases of one answer are followed so far; what is behind them is asked for.
        let chain: Vec<String> =
            (0..5000).map(|n| if n == 0 { "d.test".into() } else { format!("a{n}.test") }).collect();
        let links = chain.windows(2).map(|w| (w[0].as_str(), RData::CNAME(CNAME(name(&w[1])))));
        assert_eq!(said(NoError, links.collect(), vec![]), Ok(Said::Alias(name("a8.test"))));
        // RFC 2308 section 2.2: no data of types 1, 2 and 3, and a referral.
        assert_eq!(said(NoError, vec![], vec![ns(), soa()]), none());
        assert_eq!(said(NoError, vec![], vec![soa()]), none());
        assert_eq!(said(NoError, vec![], vec![]), none());
        assert_eq!(said(NoError, vec![], vec![ns()]), Err(Trouble::Refers));
        assert_eq!(said(NXDomain, vec![], vec![ns()]), no_name());
        let d = name("d.test");
        let question = Question { name: &d, kind: RecordType::MX, authentic: false };
        let nothing = Message::new(1, MessageType::Response, OpCode::Query);
        assert_eq!(read(&nothing, &question), Err(Trouble::Refers), "by a server that is not to know");
        assert_eq!(said(ResponseCode::Refused, vec![], vec![]), Err(Trouble::Says(ResponseCode::Refused)));
    }

    #[test]
    fn names_that_nobody_is_asked_for() {
        let v4 = special(&name("a.LocalHost"), RecordType::A);
        assert_eq!(v4, Some(Found::Records(vec![RData::A(A::new(127, 0, 0, 1))])));
        assert_eq!(special(&name("localhost"), RecordType::MX), Some(Found::NoRecords));
        assert_eq!(special(&name("x.invalid"), RecordType::MX), Some(Found::NoSuchName));
        assert_eq!(special(&name("localhost.test"), RecordType::A), None);
    }

    #[tokio::test]
    async fn questions_that_nobody_waits_for_any_more_are_forgotten() {
        // Nobody answers there.
        let silent = std::net::UdpSocket::bind("127.0.0.1:0").and_then(|s| Ok((s.local_addr()?, s)));
        let (at, _silent) = silent.unwrap_or_else(|e| panic!("a socket: {e}"));
        let system = crate::ports::dns_of_the_system();
        let dns = CachingResolver::of(vec![at], ipc::limits::EDNS_UDP_BYTES, &system);
        let d = name("d.test");
        {
            let both = async { tokio::join!(dns.look_up(&d, RecordType::MX), dns.look_up(&d, RecordType::MX)) };
            assert!(tokio::time::timeout(Duration::from_millis(50), both).await.is_err());
        }
        assert!(dns.asking.borrow().is_empty());
        let one = dns.look_up(&d, RecordType::MX);
        tokio::pin!(one);
        assert!(tokio::time::timeout(Duration::from_millis(50), one.as_mut()).await.is_err());
        assert_eq!(dns.asking.borrow().len(), 1);
    }
}
