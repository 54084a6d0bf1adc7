//! Limits over all shards that a connection is under: those of its virtual MTA, and those of
//! the destination over all virtual MTAs.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::atomic::AtomicI64;
use std::sync::atomic::Ordering::Relaxed;

use ipc::ledger::requests::Ask;
use ipc::ledger::shared_limits::key;
use ipc::ledger::{Class, Ledger, Place, Slot};
use ipc::mesh;
use ipc::message::normalise_domain;
use ipc::pace::Pacing;
use ipc::rules::{ANY_CONNECTIONS, DomainRules, Rate};
use ipc::snapshot::ArchivedVirtualMta;

use crate::config::Config;
use crate::schedule::limit::Limit;
use crate::schedule::spread_path::{ramp_up, source_keys};
use crate::schedule::tokens::Grant;
use crate::schedule::{Path, PathId};
use crate::shard::Shard;

/// A request is repeated as long as it counts; a shard that has not repeated one for so long has none, milliseconds.
const WAITS_MS: i64 = 1_000;
/// A limit over all shards that is reached.
#[derive(Debug, Clone, Copy)]
pub struct Full {
    /// Which one.
    pub by: Limit,
    /// The ledger has a request of the path, which is woken when there is something for it.
    pub is_asked: bool,
}

impl Full {
    fn of(by: Limit) -> impl Fn(bool) -> Full {
        move |is_asked| Full { by, is_asked }
    }
}

/// A place under `key` was given back, or may be left. The path with the best right to it is woken, unless that is `by`, which gave the
/// place back because another limit was in its way: it would ask for the same place again and again.
pub fn wake_first(shard: &Shard, key: u64, by: Option<PathId>) {
    let now = crate::clock::now_ms();
    let Some(ask) = shard.ledger.first_to_ask(key, now) else { return };
    if ask.shard != shard.number {
        let is_new = shard.ledger.wake(&ask, now);
        if is_new {
            shard.handoffs.tell(ask.shard, mesh::PLACE_FREE);
        }
    } else if by.map(PathId::place) != Some(ask.path) {
        shard.limit_queue.wake(ask.path);
        shard.timers.notify_one();
    }
}

/// A rate with the name that it is counted under.
#[derive(Debug, Clone, Copy)]
struct Named {
    key: u64,
    pacing: Pacing,
    /// The limit.
    by: Limit,
}

impl Named {
    /// `None` where it limits nothing.
    fn of((key, rate, by): (u64, Rate, Limit)) -> Option<Named> {
        Pacing::of(rate).map(|pacing| Named { key, pacing, by })
    }

    /// Takes up to `want`; answers how many, and when to ask again if that is none.
    fn take(&self, ledger: &Ledger, want: u64, now_ns: i64) -> (u64, i64) {
        match ledger.take_of_rate(self.key, &self.pacing, want, now_ns) {
            Ok(n) => (n, now_ns),
            Err(refused) => {
                if refused.no_room {
                    tell_of_no_room(self.by, now_ns);
                }
                (0, refused.at_ns)
            }
        }
    }

    fn give_back(&self, ledger: &Ledger, n: u64, now_ns: i64) {
        ledger.give_back(self.key, &self.pacing, n, now_ns);
    }
}

/// Logs, once a minute, that mail waits because a rate finds no cell in the ledger to be counted in.
fn tell_of_no_room(limit: Limit, now_ns: i64) {
    const EVERY_NS: i64 = 60_000_000_000;
    static TOLD_NS: AtomicI64 = AtomicI64::new(i64::MIN / 2);
    let told = TOLD_NS.load(Relaxed);
    if now_ns - told >= EVERY_NS && TOLD_NS.compare_exchange(told, now_ns, Relaxed, Relaxed).is_ok() {
        tracing::warn!(
            limit = limit.directive(),
            "the ledger is full of rates that count: mail under one more waits until another's window is over"
        );
    }
}

/// Rates over all shards that hold for a path.
#[derive(Debug, Clone, Default)]
pub struct SharedRates {
    /// Recipients attempted.
    recipients: Vec<Named>,
    /// Bytes delivered.
    volume: Vec<Named>,
}

