//! The client's side of a session: bytes out, replies in, under timeouts.

use std::cell::Cell;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::client::TlsStream;

use super::security::Security;
use super::session_fault::{Doing, SessionFault};
use crate::classify::reply_rules::ReplyRules;
use crate::connect::protection::Parameters;
use crate::connect::tls::Negotiated;
use crate::ports::{ConnectFault, Net, Stream};
use crate::smtp::extension::Lesson;
use crate::smtp::flight::FlightFault;
use crate::smtp::reply::{self, Extensions, Reply};

/// Replies that are read while something is written, bytes: those to a thousand commands.
const UNREAD_MAX: usize = 1 << 20;
/// What the receiver may take after it said 421, and did not close.
const AFTER_421: Duration = Duration::from_secs(10);
/// How long the answer to QUIT is waited for.
const QUIT_ANSWERED: Duration = Duration::from_secs(5);

enum Io {
    Clear(Box<dyn Stream>),
    Tls(Box<TlsStream<Box<dyn Stream>>>),
    Gone,
}

/// A session with a receiver.
pub struct ClientSession {
    io: Io,
    buf: BytesMut,
    /// Host name, from MX.
    pub host: String,
    /// Its address.
    pub peer: SocketAddr,
    /// Our address.
    pub local: IpAddr,
    /// What the last EHLO offered.
    pub extensions: Extensions,
    /// Milliseconds from connecting to the last EHLO's reply; taken by the first message.
    pub connect_ms: Option<u64>,
    /// The end of a message's content is being written, or was.
    pub content_sent: Rc<Cell<bool>>,
    /// A firewall hides the greeting, and may lose the end of data that comes in parts.
    pub behind_pix: bool,
    /// The receiver has other hosts that are not left out.
    pub has_others: bool,
    /// The last reply was 421.
    closing: bool,
    /// What came of STARTTLS; `None` in the clear.
    pub tls: Option<Negotiated>,
    /// What TLS was negotiated with.
    pub parameters: Option<Parameters>,
    /// What is known of the host.
    pub lesson: Lesson,
    /// The receiver has spoken since we did.
    has_spoken: bool,
    /// Why nothing can be written any more; what the receiver said before is still read.
    unwritable: Option<SessionFault>,
    /// Rules that listen to what it says.
    pub reply_rules: Rc<ReplyRules>,
}

