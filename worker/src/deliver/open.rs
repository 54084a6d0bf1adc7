//! From a destination to a session: hosts, connection, greeting, EHLO, TLS.

use std::net::IpAddr;
use std::rc::Rc;

use ipc::layers::NO_VMTA;

use super::bounce::{bounce_queues, bounce_those};
use super::conclusion::account_for_queue;
use super::path::{ServedPath, Waits};
use super::reply_effects::apply_reply_rules;
use super::security::Security;
use super::session::{ClientSession, server_name};
use super::session_fault::SessionFault;
use super::shared_limits::LimitPlaces;
use super::slow::{GRANTED, all_of, group_of};
use crate::classify::health;
use crate::classify::outcome::{Failure, Outcome, Verdict};
use crate::classify::reply_patterns::Route;
use crate::clock;
use crate::config::Config;
use crate::connect::mx::{Family, Search};
use crate::connect::protection::Parameters;
use crate::engine::connections::Blocked;
use crate::log_limit;
use crate::route::rollup;
use crate::shard::Shard;
use crate::tasks::may_panic;

/// Hosts of a domain that rolled up by which others' connections may carry its mail.
const HOSTS_SHARED: usize = 8;
/// What a Cisco PIX leaves of a greeting.
const PIX_GREETING: &str = "**********";
/// Hosts that a rule says to leave are left out for so long, milliseconds.
const SKIP_HOST_MS: i64 = 300_000;

