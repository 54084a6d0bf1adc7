//! The server's side of a session, without sockets: bytes in, replies and events out.

mod authentication;

use std::rc::Rc;
use std::sync::Arc;

use ipc::limits::RECIPIENTS_PER_MESSAGE_MAX;
use ipc::message::notify;
use ipc::rules::SourceRules;
use ipc::snapshot::Global;
use ipc::text;

use super::auth::exchange::Exchange;
use super::auth::mechanism::Mechanism;
use super::auth::users::{Check, Users};
use super::receiving::{self, MemoryShare};
use super::sender_checks::{self, Sender};
use super::source::{kept_back, may_relay};
use crate::smtp::command::{self, Mail, Rcpt, Refusal};
use crate::smtp::content::{ContentFault, ContentReader};
use crate::suppression::Suppresses;

/// Longest command line (RFC 5321 §4.5.3.1.4 says 512; long VERP senders and DSN parameters
/// need more), CR LF included.
pub const COMMAND_MAX: usize = 4096;
/// Longest line of a reply (RFC 5321 §4.5.3.1.5), CR LF included.
pub const REPLY_LINE_MAX: usize = 512;
/// Longest name in EHLO that is not ASCII, bytes: as A-labels it has 255 at most.
const HELLO_MAX: usize = 1000;
/// Bytes of a command line that are passed over in search of its end.
const SKIPPED_MAX: usize = 1 << 20;
/// Commands that are refused before the session is closed.
const ERRORS_MAX: u32 = 50;
/// Commands without a message accepted before the session is closed, unless
/// `max-smtp-commands` says otherwise.
const COMMANDS_WITHOUT_MAIL_MAX: u64 = 10_000;

/// What the session asks of its surroundings.
#[derive(Debug)]
pub enum Event {
    /// Nothing: give more input.
    None,
    /// Store this message, then say [`ServerSession::stored`].
    Message(Transaction),
    /// Negotiate TLS, then go on with [`ServerSession::tls_started`].
    StartTls,
    /// Have this claim checked, then say [`ServerSession::checked`].
    Authenticate(Check),
    /// Have the client and its sender checked, then say [`ServerSession::sender_checked`].
    CheckSender(Sender),
    /// Send what is there and close.
    Close,
}

/// A mail transaction.
#[derive(Debug)]
pub struct Transaction {
    /// MAIL
    pub mail: Mail,
    /// RCPTs that were accepted, with their destinations.
    pub recipients: Vec<(Rcpt, String)>,
    /// What they take in memory, about.
    recipients_bytes: u64,
    /// What checks of the sender say, as Authentication-Results has it behind the name of the server; empty for none.
    pub results: String,
    content: Option<ContentReader>,
    too_many: bool,
}

impl Transaction {
    /// The content, or what is wrong with it.
    ///
    /// # Errors
    /// [`ContentFault`]
    pub fn take_content(&mut self) -> Result<bytes::BytesMut, ContentFault> {
        match self.content.take() {
            Some(c) => c.finish(),
            None => Ok(bytes::BytesMut::new()),
        }
    }
}

enum State {
    /// EHLO is due.
    Fresh,
    /// Between transactions.
    Ready,
    /// MAIL was accepted.
    Mail(Box<Transaction>),
    /// Content after DATA.
    Data(Box<Transaction>),
    /// Content of a BDAT chunk, or why it is skipped (`None`: the client was told): bytes left, and whether it is the last.
    Chunk(Result<Box<Transaction>, Option<Refusal>>, u64, bool),
    /// The client's answer within AUTH.
    Auth(Exchange),
    /// The sender of MAIL is being checked.
    Checking(Box<Transaction>),
    /// The client waits for us: a message is being stored, or a claim checked.
    Busy,
}

/// One client's session.
pub struct ServerSession {
    rules: Rc<SourceRules>,
    global: Rc<Global>,
    /// Tells which addresses get no mail.
    suppresses: Rc<dyn Suppresses>,
    state: State,
    /// What the server calls itself to the client.
    name: String,
    /// EHLO name; empty before.
    pub hello: String,
    /// It began with EHLO rather than HELO.
    pub esmtp: bool,
    tls_available: bool,
    /// TLS is in use.
    pub tls: bool,
    /// Those that clients can authenticate as.
    users: Arc<Users>,
    /// The user whose certificate the client has shown in the TLS handshake: it is that user, unless it authenticates as another.
    shown: Option<String>,
    /// The user that the client has authenticated as by AUTH.
    user: Option<String>,
    auth_failures: u32,
    /// Bytes of a line that is too long, which is passed over up to its end; 0 where none is.
    skipped: usize,
    /// The command in hand, if it is one of a transaction.
    verb: &'static str,
    /// Such a command that was refused, and how.
    pub refused: Option<(&'static str, Refusal)>,
    errors: u32,
    commands: u64,
    since_mail: u64,
    /// Replies to send.
    pub out: Vec<u8>,
    /// What it holds of the memory for messages; `None` for as much as comes.
    pub share: Option<MemoryShare>,
}

impl std::fmt::Debug for ServerSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerSession").field("hello", &self.hello).finish_non_exhaustive()
    }
}

