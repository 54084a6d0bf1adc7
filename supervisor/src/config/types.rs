//! Types of the directive table: what a value may be, and what it becomes.
//!
//! A type is a word, for some with an argument behind a colon (`number:0..100`,
//! `enum:a,b`, `ref:virtual-mta`).

use std::path::Path;

use ipc::rules::{ANY_CONNECTIONS, NEVER_MS, Value};

use super::composite::{
    api_key, args, certificate, daily, domain, domain_key, domain_macro, email, field_name, header_name, host_port,
    hosts, http_access, identity, ip, is_in_vault, listener, mx_rollup, name_server, network, pattern_rule, queue,
    references, results, rewrite, suppressing_category, two, url,
};
use super::pattern::{pattern, pattern_key, regex};
use super::problem::Problem;
use super::value::{
    data_rate, duration, durations, flag, items, list, number, one, rate, show_duration, show_size, size,
};
use super::{records, reply_rule, source_hosts};

/// A value that was understood.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// What is stored.
    pub value: Value,
    /// Names that must be defined: kind and name.
    pub refs: Vec<(&'static str, String)>,
}

impl From<Value> for Parsed {
    fn from(value: Value) -> Parsed {
        Parsed { value, refs: Vec::new() }
    }
}

/// Checks `text` against a type of the table.
///
/// # Errors
/// [`Problem`]
pub fn parse(kind: &str, text: &str) -> Result<Parsed, Problem> {
    let (word, argument) = kind.split_once(':').unwrap_or((kind, ""));
    Ok(match word {
        "flag" => Value::Flag(flag(one(text)?)?),
        "number" => Value::Number(number(one(text)?, argument)?),
        "connections" => match one(text)?.to_ascii_lowercase().as_str() {
            "unlimited" => Value::Number(ANY_CONNECTIONS),
            n => Value::Number(number(n, "0..")?),
        },
        "size" => {
            let n = size(one(text)?)?;
            let least = if argument.is_empty() { 0 } else { size(argument)? };
            if n < least {
                return Err(Problem::expected(format_args!("a size of at least {argument}"), text));
            }
            Value::Number(n)
        }
        "duration" => {
            let n = duration(one(text)?)?;
            if !argument.is_empty() && n > duration(argument)? {
                return Err(Problem::expected(format_args!("a time interval of at most {argument}"), text));
            }
            Value::Millis(n)
        }
        "grace" => match one(text)?.to_ascii_lowercase().as_str() {
            "yes" | "true" => Value::Millis(0),
            "no" | "false" => Value::Millis(NEVER_MS),
            _ => Value::Millis(
                duration(text).map_err(|_| Problem::expected("yes, no, or a time interval such as 4h", text))?,
            ),
        },
        "durations" => Value::MillisList(durations(text)?),
        "rate" => rate(one(text)?)?,
        "data-rate" => data_rate(one(text)?)?,
        "enum" => {
            let names: Vec<&str> = argument.split(',').collect();
            let found = one(text)?;
            let is = |word: &str| names.iter().position(|n| n.eq_ignore_ascii_case(word));
            // Where yes and no are among the words, true and false say the same.
            let as_flag = || flag(found).ok().and_then(|yes| is(if yes { "yes" } else { "no" }));
            let at = is(found).or_else(as_flag).ok_or_else(|| {
                let near = super::diagnostic::nearest(&found.to_ascii_lowercase(), names.iter().copied());
                let help = near.map(|n| format!("did you mean {n}?")).unwrap_or_default();
                Problem::expected(format_args!("one of {}", names.join(", ")), found).help(help)
            })?;
            Value::Number(at as u64)
        }
        "list" => Value::TextList(list(text)),
        "word" | "path" => Value::Text(one(text)?.to_owned()),
        "text" => Value::Text(text.to_owned()),
        _ => return of_parts(word, argument, text),
    }
    .into())
}

