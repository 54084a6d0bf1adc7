//! `sluice suppress`: the suppression lists from the command line.

use std::io::{BufWriter, Read, Write};
use std::path::Path;

use ipc::operator::{Answer, Request, SuppressionRow};

use super::client::{Conversation, Target, act, table};
use crate::Failure;

/// Rows of a request or a page.
const ROWS: usize = 2_000;
/// Columns of the CSV, in order.
const COLUMNS: [&str; 6] = ["address", "list", "reason", "source", "added", "expires"];

/// What new entries have unless they say otherwise.
#[derive(Debug, Clone)]
pub struct Given {
    /// List.
    pub list: String,
    /// Reason.
    pub reason: String,
    /// When they end, Unix seconds; 0 for never.
    pub expires_unix_s: u32,
}

/// `suppress add`
///
/// # Errors
/// [`Failure`]
pub fn add(target: &Target, addresses: Vec<String>, given: &Given) -> Result<(), Failure> {
    let row = |address| SuppressionRow {
        address,
        list: given.list.clone(),
        reason: given.reason.clone(),
        source: "operator".into(),
        added_unix_s: 0,
        expires_unix_s: given.expires_unix_s,
    };
    act(target, Request::Suppress(addresses.into_iter().map(row).collect()))
}

/// `suppress list`, and `suppress export` with `csv`.
///
/// # Errors
/// [`Failure`]
pub fn list(target: &Target, list: String, address: String, json: bool, csv: bool) -> Result<(), Failure> {
    let mut server = Conversation::with(target)?;
    let mut out = Output::begin(json, csv);
    let mut after = 0;
    loop {
        let request = Request::Suppressed { list: list.clone(), address: address.clone(), after, most: ROWS as u32 };
        let Answer::Suppressed { rows, next } = server.ask(&request)? else {
            return Err(Failure::Failed("the server answered something else".into()));
        };
        out.rows(rows).map_err(|e| unwritten(&e))?;
        match next {
            Some(n) => after = n,
            None => return out.end(),
        }
    }
}

fn unwritten(e: &dyn std::fmt::Display) -> Failure {
    Failure::Failed(format!("the output cannot be written: {e}"))
}

/// Entries as they come, so that fifty million need no memory.
enum Output {
    Table(Vec<Vec<String>>),
    Json(BufWriter<std::io::Stdout>, bool),
    Csv(Box<csv::Writer<std::io::Stdout>>),
}

impl Output {
    fn begin(json: bool, csv: bool) -> Output {
        match (json, csv) {
            (true, _) => Output::Json(BufWriter::new(std::io::stdout()), false),
            (_, true) => {
                let mut w = csv::Writer::from_writer(std::io::stdout());
                // An error of the header line comes again with the rows.
                drop(w.write_record(COLUMNS));
                Output::Csv(Box::new(w))
            }
            _ => Output::Table(Vec::new()),
        }
    }

    fn rows(&mut self, rows: Vec<SuppressionRow>) -> std::io::Result<()> {
        for r in rows {
            let (added, expires) = (time(r.added_unix_s), time(r.expires_unix_s));
            match self {
                Output::Table(all) => all.push(vec![r.address, r.list, r.reason, r.source, added, expires]),
                Output::Csv(w) => {
                    let cells = [&r.address, &r.list, &r.reason, &r.source, &added, &expires];
                    w.write_record(cells.map(String::as_bytes)).map_err(std::io::Error::other)?;
                }
                Output::Json(w, more) => {
                    w.write_all(if *more { b",\n" } else { b"[" })?;
                    *more = true;
                    let never = expires.is_empty();
                    let value = serde_json::json!({
                        "address": r.address, "list": r.list, "reason": r.reason, "source": r.source,
                        "added": added, "expires": if never { None } else { Some(expires) },
                    });
                    serde_json::to_writer(w, &value)?;
                }
            }
        }
        Ok(())
    }

    fn end(self) -> Result<(), Failure> {
        match self {
            Output::Table(all) => table(&COLUMNS, all),
            Output::Csv(mut w) => w.flush().map_err(|e| unwritten(&e)),
            Output::Json(mut w, more) => {
                let end: &[u8] = if more { b"]\n" } else { b"[]\n" };
                w.write_all(end).and_then(|()| w.flush()).map_err(|e| unwritten(&e))
            }
        }
    }
}