impl ServerSession {
    /// A session with its greeting by `name`, or its refusal, ready to send.
    pub fn new(
        name: String,
        rules: Rc<SourceRules>,
        global: Rc<Global>,
        suppresses: Rc<dyn Suppresses>,
        users: Arc<Users>,
        tls_available: bool,
    ) -> ServerSession {
        let mut s = ServerSession {
            name,
            rules,
            global,
            suppresses,
            state: State::Fresh,
            hello: String::new(),
            esmtp: false,
            tls_available,
            tls: false,
            users,
            shown: None,
            user: None,
            auth_failures: 0,
            skipped: 0,
            verb: "",
            refused: None,
            errors: 0,
            commands: 0,
            since_mail: 0,
            out: Vec::with_capacity(256),
            share: None,
        };
        let greeting = format!("220 {} ESMTP Sluice service ready\r\n", s.name);
        s.out.extend_from_slice(greeting.as_bytes());
        s
    }

    /// Whether the client may use the service at all.
    pub fn may_serve(&self) -> bool {
        self.rules.smtp_service
    }

    /// No transaction is in progress.
    pub fn between_messages(&self) -> bool {
        matches!(self.state, State::Fresh | State::Ready | State::Auth(_))
    }

    /// Content is expected rather than a command.
    pub fn in_data(&self) -> bool {
        matches!(self.state, State::Data(_) | State::Chunk(..))
    }

    /// Adds a reply. Its text may quote the client, who can send longer lines than a reply may
    /// have, and control characters, which a reply may not have (RFC 5321 §4.2).
    pub fn reply(&mut self, code: u16, status: &str, words: &str) {
        let mut line = if status.is_empty() { format!("{code} {words}") } else { format!("{code} {status} {words}") };
        if line.len() > REPLY_LINE_MAX - 2 || !text::is_fit(&line) {
            line = text::clean(&line, REPLY_LINE_MAX - 2).into_owned();
        }
        line.push_str("\r\n");
        self.out.extend_from_slice(line.as_bytes());
    }

    fn refuse(&mut self, r: &Refusal) -> Event {
        self.refused = Some((self.verb, r.clone()));
        if self.leaves_instead_of(r) {
            return Event::Close;
        }
        self.reply(r.0, r.1, &r.2);
        self.errors += 1;
        if self.errors > ERRORS_MAX {
            self.reply(421, "4.7.0", "Too many errors, closing");
            return Event::Close;
        }
        Event::None
    }

    /// `disconnect-on-transient-error`: the client is left without this reply.
    fn leaves_instead_of(&self, r: &Refusal) -> bool {
        self.rules.disconnect_on_transient_error && (400..500).contains(&r.0)
    }

    /// Takes input; answers how much was used and what to do next. Called again with the
    /// rest until it uses nothing.
    pub fn feed(&mut self, input: &[u8]) -> (usize, Event) {
        match std::mem::replace(&mut self.state, State::Busy) {
            State::Data(mut t) => {
                let (n, end) = t.content.as_mut().map_or((0, true), |c| c.data(input));
                self.hold(&mut t);
                if end {
                    return (n, Event::Message(*t));
                }
                self.state = State::Data(t);
                (n, Event::None)
            }
            State::Chunk(t, left, last) => self.feed_chunk(t, left, last, input),
            state @ (State::Busy | State::Checking(_)) => {
                self.state = state;
                (0, Event::None)
            }
            State::Auth(exchange) => self.feed_auth(exchange, input),
            state => {
                self.state = state;
                self.feed_line(input)
            }
        }
    }

    fn feed_chunk(
        &mut self,
        mut t: Result<Box<Transaction>, Option<Refusal>>,
        left: u64,
        last: bool,
        input: &[u8],
    ) -> (usize, Event) {
        let n = (input.len() as u64).min(left) as usize;
        if let Some(c) = t.as_mut().ok().and_then(|t| t.content.as_mut()) {
            c.chunk(&input[..n]);
        }
        t.iter_mut().for_each(|t| self.hold(t));
        let left = left - n as u64;
        if left > 0 {
            self.state = State::Chunk(t, left, last);
            return (n, Event::None);
        }
        match t {
            Ok(t) if last => (n, Event::Message(*t)),
            Ok(t) => {
                self.reply(250, "2.0.0", "chunk ok");
                self.state = State::Mail(t);
                (n, Event::None)
            }
            Err(r) => {
                self.end_transaction();
                (n, r.map_or(Event::None, |r| self.refuse(&r)))
            }
        }
    }

