//! A scripted SMTP receiver. The local part of a recipient decides its reply (`bad-…` is
//! refused, `later-…` deferred, anything else accepted); [`Script`] decides the rest. It is strict
//! where RFC 5321 is: a transaction stays open until its content is taken or RSET, and MAIL
//! within one is out of order.

use std::cell::Cell;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::tls;

/// A message as it came.
#[derive(Debug, Clone)]
pub struct Message {
    pub mail: String,
    pub rcpts: Vec<String>,
    pub content: String,
    pub tls: bool,
    pub from: IpAddr,
    pub hello: String,
}

/// What the receiver has seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// Times each recipient was accepted.
    pub delivered: HashMap<String, u32>,
    /// When each was, the first time.
    pub delivered_at: HashMap<String, Instant>,
    /// Times each recipient was deferred.
    pub deferred: HashMap<String, u32>,
    /// Messages in order.
    pub messages: Vec<Message>,
    /// Every command line in order.
    pub commands: Vec<String>,
    /// Of these, what came in a session whose content was answered with neither yes nor no.
    pub behind_354: Vec<String>,
    /// When each RCPT came.
    pub rcpts: Vec<Instant>,
    /// Commands that came out of order.
    pub out_of_order: u32,
    /// Connections so far, open now and at most.
    pub connections: u32,
    pub open: u32,
    pub open_max: u32,
    pub messages_per_connection_max: u32,
    /// When each connection came, and from where.
    pub opened: Vec<(Instant, IpAddr)>,
    /// Connections open now and at most, by the address that they come from.
    pub open_from: HashMap<IpAddr, (u32, u32)>,
    /// Of each TLS session that is over: whether it was resumed, and certificates that the client
    /// showed.
    pub tls: Vec<(bool, usize)>,
    /// When each message was taken, its bytes, and where it came from.
    pub taken: Vec<(Instant, usize, IpAddr)>,
}

/// What the receiver does.
#[derive(Debug, Clone)]
pub struct Script {
    /// Lines of the EHLO reply behind the first; STARTTLS works when it is among them.
    pub extensions: Vec<&'static str>,
    /// The greeting; a code other than 220 ends the session.
    pub greeting: &'static str,
    /// Accepts connections and says nothing.
    pub hang: bool,
    /// Replies that begin so come byte by byte, without end as long as this is set.
    pub drips: Option<&'static str>,
    /// The same for connections from one address.
    pub hang_from: Option<IpAddr>,
    /// Pause before the reply to a message's content.
    pub delay: Duration,
    /// Pause before 354.
    pub data_delay: Duration,
    /// Reply to DATA instead of 354.
    pub data_reply: Option<&'static str>,
    /// Recipients taken in one transaction.
    pub rcpt_max: usize,
    /// Reply to the content instead of acceptance.
    pub content_reply: Option<&'static str>,
    /// Closes without a word on reading this command.
    pub close_at: Option<&'static str>,
    /// Answers STARTTLS with 220 and then with rubbish.
    pub broken_tls: bool,
    /// Closes at a handshake that is to resume an earlier session.
    pub refuses_resumption: bool,
    /// Commands that begin so get this reply in the clear.
    pub needs_tls: Option<(&'static str, &'static str)>,
    /// Certificate to show instead of the usual one.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Reply to MAIL instead of acceptance.
    pub mail_reply: Option<&'static str>,
    /// Reply to every RCPT, or to those from one address.
    pub rcpt_reply: Option<(&'static str, Option<IpAddr>)>,
    /// Closes when that is a 421.
    pub closes_at_421: bool,
    /// Answers DATA by 354 though no recipient was accepted, as some do under PIPELINING.
    pub data_without_recipients: bool,
    /// Commands that hold this text get this reply, and do nothing.
    pub answers: Option<(&'static str, &'static str)>,
    /// Says 421 in place of a reply and closes after so many refusals in a session.
    pub refusals_max: usize,
}

impl Default for Script {
    fn default() -> Self {
        Script {
            extensions: vec!["PIPELINING", "8BITMIME", "SIZE 0"],
            greeting: "220 receiver.test",
            hang: false,
            drips: None,
            hang_from: None,
            delay: Duration::ZERO,
            data_delay: Duration::ZERO,
            data_reply: None,
            rcpt_max: usize::MAX,
            content_reply: None,
            close_at: None,
            broken_tls: false,
            refuses_resumption: false,
            needs_tls: None,
            tls: None,
            mail_reply: None,
            rcpt_reply: None,
            closes_at_421: false,
            data_without_recipients: false,
            answers: None,
            refusals_max: usize::MAX,
        }
    }
}

/// A receiver on an address of its own.
#[derive(Debug, Clone)]
pub struct Receiver {
    pub address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    script: Arc<Mutex<Script>>,
}

impl Receiver {
    pub fn start() -> Receiver {
        Self::at("127.0.0.9:0")
    }

