//! The reference of directives, made from the table.

use std::fmt::Write;

use super::directives::{self, Directive, Status};
use super::types::Type;

/// Blocks in the order of the reference.
const BLOCKS: &[&str] = &[
    "global",
    "source",
    "domain",
    "virtual-mta",
    "virtual-mta-pool",
    "smtp-listener",
    "spool",
    "acct-file",
    "pattern-list",
    "smtp-pattern-list",
    "mx-rollup-list",
    "bounce-category-patterns",
    "address-list",
    "suppression-list",
    "smtp-user",
    "source-group",
    "rewrite-list",
    "domain-key-list",
    "aliases",
    "acme",
    "dns",
    "proxy",
    "bounce-processor",
    "feedback-loop-processor",
    "email-patterns",
    "transmissions-api",
    "transmissions-api-listener",
    "signals",
    "signals-filter",
    "vault",
];

/// A line that sets a directive, as it may stand in a file.
pub fn example(d: &Directive) -> String {
    let value: String = match d.kind {
        Type::Block if d.unit.contains("unnamed") => return d.name.to_owned(),
        Type::Block => {
            let tag = d.name.trim_matches(['<', '>']);
            let name = match tag {
                "domain" => "example.com",
                "source" => "10.0.0.0/8",
                "spool" => "/var/spool/sluice",
                "acct-file" => "acct/acct.csv",
                "smtp-listener" | "transmissions-api-listener" => "192.0.2.10:587",
                "virtual-mta" => "vmta1",
                _ => return format!("<{tag} my-{tag}>"),
            };
            return format!("<{tag} {name}>");
        }
        Type::Flag => if d.default == "yes" { "no" } else { "yes" }.into(),
        Type::Number(_) if d.name == "max-memory-usage-percent" => "80".into(),
        Type::Number(_) if d.name == "edns-udp-length" => "1400".into(),
        Type::Number(argument) => match argument.split_once("..") {
            Some((lo, _)) if lo != "0" => lo.into(),
            _ => "20".into(),
        },
        Type::Connections => "20".into(),
        Type::Size(_) => "250M".into(),
        Type::Duration(_) | Type::Grace => "5m".into(),
        Type::Durations => "10m,30m,1h".into(),
        Type::Rate => "600/h".into(),
        Type::DataRate => "100M/h".into(),
        Type::Enum(argument) => argument.split(',').next_back().unwrap_or_default().into(),
        Type::List => match d.name {
            "disable-acct-records" => "t,tq".into(),
            "receiver-profiles" => "google, yahoo".into(),
            "queue-filter" => "example.com/vmta1".into(),
            "domain" => "mail.example.com, smtp.example.com".into(),
            _ => "X-Mailer, X-Originating-IP".into(),
        },
        Type::Headers | Type::FieldNames => "X-Mailer, X-Originating-IP".into(),
        Type::Ip => "192.0.2.10".into(),
        Type::IpPort => "127.0.0.1:53".into(),
        Type::Listener => "192.0.2.10:25".into(),
        Type::Cidr => "10.0.0.0/8".into(),
        Type::Email | Type::Emails => "postmaster@example.com".into(),
        Type::Domain | Type::MacroDomain => "example.com".into(),
        Type::Pattern => "[*.]example.com".into(),
        Type::AddressPattern => "/@example\\.com$/".into(),
        Type::SourceHost => "192.0.2.10 mail.example.com".into(),
        Type::HttpAccess => "10.0.0.0/8 monitor".into(),
        Type::ApiKey => "0123456789abcdef0123456789abcdef".into(),
        Type::Ref(argument) => match argument {
            "source" => "feeder".into(),
            "virtual-mta" | "virtual-mta-or-pool" | "default-virtual-mta" => "vmta1".into(),
            other => format!("my-{other}"),
        },
        Type::Refs(argument) => format!("my-{argument}"),
        Type::Args(argument) => argument
            .split(',')
            .map(|a| match Type::named(a) {
                Some(Type::Cidr) => "0/0",
                Some(Type::Pattern) => "*.example.com",
                Some(Type::Domain) => "example.net",
                Some(Type::Rate) => "100/h",
                Some(Type::DataRate) => "10M/h",
                _ => "5",
            })
            .collect::<Vec<_>>()
            .join(" "),
        Type::Hosts => "mx1.example.com, mx2.example.com; [192.0.2.20]:2525".into(),
        Type::Daily => "50/day,100/day,200/day".into(),
        Type::Identity => "@example.com".into(),
        Type::Url if d.name == "directory" => "https://acme.example.com/directory".into(),
        Type::Url => "https://hooks.example.com/mail".into(),
        Type::Queue => "example.queue".into(),
        Type::Cpus => "0,1".into(),
        Type::Macro => "isp yahoo, aol".into(),
        Type::Records => "d,b,t".into(),
        Type::RecordFields => "d timeLogged,rcpt,dsnStatus".into(),
        Type::HeaderRule => "x-stream /^reset/ virtual-mta=vmta1".into(),
        Type::Rule => "/@example\\.com$/ virtual-mta=vmta1".into(),
        Type::Result => "virtual-mta=vmta1".into(),
        Type::Reply => "/too many connections/ mode=backoff".into(),
        Type::Rewrite => "*@old.example.com *@new.example.com".into(),
        Type::MxRollup => "*.google.com gmail.rollup".into(),
        Type::Ciphers => "HIGH:!ADH".into(),
        Type::Tls13Ciphers => "TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256".into(),
        Type::Category => return "/mailbox full/ quota-issues".into(),
        Type::HostPort => match d.name {
            "http-01-listener" => "127.0.0.1:8402".into(),
            "tls-alpn-01-listener" => "192.0.2.25:443".into(),
            _ => "proxy.example.com:1080".into(),
        },
        Type::ProxyClient => "192.0.2.30 out.example.com".into(),
        Type::Template("url") => "https://u.example.com/?r=${recipient}".into(),
        Type::Template("cfbl") => "fbl@example.com arf".into(),
        Type::Template(_) => "${job}:${domain}:news:example".into(),
        Type::Proxies => "from 192.0.2.40,192.0.2.41".into(),
        Type::Words(_) => match d.name {
            "pickup" => "/var/spool/pickup /var/spool/pickup-bad".into(),
            "external-account" => "key-id c2VjcmV0".into(),
            "dns-update" => "192.0.2.53:53 key.example.com hmac-sha256 c2VjcmV0".into(),
            _ => "192.0.2.10 proxy.example.com:1080 192.0.2.30 out.example.com".into(),
        },
        Type::File | Type::ListFile | Type::Certificate | Type::Path => match d.name {
            "include" => "conf.d/*.conf".into(),
            "data-dir" => "/var/lib/sluice".into(),
            "spool" => "/var/spool/sluice".into(),
            "log-file" => "/var/log/sluice.log".into(),
            "move-to" => "acct/done".into(),
            "address-file" => "/etc/sluice/address-file.txt".into(),
            _ if matches!(d.kind, Type::ListFile | Type::Path) => format!("/etc/sluice/{}.txt", d.name),
            _ => format!("/etc/sluice/{}.pem", d.name),
        },
        Type::DomainKey => "s1,example.com,/etc/sluice/s1.example.com.pem".into(),
        _ => match d.name {
            "alias" => "info@example.com staff@example.com".into(),
            "custom-dsn-from-header" => "\"Mail System <mailer-daemon@example.com>\"".into(),
            "dns-command" => "/usr/local/bin/set-record".into(),
            "command" => "\"/usr/local/bin/take --to=\\\"$to\\\"\"".into(),
            "file-destination" => "/var/mail/$domain".into(),
            "map-header-to-field" => "d header_X-Campaign jobId".into(),
            "privacy-policy" => "redact".into(),
            "virtual-mta" => "vmta1 weight=2".into(),
            _ => "word".into(),
        },
    };
    format!("{} {value}", d.name)
}