    fn feed_line(&mut self, input: &[u8]) -> (usize, Event) {
        if self.skipped > 0 {
            let end = memchr::memchr(b'\n', input);
            let n = end.map_or(input.len(), |e| e + 1);
            self.skipped += n;
            if end.is_some() {
                self.skipped = 0;
                // RFC 4954 section 6 has a status of its own for lines of AUTH.
                let status = if self.verb == "AUTH" { "5.5.6" } else { "5.5.2" };
                return (n, self.refuse(&Refusal(500, status, "Line too long".into())));
            }
            if self.skipped > SKIPPED_MAX {
                self.reply(421, "4.7.0", "A line without end, closing");
                return (n, Event::Close);
            }
            return (n, Event::None);
        }
        // The limit comes first: whether such a line came in one piece makes no difference.
        let Some(end) = memchr::memchr(b'\n', &input[..input.len().min(COMMAND_MAX)]) else {
            if input.len() >= COMMAND_MAX {
                self.skipped = COMMAND_MAX;
                return (COMMAND_MAX, Event::None);
            }
            return (0, Event::None);
        };
        let line = &input[..end];
        let n = end + 1;
        let Some(line) = line.strip_suffix(b"\r") else {
            return (n, self.refuse(&Refusal(500, "5.5.2", "Lines must end in CR LF".into())));
        };
        let limit = match self.rules.max_smtp_commands {
            0 => u64::MAX,
            n => n,
        };
        self.commands += 1;
        self.since_mail += 1;
        if self.commands > limit || self.since_mail > COMMANDS_WITHOUT_MAIL_MAX {
            self.reply(421, "4.7.0", "Too many commands in this session (max-smtp-commands), closing");
            return (n, Event::Close);
        }
        let event = match std::str::from_utf8(line) {
            Ok(text) if !text.contains(['\r', '\0']) => self.command(text),
            _ => self.refuse(&Refusal(501, "5.5.2", "Command is not valid UTF-8 text".into())),
        };
        (n, event)
    }

    fn command(&mut self, line: &str) -> Event {
        let (verb, arg) = line.split_once(' ').unwrap_or((line, ""));
        let upper = verb.to_ascii_uppercase();
        self.verb = ["MAIL", "RCPT", "DATA", "BDAT", "AUTH"].into_iter().find(|v| *v == upper).unwrap_or_default();
        let result = match upper.as_str() {
            "EHLO" | "HELO" => self.hello(upper == "EHLO", arg.trim()),
            "MAIL" => match self.mail(arg) {
                Ok(event) => return event,
                Err(r) => Err(r),
            },
            "RCPT" => self.rcpt(arg),
            "DATA" => self.data(arg),
            "BDAT" if self.rules.allow_chunking => return self.bdat(arg),
            "STARTTLS" => return self.starttls(arg),
            "AUTH" => return self.auth(arg),
            "RSET" => {
                self.end_transaction();
                self.reply(250, "2.0.0", "ok");
                Ok(())
            }
            "NOOP" => {
                self.reply(250, "2.0.0", "ok");
                Ok(())
            }
            "QUIT" => {
                let name = self.name.clone();
                self.reply(221, "2.0.0", &format!("{name} says goodbye"));
                return Event::Close;
            }
            "VRFY" => {
                self.reply(252, "2.5.0", "Send some mail, I will try my best");
                Ok(())
            }
            "HELP" => {
                self.reply(214, "2.0.0", "EHLO MAIL RCPT DATA BDAT RSET NOOP QUIT STARTTLS AUTH; see RFC 5321");
                Ok(())
            }
            "EXPN" | "ETRN" | "TURN" => Err(Refusal(502, "5.5.1", format!("{upper} is not offered here"))),
            _ => Err(Refusal(500, "5.5.1", "Command not recognized".into())),
        };
        match result {
            Ok(()) => Event::None,
            Err(r) => self.refuse(&r),
        }
    }

    /// Accounts for what the transaction has in memory; content that there is no room for is given up.
    fn hold(&self, t: &mut Transaction) {
        let (Some(share), Some(content)) = (&self.share, &mut t.content) else { return };
        if !share.hold(t.recipients_bytes + content.held()) {
            content.give_up();
            share.hold(t.recipients_bytes);
        }
    }

    fn holds_nothing(&self) {
        if let Some(s) = &self.share {
            s.hold(0);
        }
    }

    fn end_transaction(&mut self) {
        self.holds_nothing();
        self.state = if self.hello.is_empty() { State::Fresh } else { State::Ready };
    }