    /// A receiver on a given address; port 0 lets the kernel choose.
    pub fn at(address: &str) -> Receiver {
        let listener = TcpListener::bind(address).unwrap();
        // The standard library's queue of 128 is too short where hundreds connect at once: the kernel drops the end of their
        // handshakes, and each client waits up to a minute for a greeting.
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::MAXCONN).unwrap();
        let address = listener.local_addr().unwrap();
        let r = Receiver { address, seen: Arc::default(), script: Arc::default() };
        let me = r.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let me = me.clone();
                std::thread::spawn(move || {
                    let from = stream.peer_addr().map_or(IpAddr::from([0, 0, 0, 0]), |a| a.ip());
                    me.with(|s| {
                        s.connections += 1;
                        s.open += 1;
                        s.open_max = s.open_max.max(s.open);
                        s.opened.push((Instant::now(), from));
                        let (open, most) = s.open_from.entry(from).or_default();
                        *open += 1;
                        *most = (*most).max(*open);
                    });
                    let left = Cell::new(false);
                    let _ = me.serve(stream, &left);
                    me.leave(from, &left);
                });
            }
        });
        r
    }

    /// Looks at, or changes, what was seen.
    pub fn with<T>(&self, f: impl FnOnce(&mut Seen) -> T) -> T {
        f(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes what the receiver does from the next command on.
    pub fn script(&self, f: impl FnOnce(&mut Script)) {
        f(&mut self.script.lock().unwrap());
    }

    fn now(&self) -> Script {
        self.script.lock().unwrap().clone()
    }

    /// Recipients delivered at least once.
    pub fn unique(&self) -> usize {
        self.with(|s| s.delivered.len())
    }

    /// Deliveries beyond the first of a recipient.
    pub fn duplicates(&self) -> u32 {
        self.with(|s| s.delivered.values().map(|n| n - 1).sum())
    }

    /// The first message to a recipient.
    pub fn message_to(&self, recipient: &str) -> Option<Message> {
        self.with(|s| s.messages.iter().find(|m| m.rcpts.iter().any(|r| r == recipient)).cloned())
    }

    /// Asserts that no window of `per` saw more than `most` recipients.
    pub fn assert_rate(&self, most: usize, per: Duration) {
        self.with(|s| {
            for (i, t) in s.rcpts.iter().enumerate() {
                let n = s.rcpts[i..].iter().take_while(|u| **u - *t < per).count();
                assert!(n <= most, "{n} recipients within {per:?}, {i} before");
            }
        });
    }

    /// Asserts that no window of `per` saw more than `most` in all.
    pub fn assert_window(events: &[(Instant, usize)], most: usize, per: Duration) {
        for (i, (t, _)) in events.iter().enumerate() {
            let n: usize = events[i..].iter().take_while(|(u, _)| *u - *t < per).map(|(_, n)| n).sum();
            assert!(n <= most, "{n} of {most} within {per:?}, {i} events before");
        }
    }

    /// `smtp-hosts` that leads here.
    pub fn hosts(&self) -> String {
        format!("smtp-hosts [{}]:{}", self.address.ip(), self.address.port())
    }

    /// A connection is over, once.
    fn leave(&self, from: IpAddr, left: &Cell<bool>) {
        if !left.replace(true) {
            self.with(|s| {
                s.open -= 1;
                s.open_from.entry(from).or_default().0 -= 1;
            });
        }
    }

    fn serve(&self, stream: TcpStream, left: &Cell<bool>) -> std::io::Result<()> {
        let from = stream.peer_addr()?.ip();
        while self.now().hang || self.now().hang_from == Some(from) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut session = Session {
            receiver: self,
            input: Vec::new(),
            io: stream,
            tls: false,
            from,
            left,
            hello: String::new(),
            count: 0,
            unclear: false,
        };
        let greeting = self.now().greeting;
        session.say(greeting)?;
        if !greeting.starts_with("220") || !session.run()? {
            return Ok(());
        }
        if self.now().broken_tls {
            return session.say("this is no TLS record").and_then(|()| session.line().map(|_| ()));
        }
        if self.now().refuses_resumption && resumes(&session.io)? {
            return Ok(());
        }
        let connection =
            rustls::ServerConnection::new(self.now().tls.unwrap_or_else(tls::server)).map_err(std::io::Error::other)?;
        let mut secure = Session {
            receiver: self,
            input: Vec::new(),
            io: rustls::StreamOwned::new(connection, session.io),
            tls: true,
            from,
            left,
            hello: String::new(),
            count: 0,
            unclear: false,
        };
        let over = secure.run().map(|_| ());
        let c = &secure.io.conn;
        let resumed = c.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
        let shown = c.peer_certificates().map_or(0, <[_]>::len);
        self.with(|s| s.tls.push((resumed, shown)));
        over
    }
}

/// Whether the client's first TLS record, which is left unread, is to resume a session.
fn resumes(stream: &TcpStream) -> std::io::Result<bool> {
    const KEY_SHARE: u16 = 51;
    const PRE_SHARED_KEY: u16 = 41;
    let mut record = vec![0; 16384];
    let mut n = stream.peek(&mut record)?;
    while n < 5 || n < 5 + usize::from(u16::from_be_bytes([record[3], record[4]])) {
        n = match stream.peek(&mut record)? {
            0 => return Ok(false),
            more => more,
        };
        std::thread::sleep(Duration::from_millis(1));
    }
    let two = |at: usize| u16::from_be_bytes([record[at], record[at + 1]]);
    // Behind the record's header, that of the message, version and random.
    let session_id = 5 + 4 + 2 + 32;
    let ciphers = session_id + 1 + usize::from(record[session_id]);
    let compression = ciphers + 2 + usize::from(two(ciphers));
    let mut at = compression + 1 + usize::from(record[compression]) + 2;
    let mut extensions = Vec::new();
    while at + 4 <= n {
        extensions.push(two(at));
        at += 4 + usize::from(two(at + 2));
    }
    // The session's number means that in TLS 1.2 only.
    let is_old = !extensions.contains(&KEY_SHARE);
    Ok(extensions.contains(&PRE_SHARED_KEY) || is_old && record[session_id] > 0)
}

struct Session<'a, S> {
    receiver: &'a Receiver,
    left: &'a Cell<bool>,
    input: Vec<u8>,
    io: S,
    tls: bool,
    from: IpAddr,
    hello: String,
    count: u32,
    /// The content was answered with 3yz.
    unclear: bool,
}

