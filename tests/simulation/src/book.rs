//! What is true of the world: which mail was accepted, who received it, and what must not be.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use tokio::time::Instant;

use crate::dice::Dice;
use crate::pipe::Scissors;

/// A process that is killed may not yet have written down what receivers had said within this time before, beside the time that
/// its disk takes for a group.
const UNWRITTEN: Duration = Duration::from_secs(2);

/// A life of a shard's process: its shard, and how many there were before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Life {
    /// Number of the shard.
    pub shard: u8,
    /// Processes of this shard before this one.
    pub number: u32,
}

impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "life {} of shard {}", self.number, self.shard)
    }
}

/// A message that was taken by a receiver, for one recipient.
#[derive(Debug)]
struct Delivery {
    at: Instant,
    by: Life,
    /// Of its connection.
    scissors: Scissors,
}

/// What ended a recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// A receiver, or that the mail was too old.
    Receiver,
    /// An operator, who deleted it.
    Operator,
}

/// What an operator deletes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deleted {
    /// One recipient.
    Recipient(String),
    /// All that is queued for a domain.
    Domain(String),
}

impl Deleted {
    fn means(&self, recipient: &str) -> bool {
        match self {
            Deleted::Recipient(r) => r == recipient,
            Deleted::Domain(domain) => domain_of(recipient) == domain,
        }
    }
}

fn domain_of(recipient: &str) -> &str {
    recipient.rsplit_once('@').map_or("", |(_, domain)| domain)
}

/// An order to delete.
#[derive(Debug)]
struct Deletion {
    what: Deleted,
    given: Instant,
    /// Rows say what was deleted.
    is_accounted: bool,
}

/// A row of an accounting file that ends a recipient.
#[derive(Debug)]
struct Row {
    kind: u8,
    end: End,
    /// When it was written.
    at: Instant,
}

/// How a life ended that may not have written down all that it had heard: it was killed, or its disk took nothing when it left.
#[derive(Debug, Clone, Copy)]
pub struct CutShort {
    /// When.
    pub at: Instant,
    /// What its disk took for a group at most.
    pub group: Duration,
    /// Nothing could be written since then; `None` where it could.
    pub unwritable_since: Option<Instant>,
}

impl CutShort {
    /// Whether what was heard at a time can have been forgotten.
    fn forgets(&self, heard: Instant) -> bool {
        let since = self.unwritable_since.unwrap_or(self.at);
        // What is heard while a group is under way waits for it, and then for its own.
        since <= heard + UNWRITTEN + 2 * self.group
    }
}

/// One recipient of a message that somebody tried to inject.
#[derive(Debug, Default)]
struct Recipient {
    message: u64,
    /// Of the content.
    digest: u64,
    /// When the client began with it.
    begun: Option<Instant>,
    /// A receiver refused it for good.
    is_turned_away: bool,
    /// When the client heard 250; `None` where it heard nothing, and cannot know.
    accepted: Option<Instant>,
    /// The client heard that it was not accepted, with this code, at that time.
    refused: Option<(u16, Instant)>,
    deliveries: Vec<Delivery>,
    rows: Vec<Row>,
    /// When a shard first said that it had deleted it.
    said_deleted: Option<Instant>,
}

/// Everything that happened to mail.
#[derive(Debug)]
pub struct Book {
    begun: Instant,
    recipients: BTreeMap<String, Recipient>,
    /// Lives that may not have written down everything.
    cut_short: BTreeMap<Life, CutShort>,
    deletions: Vec<Deletion>,
    /// By domain, how many recipients shards said they had deleted, and would write a row of.
    said_deleted: BTreeMap<String, u64>,
    /// Recipients whose mail, or whose end, rotted and is in quarantine.
    in_quarantine: BTreeSet<String>,
    /// What was found to be wrong while the world went on.
    violations: Vec<String>,
    messages: u64,
}

/// What came of a run.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Sums {
    /// Messages that clients began.
    pub messages: u64,
    /// Recipients that were accepted.
    pub accepted: usize,
    /// Recipients of which the client does not know.
    pub unknown: usize,
    /// Recipients that were refused behind the content.
    pub refused: usize,
    /// Deliveries.
    pub deliveries: usize,
    /// Recipients that were delivered more than once.
    pub twice: usize,
    /// Rows that end a recipient.
    pub rows: usize,
    /// Recipients that were deleted, with a row.
    pub deleted: usize,
    /// Recipients that the quarantine alone has a word of.
    pub quarantined: usize,
    /// Lives of shards that were killed, or whose disk took nothing when they left.
    pub cut_short: usize,
}

impl Book {
    /// Nothing has happened yet.
    pub fn new() -> Book {
        Book {
            begun: Instant::now(),
            recipients: BTreeMap::new(),
            cut_short: BTreeMap::new(),
            deletions: Vec::new(),
            said_deleted: BTreeMap::new(),
            in_quarantine: BTreeSet::new(),
            violations: Vec::new(),
            messages: 0,
        }
    }

    /// Something happens now that must not.
    pub fn violation(&mut self, what: String) {
        self.violations.push(format!("at {:.3} {what}", self.begun.elapsed().as_secs_f64()));
    }