impl SharedRates {
    /// Those of a path, for a connection from `source`. Of a destination that is spread they
    /// are all that it has.
    pub fn of(p: &Path, vmta: Option<&ArchivedVirtualMta>, source: Option<IpAddr>) -> SharedRates {
        let rate = |r: (u64, u64)| Rate { count: r.0, per: std::time::Duration::from_millis(r.1) };
        let mut all = SharedRates::default();
        if let Some(v) = vmta {
            let msg = rate((v.msg_rate.0.to_native(), v.msg_rate.1.to_native()));
            let volume = rate((v.data_volume_rate.0.to_native(), v.data_volume_rate.1.to_native()));
            let name = v.name.as_str();
            let of_msg = (key("vmta rate", name), msg, Limit::VmtaMsgRate);
            let of_volume = (key("vmta volume", name), volume, Limit::VmtaDataVolumeRate);
            all.take_in(&[of_msg], of_volume);
        }
        let rate = p.rules.destination_max_msg_rate;
        let of_destination = (key("destination rate", &p.destination), rate, Limit::DestinationMsgRate);
        all.recipients.extend(Named::of(of_destination));
        if let Some(t) = &p.spread {
            let (l, [msg, hour, volume, _]) = (p.limits(), t.windows);
            let of_msg = [(msg, l.msg_rate, Limit::MsgRate), (hour, l.msg_per_hour, Limit::MsgPerHour)];
            all.take_in(&of_msg, (volume, l.data_volume_rate, Limit::DataVolumeRate));
            if let Some(ip) = source.filter(|_| p.limits_sources()) {
                let ([msg, volume, _], _) = source_keys(p, ip);
                let rules = &p.rules;
                let of_msg = (msg, rules.source_ip_max_msg_rate.of(ip), Limit::SourceMsgRate);
                let of_volume = rules.source_ip_max_data_volume_rate.of(ip);
                all.take_in(&[of_msg], (volume, of_volume, Limit::SourceDataVolumeRate));
            }
        }
        all
    }

    fn take_in(&mut self, recipients: &[(u64, Rate, Limit)], volume: (u64, Rate, Limit)) {
        self.recipients.extend(recipients.iter().copied().filter_map(Named::of));
        self.volume.extend(Named::of(volume));
    }

    /// How many of `want` recipients of a message of `bytes` may be attempted now.
    pub fn grant(&self, ledger: &Ledger, want: u64, bytes: u64, now_ns: i64) -> Grant {
        let refused = |v: &Named| {
            let r = ledger.ready(v.key, &v.pacing, now_ns).err()?;
            if r.no_room {
                tell_of_no_room(v.by, now_ns);
            }
            Some((r.at_ns, v.by))
        };
        if let Some((next_ns, by)) = self.volume.iter().filter_map(refused).max_by_key(|(at, _)| *at) {
            return Grant { count: 0, next_ns, by: Some(by) };
        }
        let mut granted = want;
        for (i, r) in self.recipients.iter().enumerate() {
            let (n, at) = r.take(ledger, granted, now_ns);
            if n < granted {
                self.recipients[..i].iter().for_each(|r| r.give_back(ledger, granted - n, now_ns));
                granted = n;
            }
            if granted == 0 {
                return Grant { count: 0, next_ns: at, by: Some(r.by) };
            }
        }
        self.volume.iter().for_each(|v| ledger.count(v.key, &v.pacing, bytes, now_ns));
        Grant::all(granted)
    }

    /// Recipients that were counted were not attempted after all.
    pub fn not_attempted(&self, ledger: &Ledger, n: u64) {
        let now_ns = crate::clock::now_ns() as i64;
        self.recipients.iter().for_each(|r| r.give_back(ledger, n, now_ns));
    }

    /// The content of a message was not delivered after all.
    pub fn not_transferred(&self, ledger: &Ledger, bytes: u64) {
        let now_ns = crate::clock::now_ns() as i64;
        self.volume.iter().for_each(|v| v.give_back(ledger, bytes, now_ns));
    }
}

/// What a connection is to be opened for.
pub struct Wants {
    rules: Rc<DomainRules>,
    destination: Rc<str>,
    /// Index of the virtual MTA.
    pub vmta: u32,
    /// Where the destination is spread.
    of_spread: Option<SpreadWants>,
}

/// Limits of the path that all owners of the destination share.
struct SpreadWants {
    connections: u64,
    max_smtp_out: u64,
    /// Rates of new connections, and their directives.
    connects: [(u64, Rate, Limit); 2],
}

/// The same of one of its source addresses.
pub struct SourceWants {
    connections: u64,
    max_smtp_out: u64,
    connects: u64,
    max_connect_rate: Rate,
}