/// Finds a host that takes the session. When none does the whole queue waits or bounces.
pub(super) async fn open(shard: &Rc<Shard>, path: &ServedPath, held: &mut LimitPlaces) -> Option<ClientSession> {
    may_panic("open");
    let config = shard.config();
    let missing = shard.scheduler().paths.get(path.id).filter(|p| p.vmta == NO_VMTA).map(|p| p.orphaned);
    if let Some(orphaned) = missing {
        let text = format!("virtual MTA {} does not exist", path.vmta_name);
        if orphaned {
            let text = format!("{text} any more; its mail waits until it is back, or for invalid-virtual-mta-fallback");
            queue_failed(shard, path, Failure::own("4.3.5", text));
        } else {
            let failure = Failure::own("5.3.5", text);
            path.waits.set(Waits::ForOutcomes);
            bounce_queues(shard, path, &failure).await;
            rest_for_others(shard, path, failure);
        }
        return None;
    }
    if let Some(directive) = withheld(&config, path, shard) {
        keep_back(shard, path, &directive);
        return None;
    }
    let resolver = Rc::clone(&shard.resolver.borrow());
    let domain = path.origin.clone().unwrap_or_else(|| Rc::clone(&path.destination));
    let protection = Rc::clone(&shard.protection.borrow());
    let snapshot = config.snapshot.get();
    let known = &shard.address_health;
    let has_failed = |a| known.has_failed(a, path.source);
    let family = Family::of(path.source, &path.rules);
    let search = Search { family, own: &config.own_server, has_failed: &has_failed };
    // The policy is asked for meanwhile: DNS that is slow for one costs no more than for both.
    let (hosts, sts) = tokio::join!(
        resolver.hosts(&domain, &path.rules, &search),
        protection.policy_of(snapshot, &path.rules, &domain, &resolver)
    );
    let hosts = match hosts {
        Ok(h) => rollup::of_queue(&config, &path.destination, h),
        Err(fault) if fault.is_lasting() => {
            let failure = Failure::own(fault.status(), fault.to_string());
            path.waits.set(Waits::ForOutcomes);
            bounce_those(shard, path, &failure, |q| q.origin() == path.origin.as_ref()).await;
            return None;
        }
        Err(fault) => {
            failed(shard, path, Failure { is_of_dns: true, ..Failure::own(fault.status(), fault.to_string()) });
            return None;
        }
    };
    path.group.set(group_of(&hosts));
    if path.origin.is_none()
        && let Some(queue) = rollup::decide(&config, &path.rules, &domain, &resolver).await
    {
        rollup::join(shard, path.id, &domain, &queue);
        return None;
    }
    let no_mx = hosts.iter().all(|h| h.implicit);
    let skipped = shard.decide(|e, now| e.hosts_found(path.id, path.origin.as_ref(), no_mx, now))?;
    let is_retry = shard.scheduler().paths.get(path.id)?.retry_step > 0;
    if path.origin.is_some() {
        let mut known = Vec::new();
        for h in hosts.iter().take(HOSTS_SHARED) {
            if let Ok(s) = protection.of_host(snapshot, &path.rules, &domain, sts.as_deref(), h).await {
                known.push((h.name.clone(), s.required.then(|| Rc::new(s.parameters))));
            }
        }
        if !shard.decide(|e, now| e.note_hosts(path.id, path.queue, Rc::from(known), now)) {
            return None;
        }
    }
    let mut last = None;
    let mut attempts = 0;
    let general = held.general();
    let (mut full, mut crowded) = (None, false);
    let source = path.source.map(|ip| ip.to_string()).unwrap_or_default();
    let fits = |a: &std::net::SocketAddr| path.source.is_none_or(|s| s.is_ipv4() == a.is_ipv4());
    let usable = hosts.iter().enumerate().filter(|(_, h)| !skipped.contains(&h.name));
    let addresses = usable.flat_map(|(n, h)| h.addresses.iter().filter(|a| fits(a)).map(move |a| (n, *a)));
    let addresses = known.in_turn(addresses.collect(), path.source, clock::now_ms(), is_retry);
    // What holds for connections to a host, once it is looked at; nothing for one that is left out.
    let mut securities: Vec<Option<Option<Security>>> = vec![None; hosts.len()];
    for (n, address) in addresses {
        let host = &hosts[n];
        if securities[n].is_none() {
            let found = protection.of_host(snapshot, &path.rules, &domain, sts.as_deref(), host).await;
            if let Err(why) = &found {
                last = Some(Failure { host: host.name.clone(), ..Failure::own("4.7.5", why.clone()) });
            }
            securities[n] = Some(found.ok());
        }
        let Some(Some(security)) = &securities[n] else { continue };
        attempts += 1;
        if attempts > path.rules.mx_connection_attempts.max(1) {
            break;
        }
        path.waits.set(Waits::At(address));
        if !may_wait_at(shard, path, address.ip()) {
            crowded = true;
            continue;
        }
        if let Err(f) = held.take_host(&config, &host.name, address, &source, general) {
            full = Some(f);
            continue;
        }
        let connecting = clock::now_ms();
        let (failure, route) = match greet(shard, path, &host.name, address, security).await {
            Ok(mut s) => {
                s.connect_ms = Some((clock::now_ms() - connecting).max(0) as u64);
                s.has_others = hosts.iter().any(|h| h.name != host.name && !skipped.contains(&h.name));
                known.connected(address, path.source);
                match apply_reply_rules(shard, path) {
                    None | Some((Route::BounceRcpt, _)) => return Some(s),
                    // The host takes the session, and a rule says otherwise.
                    Some((route, reply)) => {
                        let ends = route == Route::BounceQueue;
                        let outcome = if ends { Outcome::Bounced } else { Outcome::Deferred };
                        let verdict = Verdict::by_rule(&reply, outcome);
                        s.quit().await;
                        let failure = Failure::at(verdict, &host.name, &address.ip().to_string());
                        (failure, Some(route))
                    }
                }
            }
            Err(fault) => {
                let failure = fault.failure();
                match fault.is_unconnected() {
                    true => known.failed(address, path.source, clock::now_ms()),
                    // Greylisting: this host will take the mail later, while another host would begin its own waiting time.
                    false if greylists(&config, &failure) => {}
                    false => known.took_no_session(address, clock::now_ms()),
                }
                (failure, apply_reply_rules(shard, path).map(|(route, _)| route))
            }
        };
        match route {
            Some(Route::SkipMx) => {
                skip_host(shard, path, &host.name);
                let verdict = Verdict { outcome: Outcome::Deferred, ..failure.verdict };
                last = Some(Failure { verdict, ..failure });
                securities[n] = Some(None);
                continue;
            }
            Some(Route::BounceQueue) => {
                let verdict = Verdict { outcome: Outcome::Bounced, ..failure.verdict };
                let failure = Failure { verdict, ..failure };
                path.waits.set(Waits::ForOutcomes);
                bounce_queues(shard, path, &failure).await;
                rest_for_others(shard, path, failure);
                return None;
            }
            Some(Route::DeferQueue) => {
                path_failed(shard, path, failure, true);
                return None;
            }
            Some(Route::BounceRcpt) | None => {}
        }
        if failure.verdict.outcome == Outcome::Bounced && path.rules.bounce_upon_5xx_greeting {
            path.waits.set(Waits::ForOutcomes);
            bounce_those(shard, path, &failure, |q| q.members.len() == 1 && q.origin() == path.origin.as_ref()).await;
            rest_for_others(shard, path, failure);
            return None;
        }
        last = Some(failure);
    }
    if let (Some(f), None) = (full, &last) {
        // No host failed, so nothing is noted against the path.
        let until_ms = shard.limit_queue.again_ms(f.is_asked, path.rules.queue_priority, clock::now_ns() as i64);
        shard.decide(|e, _| e.block(path.id, Blocked { until_ms, by: Some(f.by) }));
        return None;
    }
    if crowded && last.is_none() {
        wait_for_turn(shard, path);
        return None;
    }
    let none_left = || match skipped.is_empty() {
        true => Failure::own("4.4.1", "no address of the receiver fits the source address"),
        false => Failure::own("4.4.1", "every host of the receiver is left out (skip-mx)"),
    };
    if last.is_none() && !skipped.is_empty() {
        shard.decide(|e, _| e.skip_no_host(path.id));
    }
    failed(shard, path, last.unwrap_or_else(none_left));
    None
}

