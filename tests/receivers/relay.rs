//! Between Sluice and a real server: passes everything on, and for a transaction whose sender names a
//! cell of the matrix changes the one reply that the cell is about, or closes there.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Where in a transaction something happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    Mail,
    Rcpt,
    /// DATA, or the first BDAT.
    Data,
    /// The end of the content.
    End,
    Rset,
}

/// What happens there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// The command is not passed on; the reply is this code, each time.
    Refuse(u16),
    /// 421 once, and the connection is closed.
    Close421,
    /// 421 once, and to every command of the connection that follows, as Exim does.
    Stay421,
    /// The connection is closed once, without a word.
    Close,
    /// DATA is answered 354 though nobody was accepted; what comes then is kept and answered 250.
    Go354,
}

/// What a cell makes the relay do.
pub type Script = Vec<(At, Act)>;

/// A cell, and what was sent in it.
type Stray = (u32, Vec<u8>);

/// A relay on a port of its own.
#[derive(Debug, Clone)]
pub struct Relay {
    pub address: SocketAddr,
    cells: Arc<Mutex<HashMap<u32, Script>>>,
    done: Arc<Mutex<Vec<u32>>>,
    connections: Arc<AtomicU32>,
    /// What was sent behind a 354 that the relay gave, by cell.
    pub strays: Arc<Mutex<Vec<Stray>>>,
    /// Every line of commands and replies.
    pub transcript: Arc<Mutex<Vec<String>>>,
}

impl Relay {
    /// Leads to `server`; keywords of `hidden` are left out of its reply to EHLO.
    pub fn start(server: SocketAddr, hidden: &'static [&'static str]) -> Relay {
        let listener = TcpListener::bind("127.0.0.70:0").unwrap();
        let relay = Relay {
            address: listener.local_addr().unwrap(),
            cells: Arc::default(),
            done: Arc::default(),
            connections: Arc::default(),
            strays: Arc::default(),
            transcript: Arc::default(),
        };
        let me = relay.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let me = me.clone();
                std::thread::spawn(move || {
                    let number = me.connections.fetch_add(1, Ordering::Relaxed);
                    if let Ok(server) = TcpStream::connect(server) {
                        let _ = Connection::new(me, client, server, hidden, number).run();
                    }
                });
            }
        });
        relay
    }

    /// Sets what happens in a cell's transactions.
    pub fn script(&self, cell: u32, script: Script) {
        self.cells.lock().unwrap().insert(cell, script);
    }

    /// Connections so far.
    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }
}

/// One side's stream with what was read of it and not used.
struct Side {
    io: TcpStream,
    input: Vec<u8>,
}

impl Side {
    fn new(io: TcpStream) -> Side {
        let _ = io.set_nodelay(true);
        let _ = io.set_read_timeout(Some(Duration::from_secs(120)));
        Side { io, input: Vec::new() }
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

    fn line(&mut self) -> std::io::Result<Vec<u8>> {
        loop {
            if let Some(at) = self.input.iter().position(|b| *b == b'\n') {
                return Ok(self.input.drain(..=at).collect());
            }
            self.fill()?;
        }
    }

    fn take(&mut self, n: usize) -> std::io::Result<Vec<u8>> {
        while self.input.len() < n {
            self.fill()?;
        }
        Ok(self.input.drain(..n).collect())
    }

    /// A reply, all its lines.
    fn reply(&mut self) -> std::io::Result<Vec<u8>> {
        let mut all = Vec::new();
        loop {
            let line = self.line()?;
            all.extend_from_slice(&line);
            if line.get(3) != Some(&b'-') {
                return Ok(all);
            }
        }
    }

    /// Content to its single dot.
    fn content(&mut self) -> std::io::Result<Vec<u8>> {
        let mut all = Vec::new();
        loop {
            let line = self.line()?;
            all.extend_from_slice(&line);
            if line == b".\r\n" {
                return Ok(all);
            }
        }
    }
}

/// How a command is answered.
enum Answer {
    Server,
    Own(u16),
    /// After which the connection is over.
    Last(Option<u16>),
}

struct Connection {
    relay: Relay,
    client: Side,
    server: Side,
    hidden: &'static [&'static str],
    number: u32,
    cell: u32,
    script: Script,
    /// Every command is answered 421.
    says_421: bool,
}

