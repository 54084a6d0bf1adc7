//! A matrix of what goes wrong in a transaction, at real servers, each followed by a good message on the
//! same connection: that one arrives once, whole, from its own sender, and is accounted once; nobody else
//! gets anything. `docs/receivers-tested.md` says which cells a server does by its own configuration.
//!
//! A run takes a third of the servers, chosen by date; `SLUICE_MATRIX=all` takes all.
#![allow(clippy::unwrap_used, missing_docs)]

mod relay;
mod server;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant, SystemTime};

use relay::Act::{Close, Close421, Go354, Refuse, Stay421};
use relay::At::{Data, End, Mail, Rcpt, Rset};
use relay::{Relay, Script};
use server::{Kept, Kind, Server};
use tests::client::Client;
use tests::engine::Engine;

const fn kind(name: &'static str, unpacked: bool, refuses: [bool; 4]) -> Kind {
    Kind { name, unpacked, refuses, listeners: false }
}

const SERVERS: [Kind; 8] = [
    Kind { listeners: true, ..kind("postfix", false, [true; 4]) },
    kind("exim4-daemon-light", true, [true; 4]),
    kind("opensmtpd", true, [true; 4]),
    kind("sendmail-bin", true, [true; 4]),
    kind("courier-mta", true, [false; 4]),
    kind("smtp-server", false, [true, true, false, true]),
    kind("haraka", false, [true; 4]),
    kind("aiosmtpd", false, [true, true, false, true]),
];

/// Says something that the runner does not keep to itself.
pub fn say(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// How a session's commands go.
struct Mode {
    name: &'static str,
    chunked: bool,
    pipelined: bool,
}

const MODES: [Mode; 4] = [
    Mode { name: "bp", chunked: true, pipelined: true },
    Mode { name: "dp", chunked: false, pipelined: true },
    Mode { name: "bn", chunked: true, pipelined: false },
    Mode { name: "dn", chunked: false, pipelined: false },
];

impl Mode {
    fn hidden(&self) -> &'static [&'static str] {
        match (self.chunked, self.pipelined) {
            (true, true) => &[],
            (false, true) => &["CHUNKING"],
            (true, false) => &["PIPELINING", "PIPECONNECT"],
            (false, false) => &["CHUNKING", "PIPELINING", "PIPECONNECT"],
        }
    }
}

/// What becomes of a recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Delivered,
    Bounced,
    /// It is delivered, or waits: once at most.
    Later,
    /// It waits for longer than the test lasts.
    Waits,
}

/// One thing that goes wrong.
struct Cell {
    name: String,
    /// Local part of the sender, without the cell's number.
    sender: String,
    /// Local parts of recipients and what becomes of them.
    recipients: Vec<(String, Fate)>,
    script: Script,
    /// Connections that it may cost.
    costs: u32,
}