/// Checks `text` against a type of several parts; types that are not known here are text.
fn of_parts(kind: &str, argument: &str, text: &str) -> Result<Parsed, Problem> {
    let keep = || Parsed::from(Value::Text(text.to_owned()));
    match kind {
        "ip" => ip(one(text)?).map(|_| keep()),
        "ip-port" => name_server(one(text)?).map(|a| Value::Text(a.to_string()).into()),
        "listener" => listener(text).map(|_| keep()),
        "cidr" => network(one(text)?).map(|()| keep()),
        "email" => email(one(text)?, text).map(|()| keep()),
        "emails" => {
            items(text).try_for_each(|a| email(a, text))?;
            Ok(Value::TextList(list(text)).into())
        }
        // What a macro stands for is checked where it is expanded.
        "pattern" | "macro-domain" if text.contains('$') => one(text).map(|_| keep()),
        "domain" | "macro-domain" => domain(one(text)?).map(|_| keep()),
        "pattern" => pattern(one(text)?).map(|()| keep()),
        "regex" => regex(text, text).map(|_| keep()),
        "address-pattern" => match text.starts_with('/') {
            true => regex(text, text).map(|_| keep()),
            false => one(text).map(|_| keep()),
        },
        "file" | "list-file" => one(text).map(|_| keep()),
        // Without the password, which is nobody's business but of who reads the key.
        "certificate" => one(certificate(text).0).map(|path| Value::Text(path.to_owned()).into()),
        "source-host" => source_hosts::parse(text).map(|_| keep()),
        "domain-key" => domain_key(text).map(|_| keep()),
        "http-access" => http_access(text).map(|()| keep()),
        "api-key" => api_key(one(text)?).map(|()| keep()),
        "ref" => Ok(Parsed { refs: references(argument, one(text)?), ..keep() }),
        "refs" => {
            let refs = items(text).flat_map(|n| references(argument, n)).collect();
            Ok(Parsed { value: Value::TextList(list(text)), refs })
        }
        "args" => args(argument, text).map(Parsed::from),
        "hosts" => Ok(Value::Text(hosts(text)?).into()),
        "daily" => items(text).try_for_each(|i| daily(i, text)).map(|()| keep()),
        "identity" => identity(one(text)?).map(|()| keep()),
        "headers" => {
            items(text).try_for_each(|h| header_name(h, text))?;
            Ok(Value::TextList(list(text)).into())
        }
        "field-names" => {
            items(text).try_for_each(|h| field_name(h, text))?;
            Ok(Value::TextList(list(text)).into())
        }
        "url" => url(one(text)?).map(|()| keep()),
        "queue" => {
            let name = pattern_key(queue(one(text)?)?);
            Ok(Parsed { refs: vec![("queue", name.clone())], value: Value::Text(name) })
        }
        "cpus" => {
            items(text).try_for_each(|i| number(i, "").map(drop).map_err(|p| p.at(i, text)))?;
            Ok(Value::TextList(list(text)).into())
        }
        "alias" => match text.split_whitespace().count() {
            0 | 1 => Err(Problem::expected("ADDRESS TARGET[,TARGET…]", text)),
            _ => Ok(keep()),
        },
        "words" => match (text.split_whitespace().count(), number(argument, "")?) {
            (found, wanted) if found as u64 == wanted => Ok(keep()),
            (found, wanted) => Err(Problem::other(format!("{wanted} arguments expected, got {found}"))),
        },
        "ciphers" | "tls13-ciphers" => {
            let (old, new) = if kind == "ciphers" { (text, "") } else { ("", text) };
            worker::connect::cipher_list::select(old, new).map(|_| keep()).map_err(Problem::other)
        }
        "macro" => domain_macro(text).map(|()| keep()),
        "records" => {
            records::types(text)?;
            Ok(Value::TextList(list(text)).into())
        }
        "record-fields" => records::fields(text).map(|_| keep()),
        "header-map" => records::header_map(text).map(|_| keep()),
        "queue-filter" => records::queue_filter(text).map(|_| keep()),
        "categories" => {
            items(text).try_for_each(|c| suppressing_category(c).map_err(|p| p.at(c, text)))?;
            Ok(Value::TextList(list(text)).into())
        }
        "privacy" => match worker::account::privacy::Privacy::parse(text) {
            Ok(_) => Ok(keep()),
            Err(e) => Err(Problem { code: "bad-key", ..Problem::other(e) }),
        },
        "header-rule" => {
            let (header, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
            if header.contains(':') {
                let p = Problem::expected("the name of a header without its colon", header);
                return Err(p.at(header, text));
            }
            pattern_rule(rest.trim_start(), text).map(|refs| Parsed { refs, ..keep() })
        }
        "rule" => pattern_rule(text, text).map(|refs| Parsed { refs, ..keep() }),
        "result" => results(text, text).map(|refs| Parsed { refs, ..keep() }),
        "reply" => reply_rule::parse(text).map(|_| keep()),
        "rewrite" => rewrite(text).map(|()| keep()),
        "mx-rollup" => mx_rollup(text).map(|()| keep()),
        "category" => match text.split_whitespace().count() {
            1 => Ok(keep()),
            n => Err(Problem::other(format!("a category expected behind the expression, got {n} words"))),
        },
        "host-port" => host_port(one(text)?).map(|()| keep()),
        "proxy-client" => {
            let (address, name) = two(text, "IP[:PORT] HOST-NAME")?;
            name_server(address).map_err(|p| p.at(address, text))?;
            domain(name).map(|_| keep())
        }
        _ => Ok(keep()),
    }
}

/// Whether the file that a value of this type names can be read; values were checked before.
///
/// # Errors
/// [`Problem`]
pub fn named_file(kind: &str, text: &str) -> Result<(), Problem> {
    let path = match kind {
        "file" | "list-file" => text.trim(),
        "certificate" => certificate(text).0,
        "domain-key" if !is_in_vault(text) => text.rsplit(',').next().unwrap_or_default().trim(),
        _ => return Ok(()),
    };
    // "" clears what is inherited.
    if path.is_empty() {
        return Ok(());
    }
    let opened = worker::regular_file::open(Path::new(path));
    opened.map(drop).map_err(|e| Problem::missing(path, &e).at(path, text))
}

/// A value as the configuration would write it.
pub fn show(kind: &str, value: &Value) -> String {
    match value {
        Value::Flag(b) => if *b { "yes" } else { "no" }.to_owned(),
        Value::Number(n) => match kind.split_once(':') {
            Some(("enum", names)) => names.split(',').nth(*n as usize).unwrap_or_default().to_owned(),
            _ if kind.starts_with("size") => show_size(*n),
            _ if kind == "connections" && *n == ANY_CONNECTIONS => "unlimited".to_owned(),
            _ if *n == 0 && kind.ends_with(",auto") => "auto".to_owned(),
            _ => n.to_string(),
        },
        Value::Millis(NEVER_MS) if kind == "grace" => "no".to_owned(),
        Value::Millis(n) => show_duration(*n),
        Value::MillisList(l) => l.iter().map(|n| show_duration(*n)).collect::<Vec<_>>().join(","),
        Value::Rate { count: 0, .. } => "unlimited".to_owned(),
        Value::Rate { count, per_ms } => {
            let n = if kind.starts_with("data-rate") { show_size(*count) } else { count.to_string() };
            let window = show_duration(*per_ms);
            format!("{n}/{}", window.strip_prefix('1').filter(|u| u.len() == 1).unwrap_or(&window))
        }
        Value::PerNetwork { network, count, per_ms } => {
            let of = kind.rsplit_once(',').map_or("", |(_, last)| last);
            let limit = match (*count, *per_ms) {
                (0, _) => "unlimited".to_owned(),
                (count, 0) => count.to_string(),
                (count, per_ms) => show(of, &Value::Rate { count, per_ms }),
            };
            format!("{network} {limit}")
        }
        Value::Text(t) => t.clone(),
        Value::TextList(l) => l.join(", "),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn value(kind: &str, text: &str) -> Value {
        parse(kind, text).unwrap().value
    }

    #[test]
    fn units() {
        assert_eq!(value("duration", "4d12h"), Value::Millis(388_800_000));
        assert_eq!(value("size", "25M"), Value::Number(26_214_400));
        assert_eq!(value("rate", "100/15m"), Value::Rate { count: 100, per_ms: 900_000 });
        assert_eq!(value("rate", "200/min"), Value::Rate { count: 200, per_ms: 60_000 });
        assert_eq!(value("data-rate", "1T/7d"), Value::Rate { count: 1 << 40, per_ms: 604_800_000 });
        for (kind, bad) in [
            ("duration", "5"),
            ("duration", "5x"),
            ("duration", "m"),
            ("duration", "5m5"),
            ("duration", ""),
            ("duration:10m", "11m"),
            ("durations", "10m, 5 minutes"),
            ("durations", "1m,"),
            ("rate", "0/h"),
            ("rate", "5/0h"),
            ("rate", "5/fortnight"),
            ("rate", "x/h"),
            ("size", "5q"),
            ("size:1M", "10K"),
            ("number:0..100", "101"),
            ("number", "many"),
            ("flag", "maybe"),
            ("size", "10 M"),
            ("enum:a,b", "c"),
        ] {
            assert!(parse(kind, bad).is_err(), "{kind} {bad}");
        }
    }

    #[test]
    fn values_are_shown_as_they_are_written() {
        for (kind, text) in [
            ("flag", "yes"),
            ("number", "20"),
            ("connections", "0"),
            ("connections", "unlimited"),
            ("size", "25M"),
            ("duration", "4d12h"),
            ("duration", "never"),
            ("grace", "no"),
            ("durations", "10m,1h30m"),
            ("rate", "600/h"),
            ("rate", "100/15m"),
            ("rate", "unlimited"),
            ("data-rate", "10M/m"),
            ("enum:a,b", "b"),
            ("list", "a, b"),
            ("word", "x"),
        ] {
            assert_eq!(show(kind, &value(kind, text)), text, "{kind}");
        }
    }

    #[test]
    fn yes_and_no_among_other_words_are_true_and_false() {
        assert_eq!(value("enum:no,yes,override", "true"), value("enum:no,yes,override", "yes"));
        assert_eq!(value("enum:no,yes,override", "False"), value("enum:no,yes,override", "no"));
        assert!(parse("enum:a,b", "true").is_err());
    }

    #[test]
    fn the_password_of_a_certificate_is_no_part_of_its_value() {
        assert_eq!(value("certificate", "/etc/cert.pem  a secret"), Value::Text("/etc/cert.pem".into()));
    }

    #[test]
    fn forms_of_several_parts() {
        for (kind, good) in [
            ("ip-port", "127.0.0.1"),
            ("ip-port", "[::1]:5353"),
            ("listener", "0/0:2525"),
            ("listener", "[::1]:25 source={x}"),
            ("listener", "127.0.4.0/30:2525"),
            ("listener", "10.1/16:25 source=x"),
            ("listener", "[2001:db8::/64]:25"),
            ("macro-domain", "a.$tld"),
            ("domain-key", "s,$brand.$tld,/k.pem"),
            ("domain-key", "{selector}, {domain}, {vault}:/v1/keys/data/${selector}/${domain}:dk"),
            ("args:number", "5"),
            ("emails", "a@b.test, c@d.test"),
            ("pattern", "[*.]b\u{fc}cher.de"),
            ("pattern", "[10/8]"),
            ("pattern", "{bounce}"),
            ("regex", "/^a(?=b)/"),
            ("source-host", "192.0.2.1"),
            ("http-access", "10/8 monitor,deny-logs"),
            ("args:cidr,rate", "0/0 5/s"),
            ("hosts", "[127.0.0.1]:2525, [IPv6:::1]; mx.d.test:25; lookup-mx:d.test"),
            ("field-names", "X-A, Received"),
            ("daily", "10/day,20/d"),
            ("identity", "@d.test"),
            ("url", "https://h.test:8443/a"),
            ("macro", "a_1 b, $c"),
            ("records", "d,bounce"),
            ("record-fields", "d *,!envId,header_Subject"),
            ("rule", "/x/ virtual-mta=a, recipient-priority=60"),
            ("header-rule", "x-stream /^\\s*a/ virtual-mta=b"),
            ("rewrite", "*@* *@d.test"),
            ("mx-rollup", "*.google.com gmail.rollup rollup-by-ip"),
        ] {
            assert!(parse(kind, good).is_ok(), "{kind} {good}: {:?}", parse(kind, good));
        }
        for (kind, bad) in [
            ("ip-port", "dns.test"),
            ("listener", "0.0.0.0:99999"),
            ("listener", "1.2.3.4:25 x"),
            ("listener", "::1:25"),
            ("listener", "2001:db8::/64:25"),
            ("listener", "127.0.4.0/33:25"),
            ("listener", "[127.0.4.0/30]:25"),
            ("macro-domain", "a..b"),
            ("emails", "a@b.test, c"),
            ("pattern", "a b"),
            ("pattern", "[::1]x"),
            ("regex", "/(a/"),
            ("headers", "X-A, /[/"),
            ("headers", "X-A:"),
            ("regex", "a"),
            ("regex", "/a"),
            ("source-host", "mail.test 192.0.2.1"),
            ("http-access", "10/40 admin"),
            ("http-access", "10/8 root"),
            ("args:cidr,rate", "0/0"),
            ("hosts", "a..b"),
            ("hosts", "[a_b@]"),
            ("hosts", "[a.test"),
            ("field-names", "X-A:"),
            ("field-names", "X A"),
            ("hosts", "h:99999"),
            ("daily", "10/h"),
            ("identity", "me"),
            ("url", "ftp://x/"),
            ("url", "http://x/?q"),
            ("macro", "a-b c"),
            ("macro", "a"),
            ("records", "d,x"),
            ("record-fields", "d nosuch"),
            ("rule", "x virtual-mta=a"),
            ("rule", "/x/ vmta=a"),
            ("rewrite", "<> *@d.test"),
            ("mx-rollup", "a.test queue"),
            ("api-key", "short"),
            ("domain-key", "s,d.test,*,/k.pem"),
            ("domain-key", "{selector},{domain},/k.pem"),
            ("words:2", "a"),
        ] {
            assert!(parse(kind, bad).is_err(), "{kind} {bad}");
        }
    }
}
