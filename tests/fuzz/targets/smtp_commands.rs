//! What clients send: `accept::session`, driven as `accept::listener` drives it.
//!
//! The input is a byte of rules, a byte that chooses `max-message-size` and whether senders are checked, a byte that cuts the
//! rest into pieces, a byte whose bits say which messages are stored, and the client's bytes.
#![no_main]

use std::rc::Rc;
use std::sync::{Arc, LazyLock};

use fuzz::{expand, peak, pieces};
use ipc::message::normalise_domain;
use ipc::rules::SourceRules;
use ipc::snapshot::{Global, MappedSnapshot, SmtpUser, Snapshot};
use libfuzzer_sys::{Corpus, fuzz_target};
use worker::accept::auth::exchange;
use worker::accept::auth::users::Users;
use worker::accept::sender_checks::Sender;
use worker::accept::session::{COMMAND_MAX, Event, REPLY_LINE_MAX, ServerSession, Transaction};
use worker::smtp::command::{self, Refusal};
use worker::smtp::content::{ContentFault, LINE_MAX};
use worker::smtp::reply;

/// Longest input that a script may stand for.
const INPUT_MAX: usize = 2 << 20;
/// What a session may hold beside the content: recipients (a script of 16 KB has some 600 at
/// most), one buffer of commands and its replies.
const SESSION_BYTES: usize = 1 << 20;

/// Users of each form that is checked quickly enough.
static USERS: LazyLock<Arc<Users>> = LazyLock::new(|| {
    let user =
        |name: &str, password: &str| SmtpUser { name: name.into(), password: password.into(), ..Default::default() };
    let scram = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
    let snapshot = Snapshot { smtp_users: vec![user("u", "p"), user("user", scram)], ..Default::default() };
    let sealed = MappedSnapshot::map(&snapshot.seal().expect("a memfd")).expect("just sealed");
    Arc::new(Users::of(sealed.get()).expect("passwords that can be used"))
});

fn session(rules: &Rc<SourceRules>, global: &Rc<Global>) -> ServerSession {
    ServerSession::new("mta.test".into(), Rc::clone(rules), Rc::clone(global), Rc::new(()), Arc::clone(&USERS), true)
}

/// What a client would notice of a session, and what it left behind.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    replies: String,
    messages: Vec<Message>,
    closed: bool,
    in_data: bool,
    between_messages: bool,
}

#[derive(Debug, PartialEq)]
struct Message {
    hello: String,
    sender: String,
    recipients: Vec<(String, String)>,
    content: Result<Vec<u8>, ContentFault>,
}

/// How the outcome of storing depends on the input alone.
fn outcome(stored: u8, nth: usize, fault: Option<ContentFault>) -> Result<String, Refusal> {
    match fault {
        Some(f) => Err(Refusal(550, "5.6.0", format!("{f:?}"))),
        None if stored >> (nth % 8) & 1 == 0 => Ok(format!("message{nth}")),
        None => Err(Refusal(452, "4.3.1", "No room for new mail".into())),
    }
}

struct Client {
    session: ServerSession,
    buf: Vec<u8>,
    seen: Seen,
    stored: u8,
    /// A RCPT was refused since the last MAIL for being one too many.
    too_many: bool,
    max: usize,
    fails_if_too_many: bool,
}

impl Client {
    fn new(rules: &Rc<SourceRules>, global: &Rc<Global>, stored: u8) -> Client {
        let mut c = Client {
            session: session(rules, global),
            buf: Vec::new(),
            seen: Seen::default(),
            stored,
            too_many: false,
            max: if rules.max_message_size == 0 { usize::MAX } else { rules.max_message_size as usize },
            fails_if_too_many: rules.too_many_rcpts_fails_message,
        };
        c.replies(1..=1);
        c
    }

