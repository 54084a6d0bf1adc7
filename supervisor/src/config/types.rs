//! Types of the directive table: what a value may be, and what it becomes.
//!
//! In the table a type is a word, for some with an argument behind a colon (`number:0..100`,
//! `enum:a,b`, `ref:virtual-mta`).

use std::path::Path;

use ipc::network::Network;
use ipc::rules::{ANY_CONNECTIONS, NEVER_MS, Value};
use worker::prepare::feedback_headers::{self, Kind};

use super::composite::{
    api_key, certificate, daily, domain, domain_key, domain_macro, email, field_name, header_name, host_port, hosts,
    http_access, identity, ip, is_in_vault, listener, mx_rollup, name_server, network, pattern_rule, proxies, queue,
    references, results, rewrite, suppressing_category, two, url,
};
use super::nearest::nearest;
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

/// The type of a directive's value. What stands behind the colon in the table is kept with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// A block: its name, or nothing.
    Block,
    /// `yes`, `no`, `true` or `false`.
    Flag,
    /// A whole number, in a range `LO..HI` or `LO..HI,auto` where one is given.
    Number(&'static str),
    /// A number of connections, or `unlimited`.
    Connections,
    /// Bytes, such as `25M`; at least so many where a size is given.
    Size(&'static str),
    /// A time interval, such as `4d12h`; at most so long where one is given.
    Duration(&'static str),
    /// `yes`, `no`, or a time interval.
    Grace,
    /// Time intervals with commas between them.
    Durations,
    /// `N/[M]unit`.
    Rate,
    /// `SIZE/[M]unit`.
    DataRate,
    /// One of these words, which have commas between them.
    Enum(&'static str),
    /// Texts with commas between them.
    List,
    /// One word.
    Word,
    /// The path of a file or folder.
    Path,
    /// Any text.
    Text,
    /// An IP address.
    Ip,
    /// `IP[:PORT]` of a name server.
    IpPort,
    /// `IP:PORT` or `NETWORK:PORT`, with `source=NAME` behind it or without.
    Listener,
    /// An IP address or a network.
    Cidr,
    /// An e-mail address.
    Email,
    /// E-mail addresses with commas between them.
    Emails,
    /// A domain or a pattern of domains, which may have macros in it.
    Pattern,
    /// A domain.
    Domain,
    /// A domain, which may have macros in it.
    MacroDomain,
    /// A regular expression between slashes.
    Regex,
    /// A regular expression between slashes, or one word.
    AddressPattern,
    /// A file that has to be there.
    File,
    /// A file that can be done without.
    ListFile,
    /// `FILE [PASSWORD]`.
    Certificate,
    /// `IP|NETWORK [HOST-NAME]`.
    SourceHost,
    /// `SELECTOR,DOMAIN,FILE`.
    DomainKey,
    /// `NETWORK LEVEL`.
    HttpAccess,
    /// A key of the HTTP interface.
    ApiKey,
    /// The name of something that is defined elsewhere: of which kind.
    Ref(&'static str),
    /// The same, with commas between the names.
    Refs(&'static str),
    /// Values of these types, with blanks between them.
    Args(&'static str),
    /// Hosts with commas between them, in levels with semicolons between these.
    Hosts,
    /// `N/day` for each day, with commas between them.
    Daily,
    /// An address, `@DOMAIN`, `sender-or-from` or `strict-from`.
    Identity,
    /// Names of header fields or regular expressions for them, with commas between them.
    Headers,
    /// Names of header fields with commas between them.
    FieldNames,
    /// An absolute URL.
    Url,
    /// The name of a queue.
    Queue,
    /// Numbers of processors with commas between them.
    Cpus,
    /// `ADDRESS TARGET[,TARGET…]`.
    Alias,
    /// So many words.
    Words(&'static str),
    /// Ciphers for TLS 1.2, as OpenSSL lists them.
    Ciphers,
    /// Ciphers for TLS 1.3.
    Tls13Ciphers,
    /// `NAME ITEM[,ITEM…]`.
    Macro,
    /// Types of accounting records.
    Records,
    /// The type of an accounting record, and its fields.
    RecordFields,
    /// `TYPE header_NAME FIELD`.
    HeaderMap,
    /// Patterns of queues with commas between them.
    QueueFilter,
    /// Categories of refusals with commas between them.
    Categories,
    /// What becomes of local parts in accounting files.
    Privacy,
    /// `HEADER /regex/ RESULT`.
    HeaderRule,
    /// `/regex/ RESULT` of a pattern list.
    Rule,
    /// The result of a rule of a pattern list.
    Result,
    /// `/regex/ ACTION[,ACTION…]` on replies of receivers.
    Reply,
    /// `SOURCE TARGET` of a rewrite list.
    Rewrite,
    /// `HOST QUEUE.rollup [rollup-by-ip]`.
    MxRollup,
    /// The category of replies that an expression matches.
    Category,
    /// `HOST:PORT`.
    HostPort,
    /// `IP[:PORT] HOST-NAME`.
    ProxyClient,
    /// `from NETWORK[,NETWORK…]`.
    Proxies,
    /// Text with `${NAME}` where values of a message go: of what kind.
    Template(&'static str),
}

impl Type {
    /// The type that the table names so: a word, or a word and an argument behind a colon.
    pub fn named(text: &'static str) -> Option<Type> {
        let (word, argument) = text.split_once(':').unwrap_or((text, ""));
        let of = match word {
            "block" => Type::Block,
            "flag" => Type::Flag,
            "number" => Type::Number(argument),
            "connections" => Type::Connections,
            "size" => Type::Size(argument),
            "duration" => Type::Duration(argument),
            "grace" => Type::Grace,
            "durations" => Type::Durations,
            "rate" => Type::Rate,
            "data-rate" => Type::DataRate,
            "enum" => Type::Enum(argument),
            "list" => Type::List,
            "word" => Type::Word,
            "path" => Type::Path,
            "text" => Type::Text,
            "ip" => Type::Ip,
            "ip-port" => Type::IpPort,
            "listener" => Type::Listener,
            "cidr" => Type::Cidr,
            "email" => Type::Email,
            "emails" => Type::Emails,
            "pattern" => Type::Pattern,
            "domain" => Type::Domain,
            "macro-domain" => Type::MacroDomain,
            "regex" => Type::Regex,
            "address-pattern" => Type::AddressPattern,
            "file" => Type::File,
            "list-file" => Type::ListFile,
            "certificate" => Type::Certificate,
            "source-host" => Type::SourceHost,
            "domain-key" => Type::DomainKey,
            "http-access" => Type::HttpAccess,
            "api-key" => Type::ApiKey,
            "ref" => Type::Ref(argument),
            "refs" => Type::Refs(argument),
            "args" => Type::Args(argument),
            "hosts" => Type::Hosts,
            "daily" => Type::Daily,
            "identity" => Type::Identity,
            "headers" => Type::Headers,
            "field-names" => Type::FieldNames,
            "url" => Type::Url,
            "queue" => Type::Queue,
            "cpus" => Type::Cpus,
            "alias" => Type::Alias,
            "words" => Type::Words(argument),
            "ciphers" => Type::Ciphers,
            "tls13-ciphers" => Type::Tls13Ciphers,
            "macro" => Type::Macro,
            "records" => Type::Records,
            "record-fields" => Type::RecordFields,
            "header-map" => Type::HeaderMap,
            "queue-filter" => Type::QueueFilter,
            "categories" => Type::Categories,
            "privacy" => Type::Privacy,
            "header-rule" => Type::HeaderRule,
            "rule" => Type::Rule,
            "result" => Type::Result,
            "reply" => Type::Reply,
            "rewrite" => Type::Rewrite,
            "mx-rollup" => Type::MxRollup,
            "category" => Type::Category,
            "host-port" => Type::HostPort,
            "proxy-client" => Type::ProxyClient,
            "proxies" => Type::Proxies,
            "template" => Type::Template(argument),
            _ => return None,
        };
        Some(of)
    }

    /// Checks `text` against the type.
    ///
    /// # Errors
    /// [`Problem`]
    pub fn parse(self, text: &str) -> Result<Parsed, Problem> {
        let keep = || Parsed::from(Value::Text(text.to_owned()));
        let listed = || Parsed::from(Value::TextList(list(text)));
        match self {
            Type::Flag => Ok(Value::Flag(flag(one(text)?)?).into()),
            Type::Number(range) => Ok(Value::Number(number(one(text)?, range)?).into()),
            Type::Connections => Ok(Value::Number(connections(text)?).into()),
            Type::Size(least) => Ok(Value::Number(size_of_at_least(text, least)?).into()),
            Type::Duration(most) => Ok(Value::Millis(duration_of_at_most(text, most)?).into()),
            Type::Grace => Ok(Value::Millis(grace(text)?).into()),
            Type::Durations => Ok(Value::MillisList(durations(text)?).into()),
            Type::Rate => rate(one(text)?).map(Parsed::from),
            Type::DataRate => data_rate(one(text)?).map(Parsed::from),
            Type::Enum(words) => Ok(Value::Number(one_of(words, one(text)?)?).into()),
            Type::List => Ok(listed()),
            Type::Word | Type::Path => Ok(Value::Text(one(text)?.to_owned()).into()),
            Type::Block | Type::Text => Ok(keep()),
            Type::Ip => ip(one(text)?).map(|_| keep()),
            Type::IpPort => name_server(one(text)?).map(|a| Value::Text(a.to_string()).into()),
            Type::Listener => listener(text).map(|_| keep()),
            Type::Cidr => network(one(text)?).map(|()| keep()),
            Type::Email => email(one(text)?, text).map(|()| keep()),
            Type::Emails => {
                items(text).try_for_each(|a| email(a, text))?;
                Ok(listed())
            }
            // What a macro stands for is checked where it is expanded.
            Type::Pattern | Type::MacroDomain if text.contains('$') => one(text).map(|_| keep()),
            Type::Domain | Type::MacroDomain => domain(one(text)?).map(|_| keep()),
            Type::Pattern => pattern(one(text)?).map(|()| keep()),
            Type::Regex => regex(text, text).map(|_| keep()),
            Type::AddressPattern => match text.starts_with('/') {
                true => regex(text, text).map(|_| keep()),
                false => one(text).map(|_| keep()),
            },
            Type::File | Type::ListFile => one(text).map(|_| keep()),
            // The password behind the path stays out of the value: only the code that reads the key needs it.
            Type::Certificate => one(certificate(text).0).map(|path| Value::Text(path.to_owned()).into()),
            Type::SourceHost => source_hosts::parse(text).map(|_| keep()),
            Type::DomainKey => domain_key(text).map(|_| keep()),
            Type::HttpAccess => http_access(text).map(|()| keep()),
            Type::ApiKey => api_key(one(text)?).map(|()| keep()),
            Type::Ref(argument) => Ok(Parsed { refs: references(argument, one(text)?), ..keep() }),
            Type::Refs(argument) => {
                let refs = items(text).flat_map(|n| references(argument, n)).collect();
                Ok(Parsed { refs, ..listed() })
            }
            Type::Args(argument) => args(argument, text).map(Parsed::from),
            Type::Hosts => Ok(Value::Text(hosts(text)?).into()),
            Type::Daily => items(text).try_for_each(|i| daily(i, text)).map(|()| keep()),
            Type::Identity => identity(one(text)?).map(|()| keep()),
            Type::Headers => {
                items(text).try_for_each(|h| header_name(h, text))?;
                Ok(listed())
            }
            Type::FieldNames => {
                items(text).try_for_each(|h| field_name(h, text))?;
                Ok(listed())
            }
            Type::Url => url(one(text)?).map(|()| keep()),
            Type::Queue => {
                let name = pattern_key(queue(one(text)?)?);
                Ok(Parsed { refs: vec![("queue", name.clone())], value: Value::Text(name) })
            }
            Type::Cpus => {
                items(text).try_for_each(|i| number(i, "").map(drop).map_err(|p| p.at(i, text)))?;
                Ok(listed())
            }
            Type::Alias => match text.split_whitespace().count() {
                0 | 1 => Err(Problem::expected("ADDRESS TARGET[,TARGET…]", text)),
                _ => Ok(keep()),
            },
            Type::Words(argument) => match (text.split_whitespace().count(), number(argument, "")?) {
                (found, wanted) if found as u64 == wanted => Ok(keep()),
                (found, wanted) => Err(Problem::other(format!("{wanted} arguments expected, got {found}"))),
            },
            Type::Ciphers | Type::Tls13Ciphers => {
                let (old, new) = if self == Type::Ciphers { (text, "") } else { ("", text) };
                worker::connect::cipher_list::select(old, new).map(|_| keep()).map_err(Problem::other)
            }
            Type::Macro => domain_macro(text).map(|()| keep()),
            Type::Records => {
                records::types(text)?;
                Ok(listed())
            }
            Type::RecordFields => records::fields(text).map(|_| keep()),
            Type::HeaderMap => records::header_map(text).map(|_| keep()),
            Type::QueueFilter => records::queue_filter(text).map(|_| keep()),
            Type::Categories => {
                items(text).try_for_each(|c| suppressing_category(c).map_err(|p| p.at(c, text)))?;
                Ok(listed())
            }
            Type::Privacy => match worker::account::privacy::Privacy::parse(text) {
                Ok(_) => Ok(keep()),
                Err(e) => Err(Problem { code: "bad-key", ..Problem::other(e) }),
            },
            Type::HeaderRule => {
                let (header, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
                if header.contains(':') {
                    let p = Problem::expected("the name of a header without its colon", header);
                    return Err(p.at(header, text));
                }
                pattern_rule(rest.trim_start(), text).map(|refs| Parsed { refs, ..keep() })
            }
            Type::Rule => pattern_rule(text, text).map(|refs| Parsed { refs, ..keep() }),
            Type::Result => results(text, text).map(|refs| Parsed { refs, ..keep() }),
            Type::Reply => reply_rule::parse(text).map(|_| keep()),
            Type::Rewrite => rewrite(text).map(|()| keep()),
            Type::MxRollup => mx_rollup(text).map(|()| keep()),
            Type::Category => match text.split_whitespace().count() {
                1 => Ok(keep()),
                n => Err(Problem::other(format!("a category expected behind the expression, got {n} words"))),
            },
            Type::HostPort => host_port(one(text)?).map(|()| keep()),
            Type::ProxyClient => {
                let (address, name) = two(text, "IP[:PORT] HOST-NAME")?;
                name_server(address).map_err(|p| p.at(address, text))?;
                domain(name).map(|_| keep())
            }
            Type::Template(argument) => {
                let kind = match argument {
                    "url" => Kind::Url,
                    "cfbl" => Kind::Cfbl,
                    _ => Kind::Text,
                };
                feedback_headers::check(kind, text).map(|()| keep()).map_err(Problem::other)
            }
            Type::Proxies => Ok(Value::TextList(proxies(text)?).into()),
        }
    }

    /// Whether the file that a value of this type names can be read; values were checked before.
    ///
    /// # Errors
    /// [`Problem`]
    pub fn named_file(self, text: &str) -> Result<(), Problem> {
        let path = match self {
            Type::File | Type::ListFile => text.trim(),
            Type::Certificate => certificate(text).0,
            Type::DomainKey if !is_in_vault(text) => text.rsplit(',').next().unwrap_or_default().trim(),
            _ => return Ok(()),
        };
        // "" clears what is inherited.
        if path.is_empty() {
            return Ok(());
        }
        let opened = worker::regular_file::open(Path::new(path));
        opened.map(drop).map_err(|e| Problem::missing(path, &e).at(path, text))
    }

    /// Its values are limits that begin with the network that they are for.
    pub fn is_by_network(self) -> bool {
        matches!(self, Type::Args(types) if types.starts_with("cidr"))
    }

    /// A value as the configuration would write it.
    pub fn show(self, value: &Value) -> String {
        match value {
            Value::Flag(b) => if *b { "yes" } else { "no" }.to_owned(),
            Value::Number(n) => match self {
                Type::Enum(words) => words.split(',').nth(*n as usize).unwrap_or_default().to_owned(),
                Type::Size(_) => show_size(*n),
                Type::Connections if *n == ANY_CONNECTIONS => "unlimited".to_owned(),
                Type::Number(range) if *n == 0 && range.ends_with(",auto") => "auto".to_owned(),
                _ => n.to_string(),
            },
            Value::Millis(NEVER_MS) if self == Type::Grace => "no".to_owned(),
            Value::Millis(n) => show_duration(*n),
            Value::MillisList(l) => l.iter().map(|n| show_duration(*n)).collect::<Vec<_>>().join(","),
            Value::Rate { count: 0, .. } => "unlimited".to_owned(),
            Value::Rate { count, per_ms } => {
                let n = if self == Type::DataRate { show_size(*count) } else { count.to_string() };
                let window = show_duration(*per_ms);
                format!("{n}/{}", window.strip_prefix('1').filter(|u| u.len() == 1).unwrap_or(&window))
            }
            Value::PerNetwork { network, count, per_ms } => {
                let of =
                    if let Type::Args(types) = self { types.rsplit(',').next().and_then(Type::named) } else { None };
                let limit = match (*count, *per_ms) {
                    (0, _) => "unlimited".to_owned(),
                    (count, 0) => count.to_string(),
                    (count, per_ms) => of.unwrap_or(Type::Rate).show(&Value::Rate { count, per_ms }),
                };
                format!("{network} {limit}")
            }
            Value::Text(t) => t.clone(),
            Value::TextList(l) if self == Type::Proxies => format!("from {}", l.join(",")),
            Value::TextList(l) => l.join(", "),
        }
    }
}

/// A number of connections, or `unlimited`.
fn connections(found: &str) -> Result<u64, Problem> {
    match one(found)?.to_ascii_lowercase().as_str() {
        "unlimited" => Ok(ANY_CONNECTIONS),
        n => number(n, "0.."),
    }
}

/// `least` is a size, or empty for none.
fn size_of_at_least(found: &str, least: &str) -> Result<u64, Problem> {
    let n = size(one(found)?)?;
    if !least.is_empty() && n < size(least)? {
        return Err(Problem::expected(format_args!("a size of at least {least}"), found));
    }
    Ok(n)
}

/// `most` is a time interval, or empty for none.
fn duration_of_at_most(found: &str, most: &str) -> Result<u64, Problem> {
    let ms = duration(one(found)?)?;
    if !most.is_empty() && ms > duration(most)? {
        return Err(Problem::expected(format_args!("a time interval of at most {most}"), found));
    }
    Ok(ms)
}

/// Milliseconds: none of `yes`, all of `no`.
fn grace(found: &str) -> Result<u64, Problem> {
    match one(found)?.to_ascii_lowercase().as_str() {
        "yes" | "true" => Ok(0),
        "no" | "false" => Ok(NEVER_MS),
        _ => duration(found).map_err(|_| Problem::expected("yes, no, or a time interval such as 4h", found)),
    }
}

/// The place of a word among `words`, which have commas between them.
fn one_of(words: &str, found: &str) -> Result<u64, Problem> {
    let words: Vec<&str> = words.split(',').collect();
    let is = |word: &str| words.iter().position(|n| n.eq_ignore_ascii_case(word));
    // Where yes and no are among the words, true and false say the same.
    let as_flag = || flag(found).ok().and_then(|yes| is(if yes { "yes" } else { "no" }));
    let at = is(found).or_else(as_flag).ok_or_else(|| {
        let near = nearest(&found.to_ascii_lowercase(), words.iter().copied());
        let help = near.map(|n| format!("did you mean {n}?")).unwrap_or_default();
        Problem::expected(format_args!("one of {}", words.join(", ")), found).help(help)
    })?;
    Ok(at as u64)
}

/// Parts of given types, separated by blanks: `args:cidr,rate`. A limit by network is a value of
/// its own.
fn args(kinds: &'static str, text: &str) -> Result<Value, Problem> {
    let (kinds, words): (Vec<&'static str>, Vec<&str>) =
        (kinds.split(',').collect(), text.split_whitespace().collect());
    if kinds.len() != words.len() {
        return Err(Problem::other(format!("{} arguments expected, got {}", kinds.len(), words.len()))
            .help(format!("form: {}", kinds.join(" ").to_uppercase())));
    }
    // A limit alone holds for every address.
    let everybody = Network { base: [0; 16], bits: 0 };
    let (mut of, mut limit) = ((kinds.len() == 1).then_some(everybody), None);
    for (kind, word) in kinds.into_iter().zip(words) {
        let at = |p: Problem| p.at(word, text);
        match Type::named(kind) {
            Some(Type::Cidr) => {
                network(word).map_err(at)?;
                of = ipc::network::parse(word);
            }
            Some(Type::Pattern) => pattern(word).map_err(at)?,
            Some(Type::Domain) => drop(domain(word).map_err(at)?),
            Some(Type::Rate) => limit = Some(rate(word).map_err(at)?),
            Some(Type::DataRate) => limit = Some(data_rate(word).map_err(at)?),
            _ => limit = Some(Value::Number(number(word, "").map_err(at)?)),
        }
    }
    Ok(match (of, limit) {
        (Some(network), Some(Value::Rate { count, per_ms })) => Value::PerNetwork { network, count, per_ms },
        (Some(network), Some(Value::Number(count))) => Value::PerNetwork { network, count, per_ms: 0 },
        _ => Value::Text(text.to_owned()),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(kind: &'static str, text: &str) -> Result<Parsed, Problem> {
        Type::named(kind).unwrap().parse(text)
    }

    fn value(kind: &'static str, text: &str) -> Value {
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
            assert_eq!(Type::named(kind).unwrap().show(&value(kind, text)), text, "{kind}");
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
            ("rewrite", "a*@d.test *@e.test"),
            ("rewrite", "*@d.test b c@e.test"),
            ("rewrite", "*@d.test @e.test"),
            ("rewrite", "*@d_/x.test *@e.test"),
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
