//! One accounting row, as it stands in the log and as PowerMTA's CSV.

use std::cell::RefCell;

use ipc::message::ArchivedEnvelope;
use ipc::message::ArchivedSourceType;

/// Columns of `d`, `b` and `t` rows, PowerMTA 5.0's default.
pub const COLUMNS: &str = "type,timeLogged,timeQueued,orig,rcpt,orcpt,dsnAction,dsnStatus,dsnDiag,dsnMta,bounceCat,srcType,srcMta,dlvType,dlvSourceIp,dlvDestinationIp,dlvEsmtpAvailable,dlvSize,vmta,jobId,envId,queue,vmtaPool";
/// Columns that `r` rows have beside those.
pub const RECEIPT_COLUMNS: &str = "rcvSourceIp,rcvDestinationIp";
/// Columns of a file of `r` rows alone.
pub const RECEIPT_ONLY_COLUMNS: &str =
    "type,timeLogged,orig,rcpt,orcpt,srcType,srcMta,rcvSourceIp,rcvDestinationIp,vmta,jobId,envId";

/// Fields of a row behind type and times that stand in every file, in the order of [`COLUMNS`].
const FIELDS: usize = 20;
/// Fields that a file may ask for, behind those.
pub const EXTRA_FIELDS: [&str; 4] = ["dlvTlsProtocol", "dlvTlsCipher", "dlvTlsVerified", "dlvTlsPolicy"];

/// A `d`, `b` or `t` row.
#[derive(Debug, Clone, Default)]
pub struct Row {
    /// `d`, `b`, `t`
    pub kind: u8,
    /// Unix milliseconds of the event.
    pub logged_ms: i64,
    /// Unix milliseconds of acceptance.
    pub queued_ms: i64,
    /// orig … vmtaPool, in the order of [`COLUMNS`], then [`EXTRA_FIELDS`].
    pub fields: [String; FIELDS + EXTRA_FIELDS.len()],
}

impl Row {
    /// The row's bytes in the log: type, times, fields ended by NUL.
    pub fn encode(&self) -> Vec<u8> {
        let len: usize = self.fields.iter().map(|f| f.len() + 1).sum();
        let mut out = Vec::with_capacity(17 + len);
        out.push(self.kind);
        out.extend_from_slice(&self.logged_ms.to_le_bytes());
        out.extend_from_slice(&self.queued_ms.to_le_bytes());
        for f in &self.fields {
            out.extend(f.bytes().filter(|b| *b != 0));
            out.push(0);
        }
        out
    }
}

/// Appends the CSV line of an encoded row; nothing if the bytes are not one.
pub fn write_row(row: &[u8], receipts_too: bool, iso: bool, out: &mut Vec<u8>) {
    let Some((&kind, rest)) = row.split_first() else { return };
    let Some((logged, rest)) = rest.split_first_chunk::<8>() else { return };
    let Some((queued, rest)) = rest.split_first_chunk::<8>() else { return };
    out.push(kind);
    out.push(b',');
    write_time(i64::from_le_bytes(*logged), iso, out);
    out.push(b',');
    write_time(i64::from_le_bytes(*queued), iso, out);
    for f in rest.split(|b| *b == 0).take(FIELDS) {
        out.push(b',');
        write_field(f, out);
    }
    if receipts_too {
        out.extend_from_slice(b",,");
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends the `r` lines of a message, one a recipient.
pub fn write_receipts(e: &ArchivedEnvelope, alone: bool, iso: bool, out: &mut Vec<u8>) {
    for r in e.recipients.iter() {
        out.extend_from_slice(b"r,");
        write_time(e.received_unix_ms.to_native(), iso, out);
        let source = source_type(&e.source_type);
        let mta = source_mta(e);
        let vmta = if e.vmta.is_empty() { "{default}" } else { e.vmta.as_str() };
        let fields: &[&str] = if alone {
            &[&e.sender, &r.address, &r.orcpt, source, &mta, &e.source_ip, &e.local_ip, vmta, &e.job_id, &e.envid]
        } else {
            &[
                "",
                &e.sender,
                &r.address,
                &r.orcpt,
                "",
                "",
                "",
                "",
                "",
                source,
                &mta,
                "",
                "",
                "",
                "",
                "",
                vmta,
                &e.job_id,
                &e.envid,
                "",
                "",
                &e.source_ip,
                &e.local_ip,
            ]
        };
        for f in fields {
            out.push(b',');
            write_field(f.as_bytes(), out);
        }
        out.extend_from_slice(b"\r\n");
    }
}

/// `srcType`
pub fn source_type(t: &ArchivedSourceType) -> &'static str {
    match t {
        ArchivedSourceType::Smtp => "smtp",
        ArchivedSourceType::Api | ArchivedSourceType::Report => "api",
    }
}

/// `srcMta`: name and address of the submitter.
pub fn source_mta(e: &ArchivedEnvelope) -> String {
    match (e.source_name.as_str(), e.source_ip.as_str()) {
        ("", "") => String::new(),
        (name, "") => name.to_owned(),
        (name, ip) => format!("{name} ({ip})"),
    }
}

/// A CSV cell by RFC 4180.
fn write_field(f: &[u8], out: &mut Vec<u8>) {
    if !f.iter().any(|b| matches!(b, b',' | b'"' | b'\r' | b'\n')) {
        out.extend_from_slice(f);
        return;
    }
    out.push(b'"');
    for b in f {
        if *b == b'"' {
            out.push(b'"');
        }
        out.push(*b);
    }
    out.push(b'"');
}

/// `2024-03-01 09:00:07+0000` in local time, or Unix seconds.
fn write_time(unix_ms: i64, iso: bool, out: &mut Vec<u8>) {
    thread_local! {
        static LAST: RefCell<(i64, String)> = const { RefCell::new((i64::MIN, String::new())) };
    }
    let s = unix_ms.div_euclid(1000);
    if !iso {
        out.extend_from_slice(s.to_string().as_bytes());
        return;
    }
    LAST.with_borrow_mut(|(at, text)| {
        if *at != s {
            *text = crate::local_time(s, "%Y-%m-%d %H:%M:%S%z");
            *at = s;
        }
        out.extend_from_slice(text.as_bytes());
    });
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_quoted_by_rfc_4180() {
        let mut row = Row { kind: b'b', ..Default::default() };
        row.fields[0] = "a\"b@x".into();
        row.fields[5] = "550 a, b".into();
        let mut out = Vec::new();
        write_row(&row.encode(), false, false, &mut out);
        let line = String::from_utf8(out).unwrap();
        assert_eq!(line, "b,0,0,\"a\"\"b@x\",,,,,\"550 a, b\",,,,,,,,,,,,,,\r\n");
        assert_eq!(COLUMNS.split(',').count(), FIELDS + 3);
    }
}
