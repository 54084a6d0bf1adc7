//! One question to one name server, by UDP, and by TCP what does not fit.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// Bytes that are read of a datagram: some servers send more than they are asked for.
const DATAGRAM_MAX: usize = 4096;
/// A question is sent so often within the time for its answer: datagrams get lost.
const SENDINGS: u32 = 2;

/// Aliases that are followed within one answer, which may hold thousands.
pub const ALIASES_MAX: usize = 8;

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The name.
    pub name: &'a Name,
    /// Type of the records.
    pub kind: RecordType,
    /// Whether it was validated is asked, too (RFC 3225, RFC 6840 section 5.7).
    pub authentic: bool,
}

/// Why a name server says nothing of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// No answer in time.
    Silent,
    /// An error.
    Says(ResponseCode),
    /// It is not recursive: other servers should be asked.
    Refers,
    /// The network has no way to it.
    Unreachable(String),
    /// By UDP the answer is cut, and by TCP there is none.
    Cut(String),
    /// No message of DNS, or the answer to something else.
    Unreadable,
    /// Aliases lead to aliases, more than are followed.
    Aliases,
}

impl Trouble {
    /// It is likely to be the same for other names.
    pub fn is_of_server(&self) -> bool {
        match self {
            Trouble::Silent | Trouble::Refers | Trouble::Unreachable(_) => true,
            Trouble::Says(code) => *code == ResponseCode::Refused,
            Trouble::Cut(_) | Trouble::Unreadable | Trouble::Aliases => false,
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Silent => f.write_str("does not answer"),
            Trouble::Says(code) => match mnemonic(*code) {
                Some(m) => write!(f, "says {m}"),
                None => write!(f, "says error {}", u16::from(*code)),
            },
            Trouble::Refers => f.write_str("refers to other name servers instead of asking them: it does no recursion"),
            Trouble::Unreachable(e) => write!(f, "cannot be reached: {e}"),
            Trouble::Cut(e) => write!(f, "cuts its answer, and gives none by TCP: {e}"),
            Trouble::Aliases => f.write_str("answers with aliases (CNAME) that come to no end"),
            Trouble::Unreadable => f.write_str("answers with what cannot be read"),
        }
    }
}

/// Codes as operators know them (RFC 1035 section 4.1.1, RFC 2136, RFC 6891).
fn mnemonic(code: ResponseCode) -> Option<&'static str> {
    Some(match code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::FormErr => "FORMERR",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::NotImp => "NOTIMP",
        ResponseCode::Refused => "REFUSED",
        ResponseCode::NotAuth => "NOTAUTH",
        // The same number; signed transactions are not asked for.
        ResponseCode::BADVERS | ResponseCode::BADSIG => "BADVERS",
        _ => return None,
    })
}

/// Asks, with EDNS (RFC 6891) for answers of so many bytes by UDP or without, and waits at most so long for the answer; as long again for one by TCP.
///
/// # Errors
/// [`Trouble`], but no error that the answer itself says.
pub async fn exchange(
    server: SocketAddr,
    question: &Question<'_>,
    edns: Option<u16>,
    wait: Duration,
) -> Result<Message, Trouble> {
    let unreachable = |e: std::io::Error| Trouble::Unreachable(reason(&e));
    let id = random().map_err(unreachable)?;
    let query = query(id, question, edns).ok_or(Trouble::Unreadable)?;
    let local: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(local).await.map_err(unreachable)?;
    socket.connect(server).await.map_err(unreachable)?;
    for _ in 0..SENDINGS {
        socket.send(&query).await.map_err(unreachable)?;
        let Ok(answer) = timeout(wait / SENDINGS, receive(&socket, id, question)).await else { continue };
        let answer = answer?;
        if !answer.metadata.truncation {
            return Ok(answer);
        }
        let whole = timeout(wait, by_tcp(server, &query));
        let whole = whole.await.map_err(|_| Trouble::Cut("no answer in time".into()))?;
        let whole = whole.map_err(|e| Trouble::Cut(reason(&e)))?;
        return answer_of(&whole, id, question)?.ok_or(Trouble::Unreadable);
    }
    Err(Trouble::Silent)
}