/// Whether a connection of `path` to an address may be begun: so many others that take long are not waited for there.
fn may_wait_at(shard: &Shard, path: &ServedPath, address: IpAddr) -> bool {
    let places = all_of(address, path.group.get());
    shard.openers.openings.may_wait(places, path.slow_at.borrow().as_ref(), shard.slow_max())
}

/// A directive of the path or its virtual MTA that is not in force, and without which its mail would go otherwise than
/// meant.
pub(super) fn withheld(config: &Config, path: &ServedPath, shard: &Shard) -> Option<String> {
    let of_path = path.rules.withheld().map(str::to_owned);
    of_path.or_else(|| {
        let vmta = shard.scheduler().paths.get(path.id)?.vmta;
        let vmta = config.snapshot.get().vmtas.get(vmta as usize)?;
        Some(vmta.withheld.as_str().to_owned()).filter(|d| !d.is_empty())
    })
}

/// Mail of the path waits until the operator removes the line from the configuration, and bounces when it is too old.
pub(super) fn keep_back(shard: &Rc<Shard>, path: &ServedPath, directive: &str) {
    let text = format!(
        "{directive} is not in force here yet: mail that it is for waits, until bounce-after, for the line to go"
    );
    failed(shard, path, Failure::own("4.3.5", text));
}

/// A greeting or EHLO that was refused, and will be taken from the same address later.
fn greylists(config: &Config, f: &Failure) -> bool {
    f.verdict.remote && health::is_greylisting(config.bounce_rules(), &f.verdict)
}

/// No host took the session. Where hosts of one domain fail, other domains that share the path go on. A reply of the receiver counts for the
/// whole path; so does a failure while other connections of the path go on, and one of a member of a pool.
fn failed(shard: &Rc<Shard>, path: &ServedPath, failure: Failure) {
    let alone = shard.engine().is_of_domain_alone(path.id, path.queue);
    if path.origin.is_none() || failure.verdict.remote || !alone {
        return queue_failed(shard, path, failure);
    }
    let failure = failure.recorded(&path.rules);
    if log_limit::allows_line("domain deferred", path.origin.as_deref().unwrap_or_default()) {
        tracing::info!(shard = shard.number, queue = path.name, domain = path.origin.as_deref(), error = %failure, "domain deferred");
    }
    account_for_queue(shard, path, &failure);
    shard.decide(|e, now| e.defer_queue(path.queue, failure, now));
}

