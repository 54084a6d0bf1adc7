//! What would become of one message: whether its client may send it, the virtual MTA and the queue that it comes to, what holds
//! for it there, and the line that says so. The workers' own code decides; nothing is sent.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::BytesMut;
use ipc::message::{ArchivedEnvelope, Envelope, MessageId, PRIORITY_DEFAULT, Recipient, SourceType};
use ipc::rules::{ArchivedValue, DomainRules, REROUTES_MAX, SourceRules};
use ipc::snapshot::{ArchivedSnapshot, MappedSnapshot};
use serde::{Deserialize, Serialize};
use worker::accept::session::{Event, ServerSession, Transaction};
use worker::clock;
use worker::config::Config;
use worker::deliver::signing;
use worker::prepare::content::Content;
use worker::prepare::headers;
use worker::prepare::message::{Submitter, prepare};
use worker::prepare::pattern_list::Subject;
use worker::prepare::vmta_name::DEFAULT_VMTA;
use worker::report::dsn::decoded_xtext;
use worker::suppression::{Suppresses, normal_address};

use super::explain::{Explained, Origin, explain, explain_source, written_at};
use super::landing::look_up;
use super::{composite, directives};

/// What is said of each member of the way out, where it limits something.
const LIMITS: &[&str] = &[
    "max-smtp-out",
    "max-msg-rate",
    "max-msg-per-hour",
    "max-data-volume-rate",
    "max-connect-rate",
    "max-msg-per-connection",
    "smtp-out-rampup-interval",
    "max-smtp-msg-rate",
    "max-smtp-data-volume-rate",
    "source-ip-max-smtp-out",
    "source-ip-max-msg-rate",
    "source-ip-max-connect-rate",
    "source-ip-max-data-volume-rate",
    "destination-max-smtp-out",
    "destination-max-msg-rate",
    "mx-connection-limit",
    "ip-connection-limit",
];

/// A message that is asked about.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Sender; empty for none.
    pub from: String,
    /// Recipients.
    pub to: Vec<String>,
    /// Header fields beside From and To, as they stand in a message.
    pub headers: Vec<String>,
    /// The client's address.
    pub client: IpAddr,
    /// The named source of the listener that it comes to; empty for none.
    pub source: String,
    /// The user that the client has authenticated as; empty for none.
    pub user: String,
    /// DNS may be asked which queue a domain's mail hosts roll up to.
    pub lookup: bool,
}

impl Asked {
    /// The caller gives a header field of this name.
    fn has(&self, name: &str) -> bool {
        self.headers.iter().any(|h| h.split(':').next().is_some_and(|n| n.eq_ignore_ascii_case(name)))
    }
}

/// A value, and what says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Directive, or header field.
    pub name: String,
    /// Value.
    pub value: String,
    /// Where it stands.
    pub origin: Origin,
}

/// What would become of it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Trace {
    /// What holds for the client.
    pub source: Vec<Line>,
    /// The server's answers to MAIL, each RCPT, and the message.
    pub replies: Vec<String>,
    /// The virtual MTA or pool that the message chose; `None` where nothing is accepted.
    pub virtual_mta: Option<Line>,
    /// `x-job`; empty for none.
    pub job: String,
    /// Windows that it is delivered within (`x-schedule`), in local time; empty for whenever it can be.
    pub windows: Vec<String>,
    /// Recipients that are accepted.
    pub recipients: Vec<Way>,
}

/// One recipient's way.
#[derive(Debug, Serialize, Deserialize)]
pub struct Way {
    /// Address.
    pub recipient: String,
    /// The recipient that was given, where `alias` puts this one in its place; empty for none.
    pub alias: String,
    /// `DOMAIN/VMTA` of the queue, and what put it there.
    pub queue: Line,
    /// What sent it to another virtual MTA than it chose.
    pub rerouted: Vec<Line>,
    /// 0 to 100.
    pub priority: u8,
    /// Virtual MTAs that it may leave by, in turn.
    pub members: Vec<Member>,
}

