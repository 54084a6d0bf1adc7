//! Questions to name servers, one after the other, until one can say. Those that know no EDNS (RFC 6891) are asked without, and
//! what one refuses, cannot find out or leaves unanswered, the next is asked.

use std::cell::Cell;
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use tokio::time::Instant;

use super::exchange::{Question, Trouble};
use crate::ports::Dns;

/// How long an answer to a question with EDNS is waited for.
const EDNS_WAIT: Duration = Duration::from_secs(3);
/// How long one to a plain question is.
const PLAIN_WAIT: Duration = Duration::from_secs(5);
/// No server is asked when so long has passed since the first was; in the first round, half of it.
const WAIT: Duration = Duration::from_secs(24);
/// A server that answers only without EDNS is asked so for so long.
const PLAIN_FOR: Duration = Duration::from_secs(900);
/// One that answered a question with EDNS within this time knows it: what it leaves unanswered is slow.
const EDNS_KNOWN_FOR: Duration = Duration::from_secs(60);
/// A server that does not answer, or refuses, is asked behind the others for so long.
const LAST_FOR: Duration = Duration::from_secs(60);

/// Why no name server could say: each with its trouble.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unanswered(pub Vec<(SocketAddr, Trouble)>);

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (server, trouble)) in self.0.iter().enumerate() {
            let between = if i > 0 { "; " } else { "" };
            write!(f, "{between}name server {server} {trouble}")?;
        }
        Ok(())
    }
}

/// Name servers that are asked in turn.
#[derive(Debug)]
pub struct NameServers {
    all: Vec<NameServer>,
    /// `edns-udp-length`
    udp_bytes: u16,
    /// Where the next question begins.
    next: Cell<usize>,
}

#[derive(Debug)]
struct NameServer {
    address: SocketAddr,
    dns: Rc<dyn Dns>,
    /// It wants no EDNS until then.
    plain_until: Cell<Option<Instant>>,
    /// It answered a question with EDNS then.
    knew_edns: Cell<Option<Instant>>,
    /// Others are asked before it until then.
    last_until: Cell<Option<Instant>>,
}

/// A time that is still to come.
fn is_ahead(until: &Cell<Option<Instant>>) -> bool {
    until.get().is_some_and(|u| u > Instant::now())
}

impl NameServers {
    /// Those at these addresses, which may answer by UDP with so many bytes.
    pub fn at(addresses: Vec<SocketAddr>, udp_bytes: u16, dns: &Rc<dyn Dns>) -> NameServers {
        let server = |address| NameServer {
            address,
            dns: Rc::clone(dns),
            plain_until: Cell::default(),
            knew_edns: Cell::default(),
            last_until: Cell::default(),
        };
        NameServers { all: addresses.into_iter().map(server).collect(), udp_bytes, next: Cell::default() }
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Asks one server after the other, until what one says can be read; those that were silent once more without EDNS, which
    /// something on the way may drop.
    ///
    /// # Errors
    /// None could say.
    pub async fn ask<T>(
        &self,
        question: &Question<'_>,
        read: impl Fn(&Message) -> Result<T, Trouble>,
    ) -> Result<T, Unanswered> {
        let mut order: Vec<&NameServer> = self.all.iter().collect();
        let first = self.next.replace(self.next.get().wrapping_add(1)) % order.len().max(1);
        order.rotate_left(first);
        order.sort_by_key(|s| is_ahead(&s.last_until));
        let began = Instant::now();
        let mut troubles: Vec<(&NameServer, Trouble, bool)> = Vec::new();
        for server in order {
            let left = (WAIT / 2).saturating_sub(began.elapsed());
            if left.is_zero() {
                break;
            }
            let with_edns = !is_ahead(&server.plain_until);
            let said = if with_edns {
                server.ask(question, self.udp_bytes, left).await
            } else {
                server.plainly(question, left).await
            };
            match said.and_then(|m| read(&m)) {
                Ok(said) => return Ok(said),
                Err(trouble) => {
                    if trouble.is_of_server() {
                        server.last_until.set(Some(Instant::now() + LAST_FOR));
                    }
                    let once_more = with_edns && trouble == Trouble::Silent;
                    troubles.push((server, trouble, once_more));
                }
            }
        }
        for (server, trouble, _) in troubles.iter_mut().filter(|(_, _, once_more)| *once_more) {
            let left = WAIT.saturating_sub(began.elapsed());
            if left.is_zero() {
                break;
            }
            match server.plainly(question, left).await.and_then(|m| read(&m)) {
                Ok(said) => return Ok(said),
                Err(t) => *trouble = t,
            }
        }
        let unanswered = Unanswered(troubles.into_iter().map(|(s, t, _)| (s.address, t)).collect());
        tracing::debug!(name = %question.name, kind = %question.kind, why = %unanswered, "DNS cannot say");
        Err(unanswered)
    }
}

impl NameServer {
    /// Asks with EDNS, and at once without where the answer says that the server does not know it.
    async fn ask(&self, question: &Question<'_>, udp_bytes: u16, left: Duration) -> Result<Message, Trouble> {
        match self.dns.ask(self.address, question, Some(udp_bytes), left.min(EDNS_WAIT)).await {
            Ok(answer) if !wants_no_edns(&answer) => {
                if answer.edns.is_some() || is_word(&answer) {
                    self.knew_edns.set(Some(Instant::now()));
                    self.last_until.set(None);
                }
                Ok(answer)
            }
            Ok(_) | Err(Trouble::Unreadable) => self.plainly(question, left).await,
            Err(e) => Err(e),
        }
    }

    /// Asks without EDNS. That what was not answered with it is answered so is remembered.
    async fn plainly(&self, question: &Question<'_>, left: Duration) -> Result<Message, Trouble> {
        let answer = self.dns.ask(self.address, question, None, left.min(PLAIN_WAIT)).await.inspect_err(|e| {
            if matches!(e, Trouble::Cut(_)) {
                // With EDNS more fits.
                self.plain_until.set(None);
            }
        })?;
        if is_word(&answer) {
            let knows_edns = self.knew_edns.get().is_some_and(|at| at.elapsed() < EDNS_KNOWN_FOR);
            if !knows_edns && !is_ahead(&self.plain_until) {
                tracing::info!(name_server = %self.address, "it answers only without EDNS, and is asked so for a while");
                self.plain_until.set(Some(Instant::now() + PLAIN_FOR));
            }
            self.last_until.set(None);
        }
        Ok(answer)
    }
}

/// It says something of the name.
fn is_word(answer: &Message) -> bool {
    matches!(answer.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain)
}

/// The answer is one of those that servers give which know no EDNS, or not this version of it (RFC 6891 section 7, RFC 2671
/// section 5.3).
fn wants_no_edns(answer: &Message) -> bool {
    match answer.metadata.response_code {
        // BADSIG has the same number as BADVERS.
        ResponseCode::FormErr | ResponseCode::NotImp | ResponseCode::BADVERS | ResponseCode::BADSIG => true,
        // One that knows it says so with every answer.
        ResponseCode::ServFail => answer.edns.is_none(),
        _ => false,
    }
}