impl Connection {
    fn new(relay: Relay, client: TcpStream, server: TcpStream, hidden: &'static [&'static str], number: u32) -> Self {
        let (client, server) = (Side::new(client), Side::new(server));
        let (cell, script) = (0, Vec::new());
        Connection { relay, client, server, hidden, number, cell, script, says_421: false }
    }

    fn note(&self, who: &str, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        let line = format!("{} {who} {}", self.number, text.trim_end());
        self.relay.transcript.lock().unwrap().push(line);
    }

    fn say(&mut self, reply: &[u8]) -> std::io::Result<()> {
        self.note("<", reply);
        self.client.io.write_all(reply)
    }

    fn run(&mut self) -> std::io::Result<()> {
        let greeting = self.server.reply()?;
        self.say(&greeting)?;
        loop {
            self.flight()?;
        }
    }

    /// Commands that came together go to the server together, and their replies come back in order.
    fn flight(&mut self) -> std::io::Result<()> {
        let mut answers = Vec::new();
        let mut onward = Vec::new();
        let mut hello = false;
        let mut data;
        loop {
            let line = self.client.line()?;
            self.note(">", &line);
            let upper = String::from_utf8_lossy(&line).to_ascii_uppercase();
            hello |= upper.starts_with("EHLO");
            if upper.starts_with("MAIL") {
                self.begin(&upper);
            }
            let is_spared = upper.starts_with("RCPT") && !upper.contains("<NO");
            let at = match upper.get(..4) {
                Some("MAIL") => Some(At::Mail),
                Some("RCPT") => Some(At::Rcpt),
                Some("DATA" | "BDAT") => Some(At::Data),
                Some("RSET") => Some(At::Rset),
                _ => None,
            };
            let chunk = match upper.strip_prefix("BDAT ").and_then(|r| r.split_whitespace().next()?.parse().ok()) {
                Some(n) => Some(self.client.take(n)?),
                None => None,
            };
            let answer = match self.answer(at) {
                // Only those whose names say so are refused.
                Answer::Own(code) if code != 421 && is_spared => Answer::Server,
                // The content of a BDAT ends with its command.
                Answer::Server if chunk.is_some() => self.answer(Some(At::End)),
                other => other,
            };
            if matches!(answer, Answer::Server) {
                onward.extend_from_slice(&line);
                onward.extend(chunk.unwrap_or_default());
            }
            let over = matches!(answer, Answer::Last(_));
            answers.push(answer);
            data = upper.trim_end() == "DATA";
            if over || data || !self.client.input.contains(&b'\n') {
                break;
            }
        }
        self.server.io.write_all(&onward)?;
        let mut go = None;
        for answer in answers {
            let reply = match answer {
                Answer::Server => {
                    let reply = self.server.reply()?;
                    if hello { self.without_hidden(&reply) } else { reply }
                }
                Answer::Own(code) => own(code),
                Answer::Last(code) => {
                    if let Some(code) = code {
                        self.say(&own(code))?;
                    }
                    let _ = self.client.io.shutdown(std::net::Shutdown::Both);
                    return Err(std::io::ErrorKind::ConnectionAborted.into());
                }
            };
            self.say(&reply)?;
            go = Some(reply);
        }
        if data && go.is_some_and(|r| r.starts_with(b"354")) { self.content() } else { Ok(()) }
    }

    /// The content behind a 354.
    fn content(&mut self) -> std::io::Result<()> {
        if self.script.contains(&(At::Data, Act::Go354)) {
            let stray = self.client.content()?;
            self.relay.strays.lock().unwrap().push((self.cell, stray));
            return self.say(&own(250));
        }
        let content = self.client.content()?;
        match self.answer(Some(At::End)) {
            Answer::Server => {
                self.server.io.write_all(&content)?;
                let reply = self.server.reply()?;
                self.say(&reply)
            }
            Answer::Own(code) => {
                // The server waits for content: only a new connection to it is without the transaction.
                let address = self.server.io.peer_addr()?;
                self.server = Side::new(TcpStream::connect(address)?);
                self.server.reply()?;
                self.server.io.write_all(b"EHLO relay.test\r\n")?;
                self.server.reply()?;
                self.say(&own(code))
            }
            Answer::Last(code) => {
                if let Some(code) = code {
                    self.say(&own(code))?;
                }
                let _ = self.client.io.shutdown(std::net::Shutdown::Both);
                Err(std::io::ErrorKind::ConnectionAborted.into())
            }
        }
    }

    /// A transaction begins: its sender's local part ends in `.CELL`.
    fn begin(&mut self, mail: &str) {
        let local = mail.split(['<', '@']).nth(1).unwrap_or_default();
        self.cell = local.rsplit('.').next().and_then(|n| n.parse().ok()).unwrap_or(0);
        // Replies that only once were others are as they should be ever after.
        let once = |act: &Act| matches!(act, Act::Close421 | Act::Stay421 | Act::Close);
        let done = self.relay.done.lock().unwrap().contains(&self.cell);
        let script = self.relay.cells.lock().unwrap().get(&self.cell).cloned().unwrap_or_default();
        self.script = script.into_iter().filter(|(_, act)| !(done && once(act))).collect();
    }

    fn answer(&mut self, at: Option<At>) -> Answer {
        if self.says_421 {
            return Answer::Own(421);
        }
        let act = self.script.iter().find(|(of, _)| Some(*of) == at).map(|(_, act)| *act);
        let over = |me: &Self| me.relay.done.lock().unwrap().push(me.cell);
        match act {
            None => Answer::Server,
            Some(Act::Refuse(code)) => Answer::Own(code),
            Some(Act::Go354) => Answer::Own(354),
            Some(Act::Close421) => {
                over(self);
                Answer::Last(Some(421))
            }
            Some(Act::Close) => {
                over(self);
                Answer::Last(None)
            }
            Some(Act::Stay421) => {
                over(self);
                self.says_421 = true;
                Answer::Own(421)
            }
        }
    }

    fn without_hidden(&self, reply: &[u8]) -> Vec<u8> {
        let text = String::from_utf8_lossy(reply);
        let kept: Vec<&str> = text
            .lines()
            .enumerate()
            .filter(|(n, l)| *n == 0 || !self.hidden.contains(&l[4..].split(' ').next().unwrap_or_default()))
            .map(|(_, l)| l)
            .collect();
        let mut out = String::new();
        for (n, line) in kept.iter().enumerate() {
            let sign = if n + 1 == kept.len() { ' ' } else { '-' };
            out += &format!("{}{sign}{}\r\n", &line[..3], &line[4..]);
        }
        out.into_bytes()
    }
}

fn own(code: u16) -> Vec<u8> {
    format!("{code} from the relay\r\n").into_bytes()
}
