//! What one accounting file shows of a row, as CSV (RFC 4180) or as a line of JSON.

use std::borrow::Cow;
use std::cell::RefCell;

use ipc::queue_orders::QueuePattern;
use ipc::snapshot::Accounting;

use super::field;
use super::privacy::Privacy;
use super::record::{View, stored};

/// Where a column takes its values from.
#[derive(Debug, Clone)]
enum Source {
    /// Records of this type have nothing there.
    None,
    Logged,
    Queued,
    SecondsQueued,
    Stored(usize),
    UserString,
    VmtaPool,
    Header(String),
    /// The first of the headers that exists, else the field itself.
    Mapped(Vec<String>, Box<Source>),
}

/// The columns of a file, and which rows it takes.
#[derive(Debug)]
pub struct Columns {
    /// Names behind `type`.
    names: Vec<String>,
    /// For each type that the file takes: a source for each column.
    kinds: Vec<(u8, Vec<Source>)>,
    json: bool,
    iso: bool,
    user_string: String,
    pools: Vec<String>,
    filter: Vec<(bool, QueuePattern)>,
    privacy: Privacy,
}

impl Columns {
    /// The columns that an `<acct-file>` asks for.
    pub fn of(a: &Accounting) -> Columns {
        let mut names: Vec<String> = Vec::new();
        for r in &a.fields {
            for f in &r.fields {
                if !names.iter().any(|n| n.eq_ignore_ascii_case(f)) {
                    names.push(f.clone());
                }
            }
        }
        let kinds = a.fields.iter().filter_map(|r| {
            let source = |name: &String| match r.fields.iter().any(|f| f.eq_ignore_ascii_case(name)) {
                true => source_of(&r.record, name, &r.headers),
                false => Source::None,
            };
            Some((field::kind_of(&r.record)?, names.iter().map(source).collect()))
        });
        Columns {
            kinds: kinds.collect(),
            json: a.json,
            iso: a.iso_times,
            user_string: a.user_string.clone(),
            pools: a.pools.clone(),
            filter: a.filter.iter().map(|f| (f.excludes, f.of.clone())).collect(),
            // The configuration was checked; whatever came of it, nothing is shown by mistake.
            privacy: Privacy::parse(&a.privacy).unwrap_or(Privacy::Redact("...".into())),
            names,
        }
    }

    /// Records of this type go into the file.
    pub fn takes(&self, kind: u8) -> bool {
        self.kinds.iter().any(|(k, _)| *k == kind)
    }

    /// Types of records that it takes.
    pub fn kinds(&self) -> impl Iterator<Item = u8> {
        self.kinds.iter().map(|(k, _)| *k)
    }

    /// Headers that it shows of records of this type.
    pub fn headers(&self, kind: u8) -> Vec<&str> {
        let mut all: Vec<&str> = Vec::new();
        for s in self.kinds.iter().filter(|(k, _)| *k == kind).flat_map(|(_, s)| s) {
            match s {
                Source::Header(name) => all.push(name),
                Source::Mapped(names, of) => {
                    all.extend(names.iter().map(String::as_str));
                    if let Source::Header(name) = &**of {
                        all.push(name);
                    }
                }
                _ => {}
            }
        }
        all
    }

    /// It shows one of our own fields of outcomes.
    pub fn shows_own(&self) -> bool {
        self.names.iter().any(|n| field::OWN.contains(&n.as_str()))
    }

    /// The first line of a file; empty for JSON.
    pub fn header_line(&self) -> String {
        match self.json {
            true => String::new(),
            false => {
                let mut line = b"type".to_vec();
                for n in &self.names {
                    line.push(b',');
                    write_cell(n.as_bytes(), &mut line);
                }
                line.extend_from_slice(b"\r\n");
                String::from_utf8_lossy(&line).into_owned()
            }
        }
    }

    /// Appends the row's line, if the file takes it.
    pub fn write(&self, v: &View, out: &mut Vec<u8>) {
        let Some((_, sources)) = self.kinds.iter().find(|(k, _)| *k == v.kind) else { return };
        if !self.passes(v) {
            return;
        }
        let name = field::name_of(v.kind);
        if self.json {
            out.extend_from_slice(b"{\"type\":\"");
            out.extend_from_slice(name.as_bytes());
            out.push(b'"');
            for (column, source) in self.names.iter().zip(sources) {
                if !matches!(source, Source::None) {
                    out.push(b',');
                    write_json_text(column, out);
                    out.push(b':');
                    self.write_json_value(column, source, v, out);
                }
            }
            out.extend_from_slice(b"}\n");
            return;
        }
        out.extend_from_slice(name.as_bytes());
        for source in sources {
            out.push(b',');
            match source {
                Source::Logged => write_time(v.logged_ms, self.iso, out),
                Source::Queued => write_time(v.queued_ms, self.iso, out),
                s => write_cell(self.value(s, v).as_bytes(), out),
            }
        }
        out.extend_from_slice(b"\r\n");
    }