/// Directives that one should know beside this one.
pub fn see_also(d: &Directive) -> Vec<&'static str> {
    let mut all: Vec<&'static str> = Vec::new();
    for (from, to) in [
        ("backoff-", ""),
        ("", "backoff-"),
        ("second-", ""),
        ("", "second-"),
        ("retain-", "process-"),
        ("process-", "retain-"),
        ("require-", "use-"),
        ("use-", "require-"),
        ("source-ip-", ""),
        ("", "source-ip-"),
        ("destination-", ""),
        ("", "destination-"),
        ("reject-", "check-"),
        ("trace-", "check-"),
        ("retry-", "backoff-retry-"),
    ] {
        let Some(rest) = d.name.strip_prefix(from) else { continue };
        let other = format!("{to}{rest}");
        let found = directives::all().iter().find(|o| o.name == other && o.name != d.name);
        if let Some(o) = found.filter(|o| o.blocks.iter().any(|b| d.blocks.contains(b)) && !all.contains(&o.name)) {
            all.push(o.name);
        }
    }
    all
}

/// The whole reference as Markdown.
pub fn markdown() -> String {
    let mut t = String::from(
        "# Directives\n\nMade from the program's table: `sluice config directives --markdown`.\n\n\
         *Supported* directives are in force. *Pending* ones are checked and stored, and not in force yet. So are *withheld*\n\
         ones, and mail that they are about is kept back: without them it would come in, or go out otherwise than meant. *Accepted* ones\n\
         are harmless here and have no effect. *Ignored* ones have none either, and `config check` says so. Lines of a directive marked + add up; of others the\n\
         last line of a block is in force.\n",
    );
    for block in BLOCKS {
        let rows: Vec<&Directive> = directives::all().iter().filter(|d| d.blocks.contains(block)).collect();
        let title = if *block == "global" { "Top level".to_owned() } else { format!("`<{block}>`") };
        let _ = write!(
            t,
            "\n## {title}\n\n| directive | value | default | counted | status | meaning | example |\n|---|---|---|---|---|---|---|\n"
        );
        for d in rows {
            let cell = |s: &str| s.replace('|', "\\|").replace('<', "&lt;");
            let status = format!("{:?}", d.status).to_lowercase();
            let reason = if d.reason.is_empty() { String::new() } else { format!(": {}", d.reason) };
            let see = see_also(d);
            let see = if see.is_empty() { String::new() } else { format!(" See {}.", see.join(", ")) };
            let plus = if d.repeats { " +" } else { "" };
            let example = if d.status == Status::Ignored {
                String::new()
            } else {
                format!("`{}`", example(d).replace('|', "\\|"))
            };
            let _ = writeln!(
                t,
                "| `{}`{plus} | {} | {} | {} | {status}{} | {}{see} | {example} |",
                d.name,
                cell(d.unit),
                cell(d.default),
                cell(d.scope),
                cell(&reason),
                cell(d.doc)
            );
        }
    }
    t
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_are_right_and_every_row_is_in_the_reference() {
        for d in directives::all() {
            assert!(d.blocks.iter().any(|b| BLOCKS.contains(b)), "{} in {:?}", d.name, d.blocks);
            let line = example(d);
            let Some((_, v)) = line.split_once(' ').filter(|_| !line.starts_with('/')) else { continue };
            let needs_a_file = matches!(d.kind, Type::File | Type::ListFile | Type::Certificate | Type::DomainKey);
            if d.kind != Type::Block && !needs_a_file {
                let v = v.trim_matches('"');
                assert!(d.kind.parse(v).is_ok(), "{line}: {:?}", d.kind.parse(v));
            }
        }
    }

    #[test]
    fn the_reference_is_what_the_table_gives() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/directives.md");
        let written = std::fs::read_to_string(file).unwrap_or_default();
        assert!(
            written == markdown(),
            "docs/directives.md is old: sluice config directives --markdown > docs/directives.md"
        );
    }
}
