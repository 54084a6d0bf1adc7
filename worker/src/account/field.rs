//! The fields of accounting records: what each type of record has, in which order, and which of
//! them a file shows (PowerMTA 5.0's names; our own are marked in the table).

/// A type of record: the byte that stands for it in the log, and its name in files.
pub type RecordType = (u8, &'static str);

/// All of them, with the other names that configurations have for them.
const TYPES: [(RecordType, &[&str]); 8] = [
    ((b'd', "d"), &["delivery", "delivered"]),
    ((b'b', "b"), &["bounce", "bounced"]),
    ((b't', "t"), &["transient"]),
    ((b'q', "tq"), &["transient-queue"]),
    ((b'r', "r"), &["receipt", "received"]),
    ((b'R', "rb"), &["remote-bounce"]),
    ((b'S', "rs"), &["remote-status"]),
    ((b'f', "f"), &["feedback-loop", "fbl"]),
];

/// The type that a word of a configuration means, in any case.
pub fn record_type(word: &str) -> Option<RecordType> {
    let is_meant = |(t, others): &&(RecordType, &[&str])| {
        t.1.eq_ignore_ascii_case(word) || others.iter().any(|o| o.eq_ignore_ascii_case(word))
    };
    TYPES.iter().find(is_meant).map(|(t, _)| *t)
}

/// The byte of a record type's short name.
pub fn kind_of(name: &str) -> Option<u8> {
    TYPES.iter().find(|((_, n), _)| *n == name).map(|((kind, _), _)| *kind)
}

/// The short name of a record type.
pub fn name_of(kind: u8) -> &'static str {
    TYPES.iter().find(|((k, _), _)| *k == kind).map_or("", |((_, name), _)| name)
}

/// Fields that the log holds with a row, in this order. Append only: rows in logs have those that there were when they were
/// written.
pub const STORED: [&str; 33] = [
    "orig",
    "rcpt",
    "orcpt",
    "dsnAction",
    "dsnStatus",
    "dsnDiag",
    "dsnMta",
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
    "dlvTlsProtocol",
    "dlvTlsCipher",
    "dlvTlsVerified",
    "dlvTlsPolicy",
    "rcvSourceIp",
    "rcvDestinationIp",
    "messageId",
    "shard",
    "attempt",
    "msQueued",
    "msConnect",
    "msTransaction",
    "rcvSmtpUser",
];

/// Fields whose values are numbers, for JSON.
const NUMBERS: &[&str] =
    &["totalSecondsQueued", "dlvSize", "shard", "attempt", "msQueued", "msConnect", "msTransaction"];

/// Our own fields that cost something to know: they are put into rows only when a file shows one.
pub const OWN: &[&str] = &["messageId", "shard", "attempt", "msQueued", "msConnect", "msTransaction"];

/// Fields of outcomes in other versions of PowerMTA: 3.5 to 4.0, and late 5.0. Who asks for one gets its column with
/// nothing in it, for there are readers that go by the place of columns.
const EMPTY: [&str; 2] = ["timeImprinted", "timeFirstAttempt"];

/// What outcomes have by default: their times, and what is stored from the first to `vmtaPool`.
const OF_OUTCOMES: [&str; 22] = {
    let mut all = ["timeLogged"; 22];
    all[1] = "timeQueued";
    let mut i = 2;
    while i < all.len() {
        all[i] = STORED[i - 2];
        i += 1;
    }
    all
};

/// What `*` stands for, in the order of a file of this type alone.
pub fn native(kind: u8) -> &'static [&'static str] {
    match kind {
        b'd' | b'b' | b't' => &OF_OUTCOMES,
        b'q' => &[
            "timeLogged",
            "dsnStatus",
            "dsnDiag",
            "dsnMta",
            "dlvType",
            "dlvSourceIp",
            "dlvDestinationIp",
            "vmta",
            "queue",
        ],
        b'r' => &[
            "timeLogged",
            "orig",
            "rcpt",
            "orcpt",
            "srcType",
            "srcMta",
            "rcvSourceIp",
            "rcvDestinationIp",
            "vmta",
            "jobId",
            "envId",
        ],
        b'R' => &[
            "timeLogged",
            "orig",
            "rcpt",
            "orcpt",
            "dsnStatus",
            "dsnDiag",
            "dsnMta",
            "dsnReportingMta",
            "bounceCat",
            "srcType",
            "srcMta",
            "envId",
            "format",
        ],
        b'S' => &[
            "timeLogged",
            "orig",
            "rcpt",
            "orcpt",
            "dsnAction",
            "dsnStatus",
            "dsnDiag",
            "dsnMta",
            "bounceCat",
            "srcType",
            "srcMta",
            "envId",
            "format",
        ],
        b'f' => &[
            "timeLogged",
            "repSourceIp",
            "feedbackType",
            "format",
            "userAgent",
            "envId",
            "orig",
            "rcpt",
            "reportingMta",
            "dlvSourceIp",
            "reportedDomain",
            "header_From",
            "header_Return-Path",
            "header_X-job",
            "header_Subject",
        ],
        _ => &[],
    }
}

/// What a file may ask for beside those; the second half are our own.
fn on_request(kind: u8) -> &'static [&'static str] {
    match kind {
        b'd' | b'b' | b't' => &[
            "totalSecondsQueued",
            "rcvSmtpUser",
            "userString",
            "dlvTlsProtocol",
            "dlvTlsCipher",
            "dlvTlsVerified",
            "dlvTlsPolicy",
            "messageId",
            "shard",
            "attempt",
            "msQueued",
            "msConnect",
            "msTransaction",
        ],
        b'q' => &["userString", "shard"],
        b'r' => &["vmtaPool", "rcvSmtpUser", "userString", "messageId", "shard"],
        b'R' => &["dsnAction", "userString"],
        b'S' | b'f' => &["userString"],
        _ => &[],
    }
}