    /// Takes the replies to one command; `expected` is how many there may be.
    fn replies(&mut self, expected: std::ops::RangeInclusive<usize>) {
        let mut out = &self.session.out[..];
        let mut count = 0;
        while !out.is_empty() {
            let (r, n) = reply::parse(out).expect("a reply").expect("a whole reply");
            let (lines, rest) = out.split_at(n);
            for line in lines.split_inclusive(|b| *b == b'\n') {
                let text = line.strip_suffix(b"\r\n").expect("CR LF behind each line");
                assert!(line.len() <= REPLY_LINE_MAX, "a line of {} octets", line.len());
                // A question of AUTH may be empty.
                assert!(text[..3] == lines[..3] && (text.len() > 4 || text == b"334 "), "{lines:?}");
                let text = str::from_utf8(text).expect("UTF-8");
                assert!(!text.contains(char::is_control), "{text:?}");
            }
            match r.enhanced_status().as_str() {
                "2.1.0" => self.too_many = false,
                "4.5.3" => self.too_many = true,
                _ => {}
            }
            out = rest;
            count += 1;
        }
        assert!(expected.contains(&count), "{count} replies: {}", String::from_utf8_lossy(&self.session.out));
        // What AUTH asks has chance in it.
        let said = String::from_utf8_lossy(&self.session.out);
        self.seen.replies.extend(said.split_inclusive('\n').map(|l| if l.starts_with("334 ") { "334\n" } else { l }));
        self.session.out.clear();
    }

    fn message(&mut self, mut t: Transaction) {
        let content = t.take_content().map(|c| c.to_vec());
        assert!(!self.session.hello.is_empty(), "mail without EHLO");
        assert!(!t.recipients.is_empty(), "mail without a recipient");
        assert!(!(self.too_many && self.fails_if_too_many), "mail in spite of too-many-rcpts-fails-message");
        if let Ok(c) = &content {
            assert!(c.len() <= self.max, "{} bytes, max-message-size is {}", c.len(), self.max);
            for (i, b) in c.iter().enumerate() {
                assert!(*b != b'\n' || (i > 0 && c[i - 1] == b'\r'), "LF without CR at {i}");
                assert!(*b != b'.' || i == 0 || c[i - 1] != b'\r', "CR before a dot at {i}");
            }
            let longest = c.split(|b| *b == b'\n').map(|l| l.strip_suffix(b"\r").unwrap_or(l).len()).max();
            assert!(longest <= Some(LINE_MAX), "a line of {longest:?} octets");
        }
        if !t.mail.sender.is_empty() {
            let again = command::mail(&format!("<{}> SMTPUTF8", t.mail.sender), true).expect("a sender");
            assert_eq!(again.sender, t.mail.sender);
        }
        for (r, destination) in &t.recipients {
            let again = command::rcpt(&format!("<{}>", r.address), t.mail.smtputf8).expect("a recipient");
            assert_eq!(again.address, r.address);
            assert_eq!(normalise_domain(destination).as_ref(), Ok(destination));
            assert!(!r.orcpt.contains(|c: char| c.is_control() || c == ' '), "{:?}", r.orcpt);
        }
        let nth = self.seen.messages.len();
        let outcome = outcome(self.stored, nth, content.as_ref().err().copied());
        self.seen.messages.push(Message {
            hello: self.session.hello.clone(),
            sender: t.mail.sender,
            recipients: t.recipients.into_iter().map(|(r, d)| (r.address, d)).collect(),
            content,
        });
        self.session.stored(outcome);
        self.replies(1..=1);
    }

    /// What the listener does with bytes that came in.
    fn received(&mut self, piece: &[u8]) {
        self.buf.extend_from_slice(piece);
        let mut at = 0;
        while !self.seen.closed {
            let was_data = self.session.in_data();
            let (n, event) = self.session.feed(&self.buf[at..]);
            assert!(n <= self.buf.len() - at, "used {n} of {} bytes", self.buf.len() - at);
            let line = &self.buf[at..at + n];
            let is_command = !was_data && line.ends_with(b"\n");
            let is_bdat = line.get(..5).is_some_and(|w| w.eq_ignore_ascii_case(b"BDAT "));
            at += n;
            // Each command has one reply, also when the client sends many at once; content
            // has one when it is whole, and the last one of all may follow another.
            let fewest = usize::from(is_command && !is_bdat);
            match event {
                Event::None if n == 0 || at == self.buf.len() => {
                    self.replies(fewest..=1);
                    break;
                }
                Event::None => self.replies(fewest..=1),
                Event::Message(t) => {
                    self.replies(0..=0);
                    self.message(t);
                }
                Event::Authenticate(check) => {
                    self.replies(0..=0);
                    let closes = matches!(self.session.checked(Ok(USERS.check(check)), None), Event::Close);
                    self.replies(1..=2);
                    self.seen.closed = closes;
                }
                Event::CheckSender(sender) => {
                    self.replies(0..=0);
                    let event = self.session.sender_checked(found(&sender));
                    self.replies(1..=2);
                    self.seen.closed = matches!(event, Event::Close);
                }
                Event::StartTls => {
                    self.replies(1..=1);
                    self.session.tls_started();
                }
                Event::Close => {
                    self.replies(1..=2);
                    self.seen.closed = true;
                }
            }
        }
        self.buf.drain(..at);
        let most = COMMAND_MAX.max(exchange::LINE_MAX);
        assert!(self.seen.closed || self.buf.len() <= most, "{} bytes are no command yet", self.buf.len());
    }

