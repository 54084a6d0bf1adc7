//! The evaluation of records (RFC 7208 section 4).

use std::net::IpAddr;

use super::SpfResult;
use super::expansion::{Text, Values};
use super::names::{NAMES_MAX, Names, confirmed};
use super::record::{self, Mechanism, Prefixes, Qualifier, Record};

/// Terms that ask DNS, in one check (RFC 7208 section 4.6.4).
const LOOKUPS_MAX: u32 = 10;
/// Records that lead to each other: no more than terms that ask DNS.
const DEPTH_MAX: u32 = LOOKUPS_MAX;
/// Steps of a check that are told, bytes.
const TRACE_MAX: usize = 2000;

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The client.
    pub ip: IpAddr,
    /// Its EHLO name.
    pub hello: &'a str,
    /// The envelope's sender; empty for the null sender, where the EHLO name counts (section 2.4).
    pub sender: &'a str,
    /// Answers of DNS without records that are put up with (`check-spf-inbound-max-void-lookups`).
    pub voids_max: u32,
}

/// What came of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// The result.
    pub result: SpfResult,
    /// The domain that was checked.
    pub domain: String,
    /// Why, for people; what DNS was asked, and what it said.
    pub trace: Vec<String>,
}

/// Checks whether an address may send for a domain.
pub async fn check(names: &impl Names, asked: &Asked<'_>) -> Checked {
    let ip = asked.ip.to_canonical();
    let sender = match asked.sender.rsplit_once('@') {
        Some(("", domain)) => format!("postmaster@{domain}"),
        Some(_) => asked.sender.to_owned(),
        None => format!("postmaster@{}", asked.hello),
    };
    let domain = sender.rsplit_once('@').map_or("", |(_, d)| d);
    let domain = ipc::message::normalise_domain(domain).unwrap_or_default();
    let mut c = Check {
        names,
        ip,
        hello: asked.hello,
        sender: &sender,
        voids_max: asked.voids_max,
        lookups: 0,
        voids: 0,
        name: None,
        trace: Vec::new(),
        told: 0,
    };
    let is_domain = domain.contains('.') && !domain.starts_with('[');
    let result = if is_domain { c.host(&domain, 0).await } else { SpfResult::None };
    let trace = c.trace;
    Checked { result, domain, trace }
}

struct Check<'a, N> {
    names: &'a N,
    ip: IpAddr,
    hello: &'a str,
    sender: &'a str,
    voids_max: u32,
    lookups: u32,
    voids: u32,
    /// The client's name, once it was looked for.
    name: Option<String>,
    trace: Vec<String>,
    told: usize,
}

/// A check that ends at once.
struct Ends(SpfResult);

