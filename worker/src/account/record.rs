//! One accounting row as it stands in the log, and the values that it gives to fields.

use std::borrow::Cow;

use ipc::message::{ArchivedEnvelope, ArchivedSourceType, MessageId};

use super::field::STORED;
use crate::prepare::vmta_name::name_or_default;

/// A row of any type. Empty fields say that there is nothing to say.
#[derive(Debug, Clone)]
pub struct Row {
    /// The type, see [`super::field::RecordType`].
    pub kind: u8,
    /// Unix milliseconds of the event.
    pub logged_ms: i64,
    /// Unix milliseconds of acceptance.
    pub queued_ms: i64,
    /// In the order of [`STORED`].
    pub fields: [String; STORED.len()],
    /// Headers of the message that some file shows: name as the file has it, value on one line.
    pub headers: Vec<(String, String)>,
    /// Lines that it stands for, if more than one: of an address that was given twice in a message two ended at once.
    pub times: usize,
}

impl Default for Row {
    fn default() -> Self {
        let fields = std::array::from_fn(|_| String::new());
        Row { kind: 0, logged_ms: 0, queued_ms: 0, fields, headers: Vec::new(), times: 0 }
    }
}

/// Place of a field in [`STORED`].
///
/// # Panics
/// At compile time, for a name that is not there.
pub const fn stored(name: &str) -> usize {
    let mut i = 0;
    while i < STORED.len() {
        if same(STORED[i].as_bytes(), name.as_bytes()) {
            return i;
        }
        i += 1;
    }
    panic!("no such field")
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut i = 0;
    while i < a.len() {
        if a[i] != b[i] {
            return false;
        }
        i += 1;
    }
    true
}

/// Stands before a header in a row's bytes; values do not hold it.
const HEADER_MARK: u8 = 1;

impl Row {
    /// Sets a field by its place, see [`stored`].
    pub fn set(&mut self, at: usize, value: impl Into<String>) {
        self.fields[at] = value.into();
    }

    /// The row's bytes in the log: type, times, fields ended by NUL, headers `name:value`.
    pub fn encode(&self) -> Vec<u8> {
        let len: usize = self.fields.iter().map(|f| f.len() + 1).sum();
        let more: usize = self.headers.iter().map(|(n, v)| n.len() + v.len() + 3).sum();
        let mut out = Vec::with_capacity(17 + len + more);
        out.push(self.kind);
        out.extend_from_slice(&self.logged_ms.to_le_bytes());
        out.extend_from_slice(&self.queued_ms.to_le_bytes());
        let put = |text: &str, out: &mut Vec<u8>| match text.bytes().any(|b| b <= HEADER_MARK) {
            true => out.extend(text.bytes().filter(|b| *b > HEADER_MARK)),
            false => out.extend_from_slice(text.as_bytes()),
        };
        let last = self.fields.iter().rposition(|f| !f.is_empty()).map_or(0, |i| i + 1);
        for f in &self.fields[..last] {
            put(f, &mut out);
            out.push(0);
        }
        if self.times > 1 {
            // As a header without a name, which no message has.
            out.push(HEADER_MARK);
            out.extend_from_slice(format!(":{}", self.times).as_bytes());
            out.push(0);
        }
        for (name, value) in &self.headers {
            out.push(HEADER_MARK);
            put(name, &mut out);
            out.push(b':');
            put(value, &mut out);
            out.push(0);
        }
        out
    }
}

/// A row as it lies in the log.
#[derive(Debug)]
pub struct View<'a> {
    /// The type.
    pub kind: u8,
    /// Unix milliseconds of the event.
    pub logged_ms: i64,
    /// Unix milliseconds of acceptance.
    pub queued_ms: i64,
    fields: [&'a [u8]; STORED.len()],
    headers: Vec<&'a [u8]>,
}