/// A virtual MTA that mail may leave by.
#[derive(Debug, Serialize, Deserialize)]
pub struct Member {
    /// Name.
    pub virtual_mta: String,
    /// Of a pool: its share against those of others.
    pub weight: u32,
    /// A directive that is not in force and keeps the mail back; empty for none.
    pub withheld: String,
    /// Addresses to send from, with their names; none for the system's choice.
    pub sources: Vec<String>,
    /// The envelope sender, where `rewrite-list` makes it another; empty where it stays.
    pub sender: String,
    /// Limits.
    pub limits: Vec<Line>,
    /// DKIM signatures: domain, selector and key, or why there is none.
    pub signatures: Vec<Line>,
}

/// The address lists of a configuration.
struct Listed(Rc<Config>);

impl Suppresses for Listed {
    fn list_of(&self, named: &[String], address: &str) -> Option<String> {
        let address = normal_address(address).ok()?;
        let lists = &self.0.address_lists;
        named.iter().map(|n| n.to_lowercase()).find(|n| lists.has(n, &address))
    }
}

/// Follows a message through a configuration.
///
/// # Errors
/// A sentence where what was asked is no message, or names what does not exist.
pub fn trace(snapshot: MappedSnapshot, asked: &Asked) -> Result<Trace, String> {
    let config = Rc::new(Config::of(snapshot)?);
    let snapshot = config.snapshot.get();
    if !asked.user.is_empty() && config.users.written(&asked.user).is_none() {
        return Err(format!("there is no <smtp-user {}>", asked.user));
    }
    let of_user = config.users.source_of(&asked.user);
    // {auth} need not be defined.
    let of_user = if snapshot.sources.iter().any(|s| s.name.as_str() == of_user) { of_user } else { "" };
    let who = format!("{},{},{of_user}", asked.client, asked.source);
    let of_source = explain_source(snapshot, &who, "")?;
    let rules = snapshot.source_rules(Some(asked.client), &[&asked.source.to_lowercase(), of_user]);
    let (mut replies, taken) = conversation(&config, &rules, asked)?;
    let source = of_source.iter().filter(|e| e.origin.line > 0).map(Line::of).collect();
    let (mut virtual_mta, mut job, mut windows, mut recipients) = (None, String::new(), Vec::new(), Vec::new());
    if let Some(transaction) = taken {
        let header = header(asked);
        match prepared(&config, &rules, asked, transaction, &header) {
            Err(refusal) => replies.push(refusal),
            Ok((envelope, content)) => {
                replies.push("250 2.6.0 message received".into());
                virtual_mta = Some(chosen(snapshot, &config, &rules, &of_source, asked, &header, &envelope));
                job.clone_from(&envelope.job_id);
                windows = shown_windows(&content);
                for r in &envelope.recipients {
                    recipients.push(way(&config, asked, &envelope, r, &content)?);
                }
            }
        }
    }
    Ok(Trace { source, replies, virtual_mta, job, windows, recipients })
}

fn shown_windows(content: &Content) -> Vec<String> {
    let envelope = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&content.envelope);
    let windows = envelope.ok().and_then(|e| e.windows()).unwrap_or_default();
    let shown = |s: i64| worker::shown_time(s.saturating_mul(1000));
    windows.all.iter().map(|(start, end)| format!("{} / {}", shown(*start), shown(*end))).collect()
}

impl Line {
    fn of(e: &Explained) -> Line {
        Line { name: e.name.clone(), value: e.value.clone(), origin: e.origin.clone() }
    }

    fn new(name: &str, value: &str, origin: Origin) -> Line {
        Line { name: name.into(), value: value.into(), origin }
    }

    /// What no line of the configuration says.
    fn said(name: &str, value: &str, layer: &str) -> Line {
        Line::new(name, value, nowhere(layer))
    }
}

/// What stands in no line of a file.
fn nowhere(layer: &str) -> Origin {
    Origin { layer: layer.into(), file: String::new(), line: 0 }
}