impl<N: Names> Check<'_, N> {
    fn tell(&mut self, what: impl FnOnce() -> String) {
        if self.told < TRACE_MAX {
            let what = what();
            self.told += what.len();
            self.trace.push(what);
        }
    }

    /// `check_host()`
    async fn host(&mut self, domain: &str, depth: u32) -> SpfResult {
        let texts = match self.names.texts(domain).await {
            Ok(texts) => texts,
            Err(why) => {
                self.tell(|| format!("{domain} TXT: {}", why.0));
                return SpfResult::TempError;
            }
        };
        let mut records = texts.iter().filter(|t| record::is_record(t));
        let (first, more) = (records.next(), records.next());
        let Some(text) = first else {
            self.tell(|| format!("{domain} TXT: no record"));
            return SpfResult::None;
        };
        self.tell(|| format!("{domain} TXT: {}", ipc::text::clean_bytes(text, 500)));
        let Some(record) = record::read(text).filter(|_| more.is_none()) else {
            self.tell(|| format!("{domain}: {}", if more.is_some() { "two records" } else { "cannot be read" }));
            return SpfResult::PermError;
        };
        match Box::pin(self.evaluate(&record, domain, depth)).await {
            Ok(result) | Err(Ends(result)) => result,
        }
    }

    async fn evaluate(&mut self, record: &Record, domain: &str, depth: u32) -> Result<SpfResult, Ends> {
        for d in &record.directives {
            if self.matches(&d.mechanism, domain, depth).await? {
                return Ok(match d.qualifier {
                    Qualifier::Pass => SpfResult::Pass,
                    Qualifier::Fail => SpfResult::Fail,
                    Qualifier::SoftFail => SpfResult::SoftFail,
                    Qualifier::Neutral => SpfResult::Neutral,
                });
            }
        }
        let Some(redirect) = &record.redirect else { return Ok(SpfResult::Neutral) };
        self.counts_lookup()?;
        let target = self.expanded(redirect, domain).await;
        match self.of_other(&target, depth).await? {
            SpfResult::None => Ok(SpfResult::PermError),
            result => Ok(result),
        }
    }

    /// The result of another domain's record.
    async fn of_other(&mut self, domain: &str, depth: u32) -> Result<SpfResult, Ends> {
        match ipc::message::normalise_domain(domain) {
            Ok(domain) if depth < DEPTH_MAX => Ok(self.host(&domain, depth + 1).await),
            _ => Err(Ends(SpfResult::PermError)),
        }
    }

    async fn matches(&mut self, m: &Mechanism, domain: &str, depth: u32) -> Result<bool, Ends> {
        match m {
            Mechanism::All => Ok(true),
            Mechanism::Ip4(base, bits) => Ok(is_within(self.ip, IpAddr::V4(*base), (*bits, 0))),
            Mechanism::Ip6(base, bits) => Ok(is_within(self.ip, IpAddr::V6(*base), (0, *bits))),
            Mechanism::Include(target) => {
                self.counts_lookup()?;
                let target = self.expanded(target, domain).await;
                match self.of_other(&target, depth).await? {
                    SpfResult::Pass => Ok(true),
                    SpfResult::Fail | SpfResult::SoftFail | SpfResult::Neutral => Ok(false),
                    SpfResult::TempError => Err(Ends(SpfResult::TempError)),
                    SpfResult::PermError | SpfResult::None => Err(Ends(SpfResult::PermError)),
                }
            }
            Mechanism::A(target, prefixes) => {
                self.counts_lookup()?;
                let name = self.target(target.as_ref(), domain).await;
                self.has_address(&name, *prefixes).await
            }
            Mechanism::Mx(target, prefixes) => {
                self.counts_lookup()?;
                let name = self.target(target.as_ref(), domain).await;
                let Some(asked) = as_name(&name) else { return Ok(false) };
                let hosts = self.names.mail_hosts(&asked).await;
                let hosts = self.said(&name, "MX", hosts)?;
                self.counts_void(hosts.is_empty())?;
                if hosts.len() > NAMES_MAX {
                    return Err(Ends(SpfResult::PermError));
                }
                for host in hosts {
                    if self.has_address(&host, *prefixes).await? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Mechanism::Ptr(target) => {
                self.counts_lookup()?;
                let name = self.target(target.as_ref(), domain).await.to_ascii_lowercase();
                let confirmed = confirmed(self.names, self.ip).await.unwrap_or_default();
                let below = |n: &String| n.strip_suffix(&name).is_some_and(|l| l.is_empty() || l.ends_with('.'));
                Ok(confirmed.iter().map(|n| n.to_ascii_lowercase()).any(|n| below(&n)))
            }
            Mechanism::Exists(target) => {
                self.counts_lookup()?;
                let name = self.expanded(target, domain).await;
                let Some(asked) = as_name(&name) else { return Ok(false) };
                // Always IPv4, whatever the client's address is (section 5.7).
                let found = self.names.addresses(&asked, false).await;
                let found = self.said(&name, "A", found)?;
                self.counts_void(found.is_empty())?;
                Ok(!found.is_empty())
            }
        }
    }

    async fn has_address(&mut self, name: &str, prefixes: Prefixes) -> Result<bool, Ends> {
        let Some(asked) = as_name(name) else { return Ok(false) };
        let v6 = self.ip.is_ipv6();
        let found = self.names.addresses(&asked, v6).await;
        let found = self.said(name, if v6 { "AAAA" } else { "A" }, found)?;
        self.counts_void(found.is_empty())?;
        Ok(found.into_iter().any(|a| is_within(self.ip, a, prefixes)))
    }

    /// What DNS says, which ends the check where it does not answer.
    fn said<T: std::fmt::Debug>(
        &mut self,
        name: &str,
        kind: &str,
        said: Result<Vec<T>, super::names::Unanswered>,
    ) -> Result<Vec<T>, Ends> {
        match said {
            Ok(all) => {
                self.tell(|| format!("{name} {kind}: {:?}", &all[..all.len().min(NAMES_MAX + 1)]));
                Ok(all)
            }
            Err(why) => {
                self.tell(|| format!("{name} {kind}: {}", why.0));
                Err(Ends(SpfResult::TempError))
            }
        }
    }

    fn counts_lookup(&mut self) -> Result<(), Ends> {
        self.lookups += 1;
        if self.lookups <= LOOKUPS_MAX {
            return Ok(());
        }
        self.tell(|| format!("more than {LOOKUPS_MAX} terms that ask DNS"));
        Err(Ends(SpfResult::PermError))
    }

    fn counts_void(&mut self, is_void: bool) -> Result<(), Ends> {
        self.voids += u32::from(is_void);
        if self.voids <= self.voids_max {
            return Ok(());
        }
        let most = self.voids_max;
        self.tell(|| format!("more than {most} answers of DNS without records"));
        Err(Ends(SpfResult::PermError))
    }

    async fn target(&mut self, target: Option<&Text>, domain: &str) -> String {
        match target {
            Some(t) => self.expanded(t, domain).await,
            None => domain.to_owned(),
        }
    }

    async fn expanded(&mut self, text: &Text, domain: &str) -> String {
        if text.needs_name() && self.name.is_none() {
            let all = confirmed(self.names, self.ip).await.unwrap_or_default();
            // The domain's own, else one below it, else any (section 7.3).
            let is_below = |n: &&String| n.strip_suffix(domain).is_some_and(|l| l.ends_with('.'));
            let best = all.iter().find(|n| *n == domain).or_else(|| all.iter().find(is_below)).or(all.first());
            self.name = Some(best.map_or("unknown", String::as_str).to_owned());
        }
        let name = self.name.as_deref().unwrap_or("unknown");
        text.expanded(&Values { sender: self.sender, domain, ip: self.ip, hello: self.hello, name })
    }
}

/// A name that DNS can be asked for; `None` of what it cannot have.
fn as_name(name: &str) -> Option<String> {
    let fits = !name.is_empty() && name.len() <= 253 && name.split('.').all(|l| (1..=63).contains(&l.len()));
    fits.then(|| name.to_ascii_lowercase())
}

/// Whether both have the same prefix, of IPv4 or IPv6 bits.
fn is_within(ip: IpAddr, base: IpAddr, (v4, v6): Prefixes) -> bool {
    match (ip, base) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(v4.min(32))).unwrap_or(0);
            (a.to_bits() ^ b.to_bits()) & mask == 0
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(v6.min(128))).unwrap_or(0);
            (a.to_bits() ^ b.to_bits()) & mask == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::names::Unanswered;
    use super::*;

    /// What DNS knows: by `TYPE NAME` its data with blanks between them; `?` for no answer.
    struct Zone(BTreeMap<String, String>);

    impl Zone {
        fn of(lines: &[(&str, &str)]) -> Zone {
            Zone(lines.iter().map(|(key, data)| ((*key).to_owned(), (*data).to_owned())).collect())
        }

        fn data(&self, kind: &str, name: &str) -> Result<&str, Unanswered> {
            match self.0.get(&format!("{kind} {name}")).map_or("", String::as_str) {
                "?" => Err(Unanswered("no answer".into())),
                data => Ok(data),
            }
        }
    }

    impl Names for Zone {
        async fn texts(&self, name: &str) -> Result<Vec<Vec<u8>>, Unanswered> {
            Ok(self.data("TXT", name)?.split('|').filter(|t| !t.is_empty()).map(|t| t.as_bytes().to_vec()).collect())
        }

        async fn addresses(&self, name: &str, v6: bool) -> Result<Vec<IpAddr>, Unanswered> {
            let data = self.data(if v6 { "AAAA" } else { "A" }, name)?;
            Ok(data.split_whitespace().filter_map(|a| a.parse().ok()).collect())
        }

        async fn mail_hosts(&self, name: &str) -> Result<Vec<String>, Unanswered> {
            Ok(self.data("MX", name)?.split_whitespace().map(str::to_owned).collect())
        }

        async fn names_of(&self, ip: IpAddr) -> Result<Vec<String>, Unanswered> {
            Ok(self.data("PTR", &ip.to_string())?.split_whitespace().map(str::to_owned).collect())
        }
    }

    async fn says(zone: &Zone, ip: &str, sender: &str) -> &'static str {
        let Ok(ip) = ip.parse() else { return "no address" };
        check(zone, &Asked { ip, hello: "mail.h.test", sender, voids_max: 2 }).await.result.word()
    }

    #[tokio::test]
    async fn each_mechanism_matches_what_it_names() {
        let zone = Zone::of(&[
            ("TXT a.test", "v=spf1 a -all"),
            ("A a.test", "192.0.2.1"),
            ("AAAA a.test", "2001:db8::1"),
            ("TXT net.test", "other|V=SPF1 ip4:192.0.2.0/28 ip6:2001:db8::/32 a:a.test/24//64 ?all"),
            ("TXT mx.test", "v=spf1 mx ~all"),
            ("MX mx.test", "none.test a.test"),
            ("TXT ptr.test", "v=spf1 ptr:a.test -all"),
            ("PTR 192.0.2.1", "forged.a.test x.a.test"),
            ("A x.a.test", "192.0.2.1"),
            ("TXT exists.test", "v=spf1 exists:%{ir}.%{l1r-}.list.test -all"),
            ("A 1.2.0.192.news.list.test", "127.0.0.2"),
            ("TXT include.test", "v=spf1 include:a.test -include:net.test redirect=mx.test"),
            ("TXT redirect.test", "v=spf1 redirect=a.test"),
            ("TXT mail.h.test", "v=spf1 a:a.test -all"),
        ]);
        for (ip, sender, result) in [
            ("192.0.2.1", "s@a.test", "pass"),
            ("::ffff:192.0.2.1", "s@a.test", "pass"),
            ("2001:db8::1", "s@a.test", "pass"),
            ("192.0.2.2", "s@a.test", "fail"),
            ("192.0.2.15", "s@net.test", "pass"),
            ("192.0.2.200", "s@net.test", "pass"),
            ("198.51.100.1", "s@net.test", "neutral"),
            ("2001:db8:ffff::1", "s@net.test", "pass"),
            ("192.0.2.1", "s@mx.test", "pass"),
            ("192.0.2.9", "s@mx.test", "softfail"),
            ("192.0.2.1", "s@ptr.test", "pass"),
            ("192.0.2.1", "all-news@exists.test", "fail"),
            ("192.0.2.1", "news-all@exists.test", "pass"),
            ("192.0.2.1", "s@include.test", "pass"),
            ("192.0.2.200", "s@include.test", "fail"),
            ("198.51.100.1", "s@include.test", "softfail"),
            ("192.0.2.1", "s@redirect.test", "pass"),
            ("192.0.2.1", "", "pass"),
            ("192.0.2.2", "", "fail"),
            ("192.0.2.1", "s@nothing.test", "none"),
            ("192.0.2.1", "s@[192.0.2.1]", "none"),
            ("192.0.2.1", "s@host", "none"),
        ] {
            assert_eq!(says(&zone, ip, sender).await, result, "{ip} {sender}");
        }
    }

    #[tokio::test]
    async fn what_a_check_may_ask_has_bounds() {
        let chain = |n: usize| (format!("TXT c{n}.test"), format!("v=spf1 include:c{}.test -all", n + 1));
        let mut zone = Zone((0..40).map(chain).collect());
        for (key, data) in [
            ("TXT loop.test", "v=spf1 redirect=loop.test"),
            ("TXT wide.test", "v=spf1 a:1.t a:1.t a:1.t a:1.t a:1.t a:1.t a:1.t a:1.t a:1.t a:1.t a:1.t +all"),
            ("A 1.t", "203.0.113.1"),
            ("TXT voids.test", "v=spf1 a:2.t a:3.t a:4.t +all"),
            ("TXT fewvoids.test", "v=spf1 a:2.t a:3.t +all"),
            ("TXT hosts.test", "v=spf1 mx +all"),
            ("MX hosts.test", "a b c d e f g h i j k"),
            ("TXT away.test", "?"),
            ("TXT behind.test", "v=spf1 a:away.test +all"),
            ("A away.test", "?"),
            ("TXT twice.test", "v=spf1 +all|v=spf1 -all"),
        ] {
            zone.0.insert(key.into(), data.into());
        }
        for (sender, result) in [
            ("s@c29.test", "permerror"),
            ("s@c0.test", "permerror"),
            ("s@loop.test", "permerror"),
            ("s@wide.test", "permerror"),
            ("s@voids.test", "permerror"),
            ("s@fewvoids.test", "pass"),
            ("s@hosts.test", "permerror"),
            ("s@away.test", "temperror"),
            ("s@behind.test", "temperror"),
            ("s@twice.test", "permerror"),
        ] {
            assert_eq!(says(&zone, "192.0.2.1", sender).await, result, "{sender}");
        }
        let asked = Asked { ip: IpAddr::from([192, 0, 2, 1]), hello: "h", sender: "s@c0.test", voids_max: 2 };
        let checked = check(&zone, &asked).await;
        assert!(checked.trace.last().is_some_and(|l| l.contains("more than 10 terms")), "{:?}", checked.trace);
    }

    #[tokio::test]
    async fn a_text_of_many_macros_is_expanded_as_far_as_a_name_goes() {
        let many = format!("v=spf1 redirect={}.m.test", "%{S}".repeat(16_000));
        let zone = Zone::of(&[("TXT m.test", &many)]);
        // Expanded whole it takes gigabytes of small pieces.
        let sender = format!("{}@m.test", "!".repeat(900));
        for _ in 0..100 {
            assert_eq!(says(&zone, "192.0.2.1", &sender).await, "permerror");
        }
    }

    #[tokio::test]
    async fn a_record_that_is_wrong_anywhere_is_wrong() {
        for wrong in [
            "-all a:",
            "+all ip4:192.0.2.0/33",
            "ip4:192.0.2",
            "ip6:::1/129",
            "a//",
            "a/-1",
            "a/024",
            "include",
            "include:",
            "all:x",
            "foo -all",
            "exists",
            "exp=a.test exp=b.test",
            "redirect=a.test redirect=b.test",
            "a:%{x}.test",
            "a:%{d0}.test",
            "a:%",
            "a:b",
            "a:b.123",
            "=x",
            "1=x",
            "ptr/24",
            "a:b.test%{d.test",
            "include:c%{c}.test",
        ] {
            let zone = Zone::of(&[("TXT w.test", &format!("v=spf1 +all {wrong}"))]);
            assert_eq!(says(&zone, "192.0.2.1", "s@w.test").await, "permerror", "{wrong}");
        }
        for fine in [
            "unknown=%{d}",
            "exp=x.%{d}",
            "MX/24//64 A:b.test",
            "  ip4:192.0.2.1 ",
            "ra=x rr=all rp=1",
            "a:b.c-d",
            "a:%%.%_.%-.b.test",
        ] {
            let zone = Zone::of(&[("TXT w.test", &format!("v=spf1 {fine} +all"))]);
            assert_eq!(says(&zone, "192.0.2.1", "s@w.test").await, "pass", "{fine}");
        }
        assert_eq!(says(&Zone::of(&[("TXT w.test", "v=spf10 +all")]), "192.0.2.1", "s@w.test").await, "none");
    }
}
