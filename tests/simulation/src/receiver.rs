//! A receiver of mail: an SMTP server of the world's own, strict about what it hears, with the faults that receivers have.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;

use crate::book::{Book, Life};
use crate::dice::Dice;
use crate::injector::{SUBJECT, digest};
use crate::pipe::{End, Scissors};

/// How a receiver behaves, in cases of a thousand.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Manner {
    /// It greets with 421.
    pub turns_away: u64,
    /// It defers a recipient (450).
    pub defers: u64,
    /// It refuses a recipient for good (550).
    pub refuses: u64,
    /// It defers each recipient at first.
    pub greylists: bool,
    /// It cuts the connection at a command.
    pub drops: u64,
    /// It cuts the connection behind the content, before it says anything.
    pub drops_content: u64,
    /// It says nothing more.
    pub hangs: u64,
    /// It takes so long for a reply at most, milliseconds.
    pub slow_ms: u64,
    /// It offers CHUNKING.
    pub chunking: bool,
    /// It offers PIPELINING.
    pub pipelining: bool,
    /// It offers STARTTLS.
    pub starttls: bool,
    /// It does not go on behind STARTTLS: it says that it cannot, closes the connection, or says something else than TLS.
    pub breaks_tls: u64,
}

/// What the shards' configuration allows at a receiver.
#[derive(Debug, Clone, Copy)]
pub struct Most {
    /// Connections from one source address.
    pub connections: usize,
    /// Messages on one connection.
    pub messages: usize,
}

/// One receiver.
#[derive(Debug)]
pub struct Receiver {
    /// Its domain.
    pub domain: String,
    /// Now.
    pub manner: Cell<Manner>,
    dice: Dice,
    book: Rc<RefCell<Book>>,
    /// Recipients that were deferred at first.
    grey: RefCell<BTreeMap<String, ()>>,
    /// Connections by source address. One that its shard has closed is none any more, whenever this receiver takes note.
    connections: RefCell<BTreeMap<IpAddr, Vec<Scissors>>>,
    most: Most,
}

/// Bytes within which a message has its subject.
const HEADER_BYTES_MAX: usize = 4096;

/// A transaction in progress.
#[derive(Default)]
struct Transaction {
    has_sender: bool,
    recipients: Vec<String>,
    content: Vec<u8>,
}

/// What becomes of the session.
enum Next {
    Goes,
    Ends,
}

/// How a conversation ended.
enum Ended {
    /// For good.
    Over,
    /// What follows is TLS.
    Secured,
}

/// Says something, and has it on its way.
async fn say(write: &mut (impl AsyncWrite + Unpin), text: &str) -> std::io::Result<()> {
    write.write_all(text.as_bytes()).await?;
    write.flush().await
}

/// What receivers show in TLS.
fn acceptor() -> TlsAcceptor {
    thread_local! {
        static ACCEPTOR: TlsAcceptor = {
            let pem = include_bytes!("receiver.pem");
            let chain = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().expect("it is a part of the program");
            let key = PrivateKeyDer::from_pem_slice(pem).expect("so is its key");
            let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .and_then(|c| c.with_no_client_auth().with_single_cert(chain, key))
                .expect("the key fits the certificate");
            TlsAcceptor::from(Arc::new(config))
        };
    }
    ACCEPTOR.with(Clone::clone)
}

impl Receiver {
    /// A receiver of mail for `domain`.
    pub fn new(domain: String, manner: Manner, most: Most, dice: Dice, book: Rc<RefCell<Book>>) -> Receiver {
        Receiver {
            domain,
            manner: Cell::new(manner),
            dice,
            book,
            grey: RefCell::default(),
            connections: RefCell::default(),
            most,
        }
    }

    fn violation(&self, what: String) {
        self.book.borrow_mut().violation(format!("{}: {what}", self.domain));
    }

    /// Serves a connection that a process of a shard opened from `source`.
    pub async fn serve(self: Rc<Self>, end: End, source: IpAddr, by: Life, scissors: Scissors) {
        let n = {
            let mut all = self.connections.borrow_mut();
            let of = all.entry(source).or_default();
            of.retain(|c| !c.is_closed());
            of.push(scissors.clone());
            of.len()
        };
        if n > self.most.connections {
            self.violation(format!("I3 {n} connections from {source}, {} may be", self.most.connections));
        }
        // Whatever goes wrong here is the connection's end.
        let _ = self.session(end, by, &scissors).await;
    }

