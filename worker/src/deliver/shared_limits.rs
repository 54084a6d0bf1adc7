//! Limits over all shards that a connection is under: those of its virtual MTA, and those of
//! the destination over all virtual MTAs.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use ipc::ledger::requests::Ask;
use ipc::ledger::shared_limits::key;
use ipc::ledger::{Class, Ledger, Place, Slot};
use ipc::message::normalise_domain;
use ipc::rules::{DomainRules, Rate};
use ipc::snapshot::ArchivedVirtualMta;

use crate::config::Config;
use crate::route::twins::{ramp_up, source_keys};
use crate::schedule::rate::Pace;
use crate::schedule::scheduler::Grant;
use crate::schedule::{Path, PathId};
use crate::shard::Shard;

/// A rate with the name that it is counted under.
#[derive(Debug, Clone, Copy)]
struct Named {
    key: u64,
    rate: Rate,
    /// See [`Path::blocked_by`].
    by: &'static str,
}

impl Named {
    /// `None` where it limits nothing.
    fn of((key, rate, by): (u64, Rate, &'static str)) -> Option<Named> {
        (rate.count > 0).then_some(Named { key, rate, by })
    }

    /// Changes its clock; `change` may be asked more than once.
    fn update<R>(&self, ledger: &Ledger, change: impl Fn(&mut Pace) -> R) -> R {
        ledger.update_clock(self.key, |tat_ns| {
            let mut p = Pace { tat_ns };
            let answer = change(&mut p);
            (p.tat_ns, answer)
        })
    }

    /// Takes up to `want`; answers how many, and when there will be more if that is none.
    fn take(&self, ledger: &Ledger, want: u64, now_ns: i64) -> (u64, i64) {
        self.update(ledger, |p| {
            let (n, at) = p.available(self.rate, now_ns, want);
            p.advance(self.rate, now_ns, n);
            (n, at)
        })
    }

    fn ready(&self, ledger: &Ledger, now_ns: i64) -> (bool, i64) {
        let (n, at) = self.update(ledger, |p| p.available(self.rate, now_ns, 1));
        (n > 0, at)
    }

    fn count(&self, ledger: &Ledger, n: u64, now_ns: i64) {
        self.update(ledger, |p| p.advance(self.rate, now_ns, n));
    }

    fn give_back(&self, ledger: &Ledger, n: u64) {
        self.update(ledger, |p| p.give_back(self.rate, n));
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
            let of_msg = (key("vmta rate", name), msg, "virtual-mta max-smtp-msg-rate");
            let of_volume = (key("vmta volume", name), volume, "virtual-mta max-smtp-data-volume-rate");
            all.take_in(&[of_msg], of_volume);
        }
        let rate = p.rules.destination_max_msg_rate;
        let of_destination = (key("destination rate", &p.destination), rate, "destination-max-msg-rate");
        all.recipients.extend(Named::of(of_destination));
        if let Some(t) = &p.twins {
            let (l, [msg, hour, volume, _]) = (p.limits(), t.windows);
            let of_msg = [(msg, l.msg_rate, "max-msg-rate"), (hour, l.msg_per_hour, "max-msg-per-hour")];
            all.take_in(&of_msg, (volume, l.data_volume_rate, "max-data-volume-rate"));
            if let Some(ip) = source.filter(|_| p.limits_sources()) {
                let ([msg, volume, _], _) = source_keys(p, ip);
                let rules = &p.rules;
                let of_msg = (msg, rules.source_ip_max_msg_rate.of(ip), "source-ip-max-msg-rate");
                let of_volume = rules.source_ip_max_data_volume_rate.of(ip);
                all.take_in(&[of_msg], (volume, of_volume, "source-ip-max-data-volume-rate"));
            }
        }
        all
    }