/// The header of the message, and its end. Fields that the caller gives stand in place of those that are made up.
fn header(asked: &Asked) -> String {
    let mut text = String::new();
    if !asked.has("from") {
        text += &format!("From: <{}>\r\n", if asked.from.is_empty() { "MAILER-DAEMON" } else { &asked.from });
    }
    if !asked.has("to") {
        text += &format!("To: <{}>\r\n", asked.to.join(">, <"));
    }
    asked.headers.iter().for_each(|h| text += &format!("{}\r\n", h.trim_end()));
    text + "\r\n"
}

/// What the server says to MAIL and RCPT, and the transaction if it takes any of it.
fn conversation(
    config: &Rc<Config>,
    rules: &SourceRules,
    asked: &Asked,
) -> Result<(Vec<String>, Option<Transaction>), String> {
    let addresses = || [&asked.from].into_iter().chain(&asked.to);
    if let Some(bad) = addresses().chain(&asked.headers).find(|t| t.contains(['\r', '\n', '\0'])) {
        return Err(format!("{bad:?} holds a line end"));
    }
    let is_field = |h: &&String| h.split_once(':').is_some_and(|(name, _)| !name.is_empty() && !name.contains(' '));
    if let Some(h) = asked.headers.iter().find(|h| !is_field(h)) {
        return Err(format!("expected a header field such as \"X-Virtual-MTA: mta1\", found {h:?}"));
    }
    if !rules.smtp_service {
        return Ok((
            vec![format!("521 5.3.2 {} does not accept mail from you (smtp-service)", config.global.host_name)],
            None,
        ));
    }
    let suppresses: Rc<dyn Suppresses> = Rc::new(Listed(Rc::clone(config)));
    let name = config.global.host_name.clone();
    let (global, users) = (Rc::clone(&config.global), Arc::clone(&config.users));
    let mut session = ServerSession::new(name, Rc::new(rules.clone()), global, suppresses, users, false);
    if !asked.user.is_empty() {
        session.has_shown_certificate_of(&asked.user, Rc::new(rules.clone()));
    }
    let utf8 = if addresses().all(|a| a.is_ascii()) { "" } else { " SMTPUTF8" };
    let mut say = |line: &str| {
        session.out.clear();
        let (_, mut event) = session.feed(format!("{line}\r\n").as_bytes());
        if let Event::CheckSender(_) = event {
            // Nobody is asked.
            event = session.sender_checked(Ok(String::new()));
        }
        (String::from_utf8_lossy(&session.out).trim_end().to_owned(), event)
    };
    say("EHLO client");
    let mut replies = vec![say(&format!("MAIL FROM:<{}>{utf8}", asked.from)).0];
    if !replies[0].starts_with('2') {
        return Ok((replies, None));
    }
    replies.extend(asked.to.iter().map(|to| say(&format!("RCPT TO:<{to}>")).0));
    let data = say("DATA").0;
    if !data.starts_with('3') {
        return Ok((replies, None));
    }
    match say(".").1 {
        Event::Message(transaction) => Ok((replies, Some(transaction))),
        _ => Ok((replies, None)),
    }
}