/// Every field of any record, as the files name it.
pub fn all() -> impl Iterator<Item = &'static str> {
    let mut seen: Vec<&'static str> = vec!["type"];
    for ((kind, _), _) in TYPES {
        for f in native(kind).iter().chain(on_request(kind)).filter(|f| !f.starts_with("header_")) {
            if !seen.contains(f) {
                seen.push(f);
            }
        }
    }
    seen.into_iter()
}

/// The field of that name that records of `kind` have, as files name it; names count in any
/// case. Headers (`header_X`, of complaints `arf_X` too) keep the case they are asked for in.
pub fn of_kind(kind: u8, name: &str) -> Option<String> {
    let lower = name.to_ascii_lowercase();
    let header = lower.strip_prefix("header_").filter(|_| kind != b'q');
    let arf = lower.strip_prefix("arf_").filter(|_| kind == b'f');
    if header.or(arf).is_some_and(|h| !h.is_empty()) {
        return Some(name.to_owned());
    }
    let empty: &[&str] = if matches!(kind, b'd' | b'b' | b't') { &EMPTY } else { &[] };
    let known = native(kind).iter().chain(on_request(kind)).chain(empty).find(|f| f.eq_ignore_ascii_case(name));
    known.map(|f| (*f).to_owned())
}

/// Whether a field is, or was, one of any records: leaving it out is never wrong.
fn is_known(name: &str) -> bool {
    let is = |f: &str| f.eq_ignore_ascii_case(name);
    !is("type") && all().chain(EMPTY.iter().copied()).any(is)
}

/// Whether its values are numbers.
pub fn is_number(name: &str) -> bool {
    NUMBERS.contains(&name)
}

/// The fields that `record-fields` asks for with `list`, in the order of columns.
///
/// # Errors
/// The item that is no field of such records.
pub fn asked<'a>(kind: u8, list: impl Iterator<Item = &'a str> + Clone) -> Result<Vec<String>, &'a str> {
    let left_out = |i: &&str| i.starts_with('!');
    // A list that only leaves out leaves out of the default.
    let mut all: Vec<String> = Vec::new();
    if list.clone().all(|i| left_out(&i)) {
        all.extend(native(kind).iter().map(|f| (*f).to_owned()));
    }
    let mut star = false;
    for item in list.clone().filter(|i| !left_out(i) && !i.eq_ignore_ascii_case("type")) {
        let new = match item {
            "*" => native(kind).iter().map(|f| (*f).to_owned()).collect(),
            i => vec![of_kind(kind, i).ok_or(i)?],
        };
        star |= item == "*";
        for f in new {
            if all.iter().any(|a| a.eq_ignore_ascii_case(&f)) {
                continue;
            }
            // The one addition to the default that has a place in it.
            let queued = all.iter().position(|a| a == "timeQueued").filter(|_| star && f == "totalSecondsQueued");
            all.insert(queued.map_or(all.len(), |i| i + 1), f);
        }
    }
    for item in list.filter(left_out) {
        let name = &item[1..];
        if of_kind(kind, name).is_none() && !is_known(name) {
            return Err(item);
        }
        all.retain(|f| !f.eq_ignore_ascii_case(name));
    }
    Ok(all)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn list(kind: u8, text: &str) -> Result<String, String> {
        asked(kind, text.split(',')).map(|f| f.join(",")).map_err(str::to_owned)
    }

    #[test]
    fn lists_replace_extend_and_leave_out() {
        assert_eq!(list(b'd', "timelogged,RCPT,envid").unwrap(), "timeLogged,rcpt,envId");
        let all = list(b'd', "*,!orcpt,header_X-Id,totalSecondsQueued").unwrap();
        assert!(all.starts_with("timeLogged,timeQueued,totalSecondsQueued,orig,rcpt,dsnAction"));
        assert!(all.ends_with("vmtaPool,header_X-Id"));
        assert_eq!(
            list(b'q', "!dsnMta,!vmta").unwrap(),
            "timeLogged,dsnStatus,dsnDiag,dlvType,dlvSourceIp,dlvDestinationIp,queue"
        );
        assert_eq!(list(b'r', "type,rcpt,rcpt").unwrap(), "rcpt");
        assert_eq!(list(b'r', "dsnDiag"), Err("dsnDiag".into()));
        assert_eq!(list(b'q', "header_X"), Err("header_X".into()));
        assert_eq!(list(b'd', "header_"), Err("header_".into()));
        assert_eq!(list(b'R', "rcpt,dsnAction,userString").unwrap(), "rcpt,dsnAction,userString");
        // What records never had, or have no more, can be left out and, of outcomes, asked for.
        assert_eq!(list(b'b', "*,!timeimprinted,!rcvSourceIp"), list(b'b', "*"));
        assert_eq!(list(b'b', "rcpt,timeImprinted").unwrap(), "rcpt,timeImprinted");
        assert_eq!(list(b'r', "timeImprinted"), Err("timeImprinted".into()));
        assert_eq!(list(b'r', "!type"), Err("!type".into()));
        assert_eq!(list(b'r', "!orcp"), Err("!orcp".into()));
    }

    #[test]
    fn every_field_of_outcomes_and_receipts_is_stored_or_made() {
        let made = ["timeLogged", "timeQueued", "totalSecondsQueued", "userString"];
        for kind in [b'd', b'q', b'r'] {
            for f in native(kind).iter().chain(on_request(kind)) {
                assert!(STORED.contains(f) || made.contains(f), "{f}");
            }
        }
    }
}