    fn finish(mut self) -> Seen {
        self.seen.in_data = self.session.in_data();
        self.seen.between_messages = self.session.between_messages();
        self.seen
    }
}

/// What checks of a sender find: of every second one that its mail is not taken.
fn found(sender: &Sender) -> Result<String, Refusal> {
    match sender.address.len() % 2 {
        0 => Ok("spf=pass".to_owned()),
        _ => Err(Refusal(550, "5.7.23", "no".to_owned())),
    }
}

/// Runs a session as a sink of bytes, for what it holds.
fn sink(rules: &Rc<SourceRules>, global: &Rc<Global>, all: &[u8], stored: u8) {
    let mut session = session(rules, global);
    let mut messages = 0;
    let mut at = 0;
    for end in (0..all.len()).step_by(COMMAND_MAX).map(|i| (i + COMMAND_MAX).min(all.len())) {
        loop {
            let (n, event) = session.feed(&all[at..end]);
            at += n;
            match event {
                Event::None if n == 0 || at == end => break,
                Event::None => {}
                Event::Message(mut t) => {
                    let fault = t.take_content().err();
                    session.stored(outcome(stored, messages, fault));
                    messages += 1;
                }
                Event::Authenticate(check) => {
                    if let Event::Close = session.checked(Ok(USERS.check(check)), None) {
                        return;
                    }
                }
                Event::CheckSender(sender) => {
                    if let Event::Close = session.sender_checked(found(&sender)) {
                        return;
                    }
                }
                Event::StartTls => session.tls_started(),
                Event::Close => return,
            }
        }
        session.out.clear();
    }
}

fuzz_target!(|input: &[u8]| -> Corpus {
    let [flags, size, seed, stored, script @ ..] = input else { return Corpus::Reject };
    let all = expand(script, INPUT_MAX);
    let bit = |n: u8| flags >> n & 1 == 0;
    let max_message_size = [0, 100, 5000, 150_000][usize::from(size % 4)];
    let rules = Rc::new(SourceRules {
        always_allow_relaying: bit(0),
        allow_chunking: bit(1),
        allow_smtputf8: bit(2),
        allow_starttls: bit(3),
        max_rcpt_per_message: if bit(4) { 0 } else { 2 },
        too_many_rcpts_fails_message: bit(5),
        max_smtp_commands: if bit(6) { 20 } else { 0 },
        max_message_size,
        allow_unencrypted_plain_auth: bit(7),
        check_spf_inbound: size >> 2 & 1 == 1,
        ..Default::default()
    });
    let global = Rc::new(Global { relay_domains: vec!["[*.]relay.test".into()], ..Default::default() });

    let mut whole = Client::new(&rules, &global, *stored);
    whole.received(&all);
    let whole = whole.finish();

    let mut split = Client::new(&rules, &global, *stored);
    for piece in pieces(&all, *seed, if all.len() > 16_384 { 8192 } else { usize::from(seed % 64) }) {
        split.received(piece);
    }
    assert_eq!(split.finish(), whole, "pieces make a difference");

    // A buffer that grows by doubling is half empty at most, and is copied once more.
    let content = match max_message_size {
        0 => all.len(),
        max => (max as usize).min(all.len()),
    };
    let ((), held) = peak(|| sink(&rules, &global, &all, *stored));
    assert!(held <= 3 * content + SESSION_BYTES, "{held} bytes held for at most {content} of content");
    Corpus::Keep
});