/// The cells for a server and a mode.
fn cells(kind: &Kind, mode: &Mode) -> Vec<Cell> {
    let mut all = Vec::new();
    for many in [false, true] {
        let n = if many { 5 } else { 1 };
        let of = |prefix: &str, n: usize, end: Fate| (0..n).map(|i| (format!("{prefix}{i}"), end)).collect::<Vec<_>>();
        let mut add = |name: String, sender: &str, recipients, script, costs| {
            let name = format!("{name}, {}", if many { "many recipients" } else { "one recipient" });
            all.push(Cell { name, sender: sender.into(), recipients, script, costs });
        };
        for code in [450, 550] {
            let end = if code == 450 { Fate::Waits } else { Fate::Bounced };
            let refused = format!("no{code}-");
            let at_rcpt = |also: Script| {
                let own = if kind.refuses[1] { None } else { Some((Rcpt, Refuse(code))) };
                own.into_iter().chain(also).collect::<Script>()
            };
            add(format!("all refused {code}"), "plain", of(&refused, n, end), at_rcpt(Vec::new()), 0);
            let both = [of(&refused, n, end), of("ok-", n, Fate::Delivered)].concat();
            add(format!("some refused {code}"), "plain", both, at_rcpt(Vec::new()), 0);
            for (at, prefix, own) in
                [(Mail, "mail", kind.refuses[0]), (Data, "data", kind.refuses[2]), (End, "end", kind.refuses[3])]
            {
                let sender = if own { format!("{prefix}{code}") } else { "plain".to_owned() };
                let script = if own { Vec::new() } else { vec![(at, Refuse(code))] };
                add(format!("{prefix} refused {code}"), &sender, of("ok-", n, end), script, 0);
            }
            let rset = at_rcpt(vec![(Rset, Refuse(code))]);
            add(format!("all refused {code}, RSET too"), "plain", of(&refused, n, end), rset, 1);
            if mode.pipelined && !mode.chunked {
                let go = at_rcpt(vec![(Data, Go354)]);
                add(format!("all refused {code}, 354 to DATA"), "plain", of(&refused, n, end), go, 1);
                let go = vec![(Mail, Refuse(code)), (Data, Go354)];
                add(format!("MAIL refused {code}, 354 to DATA"), "plain", of("ok-", n, end), go, 1);
            }
        }
        for at in [Mail, Rcpt, Data, End] {
            for act in [Close421, Stay421, Close] {
                add(format!("{act:?} at {at:?}"), "plain", of("ok-", n, Fate::Later), vec![(at, act)], 2);
            }
        }
        for act in [Close421, Close] {
            let own = if kind.refuses[1] { None } else { Some((Rcpt, Refuse(550))) };
            let script = own.into_iter().chain([(Rset, act)]).collect();
            add(format!("{act:?} at RSET"), "plain", of("no550-", n, Fate::Bounced), script, 2);
        }
    }
    all
}

const BODY: &str = ".a line that begins with a dot\r\n..two\r\n\r\nlast line of the body";

/// The part of the matrix that this run takes.
fn is_taken(kind: &Kind) -> bool {
    let part = SERVERS.iter().position(|k| k.name == kind.name).unwrap() % 3;
    let today = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() / 86400 % 3;
    std::env::var("SLUICE_MATRIX").is_ok_and(|v| v == "all" || v == kind.name) || part as u64 == today
}

struct Tried {
    number: u32,
    domain: String,
    cell: Cell,
}