impl<S: Read + Write> Session<'_, S> {
    fn say(&mut self, line: &str) -> std::io::Result<()> {
        if self.receiver.now().drips.is_some_and(|reply| line.starts_with(reply)) {
            self.io.write_all(line.get(..3).unwrap_or_default().as_bytes())?;
            self.io.write_all(b"-")?;
            while self.receiver.now().drips.is_some() {
                self.io.write_all(b"x")?;
                self.io.flush()?;
                std::thread::sleep(Duration::from_millis(200));
            }
            self.io.write_all(b"\r\n")?;
        }
        self.io.write_all(format!("{line}\r\n").as_bytes())?;
        self.io.flush()
    }

    fn fill(&mut self) -> std::io::Result<()> {
        let mut block = [0; 16384];
        match self.io.read(&mut block)? {
            0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => {
                self.input.extend_from_slice(&block[..n]);
                Ok(())
            }
        }
    }

    fn take(&mut self, n: usize) -> std::io::Result<Vec<u8>> {
        while self.input.len() < n {
            self.fill()?;
        }
        Ok(self.input.drain(..n).collect())
    }

    fn line(&mut self) -> std::io::Result<Vec<u8>> {
        let mut from = 0;
        loop {
            if let Some(at) = self.input[from..].iter().position(|b| *b == b'\n') {
                return Ok(self.input.drain(..=from + at).collect());
            }
            from = self.input.len();
            self.fill()?;
        }
    }

    /// Serves until the end (false) or STARTTLS (true).
    fn run(&mut self) -> std::io::Result<bool> {
        let (mut mail, mut rcpts, mut chunks) = (String::new(), Vec::new(), Vec::new());
        // Between an accepted MAIL and the end of its transaction.
        let mut open = false;
        let mut refusals = 0;
        loop {
            let line = self.line()?;
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            let upper = text.to_ascii_uppercase();
            let script = self.receiver.now();
            self.receiver.with(|s| s.commands.push(text.clone()));
            if self.unclear {
                self.receiver.with(|s| s.behind_354.push(text.clone()));
            }
            if script.close_at.is_some_and(|c| upper.starts_with(c)) {
                return Ok(false);
            }
            if let Some((_, reply)) = script.answers.filter(|(has, _)| upper.contains(has)) {
                if let Some(n) = upper.strip_prefix("BDAT ").and_then(|r| r.split(' ').next()) {
                    self.take(n.parse().unwrap_or(0))?;
                }
                self.say(reply)?;
            } else if let Some((_, reply)) = script.needs_tls.filter(|(c, _)| !self.tls && upper.starts_with(c)) {
                self.say(reply)?;
            } else if upper.starts_with("EHLO") {
                open = false;
                text[4..].trim().clone_into(&mut self.hello);
                let offered: Vec<&str> =
                    script.extensions.iter().copied().filter(|x| !(self.tls && *x == "STARTTLS")).collect();
                let mut reply =
                    String::from(if offered.is_empty() { "250 receiver.test" } else { "250-receiver.test" });
                for (n, x) in offered.iter().enumerate() {
                    reply += &format!("\r\n250{}{x}", if n + 1 == offered.len() { ' ' } else { '-' });
                }
                self.say(&reply)?;
            } else if upper == "STARTTLS" && script.extensions.contains(&"STARTTLS") && !self.tls {
                self.say("220 2.0.0 go")?;
                return Ok(true);
            } else if upper.starts_with("MAIL") && open {
                self.receiver.with(|s| s.out_of_order += 1);
                self.say("503 5.5.1 nested MAIL")?;
            } else if upper.starts_with("MAIL") {
                rcpts.clear();
                chunks.clear();
                mail = text;
                let reply = script.mail_reply.unwrap_or("250 2.1.0 ok");
                open = reply.starts_with('2');
                self.say(reply)?;
            } else if upper.starts_with("RCPT") && !open {
                self.say("503 5.5.1 MAIL first")?;
            } else if upper.starts_with("RCPT") {
                let to = text.split(['<', '>']).nth(1).unwrap_or_default().to_owned();
                self.receiver.with(|s| s.rcpts.push(Instant::now()));
                if let Some((reply, _)) = script.rcpt_reply.filter(|(_, of)| of.is_none_or(|ip| ip == self.from)) {
                    self.receiver.with(|s| *s.deferred.entry(to).or_default() += 1);
                    self.say(reply)?;
                    if script.closes_at_421 && reply.starts_with("421") {
                        return Ok(false);
                    }
                } else if to.starts_with("bad-") && refusals >= script.refusals_max {
                    self.say("421 4.7.0 too many errors")?;
                    return Ok(false);
                } else if to.starts_with("bad-") {
                    refusals += 1;
                    self.say("550 5.1.1 no such user")?;
                } else if to.starts_with("busy-") {
                    self.say("421 4.7.0 busy")?;
                } else if to.starts_with("later-") {
                    self.receiver.with(|s| *s.deferred.entry(to).or_default() += 1);
                    self.say("450 4.2.1 try later")?;
                } else if rcpts.len() >= script.rcpt_max {
                    self.say("452 4.5.3 too many recipients")?;
                } else {
                    rcpts.push(to);
                    self.say("250 2.1.5 ok")?;
                }
            } else if upper == "DATA" {
                if rcpts.is_empty() && !script.data_without_recipients {
                    self.say(if open { "554 5.5.1 no recipients" } else { "503 5.5.1 MAIL first" })?;
                    continue;
                }
                if let Some(reply) = script.data_reply {
                    self.say(reply)?;
                    continue;
                }
                std::thread::sleep(script.data_delay);
                self.say("354 go")?;
                let mut content = Vec::new();
                loop {
                    let line = self.line()?;
                    if line == b".\r\n" {
                        break;
                    }
                    content.extend_from_slice(line.strip_prefix(b".").unwrap_or(&line));
                }
                open = self.conclude(&mail, &rcpts, &content)?;
            } else if let Some(rest) = upper.strip_prefix("BDAT ") {
                let mut words = rest.split(' ');
                let n = words.next().and_then(|n| n.parse().ok()).unwrap_or(0);
                chunks.extend(self.take(n)?);
                if rcpts.is_empty() {
                    self.say("503 5.5.1 no recipients")?;
                } else if words.next() == Some("LAST") {
                    open = self.conclude(&mail, &rcpts, &chunks)?;
                } else {
                    self.say("250 2.0.0 chunk")?;
                }
            } else if upper == "QUIT" {
                // Before the client can know, and open another.
                self.receiver.leave(self.from, self.left);
                self.say("221 bye")?;
                return Ok(false);
            } else if upper == "RSET" {
                open = false;
                self.say("250 2.0.0 ok")?;
            } else {
                self.say("250 ok")?;
            }
        }
    }

    /// Takes or refuses the content; whether the transaction is still open.
    fn conclude(&mut self, mail: &str, rcpts: &[String], content: &[u8]) -> std::io::Result<bool> {
        let script = self.receiver.now();
        std::thread::sleep(script.delay);
        if let Some(reply) = script.content_reply {
            self.unclear = reply.starts_with('3');
            self.say(reply)?;
            return Ok(true);
        }
        self.count += 1;
        self.receiver.with(|s| s.taken.push((Instant::now(), content.len(), self.from)));
        let message = Message {
            mail: mail.to_owned(),
            rcpts: rcpts.to_vec(),
            content: String::from_utf8_lossy(content).into_owned(),
            tls: self.tls,
            from: self.from,
            hello: self.hello.clone(),
        };
        self.receiver.with(|s| {
            for r in rcpts {
                *s.delivered.entry(r.clone()).or_default() += 1;
                s.delivered_at.entry(r.clone()).or_insert_with(Instant::now);
            }
            s.messages.push(message);
            s.messages_per_connection_max = s.messages_per_connection_max.max(self.count);
        });
        self.say("250 2.0.0 accepted")?;
        Ok(false)
    }
}
