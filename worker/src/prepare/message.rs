//! From an SMTP transaction to an envelope and content ready to be stored.

use std::net::IpAddr;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use ipc::message::{BodyType, Envelope, MessageId, Recipient, Ret, SourceType, notify, priority, source_name};
use ipc::rules::SourceRules;
use ipc::snapshot::{ArchivedSnapshot, Global};
use ipc::text;
use ipc::windows::Windows;
use tokio::task::coop::consume_budget;

use super::headers::{self, TooMuch};
use super::pattern_list::Subject;
use super::vmta_name::{DEFAULT_VMTA, canonical_name};
use super::{aliases, feedback_headers, kept, recipients, schedule_field};
use crate::config::Config;
use crate::holds::{Pieces, Work, doing};
use crate::smtp::command::{Mail, Rcpt, Refusal};

/// Where a message comes from.
#[derive(Debug, Clone)]
pub struct Submitter {
    /// How.
    pub source_type: SourceType,
    /// EHLO name.
    pub name: String,
    /// The user that it authenticated as; empty for none.
    pub user: String,
    /// Client's address.
    pub ip: Option<IpAddr>,
    /// Our address.
    pub local: Option<IpAddr>,
    /// `ESMTP`, `ESMTPS`, `UTF8SMTP` …; RFC 3848, RFC 6531.
    pub protocol: &'static str,
    /// Virtual MTA chosen by other means than a header; empty for none.
    pub vmta: String,
    /// What checks of it say, as Authentication-Results has it behind the name of the server; empty for none.
    pub results: String,
}

/// Builds envelope and content. What takes long of a large message, or of one with many recipients, is done in pieces.
///
/// # Errors
/// The reply when the message breaks a rule of its source.
#[allow(clippy::too_many_arguments)] // each is a different thing, used once
pub async fn prepare(
    config: &Config,
    rules: &SourceRules,
    from: &Submitter,
    id: MessageId,
    now_ms: i64,
    mail: Mail,
    recipients: Vec<(Rcpt, String)>,
    mut content: BytesMut,
) -> Result<(Envelope, [Bytes; 2]), Refusal> {
    let mut pieces = Pieces::default();
    // A last line that does not end ends here, not with whoever sends it on: the signature is over what arrives.
    if !content.is_empty() && !content.ends_with(b"\r\n") {
        content.extend_from_slice(b"\r\n");
    }
    let content = content.freeze();
    // What the client declared may be a habit; receivers without 8BITMIME take what is ASCII.
    let body_type = if is_ascii(&content).await { BodyType::SevenBit } else { BodyType::EightBit };
    let (mut e, fields, header) = doing(Work::Prepare, || -> Result<_, Refusal> {
        let verp = (mail.verp || rules.verp_default) && !mail.sender.is_empty();
        let mut e = envelope(rules, from, id, now_ms, mail, recipients, body_type);
        let (fields, end) = headers::parse_bounded(&content).map_err(too_much)?;
        let own = (!from.results.is_empty()).then_some(config.global.host_name.as_str());
        let header = read_header(&mut e, config.snapshot.get(), rules, own, &fields, &content[..end])?;
        let header = Header { verp, ..header };
        if !rules.jobid_prefix.is_empty() && !e.job_id.is_empty() {
            e.job_id = prefixed(&rules.jobid_prefix, &e.job_id, &from.user);
        }
        Ok((e, fields, header))
    })?;
    pieces.pause().await;
    by_pattern_list(&mut e, config, rules, &fields).await;
    e.recipients = doing(Work::Prepare, || aliases::expand(config.snapshot.get(), e.recipients))?;
    pieces.pause().await;
    let prepared = doing(Work::Prepare, || finish(e, config, rules, from, (&header, &fields), &content));
    pieces.pause().await;
    Ok(prepared)
}