    fn hello(&mut self, esmtp: bool, name: &str) -> Result<(), Refusal> {
        let word = name.split_ascii_whitespace().next().unwrap_or_default();
        let a_labels = Some(word).filter(|w| !w.is_ascii() && w.len() <= HELLO_MAX).map(ipc::message::normalise_domain);
        let word = match &a_labels {
            Some(name) => name.as_deref().unwrap_or_default(),
            None => word,
        };
        // The name goes into trace headers, where anything else could pass for structure.
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
        if word.is_empty() || word.len() > 255 || !word.bytes().all(plain) {
            return Err(Refusal(501, "5.5.4", "Expected a host name or address literal".into()));
        }
        word.clone_into(&mut self.hello);
        self.esmtp = esmtp;
        self.state = State::Ready;
        if !esmtp {
            let host = self.name.clone();
            self.reply(250, "", &format!("{host} says hello"));
            return Ok(());
        }
        let r = Rc::clone(&self.rules);
        let mut lines = vec![format!("{} says hello", self.name), "ENHANCEDSTATUSCODES".into(), "PIPELINING".into()];
        if r.allow_chunking {
            lines.push("CHUNKING".into());
        }
        lines.push("8BITMIME".into());
        let largest = self.share.as_ref().map_or(u64::MAX, MemoryShare::largest);
        lines.push(match (r.max_message_size, largest) {
            (max, u64::MAX) => format!("SIZE {max}"),
            (0, largest) => format!("SIZE {largest}"),
            (max, largest) => format!("SIZE {}", max.min(largest)),
        });
        // RFC 9422.
        lines.push(format!("LIMITS RCPTMAX={}", recipients_max(&self.rules).0));
        lines.push("VERP".into());
        lines.push("DSN".into());
        if r.allow_smtputf8 {
            lines.push("SMTPUTF8".into());
        }
        if r.allow_starttls && self.tls_available && !self.tls && self.user.is_none() {
            lines.push("STARTTLS".into());
        }
        let mechanisms: Vec<&str> = self.mechanisms().into_iter().map(Mechanism::name).collect();
        if !mechanisms.is_empty() {
            lines.push(format!("AUTH {}", mechanisms.join(" ")));
            if r.broken_auth_clients {
                lines.push(format!("AUTH={}", mechanisms.join(" ")));
            }
        }
        let last = lines.len() - 1;
        for (i, l) in lines.iter().enumerate() {
            let sep = if i == last { ' ' } else { '-' };
            self.out.extend_from_slice(format!("250{sep}{l}\r\n").as_bytes());
        }
        Ok(())
    }

    fn mail(&mut self, arg: &str) -> Result<Event, Refusal> {
        match &self.state {
            State::Ready => {}
            State::Fresh => return Err(Refusal(503, "5.5.1", "EHLO first".into())),
            _ => return Err(Refusal(503, "5.5.1", "A transaction is in progress; RSET first".into())),
        }
        if self.rules.require_auth && self.user().is_empty() {
            // RFC 4954 section 6.
            return Err(Refusal(530, "5.7.0", "Authentication required (require-auth)".into()));
        }
        if !self.rules.smtp_service {
            // The source of a user says so: of others the session would not have begun.
            return Err(Refusal(550, "5.7.1", "No mail is accepted from this user (smtp-service)".into()));
        }
        let arg = command::keyword(arg, "FROM:")
            .ok_or_else(|| Refusal(501, "5.5.4", "Expected MAIL FROM:<address>".into()))?;
        let mut mail = command::mail(arg, self.rules.allow_smtputf8 && self.esmtp)?;
        qualify(&mut mail.sender, suffix(&self.rules, &self.global));
        let max = self.rules.max_message_size;
        if max != 0 && mail.size > max {
            return Err(too_large(max));
        }
        if let Some(s) = &self.share {
            if s.is_out_of_memory() {
                let text = "Server resources temporarily exhausted (max-memory-usage-percent), try again later";
                return Err(Refusal(452, "4.3.2", text.into()));
            }
            if mail.size > s.largest() {
                return Err(receiving::too_large(s.largest()));
            }
            if !s.has_room(mail.size) {
                return Err(receiving::no_room());
            }
        }
        let t = Box::new(Transaction {
            mail,
            recipients: Vec::new(),
            recipients_bytes: 0,
            results: String::new(),
            content: None,
            too_many: false,
        });
        if sender_checks::are_asked_for(&self.rules) {
            let sender = Sender { hello: self.hello.clone(), address: t.mail.sender.clone() };
            self.state = State::Checking(t);
            return Ok(Event::CheckSender(sender));
        }
        self.begin(t);
        Ok(Event::None)
    }

    /// MAIL is accepted.
    fn begin(&mut self, t: Box<Transaction>) {
        let text = format!("<{}> sender ok", t.mail.sender);
        self.state = State::Mail(t);
        self.reply(250, "2.1.0", &text);
    }

