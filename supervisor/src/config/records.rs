//! Types and fields of accounting records, by PowerMTA's names.

use super::diagnostic::nearest;
use super::value::{Problem, items};

/// PowerMTA's letter of a record type.
pub fn record_type(word: &str) -> Option<&'static str> {
    Some(match word.to_ascii_lowercase().as_str() {
        "d" | "delivery" | "delivered" => "d",
        "b" | "bounce" | "bounced" => "b",
        "t" | "transient" => "t",
        "tq" | "transient-queue" => "tq",
        "r" | "receipt" | "received" => "r",
        "rb" | "remote-bounce" => "rb",
        "rs" | "remote-status" => "rs",
        "f" | "feedback-loop" | "fbl" => "f",
        _ => return None,
    })
}

/// A list of record types.
///
/// # Errors
/// [`Problem`]
pub fn types(text: &str) -> Result<(), Problem> {
    items(text).try_for_each(|i| record_type(i).map(drop).ok_or_else(|| no_record_type(i).at(i, text)))
}

fn no_record_type(found: &str) -> Problem {
    Problem::expected("a record type: d, b, t, tq, r, rb, rs or f", found)
}

/// Fields of accounting records.
const FIELDS: &[&str] = &[
    "type",
    "timeLogged",
    "timeQueued",
    "totalSecondsQueued",
    "orig",
    "rcpt",
    "orcpt",
    "dsnAction",
    "dsnStatus",
    "dsnDiag",
    "dsnMta",
    "dsnReportingMta",
    "bounceCat",
    "srcType",
    "srcMta",
    "dlvType",
    "dlvSourceIp",
    "dlvDestinationIp",
    "dlvEsmtpAvailable",
    "dlvSize",
    "vmta",
    "jobId",
    "envId",
    "queue",
    "vmtaPool",
    "rcvSourceIp",
    "rcvDestinationIp",
    "rcvSmtpUser",
    "userString",
    "dlvTlsProtocol",
    "dlvTlsCipher",
    "format",
    "repSourceIp",
    "feedbackType",
    "userAgent",
    "reportingMta",
    "reportedDomain",
];

/// A record type and a list of its fields.
///
/// # Errors
/// [`Problem`]
pub fn fields(text: &str) -> Result<(), Problem> {
    let (kind, list) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    record_type(kind).ok_or_else(|| no_record_type(kind).at(kind, text))?;
    for f in items(list) {
        let name = f.strip_prefix('!').unwrap_or(f);
        let lower = name.to_ascii_lowercase();
        let free = name == "*" || lower.starts_with("header_") || lower.starts_with("arf_");
        if !free && !FIELDS.iter().any(|k| k.eq_ignore_ascii_case(name)) {
            let near = nearest(name, FIELDS.iter().copied());
            let p = Problem::expected("a field of accounting records", name).at(f, text);
            return Err(p.help(near.map(|n| format!("did you mean {n}?")).unwrap_or_default()));
        }
    }
    if items(list).next().is_none() { Err(Problem::other("the list of fields is missing")) } else { Ok(()) }
}