fn envelope(
    rules: &SourceRules,
    from: &Submitter,
    id: MessageId,
    now_ms: i64,
    mail: Mail,
    mut given: Vec<(Rcpt, String)>,
    body_type: BodyType,
) -> Envelope {
    if !rules.bcc.is_empty()
        && let Ok(destination) = ipc::message::destination_of(&rules.bcc)
    {
        // What becomes of the copy is not the sender's business.
        given.push((Rcpt { address: rules.bcc.clone(), notify: notify::NEVER, orcpt: String::new() }, destination));
    }
    Envelope {
        id,
        received_unix_ms: now_ms,
        sender: mail.sender,
        vmta: from.vmta.clone(),
        job_id: String::new(),
        envid: mail.envid,
        ret: match (mail.ret, rules.dsn_return_default) {
            (Ret::Unset, 0) => Ret::Headers,
            (Ret::Unset, 1) => Ret::Full,
            (given, _) => given,
        },
        body_type,
        smtputf8: mail.smtputf8,
        suppress_dsn: rules.suppress_local_dsn,
        source_type: from.source_type,
        kept: 0,
        source_name: source_name(&from.name, &from.user),
        source_ip: from.ip.map(|i| i.to_string()).unwrap_or_default(),
        local_ip: from.local.map(|i| i.to_string()).unwrap_or_default(),
        handoff: None,
        asked: None,
        moved: None,
        recipients: recipients::each_once(recipients::of_rcpt(given)),
    }
}

/// Whether all bytes are ASCII, looked at by the megabyte.
async fn is_ascii(content: &[u8]) -> bool {
    for piece in content.chunks(1 << 20) {
        if !piece.is_ascii() {
            return false;
        }
        consume_budget().await;
    }
    true
}

fn too_much(t: TooMuch) -> Refusal {
    let limit = match t {
        TooMuch::Bytes => format!("a header of more than {} bytes", headers::HEADER_BYTES_MAX),
        TooMuch::Fields => format!("more than {} header fields", headers::HEADER_FIELDS_MAX),
    };
    Refusal(552, "5.3.4", format!("Message has {limit}"))
}

/// What a header section says to us, and what is to be done about it.
struct Header<'a> {
    /// Where it ends.
    end: usize,
    /// Fields that do not go on.
    removed: Vec<Range<usize>>,
    has_date: bool,
    has_id: bool,
    dkim_options: Option<&'a [u8]>,
    dkim_key: Option<&'a [u8]>,
    /// When it may be delivered (`x-schedule`); `None` for whenever it can be.
    windows: Option<Windows>,
    /// The sender is another to each recipient.
    verp: bool,
}