/// The message as it is stored, or the reply to it.
fn prepared(
    config: &Config,
    rules: &SourceRules,
    asked: &Asked,
    t: Transaction,
    header: &str,
) -> Result<(Envelope, Content), String> {
    let from = Submitter {
        source_type: SourceType::Smtp,
        name: "client".into(),
        user: asked.user.clone(),
        ip: Some(asked.client),
        local: None,
        protocol: if asked.user.is_empty() { "ESMTP" } else { "ESMTPA" },
        vmta: String::new(),
        results: t.results.clone(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(|e| e.to_string())?;
    let (id, content) = (MessageId([0; 16]), BytesMut::from(format!("{header}.\r\n").as_bytes()));
    let made = runtime.block_on(prepare(config, rules, &from, id, clock::now_ms(), t.mail, t.recipients, content));
    let (mut envelope, body) = made.map_err(|r| format!("{} {} {}", r.0, r.1, r.2))?;
    for r in &mut envelope.recipients {
        r.destination = config.queued_under(std::mem::take(&mut r.destination), &envelope.vmta);
    }
    let content = Content::new(ipc::frame::archive(&envelope), body);
    Ok((envelope, content))
}

/// The virtual MTA that the message chose, and what chose it.
fn chosen(
    s: &ArchivedSnapshot,
    config: &Config,
    rules: &SourceRules,
    of_source: &[Explained],
    asked: &Asked,
    header: &str,
    e: &Envelope,
) -> Line {
    const NAME: &str = "virtual-mta";
    if e.vmta.is_empty() {
        return Line::said(NAME, DEFAULT_VMTA, "nothing chose one");
    }
    if asked.has("x-virtual-mta") && rules.process_x_virtual_mta {
        return Line::said(NAME, &e.vmta, "X-Virtual-MTA");
    }
    let fields = headers::parse(header.as_bytes()).0;
    let mut decider =
        config.pattern_lists.of_message(&rules.pattern_list, Subject { sender: &e.sender, fields: &fields });
    // As they were given: aliases come behind the choice.
    for to in asked.to.iter().chain(e.recipients.iter().map(|r| &r.address)) {
        if !decider.decide(to).vmta.is_empty()
            && let Some((file, line)) = decider.decided_at
        {
            let file = s.files.get(usize::from(file)).map_or("", |f| f.as_str()).to_owned();
            let layer = format!("<pattern-list {}>", rules.pattern_list);
            return Line::new(NAME, &e.vmta, Origin { layer, file, line });
        }
    }
    let default = of_source.iter().find(|l| l.name == "default-virtual-mta");
    Line::new(NAME, &e.vmta, default.map_or_else(|| nowhere("the source"), |l| l.origin.clone()))
}

fn way(config: &Config, asked: &Asked, e: &Envelope, r: &Recipient, content: &Content) -> Result<Way, String> {
    let domain = ipc::message::destination_of(&r.address).unwrap_or_else(|_| r.destination.clone());
    let snapshot = config.snapshot.get();
    let via = named(&e.vmta);
    let rolled_up = if asked.lookup { Some(look_up(config, &domain, via)?) } else { None };
    let found = explain(snapshot, &domain, via, "queue", rolled_up.as_ref())?;
    let mut queue = found.first().map_or_else(|| Line::said("queue", &r.destination, ""), Line::of);
    let destination = queue.value.clone();
    let (mut via, mut rerouted, mut seen) = (e.vmta.clone(), Vec::new(), Vec::new());
    let line = |via: &str, name: &str| -> Result<Option<Line>, String> {
        let all = explain(snapshot, &destination, named(via), name, None)?;
        Ok(all.first().map(Line::of))
    };
    let rules = |via: &str| config.exit(&destination, via).rules;
    let given = rules(&via).virtual_mta_pool.clone();
    if via.is_empty() && !given.is_empty() {
        rerouted.extend(line("", "virtual-mta-pool")?);
        via = given;
    }
    seen.push(via.to_lowercase());
    loop {
        let way = config.exit(&destination, &via);
        let Some(next) = way.rules.rerouted_to(&via).filter(|_| !way.of_pool) else { break };
        rerouted.extend(line(&via, "reroute-to-virtual-mta")?);
        via = next.to_owned();
        // In a circle mail stays where it closes.
        let name = via.to_lowercase();
        if seen.contains(&name) || seen.len() >= REROUTES_MAX {
            break;
        }
        seen.push(name);
    }
    let out = config.exit(&destination, &via);
    let pool = out.of_pool.then_some(via.as_str());
    let members = out.members.iter().map(|m| member(config, &destination, &m.name, m.vmta, m.weight, pool, content));
    let members = members.collect::<Result<Vec<_>, String>>()?;
    let via = match (out.of_pool, members.first()) {
        (false, Some(only)) => only.virtual_mta.clone(),
        _ => via,
    };
    queue.value = format!("{destination}/{via}");
    let priority = ipc::message::priority(r.priority_given);
    // The session was given no ORCPT.
    let alias = r.orcpt.split_once(';').map_or_else(String::new, |(_, given)| decoded_xtext(given));
    Ok(Way { recipient: r.address.clone(), alias, queue, rerouted, priority, members })
}

/// As explain names what chose nothing.
fn named(via: &str) -> &str {
    if via == DEFAULT_VMTA { "" } else { via }
}

#[allow(clippy::too_many_arguments)] // each is a different thing, used once
fn member(
    config: &Config,
    destination: &str,
    name: &str,
    vmta: u32,
    weight: u32,
    pool: Option<&str>,
    content: &Content,
) -> Result<Member, String> {
    let snapshot = config.snapshot.get();
    let rules = config.rules(destination, vmta);
    let Some(of_vmta) = snapshot.vmtas.get(vmta as usize) else {
        let withheld = format!("{name}, which does not exist");
        let (sources, sender, limits, signatures) = Default::default();
        return Ok(Member { virtual_mta: name.into(), weight, withheld, sources, sender, limits, signatures });
    };
    let all = explain(snapshot, destination, named(name), "", None)?;
    let limits =
        all.iter().filter(|e| LIMITS.contains(&e.name.as_str()) && limits_something(e)).map(Line::of).collect();
    let sources = of_vmta.source_hosts.iter().map(|h| {
        let name = if h.name.is_empty() { of_vmta.host_name.as_str() } else { h.name.as_str() };
        format!("{} {name}", h.ip.as_str())
    });
    let withheld = rules.withheld().map_or_else(|| of_vmta.withheld.as_str().to_owned(), str::to_owned);
    Ok(Member {
        virtual_mta: name.into(),
        weight,
        withheld,
        sources: sources.collect(),
        sender: rewritten(config, vmta, pool, content),
        limits,
        signatures: signatures(config, &rules, vmta, pool, &all, content),
    })
}

/// The sender as a `rewrite-list` has it; empty where it stays.
fn rewritten(config: &Config, vmta: u32, pool: Option<&str>, content: &Content) -> String {
    let Some(list) = config.rewriting(vmta, pool) else { return String::new() };
    let envelope = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&content.envelope);
    let sender = envelope.ok().and_then(|e| list.sender(&e.sender));
    sender.map_or_else(String::new, |s| format!("<{s}> (rewrite-list {})", list.name))
}

fn limits_something(e: &Explained) -> bool {
    match e.value.as_str() {
        "unlimited" | "-" | "\"\"" | "0s" | "" => false,
        "0" => e.origin.line > 0,
        _ => true,
    }
}

fn signatures(
    config: &Config,
    rules: &Rc<DomainRules>,
    vmta: u32,
    pool: Option<&str>,
    all: &[Explained],
    content: &Content,
) -> Vec<Line> {
    const NAME: &str = "DKIM";
    let now_s = clock::wall_ms(clock::now_ms()) / 1000;
    let envelope = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&content.envelope);
    let to = envelope.ok().and_then(|e| e.recipients.first()).map_or("", |r| r.address.as_str());
    let planned = signing::planned(config, rules, (vmta, pool), content, to, now_s);
    let mut lines: Vec<Line> = planned
        .into_iter()
        .map(|made| match made {
            Err(why) => Line::said(NAME, &format!("none: {why}"), "the message"),
            Ok(field) => {
                let tag = |name: &str| {
                    field.split(';').find_map(|t| t.trim().strip_prefix(name)).unwrap_or_default().to_owned()
                };
                let (domain, selector) = (tag("d="), tag("s="));
                let origin = key_line(config.snapshot.get(), vmta, pool, &domain, &selector);
                Line::new(NAME, &format!("d={domain} s={selector}"), origin)
            }
        })
        .collect();
    if lines.is_empty() {
        let switch = all.iter().find(|e| e.name == "dkim-sign");
        let is_off = switch.is_some_and(|e| e.value == "no");
        let off = switch.filter(|_| is_off).map(|e| e.origin.clone());
        lines.push(match off {
            Some(origin) => Line::new(NAME, "none: dkim-sign no", origin),
            None => Line::said(NAME, "none", "no domain-key fits"),
        });
    }
    lines
}

