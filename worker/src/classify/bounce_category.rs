//! `bounceCat` and the words of a status in accounting.

use super::bounce_rules::{Class, Rules};
use super::outcome::Stage;
use super::outcome::Verdict;

/// The category to account for a failed or deferred recipient: by the receiver's reply, or by
/// the status of our own decision (RFC 3463).
pub fn of<'a>(rules: &'a Rules, v: &'a Verdict) -> &'a str {
    if v.stage == Stage::Suppressed {
        return if v.status == "5.1.3" { "bad-mailbox" } else { "suppressed" };
    }
    // Of mail that expired the last reply is told; why it ended is that it expired.
    if v.remote && !v.status.ends_with(".4.7") {
        return class(rules, v).category;
    }
    // Our own decisions have a status each; without one nothing fits.
    let (_, detail) = v.status.split_once('.').unwrap_or_default();
    match detail {
        "1.1" | "1.3" => "bad-mailbox",
        "1.2" | "1.10" => "bad-domain",
        "3.4" | "6.3" | "6.7" => "content-related",
        "3.5" => "bad-configuration",
        "4.1" => "no-answer-from-host",
        "4.2" => "bad-connection",
        "4.3" | "4.4" | "4.6" => "routing-errors",
        "4.7" => "message-expired",
        d if d.starts_with("5.") => "protocol-errors",
        d if d.starts_with("7.") => "policy-related",
        _ => "other",
    }
}

/// What a receiver's reply is found to be.
pub fn class<'a>(rules: &'a Rules, v: &Verdict) -> Class<'a> {
    rules.classify(&v.diagnostic, &v.status, v.stage)
}

/// The words that accounting puts behind a status: `5.1.1 (bad destination mailbox address)`.
/// `remote`: a receiver gave it.
pub fn words(status: &str, remote: bool) -> &'static str {
    let mut parts = status.splitn(2, '.');
    let (class, detail) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    match (class, detail) {
        ("2", _) => "success",
        (_, "1.1") => "bad destination mailbox address",
        (_, "1.2") => "bad destination system address",
        (_, "1.3") => "bad destination mailbox address syntax",
        (_, "1.10") => "recipient address has null MX",
        (_, "2.0") => "mailbox-related failure",
        (_, "2.1") => "mailbox disabled, not accepting messages",
        (_, "2.2") => "mailbox full",
        (_, "3.0") => "mail system-related failure",
        (_, "3.4") => "message too big for system",
        // Of our own there is one reason.
        (_, "3.5") if !remote => "no such virtual MTA",
        (_, "3.5") => "system incorrectly configured",
        (_, "4.1") => "no answer from host",
        (_, "4.2") => "bad connection",
        (_, "4.3") => "directory server failure",
        (_, "4.4") => "unable to route",
        (_, "4.7") => "delivery time expired",
        (_, "5.0") => "protocol-related failure",
        (_, "5.1") => "invalid command",
        (_, "5.2") => "syntax error",
        (_, "5.4") => "invalid command arguments",
        (_, "6.3") => "conversion required but not supported",
        (_, "7.0") => "other or undefined security status",
        (_, "7.1") => "delivery not authorized",
        _ => "undefined status",
    }
}