    /// The sender was checked: what Authentication-Results says of it, or why its mail is not taken.
    pub fn sender_checked(&mut self, results: Result<String, Refusal>) -> Event {
        let State::Checking(mut t) = std::mem::replace(&mut self.state, State::Ready) else { return Event::None };
        match results {
            Ok(results) => {
                t.results = results;
                self.begin(t);
                Event::None
            }
            Err(r) => self.refuse(&r),
        }
    }

    fn rcpt(&mut self, arg: &str) -> Result<(), Refusal> {
        let State::Mail(t) = &mut self.state else {
            return Err(Refusal(503, "5.5.1", "MAIL first".into()));
        };
        if t.content.is_some() {
            return Err(Refusal(503, "5.5.1", "RCPT after BDAT".into()));
        }
        let arg =
            command::keyword(arg, "TO:").ok_or_else(|| Refusal(501, "5.5.4", "Expected RCPT TO:<address>".into()))?;
        let (limit, directive) = recipients_max(&self.rules);
        if t.recipients.len() as u64 >= limit {
            t.too_many = true;
            return Err(Refusal(452, "4.5.3", format!("Too many recipients, the limit is {limit}{directive}")));
        }
        let recipients_bytes = t.recipients_bytes + receiving::RECIPIENT_BYTES + 2 * arg.len() as u64;
        if self.share.as_ref().is_some_and(|s| !s.hold(recipients_bytes)) {
            return Err(receiving::no_room());
        }
        t.recipients_bytes = recipients_bytes;
        // RFC 5321 section 4.5.1: the postmaster is reached without a domain.
        let bare = arg.trim_start().get(..12).is_some_and(|a| a.eq_ignore_ascii_case("<postmaster>"));
        let owned = bare.then(|| format!("<postmaster@{}>{}", self.global.host_name, &arg.trim_start()[12..]));
        let given = owned.as_deref().unwrap_or(arg);
        let (mut rcpt, destination) = match addressed(given, t.mail.smtputf8, suffix(&self.rules, &self.global)) {
            Err(Refusal(_, "5.1.3", _)) if self.rules.accept_invalid_recipients && self.rules.always_allow_relaying => {
                let (rcpt, text) = not_an_address(given);
                t.recipients.push((rcpt, self.global.host_name.clone()));
                self.since_mail = 0;
                self.reply(250, "2.1.5", &text);
                return Ok(());
            }
            other => other?,
        };
        if !may_relay(&self.rules, &self.global, &rcpt.address, &destination) {
            return Err(Refusal(
                550,
                "5.7.1",
                format!("<{}> relaying is not allowed for you (always-allow-relaying)", rcpt.address),
            ));
        }
        if let Some(refusal) = kept_back(&self.global, &*self.suppresses, &rcpt.address) {
            return Err(refusal);
        }
        if let Some(list) = self.suppresses.list_of(&self.rules.suppression_lists, &rcpt.address) {
            if !self.rules.accept_invalid_recipients {
                let text = format!("recipient is in suppression list \"{list}\": <{}>", rcpt.address);
                return Err(Refusal(550, "5.7.1", text));
            }
            rcpt.notify |= notify::NOT_TO_BE_SENT;
        }
        let text = format!("<{}> recipient ok", rcpt.address);
        t.recipients.push((rcpt, destination));
        self.since_mail = 0;
        self.reply(250, "2.1.5", &text);
        Ok(())
    }

    /// The recipients that were refused fail the message for all others too.
    fn fails(&self, t: &Transaction) -> bool {
        t.too_many && self.rules.too_many_rcpts_fails_message
    }

    fn data(&mut self, arg: &str) -> Result<(), Refusal> {
        if !arg.is_empty() {
            return Err(Refusal(501, "5.5.4", "DATA takes no argument".into()));
        }
        match std::mem::replace(&mut self.state, State::Ready) {
            State::Mail(t) if t.content.is_some() => {
                self.state = State::Mail(t);
                Err(Refusal(503, "5.5.1", "DATA after BDAT".into()))
            }
            State::Mail(t) if t.recipients.is_empty() => {
                self.state = State::Mail(t);
                Err(Refusal(554, "5.5.1", "No valid recipients".into()))
            }
            State::Mail(t) if self.fails(&t) => Err(too_many()),
            State::Mail(mut t) => {
                t.content = Some(ContentReader::new(self.rules.max_message_size, t.mail.size));
                self.state = State::Data(t);
                self.reply(354, "", "send message, end with a single dot");
                Ok(())
            }
            other => {
                self.state = other;
                Err(Refusal(503, "5.5.1", "MAIL first".into()))
            }
        }
    }

