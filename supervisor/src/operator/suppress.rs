//! `sluice suppress`: the suppression lists from the command line.

use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use ipc::operator::{Answer, Request, SuppressionRow};

use super::client::{Conversation, Target, act, until};
use super::output::{self, print, table};
use crate::Failure;

/// Rows of a request or a page.
const ROWS: usize = 2_000;
/// Columns of the CSV, in order.
const COLUMNS: [&str; 6] = ["address", "list", "reason", "source", "added", "expires"];

/// Which suppression list.
// A group of that name comes with the command `list`.
#[derive(Debug, Args)]
#[group(id = "named-list")]
pub struct List {
    /// A list by its name
    #[arg(long, value_name = "NAME")]
    list: Option<String>,
    /// The list of a virtual MTA
    #[arg(long, value_name = "NAME", conflicts_with_all = ["list", "pool", "job"])]
    virtual_mta: Option<String>,
    /// The list of a pool
    #[arg(long, value_name = "NAME", conflicts_with_all = ["list", "job"])]
    pool: Option<String>,
    /// The list of a job
    #[arg(long, value_name = "ID", conflicts_with = "list")]
    job: Option<String>,
}

impl List {
    /// Its name, if one is meant.
    fn name(&self) -> Option<String> {
        let of = |kind: &str, name: &Option<String>| name.as_ref().map(|n| format!("{kind}:{n}"));
        let own = of("virtual-mta", &self.virtual_mta).or(of("pool", &self.pool)).or(of("job", &self.job));
        own.or_else(|| self.list.clone())
    }

    /// Its name; empty for all lists.
    fn name_or_all(&self) -> String {
        self.name().unwrap_or_default()
    }
}

/// What new entries are given.
#[derive(Debug, Args)]
pub struct NewEntries {
    #[command(flatten)]
    list: List,
    /// Why
    #[arg(long, default_value = "")]
    reason: String,
    /// Ends by itself after this time
    #[arg(long, value_name = "DURATION", value_parser = |t: &str| crate::config::value::duration(t).map_err(|p| p.message))]
    expires_after: Option<u64>,
}

impl NewEntries {
    /// An entry as they ask for, of an address.
    fn row(&self, address: String, source: &str) -> SuppressionRow {
        let expires_unix_s = self.expires_after.map_or(0, |d| u32::try_from(until(d) / 1000).unwrap_or(0));
        let list = self.list.name().unwrap_or_else(|| worker::suppression::GLOBAL.into());
        let (reason, source) = (self.reason.clone(), source.to_owned());
        SuppressionRow { address, list, reason, source, added_unix_s: 0, expires_unix_s }
    }
}

/// `sluice suppress …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Put addresses on a list: the one for all mail, unless another is named
    Add {
        /// Addresses
        #[arg(required = true, value_name = "ADDRESS")]
        addresses: Vec<String>,
        #[command(flatten)]
        given: NewEntries,
    },
    /// Take addresses off a list, or off all that they are on
    Remove {
        /// Addresses
        #[arg(required = true, value_name = "ADDRESS")]
        addresses: Vec<String>,
        #[command(flatten)]
        list: List,
    },
    /// Show entries: of one address, of a list, or all
    List {
        /// The only address asked for
        address: Option<String>,
        #[command(flatten)]
        list: List,
        #[command(flatten)]
        output: output::Output,
    },
    /// Add the addresses of a CSV file, all or none of them
    Import {
        /// The file; - for standard input. Columns by the header line: address, and maybe list,
        /// reason, source, added, expires; without a header line, addresses
        file: PathBuf,
        #[command(flatten)]
        given: NewEntries,
    },
    /// Write entries as CSV to standard output
    Export {
        #[command(flatten)]
        list: List,
    },
}

/// Serves one of the commands.
///
/// # Errors
/// [`Failure`]
pub fn run(target: &Target, what: Command) -> Result<(), Failure> {
    match what {
        Command::Add { addresses, given } => {
            act(target, Request::Suppress(addresses.into_iter().map(|a| given.row(a, "operator")).collect()))
        }
        Command::Remove { addresses, list } => act(target, Request::Unsuppress { addresses, list: list.name_or_all() }),
        Command::List { address, list: of, output } => {
            let form = if output.json { Output::json() } else { Output::Table(Vec::new()) };
            // No address means all.
            list(target, of.name_or_all(), address.unwrap_or_default(), form)
        }
        Command::Import { file, given } => import(target, &file, &given),
        Command::Export { list: of } => list(target, of.name_or_all(), String::new(), Output::csv()),
    }
}

