//! What DNS says of a name, kept as long as it holds.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::sync::OnceCell;

use super::exchange::{Question, Trouble, data_of};
use super::name_servers::{NameServers, Unanswered};

/// Answers that are kept.
const CACHE_ENTRIES: usize = 16_384;
/// Shortest and longest time that records are kept, seconds.
const TTL: (u32, u32) = (1, 86_400);
/// The same of what does not exist.
const NEGATIVE_TTL: (u32, u32) = (10, 86_400);
/// Aliases that are followed by further questions.
const ALIASES_MAX: usize = 8;

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

/// An answer and until when it holds; unset while the question is asked.
type Entry = Rc<OnceCell<(Instant, Known)>>;

/// Asks and remembers.
#[derive(Debug)]
pub struct Dns {
    servers: NameServers,
    known: RefCell<HashMap<(Name, RecordType), Entry>>,
}

impl Dns {
    /// As the name servers at these addresses say.
    pub fn of(servers: Vec<SocketAddr>) -> Dns {
        Dns { servers: NameServers::at(servers), known: RefCell::default() }
    }

    /// What DNS says of a name. Who asks the same meanwhile waits for the same answer.
    ///
    /// # Errors
    /// It cannot be known now.
    pub async fn look_up(&self, name: &Name, kind: RecordType) -> Known {
        if let Some(found) = special(name, kind) {
            return Ok(Rc::new(found));
        }
        let entry = self.entry(name, kind);
        let ask = || async {
            let (ttl, answer) = match self.follow(name, kind).await {
                Ok((ttl, found)) => (ttl, Ok(Rc::new(found))),
                // Only those who wait for it are told.
                Err(e) => (0, Err(Rc::new(e))),
            };
            (Instant::now() + Duration::from_secs(ttl.into()), answer)
        };
        entry.get_or_init(ask).await.1.clone()
    }

    /// What is known or being asked; else a new entry.
    fn entry(&self, name: &Name, kind: RecordType) -> Entry {
        let holds = |e: &Entry| e.get().is_none_or(|(until, _)| *until > Instant::now());
        let mut all = self.known.borrow_mut();
        let key = (name.clone(), kind);
        if let Some(entry) = all.get(&key).filter(|e| holds(e)) {
            return Rc::clone(entry);
        }
        if all.len() >= CACHE_ENTRIES {
            all.retain(|_, e| holds(e));
            // Else the next ones would have to look through all again.
            if all.len() >= CACHE_ENTRIES / 4 * 3 {
                all.clear();
            }
        }
        let entry = Entry::default();
        all.insert(key, Rc::clone(&entry));
        entry
    }

    /// Asks, and for what an alias leads to. Answers how long it holds, seconds.
    async fn follow(&self, name: &Name, kind: RecordType) -> Result<(u32, Found), Unknown> {
        let (mut name, mut ttl) = (name.clone(), TTL.1);
        for _ in 0..ALIASES_MAX {
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

/// What one answer says.
#[derive(Debug, PartialEq)]
enum Said {
    Found(Found),
    /// The name is another's, of which the answer says nothing.
    Alias(Name),
}

/// Reads an answer, and how long it holds, seconds.
fn read(m: &Message, question: &Question<'_>) -> Result<(u32, Said), Trouble> {
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
    if soa.is_none() && m.answers.iter().any(|r| r.record_type() == RecordType::CNAME) {
        return Ok((ttl, Said::Alias(canonical)));
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
        assert_eq!(said(NXDomain, vec![("d.test", alias())], vec![]), no_name());
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

    #[test]
    fn answers_in_memory_are_bounded() {
        let dns = Dns::of(Vec::new());
        (0..CACHE_ENTRIES + 10).for_each(|n| drop(dns.entry(&name(&format!("{n}.test")), RecordType::A)));
        assert!(dns.known.borrow().len() <= CACHE_ENTRIES);
    }
}
