//! Values of several parts: addresses, networks, keys, lists of names, rules of pattern lists.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipc::message::{destination_of, is_plain_domain, normalise_domain};
use ipc::network::Network;

use super::pattern::{pattern, regex};
use super::problem::Problem;
use super::value::{items, list, number};

/// Categories of refusals that are about the sender, the message or the route: no reason not to write to
/// the recipient again.
const NOT_OF_MAILBOXES: &[&str] = &[
    "spam-related",
    "virus-related",
    "content-related",
    "authentication-failure",
    "invalid-sender",
    "relaying-issues",
    "routing-errors",
    "protocol-errors",
    "bad-configuration",
    "bad-connection",
    "no-answer-from-host",
    "message-expired",
    "suppressed",
    "other",
];

/// A category that may put a recipient on a suppression list.
pub(super) fn suppressing_category(name: &str) -> Result<(), Problem> {
    if NOT_OF_MAILBOXES.iter().any(|c| c.eq_ignore_ascii_case(name)) {
        let p = Problem::other(format!("refusals of category {name} are not about the mailbox: they suppress nobody"));
        return Err(
            p.help("such categories are bad-mailbox, inactive-mailbox, quota-issues, or those of your own rules")
        );
    }
    Ok(())
}

pub(super) fn two<'a>(text: &'a str, form: &str) -> Result<(&'a str, &'a str), Problem> {
    let words: Vec<&str> = text.split_whitespace().collect();
    match words[..] {
        [a, b] => Ok((a, b)),
        [] => Err(Problem::other("argument missing")),
        _ => Err(Problem::expected(form, text)),
    }
}

/// An IP address.
///
/// # Errors
/// [`Problem`]
pub fn ip(t: &str) -> Result<IpAddr, Problem> {
    let literal = t.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    let ip = t.parse().ok().or_else(|| literal.and_then(|l| ipc::message::parse_literal(l).or_else(|| l.parse().ok())));
    ip.ok_or_else(|| Problem::expected("an IP address", t))
}

/// `IP` or `IP:PORT`; port 53 where none is given.
///
/// # Errors
/// [`Problem`]
pub fn name_server(t: &str) -> Result<SocketAddr, Problem> {
    if let Ok(a) = t.parse::<SocketAddr>() {
        return Ok(a);
    }
    t.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)).map_err(|_| Problem::expected("IP or IP:PORT", t))
}

/// File, and password of its key, of `FILE [PASSWORD]`; each is empty where none is given.
pub fn certificate(text: &str) -> (&str, &str) {
    let (path, password) = text.trim().split_once(char::is_whitespace).unwrap_or((text.trim(), ""));
    let password = password.trim_start();
    (path, password.strip_prefix('"').and_then(|p| p.strip_suffix('"')).unwrap_or(password))
}

/// What a listener is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    /// One address, or all of a family.
    On(SocketAddr),
    /// The addresses of this machine that lie in a network, each with this port.
    Within(Network, u16),
}

/// Addresses and named source of `IP:PORT [source=NAME]`; `0/0:25` is every IPv4 address.
///
/// # Errors
/// [`Problem`]
pub fn listener(text: &str) -> Result<(Listen, Option<&str>), Problem> {
    let mut words = text.split_whitespace();
    let address = words.next().ok_or_else(|| Problem::other("argument missing"))?;
    let (ip, port) = address.rsplit_once(':').ok_or_else(|| Problem::expected("IP:PORT", address))?;
    let port = port.parse::<u16>().ok().filter(|p| *p > 0);
    let port = port.ok_or_else(|| Problem::expected("a port from 1 to 65535", address).at(address, text))?;
    let listen = listen(ip, port).ok_or_else(|| {
        Problem::expected("IP:PORT or NETWORK:PORT", address)
            .at(address, text)
            .help("an IPv6 address or network stands in brackets")
    })?;
    let mut source = None;
    for w in words {
        match w.split_once('=') {
            Some((k, name)) if k.eq_ignore_ascii_case("source") && !name.is_empty() => source = Some(name),
            _ => return Err(Problem::expected("source=NAME", w).at(w, text)),
        }
    }
    Ok((listen, source))
}

