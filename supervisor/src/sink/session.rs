//! One SMTP session of the test receiver.

use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use worker::smtp::command;

use super::Sink;
use super::rules::{Stage, Verdict};

/// Bytes of a command line, as RFC 5321 §4.5.3.1.4 with room for extensions.
const LINE_MAX: usize = 8192;
/// Recipients of a message.
const RECIPIENTS_MAX: usize = 1000;
/// Commands in a session that say nothing of use, one after the other.
const USELESS_MAX: u32 = 100;
/// How long a client may be silent.
const IDLE: Duration = Duration::from_secs(300);

/// Bytes of content that all sessions hold together.
const HELD_MAX: usize = 256 << 20;

/// A connection, in TLS or not.
trait Wire: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Wire for T {}

/// A session in progress.
pub struct Session {
    sink: Rc<Sink>,
    io: Box<dyn Wire>,
    in_tls: bool,
    buf: Vec<u8>,
    at: usize,
    out: Vec<u8>,
    greeted: bool,
    mail: Option<Mail>,
    useless: u32,
}

/// A message in progress.
#[derive(Debug, Default)]
struct Mail {
    from: String,
    utf8: bool,
    recipients: Vec<String>,
    /// Content so far, of which not more is held than the sink shows or keeps.
    content: Vec<u8>,
    /// There was no room to hold it.
    lacks_room: bool,
    size: u64,
    chunks: bool,
}

/// Whether the session goes on.
type Goes = io::Result<bool>;

