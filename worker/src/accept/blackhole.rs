//! `dummy-smtp-…`: a receiver for tests that takes everything and keeps nothing.

use std::rc::Rc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use ipc::ledger::Class;
use ipc::snapshot::DummySmtp;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::shard::{Shard, add};
use crate::tasks::{self, AtEnd};

/// Bytes of a command line.
const LINE_BYTES_MAX: usize = 4096;
/// Silence after which a client is left.
const IDLE: Duration = Duration::from_secs(300);
/// Pause between looks for a free connection.
const SLOT_EVERY: Duration = Duration::from_millis(50);

/// Accepts on one listening socket, shared with the other workers, until the shard stops.
pub async fn accept(shard: Rc<Shard>, address: String, listener: Rc<TcpListener>) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                if !shard.serves(&address) {
                    return;
                }
                let shard = Rc::clone(&shard);
                tasks::begin("black hole", move || async move {
                    let options = shard.config().global.dummy_smtp.clone();
                    let slot = loop {
                        let places = shard.config().places.common();
                        match shard.ledger.take_among(Class::SmtpIn, shard.number, places, usize::from(peer.port())) {
                            None if options.await_slot => tokio::time::sleep(SLOT_EVERY).await,
                            slot => break slot,
                        }
                    };
                    let is_served = slot.is_some();
                    let mut slot = slot;
                    let _given_back = AtEnd(|| slot.take().into_iter().for_each(|s| shard.ledger.give(s)));
                    let mut client = Client { shard: &shard, options, stream, input: BytesMut::new(), recipients: 0 };
                    // What a client of a black hole does wrong is its own matter.
                    let _ = match is_served {
                        true => client.serve().await,
                        false => client.say("421 4.3.2 no free connection (total-max-smtp-in)").await,
                    };
                });
            }
            Err(e) => {
                if crate::log_limit::allows_line("accepting a connection failed", &address) {
                    tracing::warn!(listener = address, error = %e, "accepting a connection failed");
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

struct Client<'a> {
    shard: &'a Shard,
    options: DummySmtp,
    stream: TcpStream,
    input: BytesMut,
    recipients: u64,
}

impl Client<'_> {
    async fn say(&mut self, reply: &str) -> std::io::Result<()> {
        if self.options.latency_ms > 0 {
            tokio::time::sleep(Duration::from_millis(self.options.latency_ms)).await;
        }
        self.stream.write_all(format!("{reply}\r\n").as_bytes()).await
    }

    async fn read(&mut self) -> std::io::Result<()> {
        self.input.reserve(16 << 10);
        let got = tokio::time::timeout(IDLE, self.stream.read_buf(&mut self.input)).await;
        match got.unwrap_or(Ok(0))? {
            0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    async fn line(&mut self) -> std::io::Result<String> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.input) {
                let line = self.input.split_to(end + 1);
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            if self.input.len() > LINE_BYTES_MAX {
                return Err(std::io::Error::other("the line is too long"));
            }
            self.read().await?;
        }
    }

    async fn serve(&mut self) -> std::io::Result<()> {
        let _ = self.stream.set_nodelay(true);
        let host = self.shard.config().global.host_name.clone();
        self.say(&format!("220 {host} black hole")).await?;
        loop {
            let line = self.line().await?;
            let upper = line.to_ascii_uppercase();
            let verb = upper.split_whitespace().next().unwrap_or_default().to_owned();
            match verb.as_str() {
                "EHLO" => {
                    let mut lines = vec![host.clone(), "8BITMIME".into(), "SIZE 0".into()];
                    let more = [
                        (self.options.has_pipelining, "PIPELINING"),
                        (self.options.has_chunking, "CHUNKING"),
                        (self.options.has_verp, "VERP"),
                    ];
                    lines.extend(more.iter().filter(|(on, _)| *on).map(|(_, name)| (*name).to_owned()));
                    let last = lines.len() - 1;
                    let line = |(i, l): (usize, &String)| format!("250{}{l}", if i < last { '-' } else { ' ' });
                    self.say(&lines.iter().enumerate().map(line).collect::<Vec<_>>().join("\r\n")).await?;
                }
                "RCPT" => {
                    self.recipients += 1;
                    self.say("250 2.1.5 taken").await?;
                }
                "DATA" => {
                    self.say("354 go on").await?;
                    let bytes = self.content().await?;
                    self.taken(bytes).await?;
                }
                "BDAT" if self.options.has_chunking => {
                    let mut words = upper.split_whitespace().skip(1);
                    let bytes: usize = words.next().and_then(|n| n.parse().ok()).unwrap_or(0);
                    self.skip(bytes).await?;
                    match words.next() {
                        Some("LAST") => self.taken(bytes as u64).await?,
                        _ => self.say("250 2.0.0 go on").await?,
                    }
                }
                "QUIT" => return self.say("221 2.0.0 bye").await,
                "RSET" => {
                    self.recipients = 0;
                    self.say("250 2.0.0 forgotten").await?;
                }
                "MAIL" | "HELO" | "NOOP" | "VRFY" => self.say("250 2.0.0 fine").await?,
                _ => self.say("500 5.5.1 unknown command").await?,
            }
        }
    }

    async fn skip(&mut self, mut bytes: usize) -> std::io::Result<()> {
        while bytes > 0 {
            let n = bytes.min(self.input.len());
            self.input.advance(n);
            bytes -= n;
            if bytes > 0 {
                self.read().await?;
            }
        }
        Ok(())
    }

    /// Reads up to the lone dot, and answers how many bytes that were.
    async fn content(&mut self) -> std::io::Result<u64> {
        let mut bytes = 0;
        // The line end behind 354 counts as the one before a lone dot.
        let mut tail = b"\r\n".to_vec();
        loop {
            let from = tail.len();
            tail.extend_from_slice(&self.input);
            if let Some(at) = memchr::memmem::find(&tail, b"\r\n.\r\n") {
                let used = at + 5 - from;
                self.input.advance(used);
                return Ok(bytes + used as u64);
            }
            bytes += self.input.len() as u64;
            self.input.clear();
            tail.drain(..tail.len().saturating_sub(4));
            self.read().await?;
        }
    }

    async fn taken(&mut self, bytes: u64) -> std::io::Result<()> {
        if self.options.update_stats {
            add(&self.shard.counters.received, [self.recipients, 1, bytes]);
        }
        self.recipients = 0;
        self.say("250 2.0.0 gone for ever").await
    }
}