impl Wants {
    /// What a connection of `p` needs.
    pub fn of(p: &Path) -> Wants {
        let l = p.limits();
        let of_spread = p.spread.as_ref().map(|t| SpreadWants {
            connections: t.connections,
            max_smtp_out: if l.smtp_out == ANY_CONNECTIONS { 0 } else { l.smtp_out },
            connects: [
                (t.windows[3], l.connect_rate, Limit::ConnectRate),
                (t.ramp_up, ramp_up(p.rules.smtp_out_rampup_interval), Limit::RampUp),
            ],
        });
        Wants { rules: Rc::clone(&p.rules), destination: Rc::clone(&p.destination), vmta: p.vmta, of_spread }
    }

    /// `queue-priority`
    pub fn queue_priority(&self) -> u64 {
        self.rules.queue_priority
    }
}

impl SourceWants {
    /// What one from `ip` needs besides, if something.
    pub fn of(p: &Path, ip: IpAddr) -> Option<SourceWants> {
        let limited = p.spread.is_some() && p.limits_sources();
        limited.then(|| {
            let ([.., connects], connections) = source_keys(p, ip);
            let max_smtp_out = p.rules.source_ip_max_smtp_out.of(ip).count;
            let max_connect_rate = p.rules.source_ip_max_connect_rate.of(ip);
            SourceWants { connections, max_smtp_out, connects, max_connect_rate }
        })
    }
}

/// Takes one of each, or of none.
fn take_all(ledger: &Ledger, rates: &[(u64, Rate, Limit)]) -> Result<(), Full> {
    let now_ns = crate::clock::now_ns() as i64;
    let rates: Vec<Named> = rates.iter().copied().filter_map(Named::of).collect();
    for (i, r) in rates.iter().enumerate() {
        if r.take(ledger, 1, now_ns).0 == 0 {
            rates[..i].iter().for_each(|r| r.give_back(ledger, 1, now_ns));
            return Err(Full { by: r.by, is_asked: true });
        }
    }
    Ok(())
}

/// What a connection holds in the ledger; given back when it is dropped.
pub struct LimitPlaces {
    shard: Rc<Shard>,
    path: PathId,
    /// A connection came of it: its own path may have what it gives back as well.
    served: bool,
    priority: u8,
    slot: Option<Slot>,
    /// With the names of their limits.
    places: Vec<(Place, u64)>,
}

impl LimitPlaces {
    /// Takes what a connection of a path needs wherever it leads: `total-max-smtp-out`, the
    /// virtual MTA's `max-smtp-out`, `destination-max-smtp-out`. What is not to be had is asked
    /// for, see [`ipc::ledger::requests`].
    ///
    /// # Errors
    /// The limit that has none left.
    pub fn take(
        shard: &Rc<Shard>,
        config: &Config,
        wants: &Wants,
        vmta: Option<&ArchivedVirtualMta>,
        path: PathId,
    ) -> Result<LimitPlaces, Full> {
        let (rules, destination) = (&wants.rules, &*wants.destination);
        let priority = rules.queue_priority.min(100) as u8;
        let shard = Rc::clone(shard);
        let mut held = LimitPlaces { shard, path, served: false, priority, slot: None, places: Vec::new() };
        if let Some(t) = &wants.of_spread {
            held.place(t.connections, t.max_smtp_out).map_err(Full::of(Limit::SmtpOut))?;
        }
        if let Some(v) = vmta {
            held.place(key("vmta", v.name.as_str()), v.max_smtp_out.to_native())
                .map_err(Full::of(Limit::VmtaSmtpOut))?;
        }
        held.place(key("destination", destination), rules.destination_max_smtp_out)
            .map_err(Full::of(Limit::DestinationSmtpOut))?;
        let limit = config.global.total_max_smtp_out as usize;
        let hint = (path.place() as usize).wrapping_mul(64);
        let total = held.asking(key("total", ""), |shard| shard.ledger.take(Class::SmtpOut, shard.number, limit, hint));
        held.slot = Some(total.map_err(Full::of(Limit::TotalSmtpOut))?);
        if let Some(t) = &wants.of_spread {
            take_all(&held.shard.ledger, &t.connects)?;
        }
        Ok(held)
    }

    /// Takes what a connection from one source address of a destination that is spread needs.
    ///
    /// # Errors
    /// The limit that has none left.
    pub fn take_source(&mut self, p: &SourceWants) -> Result<(), Full> {
        self.place(p.connections, p.max_smtp_out).map_err(Full::of(Limit::SourceSmtpOut))?;
        take_all(&self.shard.ledger, &[(p.connects, p.max_connect_rate, Limit::SourceConnectRate)])
    }

    /// Which of the places of `max-smtp-out` it has, where the destination is spread.
    pub fn number_under(&self, key: u64) -> Option<u32> {
        self.places.iter().find(|(_, k)| *k == key).map(|(p, _)| p.number)
    }