/// Reads a header section, and puts into the envelope what its fields choose.
fn read_header<'a>(
    e: &mut Envelope,
    snapshot: &ArchivedSnapshot,
    rules: &SourceRules,
    checked_by: Option<&str>,
    fields: &[headers::Field<'a>],
    section: &[u8],
) -> Result<Header<'a>, Refusal> {
    if memchr::memchr(0, section).is_some() {
        let text = "Message has a NUL in its header (RFC 5322 section 2.2)";
        return Err(Refusal(550, "5.6.0", text.into()));
    }
    let mut removed = Vec::new();
    let (mut hops, mut has_date, mut has_id) = (0u64, false, false);
    let (mut dkim_options, mut dkim_key, mut other_job, mut windows) = (None, None, None, None);
    for f in fields {
        if other_job.is_none() && !rules.jobid_header.is_empty() && f.name.eq_ignore_ascii_case(&rules.jobid_header) {
            other_job = Some(f.value);
        }
        match f.name.to_ascii_lowercase().as_str() {
            "received" => {
                hops += 1;
                if rules.remove_received_headers {
                    removed.push(f.range.clone());
                }
            }
            "date" => {
                has_date = true;
                if rules.add_date_header == 2 {
                    removed.push(f.range.clone());
                }
            }
            // Results of our own are written by nobody else (RFC 8601 section 5).
            "authentication-results" if checked_by.is_some_and(|host| is_result_of(host, f.value)) => {
                removed.push(f.range.clone());
            }
            "message-id" => has_id = true,
            "x-virtual-mta" if rules.process_x_virtual_mta => {
                e.vmta = chosen_vmta(snapshot, rules, f.value)?;
                if !rules.retain_x_virtual_mta {
                    removed.push(f.range.clone());
                }
            }
            "x-job" if rules.process_x_job => {
                let job = headers::unfolded(f.value);
                if job.len() > text::JOB_NAME_MAX || !job.bytes().all(|b| b.is_ascii_graphic()) {
                    return Err(Refusal(
                        550,
                        "5.6.0",
                        "x-job is not a printable word of at most 200 characters".into(),
                    ));
                }
                e.job_id = job;
                if !rules.retain_x_job {
                    removed.push(f.range.clone());
                }
            }
            "x-dkim-options" if rules.process_x_dkim_options => {
                dkim_options = dkim_options.or(Some(f.value));
                if !rules.retain_x_dkim_options {
                    removed.push(f.range.clone());
                }
            }
            "x-schedule" => {
                if rules.process_x_schedule {
                    if windows.is_some() {
                        return Err(Refusal(550, "5.6.0", "Message has more than one x-schedule".into()));
                    }
                    let now_ms = e.received_unix_ms;
                    let read = schedule_field::windows(f.value, now_ms, crate::clock::wall_ms(now_ms));
                    windows = Some(read.map_err(|why| Refusal(550, "5.6.0", why))?);
                }
                if !rules.retain_x_schedule {
                    removed.push(f.range.clone());
                }
            }
            // A private key leaves only where that is asked for, whether it is used or not.
            "x-dkim-key" => {
                dkim_key = dkim_key.or(Some(f.value)).filter(|_| rules.process_x_dkim_key);
                if !rules.retain_x_dkim_key {
                    removed.push(f.range.clone());
                }
            }
            "x-envid" if rules.process_x_envid => {
                let envid = headers::unfolded(f.value);
                e.envid = envid.chars().filter(|c| c.is_ascii_graphic()).take(100).collect();
                removed.push(f.range.clone());
            }
            _ => {}
        }
    }
    if let Some(value) = other_job.filter(|_| e.job_id.is_empty()) {
        e.job_id = as_job(&headers::unfolded(value));
    }
    if hops > rules.max_message_hops && rules.max_message_hops != 0 {
        let text =
            format!("Message has {hops} Received headers, the limit is {} (max-message-hops)", rules.max_message_hops);
        return Err(Refusal(554, "5.4.6", text));
    }
    Ok(Header { end: section.len(), removed, has_date, has_id, dkim_options, dkim_key, windows, verp: false })
}

