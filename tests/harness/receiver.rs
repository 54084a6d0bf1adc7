//! A scripted SMTP receiver. The local part of a recipient decides its replies: `bad-…` is
//! refused, `later-…` deferred, anything else accepted.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What the receiver has seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// Times each recipient was accepted.
    pub delivered: HashMap<String, u32>,
    /// Times each recipient was deferred.
    pub deferred: HashMap<String, u32>,
    /// Messages in order: recipients and content.
    pub messages: Vec<(Vec<String>, String)>,
    /// When each RCPT came.
    pub rcpts: Vec<Instant>,
    /// Connections open now and at most.
    pub open: u32,
    pub open_max: u32,
    pub messages_per_connection_max: u32,
}

/// A receiver on a port of its own.
#[derive(Debug, Clone)]
pub struct Receiver {
    pub address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    hang: Arc<Mutex<bool>>,
}

impl Receiver {
    pub fn start() -> Receiver {
        let listener = TcpListener::bind("127.0.0.9:0").unwrap();
        let address = listener.local_addr().unwrap();
        let r = Receiver { address, seen: Arc::default(), hang: Arc::default() };
        let me = r.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let me = me.clone();
                std::thread::spawn(move || {
                    me.with(|s| {
                        s.open += 1;
                        s.open_max = s.open_max.max(s.open);
                    });
                    let _ = me.serve(&stream);
                    me.with(|s| s.open -= 1);
                });
            }
        });
        r
    }

    /// Looks at, or changes, what was seen.
    pub fn with<T>(&self, f: impl FnOnce(&mut Seen) -> T) -> T {
        f(&mut self.seen.lock().unwrap())
    }

    /// Lets the receiver accept connections and say nothing.
    pub fn hang(&self, yes: bool) {
        *self.hang.lock().unwrap() = yes;
    }

    /// Recipients delivered at least once.
    pub fn unique(&self) -> usize {
        self.with(|s| s.delivered.len())
    }

    /// Deliveries beyond the first of a recipient.
    pub fn duplicates(&self) -> u32 {
        self.with(|s| s.delivered.values().map(|n| n - 1).sum())
    }

    /// `smtp-hosts` that leads here.
    pub fn hosts(&self) -> String {
        format!("smtp-hosts [{}]:{}", self.address.ip(), self.address.port())
    }

    fn serve(&self, stream: &TcpStream) -> std::io::Result<()> {
        while *self.hang.lock().unwrap() {
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut out = stream.try_clone()?;
        let mut lines = BufReader::new(stream);
        out.write_all(b"220 receiver.test\r\n")?;
        let (mut rcpts, mut line, mut count) = (Vec::new(), Vec::new(), 0);
        loop {
            line.clear();
            if lines.read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            let upper = text.to_ascii_uppercase();
            if upper.starts_with("EHLO") {
                out.write_all(b"250-receiver.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE 0\r\n")?;
            } else if upper.starts_with("MAIL") {
                rcpts.clear();
                out.write_all(b"250 2.1.0 ok\r\n")?;
            } else if upper.starts_with("RCPT") {
                let to = text.split(['<', '>']).nth(1).unwrap_or_default().to_owned();
                self.with(|s| s.rcpts.push(Instant::now()));
                if to.starts_with("bad-") {
                    out.write_all(b"550 5.1.1 no such user\r\n")?;
                } else if to.starts_with("later-") {
                    self.with(|s| *s.deferred.entry(to).or_default() += 1);
                    out.write_all(b"450 4.2.1 try later\r\n")?;
                } else {
                    rcpts.push(to);
                    out.write_all(b"250 2.1.5 ok\r\n")?;
                }
            } else if upper == "DATA" {
                out.write_all(b"354 go\r\n")?;
                let mut content = String::new();
                loop {
                    line.clear();
                    if lines.read_until(b'\n', &mut line)? == 0 {
                        return Ok(());
                    }
                    if line == b".\r\n" {
                        break;
                    }
                    content.push_str(&String::from_utf8_lossy(line.strip_prefix(b".").unwrap_or(&line)));
                }
                if rcpts.is_empty() {
                    out.write_all(b"554 5.5.1 no recipients\r\n")?;
                    continue;
                }
                count += 1;
                self.with(|s| {
                    for r in &rcpts {
                        *s.delivered.entry(r.clone()).or_default() += 1;
                    }
                    s.messages.push((rcpts.clone(), content));
                    s.messages_per_connection_max = s.messages_per_connection_max.max(count);
                });
                out.write_all(b"250 2.0.0 accepted\r\n")?;
            } else if upper == "QUIT" {
                out.write_all(b"221 bye\r\n")?;
                return Ok(());
            } else {
                out.write_all(b"250 ok\r\n")?;
            }
        }
    }
}