fn query(id: u16, question: &Question<'_>, edns: Option<u16>) -> Option<Vec<u8>> {
    let mut m = Message::new(id, MessageType::Query, OpCode::Query);
    m.metadata.recursion_desired = true;
    m.metadata.authentic_data = question.authentic;
    m.add_query(Query::query(question.name.clone(), question.kind));
    if let Some(udp_bytes) = edns {
        let mut edns = Edns::new();
        edns.set_dnssec_ok(question.authentic).set_max_payload(udp_bytes).set_version(0);
        m.set_edns(edns);
    }
    m.to_vec().ok()
}

/// The answer; what others send is passed over.
async fn receive(socket: &UdpSocket, id: u16, question: &Question<'_>) -> Result<Message, Trouble> {
    let mut buf = vec![0; DATAGRAM_MAX];
    loop {
        let n = socket.recv(&mut buf).await.map_err(|e| Trouble::Unreachable(reason(&e)))?;
        if buf[..n].first_chunk() != Some(&id.to_be_bytes()) {
            continue;
        }
        if let Some(answer) = answer_of(&buf[..n], id, question)? {
            return Ok(answer);
        }
    }
}

/// Reads the answer to a question; `None` for one to another.
///
/// # Errors
/// It is no message of DNS.
pub fn answer_of(bytes: &[u8], id: u16, question: &Question<'_>) -> Result<Option<Message>, Trouble> {
    let answer = Message::from_vec(bytes).map_err(|_| Trouble::Unreadable)?;
    Ok(fits(&answer, id, question).then_some(answer))
}

/// Sends a message to a name server by TCP, and answers what comes back (RFC 1035 §4.2.2).
///
/// # Errors
/// The socket's.
pub async fn by_tcp(server: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(&[&(query.len() as u16).to_be_bytes(), query].concat()).await?;
    let len = stream.read_u16().await?;
    let mut buf = vec![0; usize::from(len)];
    stream.read_exact(&mut buf).await?;
    Ok(buf)
}

/// The answer belongs to the question (RFC 5452 §9.1). An error need not repeat it.
fn fits(m: &Message, id: u16, question: &Question<'_>) -> bool {
    let is_error = !matches!(m.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain);
    let repeated = m.queries.first().map(|q| q.name() == question.name && q.query_type() == question.kind);
    m.metadata.id == id && m.metadata.message_type == MessageType::Response && repeated.unwrap_or(is_error)
}

/// What an answer has of the type asked for, and the name that it is of behind all aliases.
///
/// # Errors
/// The answer is an error.
pub fn data_of(m: &Message, question: &Question<'_>) -> Result<(Name, Vec<RData>), Trouble> {
    let code = m.metadata.response_code;
    if !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) {
        return Err(Trouble::Says(code));
    }
    let canonical = aliases(m, question);
    let of_type = m.answers.iter().filter(|r| r.name == canonical && r.record_type() == question.kind);
    let data = of_type.map(|r| r.data.clone()).collect();
    Ok((canonical, data))
}

/// The name that the aliases of an answer lead to; the one asked for where there are none, and where it is the alias that was
/// asked for.
fn aliases(m: &Message, question: &Question<'_>) -> Name {
    let mut canonical = question.name.clone();
    let most = if question.kind == RecordType::CNAME { 0 } else { ALIASES_MAX };
    for _ in 0..most {
        let Some(target) = alias_of(m, &canonical) else { break };
        canonical = target.clone();
    }
    canonical
}

/// What an answer says that a name is an alias of.
pub fn alias_of<'m>(m: &'m Message, name: &Name) -> Option<&'m Name> {
    m.answers.iter().filter(|r| r.name == *name).find_map(|r| match &r.data {
        RData::CNAME(target) => Some(&target.0),
        _ => None,
    })
}

/// What went wrong, without the number that the system gives it.
fn reason(e: &std::io::Error) -> String {
    let text = e.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

/// A number that nobody can guess.
#[expect(
    clippy::disallowed_methods,
    reason = "who guesses it can forge an answer; a simulated name server repeats what it is asked by"
)]
fn random() -> std::io::Result<u16> {
    let mut id = [0; 2];
    let random = rustls::crypto::aws_lc_rs::default_provider().secure_random;
    random.fill(&mut id).map_err(|_| std::io::Error::other("no random numbers"))?;
    Ok(u16::from_be_bytes(id))
}