fn listen(place: &str, port: u16) -> Option<Listen> {
    let everybody = |ip: IpAddr| Some(Listen::On(SocketAddr::new(ip, port)));
    if matches!(place, "0/0" | "*") {
        return everybody(Ipv4Addr::UNSPECIFIED.into());
    }
    let is_bracketed = place.starts_with('[') && place.ends_with(']');
    match place.contains('/') && is_bracketed == place.contains(':') {
        false => ip_in_brackets(place).and_then(everybody),
        true => match ipc::network::parse(place)? {
            n if n.bits == 128 => everybody(IpAddr::from(n.base).to_canonical()),
            n if n.is_everybody() && n.bits == 0 => everybody(Ipv6Addr::UNSPECIFIED.into()),
            n if n.is_everybody() => everybody(Ipv4Addr::UNSPECIFIED.into()),
            n => Some(Listen::Within(n, port)),
        },
    }
}

fn ip_in_brackets(t: &str) -> Option<IpAddr> {
    match t.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
        Some(v6) => {
            let v6 = v6.get(..5).filter(|p| p.eq_ignore_ascii_case("ipv6:")).map_or(v6, |_| &v6[5..]);
            v6.parse::<Ipv6Addr>().ok().map(IpAddr::from)
        }
        None => t.parse::<Ipv4Addr>().ok().map(IpAddr::from),
    }
}

/// A network.
///
/// # Errors
/// [`Problem`]
pub fn network(t: &str) -> Result<(), Problem> {
    if ipc::network::parse(t).is_some() {
        return Ok(());
    }
    let long = t.split_once('/').is_some_and(|(ip, bits)| {
        let width = if ip.contains(':') { 128 } else { 32 };
        bits.parse::<u32>().is_ok_and(|b| b > width)
    });
    let problem = Problem::expected("an IP address or a network such as 10.0.0.0/8", t);
    Err(if long { problem.help("the prefix length is out of range: at most 32, for IPv6 128") } else { problem })
}

/// Networks of `from NETWORK[,NETWORK…]`.
pub(super) fn proxies(text: &str) -> Result<Vec<String>, Problem> {
    let networks = match text.split_once(char::is_whitespace) {
        Some((from, rest)) if from.eq_ignore_ascii_case("from") => list(rest),
        _ => return Err(Problem::expected("from IP|NETWORK[,IP|NETWORK…]", text)),
    };
    networks.iter().try_for_each(|n| network(n).map_err(|p| p.at(n, text)))?;
    Ok(networks)
}

pub(super) fn email(a: &str, of: &str) -> Result<(), Problem> {
    let at = a.rsplit_once('@').filter(|(local, d)| !local.is_empty() && normalise_domain(d).is_ok());
    match at {
        Some(_) if !a.contains(|c: char| c.is_whitespace() || c == '<' || c == '>') => Ok(()),
        _ => Err(Problem::expected("an e-mail address", a).at(a, of)),
    }
}

/// A domain name, in the spelling that queues use.
///
/// # Errors
/// [`Problem`]
pub fn domain(t: &str) -> Result<String, Problem> {
    if ip(t).is_ok() {
        return Err(Problem::expected("a domain name", t).help("an IP address is not one"));
    }
    // Recipients' domains may have odd characters. The domains that an operator writes in a configuration have none, so here one is a mistake.
    normalise_domain(t).ok().filter(|d| is_plain_domain(d)).ok_or_else(|| Problem::expected("a domain name", t))
}

/// A `domain-key` whose key lies in HashiCorp Vault: `SELECTOR,DOMAIN,{vault}:PATH:KEY`.
pub fn is_in_vault(domain_key: &str) -> bool {
    domain_key.rsplit(',').next().is_some_and(|place| place.trim_start().starts_with("{vault}:"))
}

/// `SELECTOR,DOMAIN,FILE`; of a domain with macros what they stand for is checked where it is expanded. Of a key that lies in
/// Vault the selector and the domain may be those of each message: `{selector}`, `{domain}`.
///
/// # Errors
/// [`Problem`]
pub fn domain_key(text: &str) -> Result<(&str, &str, &str), Problem> {
    let parts: Vec<&str> = text.split(',').map(str::trim).collect();
    let [selector, key_domain, path] = parts[..] else {
        return Err(Problem::other(format!("SELECTOR,DOMAIN,FILE expected, got {} parts", parts.len())));
    };
    let is_in_vault = is_in_vault(text);
    if key_domain != "*" && !key_domain.contains('$') && !(is_in_vault && key_domain == "{domain}") {
        domain(key_domain).map_err(|p| p.at(key_domain, text))?;
    }
    if is_in_vault && selector == "{selector}" {
        return Ok((selector, key_domain, path));
    }
    if selector.is_empty() || !selector.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')) {
        return Err(Problem::expected("a selector", selector).at(selector, text));
    }
    Ok((selector, key_domain, path))
}

