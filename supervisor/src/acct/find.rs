//! `acctfind`: the records of accounting files that match, in a form of the operator's choice.

use std::borrow::Cow;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use fancy_regex::Regex;
use jiff::tz::TimeZone;

use super::column::column;
use super::moment::Clock;
use super::output::Output;
use super::reader::{self, Told, Wanted, add_names};
use super::sort::Sorter;
use crate::Failure;

/// `sluice acct find`
#[derive(Debug, Args)]
pub struct Find {
    /// Records of deliveries (d)
    #[arg(long)]
    delivered: bool,
    /// Records of bounces (b)
    #[arg(long)]
    bounced: bool,
    /// Records of recipients that go on (t, rs)
    #[arg(long)]
    status: bool,
    /// Records of queues as a whole (tq)
    #[arg(long)]
    mta: bool,
    /// Only records with this text, in any case, or that this expression matches (m/EXPRESSION/, m/EXPRESSION/i)
    #[arg(long = "match", value_name = "[FIELDS]PATTERN", allow_hyphen_values = true)]
    matches: Vec<String>,
    /// In the order of this field
    #[arg(long = "sortBy", alias = "sort-by", value_name = "FIELD")]
    sort_by: Option<String>,
    /// Show times that are numbers of seconds as dates
    #[arg(long)]
    iso_times: bool,
    /// How to print, and which fields
    #[arg(long, value_name = "FORMAT[FIELDS]", default_value = "standard", hide_default_value = true)]
    output: String,
    /// No line of names before csv and tsv
    #[arg(long)]
    no_header: bool,
    /// Accounting files, CSV or JSON; - is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// What a record must have.
struct Needle {
    /// Numbers among the wanted columns; none for any column.
    of: Vec<usize>,
    pattern: Regex,
}

/// Runs the search.
///
/// # Errors
/// [`Failure`]
pub fn run(find: &Find) -> Result<(), Failure> {
    let (format, fields) = Output::parse(&find.output).map_err(Failure::Wrong)?;
    let mut wanted = Wanted::new(Vec::new());
    let kind = wanted.add("type");
    let mut needles = Vec::new();
    for text in &find.matches {
        needles.push(needle(text, &mut wanted).map_err(Failure::Wrong)?);
    }
    let sort_by = find.sort_by.as_deref().map(|name| (wanted.add(&column(name)), column(name)));
    let shown: Option<Vec<usize>> =
        fields.as_ref().map(|all| all.iter().map(|name| wanted.add(&column(name))).collect());
    let known = reader::columns_of(&find.files);
    if let Some(known) = &known {
        let is_in = |name: &&str| !known.iter().any(|k| k.eq_ignore_ascii_case(name));
        let unknown: Vec<&str> = wanted.missing().filter(is_in).collect();
        // Without a column at all there is no such file, which is told of when it is read.
        if !unknown.is_empty() && !known.is_empty() {
            return Err(Failure::Wrong(no_column(&unknown, known)));
        }
    }
    let kinds = kinds(find, &needles, kind);
    let names = fields.clone().unwrap_or_else(|| known.unwrap_or_default());
    let mut out = Output::new(format, names, !find.no_header);
    let mut to = BufWriter::with_capacity(256 << 10, io::stdout().lock());
    if sort_by.is_some() {
        // Each sorted run is an open file.
        crate::rights::raise_descriptor_limit();
    }
    let mut sorter = sort_by.as_ref().map(|(_, name)| Sorter::new(worker::account::field::is_number(name)));
    let mut clock = find.iso_times.then(|| Clock::new(TimeZone::system()));
    let mut told = Told::default();
    let mut line = Vec::new();
    let done = (|| -> io::Result<()> {
        // Records that are sorted come behind all of them.
        let mut has_begun = false;
        if sorter.is_none() && !out.names().is_empty() {
            out.begin(&mut to)?;
            has_begun = true;
        }
        reader::read(&find.files, &mut told, &mut |r| {
            wanted.bind(r);
            let taken = kinds.as_ref().is_none_or(|kinds| {
                let of = wanted.value(kind, r);
                kinds.iter().any(|k| of.eq_ignore_ascii_case(k.as_bytes()))
            });
            if !taken || !needles.iter().all(|n| n.hits(&wanted, r)) {
                return Ok(true);
            }
            // A column that no file announced.
            if shown.is_none() && (add_names(out.names_mut(), &r.columns.names) || !has_begun) && sorter.is_none() {
                out.begin_anew(&mut to, has_begun)?;
                has_begun = true;
            }
            let value = |n: usize, name: &str| -> Cow<[u8]> {
                match &shown {
                    Some(shown) => wanted.value(shown[n], r),
                    None => place(r, n, name).map_or(Cow::Borrowed(&b""[..]), |at| r.value(at)),
                }
            };
            line.clear();
            out.record(&mut line, clock.as_mut(), value);
            match (&mut sorter, &sort_by) {
                (Some(sorter), Some((by, _))) => sorter.add(&wanted.value(*by, r), &line)?,
                _ => to.write_all(&line)?,
            }
            Ok(true)
        })?;
        if let Some(sorter) = sorter {
            out.begin(&mut to)?;
            sorter.write(&mut to)?;
        } else if !has_begun {
            out.begin(&mut to)?;
        }
        out.end(&mut to)?;
        to.flush()
    })();
    match done {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
        Err(e) => return Err(Failure::Failed(e.to_string())),
        Ok(()) => {}
    }
    let missing: Vec<&str> = wanted.missing().filter(|_| find.files.iter().any(|f| f == Path::new("-"))).collect();
    if !missing.is_empty() && !told.failed {
        return Err(Failure::Failed(no_column(&missing, &[])));
    }
    if told.failed { Err(Failure::Failed("not every file could be read".into())) } else { Ok(()) }
}

/// Where the n-th column shown is in the record: at the same place where all files are alike.
fn place(r: &reader::Record, n: usize, name: &str) -> Option<usize> {
    let here = r.columns.names.get(n).filter(|c| c.as_str() == name).map(|_| n);
    here.or_else(|| r.columns.names.iter().position(|c| c.eq_ignore_ascii_case(name)))
}

fn no_column(unknown: &[&str], known: &[String]) -> String {
    let have = if known.is_empty() { String::new() } else { format!("; they have {}", known.join(", ")) };
    format!("the files have no column {}{have}", unknown.join(", "))
}

/// Types of records that are searched; `None` for all.
fn kinds(find: &Find, needles: &[Needle], kind: usize) -> Option<Vec<&'static str>> {
    let asked =
        [(find.delivered, &["d"][..]), (find.bounced, &["b"]), (find.status, &["t", "rs"]), (find.mta, &["tq"])];
    let all: Vec<&str> = asked.iter().filter(|(is, _)| *is).flat_map(|(_, k)| k.iter().copied()).collect();
    match all.is_empty() {
        true if needles.iter().any(|n| n.of == [kind]) => None,
        true => Some(vec!["d", "b"]),
        false => Some(all),
    }
}