    /// `queue-filter`: the first pattern that matches decides; without a match the row is
    /// dropped. Receipts are not of a queue.
    fn passes(&self, v: &View) -> bool {
        if self.filter.is_empty() || !matches!(v.kind, b'd' | b'b' | b't' | b'q') {
            return true;
        }
        let queue = v.field(const { stored("queue") });
        let (shown, vmta) = queue.rsplit_once('/').unwrap_or((&queue, ""));
        // Rows name internationalised domains as people write them.
        let domain = ipc::message::normalise_domain(shown);
        let domain = domain.as_deref().unwrap_or(shown);
        self.filter.iter().find(|(_, of)| of.matches(domain, vmta)).is_some_and(|(excludes, _)| !excludes)
    }

    fn value<'a>(&'a self, source: &'a Source, v: &View<'a>) -> Cow<'a, str> {
        match source {
            Source::None | Source::Logged | Source::Queued => Cow::Borrowed(""),
            Source::SecondsQueued => ((v.logged_ms - v.queued_ms).max(0) / 1000).to_string().into(),
            Source::UserString => Cow::Borrowed(self.user_string.as_str()),
            Source::Header(name) => v.header(name).unwrap_or_default(),
            Source::Mapped(names, field) => {
                let found = names.iter().find_map(|n| v.header(n));
                match (found, &**field) {
                    // The header stands where an address would.
                    (Some(h), Source::Stored(RCPT)) if !self.privacy.retains() => self.privacy.address(&h).into(),
                    (Some(h), _) => h,
                    (None, field) => self.value(field, v),
                }
            }
            Source::VmtaPool => {
                let via = v.field(const { stored("vmta") });
                if self.pools.iter().any(|p| p.eq_ignore_ascii_case(&via)) { via } else { "".into() }
            }
            Source::Stored(at) if self.privacy.retains() => v.field(*at),
            Source::Stored(RCPT) => self.privacy.address(&v.field(RCPT)).into(),
            Source::Stored(at) if [ORIG, ORCPT, DSN_DIAG].contains(at) => {
                let text = self.privacy.text(&v.field(*at), &v.field(RCPT));
                // What the sender gave as the original recipient may be another address.
                match text.split_once(';').filter(|_| *at == ORCPT) {
                    Some((kind, address)) if text == v.field(*at) => {
                        format!("{kind};{}", self.privacy.address(address)).into()
                    }
                    _ => text.into(),
                }
            }
            Source::Stored(at) => v.field(*at),
        }
    }

    fn write_json_value(&self, column: &str, source: &Source, v: &View, out: &mut Vec<u8>) {
        let time = match source {
            Source::Logged => Some(v.logged_ms),
            Source::Queued => Some(v.queued_ms),
            _ => None,
        };
        if let Some(ms) = time {
            if self.iso {
                out.push(b'"');
            }
            write_time(ms, self.iso, out);
            if self.iso {
                out.push(b'"');
            }
            return;
        }
        let value = self.value(source, v);
        if !field::is_number(column) {
            write_json_text(&value, out);
        } else if value.is_empty() {
            out.extend_from_slice(b"null");
        } else if value.parse::<u64>().is_ok_and(|n| n.to_string() == value) {
            out.extend_from_slice(value.as_bytes());
        } else {
            // A header mapped to the field may hold anything.
            write_json_text(&value, out);
        }
    }
}

const RCPT: usize = stored("rcpt");
const ORIG: usize = stored("orig");
const ORCPT: usize = stored("orcpt");
const DSN_DIAG: usize = stored("dsnDiag");

fn source_of(record: &str, name: &str, headers: &[(String, String)]) -> Source {
    let of: Vec<String> =
        headers.iter().filter(|(_, f)| f.eq_ignore_ascii_case(name)).map(|(header, _)| header.clone()).collect();
    match of.is_empty() {
        true => plain(record, name),
        false => Source::Mapped(of, Box::new(plain(record, name))),
    }
}

fn plain(record: &str, name: &str) -> Source {
    if (record, name) == ("r", "vmtaPool") {
        return Source::VmtaPool;
    }
    if let Some(at) = field::STORED.iter().position(|s| *s == name) {
        return Source::Stored(at);
    }
    match name {
        "timeLogged" => Source::Logged,
        "timeQueued" => Source::Queued,
        "totalSecondsQueued" => Source::SecondsQueued,
        "userString" => Source::UserString,
        n => n
            .get(..7)
            .filter(|p| p.eq_ignore_ascii_case("header_"))
            .map_or(Source::None, |_| Source::Header(n[7..].into())),
    }
}

/// A CSV cell by RFC 4180.
pub fn write_cell(cell: &[u8], out: &mut Vec<u8>) {
    if !cell.iter().any(|b| matches!(b, b',' | b'"' | b'\r' | b'\n')) {
        out.extend_from_slice(cell);
        return;
    }
    out.push(b'"');
    for b in cell {
        if *b == b'"' {
            out.push(b'"');
        }
        out.push(*b);
    }
    out.push(b'"');
}