/// The `domain-key` with this selector that fits a domain: of the virtual MTA, its pool, or the top level.
fn key_line(s: &ArchivedSnapshot, vmta: u32, pool: Option<&str>, domain: &str, selector: &str) -> Origin {
    let pool = pool.and_then(|p| s.pool_by_name.get(p.to_lowercase().as_str())).map(|i| i.to_native());
    let pool = pool.or_else(|| s.pool_of(vmta)).and_then(|i| s.pools.get(i as usize));
    let top = s.written.iter().filter(|w| w.block.is_empty());
    let levels = [
        s.vmtas.get(vmta as usize).map(|v| (format!("virtual-mta {}", v.name.as_str()), &v.settings)),
        pool.map(|p| (format!("pool {}", p.name.as_str()), &p.settings)),
    ];
    let levels = levels.into_iter().flatten().chain(top.map(|w| ("global".to_owned(), &w.settings)));
    for (layer, settings) in levels {
        for x in settings.iter() {
            let ArchivedValue::Text(text) = &x.value else { continue };
            if directives::all().get(usize::from(x.key.to_native())).is_none_or(|d| d.name != "domain-key") {
                continue;
            }
            let Ok((of, for_domain, _)) = composite::domain_key(text) else { continue };
            let fits = for_domain == "*" || for_domain.contains('$') || for_domain.eq_ignore_ascii_case(domain);
            if of == selector && fits {
                return Origin { layer, ..written_at(s, x) };
            }
        }
    }
    nowhere("a key that the message names")
}