    fn bdat(&mut self, arg: &str) -> Event {
        let mut words = arg.split_ascii_whitespace();
        let size = words.next().and_then(command::digits);
        let last = match words.next() {
            None => Some(false),
            Some(w) => w.eq_ignore_ascii_case("LAST").then_some(true),
        };
        let (Some(size), Some(last), None) = (size, last, words.next()) else {
            // How many bytes follow is unknown, so nothing after this can be understood.
            self.reply(501, "5.5.4", "Expected BDAT SIZE [LAST], closing");
            return Event::Close;
        };
        if size > ipc::limits::CONTENT_BYTES_MAX as u64 {
            self.reply(552, "5.3.4", "Chunk is larger than any message may be, closing");
            return Event::Close;
        }
        let t = match std::mem::replace(&mut self.state, State::Busy) {
            State::Mail(t) if self.fails(&t) => Err(Some(too_many())),
            State::Mail(mut t) if !t.recipients.is_empty() => {
                let max = self.rules.max_message_size;
                let content = t.content.get_or_insert_with(|| ContentReader::new(max, size));
                let held = t.recipients_bytes + content.held();
                let refusal = match &self.share {
                    _ if !content.has_room(size) => Some(too_large(max)),
                    Some(s) if !s.has_room(held + size) => Some(receiving::no_room()),
                    _ => None,
                };
                match refusal {
                    None => Ok(t),
                    // At once: a client may wait for the reply before it sends all that.
                    Some(r) => match self.refuse(&r) {
                        Event::Close => return Event::Close,
                        _ => Err(None),
                    },
                }
            }
            _ => Err(Some(Refusal(503, "5.5.1", "BDAT needs MAIL and an accepted RCPT before it".into()))),
        };
        self.feed_chunk(t, size, last, &[]).1
    }

    fn starttls(&mut self, arg: &str) -> Event {
        if !(self.rules.allow_starttls && self.tls_available) {
            return self.refuse(&Refusal(502, "5.5.1", "STARTTLS is not offered here".into()));
        }
        // Behind AUTH the client would have to be forgotten (RFC 3207 section 4.2).
        if self.tls || !arg.is_empty() || !self.between_messages() || self.user.is_some() {
            return match arg.is_empty() {
                true => self.refuse(&Refusal(503, "5.5.1", "STARTTLS is not possible now".into())),
                false => self.refuse(&Refusal(501, "5.5.4", "STARTTLS takes no argument".into())),
            };
        }
        self.reply(220, "2.0.0", "ready to start TLS");
        Event::StartTls
    }

    /// The session begins anew under TLS (RFC 3207 §4.2).
    pub fn tls_started(&mut self) {
        self.tls = true;
        self.state = State::Fresh;
        self.hello.clear();
    }

    /// The message was stored, or why not; the next transaction may begin.
    pub fn stored(&mut self, result: Result<String, Refusal>) -> Event {
        self.state = State::Ready;
        self.holds_nothing();
        match result {
            Ok(id) => {
                self.since_mail = 0;
                self.reply(250, "2.6.0", &format!("message received {id}"));
                Event::None
            }
            Err(r) if self.leaves_instead_of(&r) => Event::Close,
            Err(r) => {
                self.reply(r.0, r.1, &r.2);
                Event::None
            }
        }
    }
}

/// What is put behind the domain of an address that has no dot; empty for nothing.
fn suffix<'g>(rules: &SourceRules, global: &'g Global) -> &'g str {
    if rules.auto_qualify_domain { &global.domain_suffix } else { "" }
}

/// Puts `suffix` behind the domain of an address that has no dot (`auto-qualify-domain`).
fn qualify(address: &mut String, suffix: &str) {
    let domain = address.rsplit_once('@').map_or("", |(_, domain)| domain);
    if !suffix.is_empty() && !domain.is_empty() && !domain.contains('.') && !domain.starts_with('[') {
        address.push('.');
        address.push_str(suffix);
    }
}

/// Recipients that a message may have, and the directive that says so, for a reply; empty where none does.
fn recipients_max(rules: &SourceRules) -> (u64, &'static str) {
    // A copy for `bcc` is one more.
    let most = RECIPIENTS_PER_MESSAGE_MAX as u64 - u64::from(!rules.bcc.is_empty());
    match rules.max_rcpt_per_message {
        n if (1..=most).contains(&n) => (n, " (max-rcpt-per-message)"),
        // What no message of ours can have is nothing that the configuration says.
        _ => (most, ""),
    }
}

/// For `max-message-size`.
pub(super) fn too_large(max: u64) -> Refusal {
    let max = if max == 0 { ipc::limits::CONTENT_BYTES_MAX as u64 } else { max };
    Refusal(552, "5.3.4", format!("Message is larger than the limit of {max} bytes (max-message-size)"))
}