fn matrix(name: &str) {
    let kind = SERVERS.iter().find(|k| k.name == name).unwrap();
    if !is_taken(kind) {
        say(&format!("matrix: {name} is not in today's third; SLUICE_MATRIX=all takes all"));
        return;
    }
    let Some(server) = Server::start(kind) else { return };
    let offers = server.offers();
    let able =
        |m: &&Mode| (offers.contains("CHUNKING") || !m.chunked) && (offers.contains("PIPELINING") || !m.pipelined);
    let modes: Vec<&Mode> = MODES.iter().filter(able).collect();
    let mut config = String::from("<domain s.test>\n type discard\n</domain>\n");
    let (mut relays, mut tried) = (Vec::new(), Vec::new());
    for (i, mode) in modes.iter().enumerate() {
        let listener = MODES.iter().position(|m| m.name == mode.name).unwrap() as u8;
        let relay = if kind.listeners {
            Relay::start(server.address(listener), &[])
        } else {
            Relay::start(server.address(0), mode.hidden())
        };
        let domain = format!("{}.mailbox.test", mode.name);
        let _ = write!(
            config,
            "<domain {domain}>\n smtp-hosts [{}]:{}\n max-smtp-out 1\n max-msg-per-connection 10000\n retry-after 1s\n \
             retry-recipients-after 1h\n use-starttls no\n</domain>\n",
            relay.address.ip(),
            relay.address.port()
        );
        for (n, cell) in cells(kind, mode).into_iter().enumerate() {
            let number = (1000 * (i + 1) + n) as u32;
            relay.script(number, cell.script.clone());
            tried.push(Tried { number, domain: domain.clone(), cell });
        }
        relays.push(relay);
    }
    let engine = Engine::start(1, &config);
    engine.run(&["pause", "queue", "*"]);
    let mut client = Client::connect(engine.smtp).unwrap();
    for t in &tried {
        let bad: Vec<String> = t.addresses().into_iter().map(|(a, _)| a).collect();
        let bad: Vec<&str> = bad.iter().map(String::as_str).collect();
        for (sender, to) in [(t.sender(), bad), (t.good_sender(), vec![&*t.good_recipient()])] {
            let content = format!("Subject: cell {}\r\n\r\n{}", t.number, BODY.replace("\r\n.", "\r\n.."));
            let content = content.replace("\r\n\r\n.a", "\r\n\r\n..a");
            assert_eq!(client.send(&sender, &to, &content).unwrap().0, 250);
        }
    }
    let began = Instant::now();
    engine.run(&["resume", "queue", "*"]);
    // Ends when all has come that must, or nothing new comes any more.
    let due = |t: &Tried| {
        let ends = t.addresses().into_iter().filter(|(_, f)| matches!(f, Fate::Delivered | Fate::Bounced));
        ends.map(|(a, _)| a).chain([t.good_recipient()]).collect::<Vec<_>>()
    };
    let due: Vec<String> = tried.iter().flat_map(due).collect();
    let (mut missing, mut since) = (usize::MAX, Instant::now());
    while since.elapsed() < Duration::from_secs(20) {
        let rows = rows(&engine);
        let is_over = |a: &&String| rows.get(*a).is_some_and(|r| r.iter().any(|r| r.0 != 't'));
        let now = due.len() - due.iter().filter(is_over).count();
        if now < missing {
            (missing, since) = (now, Instant::now());
        }
        // What was taken last is delivered at the server a moment later.
        if missing == 0 && since.elapsed() > Duration::from_secs(2) {
            break;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let took = began.elapsed().as_secs();
    let faults = judge(&tried, &rows(&engine), &server.kept(), &relays);
    let count = |what: &str| faults.iter().filter(|f| f.contains(what)).count();
    let names: Vec<&str> = modes.iter().map(|m| m.name).collect();
    let own = tried.iter().filter(|t| t.cell.script.is_empty()).count();
    let summary = format!(
        "matrix: {name} {names:?}: {} cells ({own} by its own configuration) in {took} s, {} connections: {} faults: lost {}, twice {}, \
         empty or foreign {}, good bounced {}, connections {}",
        tried.len(),
        relays.iter().map(Relay::connections).sum::<u32>(),
        faults.len(),
        count("LOST"),
        count("TWICE"),
        count("FOREIGN"),
        count("BOUNCED"),
        count("CONNECTIONS"),
    );
    say(&summary);
    if let Some(dir) = std::env::var_os("SLUICE_MATRIX_KEEP") {
        let lines: Vec<String> = relays.iter().flat_map(|r| r.transcript.lock().unwrap().clone()).collect();
        let file = std::path::Path::new(&dir).join(name);
        std::fs::write(file, faults.join("\n") + "\n\n" + &lines.join("\n") + "\n\n" + &server.log()).unwrap();
    }
    assert!(faults.is_empty(), "{summary}\n{}", faults.join("\n"));
}

impl Tried {
    fn sender(&self) -> String {
        format!("{}.{}@s.test", self.cell.sender, self.number)
    }

    fn good_sender(&self) -> String {
        format!("good.{}@s.test", self.number + 500)
    }

    fn good_recipient(&self) -> String {
        format!("good.{}@{}", self.number, self.domain)
    }

    /// Addresses of the message that fares badly, and what becomes of them.
    fn addresses(&self) -> Vec<(String, Fate)> {
        let of = |(local, end): &(String, Fate)| (format!("{local}.{}@{}", self.number, self.domain), *end);
        self.cell.recipients.iter().map(of).collect()
    }
}

/// Type and sender of every row, by recipient; reports to senders are left out.
fn rows(engine: &Engine) -> HashMap<String, Vec<(char, String)>> {
    let mut all: HashMap<String, Vec<(char, String)>> = HashMap::new();
    for line in tests::accounting::lines(engine.path()) {
        let cells = tests::accounting::cells(&line);
        if !cells[4].ends_with("@s.test") {
            let kind = cells[0].chars().next().unwrap();
            all.entry(cells[4].clone()).or_default().push((kind, cells[3].clone()));
        }
    }
    all
}

/// All that is not as it must be.
fn judge(tried: &[Tried], rows: &HashMap<String, Vec<(char, String)>>, kept: &[Kept], relays: &[Relay]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut expected: HashMap<(String, String), usize> = HashMap::new();
    for t in tried {
        let mut of_cell = vec![(t.good_sender(), t.good_recipient(), Fate::Delivered)];
        of_cell.extend(t.addresses().into_iter().map(|(a, end)| (t.sender(), a, end)));
        for (sender, recipient, end) in of_cell {
            let at = format!("{} [{}] {recipient}", t.cell.name, t.domain);
            let ends: Vec<_> = rows.get(&recipient).into_iter().flatten().filter(|r| r.0 != 't').collect();
            let copies = kept.iter().filter(|k| k.recipient == recipient && k.sender == sender).count();
            let want = match end {
                Fate::Delivered => vec!['d'],
                Fate::Bounced => vec!['b'],
                Fate::Later => vec!['d'; copies],
                Fate::Waits => vec![],
            };
            let got: Vec<char> = ends.iter().map(|r| r.0).collect();
            if matches!(end, Fate::Delivered | Fate::Later) && got.contains(&'b') {
                faults.push(format!("BOUNCED {at}"));
            } else if got != want {
                faults.push(format!("ROWS {at}: {got:?}, not {want:?}"));
            }
            if ends.iter().any(|r| r.1 != sender) {
                faults.push(format!("ROWS {at}: of another sender"));
            }
            match (end, copies) {
                (Fate::Delivered, 0) => faults.push(format!("LOST {at}")),
                (Fate::Delivered | Fate::Later, 1) => {}
                (_, 0) => {}
                (Fate::Delivered | Fate::Later, n) => faults.push(format!("TWICE {at}: {n} copies")),
                (_, n) => faults.push(format!("FOREIGN {at}: refused, and came {n} times")),
            }
            expected.insert((sender, recipient), 1);
        }
    }
    for k in kept {
        let at = format!("{} to {}", k.sender, k.recipient);
        if !expected.contains_key(&(k.sender.clone(), k.recipient.clone())) {
            faults.push(format!("FOREIGN {at}: nobody sent that"));
        }
        if !k.content.trim_end().ends_with(&BODY.replace("\r\n", "\n")) {
            faults.push(format!("FOREIGN {at}: not whole: {:?}", k.content));
        }
    }
    for relay in relays {
        for (cell, stray) in relay.strays.lock().unwrap().iter() {
            let t = tried.iter().find(|t| t.number == *cell).unwrap();
            if t.cell.name.starts_with("MAIL") || stray != b".\r\n" {
                faults.push(format!("FOREIGN {}: sent behind 354: {:?}", t.cell.name, String::from_utf8_lossy(stray)));
            }
        }
    }
    let allowed: u32 = tried.iter().map(|t| t.cell.costs).sum::<u32>() + 4 * relays.len() as u32;
    let used: u32 = relays.iter().map(Relay::connections).sum();
    if used > allowed {
        faults.push(format!("CONNECTIONS {used}, where {allowed} are enough"));
    }
    faults
}

#[test]
fn postfix() {
    matrix("postfix");
}

#[test]
fn exim() {
    matrix("exim4-daemon-light");
}

#[test]
fn opensmtpd() {
    matrix("opensmtpd");
}

#[test]
fn sendmail() {
    matrix("sendmail-bin");
}

#[test]
fn courier() {
    matrix("courier-mta");
}

#[test]
fn smtp_server() {
    matrix("smtp-server");
}

#[test]
fn haraka() {
    matrix("haraka");
}

#[test]
fn aiosmtpd() {
    matrix("aiosmtpd");
}