impl std::fmt::Debug for ClientSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientSession").field("host", &self.host).field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl ClientSession {
    /// Connects from `source`, if given.
    ///
    /// # Errors
    /// [`SessionFault::Io`], [`SessionFault::Timeout`].
    pub async fn connect(
        net: &dyn Net,
        host: &str,
        peer: SocketAddr,
        source: Option<IpAddr>,
        limit: Duration,
        reply_rules: &Rc<ReplyRules>,
    ) -> Result<ClientSession, SessionFault> {
        let fault = |f: ConnectFault| {
            let (doing, ip, e) = match f {
                ConnectFault::Source(e) => (Doing::Binding, source.unwrap_or(peer.ip()), e),
                ConnectFault::Peer(e) => (Doing::Connecting, peer.ip(), e),
            };
            SessionFault::Io { doing, host: host.to_owned(), ip, error: errno_name(&e) }
        };
        let stream = timeout(limit, net.connect(source, peer))
            .await
            .map_err(|_| SessionFault::Timeout { doing: Doing::Connecting, host: host.to_owned(), ip: peer.ip() })?
            .map_err(fault)?;
        let local = stream.local_addr().map_or(IpAddr::from([0, 0, 0, 0]), |a| a.ip());
        Ok(ClientSession {
            io: Io::Clear(stream),
            buf: BytesMut::new(),
            host: host.to_owned(),
            peer,
            local,
            extensions: Extensions::default(),
            connect_ms: None,
            content_sent: Rc::default(),
            behind_pix: false,
            has_others: false,
            closing: false,
            tls: None,
            parameters: None,
            lesson: Lesson::default(),
            has_spoken: false,
            unwritable: None,
            reply_rules: Rc::clone(reply_rules),
        })
    }

    fn timed_out(&self) -> SessionFault {
        SessionFault::Timeout { doing: Doing::Talking, host: self.host.clone(), ip: self.peer.ip() }
    }

    fn closed(&self) -> SessionFault {
        SessionFault::Closed { host: self.host.clone(), ip: self.peer.ip() }
    }

    fn io_fault(&self, e: &std::io::Error) -> SessionFault {
        use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        if matches!(e.kind(), ConnectionReset | BrokenPipe | ConnectionAborted | UnexpectedEof) {
            return self.closed();
        }
        SessionFault::Io { doing: Doing::Talking, host: self.host.clone(), ip: self.peer.ip(), error: errno_name(e) }
    }

    /// This reply as a fault.
    pub fn refused(&self, reply: Reply) -> SessionFault {
        SessionFault::Refused { reply, host: self.host.clone(), ip: self.peer.ip() }
    }

    /// What the receiver replied in a transaction, as a fault of this session.
    pub fn fault_of(&self, fault: FlightFault) -> SessionFault {
        let (host, ip) = (self.host.clone(), self.peer.ip());
        match fault {
            FlightFault::Refused(reply) => SessionFault::Refused { reply, host, ip },
            FlightFault::NoVerdict(reply) => {
                let reason = format!("\"{}\" in answer to content, which takes and refuses nothing", reply.text());
                SessionFault::Protocol { reason, host, ip }
            }
            FlightFault::OutOfStep { command, reply, concerned } => {
                SessionFault::OutOfStep { command, reply, concerned, host, ip }
            }
        }
    }

    /// Writes all parts, and reads meanwhile what the receiver says (RFC 2920 section 3.1): one that
    /// waits until its replies are read would wait for ever. `limit` is for each piece that is
    /// taken, so that a slow receiver which goes on has all the time it needs. A receiver that closed may
    /// have said why: its replies are read first, and the next read behind them is the fault.
    ///
    /// # Errors
    /// [`SessionFault`] when the receiver takes nothing in `limit`.
    pub async fn write(&mut self, parts: &mut [std::io::IoSlice<'_>], limit: Duration) -> Result<(), SessionFault> {
        let mut parts = parts;
        std::io::IoSlice::advance_slices(&mut parts, 0);
        self.has_spoken = false;
        loop {
            let step = match &mut self.io {
                Io::Clear(s) => timeout(limit, write_some(s, parts, &mut self.buf)).await,
                Io::Tls(s) => timeout(limit, write_some(&mut **s, parts, &mut self.buf)).await,
                Io::Gone => return Err(self.closed()),
            };
            match step {
                Ok(Ok(Step::Wrote(n))) => std::io::IoSlice::advance_slices(&mut parts, n),
                Ok(Ok(Step::Read)) => {}
                Ok(Ok(Step::Done)) => return Ok(()),
                Ok(Err(e)) => {
                    self.unwritable = Some(self.io_fault(&e));
                    // What is incomplete was not sent.
                    self.content_sent.set(false);
                    return Ok(());
                }
                Err(_) => return Err(self.timed_out()),
            }
        }
    }

    /// The next reply, the last byte of which has to be here within `limit`.
    ///
    /// # Errors
    /// [`SessionFault`] when there is none.
    pub async fn reply(&mut self, limit: Duration) -> Result<Reply, SessionFault> {
        // A receiver that goes on is alive, and one that has the content must not be given up early.
        let is_short = self.closing && !self.content_sent.get();
        let until = Instant::now() + if is_short { limit.min(AFTER_421) } else { limit };
        // However many replies are here, others have their turn between them.
        consume_budget().await;
        loop {
            match reply::parse(&self.buf) {
                Ok(Some((r, n))) => {
                    let _ = self.buf.split_to(n);
                    self.reply_rules.hear(&r);
                    self.closing = r.code == 421;
                    return Ok(r);
                }
                Ok(None) => {}
                Err(e) => {
                    return Err(SessionFault::Protocol {
                        reason: e.to_string(),
                        host: self.host.clone(),
                        ip: self.peer.ip(),
                    });
                }
            }
            if self.has_spoken {
                self.acknowledge();
            }
            let got = match &mut self.io {
                Io::Clear(s) => timeout_at(until, read_more(s, &mut self.buf)).await,
                Io::Tls(s) => timeout_at(until, read_more(&mut **s, &mut self.buf)).await,
                Io::Gone => return Err(self.closed()),
            };
            self.has_spoken = true;
            let fault = match got {
                Ok(Ok(0)) => self.closed(),
                Ok(Ok(_)) => continue,
                Ok(Err(e)) => self.io_fault(&e),
                Err(_) => self.timed_out(),
            };
            return Err(self.unwritable.take().unwrap_or(fault));
        }
    }

    /// Has what was read acknowledged at once (`tcp(7)`, TCP_QUICKACK). A receiver that writes each reply of a
    /// pipelined transaction by itself, with Nagle's algorithm on, sends the next one only when the one before is
    /// acknowledged; the system would put that off for 40 ms, for data of ours that could carry it. There is none: further
    /// replies are awaited first.
    fn acknowledge(&self) {
        match &self.io {
            Io::Clear(s) => s.acknowledge(),
            Io::Tls(s) => s.get_ref().0.acknowledge(),
            Io::Gone => {}
        }
    }

    /// Resolves when the receiver speaks or closes while nothing is expected of it.
    pub async fn disturbed(&mut self) {
        if !self.buf.is_empty() {
            return;
        }
        let _ = match &mut self.io {
            Io::Clear(s) => read_more(s, &mut self.buf).await,
            Io::Tls(s) => read_more(&mut **s, &mut self.buf).await,
            Io::Gone => Ok(0),
        };
    }

    /// Sends a command and waits for its reply.
    ///
    /// # Errors
    /// [`SessionFault`].
    pub async fn command(&mut self, line: &str, limit: Duration) -> Result<Reply, SessionFault> {
        self.write(&mut [std::io::IoSlice::new(line.as_bytes()), std::io::IoSlice::new(b"\r\n")], limit).await?;
        self.reply(limit).await
    }

    /// Takes leave. Whether the receiver answers is no matter.
    pub async fn quit(mut self) {
        let _ = self.command("QUIT", QUIT_ANSWERED).await;
    }

    /// EHLO, or HELO where the receiver knows no EHLO.
    ///
    /// # Errors
    /// [`SessionFault::Refused`] when it takes neither.
    pub async fn hello(&mut self, name: &str, limit: Duration) -> Result<(), SessionFault> {
        let reply = self.command(&format!("EHLO {name}"), limit).await?;
        if reply.is_positive() {
            self.extensions = Extensions::of(&reply);
            self.extensions.leave_out(&self.lesson);
            return Ok(());
        }
        if reply.code == 421 {
            return Err(self.refused(reply));
        }
        let reply = self.command(&format!("HELO {name}"), limit).await?;
        self.extensions = Extensions::default();
        if reply.is_positive() { Ok(()) } else { Err(self.refused(reply)) }
    }

    /// Negotiates TLS after the receiver's `220` to STARTTLS. What it sent in the clear
    /// behind that reply is an injection and ends the session (RFC 3207 §6).
    ///
    /// # Errors
    /// [`SessionFault`] when the handshake fails; the session is then over.
    pub async fn start_tls(
        &mut self,
        config: std::sync::Arc<rustls::ClientConfig>,
        security: &Security,
        limit: Duration,
    ) -> Result<(), SessionFault> {
        let (host, ip) = (self.host.clone(), self.peer.ip());
        if !self.buf.is_empty() {
            return Err(SessionFault::Protocol { reason: "clear text after the reply to STARTTLS".into(), host, ip });
        }
        let Io::Clear(stream) = std::mem::replace(&mut self.io, Io::Gone) else { return Ok(()) };
        let name = server_name(&self.host, ip);
        let connector = tokio_rustls::TlsConnector::from(config);
        let tls =
            timeout(limit, connector.connect(name, stream)).await.map_err(|_| self.timed_out())?.map_err(|e| {
                let about_certificate = matches!(
                    e.get_ref().and_then(|e| e.downcast_ref()),
                    Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented)
                );
                SessionFault::Handshake { error: e.to_string(), about_certificate, host, ip }
            })?;
        let (_, c) = tls.get_ref();
        self.tls = Some(Negotiated::of(c, &security.parameters.trust, security.policy));
        self.parameters = Some(security.parameters.clone());
        self.io = Io::Tls(Box::new(tls));
        Ok(())
    }
}

