//! A receiver that accepts everything with as little work as it can.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rustls::{HandshakeKind, ServerConfig, ServerConnection, StreamOwned};

/// Counters of a running sink.
#[derive(Debug)]
pub struct Sink {
    pub port: u16,
    /// Messages taken.
    pub messages: AtomicU64,
    /// When the last one was complete, nanoseconds since the epoch.
    pub last_ns: AtomicU64,
    /// Recipients are deferred instead.
    pub defer: AtomicBool,
    /// Recipients deferred.
    pub deferred: AtomicU64,
    /// STARTTLS is offered.
    pub tls: AtomicBool,
    /// Sessions that used it.
    pub sessions: AtomicU64,
    /// Those of them that went on with one before.
    pub resumed: AtomicU64,
    config: Arc<ServerConfig>,
}

/// What ended a conversation.
enum End {
    Quit,
    StartTls,
}

/// Nanoseconds since the epoch.
pub fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64
}

impl Sink {
    /// Listens on 127.0.2.1 to 127.0.2.`addresses`, one port.
    pub fn start(addresses: u8) -> Arc<Sink> {
        let first = TcpListener::bind("127.0.2.1:0").unwrap();
        let port = first.local_addr().unwrap().port();
        let sink = Arc::new(Sink {
            port,
            messages: AtomicU64::new(0),
            last_ns: AtomicU64::new(0),
            defer: AtomicBool::new(false),
            deferred: AtomicU64::new(0),
            tls: AtomicBool::new(false),
            sessions: AtomicU64::new(0),
            resumed: AtomicU64::new(0),
            config: tests::tls::server(),
        });
        let others = (2..=addresses).map(|n| TcpListener::bind(format!("127.0.2.{n}:{port}")).unwrap());
        for listener in std::iter::once(first).chain(others) {
            let sink = Arc::clone(&sink);
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let sink = Arc::clone(&sink);
                    let small = std::thread::Builder::new().stack_size(128 << 10);
                    let _ = small.spawn(move || sink.serve(stream));
                }
            });
        }
        sink
    }

    /// Waits until `n` messages have come in all, or nothing came for a minute.
    pub fn wait_for(&self, n: u64) -> bool {
        let mut last = (self.messages.load(Relaxed), Instant::now());
        while self.messages.load(Relaxed) < n {
            std::thread::sleep(std::time::Duration::from_millis(5));
            let now = self.messages.load(Relaxed);
            if now != last.0 {
                last = (now, Instant::now());
            } else if last.1.elapsed().as_secs() > 60 {
                return false;
            }
        }
        true
    }

    fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        stream.write_all(b"220 sink\r\n")?;
        if let End::Quit = self.talk(&mut stream, self.tls.load(Relaxed))? {
            return Ok(());
        }
        let connection = ServerConnection::new(Arc::clone(&self.config)).map_err(std::io::Error::other)?;
        let mut stream = StreamOwned::new(connection, stream);
        stream.flush()?;
        self.sessions.fetch_add(1, Relaxed);
        if stream.conn.handshake_kind() == Some(HandshakeKind::Resumed) {
            self.resumed.fetch_add(1, Relaxed);
        }
        self.talk(&mut stream, false).map(|_| ())
    }

    fn talk(&self, stream: &mut (impl Read + Write), offers_tls: bool) -> std::io::Result<End> {
        let (mut buf, mut have, mut replies) = (vec![0u8; 64 << 10], 0, Vec::new());
        let mut in_data = false;
        loop {
            let n = stream.read(&mut buf[have..])?;
            if n == 0 {
                return Ok(End::Quit);
            }
            have += n;
            let mut at = 0;
            loop {
                if in_data {
                    let Some(end) = find(&buf[at..have], b"\r\n.\r\n") else {
                        // What may be the beginning of the end stays.
                        let keep = (have - at).min(4);
                        at = have - keep;
                        break;
                    };
                    at += end + 5;
                    in_data = false;
                    self.messages.fetch_add(1, Relaxed);
                    self.last_ns.store(now_ns(), Relaxed);
                    replies.extend_from_slice(b"250 ok\r\n");
                    continue;
                }
                let Some(end) = find(&buf[at..have], b"\r\n") else { break };
                let line = &buf[at..at + end];
                at += end + 2;
                match line.first_chunk::<4>().map(|c| c.to_ascii_uppercase()).as_ref().map(|c| &c[..]) {
                    Some(b"EHLO") if offers_tls => {
                        replies.extend_from_slice(b"250-sink\r\n250-PIPELINING\r\n250-STARTTLS\r\n250 8BITMIME\r\n");
                    }
                    Some(b"STAR") if offers_tls => {
                        stream.write_all(b"220 go\r\n")?;
                        return Ok(End::StartTls);
                    }
                    Some(b"EHLO") => replies.extend_from_slice(b"250-sink\r\n250-PIPELINING\r\n250 8BITMIME\r\n"),
                    Some(b"RCPT") if self.defer.load(Relaxed) => {
                        self.deferred.fetch_add(1, Relaxed);
                        replies.extend_from_slice(b"450 4.2.1 later\r\n");
                    }
                    Some(b"DATA") if self.defer.load(Relaxed) => replies.extend_from_slice(b"554 no recipients\r\n"),
                    Some(b"DATA") => {
                        in_data = true;
                        replies.extend_from_slice(b"354 go\r\n");
                        // The dot may stand on the first line.
                        at -= 2;
                    }
                    Some(b"QUIT") => {
                        stream.write_all(b"221 bye\r\n")?;
                        stream.flush()?;
                        return Ok(End::Quit);
                    }
                    _ => replies.extend_from_slice(b"250 ok\r\n"),
                }
            }
            buf.copy_within(at..have, 0);
            have -= at;
            if !replies.is_empty() {
                stream.write_all(&replies)?;
                stream.flush()?;
                replies.clear();
            }
        }
    }
}

fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    memchr::memmem::find(hay, needle)
}
