//! Limits over all shards that a connection is under: those of its virtual MTA, and those of
//! the destination over all virtual MTAs.

use std::net::SocketAddr;
use std::rc::Rc;

use ipc::ledger::requests::Ask;
use ipc::ledger::shared_limits::key;
use ipc::ledger::{Class, Ledger, Place, Slot};
use ipc::message::normalise_domain;
use ipc::rules::{DomainRules, Rate};
use ipc::snapshot::ArchivedVirtualMta;

use crate::config::Config;
use crate::schedule::PathId;
use crate::schedule::rate::Pace;
use crate::shard::Shard;

/// A rate with the name that it is counted under.
#[derive(Debug, Clone, Copy)]
struct Named {
    key: u64,
    rate: Rate,
}

impl Named {
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
    volume: Option<Named>,
}

impl SharedRates {
    /// Those of a path.
    pub fn of(rules: &DomainRules, vmta: Option<&ArchivedVirtualMta>, destination: &str) -> SharedRates {
        let rate = |r: (u64, u64)| Rate { count: r.0, per: std::time::Duration::from_millis(r.1) };
        let mut all = SharedRates::default();
        if let Some(v) = vmta {
            let msg = rate((v.msg_rate.0.to_native(), v.msg_rate.1.to_native()));
            let volume = rate((v.data_volume_rate.0.to_native(), v.data_volume_rate.1.to_native()));
            let name = v.name.as_str();
            all.recipients.extend((msg.count > 0).then(|| Named { key: key("vmta rate", name), rate: msg }));
            all.volume = (volume.count > 0).then(|| Named { key: key("vmta volume", name), rate: volume });
        }
        let rate = rules.destination_max_msg_rate;
        let named = || Named { key: key("destination rate", destination), rate };
        all.recipients.extend((rate.count > 0).then(named));
        all
    }

    /// How many of `want` recipients of a message of `bytes` may be attempted now, and when one
    /// may be if that is none (Unix nanoseconds).
    pub fn grant(&self, ledger: &Ledger, want: u64, bytes: u64, now_ns: i64) -> (u64, i64) {
        if let Some((false, at)) = self.volume.map(|v| v.ready(ledger, now_ns)) {
            return (0, at);
        }
        let mut granted = want;
        for (i, r) in self.recipients.iter().enumerate() {
            let (n, at) = r.take(ledger, granted, now_ns);
            if n < granted {
                self.recipients[..i].iter().for_each(|r| r.give_back(ledger, granted - n));
                granted = n;
            }
            if granted == 0 {
                return (0, at);
            }
        }
        self.volume.iter().for_each(|v| v.count(ledger, bytes, now_ns));
        (granted, now_ns)
    }

    /// The content of a message was not delivered after all.
    pub fn not_transferred(&self, ledger: &Ledger, bytes: u64) {
        self.volume.iter().for_each(|v| v.give_back(ledger, bytes));
    }
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
        rules: &DomainRules,
        vmta: Option<&ArchivedVirtualMta>,
        destination: &str,
        path: PathId,
    ) -> Result<Held, &'static str> {
        let priority = rules.queue_priority.min(100) as u8;
        let shard = Rc::clone(shard);
        let mut held = Held { shard, path, priority, slot: None, places: Vec::new() };
        if let Some(v) = vmta {
            held.place(key("vmta", v.name.as_str()), v.max_smtp_out.to_native())
                .ok_or("max-smtp-out of the virtual MTA")?;
        }
        held.place(key("destination", destination), rules.destination_max_smtp_out)
            .ok_or("destination-max-smtp-out")?;
        let limit = config.global.total_max_smtp_out as usize;
        let hint = path.wrapping_mul(64);
        held.slot = held.asking(key("total", ""), |shard| shard.ledger.take(Class::SmtpOut, shard.number, limit, hint));
        if held.slot.is_none() { Err("total-max-smtp-out") } else { Ok(held) }
    }

    /// Takes what a connection to one host needs: `mx-connection-limit` and
    /// `ip-connection-limit`; answers whether there was room. What was taken for a host before
    /// is given back.
    pub fn take_host(&mut self, config: &Config, host: &str, peer: SocketAddr, source: &str, general: usize) -> bool {
        while self.places.len() > general {
            self.places.pop().into_iter().for_each(|(p, _)| self.shard.ledger.give_place(p));
        }
        let g = &config.global;
        let name = normalise_domain(host).unwrap_or_else(|_| host.to_lowercase());
        let of_mx = g.mx_connection_limits.iter().find(|(p, _)| ipc::layers::pattern_matches(p, &name));
        if let Some((_, limit)) = of_mx
            && self.place(key("mx", &format!("{name} {source}")), *limit).is_none()
        {
            return false;
        }
        let of_ip = g.ip_connection_limits.iter().find(|(n, _)| n.contains(peer.ip()));
        of_ip.is_none_or(|(_, limit)| self.place(key("ip", &peer.ip().to_string()), *limit).is_some())
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