/// As people read it.
pub fn text(t: &Trace) -> String {
    let mut lines: Vec<String> = Vec::new();
    let shown = |depth: usize, l: &Line| format!("{:depth$}{} {}  ({})", "", l.name, l.value, said(&l.origin));
    lines.push("client".into());
    lines.extend(t.source.iter().map(|l| shown(2, l)));
    if t.source.is_empty() {
        lines.push("  no <source> says anything of it".into());
    }
    lines.push("replies".into());
    lines.extend(t.replies.iter().flat_map(|r| r.lines()).map(|r| format!("  {}", r.trim_end())));
    match &t.virtual_mta {
        Some(l) => lines.push(shown(0, l)),
        None => lines.push("nothing is accepted".into()),
    }
    if !t.job.is_empty() {
        lines.push(format!("job {}", t.job));
    }
    lines.extend(t.windows.iter().map(|w| format!("delivered within {w}  (X-Schedule)")));
    for w in &t.recipients {
        lines.push(match w.alias.as_str() {
            "" => w.recipient.clone(),
            given => format!("{} (alias {given})", w.recipient),
        });
        lines.extend([&w.queue].into_iter().chain(&w.rerouted).map(|l| shown(2, l)));
        if w.priority != PRIORITY_DEFAULT {
            lines.push(format!("  priority {}", w.priority));
        }
        for m in &w.members {
            let weight = if w.members.len() > 1 { format!(", weight {}", m.weight) } else { String::new() };
            lines.push(format!("  leaves by {}{weight}", m.virtual_mta));
            if !m.withheld.is_empty() {
                lines.push(format!("    but waits: {} is not in force yet", m.withheld));
            }
            match m.sources.is_empty() {
                true => lines.push("    from an address that the system chooses".into()),
                false => lines.push(format!("    from {}", m.sources.join(", "))),
            }
            if !m.sender.is_empty() {
                lines.push(format!("    sender {}", m.sender));
            }
            lines.extend(m.limits.iter().chain(&m.signatures).map(|l| shown(4, l)));
        }
    }
    lines.join("\n") + "\n"
}

fn said(o: &Origin) -> String {
    match (o.line, o.layer.as_str()) {
        (line, "") if line > 0 => format!("{}:{line}", o.file),
        _ => o.to_string(),
    }
}