    /// Begins a message to some recipients, whose addresses nobody has used before.
    pub fn begin(&mut self, message: u64, recipients: &[String], digest: u64) {
        self.messages += 1;
        for r in recipients {
            self.recipients
                .insert(r.clone(), Recipient { message, digest, begun: Some(Instant::now()), ..Recipient::default() });
        }
    }

    /// The client heard another code than 250 behind the content: nobody may get it.
    pub fn refused(&mut self, recipients: &[String], code: u16) {
        for r in recipients {
            if let Some(r) = self.recipients.get_mut(r) {
                r.refused = Some((code, Instant::now()));
            }
        }
    }

    /// The client heard 250.
    pub fn accepted(&mut self, recipients: &[String]) {
        for r in recipients.iter() {
            if let Some(r) = self.recipients.get_mut(r) {
                r.accepted = Some(Instant::now());
            }
        }
    }

    /// A receiver took a message, with this digest of its content, for a recipient from a process of a shard.
    pub fn delivered(&mut self, recipient: &str, (message, digest): (u64, u64), by: Life, scissors: Scissors) {
        let Some(r) = self.recipients.get_mut(recipient) else {
            return self.violation(format!("{recipient} was delivered, which nobody sent"));
        };
        scissors.takes();
        r.deliveries.push(Delivery { at: Instant::now(), by, scissors });
        let (sent, refused, is_whole) = (r.message, r.refused, r.digest == digest);
        if sent == message && !is_whole {
            self.violation(format!("{recipient} of message {message} got another content"));
        }
        if sent != message {
            self.violation(format!("{recipient} of message {sent} got message {message}"));
        }
        if let Some((code, at)) = refused {
            let ago = at.elapsed().as_secs_f64();
            self.violation(format!(
                "{recipient} of message {message} was delivered by {by}, {ago:.3} s after the client was told {code}"
            ));
        }
    }

    /// A life has ended that may not have written down everything.
    pub fn cut_short(&mut self, life: Life, how: CutShort) {
        self.cut_short.insert(life, how);
    }

    /// A receiver refused a recipient for good.
    pub fn turned_away(&mut self, recipient: &str) {
        self.recipients.get_mut(recipient).into_iter().for_each(|r| r.is_turned_away = true);
    }

    /// A recipient that was accepted, and that no receiver has taken or refused; chance decides which.
    pub fn any_that_waits(&self, dice: &Dice) -> Option<String> {
        let waits = |r: &Recipient| r.accepted.is_some() && r.deliveries.is_empty() && !r.is_turned_away;
        let all: Vec<&String> = self.recipients.iter().filter(|(_, r)| waits(r)).map(|(address, _)| address).collect();
        dice.pick(&all).map(|address| (*address).clone())
    }

    /// An operator is about to delete something.
    pub fn is_to_be_deleted(&mut self, what: Deleted, is_accounted: bool) {
        self.deletions.push(Deletion { what, given: Instant::now(), is_accounted });
    }

    /// A shard says that it has deleted so many recipients.
    pub fn was_deleted(&mut self, what: &Deleted, recipients: u64, is_accounted: bool) {
        if let Deleted::Recipient(address) = what
            && recipients > 0
            && let Some(r) = self.recipients.get_mut(address)
        {
            r.said_deleted.get_or_insert_with(Instant::now);
        }
        let (Deleted::Recipient(domain) | Deleted::Domain(domain)) = what;
        if is_accounted {
            let domain = domain.rsplit('@').next().unwrap_or_default().to_owned();
            *self.said_deleted.entry(domain).or_default() += recipients;
        }
    }

    /// The quarantine has a word of recipients: a record rotted that held their mail, or how it ended.
    pub fn in_quarantine(&mut self, recipients: &[String]) {
        self.in_quarantine.extend(recipients.iter().cloned());
    }

    /// A row of an accounting file that ends a recipient, by whom, and when it was written.
    pub fn row(&mut self, recipient: &str, kind: u8, end: End, at: Instant) {
        match self.recipients.get_mut(recipient) {
            Some(r) => r.rows.push(Row { kind, end, at }),
            None => self.violation(format!("{recipient} has a row, and nobody sent it")),
        }
    }

    /// What was found to be wrong.
    pub fn violations(&self) -> &[String] {
        &self.violations
    }

    /// A number that is the same for two runs in which the same happened at the same time.
    pub fn digest(&self) -> u64 {
        let mut h = DefaultHasher::new();
        let since = |at: Instant| at.duration_since(self.begun).as_nanos();
        for (address, r) in &self.recipients {
            (address, r.accepted.map(since), r.refused.map(|(code, at)| (code, since(at)))).hash(&mut h);
            r.deliveries.iter().for_each(|d| (since(d.at), d.by.shard, d.by.number).hash(&mut h));
            r.rows.iter().for_each(|row| (row.kind, since(row.at)).hash(&mut h));
        }
        h.finish()
    }

    /// Whether a delivery can have been forgotten: its process died before it had written it down, or never heard the reply.
    fn may_be_forgotten(&self, d: &Delivery) -> bool {
        d.scissors.has_lost(d.at) || self.cut_short.get(&d.by).is_some_and(|k| k.forgets(d.at))
    }