/// Puts the path back in line, because too many connections take long already, in all or to the address that this one was for. So receivers
/// that do not answer delay no mail for others.
pub(super) fn wait_for_turn(shard: &Shard, path: &ServedPath) {
    let to = match path.waits.get() {
        Waits::At(address) => format!(" to {}", address.ip()),
        Waits::ForNames | Waits::ForOutcomes => String::new(),
    };
    let text = format!("so many connections{to} are waited for that this one has its turn later");
    let until_ms = shard.openers.turn_ms(clock::now_ms());
    shard.decide(|e, now| e.waits_for_turn(path.id, until_ms, Failure::own("4.4.1", text), now));
}

/// An attempt that has waited for long gives way to others, and counts as failed.
pub(super) fn give_way(shard: &Rc<Shard>, path: &ServedPath) {
    let who = match path.waits.get() {
        Waits::At(address) => {
            shard.address_health.took_no_session(address, clock::now_ms());
            format!("{} has", address.ip())
        }
        Waits::ForNames | Waits::ForOutcomes => "DNS or its MTA-STS policy have".to_owned(),
    };
    let text = format!("{who} not answered for {} s, and others wait for their turn", GRANTED.as_secs());
    failed(shard, path, Failure::own("4.4.1", text));
}

/// What ends a virtual MTA's own mail only makes its path rest as far as a pool is concerned:
/// the other members carry on.
fn rest_for_others(shard: &Rc<Shard>, path: &ServedPath, failure: Failure) {
    let shared = {
        let s = shard.scheduler();
        let queues = s.paths.get(path.id).map(|p| p.queues.clone()).unwrap_or_default();
        queues.iter().any(|q| s.queues.get(q).is_some_and(|q| q.members.len() > 1))
    };
    if shared {
        let verdict = Verdict { outcome: Outcome::Deferred, ..failure.verdict };
        queue_failed(shard, path, Failure { verdict, ..failure });
    }
}

/// Leaves a host out of what the path tries, for a while.
pub(super) fn skip_host(shard: &Shard, path: &ServedPath, host: &str) {
    shard.decide(|e, now| e.skip_host(path.id, host, now.ms() + SKIP_HOST_MS));
}

/// Why there is no session.
enum Trouble {
    /// The host takes none.
    Host(SessionFault),
    /// TLS with it does not work.
    Tls(SessionFault),
}

impl From<SessionFault> for Trouble {
    fn from(fault: SessionFault) -> Trouble {
        Trouble::Host(fault)
    }
}

/// Connects, greets and negotiates TLS. What breaks in the negotiation may be due to the earlier
/// session that was to be resumed: it is tried once more from the beginning before the host counts
/// as broken.
async fn greet(
    shard: &Rc<Shard>,
    path: &ServedPath,
    host: &str,
    address: std::net::SocketAddr,
    security: &Security,
) -> Result<ClientSession, SessionFault> {
    let mut fault = match approach(shard, path, host, address, security).await {
        Ok(s) => return Ok(s),
        Err(Trouble::Host(f)) => return Err(f),
        Err(Trouble::Tls(f)) => f,
    };
    let protection = Rc::clone(&shard.protection.borrow());
    if fault.may_pass_without_resumption() {
        if log_limit::allows_line("STARTTLS failed, trying a full handshake", &path.name) {
            tracing::info!(queue = path.name, error = %fault, "STARTTLS failed, trying a full handshake");
        }
        let wanted = &security.parameters;
        protection.configs.forget_sessions(wanted, &server_name(host, address.ip()));
        let full = Security { parameters: Parameters { resume: false, ..wanted.clone() }, ..security.clone() };
        fault = match Box::pin(approach(shard, path, host, address, &full)).await {
            Ok(mut s) => {
                // A full handshake worked in place of the resumption.
                s.parameters = s.parameters.map(|_| wanted.clone());
                return Ok(s);
            }
            Err(Trouble::Host(f)) => return Err(f),
            Err(Trouble::Tls(f)) => f,
        };
    }
    if security.required {
        return Err(fault);
    }
    // Opportunistic: clear text is better than no delivery.
    if log_limit::allows_line("STARTTLS failed, trying in the clear", &path.name) {
        tracing::info!(queue = path.name, error = %fault, "STARTTLS failed, trying in the clear");
    }
    protection.broke(host);
    let clear = Security { wanted: false, ..security.clone() };
    Box::pin(approach(shard, path, host, address, &clear)).await.map_err(|t| match t {
        Trouble::Host(f) | Trouble::Tls(f) => f,
    })
}

