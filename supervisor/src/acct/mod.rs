//! `sluice acct find` and `sluice acct stats`, which are PowerMTA's `acctfind` and `pmtastats`: they read accounting
//! files, of this server or of PowerMTA, and ask no server. Files are read as a stream; what is kept of them is bounded.

mod column;
mod find;
mod moment;
mod options;
mod output;
mod reader;
mod reason;
mod report;
mod sort;
mod stats;
mod tally;
mod traffic;

use std::ffi::OsString;
use std::path::Path;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::Failure;
use crate::operator::output::print;
use find::Find;

/// `sluice acct`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Search accounting files; also called `acctfind`
    #[command(after_help = FIND_HELP)]
    Find(Find),
    /// Statistics from accounting files; also called `pmtastats`
    #[command(after_help = options::HELP, override_usage = "sluice acct stats [GLOBAL OPTIONS] [STATISTIC [OPTIONS]]... FILE...")]
    Stats(Stats),
}

const FIND_HELP: &str = "\
--FIELD PATTERN is the same as --match [FIELD]PATTERN; FIELD is a column of the files in any
case, or to (rcpt), from (orig), dstIp (dlvDestinationIp), timeDelivered (timeLogged),
header:NAME (header_NAME). All of several patterns must match. Without --delivered, --bounced,
--status, --mta and --type, records of deliveries and bounces are searched.

FORMAT is standard, csv, tsv, html, xml, prettyxml, or custom[TEXT], where {FIELD} in TEXT
stands for a value and \\t and \\n for a tab and a line end. Without [FIELDS] all columns are
shown.

Examples:
  acctfind --bounced --dsnStatus m/^5\\./ --to yahoo.com --output csv[to,dsnDiag] acct*.csv
  acctfind --delivered --to hotmail.com --sortBy dstIp --output tsv[to,vmta,dstIp] acct.csv
  zcat old.csv.gz | acctfind --match someone@example.com -";

/// `sluice acct stats`
#[derive(Debug, Args)]
#[command(disable_help_flag = false)]
pub struct Stats {
    /// Options, statistics with options of their own, and files
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, hide = true, value_name = "WORD")]
    words: Vec<String>,
}

/// Search accounting files
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct FindByName {
    #[command(flatten)]
    find: Find,
}

/// Statistics from accounting files
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct StatsByName {
    #[command(flatten)]
    stats: Stats,
}

/// Runs the command.
///
/// # Errors
/// [`Failure`]
pub fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Find(find) => find::run(&find),
        Command::Stats(stats) => match options::parse(&stats.words)? {
            options::Asked::Report(asked) => stats::run(&asked),
            options::Asked::Help => print(format!("{}\n", options::HELP).as_bytes()),
            options::Asked::Version => print(format!("sluice {}\n", env!("CARGO_PKG_VERSION")).as_bytes()),
        },
    }
}

/// Whether the program was called by one of the tools' names, and then what came of it.
pub fn by_name(name: &Path, words: impl Iterator<Item = OsString>) -> Option<Result<(), Failure>> {
    let name = name.file_name()?.to_str()?;
    let words = std::iter::once(OsString::from(name)).chain(words);
    match name {
        "acctfind" | "pmtaacctfind" => {
            let command = FindByName::command().name("acctfind").bin_name(name.to_owned()).after_help(FIND_HELP);
            let matches = command.get_matches_from(with_fields_as_matches(words));
            Some(match FindByName::from_arg_matches(&matches) {
                Ok(by) => find::run(&by.find),
                Err(e) => e.exit(),
            })
        }
        "pmtastats" => {
            let usage = format!("{name} [GLOBAL OPTIONS] [STATISTIC [OPTIONS]]... FILE...");
            let command = StatsByName::command().name("pmtastats").bin_name(name.to_owned());
            let matches = command.override_usage(usage).after_help(options::HELP).get_matches_from(words);
            Some(match StatsByName::from_arg_matches(&matches) {
                Ok(by) => run(Command::Stats(by.stats)),
                Err(e) => e.exit(),
            })
        }
        _ => None,
    }
}

/// Manual pages of the tools by their own names, which are those of the commands.
///
/// # Errors
/// Those of the files.
pub fn manual_pages_by_name(dir: &Path) -> std::io::Result<()> {
    for (name, command) in [("acctfind", "find"), ("pmtaacctfind", "find"), ("pmtastats", "stats")] {
        std::fs::write(dir.join(format!("{name}.1")), format!(".so man1/sluice-acct-{command}.1\n"))?;
    }
    Ok(())
}

/// Options of `find` that are none of its own name fields: `--to X` becomes `--match=[to]X`.
pub fn with_fields_as_matches(words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    const OWN: [&str; 14] = [
        "delivered",
        "bounced",
        "status",
        "mta",
        "match",
        "sortBy",
        "sort-by",
        "iso-times",
        "output",
        "no-header",
        "control",
        "help",
        "version",
        "",
    ];
    let mut all: Vec<OsString> = Vec::new();
    let mut words = words.peekable();
    while let Some(word) = words.next() {
        let option = word.to_str().and_then(|w| w.strip_prefix("--")).map(str::to_owned);
        let Some(option) = option else {
            all.push(word);
            continue;
        };
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(OsString::from(value))),
            None => (option, None),
        };
        if OWN.contains(&name.as_str()) {
            let ends_options = name.is_empty();
            all.push(word);
            if ends_options {
                all.extend(words);
                break;
            }
            continue;
        }
        match value.or_else(|| words.next()) {
            Some(value) => {
                let mut matched = OsString::from(format!("--match=[{name}]"));
                matched.push(value);
                all.push(matched);
            }
            // Without a pattern: the parser says so.
            None => all.push("--match".into()),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(line: &str) -> String {
        let words = line.split(' ').map(OsString::from);
        let all: Vec<_> = with_fields_as_matches(words).into_iter().filter_map(|w| w.into_string().ok()).collect();
        all.join(" ")
    }

    #[test]
    fn own_options_name_no_fields() {
        for option in FindByName::command().get_arguments().filter_map(|a| a.get_long()) {
            assert_eq!(rewritten(&format!("find --{option} x")), format!("find --{option} x"));
        }
    }

    #[test]
    fn options_that_name_fields_are_patterns_for_them() {
        assert_eq!(
            rewritten("find --bounced --to yahoo.com --dsnStatus=m/^5/ --output csv[to] a"),
            "find --bounced --match=[to]yahoo.com --match=[dsnStatus]m/^5/ --output csv[to] a"
        );
        assert_eq!(rewritten("find --header:X-Id -5 -"), "find --match=[header:X-Id]-5 -");
        assert_eq!(rewritten("find -- --to x"), "find -- --to x");
    }
}