/// A JSON string (RFC 8259 §7).
fn write_json_text(text: &str, out: &mut Vec<u8>) {
    // Neither writing to memory nor a string can fail.
    let _ = serde_json::to_writer(out, text);
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
    use ipc::snapshot::{QueueFilter, RecordFields};

    use super::super::record::Row;
    use super::*;

    fn asks(record: &str, fields: &str) -> RecordFields {
        let kind = field::kind_of(record).unwrap();
        RecordFields {
            record: record.into(),
            fields: field::asked(kind, fields.split(',')).unwrap(),
            headers: Vec::new(),
        }
    }

    fn open() -> Accounting {
        Accounting { privacy: "retain".into(), ..Default::default() }
    }

    fn line(a: &Accounting, row: &Row) -> String {
        let mut out = Vec::new();
        Columns::of(a).write(&View::of(&row.encode()).unwrap(), &mut out);
        String::from_utf8(out).unwrap()
    }

    fn bounce() -> Row {
        let mut row = Row { kind: b'b', logged_ms: 9_500, queued_ms: 2_000, ..Default::default() };
        row.set(stored("orig"), "a\"b@x");
        row.set(RCPT, "ann@d.test");
        row.set(DSN_DIAG, "smtp;550 no, ann@d.test\\");
        row.set(stored("queue"), "d.test/v1");
        row.set(stored("shard"), "3");
        row.headers = vec![("X-Real".into(), "bob@e.test".into())];
        row
    }

    #[test]
    fn columns_are_the_first_types_and_what_others_add() {
        let a = Accounting {
            fields: vec![asks("d", "timeLogged,orig,rcpt,dlvSourceIp"), asks("b", "timeLogged,orig,rcpt,bounceCat")],
            ..open()
        };
        assert_eq!(Columns::of(&a).header_line(), "type,timeLogged,orig,rcpt,dlvSourceIp,bounceCat\r\n");
        assert_eq!(line(&a, &bounce()), "b,9,\"a\"\"b@x\",ann@d.test,,\r\n");
        let standard = Accounting { fields: vec![asks("d", "*"), asks("b", "*")], ..open() };
        assert_eq!(
            Columns::of(&standard).header_line(),
            "type,timeLogged,timeQueued,orig,rcpt,orcpt,dsnAction,dsnStatus,dsnDiag,dsnMta,bounceCat,srcType,srcMta,dlvType,dlvSourceIp,dlvDestinationIp,dlvEsmtpAvailable,dlvSize,vmta,jobId,envId,queue,vmtaPool\r\n"
        );
        assert!(line(&standard, &bounce()).contains(",\"smtp;550 no, ann@d.test\\\","));
    }

    #[test]
    fn json_has_the_fields_of_the_type_alone() {
        let a = Accounting {
            json: true,
            user_string: "n1".into(),
            fields: vec![
                asks("d", "dlvSourceIp"),
                asks("b", "timeLogged,orig,dsnDiag,dlvSize,shard,totalSecondsQueued,userString,header_x-real"),
            ],
            ..open()
        };
        assert_eq!(
            line(&a, &bounce()),
            r#"{"type":"b","timeLogged":9,"orig":"a\"b@x","dsnDiag":"smtp;550 no, ann@d.test\\","dlvSize":null,"shard":3,"totalSecondsQueued":7,"userString":"n1","header_x-real":"bob@e.test"}"#.to_owned() + "\n"
        );
    }

    #[test]
    fn headers_stand_for_fields_and_policies_hide_them() {
        let mut fields = asks("b", "rcpt,dsnDiag,orig");
        fields.headers =
            vec![("X-None".into(), "rcpt".into()), ("X-Real".into(), "rcpt".into()), ("X-None".into(), "orig".into())];
        let mut a = Accounting { fields: vec![fields], ..open() };
        assert_eq!(line(&a, &bounce()), "b,bob@e.test,\"smtp;550 no, ann@d.test\\\",\"a\"\"b@x\"\r\n");
        a.privacy = "redact".into();
        assert_eq!(line(&a, &bounce()), "b,...@e.test,\"smtp;550 no, ...@d.test\\\",\"a\"\"b@x\"\r\n");
    }

    #[test]
    fn the_first_pattern_that_matches_decides() {
        let filter = |text: &str, excludes| QueueFilter { excludes, of: QueuePattern::parse(text).unwrap() };
        let mut a = Accounting { fields: vec![asks("b", "rcpt")], ..open() };
        for (filters, shown) in [
            (vec![filter("d.test/v1", true), filter("*/*", false)], false),
            (vec![filter("*/v1", false), filter("d.test/v1", true)], true),
            (vec![filter("e.test/v1", true)], false),
        ] {
            a.filter = filters;
            assert_eq!(!line(&a, &bounce()).is_empty(), shown);
        }
    }
}
