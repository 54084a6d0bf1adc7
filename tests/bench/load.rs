//! The injecting application: sessions that send one message after another.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What is injected.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub messages: u64,
    pub sessions: u64,
    pub domains: u64,
    /// Half of the mail goes to the first domain.
    pub skewed: bool,
    pub bytes: usize,
    /// Number of the first domain, less one.
    pub behind: u64,
    /// Virtual MTAs `v1` and on that take turns; 0 for the default one.
    pub vmtas: u64,
}

impl Default for Load {
    fn default() -> Self {
        Load { messages: 0, sessions: 100, domains: 50, skewed: false, bytes: 10_000, behind: 0, vmtas: 0 }
    }
}

impl Load {
    /// The domain of message `n`, from 1.
    fn domain(&self, n: u64) -> u64 {
        self.behind + self.of_all(n)
    }

    fn of_all(&self, n: u64) -> u64 {
        match self.skewed {
            true if n.is_multiple_of(2) => 1,
            true => 1 + (n / 2) % self.domains,
            false => 1 + n % self.domains,
        }
    }
}

/// A message of about `bytes`.
pub fn content(bytes: usize) -> String {
    let header = "From: s@bench.test\r\nTo: u@bench.test\r\nSubject: bench\r\n\r\n";
    let line = "All work and no play makes a message of seventy-six octets on every line\r\n";
    let lines = bytes.saturating_sub(header.len()).div_ceil(line.len());
    format!("{header}{}.\r\n", line.repeat(lines))
}

/// A session with pipelining.
pub struct Session {
    stream: TcpStream,
    input: Vec<u8>,
    replies: Vec<u16>,
}

impl Session {
    pub fn open(to: SocketAddr) -> std::io::Result<Session> {
        let stream = TcpStream::connect(to)?;
        stream.set_nodelay(true)?;
        let mut s = Session { stream, input: Vec::new(), replies: Vec::new() };
        s.expect(1)?;
        s.stream.write_all(b"EHLO bench.test\r\n")?;
        s.expect(1)?;
        Ok(s)
    }

    /// Reads `n` replies; the last one's code.
    fn expect(&mut self, n: usize) -> std::io::Result<u16> {
        self.replies.clear();
        let mut block = [0; 4096];
        loop {
            while let Some(end) = memchr::memchr(b'\n', &self.input) {
                if self.input.get(3) != Some(&b'-') {
                    let code = std::str::from_utf8(&self.input[..3]).ok().and_then(|c| c.parse().ok());
                    self.replies.push(code.unwrap_or(0));
                }
                self.input.drain(..=end);
            }
            if self.replies.len() >= n {
                return Ok(self.replies[n - 1]);
            }
            match self.stream.read(&mut block)? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                got => self.input.extend_from_slice(&block[..got]),
            }
        }
    }

    /// Sends one message, with more in front of its header; the reply's code.
    pub fn send(&mut self, to: &str, header: &str, content: &[u8]) -> std::io::Result<u16> {
        let commands = format!("MAIL FROM:<s@bench.test>\r\nRCPT TO:<{to}>\r\nDATA\r\n");
        self.stream.write_all(commands.as_bytes())?;
        if self.expect(3)? != 354 {
            return Ok(self.replies[2]);
        }
        self.stream.write_all(header.as_bytes())?;
        self.stream.write_all(content)?;
        self.expect(1)
    }
}

/// Injects the load; answers how many messages were accepted.
pub fn inject(to: SocketAddr, load: Load) -> u64 {
    let content: Arc<[u8]> = content(load.bytes).into_bytes().into();
    let (next, accepted) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let sessions: Vec<_> = (0..load.sessions)
        .map(|_| {
            let (content, next, accepted) = (Arc::clone(&content), Arc::clone(&next), Arc::clone(&accepted));
            std::thread::spawn(move || {
                let mut s = Session::open(to).unwrap();
                loop {
                    let n = next.fetch_add(1, Relaxed);
                    if n >= load.messages {
                        return;
                    }
                    let recipient = format!("u{n}@d{}.test", load.domain(n));
                    let header = match load.vmtas {
                        0 => String::new(),
                        all => format!("x-virtual-mta: v{}\r\n", 1 + n % all),
                    };
                    match s.send(&recipient, &header, &content) {
                        Ok(250) => {
                            accepted.fetch_add(1, Relaxed);
                        }
                        Ok(_) => {}
                        Err(_) => s = Session::open(to).unwrap(),
                    }
                }
            })
        })
        .collect();
    sessions.into_iter().for_each(|s| s.join().unwrap());
    accepted.load(Relaxed)
}