pub(super) fn http_access(text: &str) -> Result<(), Problem> {
    let (cidr, level) = two(text, "NETWORK LEVEL")?;
    network(cidr).map_err(|p| p.at(cidr, text))?;
    match level.to_ascii_lowercase().as_str() {
        "none" | "monitor" | "monitor,deny-logs" | "operator" | "admin" => Ok(()),
        _ => Err(Problem::expected("none, monitor, operator or admin", level).at(level, text)),
    }
}

pub(super) fn api_key(t: &str) -> Result<(), Problem> {
    let fine = (32..=128).contains(&t.len()) && t.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    // The key itself is a secret and not repeated.
    if fine { Ok(()) } else { Err(Problem::other("expected 32 to 128 letters, digits and underscores")) }
}

pub(super) fn references(kinds: &str, name: &str) -> Vec<(&'static str, String)> {
    let kind = match kinds {
        "virtual-mta" => "virtual-mta",
        "virtual-mta-or-pool" | "default-virtual-mta" => "virtual-mta or pool",
        "pattern-list" => "pattern-list",
        "smtp-pattern-list" => "smtp-pattern-list",
        "source" => "source",
        "source-group" => "source-group",
        "rewrite-list" => "rewrite-list",
        "address-list" => "address-list",
        "proxy" => "proxy",
        "profile" => "profile",
        _ => return Vec::new(),
    };
    let special = (kinds == "default-virtual-mta" && name.eq_ignore_ascii_case("by-smtp-source-ip"))
        || (kinds == "proxy" && name.eq_ignore_ascii_case("none"));
    if special { Vec::new() } else { vec![(kind, name.to_owned())] }
}

/// Hosts in levels, each host as workers read it: addresses in brackets, names without.
pub(super) fn hosts(text: &str) -> Result<String, Problem> {
    if text.split([';', ',']).all(|h| h.trim().is_empty()) {
        return Err(Problem::expected("HOST, [IP], or lookup-mx:DOMAIN, each with :PORT if wanted", text));
    }
    let level = |level: &str| -> Result<Vec<String>, Problem> { items(level).map(|h| host(h, text)).collect() };
    let levels: Vec<String> =
        text.split(';').map(|l| level(l).map(|hosts| hosts.join(","))).collect::<Result<_, _>>()?;
    Ok(levels.join(";"))
}

fn host(host: &str, of: &str) -> Result<String, Problem> {
    let bad = |why: &str| Problem::expected(why, host).at(host, of);
    if let Some(d) = host.strip_prefix("lookup-mx:") {
        domain(d).map_err(|_| bad("lookup-mx:DOMAIN"))?;
        return Ok(host.to_owned());
    }
    // An IPv6 address without brackets has no port.
    let is_ipv6 = host.parse::<Ipv6Addr>().is_ok();
    let (name, port) = match host.rsplit_once(':').filter(|(n, _)| !is_ipv6 && (!n.contains('[') || n.ends_with(']'))) {
        Some((n, p)) => (n, Some(p)),
        None => (host, None),
    };
    if port.is_some_and(|p| !p.parse::<u16>().is_ok_and(|p| p > 0)) {
        return Err(bad("a port from 1 to 65535"));
    }
    let inner = name.strip_prefix('[').and_then(|n| n.strip_suffix(']'));
    let literal = |l: &str| ipc::message::parse_literal(l).or_else(|| l.parse().ok());
    let address = inner.map_or_else(|| name.parse().ok(), literal);
    let is_name = |n: &str| normalise_domain(n).is_ok_and(|d| is_plain_domain(&d));
    let name = match (address, inner.unwrap_or(name)) {
        (Some(IpAddr::V4(ip)), _) => format!("[{ip}]"),
        (Some(IpAddr::V6(ip)), _) => format!("[IPv6:{ip}]"),
        (None, n) if is_name(n) => n.to_owned(),
        _ => return Err(bad("HOST, [IP], [IPv6:IP], each with :PORT if wanted, or lookup-mx:DOMAIN")),
    };
    Ok(port.map_or(name.clone(), |p| format!("{name}:{p}")))
}