fn too_many() -> Refusal {
    Refusal(554, "5.5.3", "Too many recipients (too-many-rcpts-fails-message)".into())
}

/// The recipient of a RCPT and where it is queued.
fn addressed(arg: &str, utf8: bool, suffix: &str) -> Result<(Rcpt, String), Refusal> {
    let mut rcpt = command::rcpt(arg, utf8)?;
    qualify(&mut rcpt.address, suffix);
    let destination = ipc::message::destination_of(&rcpt.address).map_err(|e| Refusal(501, "5.1.3", e))?;
    Ok((rcpt, destination))
}

/// A recipient that is none, accepted to be bounced, and the reply's text.
fn not_an_address(arg: &str) -> (Rcpt, String) {
    let arg = arg.trim_start();
    let inside = arg.strip_prefix('<').map_or(arg, |a| a.split('>').next().unwrap_or_default());
    // As it was given: what lacks a character could be somebody else's address.
    let address = text::clean(inside, crate::suppression::ADDRESS_MAX).into_owned();
    let said = format!("<{address}> is no address, it will bounce (accept-invalid-recipients)");
    (Rcpt { address, notify: notify::NOT_TO_BE_SENT | notify::NO_ADDRESS, orcpt: String::new() }, said)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn session(rules: SourceRules) -> ServerSession {
        ServerSession::new(
            "mta.test".into(),
            Rc::new(rules),
            Rc::new(Global::default()),
            Rc::new(()),
            Arc::default(),
            false,
        )
    }

    fn run(s: &mut ServerSession, mut input: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            let (n, e) = s.feed(input);
            input = &input[n..];
            let more = n > 0;
            match e {
                Event::None if !more => return events,
                Event::None => {}
                Event::Message(t) => {
                    events.push(Event::Message(t));
                    s.stored(Ok("id".into()));
                }
                Event::Close => return events,
                e => events.push(e),
            }
        }
    }

    fn open() -> SourceRules {
        SourceRules { always_allow_relaying: true, ..Default::default() }
    }

    #[test]
    fn a_pipelined_transaction() {
        let mut s = session(open());
        let events =
            run(&mut s, b"EHLO c.test\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nDATA\r\nhi\r\n.\r\nQUIT\r\n");
        assert!(matches!(&events[..], [Event::Message(t)] if t.recipients.len() == 1));
        let out = String::from_utf8_lossy(&s.out);
        assert!(out.contains("354 ") && out.contains("250 2.6.0 message received id") && out.contains("221 "));
    }

    #[test]
    fn chunks_make_a_message_and_a_lost_one_is_skipped() {
        let mut s = session(open());
        let events = run(&mut s, b"EHLO c\r\nBDAT 6 LAST\r\nQUIT\r\nNOOP\r\n");
        let out = String::from_utf8_lossy(&s.out).into_owned();
        assert!(events.is_empty() && out.contains("503 ") && !out.contains("221 "), "{out}");
        let mut s = session(open());
        let mut events =
            run(&mut s, b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<b@y.test>\r\nBDAT 3\r\na\r\nBDAT 2 LAST\r\nb\n");
        let Some(Event::Message(t)) = events.first_mut() else { panic!("{:?}", String::from_utf8_lossy(&s.out)) };
        assert_eq!(t.take_content(), Err(ContentFault::BareLineEnd));
    }

    #[test]
    fn a_chunk_above_the_limit_is_refused_before_it_is_sent() {
        let mut s = session(SourceRules { max_message_size: 10, ..open() });
        run(&mut s, b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<b@y.test>\r\nBDAT 6\r\nabcdefBDAT 5 LAST\r\n");
        assert!(String::from_utf8_lossy(&s.out).lines().last().is_some_and(|l| l.starts_with("552 5.3.4 ")));
        // What the client sends of it nevertheless is no command, and the session goes on.
        s.out.clear();
        let events = run(&mut s, b"QUIT\nNOOP\r\nMAIL FROM:<>\r\nRCPT TO:<b@y.test>\r\nBDAT 10 LAST\r\n01234567\r\n");
        let out = String::from_utf8_lossy(&s.out).into_owned();
        assert!(matches!(events[..], [Event::Message(_)]) && out.starts_with("250 2.0.0 ok\r\n"), "{out}");
    }

    #[test]
    fn names_of_clients_are_ascii() {
        for (hello, name) in [("b\u{fc}cher.test", "xn--bcher-kva.test"), ("a_b", "a_b"), ("[IPv6:::1]", "[IPv6:::1]")]
        {
            let mut s = session(open());
            run(&mut s, format!("EHLO {hello}\r\n").as_bytes());
            assert_eq!(s.hello, name);
        }
        for hello in ["\u{fc}\u{fc}..test", "\u{2028}", "a\u{fc}(x)", "(a)"] {
            let mut s = session(open());
            run(&mut s, format!("EHLO {hello}\r\n").as_bytes());
            assert!(s.hello.is_empty() && String::from_utf8_lossy(&s.out).contains("501 5.5.4 "), "{hello}");
        }
    }

    #[test]
    fn a_line_too_long_is_refused_in_whatever_pieces_it_comes() {
        for (filling, refused) in [(COMMAND_MAX - 7, false), (COMMAND_MAX - 6, true), (3 * COMMAND_MAX, true)] {
            let lines = format!("NOOP {}\r\nNOOP\r\n", "x".repeat(filling));
            for piece in [lines.len(), 1000, 1] {
                let mut s = session(open());
                let (mut buf, mut at) = (Vec::new(), 0);
                for p in lines.as_bytes().chunks(piece) {
                    buf.extend_from_slice(p);
                    loop {
                        let (n, _) = s.feed(&buf[at..]);
                        at += n;
                        if n == 0 {
                            break;
                        }
                    }
                }
                let out = String::from_utf8_lossy(&s.out);
                let codes: Vec<&str> = out.lines().skip(1).map(|l| &l[..3]).collect();
                assert_eq!(codes, [if refused { "500" } else { "250" }, "250"], "{filling} by {piece}");
            }
        }
    }

    #[test]
    fn numbers_are_digits() {
        for chunk in ["BDAT +5", "BDAT -0", "BDAT 0x5", "BDAT 18446744073709551616"] {
            let mut s = session(open());
            run(&mut s, format!("EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<b@y.test>\r\n{chunk}\r\n").as_bytes());
            assert!(String::from_utf8_lossy(&s.out).contains("501 5.5.4 Expected BDAT SIZE"), "{chunk}");
        }
        let mut s = session(open());
        run(&mut s, b"EHLO c\r\nMAIL FROM:<> SIZE=+5\r\n");
        assert!(String::from_utf8_lossy(&s.out).contains("501 5.5.4 "));
    }

    #[test]
    fn a_line_without_end_ends_the_session() {
        let mut s = session(open());
        let piece = vec![b'x'; COMMAND_MAX];
        let mut fed = (0..2 * SKIPPED_MAX / COMMAND_MAX).map(|_| s.feed(&piece).1);
        assert!(fed.any(|e| matches!(e, Event::Close)));
        assert!(String::from_utf8_lossy(&s.out).contains("421 4.7.0 A line without end"));
    }

    #[test]
    fn what_a_reply_quotes_does_not_break_it() {
        let mut s = session(open());
        let long = "\u{e4}".repeat(1000);
        run(&mut s, format!("EHLO c\r\nMAIL FROM:<> X\x1b[0m\u{80}\r\nMAIL FROM:<> {long}\r\n").as_bytes());
        let out = String::from_utf8_lossy(&s.out);
        assert!(out.contains("555 5.5.4 Parameter X?[0M? is not supported"), "{out}");
        assert!(out.lines().last().is_some_and(|l| (509..=510).contains(&l.len()) && l.ends_with('\u{e4}')), "{out}");
    }

    #[test]
    fn a_chunk_does_not_stand_for_ehlo() {
        for chunk in ["BDAT 0 LAST\r\n", "BDAT 2\r\nxx"] {
            let mut s = session(open());
            run(&mut s, format!("{chunk}MAIL FROM:<a@x.test>\r\n").as_bytes());
            let out = String::from_utf8_lossy(&s.out);
            assert!(out.ends_with("503 5.5.1 EHLO first\r\n"), "{out}");
        }
    }

    #[test]
    fn too_many_recipients_fail_the_message_by_data_and_by_bdat() {
        for content in ["DATA\r\n", "BDAT 3 LAST\r\nx\r\n"] {
            let mut s = session(SourceRules { max_rcpt_per_message: 1, too_many_rcpts_fails_message: true, ..open() });
            let start = "EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<a@y.test>\r\nRCPT TO:<b@y.test>\r\n";
            let events = run(&mut s, format!("{start}{content}").as_bytes());
            let out = String::from_utf8_lossy(&s.out);
            assert!(events.is_empty() && out.contains("452 4.5.3 ") && out.contains("554 5.5.3 "), "{out}");
        }
    }

    #[test]
    fn relaying_is_refused_by_default() {
        let mut s = session(SourceRules::default());
        run(&mut s, b"EHLO c\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\n");
        assert!(String::from_utf8_lossy(&s.out).contains("550 5.7.1"));
    }

    proptest! {
        #[test]
        fn any_bytes_leave_the_session_alive_or_closed(b in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut s = session(open());
            run(&mut s, b"EHLO c\r\n");
            run(&mut s, &b);
            prop_assert!(s.out.len() < 200_000);
        }
    }
}