/// RFC 3339 in UTC; empty for never.
fn time(unix_s: u32) -> String {
    let at = jiff::Timestamp::from_second(i64::from(unix_s)).ok().filter(|_| unix_s > 0);
    at.map(|t| t.to_string()).unwrap_or_default()
}

/// Unix seconds of a time: RFC 3339, a local date with or without a time, or seconds.
fn seconds(text: &str) -> Result<u32, String> {
    let text = text.trim();
    if text.is_empty() || text.eq_ignore_ascii_case("never") {
        return Ok(0);
    }
    let local =
        |t: jiff::civil::DateTime| t.to_zoned(jiff::tz::TimeZone::system()).ok().map(|z| z.timestamp().as_second());
    let read = text.parse::<u32>().ok().map(i64::from);
    let read = read.or_else(|| text.parse::<jiff::Timestamp>().ok().map(|t| t.as_second()));
    let read =
        read.or_else(|| local(text.parse().ok()?)).or_else(|| local(text.parse::<jiff::civil::Date>().ok()?.into()));
    let s = read.and_then(|s| u32::try_from(s).ok());
    s.ok_or_else(|| format!("expected a time such as 2026-01-31T09:00:00Z, 2026-01-31 or Unix seconds, found {text:?}"))
}

/// `suppress import`: CSV with a header line that names the columns, of which only `address` must be
/// there, or addresses alone.
///
/// # Errors
/// [`Failure`]; nothing is in force then.
pub fn import(target: &Target, file: &Path, given: &Given) -> Result<(), Failure> {
    let name = file.display();
    let input: Box<dyn Read> = if file == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(file).map_err(|e| Failure::Wrong(format!("cannot read {name}: {e}")))?)
    };
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).comment(Some(b'#')).from_reader(input);
    let mut columns: Option<[Option<usize>; 6]> = None;
    let mut server = Conversation::with(target)?;
    let mut rows = Vec::with_capacity(ROWS);
    let mut record = csv::StringRecord::new();
    loop {
        let line = reader.position().line();
        let wrong = |e: String| Failure::Wrong(format!("{name}:{line}: {e}; nothing was imported"));
        if !reader.read_record(&mut record).map_err(|e| wrong(e.to_string()))? {
            break;
        }
        let of = match columns {
            Some(c) => c,
            None => {
                let at = |n: &str| {
                    record.iter().position(|c| c.trim().trim_start_matches('\u{feff}').eq_ignore_ascii_case(n))
                };
                let found = COLUMNS.map(at);
                let named = found[0].is_some();
                columns = Some(if named { found } else { [Some(0), None, None, None, None, None] });
                if named {
                    continue;
                }
                [Some(0), None, None, None, None, None]
            }
        };
        let cell = |n: usize| of[n].and_then(|i| record.get(i)).map(str::trim).unwrap_or_default();
        let or = |text: &str, other: &str| if text.is_empty() { other.to_owned() } else { text.to_owned() };
        if cell(0).is_empty() {
            continue;
        }
        worker::suppression::normal_address(cell(0)).map_err(wrong)?;
        let expires = seconds(cell(5)).map_err(wrong)?;
        rows.push(SuppressionRow {
            address: cell(0).to_owned(),
            list: or(cell(1), &given.list),
            reason: or(cell(2), &given.reason),
            source: or(cell(3), "import"),
            added_unix_s: seconds(cell(4)).map_err(wrong)?,
            expires_unix_s: if expires == 0 { given.expires_unix_s } else { expires },
        });
        if rows.len() == ROWS {
            server.ask(&Request::ImportSuppressed { rows: std::mem::take(&mut rows), last: false })?;
        }
    }
    match server.ask(&Request::ImportSuppressed { rows, last: true })? {
        Answer::Done(said) => crate::cli::print(format!("{said}\n").as_bytes()),
        _ => Err(Failure::Failed("the server answered something else".into())),
    }
}