/// What TLS calls a host: its name, or its address where that is no name.
pub fn server_name(host: &str, ip: IpAddr) -> ServerName<'static> {
    ServerName::try_from(host.trim_end_matches('.').to_owned()).unwrap_or(ServerName::IpAddress(ip.into()))
}

async fn read_more(io: &mut (impl AsyncRead + Unpin), buf: &mut BytesMut) -> std::io::Result<usize> {
    buf.reserve(1024);
    io.read_buf(buf).await
}

/// What came of a piece of writing.
enum Step {
    Wrote(usize),
    Read,
    Done,
}

/// Writes what the receiver takes at once; where it takes nothing, reads what it says meanwhile. With
/// nothing left to write, sees that it is on its way.
async fn write_some(
    io: &mut (impl AsyncRead + AsyncWrite + Unpin),
    parts: &[std::io::IoSlice<'_>],
    said: &mut BytesMut,
) -> std::io::Result<Step> {
    std::future::poll_fn(|cx| {
        let written = match parts.is_empty() {
            true => Pin::new(&mut *io).poll_flush(cx).map_ok(|()| Step::Done),
            false => match Pin::new(&mut *io).poll_write_vectored(cx, parts) {
                Poll::Ready(Ok(0)) => Poll::Ready(Err(std::io::ErrorKind::WriteZero.into())),
                other => other.map_ok(Step::Wrote),
            },
        };
        if written.is_ready() || said.len() >= UNREAD_MAX {
            return written;
        }
        said.reserve(1024);
        let mut reading = std::pin::pin!(io.read_buf(said));
        match reading.as_mut().poll(cx) {
            Poll::Ready(Ok(0)) => Poll::Ready(Err(std::io::ErrorKind::UnexpectedEof.into())),
            other => other.map_ok(|_| Step::Read),
        }
    })
    .await
}

/// `ECONNREFUSED` and the like, as operators search for them.
fn errno_name(e: &std::io::Error) -> String {
    match e.raw_os_error() {
        Some(n) => format!("{:?}", nix::errno::Errno::from_raw(n)),
        None => e.to_string(),
    }
}