/// One connection, up to the EHLO that mail can follow.
async fn approach(
    shard: &Rc<Shard>,
    path: &ServedPath,
    host: &str,
    address: std::net::SocketAddr,
    security: &Security,
) -> Result<ClientSession, Trouble> {
    let r = &path.rules;
    let mut s =
        ClientSession::connect(&*shard.ports.net, host, address, path.source, r.connect_timeout, &path.reply_rules)
            .await?;
    s.lesson = shard.learned.of(host);
    let greeting = s.reply(r.smtp_greeting_timeout).await?;
    if !greeting.is_positive() {
        return Err(s.refused(greeting).into());
    }
    s.behind_pix = greeting.text().contains(PIX_GREETING);
    let limit = r.smtp_multiple_line_response_timeout;
    s.hello(&path.hello, limit).await?;
    if !security.wanted || !s.extensions.starttls {
        return if security.required { Err(tls_missing(&s, security).into()) } else { Ok(s) };
    }
    match s.command("STARTTLS", limit).await.map_err(Trouble::Tls)? {
        go if go.is_positive() => {}
        // A receiver that closes at STARTTLS counts like one whose handshake fails.
        go if go.code == 421 => return Err(Trouble::Tls(s.refused(go))),
        // The mail goes in the clear. A refusal is not remembered: the next connection tries STARTTLS again.
        _ if !security.required => return Ok(s),
        go if go.is_permanent() => {
            // The reply is about STARTTLS, not about the mail, so no mail bounces by it.
            let reason = format!("\"{}\" in answer to STARTTLS, which is demanded ({})", go.text(), security.policy);
            return Err(SessionFault::Protocol { reason, host: host.to_owned(), ip: address.ip() }.into());
        }
        go => return Err(s.refused(go).into()),
    }
    let protection = Rc::clone(&shard.protection.borrow());
    let config = protection
        .configs
        .of(&security.parameters)
        .map_err(|reason| Trouble::Tls(SessionFault::Protocol { reason, host: host.to_owned(), ip: address.ip() }))?;
    s.start_tls(config, security, limit).await.map_err(Trouble::Tls)?;
    s.hello(&path.hello, limit).await.map_err(|f| if f.is_421() { Trouble::Host(f) } else { Trouble::Tls(f) })?;
    if let Some(t) = &s.tls {
        tracing::debug!(shard = shard.number, queue = path.name, host, %address, version = t.version, cipher = t.cipher, verified = t.verified, policy = t.policy, resumed = t.resumed, "TLS");
    }
    Ok(s)
}

fn tls_missing(s: &ClientSession, security: &Security) -> SessionFault {
    SessionFault::Protocol {
        reason: format!("no STARTTLS offered, which is demanded ({})", security.policy),
        host: s.host.clone(),
        ip: s.peer.ip(),
    }
}

/// The path as a whole failed; where connections of it are open they go on.
fn queue_failed(shard: &Rc<Shard>, path: &ServedPath, failure: Failure) {
    path_failed(shard, path, failure, false);
}

/// The path as a whole failed, or is to wait by a rule (`defer-queue`), whatever connections are open.
fn path_failed(shard: &Rc<Shard>, path: &ServedPath, failure: Failure, by_rule: bool) {
    let ill = health::speaks_ill(shard.config().bounce_rules(), &failure.verdict);
    let failure = failure.recorded(&path.rules);
    if log_limit::allows_line("queue deferred", &path.name) {
        tracing::info!(shard = shard.number, queue = path.name, error = %failure, "queue deferred");
    }
    account_for_queue(shard, path, &failure);
    // Other members of a pool carry on what waits.
    let shared = shard.decide(|e, now| e.path_failed(path.id, failure, ill, by_rule, now));
    let shard = Rc::clone(shard);
    if !shared.is_empty() {
        crate::tasks::begin("pools", move || async move { shared.into_iter().for_each(|q| shard.pump_queue(q)) });
    }
}