    /// Takes what a connection to one host needs: `mx-connection-limit` and
    /// `ip-connection-limit`. What was taken for a host before is given back.
    ///
    /// # Errors
    /// The limit that has none left.
    pub fn take_host(
        &mut self,
        config: &Config,
        host: &str,
        peer: SocketAddr,
        source: &str,
        general: usize,
    ) -> Result<(), Full> {
        while self.places.len() > general {
            self.places.pop().into_iter().for_each(|(p, key)| self.give(p, key));
        }
        let g = &config.global;
        let name = normalise_domain(host).unwrap_or_else(|_| host.to_lowercase());
        let of_mx = g.mx_connection_limits.iter().find(|(p, _)| ipc::layers::pattern_matches(p, &name));
        if let Some((_, limit)) = of_mx {
            self.place(key("mx", &format!("{name} {source}")), *limit).map_err(Full::of(Limit::MxConnections))?;
        }
        let of_ip = g.ip_connection_limits.iter().find(|(n, _)| n.contains(peer.ip()));
        if let Some((_, limit)) = of_ip {
            self.place(key("ip", &peer.ip().to_string()), *limit).map_err(Full::of(Limit::IpConnections))?;
        }
        Ok(())
    }

    /// Places that are held wherever the connection leads.
    pub fn general(&self) -> usize {
        self.places.len()
    }

    /// Names of the limits that a place is held of.
    pub fn keys(&self) -> Vec<u64> {
        let total = self.slot.iter().map(|_| key("total", ""));
        self.places.iter().map(|(_, k)| *k).chain(total).collect()
    }

    /// A place under `limit`; 0 is unlimited.
    ///
    /// # Errors
    /// As [`LimitPlaces::asking`].
    fn place(&mut self, key: u64, limit: u64) -> Result<(), bool> {
        if limit > 0 {
            let hint = crate::clock::now_ns() as u64;
            let place = self.asking(key, |shard| shard.ledger.take_place(key, shard.number, limit, hint))?;
            self.places.push((place, key));
        }
        Ok(())
    }

    /// A connection stands.
    pub fn serves(&mut self) {
        self.served = true;
    }

    fn give(&self, place: Place, key: u64) {
        self.shard.ledger.give_place(place);
        self.wake_first(key);
    }

    fn wake_first(&self, key: u64) {
        if self.served {
            return wake_first(&self.shard, key, None);
        }
        // Another limit was in the way of this path, so its place goes to the next in line.
        let ask = Ask { key, priority: self.priority, shard: self.shard.number, path: self.path.place(), has: 0 };
        self.shard.ledger.withdraw(&ask, crate::clock::now_ms());
        wake_first(&self.shard, key, Some(self.path));
    }

    /// Takes what `take` gives, unless somebody else asked for it with a better right; what is
    /// not to be had is asked for.
    ///
    /// # Errors
    /// Whether the ledger had room for the request.
    fn asking<T>(&self, key: u64, take: impl FnOnce(&Shard) -> Option<T>) -> Result<T, bool> {
        let (shard, now) = (&self.shard, crate::clock::now_ms());
        let has = shard.open.held(self.path, key);
        let ask = Ask { key, priority: self.priority, shard: shard.number, path: self.path.place(), has };
        let taken = if shard.ledger.others_first(&ask, now) { None } else { take(shard) };
        match taken {
            Some(t) => {
                if shard.ledger.has_asked(&ask, now) {
                    if shard.scheduler().has_more_for(self.path, now) {
                        // A path that has more mail stays in line. Otherwise the next place that a rival gives up for it would go back to
                        // the rival.
                        shard.ledger.request(&Ask { has: has + 1, ..ask }, now);
                        shard.limit_queue.waits_until(now + WAITS_MS);
                    } else {
                        shard.ledger.withdraw(&ask, now);
                    }
                }
                // Where several were given back at once, there is one for the next, too.
                wake_first(shard, key, Some(self.path));
                Ok(t)
            }
            None => {
                let is_asked = shard.ledger.request(&ask, now);
                if is_asked {
                    shard.limit_queue.waits_until(now + WAITS_MS);
                    shard.timers.notify_one();
                }
                super::interruption::answer(shard);
                Err(is_asked)
            }
        }
    }
}

impl Drop for LimitPlaces {
    fn drop(&mut self) {
        if ipc::planted!("place-not-given-back") && !self.served {
            return;
        }
        if let Some(s) = self.slot.take() {
            self.shard.ledger.give(s);
            self.wake_first(key("total", ""));
        }
        std::mem::take(&mut self.places).into_iter().for_each(|(p, key)| self.give(p, key));
    }
}
