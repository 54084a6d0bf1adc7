//! Receiver profiles: what is known of receivers, as configuration text that comes with the
//! program and lies below everything that an operator writes.

macro_rules! profiles {
    ($($name:literal)*) => {
        /// Name and text of every profile, by name.
        pub const ALL: &[(&str, &str)] = &[
            $(($name, include_str!(concat!("../../../etc/profiles/", $name, ".conf")))),*
        ];
    };
}

profiles! {
    "amazon"
    "apple"
    "att"
    "barracuda"
    "bell"
    "bluewin"
    "broadcom"
    "bt"
    "charter"
    "cisco"
    "cloudflare"
    "comcast"
    "cox"
    "docomo"
    "fastmail"
    "forcepoint"
    "free"
    "gandi"
    "godaddy"
    "google"
    "hornetsecurity"
    "hostinger"
    "hostpoint"
    "infomaniak"
    "interia"
    "ionos"
    "kakao"
    "kddi"
    "kpn"
    "laposte"
    "libero"
    "liberty"
    "mailru"
    "microsoft365"
    "mimecast"
    "namecheap"
    "naver"
    "netease"
    "netvigator"
    "onecom"
    "onet"
    "orange"
    "outlook"
    "ovh"
    "proofpoint"
    "proton"
    "proximus"
    "qq"
    "rackspace"
    "rambler"
    "seznam"
    "sfr"
    "shaw"
    "softbank"
    "sophos"
    "spamexperts"
    "strato"
    "t-online"
    "talktalk"
    "telenet"
    "telus"
    "terra"
    "tim"
    "tiscali"
    "trendmicro"
    "united-internet"
    "uol"
    "wp"
    "yahoo"
    "yahoo-japan"
    "yandex"
    "zoho"
}

/// The text of a profile.
pub fn text(name: &str) -> Option<&'static str> {
    ALL.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, t)| *t)
}

/// What a profile is about: its first line.
pub fn title(text: &str) -> &str {
    text.lines().next().unwrap_or_default().trim_start_matches(['#', ' '])
}

/// Whether the receiver itself has published the profile's figures.
pub fn is_published(text: &str) -> bool {
    text.lines().take_while(|l| l.starts_with('#')).any(|l| l.starts_with("# Confidence of the figures: high"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::super::pattern::regex;
    use super::super::syntax::Reader;
    use super::*;

    /// Statements of a block, each with the example in its comment.
    fn examples<'a>(text: &'a str, directive: &str) -> Vec<(&'a str, &'a str)> {
        let lines = text.lines().map(str::trim).filter(|l| l.starts_with(directive));
        lines.map(|l| l.split_once("# e.g. ").unwrap_or_else(|| panic!("no example: {l}"))).collect()
    }

    #[test]
    fn every_rule_hits_its_example() {
        for (name, text) in ALL {
            let mx = examples(text, "mx ");
            assert!(!mx.is_empty(), "{name}");
            for (rule, host) in mx {
                let pattern = rule.split_whitespace().nth(1).unwrap();
                let suffix = pattern.strip_prefix('*').unwrap();
                assert!(host.ends_with(suffix) && host.len() > suffix.len(), "{name}: {pattern} and {host}");
                assert_eq!(rule.split_whitespace().nth(2).unwrap(), format!("{name}.rollup"));
            }
            for (rule, reply) in examples(text, "reply ") {
                let rule = rule.strip_prefix("reply ").unwrap().trim();
                assert!(super::super::reply_rule::parse(rule).is_ok_and(|r| !r.actions.is_empty()), "{name}: {rule}");
                assert!(regex(rule, rule).unwrap().0.is_match(reply).unwrap(), "{name}: {rule} and {reply}");
            }
        }
    }

    #[test]
    fn no_rule_slows_a_path_for_what_is_said_of_a_mailbox_or_for_greylisting() {
        use worker::classify::bounce_rules::{Scope, shipped};
        let of_mailboxes: Vec<_> =
            shipped().filter(|r| r.scope == Scope::Recipient || r.category == "quota-issues").collect();
        for (name, text) in ALL {
            for (rule, _) in examples(text, "reply ") {
                let rule = rule.strip_prefix("reply ").unwrap().trim();
                let expression = regex(rule, rule).unwrap().0;
                let hit: Vec<&str> = of_mailboxes
                    .iter()
                    .filter(|r| expression.is_match(r.example).unwrap())
                    // Apple names a mailbox in this reply, and means the amount of mail that is sent.
                    .filter(|r| !r.example.contains("deferred due to excessive volume"))
                    .map(|r| r.example)
                    .collect();
                assert!(hit.is_empty(), "{name}: {rule} hits {hit:?}");
            }
        }
    }

    #[test]
    fn every_profile_is_well_formed_and_compiled_in() {
        assert!(ALL.len() >= 45);
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../etc/profiles");
        let mut files: Vec<String> =
            std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
        files.sort();
        let mut names: Vec<String> = ALL.iter().map(|(n, _)| format!("{n}.conf")).collect();
        names.sort();
        assert_eq!(files, names);
        for (name, text) in ALL {
            let mut r = Reader::default();
            let statements = r.text(Path::new(name), text);
            assert!(r.diagnostics.is_empty(), "{name}: {:?}", r.diagnostics);
            assert!(statements.iter().any(|s| &*s.name == "<domain>"), "{name}");
            assert!(text.contains("# Confidence of the figures: ") && !title(text).is_empty(), "{name}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        let checked = super::super::compile(Some(file.path()), &Default::default()).unwrap();
        assert!(checked.diagnostics.is_empty(), "{:?}", checked.diagnostics);
    }
}