impl Session {
    /// One that begins.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn new(sink: Rc<Sink>, io: TcpStream) -> io::Result<Session> {
        io.set_nodelay(true)?;
        let (io, in_tls): (Box<dyn Wire>, _) = (Box::new(io), false);
        Ok(Session {
            sink,
            io,
            in_tls,
            buf: Vec::new(),
            at: 0,
            out: Vec::new(),
            greeted: false,
            mail: None,
            useless: 0,
        })
    }

    /// Speaks until one of both ends it.
    ///
    /// # Errors
    /// Those of the connection.
    pub async fn run(mut self) -> io::Result<()> {
        self.say("220 sluice-sink ESMTP test receiver");
        while let Some(line) = self.line().await? {
            if !self.command(&line).await? {
                break;
            }
        }
        self.flush().await
    }

    fn say(&mut self, reply: &str) {
        self.out.extend_from_slice(reply.as_bytes());
        self.out.extend_from_slice(b"\r\n");
    }

    async fn flush(&mut self) -> io::Result<()> {
        if !self.out.is_empty() {
            within(self.io.write_all(&self.out)).await?;
            within(self.io.flush()).await?;
            self.out.clear();
        }
        Ok(())
    }

    /// Reads more; whether there was any. Replies go out before: a client that pipelines has sent all it has.
    async fn fill(&mut self) -> Goes {
        self.flush().await?;
        self.buf.drain(..std::mem::take(&mut self.at));
        let from = self.buf.len();
        self.buf.resize(from + (16 << 10), 0);
        let read = within(self.io.read(&mut self.buf[from..])).await;
        let n = *read.as_ref().unwrap_or(&0);
        self.buf.truncate(from + n);
        read.map(|n| n > 0)
    }

    /// The next line without its end; `None` at the end of the connection.
    async fn line(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.buf[self.at..]) {
                let line = &self.buf[self.at..self.at + end];
                let line = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line)).into_owned();
                self.at += end + 1;
                return Ok(Some(line));
            }
            if self.buf.len() - self.at > LINE_MAX {
                self.say("500 5.5.2 The line is too long");
                self.flush().await?;
                return Ok(None);
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    async fn command(&mut self, line: &str) -> Goes {
        let (verb, argument) = line.split_once(' ').unwrap_or((line, ""));
        let verb = verb.to_ascii_uppercase();
        self.useless = if matches!(verb.as_str(), "RCPT" | "DATA" | "BDAT") { 0 } else { self.useless + 1 };
        if self.useless > USELESS_MAX {
            self.say("421 4.7.0 Too many commands without mail");
            return Ok(false);
        }
        match verb.as_str() {
            "EHLO" => {
                self.end_mail();
                self.greeted = true;
                self.say("250-sluice-sink");
                for extension in ["PIPELINING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "CHUNKING", "DSN"] {
                    self.say(&format!("250-{extension}"));
                }
                if !self.in_tls {
                    self.say("250-STARTTLS");
                }
                self.say(&format!("250 SIZE {}", self.sink.size_max));
            }
            "HELO" => {
                self.end_mail();
                self.greeted = true;
                self.say("250 sluice-sink");
            }
            "STARTTLS" if !argument.trim().is_empty() => self.say("501 5.5.4 STARTTLS takes no arguments"),
            "STARTTLS" if !self.greeted || self.in_tls => self.say("503 5.5.1 Out of order"),
            "STARTTLS" => return self.start_tls().await,
            "MAIL" => self.mail(argument),
            "RCPT" => return self.rcpt(argument).await,
            "DATA" => return self.data().await,
            "BDAT" => return self.chunk(argument).await,
            "RSET" => {
                self.end_mail();
                self.say("250 2.0.0 Ok");
            }
            "NOOP" => self.say("250 2.0.0 Ok"),
            "QUIT" => {
                self.say("221 2.0.0 Bye");
                return Ok(false);
            }
            _ => self.say("500 5.5.1 Unknown command"),
        }
        Ok(true)
    }

    /// Goes on in TLS, and begins anew: what was said before counts for nothing, not even what came behind STARTTLS.
    async fn start_tls(&mut self) -> Goes {
        self.end_mail();
        self.greeted = false;
        self.say("220 2.0.0 Go ahead");
        self.flush().await?;
        self.buf.clear();
        self.at = 0;
        let plain = std::mem::replace(&mut self.io, Box::new(tokio::io::empty()));
        let handshake = self.sink.tls.accept(plain);
        self.io = Box::new(within(handshake).await?);
        self.in_tls = true;
        self.sink.count(|c| c.in_tls += 1);
        Ok(true)
    }

    fn mail(&mut self, argument: &str) {
        let Some(path) = command::keyword(argument, "FROM:") else {
            return self.say("501 5.5.4 Expected MAIL FROM:<address>");
        };
        if !self.greeted || self.mail.is_some() {
            return self.say("503 5.5.1 Out of order");
        }
        match command::mail(path, true) {
            Err(command::Refusal(code, status, text)) => self.say(&format!("{code} {status} {text}")),
            Ok(m) if m.size > self.sink.size_max => self.say("552 5.3.4 The message is too large"),
            Ok(m) => {
                self.mail = Some(Mail { from: m.sender, utf8: m.smtputf8, ..Default::default() });
                self.say("250 2.1.0 Ok");
            }
        }
    }

    async fn rcpt(&mut self, argument: &str) -> Goes {
        let Some(mail) = &mut self.mail else {
            self.say("503 5.5.1 Expected MAIL first");
            return Ok(true);
        };
        let parsed = command::keyword(argument, "TO:").map(|path| command::rcpt(path, mail.utf8));
        let to = match parsed {
            None => {
                self.say("501 5.5.4 Expected RCPT TO:<address>");
                return Ok(true);
            }
            Some(Err(command::Refusal(code, status, text))) => {
                self.say(&format!("{code} {status} {text}"));
                return Ok(true);
            }
            Some(Ok(rcpt)) => rcpt.address,
        };
        if mail.recipients.len() == RECIPIENTS_MAX {
            self.say("452 4.5.3 Too many recipients");
            return Ok(true);
        }
        let from = mail.from.clone();
        let verdict = self.verdict(Stage::Recipient, &from, std::slice::from_ref(&to)).await?;
        self.sink.count(|c| c.recipient(&verdict));
        match verdict {
            Verdict::Accept => {
                if let Some(mail) = &mut self.mail {
                    mail.recipients.push(to);
                }
                self.say("250 2.1.5 Ok");
                Ok(true)
            }
            other => self.answer(other),
        }
    }

    /// What the rules say, after the time that they want to pass.
    async fn verdict(&mut self, stage: Stage, from: &str, recipients: &[String]) -> io::Result<Verdict> {
        let (wait, verdict) = self.sink.rules.borrow_mut().decide(stage, from, recipients, Instant::now());
        if !wait.is_zero() {
            // What was answered before goes out before.
            self.flush().await?;
            tokio::time::sleep(wait).await;
        }
        Ok(verdict)
    }

    fn answer(&mut self, verdict: Verdict) -> Goes {
        match verdict {
            Verdict::Accept => self.say("250 2.0.0 Ok"),
            // What was answered before goes out all the same.
            Verdict::Drop => return Ok(false),
            Verdict::Reply { text, closes } => {
                self.say(&text);
                return Ok(!closes);
            }
        }
        Ok(true)
    }

    async fn data(&mut self) -> Goes {
        if !self.mail.as_ref().is_some_and(|m| !m.recipients.is_empty() && !m.chunks) {
            self.say("503 5.5.1 Expected RCPT first");
            return Ok(true);
        }
        self.say("354 End with a dot");
        // A line may be longer than what is held of it at a time; only at its beginning a dot means something.
        let mut begins = true;
        loop {
            let (piece, ends) = match memchr::memchr(b'\n', &self.buf[self.at..]) {
                Some(end) => (self.at..self.at + end + 1, true),
                None if self.buf.len() - self.at > LINE_MAX => (self.at..self.buf.len(), false),
                None if self.fill().await? => continue,
                None => return Ok(false),
            };
            self.at = piece.end;
            if begins && self.buf[piece.clone()] == *b".\r\n" {
                break;
            }
            let stuffed = usize::from(begins && self.buf[piece.start] == b'.');
            begins = ends;
            self.take(piece.start + stuffed..piece.end);
        }
        self.conclude().await
    }

    async fn chunk(&mut self, argument: &str) -> Goes {
        let mut words = argument.split_ascii_whitespace();
        let Some(mut left) = words.next().and_then(|n| n.parse::<u64>().ok()) else {
            self.say("501 5.5.4 Expected a number of bytes");
            return Ok(false);
        };
        let is_last = words.next().is_some_and(|w| w.eq_ignore_ascii_case("LAST"));
        let fits = self.mail.as_ref().is_some_and(|m| !m.recipients.is_empty());
        while left > 0 {
            if self.at == self.buf.len() && !self.fill().await? {
                return Ok(false);
            }
            let n = left.min((self.buf.len() - self.at) as u64);
            let piece = self.at..self.at + n as usize;
            self.at = piece.end;
            left -= n;
            if fits {
                self.take(piece);
            }
        }
        match (&mut self.mail, fits) {
            (Some(mail), true) if !is_last => {
                mail.chunks = true;
                self.say("250 2.0.0 Ok");
                Ok(true)
            }
            (Some(_), true) => self.conclude().await,
            _ => {
                self.say("503 5.5.1 Expected RCPT first");
                Ok(true)
            }
        }
    }

    /// Content: it is counted, and held as far as the sink wants it.
    fn take(&mut self, piece: std::ops::Range<usize>) {
        let Some(mail) = &mut self.mail else { return };
        mail.size += piece.len() as u64;
        let wanted = self.sink.held_max().saturating_sub(mail.content.len()).min(piece.len());
        if self.sink.held.get() + wanted > HELD_MAX {
            mail.lacks_room = true;
        }
        if !mail.lacks_room {
            mail.content.extend_from_slice(&self.buf[piece.start..piece.start + wanted]);
            self.sink.held.set(self.sink.held.get() + wanted);
        }
    }

    /// The message in progress, which is over; its content counts no longer.
    fn end_mail(&mut self) -> Option<Mail> {
        let mail = self.mail.take()?;
        self.sink.held.set(self.sink.held.get() - mail.content.len());
        Some(mail)
    }

    async fn conclude(&mut self) -> Goes {
        let Some(mail) = &self.mail else { return Ok(true) };
        let (lacks_room, is_too_large) = (mail.lacks_room, mail.size > self.sink.size_max);
        if lacks_room || is_too_large {
            self.end_mail();
        }
        if lacks_room {
            self.say("452 4.3.1 No room to hold more messages at a time");
            return Ok(true);
        }
        if is_too_large {
            self.say("552 5.3.4 The message is too large");
            return Ok(true);
        }
        let Some((from, recipients)) = self.mail.as_ref().map(|m| (m.from.clone(), m.recipients.clone())) else {
            return Ok(true);
        };
        // A verdict may take its time, and the content is held as long.
        let verdict = self.verdict(Stage::Content, &from, &recipients).await?;
        let Some(mail) = self.end_mail() else { return Ok(true) };
        self.sink.count(|c| c.content(&verdict, mail.size));
        if verdict == Verdict::Accept {
            self.sink.took(&mail.from, &mail.recipients, mail.size, &mail.content);
        }
        self.answer(verdict)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.end_mail();
    }
}

async fn within<T>(doing: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(IDLE, doing).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
