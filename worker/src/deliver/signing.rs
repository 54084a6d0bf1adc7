//! A message as it goes by a path, with its header as it goes out and DKIM-signed: made once for all who ask for the same.

use std::rc::Rc;

use bytes::Bytes;
use ipc::rules::DomainRules;

use super::outgoing_header::{Exit, differs, outgoing};
use super::path::{ServedPath, path_of_queue};
use crate::clock;
use crate::config::Config;
use crate::dkim::options::Options;
use crate::dkim::request::Request;
use crate::dkim::signature::{DomainKey, Signable, unsigned};
use crate::holds::{Work, doing};
use crate::prepare::content::{Content, Signed};
use crate::schedule::QueueId;
use crate::shard::Shard;

/// How long a signature is used again, seconds.
const SIGNED_S: i64 = 300;

/// Longest content whose hash is worked out between other work, bytes: a millisecond or so.
const HASHED_HERE_MAX: usize = 256 << 10;

/// The content as it goes by a path: its header as source and rules have it, behind as many signatures as the rules ask for and keys fit.
///
/// `to` is the recipient, or the first of several, for whom all is the same.
pub(super) async fn signed(
    shard: &Shard,
    config: &Config,
    path: &ServedPath,
    content: &Content,
    to: &str,
) -> [Bytes; 2] {
    let options = config.signing(&path.rules);
    let rewriting = path.rewriting(shard, config);
    let exit = Exit { rules: &path.rules, vmta: &path.vmta_name, rewriting: rewriting.as_deref() };
    if options.is_empty() && !differs(content, exit) {
        return content.body.clone();
    }
    let generation = config.snapshot.get().generation.to_native();
    let now_s = clock::wall_ms(clock::now_ms()) / 1000;
    if !content.kept.of_each.is_empty() {
        // Nobody else asks for the same.
        return sign(shard, config, path, exit, content, to, &options, now_s).await;
    }
    let body = {
        let mut known = content.signed.borrow_mut();
        // Times in a signature are those of a while ago at most.
        known.retain(|s| s.generation == generation && now_s - s.at_s < SIGNED_S);
        let is_same = |s: &Signed| Rc::ptr_eq(&s.rules, &path.rules) && s.vmta == path.vmta_name && s.pool == path.pool;
        let same = known.iter().position(is_same);
        let at = same.unwrap_or_else(|| {
            let (rules, vmta) = (Rc::clone(&path.rules), Rc::clone(&path.vmta_name));
            known.push(Signed { generation, at_s: now_s, rules, vmta, pool: path.pool.clone(), body: Rc::default() });
            known.len() - 1
        });
        Rc::clone(&known[at].body)
    };
    body.get_or_init(|| sign(shard, config, path, exit, content, to, &options, now_s)).await.clone()
}

/// The content as mail of queue `id` would be sent to a recipient by the queue's first path.
pub async fn as_sent(shard: &Shard, id: QueueId, content: &Content, to: &str) -> Option<[Bytes; 2]> {
    let path = path_of_queue(shard, id)?;
    Some(signed(shard, &shard.config(), &path, content, to).await)
}

#[allow(clippy::too_many_arguments)] // each is a different thing, used once
async fn sign(
    shard: &Shard,
    config: &Config,
    path: &ServedPath,
    exit: Exit<'_>,
    content: &Content,
    to: &str,
    options: &[Options],
    now_s: i64,
) -> [Bytes; 2] {
    let keys = config.domain_keys(path.vmta(shard), path.pool.as_deref());
    let body = outgoing(content, exit, to, now_s);
    let mut message = Signable::of(&body);
    let mut fields = String::new();
    for o in options {
        let Some(Means { asked, named }) = Means::of(config, o, content) else { continue };
        let lists = lists(named.as_ref(), &keys);
        let has_key = asked.is_some_and(|r| r.key.is_some()) || lists.iter().any(|l| !l.is_empty());
        if has_key && body[0].len() + body[1].len() > HASHED_HERE_MAX {
            let (body, form) = (body.clone(), o.body_canon);
            let hash = shard.signers.aside(move || Signable::of(&body).body_hash(form)).await;
            hash.into_iter().for_each(|h| message.has_body_hash(form, h));
        }
        let made = match doing(Work::Sign, || unsigned(&mut message, o, asked, &lists, now_s)) {
            // Without a key that fits mail goes unsigned.
            Ok(None) => continue,
            Ok(Some(u)) => shard.signers.sign(&u.key, &u.data).await.map(|b| u.with(&b)),
            Err(e) => Err(e),
        };
        match made {
            Ok(field) => fields += &field,
            Err(e) if crate::log_limit::allows_line("not signed by DKIM", &path.name) => {
                tracing::error!(shard = shard.number, queue = path.name, error = %e, "not signed by DKIM");
            }
            Err(_) => {}
        }
    }
    match fields.is_empty() {
        true => body,
        false => behind(&fields, &body, message.header_len()),
    }
}

/// What one signature of a message may be made by.
struct Means<'c> {
    /// What the message asks for.
    asked: Option<&'c Request>,
    /// Keys of the list that it names.
    named: Option<Rc<[DomainKey]>>,
}

impl<'c> Means<'c> {
    /// `None` where the message gets no such signature.
    fn of(config: &Config, o: &Options, content: &'c Content) -> Option<Means<'c>> {
        let asked = content.kept.dkim.as_ref().filter(|_| o.follows_message);
        if o.only_if_asked && asked.is_none() {
            return None;
        }
        let named = asked.filter(|r| !r.key_list.is_empty()).map(|r| config.domain_key_list(&r.key_list));
        Some(Means { asked, named })
    }
}

/// Keys in the order that they are looked through: those of the list that a message names, or of its virtual MTA and of all.
fn lists<'a>(named: Option<&'a Rc<[DomainKey]>>, keys: &'a [Vec<DomainKey>; 2]) -> [&'a [DomainKey]; 2] {
    match named {
        Some(named) => [named, &[]],
        None => [&keys[0], &keys[1]],
    }
}

/// Signatures that content would get through a virtual MTA to a recipient, each with its field up to `b=`, or why one cannot be made.
pub fn planned(
    config: &Config,
    rules: &Rc<DomainRules>,
    (vmta, pool): (u32, Option<&str>),
    content: &Content,
    to: &str,
    now_s: i64,
) -> Vec<Result<String, String>> {
    let keys = config.domain_keys(vmta, pool);
    let name = config.snapshot.get().vmtas.get(vmta as usize).map_or("", |v| v.name.as_str());
    let rewriting = config.rewriting(vmta, pool);
    let body = outgoing(content, Exit { rules, vmta: name, rewriting: rewriting.as_deref() }, to, now_s);
    let mut message = Signable::of(&body);
    let mut one = |o: &Options| {
        let Means { asked, named } = Means::of(config, o, content)?;
        unsigned(&mut message, o, asked, &lists(named.as_ref(), &keys), now_s).transpose()
    };
    config.signing(rules).iter().filter_map(|o| Some(one(o)?.map(|u| u.with(&[])))).collect()
}

/// Puts fields in front of a header of so many bytes, which alone is copied where the rest allows it.
fn behind(fields: &str, body: &[Bytes; 2], header: usize) -> [Bytes; 2] {
    let copied = if body[1].is_empty() { header } else { body[0].len() };
    let mut head = Vec::with_capacity(fields.len() + copied);
    head.extend_from_slice(fields.as_bytes());
    head.extend_from_slice(&body[0][..copied]);
    let rest = if body[1].is_empty() { body[0].slice(copied..) } else { body[1].clone() };
    [Bytes::from(head), rest]
}