impl Needle {
    fn hits(&self, wanted: &Wanted, r: &reader::Record) -> bool {
        let is_in = |value: Cow<[u8]>| {
            // Beyond its bound an expression does not match.
            self.pattern.is_match(String::from_utf8_lossy(&value).as_ref()).unwrap_or(false)
        };
        match self.of.is_empty() {
            true => (0..r.len()).any(|at| is_in(r.value(at))),
            false => self.of.iter().any(|n| is_in(wanted.value(*n, r))),
        }
    }
}

/// `[FIELDS]PATTERN`
fn needle(text: &str, wanted: &mut Wanted) -> Result<Needle, String> {
    let (fields, pattern) = match text.strip_prefix('[').and_then(|t| t.split_once(']')) {
        Some((fields, pattern)) => (fields, pattern),
        None => ("", text),
    };
    let of = fields.split(',').map(str::trim).filter(|f| !f.is_empty()).map(|f| wanted.add(&column(f))).collect();
    let expression = match pattern.strip_prefix("m/").and_then(|p| p.rsplit_once('/')) {
        Some((expression, "")) => expression.to_owned(),
        Some((expression, "i")) => format!("(?i){expression}"),
        Some((_, flags)) => return Err(format!("expected m/EXPRESSION/ or m/EXPRESSION/i, found the flags `{flags}`")),
        None => format!("(?i){}", fancy_regex::escape(pattern)),
    };
    let pattern = Regex::new(&expression).map_err(|e| format!("`{pattern}` is no expression: {e}"))?;
    Ok(Needle { of, pattern })
}