impl<'a> View<'a> {
    /// Reads a row; `None` for bytes that are none.
    pub fn of(row: &'a [u8]) -> Option<View<'a>> {
        let (&kind, rest) = row.split_first()?;
        let (logged, rest) = rest.split_first_chunk::<8>()?;
        let (queued, rest) = rest.split_first_chunk::<8>()?;
        let mut v = View {
            kind,
            logged_ms: i64::from_le_bytes(*logged),
            queued_ms: i64::from_le_bytes(*queued),
            fields: [b""; STORED.len()],
            headers: Vec::new(),
        };
        let (mut from, mut n) = (0, 0);
        for end in memchr::memchr_iter(0, rest) {
            let part = &rest[from..end];
            from = end + 1;
            if let Some(header) = part.strip_prefix(&[HEADER_MARK]) {
                v.headers.push(header);
            } else if let Some(field) = v.fields.get_mut(n) {
                *field = part;
                n += 1;
            }
        }
        Some(v)
    }

    /// The value of a stored field.
    pub fn field(&self, at: usize) -> Cow<'a, str> {
        String::from_utf8_lossy(self.fields.get(at).copied().unwrap_or_default())
    }

    /// Lines that it stands for.
    pub fn times(&self) -> usize {
        let n = self.header("").and_then(|n| n.parse().ok()).unwrap_or(1u16);
        usize::from(n.max(1))
    }

    /// The first header of that name, which counts in any case.
    pub fn header(&self, name: &str) -> Option<Cow<'a, str>> {
        let named = |h: &&&[u8]| {
            h.len() > name.len() && h[name.len()] == b':' && h[..name.len()].eq_ignore_ascii_case(name.as_bytes())
        };
        self.headers.iter().find(named).map(|h| String::from_utf8_lossy(&h[name.len() + 1..]))
    }
}

/// The `r` rows of a message, one a recipient. `headers` are those that files show.
pub fn receipts(e: &ArchivedEnvelope, headers: &[(String, String)], shard: u8) -> impl Iterator<Item = Row> {
    e.recipients.iter().map(move |r| {
        let mut row = Row {
            kind: b'r',
            logged_ms: crate::clock::wall_ms(e.received_unix_ms.to_native()),
            queued_ms: crate::clock::wall_ms(e.received_unix_ms.to_native()),
            headers: headers.to_vec(),
            ..Default::default()
        };
        row.set(const { stored("orig") }, e.sender_to(&r.address).as_ref());
        row.set(const { stored("rcpt") }, r.address.as_str());
        row.set(const { stored("orcpt") }, r.orcpt.as_str());
        row.times = r.times_given();
        row.set(const { stored("srcType") }, source_type(&e.source_type));
        row.set(const { stored("srcMta") }, source_mta(e));
        row.set(const { stored("vmta") }, name_or_default(&e.vmta));
        row.set(const { stored("jobId") }, e.job_id.as_str());
        row.set(const { stored("envId") }, e.envid.as_str());
        row.set(const { stored("rcvSourceIp") }, e.source_ip.as_str());
        row.set(const { stored("rcvSmtpUser") }, e.smtp_user());
        row.set(const { stored("rcvDestinationIp") }, e.local_ip());
        row.set(const { stored("messageId") }, MessageId(e.id.0).to_string());
        row.set(const { stored("shard") }, shard.to_string());
        row
    })
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
    match (e.hello(), e.source_ip.as_str()) {
        ("", "") => String::new(),
        (name, "") => name.to_owned(),
        (name, ip) => format!("{name} ({ip})"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rows_come_back_from_the_log(fields in proptest::collection::vec("[a-z,\"é\u{1}]{0,6}", STORED.len()), value in ".{0,9}", times: u16) {
            let row = Row {
                kind: b'b',
                logged_ms: 7,
                queued_ms: -1,
                fields: std::array::from_fn(|i| fields[i].clone()),
                headers: vec![("X-Id".into(), value.clone())],
                times: usize::from(times),
            };
            let bytes = row.encode();
            let v = View::of(&bytes).unwrap();
            for (i, f) in fields.iter().enumerate() {
                prop_assert_eq!(v.field(i), f.replace('\u{1}', ""));
            }
            prop_assert_eq!(v.header("x-id").unwrap(), value.replace(['\u{0}', '\u{1}'], ""));
            prop_assert_eq!(v.times(), usize::from(times.max(1)));
            prop_assert!(v.header("x-i").is_none() && v.header("x-idx").is_none());
        }

        #[test]
        fn any_bytes_are_a_row_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(v) = View::of(&bytes) {
                let _ = (v.field(3), v.header("a"));
            }
        }
    }
}