    fn take_in(&mut self, recipients: &[(u64, Rate, &'static str)], volume: (u64, Rate, &'static str)) {
        self.recipients.extend(recipients.iter().copied().filter_map(Named::of));
        self.volume.extend(Named::of(volume));
    }

    /// How many of `want` recipients of a message of `bytes` may be attempted now.
    pub fn grant(&self, ledger: &Ledger, want: u64, bytes: u64, now_ns: i64) -> Grant {
        let not_ready = self.volume.iter().map(|v| (v.ready(ledger, now_ns), v.by)).filter(|((ready, _), _)| !ready);
        if let Some(((_, next_ns), by)) = not_ready.max_by_key(|((_, at), _)| *at) {
            return Grant { count: 0, next_ns, by };
        }
        let mut granted = want;
        for (i, r) in self.recipients.iter().enumerate() {
            let (n, at) = r.take(ledger, granted, now_ns);
            if n < granted {
                self.recipients[..i].iter().for_each(|r| r.give_back(ledger, granted - n));
                granted = n;
            }
            if granted == 0 {
                return Grant { count: 0, next_ns: at, by: r.by };
            }
        }
        self.volume.iter().for_each(|v| v.count(ledger, bytes, now_ns));
        Grant::all(granted)
    }

    /// Recipients that were counted were not attempted after all.
    pub fn not_attempted(&self, ledger: &Ledger, n: u64) {
        self.recipients.iter().for_each(|r| r.give_back(ledger, n));
    }

    /// The content of a message was not delivered after all.
    pub fn not_transferred(&self, ledger: &Ledger, bytes: u64) {
        self.volume.iter().for_each(|v| v.give_back(ledger, bytes));
    }
}

/// What a connection is to be opened for.
pub struct Wants {
    rules: Rc<DomainRules>,
    destination: Rc<str>,
    /// Index of the virtual MTA.
    pub vmta: u32,
    /// Where the destination is spread.
    of_twins: Option<TwinsWants>,
}

/// Limits of the path that all its twins share.
struct TwinsWants {
    connections: u64,
    max_smtp_out: u64,
    /// Rates of new connections, and their directives.
    connects: [(u64, Rate, &'static str); 2],
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
        let of_twins = p.twins.as_ref().map(|t| TwinsWants {
            connections: t.connections,
            max_smtp_out: l.smtp_out,
            connects: [
                (t.windows[3], l.connect_rate, "max-connect-rate"),
                (t.ramp_up, ramp_up(p.rules.smtp_out_rampup_interval), "smtp-out-rampup-interval"),
            ],
        });
        Wants { rules: Rc::clone(&p.rules), destination: Rc::clone(&p.destination), vmta: p.vmta, of_twins }
    }
}

impl SourceWants {
    /// What one from `ip` needs besides, if something.
    pub fn of(p: &Path, ip: IpAddr) -> Option<SourceWants> {
        let limited = p.twins.is_some() && p.limits_sources();
        limited.then(|| {
            let ([.., connects], connections) = source_keys(p, ip);
            let max_smtp_out = p.rules.source_ip_max_smtp_out.of(ip).count;
            let max_connect_rate = p.rules.source_ip_max_connect_rate.of(ip);
            SourceWants { connections, max_smtp_out, connects, max_connect_rate }
        })
    }
}

/// Takes one of each, or of none.
fn take_all(ledger: &Ledger, rates: &[(u64, Rate, &'static str)]) -> Result<(), &'static str> {
    let now_ns = crate::clock::now_ns() as i64;
    let rates: Vec<Named> = rates.iter().copied().filter_map(Named::of).collect();
    for (i, r) in rates.iter().enumerate() {
        if r.take(ledger, 1, now_ns).0 == 0 {
            rates[..i].iter().for_each(|r| r.give_back(ledger, 1));
            return Err(r.by);
        }
    }
    Ok(())
}

/// What a connection holds in the ledger; given back when it is dropped.
pub struct Held {
    shard: Rc<Shard>,
    path: PathId,
    priority: u8,
    slot: Option<Slot>,
    /// With the names of their limits.
    places: Vec<(Place, u64)>,
}

impl Held {
    /// Takes what a connection of a path needs wherever it leads: `total-max-smtp-out`, the
    /// virtual MTA's `max-smtp-out`, `destination-max-smtp-out`. What is not to be had is asked
    /// for, see [`ipc::ledger::requests`].
    ///
    /// # Errors
    /// The name of the directive that has none left.
    pub fn take(
        shard: &Rc<Shard>,
        config: &Config,
        wants: &Wants,
        vmta: Option<&ArchivedVirtualMta>,
        path: PathId,
    ) -> Result<Held, &'static str> {
        let (rules, destination) = (&wants.rules, &*wants.destination);
        let priority = rules.queue_priority.min(100) as u8;
        let shard = Rc::clone(shard);
        let mut held = Held { shard, path, priority, slot: None, places: Vec::new() };
        if let Some(t) = &wants.of_twins {
            held.place(t.connections, t.max_smtp_out).ok_or("max-smtp-out")?;
        }
        if let Some(v) = vmta {
            held.place(key("vmta", v.name.as_str()), v.max_smtp_out.to_native()).ok_or("virtual-mta max-smtp-out")?;
        }
        held.place(key("destination", destination), rules.destination_max_smtp_out)
            .ok_or("destination-max-smtp-out")?;
        let limit = config.global.total_max_smtp_out as usize;
        let hint = path.wrapping_mul(64);
        held.slot = held.asking(key("total", ""), |shard| shard.ledger.take(Class::SmtpOut, shard.number, limit, hint));
        if held.slot.is_none() {
            return Err("total-max-smtp-out");
        }
        if let Some(t) = &wants.of_twins {
            take_all(&held.shard.ledger, &t.connects)?;
        }
        Ok(held)
    }

    /// Takes what a connection from one source address of a destination that is spread needs.
    ///
    /// # Errors
    /// The name of the directive that has none left.
    pub fn take_source(&mut self, p: &SourceWants) -> Result<(), &'static str> {
        self.place(p.connections, p.max_smtp_out).ok_or("source-ip-max-smtp-out")?;
        take_all(&self.shard.ledger, &[(p.connects, p.max_connect_rate, "source-ip-max-connect-rate")])
    }

    /// Which of the places of `max-smtp-out` it has, where the destination is spread.
    pub fn number_under(&self, key: u64) -> Option<u32> {
        self.places.iter().find(|(_, k)| *k == key).map(|(p, _)| p.number)
    }

    /// Takes what a connection to one host needs: `mx-connection-limit` and
    /// `ip-connection-limit`. What was taken for a host before is given back.
    ///
    /// # Errors
    /// The name of the directive that has none left.
    pub fn take_host(
        &mut self,
        config: &Config,
        host: &str,
        peer: SocketAddr,
        source: &str,
        general: usize,
    ) -> Result<(), &'static str> {
        while self.places.len() > general {
            self.places.pop().into_iter().for_each(|(p, _)| self.shard.ledger.give_place(p));
        }
        let g = &config.global;
        let name = normalise_domain(host).unwrap_or_else(|_| host.to_lowercase());
        let of_mx = g.mx_connection_limits.iter().find(|(p, _)| ipc::layers::pattern_matches(p, &name));
        if let Some((_, limit)) = of_mx
            && self.place(key("mx", &format!("{name} {source}")), *limit).is_none()
        {
            return Err("mx-connection-limit");
        }
        let of_ip = g.ip_connection_limits.iter().find(|(n, _)| n.contains(peer.ip()));
        let has_room = of_ip.is_none_or(|(_, limit)| self.place(key("ip", &peer.ip().to_string()), *limit).is_some());
        if has_room { Ok(()) } else { Err("ip-connection-limit") }
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
    fn place(&mut self, key: u64, limit: u64) -> Option<()> {
        if limit > 0 {
            let hint = crate::clock::now_ns() as u64;
            let place = self.asking(key, |shard| shard.ledger.take_place(key, shard.number, limit, hint))?;
            self.places.push((place, key));
        }
        Some(())
    }

    /// Takes what `take` gives, unless somebody else asked for it with a better right; what is
    /// not to be had is asked for.
    fn asking<T>(&self, key: u64, take: impl FnOnce(&Shard) -> Option<T>) -> Option<T> {
        let (shard, now) = (&self.shard, crate::clock::now_ms());
        let has = shard.open.held(self.path, key);
        let ask = Ask { key, priority: self.priority, shard: shard.number, path: self.path as u32, has };
        let taken = if shard.ledger.others_first(&ask, now) { None } else { take(shard) };
        match taken {
            Some(_) => shard.ledger.withdraw(&ask, now),
            None => {
                shard.ledger.request(&ask, now);
                super::interruption::answer(shard);
            }
        }
        taken
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let ledger = &self.shard.ledger;
        self.slot.take().into_iter().for_each(|s| ledger.give(s));
        self.places.drain(..).for_each(|(p, _)| ledger.give_place(p));
    }
}