/// Orders the recipients, and puts together what is stored.
fn finish(
    mut e: Envelope,
    config: &Config,
    rules: &SourceRules,
    from: &Submitter,
    (header, fields): (&Header<'_>, &[headers::Field<'_>]),
    content: &Bytes,
) -> (Envelope, [Bytes; 2]) {
    let global = &*config.global;
    let rewriting = config.rewrite_list(&rules.rewrite_list);
    if let Some(windows) = &header.windows {
        e.set_windows(windows);
    }
    if let Some(sender) = rewriting.as_ref().and_then(|list| list.sender(&e.sender)) {
        e.sender = sender;
    }
    // Recipients of one queue and priority must be neighbours; the order among equals is kept.
    let order = |r: &Recipient| std::cmp::Reverse(priority(r.priority_given));
    e.recipients.sort_by(|a, b| a.destination.cmp(&b.destination).then(order(a).cmp(&order(b))));
    if e.vmta.is_empty() {
        e.vmta = default_vmta(config.snapshot.get(), rules, from);
    }
    // A key signs by the options that name its selector.
    let dkim_key = header.dkim_key.filter(|_| header.dkim_options.is_some());
    let dkim_options = header.dkim_options;
    let new_id = (rules.add_message_id_header && !header.has_id)
        .then(|| format!("{}.{}@{}", e.id, global.host_id, global.host_name));
    let feedback = feedback_headers::fields(rules, &e, fields, new_id.as_deref());
    let adds_date = rules.add_date_header == 2 || (rules.add_date_header == 1 && !header.has_date);
    let dated_at_delivery = adds_date && rules.date_header_time == 1;
    let (mut head, marks) = kept::Fields {
        dkim_options,
        dkim_key,
        removed: &rules.remove_header,
        adds_vmta: rules.add_x_virtual_mta_header,
        adds_date: dated_at_delivery,
        verp: header.verp,
        of_each: &feedback.of_each,
    }
    .keep();
    e.kept = marks;
    let end = header.end;
    head.reserve(end + 512);
    if rules.add_received_header {
        received(&mut head, &e, global, rules, from);
    }
    if !from.results.is_empty() {
        let line = format!("Authentication-Results: {};\r\n\t{}\r\n", global.host_name, from.results);
        head.extend_from_slice(line.as_bytes());
    }
    head.extend_from_slice(global.included_headers.as_bytes());
    head.extend_from_slice(included_headers(config.snapshot.get(), &e.vmta).as_bytes());
    head.extend_from_slice(feedback.of_all.as_bytes());
    let removed = header.removed.iter().map(|place| (place.clone(), Vec::new()));
    let rewritten =
        rewriting.iter().flat_map(|list| list.changed(fields)).map(|(f, value)| (f.place_of_value(), value));
    let mut edits: Vec<_> = removed.chain(rewritten).collect();
    edits.sort_unstable_by_key(|(place, _)| place.start);
    headers::edit(&content[..end], &edits, &mut head);
    if adds_date && !dated_at_delivery {
        head.extend_from_slice(
            format!("Date: {}\r\n", crate::rfc5322_date(crate::clock::wall_ms(e.received_unix_ms) / 1000)).as_bytes(),
        );
    }
    if let Some(id) = new_id {
        head.extend_from_slice(format!("Message-ID: <{id}>\r\n").as_bytes());
    }
    // Content without an empty line behind its header gets one, or the body would become
    // part of what was added, and a header alone what receivers complete in ways of their own.
    if !content[end..].starts_with(b"\r\n") {
        head.extend_from_slice(b"\r\n");
    }
    (e, [Bytes::from(head), content.slice(end..)])
}

/// Whether an Authentication-Results field names a server as the one that checked.
fn is_result_of(host: &str, value: &[u8]) -> bool {
    let text = headers::unfolded(value);
    let (mut depth, mut is_quoted, mut id) = (0usize, false, String::new());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' if depth > 0 || is_quoted => {
                let next = chars.next();
                id.extend(next.filter(|_| depth == 0));
            }
            '"' if depth == 0 => is_quoted = !is_quoted,
            c if is_quoted => id.push(c),
            // Comments may stand before it, and comments in these.
            '(' => depth += 1,
            ')' if depth > 0 => depth -= 1,
            _ if depth > 0 => {}
            c if c.is_whitespace() && id.is_empty() => {}
            c if c.is_whitespace() || ";/".contains(c) => break,
            c => id.push(c),
        }
    }
    id.trim_end_matches('.').eq_ignore_ascii_case(host)
}

/// `include-headers-from` of a virtual MTA or pool.
fn included_headers<'s>(snapshot: &'s ArchivedSnapshot, via: &str) -> &'s str {
    let key = if via.is_empty() { DEFAULT_VMTA.to_owned() } else { via.to_lowercase() };
    let index = |i: &rkyv::rend::u32_le| i.to_native() as usize;
    let of_vmta = snapshot.vmta_by_name.get(key.as_str()).and_then(|i| snapshot.vmtas.get(index(i)));
    let of_pool = || snapshot.pool_by_name.get(key.as_str()).and_then(|i| snapshot.pools.get(index(i)));
    match of_vmta {
        Some(v) => v.included_headers.as_str(),
        None => of_pool().map_or("", |p| p.included_headers.as_str()),
    }
}

/// Text as the name of a job: what such a name cannot have becomes `_`.
fn as_job(text: &str) -> String {
    let word = |c: char| if c.is_ascii_graphic() { c } else { '_' };
    text.chars().map(word).take(text::JOB_NAME_MAX).collect()
}

