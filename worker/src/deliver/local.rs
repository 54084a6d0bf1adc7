//! Delivery without SMTP: `type discard`, `file` and `pipe`.

use std::fs::{File, TryLockError};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path as FilePath, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use ipc::control::ProgramEnd;
use ipc::message::{ArchivedBodyType, ArchivedEnvelope};

use super::conclusion::{Attempt, conclude, unreadable, without_suppressed};
use super::contained::{contained, hold_after_panic};
use super::delivery_type::Type;
use super::outgoing_header::{Exit, outgoing};
use super::path::ServedPath;
use super::windows::within_windows;
use crate::classify::outcome::{Outcome, Stage, Verdict};
use crate::prepare::rewrite_list::RewriteList;
use crate::regular_file::{self, Links};
use crate::route::stored::load;
use crate::schedule::{Batch, Next};
use crate::shard::Shard;
use crate::{clock, programs};

/// How long somebody else may keep a mailbox locked.
const LOCK_WAIT: Duration = Duration::from_secs(10);
const LOCK_LOOK_EVERY: Duration = Duration::from_millis(50);

/// Delivers what the scheduler gives until there is nothing left; counted as a connection.
pub(super) async fn serve(shard: &Rc<Shard>, path: &mut ServedPath) {
    loop {
        if shard.stopping() || shard.spool.holds_deliveries() || !path.refresh(shard) {
            return;
        }
        let (rates, ledger) = (path.rates(), &shard.ledger);
        let next = shard.decide(|e, now| {
            let mut shared = |n, bytes| rates.grant(ledger, n, bytes, now.ns);
            e.next_batch(path.id, None, &|_| true, &mut shared, now)
        });
        // A rate that asks to wait has set the path's timer.
        let Next::Send(batch) = next else { return };
        path.carries(shard, batch.queue);
        let ordinary = batch.ordinary;
        let (queue, key, whole) = (batch.queue, batch.key, batch.whole());
        if contained(std::pin::pin!(attempt(shard, path, batch))).await.is_none() {
            hold_after_panic(shard, path, &Batch::of(queue, key, whole));
        }
        shard.decide(|e, _| e.end_batch(path.id, ordinary));
        tokio::task::yield_now().await;
    }
}

async fn attempt(shard: &Rc<Shard>, path: &ServedPath, batch: Batch) {
    let content = match load(shard, batch.slot, batch.key).await {
        Ok(c) => c,
        Err(e) => return unreadable(shard, path, &batch, &e),
    };
    let Ok(e) = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&content.envelope) else { return };
    let Some(batch) = within_windows(shard, path, batch, e) else { return };
    let Some(batch) = without_suppressed(shard, path, batch, e, &content.body).await else { return };
    let began = clock::now_ms();
    let to = batch.recipients.first().map_or("", |r| recipient(e, *r));
    let rewriting = path.rewriting(shard, &shard.config());
    let exit = Exit { rules: &path.rules, vmta: &path.vmta_name, rewriting: rewriting.as_deref() };
    let body = outgoing(&content, exit, to, clock::wall_ms(began) / 1000);
    let mut verdicts = Vec::with_capacity(batch.recipients.len());
    for (i, r) in batch.recipients.iter().enumerate() {
        let sender = RewriteList::sender_to(rewriting.as_deref(), e, recipient(e, *r));
        let v = match Type::of(path.rules.delivery_type) {
            Type::Discard if path.rules.discard_as_bounce => {
                Verdict { outcome: Outcome::Bounced, ..delivered("discarded") }
            }
            Type::Discard => delivered("discarded"),
            Type::File => into_file(path, (e, &sender), *r, &body).await,
            Type::Pipe => match into_program(shard, path, (e, &sender), *r, &body).await {
                Some(v) => v,
                None => {
                    path.put_back(shard, &batch, &batch.recipients[i..]);
                    break;
                }
            },
            Type::Http | Type::Smtp => Verdict::own("4.3.5", "type http-delivery is not in force yet"),
        };
        verdicts.push((*r, v));
    }
    if verdicts.is_empty() {
        return;
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
    sender: &'a str,
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
            "from" => cased(self.sender),
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

async fn into_file(path: &ServedPath, (e, sender): (&ArchivedEnvelope, &str), r: u16, body: &[Bytes; 2]) -> Verdict {
    let to = recipient(e, r).to_owned();
    let macros = Macros { e, sender, to: &to, preserve_case: path.rules.macro_variables_preserve_case, for_path: true };
    let target = PathBuf::from(macros.replaced(&path.rules.file_destination));
    let sender = sender.to_owned();
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

/// Appends a message to a mailbox file. A user who may write to the folder could replace the file by a link, by another name of some file,
/// or by a pipe: nothing is written to any of these.
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
    let until = tokio::time::Instant::now() + LOCK_WAIT;
    loop {
        match f.try_lock() {
            Err(TryLockError::WouldBlock) if tokio::time::Instant::now() < until => std::thread::sleep(LOCK_LOOK_EVERY),
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

/// `None`: nothing was begun, for the server stops.
async fn into_program(
    shard: &Shard,
    path: &ServedPath,
    (e, sender): (&ArchivedEnvelope, &str),
    r: u16,
    body: &[Bytes; 2],
) -> Option<Verdict> {
    let to = recipient(e, r);
    let replaced = |word: &str, for_path: bool| {
        Macros { e, sender, to, preserve_case: path.rules.macro_variables_preserve_case, for_path }.replaced(word)
    };
    let command = &path.rules.command;
    let words = match programs::with_values(command, replaced) {
        Ok(words) => words,
        Err(why) => return Some(Verdict::own("5.3.0", why)),
    };
    let Some(program) = words.first().cloned() else {
        return Some(Verdict::own("5.3.5", "type pipe without command"));
    };
    let end = shard.programs.run(command, words, || native(body)).await?;
    Some(by_end(&program, end))
}

/// What the end of a program means for the recipient.
fn by_end(program: &str, how: ProgramEnd) -> Verdict {
    match how {
        ProgramEnd::Code(code) => by_exit_code(program, code),
        ProgramEnd::Signal => Verdict::own("4.3.0", format!("{program} was ended by a signal")),
        ProgramEnd::Unknown(why) => Verdict::own("4.3.0", format!("{program}: {why}")),
    }
}

/// What the codes of sysexits(3) mean for the recipient.
fn by_exit_code(program: &str, code: i32) -> Verdict {
    let status = match code {
        0 => return delivered(&format!("taken by {program}")),
        64 => "5.5.4",
        65 => "5.5.2",
        67 => "5.1.1",
        68 => "5.1.2",
        71 | 74 => "4.3.0",
        73 => "5.2.0",
        75 => "4.0.0",
        76 => "5.5.0",
        77 => "5.7.1",
        78 => "5.3.5",
        _ => "5.3.0",
    };
    Verdict::own(status, format!("{program} ended with code {code}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_lead_to_no_other_folder() {
        assert_eq!(harmless("../../etc"), "_.._.._etc");
        assert_eq!(harmless(""), "_");
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
        let status = |how| by_end("p", how).status;
        let code = |c| status(ProgramEnd::Code(c));
        assert_eq!([0, 67, 75, 1].map(code), ["2.0.0", "5.1.1", "4.0.0", "5.3.0"]);
        assert_eq!([ProgramEnd::Signal, ProgramEnd::Unknown(String::new())].map(status), ["4.3.0", "4.3.0"]);
    }
}