/// `suppress list` and `suppress export`
fn list(target: &Target, list: String, address: String, mut out: Output) -> Result<(), Failure> {
    let mut server = Conversation::with(target)?;
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
    fn json() -> Output {
        Output::Json(BufWriter::new(std::io::stdout()), false)
    }

    fn csv() -> Output {
        let mut w = csv::Writer::from_writer(std::io::stdout());
        // An error of the header line comes again with the rows.
        drop(w.write_record(COLUMNS));
        Output::Csv(Box::new(w))
    }

    fn rows(&mut self, rows: Vec<SuppressionRow>) -> std::io::Result<()> {
        for mut r in rows {
            r.address = worker::suppression::spelled(&r.address);
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
fn import(target: &Target, file: &Path, given: &NewEntries) -> Result<(), Failure> {
    let name = file.display();
    let input: Box<dyn Read> = if file == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(file).map_err(|e| Failure::Wrong(format!("cannot read {name}: {e}")))?)
    };
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).comment(Some(b'#')).from_reader(input);
    let mut columns: Option<[Option<usize>; 6]> = None;
    let mut width = 1;
    let mut server = Conversation::with(target)?;
    // Said before the input is read, which may take its time: the server ends connections that say nothing.
    server.ask(&Request::ImportSuppressed { rows: Vec::new(), last: false })?;
    let mut rows = Vec::with_capacity(ROWS);
    let mut record = csv::StringRecord::new();
    loop {
        let line = reader.position().line();
        let wrong = |e: String| Failure::Wrong(format!("{name}:{line}: {e}; nothing was imported"));
        if !reader.read_record(&mut record).map_err(|e| wrong(e.to_string()))? {
            break;
        }
        let has_more = |most: usize| record.iter().skip(most).any(|c| !c.trim().is_empty());
        let of = match columns {
            Some(_) if has_more(width) => {
                return Err(wrong(format!("expected {width} cells, found {}", record.len())));
            }
            Some(c) => c,
            None => {
                let at = |n: &str| {
                    record.iter().position(|c| c.trim().trim_start_matches('\u{feff}').eq_ignore_ascii_case(n))
                };
                let found = COLUMNS.map(at);
                let named = found[0].is_some();
                width = if named { record.len() } else { 1 };
                if !named && has_more(1) {
                    return Err(wrong("expected one address, or a header line that names the columns".into()));
                }
                columns = Some(if named { found } else { [Some(0), None, None, None, None, None] });
                if named {
                    continue;
                }
                [Some(0), None, None, None, None, None]
            }
        };
        // A column that is not there is as an empty cell.
        let cell = |n: usize| of[n].and_then(|i| record.get(i)).map(str::trim).unwrap_or_default();
        let or = |text: &str, other: &str| if text.is_empty() { other.to_owned() } else { text.to_owned() };
        if cell(0).is_empty() {
            continue;
        }
        worker::suppression::normal_address(cell(0)).map_err(wrong)?;
        let expires = seconds(cell(5)).map_err(wrong)?;
        let default = given.row(cell(0).to_owned(), "import");
        rows.push(SuppressionRow {
            list: or(cell(1), &default.list),
            reason: or(cell(2), &default.reason),
            source: or(cell(3), &default.source),
            added_unix_s: seconds(cell(4)).map_err(wrong)?,
            expires_unix_s: if expires == 0 { default.expires_unix_s } else { expires },
            ..default
        });
        if rows.len() == ROWS {
            server.ask(&Request::ImportSuppressed { rows: std::mem::take(&mut rows), last: false })?;
        }
    }
    match server.ask(&Request::ImportSuppressed { rows, last: true })? {
        Answer::Done(said) => print(format!("{said}\n").as_bytes()),
        _ => Err(Failure::Failed("the server answered something else".into())),
    }
}