/// The name of a job behind `jobid-prefix`: `{auth}` is the user that sends it.
fn prefixed(prefix: &str, job: &str, user: &str) -> String {
    let prefix = if prefix.eq_ignore_ascii_case("{auth}") { user } else { prefix };
    as_job(&format!("{prefix}{job}"))
}

fn chosen_vmta(snapshot: &ArchivedSnapshot, rules: &SourceRules, value: &[u8]) -> Result<String, Refusal> {
    // Of names that are unknown there may be any number, in every listing.
    let name = &headers::shown(value, text::VMTA_NAME_MAX);
    if name.is_empty() && rules.allow_empty_x_virtual_mta {
        return Ok(DEFAULT_VMTA.to_owned());
    }
    if let Some(canonical) = canonical_name(snapshot, name) {
        return Ok(canonical.to_owned());
    }
    if !rules.reject_invalid_virtual_mta {
        return Ok(name.to_owned());
    }
    Err(Refusal(
        550,
        "5.3.5",
        format!(
            "x-virtual-mta names {name:?}, which is neither a virtual MTA nor a pool here (reject-invalid-virtual-mta)"
        ),
    ))
}

/// In place of a virtual MTA's name: the one that owns the local address that a client connected to.
pub const BY_SOURCE_IP: &str = "by-smtp-source-ip";

fn default_vmta(snapshot: &ArchivedSnapshot, rules: &SourceRules, from: &Submitter) -> String {
    if rules.default_virtual_mta != BY_SOURCE_IP {
        let name = &rules.default_virtual_mta;
        return canonical_name(snapshot, name).unwrap_or(name).to_owned();
    }
    let local = from.local.map(|i| i.to_string()).unwrap_or_default();
    let of_ip = snapshot.vmtas.iter().skip(1).find(|v| v.source_hosts.iter().any(|h| h.ip == local));
    of_ip.map(|v| v.name.as_str().to_owned()).unwrap_or_default()
}

/// What the source's `pattern-list` says: a virtual MTA where no header names one, by the first
/// recipient that a rule has one for, and priorities.
async fn by_pattern_list(e: &mut Envelope, config: &Config, rules: &SourceRules, fields: &[headers::Field<'_>]) {
    let (lists, name) = (&config.pattern_lists, rules.pattern_list.as_str());
    if name.is_empty() {
        return;
    }
    let each = lists.looks_at_recipients(name);
    let mut decider = lists.of_message(name, Subject { sender: &e.sender, fields });
    let mut pieces = Pieces::default();
    let mut vmta = String::new();
    let mut last = None;
    for r in &mut e.recipients {
        let choice = match last.take().filter(|_| !each) {
            Some(c) => c,
            None => {
                pieces.pause().await;
                doing(Work::Prepare, || decider.decide(&r.address))
            }
        };
        r.priority_given = choice.priority.map_or(0, |p| p + 1);
        if vmta.is_empty() {
            vmta.clone_from(&choice.vmta);
        }
        last = Some(choice);
    }
    if e.vmta.is_empty() && !vmta.is_empty() {
        e.vmta = canonical_name(config.snapshot.get(), &vmta).unwrap_or(&vmta).to_owned();
    }
}

/// The trace header (RFC 5321 §4.4).
fn received(out: &mut Vec<u8>, e: &Envelope, global: &Global, rules: &SourceRules, from: &Submitter) {
    use std::io::Write;
    let _ = match (from.ip, rules.hide_message_source) {
        (Some(ip), false) => {
            let tag = if ip.is_ipv6() { "IPv6:" } else { "" };
            write!(
                out,
                "Received: from {} ([{tag}{ip}])\r\n\tby {} (Sluice) with {} id {}",
                from.name, global.host_name, from.protocol, e.id
            )
        }
        _ => write!(out, "Received: by {} (Sluice) with {} id {}", global.host_name, from.protocol, e.id),
    };
    if let ([only], false) = (&e.recipients[..], rules.hide_message_source) {
        let _ = write!(out, "\r\n\tfor <{}>", only.address);
    }
    let _ = write!(out, "; {}\r\n", crate::rfc5322_date(crate::clock::wall_ms(e.received_unix_ms) / 1000));
}