    /// When a delivery was, by which process, and how that ended.
    fn told(&self, d: &Delivery) -> String {
        let seconds = |at: Instant| at.duration_since(self.begun).as_secs_f64();
        let end = self.cut_short.get(&d.by).map(|k| format!(", cut short at {:.3}", seconds(k.at)));
        format!("at {:.3} by {}{}", seconds(d.at), d.by, end.unwrap_or_default())
    }

    /// Holds what happened against what may happen, when everything has ended.
    pub fn check(&mut self) -> Sums {
        let mut wrong = Vec::new();
        let mut sums = Sums { messages: self.messages, cut_short: self.cut_short.len(), ..Sums::default() };
        for (address, r) in &self.recipients {
            let is_in_quarantine = self.in_quarantine.contains(address);
            let orders = || self.deletions.iter().filter(|d| d.what.means(address));
            // That nothing says what became of it is what the operator wanted.
            let may_be_gone = orders().any(|d| !d.is_accounted);
            let forgotten = r.deliveries.iter().filter(|d| self.may_be_forgotten(d)).count();
            sums.deliveries += r.deliveries.len();
            sums.rows += r.rows.len();
            sums.accepted += usize::from(r.accepted.is_some());
            sums.unknown += usize::from(r.accepted.is_none() && r.refused.is_none());
            sums.refused += usize::from(r.refused.is_some());
            sums.twice += usize::from(r.deliveries.len() > 1);
            let (is_delivered, has_d) = (!r.deliveries.is_empty(), r.rows.iter().any(|row| row.kind == b'd'));
            let deleted = r.rows.iter().find(|row| row.end == End::Operator).map(|row| row.at);
            sums.deleted += usize::from(deleted.is_some());
            sums.quarantined += usize::from(r.accepted.is_some() && r.rows.is_empty() && is_in_quarantine);
            if r.accepted.is_some() && r.rows.is_empty() && !is_in_quarantine && !may_be_gone {
                let how = match r.deliveries.last() {
                    Some(d) => format!("delivered {} and not accounted", self.told(d)),
                    None => "lost".to_owned(),
                };
                wrong.push(format!("I1 {address} of message {} was {how}", r.message));
            }
            if r.deliveries.len() > 1 + forgotten && !is_in_quarantine {
                let when: Vec<String> = r.deliveries.iter().map(|d| self.told(d)).collect();
                wrong.push(format!(
                    "I2 {address} of message {} was delivered {} times: {}",
                    r.message,
                    when.len(),
                    when.join(", ")
                ));
            }
            if r.rows.len() > 1 + forgotten && !is_in_quarantine {
                let rows: String = r.rows.iter().map(|row| char::from(row.kind)).collect();
                wrong.push(format!("I2 {address} of message {} has the rows {rows}", r.message));
            }
            // Nothing goes wrong for long enough that mail would be too old in the end.
            let is_bounce = |row: &&Row| row.kind == b'b' && row.end == End::Receiver;
            if let Some(row) = r.rows.iter().find(is_bounce).filter(|_| !r.is_turned_away) {
                let age = r.begun.map_or(0.0, |begun| row.at.duration_since(begun).as_secs_f64());
                wrong.push(format!(
                    "{address} of message {} was bounced after {age:.0} s, and no receiver had refused it",
                    r.message
                ));
            }
            if deleted.is_some_and(|at| !orders().any(|d| d.given <= at && d.is_accounted)) {
                wrong.push(format!("{address} of message {} was deleted, and nobody had ordered that", r.message));
            }
            let gone = [deleted, r.said_deleted].into_iter().flatten().min();
            let late = |d: &&Delivery| gone.is_some_and(|gone| d.at > gone) && !self.may_be_forgotten(d);
            if let Some(d) = r.deliveries.iter().find(late).filter(|_| !is_in_quarantine) {
                wrong.push(format!(
                    "{address} of message {} was delivered {} after it had been deleted",
                    r.message,
                    self.told(d)
                ));
            }
            if has_d && !is_delivered {
                wrong.push(format!(
                    "{address} of message {} is accounted as delivered, and no receiver has it",
                    r.message
                ));
            }
            if is_delivered && !r.rows.is_empty() && !has_d && forgotten < r.deliveries.len() && !is_in_quarantine {
                wrong.push(format!("{address} of message {} was delivered, and is accounted as bounced", r.message));
            }
        }
        for (domain, said) in &self.said_deleted {
            let is_there = |(address, r): (&String, &Recipient)| {
                let rows = r.rows.iter().filter(|row| row.end == End::Operator).count();
                if rows == 0 { usize::from(self.in_quarantine.contains(address)) } else { rows }
            };
            let of_domain = self.recipients.iter().filter(|(address, _)| domain_of(address) == domain);
            let rows: usize = of_domain.map(is_there).sum();
            if (rows as u64) < *said {
                wrong.push(format!(
                    "shards said that they had deleted {said} recipients of {domain}, and {rows} are accounted"
                ));
            }
        }
        self.violations.append(&mut wrong);
        sums
    }
}
