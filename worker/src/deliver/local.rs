//! Delivery without SMTP: `type discard`, `file` and `pipe`.

use std::fs::{File, TryLockError};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path as FilePath, PathBuf};
use std::process::Stdio;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use ipc::message::{ArchivedBodyType, ArchivedEnvelope};
use tokio::io::AsyncWriteExt;

use super::conclusion::{Attempt, conclude, unreadable, without_suppressed};
use super::connection::{Path, load};
use super::contained::{contained, hold_after_panic};
use crate::classify::bounce_rules::Stage;
use crate::classify::outcome::{Outcome, Verdict};
use crate::regular_file::{self, Links};
use crate::schedule::{Batch, Next};
use crate::shard::Shard;
use crate::{clock, programs};

/// How mail leaves, in the order of the values of `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// To a receiver.
    Smtp,
    /// Into a program, one process for each recipient.
    Pipe,
    /// Into a file for each recipient, or at the end of one.
    File,
    /// Nowhere.
    Discard,
    /// By HTTP; not in force.
    Http,
}

/// How long a program may take for one recipient.
const PROGRAM_WAIT: Duration = Duration::from_secs(600);
/// How long somebody else may keep a mailbox locked.
const LOCK_WAIT: Duration = Duration::from_secs(10);
const LOCK_LOOK_EVERY: Duration = Duration::from_millis(50);

impl Type {
    /// By the value of the directive.
    pub fn of(n: u64) -> Type {
        [Type::Smtp, Type::Pipe, Type::File, Type::Discard, Type::Http].get(n as usize).copied().unwrap_or(Type::Smtp)
    }

    /// As accounting names it.
    pub fn name(self) -> &'static str {
        match self {
            Type::Smtp => "smtp",
            Type::Pipe => "pipe",
            Type::File => "file",
            Type::Discard => "discard",
            Type::Http => "http-delivery",
        }
    }
}

/// Delivers what the scheduler gives until there is nothing left; counted as a connection.
pub(super) async fn serve(shard: &Rc<Shard>, path: &mut Path) {
    loop {
        if shard.stopping() || shard.spool.holds_deliveries() || !path.refresh(shard) {
            return;
        }
        let now_ns = clock::now_ns() as i64;
        let (rates, ledger) = (path.rates(), &shard.ledger);
        let mut shared = |n, bytes| rates.grant(ledger, n, bytes, now_ns);
        let next = shard.scheduler.borrow_mut().next(path.id, None, now_ns, &|_| true, &mut shared);
        // A rate that asks to wait has set the path's timer.
        let Next::Send(batch) = next else { return };
        crate::route::paths::note_rate(shard, path.id);
        path.carries(shard, batch.queue);
        let ordinary = batch.ordinary;
        let (queue, key, whole) = (batch.queue, batch.key, batch.whole());
        if contained(std::pin::pin!(attempt(shard, path, batch))).await.is_none() {
            hold_after_panic(shard, path, &Batch::of(queue, key, whole));
        }
        shard.scheduler.borrow_mut().free(path.id, ordinary);
        tokio::task::yield_now().await;
    }
}

async fn attempt(shard: &Rc<Shard>, path: &Path, batch: Batch) {
    let content = match load(shard, batch.slot, batch.key).await {
        Ok(c) => c,
        Err(e) => return unreadable(shard, path, &batch, &e),
    };
    let Ok(e) = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&content.envelope) else { return };
    let Some(batch) = without_suppressed(shard, path, batch, e, &content.body).await else { return };
    let began = clock::now_ms();
    let mut verdicts = Vec::with_capacity(batch.recipients.len());
    for r in &batch.recipients {
        let v = match Type::of(path.rules.delivery_type) {
            Type::Discard if path.rules.discard_as_bounce => {
                Verdict { outcome: Outcome::Bounced, ..delivered("discarded") }
            }
            Type::Discard => delivered("discarded"),
            Type::File => into_file(path, e, *r, &content.body).await,
            Type::Pipe => into_program(shard, path, e, *r, &content.body).await,
            Type::Http | Type::Smtp => Verdict::own("4.3.5", "type http-delivery is not in force yet"),
        };
        verdicts.push((*r, v));
    }
    conclude(shard, path, &batch, e, &content.body, verdicts, &Attempt::without_session(began)).await;
}

fn delivered(what: &str) -> Verdict {
    Verdict {
        outcome: Outcome::Delivered,
        status: "2.0.0".into(),
        diagnostic: what.into(),
        remote: false,
        code: 0,
        stage: Stage::Message,
    }
}