    async fn session(&self, end: End, by: Life, scissors: &Scissors) -> std::io::Result<()> {
        let (mut io, mut messages) = (BufReader::new(end), 0);
        self.pause().await;
        if self.dice.permille(self.manner.get().turns_away) {
            return say(&mut io, "421 4.3.2 not now\r\n").await;
        }
        say(&mut io, &format!("220 {} ready\r\n", self.domain)).await?;
        let offers_tls = self.manner.get().starttls;
        if let Ended::Over = self.converse(&mut io, by, scissors, &mut messages, offers_tls).await? {
            return Ok(());
        }
        if !io.buffer().is_empty() {
            self.violation("clear text behind STARTTLS".into());
        }
        let mut io = BufReader::new(acceptor().accept(io.into_inner()).await?);
        self.converse(&mut io, by, scissors, &mut messages, false).await?;
        Ok(())
    }

    async fn pause(&self) {
        let most = self.manner.get().slow_ms;
        if most > 0 {
            sleep(Duration::from_millis(self.dice.below(most + 1))).await;
        }
    }

    async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        io: &mut BufReader<S>,
        by: Life,
        scissors: &Scissors,
        messages: &mut usize,
        offers_tls: bool,
    ) -> std::io::Result<Ended> {
        let (mut t, mut has_greeted) = (Transaction::default(), false);
        let mut line = Vec::new();
        loop {
            line.clear();
            if io.read_until(b'\n', &mut line).await? == 0 || !line.ends_with(b"\n") {
                // The client is gone, perhaps in the midst of a line.
                return Ok(Ended::Over);
            }
            let Some(text) = line.strip_suffix(b"\r\n").and_then(|l| std::str::from_utf8(l).ok()) else {
                self.violation(format!("a command line that is none: {:?}", String::from_utf8_lossy(&line)));
                return Ok(Ended::Over);
            };
            let manner = self.manner.get();
            if self.dice.permille(manner.hangs) {
                tokio::io::copy(io, &mut tokio::io::sink()).await?;
                return Ok(Ended::Over);
            }
            if self.dice.permille(manner.drops) {
                scissors.cut();
                return Ok(Ended::Over);
            }
            self.pause().await;
            let (verb, rest) = text.split_once(' ').unwrap_or((text, ""));
            let reply = match verb {
                "EHLO" | "HELO" => {
                    has_greeted = true;
                    t = Transaction::default();
                    let chunking = if manner.chunking { "250-CHUNKING\r\n" } else { "" };
                    let pipelining = if manner.pipelining { "250-PIPELINING\r\n" } else { "" };
                    let starttls = if offers_tls { "250-STARTTLS\r\n" } else { "" };
                    format!("250-{}\r\n{pipelining}{chunking}{starttls}250 8BITMIME\r\n", self.domain)
                }
                "STARTTLS" if !offers_tls => {
                    self.violation(format!("{text}, which was not offered, or is in use"));
                    "503 5.5.1 not now\r\n".into()
                }
                "STARTTLS" if self.dice.permille(manner.breaks_tls) => match self.dice.below(3) {
                    0 => "454 4.7.0 TLS is not available\r\n".into(),
                    1 => {
                        say(io, "220 2.0.0 go on\r\n").await?;
                        return Ok(Ended::Over);
                    }
                    _ => {
                        say(io, "220 2.0.0 go on\r\n").await?;
                        // In place of its hello.
                        say(io, "421 4.7.0 no TLS today\r\n").await?;
                        return Ok(Ended::Over);
                    }
                },
                "STARTTLS" => {
                    say(io, "220 2.0.0 go on\r\n").await?;
                    return Ok(Ended::Secured);
                }
                "MAIL" if !has_greeted || t.has_sender => {
                    self.violation(format!("{text} within a transaction, or before EHLO"));
                    "503 5.5.1 not now\r\n".into()
                }
                "MAIL" => {
                    *messages += 1;
                    if *messages > self.most.messages {
                        self.violation(format!(
                            "I3 {messages} messages on one connection, {} may be",
                            self.most.messages
                        ));
                    }
                    t = Transaction { has_sender: true, ..Transaction::default() };
                    "250 2.1.0 go on\r\n".into()
                }
                "RCPT" if !t.has_sender => "503 5.5.1 MAIL first\r\n".into(),
                "RCPT" => self.recipient(rest, &mut t),
                "RSET" => {
                    t = Transaction::default();
                    "250 2.0.0 forgotten\r\n".into()
                }
                "DATA" if t.recipients.is_empty() => "554 5.5.1 nobody to send it to\r\n".into(),
                "DATA" => {
                    say(io, "354 go on\r\n").await?;
                    content(io, &mut t.content).await?;
                    match self.take(&mut t, by, io, scissors).await? {
                        Next::Goes => continue,
                        Next::Ends => return Ok(Ended::Over),
                    }
                }
                "BDAT" => {
                    let (n, last) = rest.split_once(' ').unwrap_or((rest, ""));
                    let n: usize = n.parse().unwrap_or(0);
                    let from = t.content.len();
                    t.content.resize(from + n, 0);
                    io.read_exact(&mut t.content[from..]).await?;
                    if t.recipients.is_empty() {
                        t.content.clear();
                        "554 5.5.1 nobody to send it to\r\n".into()
                    } else if last == "LAST" {
                        match self.take(&mut t, by, io, scissors).await? {
                            Next::Goes => continue,
                            Next::Ends => return Ok(Ended::Over),
                        }
                    } else {
                        "250 2.0.0 a part\r\n".into()
                    }
                }
                "NOOP" => "250 2.0.0 nothing done\r\n".into(),
                "QUIT" => {
                    say(io, "221 2.0.0 bye\r\n").await?;
                    return Ok(Ended::Over);
                }
                _ => "500 5.5.2 what?\r\n".into(),
            };
            say(io, &reply).await?;
        }
    }

    fn recipient(&self, rest: &str, t: &mut Transaction) -> String {
        let address = rest.split_once('<').and_then(|(_, a)| a.split_once('>')).map(|(a, _)| a.to_owned());
        let Some(address) = address else { return "501 5.1.3 no address\r\n".into() };
        let manner = self.manner.get();
        if manner.greylists && self.grey.borrow_mut().insert(address.clone(), ()).is_none() {
            return "451 4.7.1 greylisted, try again\r\n".into();
        }
        if self.dice.permille(manner.defers) {
            return "450 4.2.1 later\r\n".into();
        }
        if self.dice.permille(manner.refuses) {
            self.book.borrow_mut().turned_away(&address);
            return "550 5.1.1 no such user\r\n".into();
        }
        t.recipients.push(address);
        "250 2.1.5 fine\r\n".into()
    }

    /// Takes a message, and says so.
    async fn take(
        &self,
        t: &mut Transaction,
        by: Life,
        write: &mut (impl AsyncWrite + Unpin),
        scissors: &Scissors,
    ) -> std::io::Result<Next> {
        let t = std::mem::take(t);
        self.pause().await;
        if self.dice.permille(self.manner.get().drops_content) {
            scissors.cut();
            return Ok(Next::Ends);
        }
        // The server has added to the header, before the subject.
        let is_it = |w: &[u8]| w[0] == SUBJECT.as_bytes()[0] && w == SUBJECT.as_bytes();
        let at = t.content.windows(SUBJECT.len()).take(HEADER_BYTES_MAX).position(is_it);
        let received = t.content.get(at.unwrap_or(0)..).unwrap_or_default();
        let number = received.get(SUBJECT.len()..).and_then(|n| n.split(|b| *b == b'\r').next());
        let number = number.and_then(|n| std::str::from_utf8(n).ok()?.parse::<u64>().ok());
        let Some(message) = number.filter(|_| at.is_some()) else {
            self.violation(format!("a message of {} bytes without a subject", t.content.len()));
            return Ok(Next::Ends);
        };
        let digest = digest(received);
        for r in &t.recipients {
            self.book.borrow_mut().delivered(r, (message, digest), by, scissors.clone());
        }
        say(write, "250 2.0.0 taken\r\n").await?;
        Ok(Next::Goes)
    }
}

/// Content behind DATA, up to its end (RFC 5321 §4.5.2).
async fn content(read: &mut (impl AsyncBufReadExt + Unpin), into: &mut Vec<u8>) -> std::io::Result<()> {
    loop {
        let from = into.len();
        if read.read_until(b'\n', into).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if into[from..] == *b".\r\n" {
            into.truncate(from);
            return Ok(());
        }
        if into[from] == b'.' {
            into.remove(from);
        }
    }
}