/// RFC 5322 section 2.2: printable ASCII without a colon.
pub(super) fn field_name(name: &str, of: &str) -> Result<(), Problem> {
    match name.bytes().all(|b| b.is_ascii_graphic() && b != b':') {
        true => Ok(()),
        false => Err(Problem::expected("the name of a header field without its colon", name).at(name, of)),
    }
}

pub(super) fn queue(t: &str) -> Result<&str, Problem> {
    match pattern(t) {
        Ok(()) if !t.contains('*') => Ok(t),
        _ => Err(Problem::expected("the name of a queue, such as big.queue", t)),
    }
}

pub(super) fn daily(item: &str, of: &str) -> Result<(), Problem> {
    let n = item.strip_suffix("/day").or_else(|| item.strip_suffix("/d"));
    match n.map(str::parse::<u64>) {
        Some(Ok(_)) => Ok(()),
        _ => Err(Problem::expected("N/day", item).at(item, of)),
    }
}

/// A header's name (RFC 5322 section 3.6.8), or an expression for names.
pub(super) fn header_name(item: &str, of: &str) -> Result<(), Problem> {
    if item.starts_with('/') {
        return regex(item, of).map(|_| ());
    }
    let is_name = !item.is_empty() && item.bytes().all(|b| b.is_ascii_graphic() && b != b':');
    if is_name { Ok(()) } else { Err(Problem::expected("the name of a header field, or /regex/", item).at(item, of)) }
}

pub(super) fn identity(t: &str) -> Result<(), Problem> {
    let known = t.eq_ignore_ascii_case("sender-or-from") || t.eq_ignore_ascii_case("strict-from");
    let fine = known || t.rsplit_once('@').is_some_and(|(_, d)| normalise_domain(d).is_ok());
    if fine { Ok(()) } else { Err(Problem::expected("an address, @DOMAIN, sender-or-from or strict-from", t)) }
}

pub(super) fn url(t: &str) -> Result<(), Problem> {
    let rest = t.strip_prefix("https://").or_else(|| t.strip_prefix("http://"));
    let fine = rest.is_some_and(|r| {
        let host = r.split(['/', ':']).next().unwrap_or_default();
        !host.is_empty() && !r.contains(['?', '#', '@']) && !r.contains(char::is_whitespace)
    });
    if fine { Ok(()) } else { Err(Problem::expected("an absolute http or https URL without query", t)) }
}

pub(super) fn domain_macro(text: &str) -> Result<(), Problem> {
    let (name, list) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Err(Problem::expected("a macro name of letters, digits and underscores", name).at(name, text));
    }
    if items(list).next().is_none() {
        return Err(Problem::other("the macro's list is missing"));
    }
    match items(list).find(|i| i.contains(char::is_whitespace)) {
        Some(i) => Err(Problem::other(format!("{i:?} is no domain")).help("commas separate the items").at(i, text)),
        None => Ok(()),
    }
}

/// `/regex/ RESULT` of a pattern list.
pub(super) fn pattern_rule(text: &str, of: &str) -> Result<Vec<(&'static str, String)>, Problem> {
    let (_, rest) = regex(text, of)?;
    if rest.is_empty() { Ok(Vec::new()) } else { results(rest, of) }
}

pub(super) fn results(text: &str, of: &str) -> Result<Vec<(&'static str, String)>, Problem> {
    let mut refs = Vec::new();
    for item in items(text) {
        let (name, value) = item.split_once(['=', ':']).unwrap_or((item, ""));
        let value = value.trim();
        match name.trim().to_ascii_lowercase().as_str() {
            "virtual-mta" if !value.is_empty() => refs.push(("virtual-mta or pool", value.to_owned())),
            "recipient-priority" => drop(number(value, "0..100").map_err(|p| p.at(item, of))?),
            "call-to" if !value.is_empty() => {}
            _ => {
                let p = Problem::expected("virtual-mta=NAME or recipient-priority=N", item);
                return Err(p.at(item, of));
            }
        }
    }
    Ok(refs)
}