/// Values that `$NAME` stands for.
struct Macros<'a> {
    e: &'a ArchivedEnvelope,
    to: &'a str,
    preserve_case: bool,
    /// Nothing that a value holds may lead to another folder.
    for_path: bool,
}

impl Macros<'_> {
    fn value(&self, name: &str) -> Option<String> {
        let now_s = clock::wall_ms(clock::now_ms()) / 1000;
        let cased = |t: &str| if self.preserve_case { t.to_owned() } else { t.to_lowercase() };
        let (local, domain) = self.to.rsplit_once('@').unwrap_or((self.to, ""));
        Some(match name {
            "to" => cased(self.to),
            "from" => cased(self.e.sender.as_str()),
            "user" => local.split('+').next().unwrap_or_default().to_lowercase(),
            "domain" => domain.to_lowercase(),
            "envid" => self.e.envid.as_str().to_owned(),
            "bodytype" => match self.e.body_type {
                ArchivedBodyType::SevenBit => "7BIT".to_owned(),
                ArchivedBodyType::EightBit => "8BITMIME".to_owned(),
            },
            "timet" => now_s.to_string(),
            "isodate" => crate::local_time(now_s, "%Y-%m-%d"),
            "ctime" => crate::local_time(now_s, "%a %b %e %H:%M:%S %Y"),
            "rfctime" => crate::rfc5322_date(now_s),
            _ => return None,
        })
    }

    /// A text with its macros replaced; `$$` is a dollar sign, and what is no macro stays.
    fn replaced(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            out.push_str(&rest[..at]);
            let behind = &rest[at + 1..];
            let len = behind.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(behind.len());
            match self.value(&behind[..len]) {
                Some(v) if self.for_path => out.push_str(&harmless(&v)),
                Some(v) => out.push_str(&v),
                None => out.push('$'),
            }
            let known = self.value(&behind[..len]).is_some();
            rest = if known { &behind[len..] } else { behind.strip_prefix('$').unwrap_or(behind) };
        }
        out + rest
    }
}

/// One part of a path: no separator, not hidden, not empty.
fn harmless(value: &str) -> String {
    let t: String = value.chars().map(|c| if c == '/' || c.is_control() { '_' } else { c }).collect();
    if t.starts_with('.') || t.is_empty() { format!("_{t}") } else { t }
}

/// Words of a command: blanks separate them outside of quotes.
fn words(command: &str) -> Vec<String> {
    let (mut all, mut word, mut quote, mut any) = (Vec::new(), String::new(), None, false);
    let mut chars = command.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', q) if q != Some('\'') => word.extend(chars.next()),
            (c, Some(q)) if c == q => quote = None,
            ('"' | '\'', None) => (quote, any) = (Some(c), true),
            (c, None) if c.is_whitespace() => {
                if any || !word.is_empty() {
                    all.push(std::mem::take(&mut word));
                }
                any = false;
            }
            (c, _) => word.push(c),
        }
    }
    if any || !word.is_empty() {
        all.push(word);
    }
    all
}

/// Content with the line ends that programs of this system expect.
fn native(body: &[Bytes; 2]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body[0].len() + body[1].len());
    for b in body.iter().flat_map(|b| b.iter()) {
        if *b == b'\n' && out.last() == Some(&b'\r') {
            out.pop();
        }
        out.push(*b);
    }
    out
}

fn recipient(e: &ArchivedEnvelope, r: u16) -> &str {
    e.recipients.get(usize::from(r)).map_or("", |r| r.address.as_str())
}

async fn into_file(path: &Path, e: &ArchivedEnvelope, r: u16, body: &[Bytes; 2]) -> Verdict {
    let to = recipient(e, r).to_owned();
    let macros = Macros { e, to: &to, preserve_case: path.rules.macro_variables_preserve_case, for_path: true };
    let target = PathBuf::from(macros.replaced(&path.rules.file_destination));
    let sender = e.sender.as_str().to_owned();
    let mut content = native(body);
    let format = path.rules.file_format;
    let written = tokio::task::spawn_blocking(move || {
        match format {
            1 => {
                content.splice(0..0, format!("x-sender: {sender}\nx-receiver: {to}\n").into_bytes());
                new_file(&target, &content)
            }
            2 => append(&target, &mbox(&sender, &content)),
            _ => new_file(&target, &content),
        }
        .map(|()| target.clone())
        .map_err(|e| format!("cannot write {}: {e}", target.display()))
    });
    match written.await {
        Ok(Ok(target)) => delivered(&format!("written to {}", target.display())),
        Ok(Err(reason)) => Verdict::own("4.3.0", reason),
        Err(e) => Verdict::own("4.3.0", e.to_string()),
    }
}

