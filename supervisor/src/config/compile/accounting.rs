//! `<acct-file>`: which rows go where, and with which columns.

use ipc::rules::Value;
use ipc::snapshot::{Accounting, RecordFields};
use worker::account::field::{self, RecordType, record_type};

use super::super::records;
use super::super::syntax::Statement;
use super::{Accepted, Compiler, Diagnostic};

/// Record types that something writes.
const WRITTEN: &[u8] = b"dbtqr";
/// Fields that have a column where they are asked for, and nothing in it: code of the warning, and why.
const EMPTY: &[(&str, &str, &str)] = &[
    ("timeFirstAttempt", "pending", "the time of the first attempt is not kept yet"),
    ("timeImprinted", "obsolete", "nothing has imprinted mail since PowerMTA 4"),
];
/// Characters of a command that its buffer's folder is named by.
const FOLDER_NAME_MAX: usize = 80;

impl<'s> Compiler<'s> {
    pub(super) fn accounting(&mut self, s: &'s Statement) {
        // One file has one spelling: ./x and x are the same.
        let path: std::path::PathBuf =
            std::path::Path::new(&*s.value).components().filter(|c| *c != std::path::Component::CurDir).collect();
        let mut a = Accounting {
            // Later releases of PowerMTA go by the name.
            json: path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json")),
            path: path.display().to_string(),
            max_size: 250 << 20,
            delete_after_ms: 8 * 86_400_000,
            iso_times: true,
            retry_interval_ms: 300_000,
            write_timeout_ms: 60_000,
            privacy: "retain".into(),
            min_free_space: 16 << 20,
            ..Default::default()
        };
        let mut named: Vec<RecordType> = vec![(b'd', "d"), (b'b', "b")];
        let mut types = named.clone();
        let mut asked: Vec<(&'s Statement, RecordType, Vec<String>)> = Vec::new();
        let mut mapped = Vec::new();
        for i in &s.inside {
            match (&*i.name, self.check("acct-file", i).and_then(Accepted::in_force)) {
                ("records", Some(Value::TextList(l))) => {
                    named = l.iter().filter_map(|w| record_type(w)).collect();
                    types = self.written(i, &named);
                }
                ("record-fields", Some(Value::Text(t))) => {
                    asked.extend(records::fields(&t).ok().map(|(record, fields)| (i, record, fields)));
                }
                ("map-header-to-field", Some(Value::Text(t))) => {
                    mapped.extend(
                        records::header_map(&t).ok().map(|(r, header, field)| (i, r, header.to_owned(), field)),
                    );
                }
                // Checked with the value.
                ("queue-filter", Some(Value::Text(t))) => {
                    a.filter = records::queue_filter(&t).unwrap_or_default();
                    if !a.filter.is_empty() && a.filter.iter().all(|f| f.excludes) {
                        let text = "the filter only excludes: what no entry matches is left out as well";
                        self.warning(i.value_at(), "no-effect", text, "end it with */* to take all others");
                    }
                }
                ("move-to", Some(Value::Text(t))) => {
                    self.writes_to(i, &t);
                    a.move_to = t;
                }
                ("move-interval", Some(Value::Millis(n))) => a.move_interval_ms = n,
                ("min-free-space", Some(Value::Number(n))) => a.min_free_space = n,
                ("max-size", Some(Value::Number(n))) => a.max_size = n,
                ("delete-after", Some(Value::Millis(n))) => a.delete_after_ms = n,
                ("retry-interval", Some(Value::Millis(n))) => a.retry_interval_ms = n,
                ("write-timeout", Some(Value::Millis(n))) => a.write_timeout_ms = n,
                ("iso-times", Some(Value::Flag(b))) => a.iso_times = b,
                ("world-readable", Some(Value::Flag(b))) => a.world_readable = b,
                ("count-moved-records", Some(Value::Flag(b))) => a.count_moved_records = b,
                ("format", Some(Value::Number(n))) => a.json = n == 1,
                ("user-string", Some(Value::Text(t))) => a.user_string = t,
                ("privacy-policy", Some(Value::Text(t))) => a.privacy = t,
                _ => {}
            }
        }
        for (i, record, fields) in &asked {
            if !named.contains(record) {
                let text = format!("the file takes no records of type {}", record.1);
                self.warning(i.value_at(), "no-effect", text, "name it in records");
            } else if let Some((later, ..)) = asked.iter().rfind(|(_, r, _)| r == record).filter(|(l, ..)| l.at != i.at)
            {
                let message = format!("record-fields of type {} are given again below", record.1);
                let d = Diagnostic::warning(i.at, "defined-again", message, "one line lists all columns of a type");
                self.reader.diagnostics.push(d.with(later.at, "counts"));
            }
            for &(name, code, text) in EMPTY.iter().filter(|(name, ..)| fields.iter().any(|f| f == name)) {
                self.warning(i.value_at(), code, format!("{name} stays empty: {text}"), "");
            }
        }
        for (i, record, ..) in mapped.iter().filter(|(_, r, ..)| !named.contains(r)) {
            self.warning(i.value_at(), "no-effect", format!("the file takes no records of type {}", record.1), "");
        }
        a.fields = types
            .iter()
            .map(|t| {
                // The last line for a type counts.
                let own = asked.iter().rev().find(|(_, r, _)| r == t).map(|(_, _, fields)| fields.clone());
                let default = || field::native(t.0);
                let fields = own.unwrap_or_else(|| default().iter().map(|f| (*f).to_owned()).collect());
                let of_type = mapped.iter().filter(|(_, r, ..)| r == t);
                let headers = of_type.map(|(_, _, header, field)| (header.clone(), field.clone())).collect();
                RecordFields { record: t.1.to_owned(), fields, headers }
            })
            .collect();
        for (name, only) in
            [("retry-interval", true), ("write-timeout", true), ("move-to", false), ("delete-after", false)]
        {
            if let Some(i) = s.inside.iter().find(|i| &*i.name == name).filter(|_| only != s.value.starts_with('|')) {
                let of = if only { "a program that reads the rows (|command)" } else { "files, not for a program" };
                self.warning(i.at, "no-effect", format!("{name} is for {of}"), "");
            }
        }
        if let Some(i) = s.inside.iter().find(|i| &*i.name == "move-interval").filter(|_| a.move_to.is_empty()) {
            self.warning(i.at, "no-effect", "move-interval is ignored without move-to", "add move-to FOLDER");
        }
        if let Some(command) = s.value.strip_prefix('|') {
            a.program = command.trim().to_owned();
            a.move_to = String::new();
            if a.program.is_empty() {
                let help = "as in <acct-file \"|/usr/local/bin/feed --all\">";
                return self.error(s.value_at(), "bad-value", "a command expected behind |", help);
            }
            a.path = format!("acct/pipes/{}/rows.csv", folder_name(&a.program));
            self.program(s, &a.program);
        }
        if self.snapshot.accounting.iter().any(|o| o.path == a.path) {
            return self.error(s.value_at(), "duplicate", format!("<acct-file {}> is given twice", &*s.value), "");
        }
        if let Some(folder) = path.parent().filter(|_| a.program.is_empty()) {
            self.writes_to(s, folder);
        }
        self.snapshot.accounting.push(a);
    }

    /// Types that are written; a type given twice counts once.
    fn written(&mut self, s: &Statement, named: &[RecordType]) -> Vec<RecordType> {
        let mut all: Vec<RecordType> = Vec::new();
        for t in named {
            if !WRITTEN.contains(&t.0) {
                self.warning(s.value_at(), "pending", format!("records of type {} are not written yet", t.1), "");
            } else if !all.contains(t) {
                all.push(*t);
            }
        }
        all
    }
}

/// What a command's buffer is called: its letters and digits, and whatever tells it from others.
fn folder_name(command: &str) -> String {
    let plain: String = command.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let short: String = plain.trim_matches('-').chars().take(FOLDER_NAME_MAX).collect();
    format!("{short}-{:08x}", crc32c::crc32c(command.as_bytes()))
}