/// Whether mail could be sent to an address.
fn is_recipient(address: &str) -> bool {
    worker::smtp::command::rcpt(&format!("<{address}>"), true).is_ok() && destination_of(address).is_ok()
}

pub(super) fn rewrite(text: &str) -> Result<(), Problem> {
    let (source, target) = two(text, "SOURCE TARGET")?;
    if source == "<>" && target.contains('*') {
        let p = Problem::other("\"*\" in the target needs a source that is not empty");
        return Err(p.at(target, text));
    }
    if !target.is_ascii() {
        return Err(Problem::expected("an ASCII address", target).at(target, text));
    }
    // A half is whole or any; what is left has to be an address.
    let fine = |t: &str| {
        let halves = t.rsplit_once('@').filter(|(l, d)| [l, d].iter().all(|h| **h == "*" || !h.contains('*')));
        let given = |half: &str, other: &str| if half == "*" { other.to_owned() } else { half.to_owned() };
        let address = halves.map(|(l, d)| format!("{}@{}", given(l, "x"), given(d, "d.test")));
        t == "<>" || address.is_some_and(|a| is_recipient(&a))
    };
    match (fine(source), fine(target)) {
        (false, _) => Err(Problem::expected("an address, *@DOMAIN, USER@*, *@* or <>", source).at(source, text)),
        (_, false) => Err(Problem::expected("an address, *@DOMAIN, USER@* or *@*", target).at(target, text)),
        _ => Ok(()),
    }
}

pub(super) fn mx_rollup(text: &str) -> Result<(), Problem> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let (host, queue) = match words[..] {
        [host, queue] => (host, queue),
        [host, queue, w] if w.eq_ignore_ascii_case("rollup-by-ip") => (host, queue),
        [] => return Err(Problem::other("argument missing")),
        _ => return Err(Problem::expected("HOST QUEUE.rollup [rollup-by-ip]", text)),
    };
    pattern(host).map_err(|p| p.at(host, text))?;
    if queue.trim_matches('"').to_ascii_lowercase().ends_with(".rollup") {
        return Ok(());
    }
    Err(Problem::expected("a queue name that ends in .rollup", queue).at(queue, text))
}

pub(super) fn host_port(t: &str) -> Result<(), Problem> {
    let fine = t.rsplit_once(':').is_some_and(|(h, p)| !h.is_empty() && p.parse::<u16>().is_ok_and(|p| p > 0));
    if fine { Ok(()) } else { Err(Problem::expected("HOST:PORT", t)) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn hosts_with_and_without_brackets_are_the_same() {
        let same = |text: &str| super::hosts(text).unwrap_or_else(|p| p.message);
        assert_eq!(same("127.0.0.1:2526"), "[127.0.0.1]:2526");
        assert_eq!(same("[smtp.relay.test]:587, mx.d.test ;[b.test]"), "smtp.relay.test:587,mx.d.test;b.test");
        assert_eq!(same("::1, [::1]:25, [IPv6:2001:db8::1]"), "[IPv6:::1],[IPv6:::1]:25,[IPv6:2001:db8::1]");
        assert_eq!(same("lookup-mx:d.test"), "lookup-mx:d.test");
    }

    #[test]
    fn listeners_are_addresses_networks_or_everything() {
        use super::{Listen, listener};
        let on = |text: &str| listener(text).ok().map(|(l, _)| l);
        let address = |text: &str| text.parse().ok().map(Listen::On);
        assert_eq!(on("0/0:25"), address("0.0.0.0:25"));
        assert_eq!(on("0.0.0.0/0:25"), address("0.0.0.0:25"));
        assert_eq!(on("[::/0]:25"), address("[::]:25"));
        assert_eq!(on("192.0.2.1/32:25"), address("192.0.2.1:25"));
        assert_eq!(on("[::1/128]:25"), address("[::1]:25"));
        assert_eq!(on("10/8:25"), ipc::network::parse("10/8").map(|n| Listen::Within(n, 25)));
    }

    #[test]
    fn the_password_of_a_certificate_stands_behind_its_file() {
        assert_eq!(super::certificate(" f.pem \t a b "), ("f.pem", "a b"));
        assert_eq!(super::certificate("f.pem"), ("f.pem", ""));
        assert_eq!(super::certificate("f.pem \"a b\""), ("f.pem", "a b"));
    }
}