/// A file of its own in a folder, which has its name when it is whole.
fn new_file(folder: &FilePath, content: &[u8]) -> std::io::Result<()> {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    std::fs::create_dir_all(folder)?;
    let name = format!("{}-{}-{}", clock::now_ns(), std::process::id(), COUNT.fetch_add(1, Relaxed));
    let temporary = folder.join(format!("{name}.tmp"));
    let mut f = File::create_new(&temporary)?;
    let done = f.write_all(content).and_then(|()| f.sync_data());
    match done.and_then(|()| std::fs::rename(&temporary, folder.join(format!("{name}.msg")))) {
        Ok(()) => Ok(()),
        Err(e) => {
            let _ = std::fs::remove_file(&temporary);
            Err(e)
        }
    }
}

/// Whoever may write to the folder of a mailbox may put a link, another name of a file, or a pipe in its place: mail goes
/// into none of them.
fn append(file: &FilePath, content: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let f = regular_file::open_as(file, File::options().append(true).create(true), Links::Refused)?;
    if f.metadata()?.nlink() != 1 {
        return Err(std::io::Error::other("the file has other names as well (hard links)"));
    }
    lock(&f)?;
    let before = f.metadata()?.len();
    let done = (&f).write_all(content).and_then(|()| f.sync_data());
    if done.is_err() {
        // Half a message would spoil those behind it.
        f.set_len(before)?;
    }
    done
}

/// Waits for a reader of the mailbox, who may keep it, for some time only.
fn lock(f: &File) -> std::io::Result<()> {
    let until = std::time::Instant::now() + LOCK_WAIT;
    loop {
        match f.try_lock() {
            Err(TryLockError::WouldBlock) if std::time::Instant::now() < until => std::thread::sleep(LOCK_LOOK_EVERY),
            Err(TryLockError::WouldBlock) => {
                return Err(std::io::Error::other(format!("locked by another process for {LOCK_WAIT:?}")));
            }
            Err(TryLockError::Error(e)) => return Err(e),
            Ok(()) => return Ok(()),
        }
    }
}

/// A message of an mbox (RFC 4155): a line that says where it begins, others like it quoted.
fn mbox(sender: &str, content: &[u8]) -> Vec<u8> {
    let sender = if sender.is_empty() { "MAILER-DAEMON" } else { sender };
    let date = crate::local_time(clock::wall_ms(clock::now_ms()) / 1000, "%a %b %e %H:%M:%S %Y");
    let mut out = format!("From {sender} {date}\n").into_bytes();
    for line in content.split_inclusive(|b| *b == b'\n') {
        let quoted = line.iter().take_while(|b| **b == b'>').count();
        if line[quoted..].starts_with(b"From ") {
            out.push(b'>');
        }
        out.extend_from_slice(line);
    }
    if !out.ends_with(b"\n") {
        out.push(b'\n');
    }
    out.push(b'\n');
    out
}

/// The arguments that words of a command stand for: first words, then macros, so that what an address holds is never more
/// than one argument. Nor is it an option: behind `--` programs expect none, and elsewhere a value that looks like one is
/// an error.
fn arguments(command: &str, replaced: impl Fn(&str) -> String) -> Result<Vec<String>, String> {
    let words = words(command);
    let operands = words.iter().position(|w| w == "--").unwrap_or(words.len());
    let argument = |(i, word): (usize, &String)| {
        let argument = replaced(word);
        let is_option = argument.starts_with('-') && !word.starts_with('-') && i < operands;
        if is_option { Err(format!("the command would take {argument:?} for an option")) } else { Ok(argument) }
    };
    words.iter().enumerate().map(argument).collect()
}

async fn into_program(shard: &Shard, path: &Path, e: &ArchivedEnvelope, r: u16, body: &[Bytes; 2]) -> Verdict {
    let to = recipient(e, r);
    let macros = Macros { e, to, preserve_case: path.rules.macro_variables_preserve_case, for_path: false };
    let argv = match arguments(&path.rules.command, |word| macros.replaced(word)) {
        Ok(a) => a,
        Err(why) => return Verdict::own("5.3.0", why),
    };
    let Some((program, arguments)) = argv.split_first() else {
        return Verdict::own("5.3.5", "type pipe without command");
    };
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = match programs::start(command, shard.cpus_of_workers()).await {
        Ok(c) => c,
        Err(e) => return Verdict::own("4.3.0", format!("cannot start {program}: {e}")),
    };
    let stdin = child.stdin.take();
    let content = native(body);
    let fed = async {
        if let Some(mut stdin) = stdin {
            // A program may decide before it has read everything.
            let _ = stdin.write_all(&content).await;
        }
        child.wait().await
    };
    match tokio::time::timeout(PROGRAM_WAIT, fed).await {
        Ok(Ok(status)) => by_exit_code(program, status.code()),
        Ok(Err(e)) => Verdict::own("4.3.0", format!("{program}: {e}")),
        Err(_) => Verdict::own("4.3.0", format!("{program} took longer than {} s", PROGRAM_WAIT.as_secs())),
    }
}

/// What the codes of sysexits(3) mean for the recipient.
fn by_exit_code(program: &str, code: Option<i32>) -> Verdict {
    let status = match code {
        Some(0) => return delivered(&format!("taken by {program}")),
        Some(64) => "5.5.4",
        Some(65) => "5.5.2",
        Some(67) => "5.1.1",
        Some(68) => "5.1.2",
        Some(71 | 74) => "4.3.0",
        Some(73) => "5.2.0",
        Some(75) => "4.0.0",
        Some(76) => "5.5.0",
        Some(77) => "5.7.1",
        Some(78) => "5.3.5",
        Some(_) => "5.3.0",
        None => return Verdict::own("4.3.0", format!("{program} was ended by a signal")),
    };
    Verdict::own(status, format!("{program} ended with code {}", code.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_split_before_macros_are_replaced() {
        assert_eq!(words("/bin/a -x \"$to b\" '' c\\ d"), ["/bin/a", "-x", "$to b", "", "c d"]);
        assert_eq!(harmless("../../etc"), "_.._.._etc");
        assert_eq!(harmless(""), "_");
    }

    #[test]
    fn no_address_becomes_an_option() {
        let given = |command: &str, from: &str, to: &str| {
            arguments(command, |word| word.replace("$from", from).replace("$to", to)).map(|a| a.join(" "))
        };
        assert_eq!(given("/p -f $from -- $to", "a@b", "-x@d").as_deref(), Ok("/p -f a@b -- -x@d"));
        assert_eq!(given("/p --to=$to -f$from", "-a@b", "-x@d").as_deref(), Ok("/p --to=-x@d -f-a@b"));
        assert!(given("/p $to", "a@b", "-x@d").is_err_and(|e| e.contains("\"-x@d\" for an option")));
        assert!(given("/p -f $from", "-oQ/tmp@b", "x@d").is_err());
        // Nor do words that are left of a macro without a value.
        assert!(given("/p $from-v", "", "x@d").is_err());
    }

    #[test]
    fn mailboxes_are_files_of_their_own() {
        let dir = tempfile::tempdir().expect("a folder");
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("victim"), "kept").expect("written");
        std::os::unix::fs::symlink("victim", at("link")).expect("linked");
        std::os::unix::fs::symlink("nowhere", at("dangling")).expect("linked");
        std::fs::hard_link(at("victim"), at("other")).expect("linked");
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("made");
        for name in ["link", "dangling", "other", "pipe"] {
            assert!(append(&at(name), b"mail").is_err(), "{name}");
        }
        assert_eq!(std::fs::read(at("victim")).ok().as_deref(), Some(&b"kept"[..]));
        assert!(!at("nowhere").exists());
        assert!(append(&at("new"), b"a").is_ok() && append(&at("new"), b"b").is_ok());
        assert_eq!(std::fs::read(at("new")).ok().as_deref(), Some(&b"ab"[..]));
    }

    #[test]
    fn messages_of_an_mbox_begin_where_their_first_line_says() {
        let text = String::from_utf8(mbox("a@b", b"Subject: x\n\nFrom here\n>From there\nend")).unwrap_or_default();
        assert!(text.starts_with("From a@b "), "{text}");
        assert!(text.ends_with("\n\n>From here\n>>From there\nend\n\n"), "{text}");
        assert_eq!(native(&[Bytes::from_static(b"a\r\nb\r"), Bytes::from_static(b"\nc\rd")]), b"a\nb\nc\rd");
    }

    #[test]
    fn exit_codes_decide() {
        let status = |c| by_exit_code("p", c).status;
        assert_eq!(
            [Some(0), Some(67), Some(75), Some(1), None].map(status),
            ["2.0.0", "5.1.1", "4.0.0", "5.3.0", "4.3.0"]
        );
    }
}
