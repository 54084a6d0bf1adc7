//! The command line of `pmtastats`: global options, then statistics with options of their own, and files.

use std::path::PathBuf;

use super::column::column;
use super::moment;
use crate::Failure;

/// Help behind the usage line.
pub const HELP: &str = "\
Global options:
  --output text|html        Form of the report [default: text]
  --envId, --from, --toDomain, --jobId, --vmta, --rcvSmtpUser TEXT
  --header NAME TEXT        Only records whose envelope ID, originator, recipient's domain …
                            begins so, in any case
  --last DdHhMmSs           Only records of the last so many days, hours, minutes, seconds
  --byEnvId, --byJobId, --byFrom, --byVmta, --byHeader NAME
                            A report for each value; only one of them
  --splitLimit N            No more than so many reports [default: 5000]; the rest is in one report
  --topDomains N            For all statistics that list domains
  --quiet                   Accepted: no progress is shown anyway
  --help, --version

Statistics and their options:
  bounce-categories         --topCategories N (10), --bounceCat N|NAME|all (spam-related),
                            --byDsn N (10), --byDomain N (10), --byDsnAndDomain N (10)
  delivery-times
  message-counts
  top-bounce                --topDomains N (10), --topStatusCodes N (10)
  top-domains               --topDomains N (10), --noDeliveryTimes
  top-rates
  vmta-summary              --byDate
  vmta-time-breakdown       --noHourly
  vmta-top-bounce           --topBounced N (20), --byDate
  --all                     All of them
  --acctstats               message-counts, delivery-times, top-domains, bounce-categories, top-bounce

A file is CSV or JSON, - is standard input. Files are read one after the other and may be of any
size. Replies are made alike before they are counted: <RCPT_USER>, <OTHER_USER>, <ORIG>,
<RCPT_SERVER>, <SENDER_IPADDRESS>, <HEXDUMP> and <ID> stand for what differs between messages.

Examples:
  pmtastats vmta-summary vmta-time-breakdown acct*.csv
  pmtastats --jobId spring bounce-categories --bounceCat all acct*.csv
  pmtastats --output html --all acct*.csv > report.html";

/// Categories that are shown in detail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detail {
    Top(usize),
    Named(String),
    All,
}

/// A statistic with its options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statistic {
    BounceCategories { categories: usize, detail: Detail, by_dsn: usize, by_domain: usize, by_both: usize },
    DeliveryTimes,
    MessageCounts,
    TopBounce { domains: usize, codes: usize },
    TopDomains { domains: usize, times: bool },
    TopRates,
    VmtaSummary { by_date: bool },
    VmtaTimeBreakdown { hourly: bool },
    VmtaTopBounce { domains: usize, by_date: bool },
}

impl Statistic {
    fn named(name: &str, top: Option<usize>) -> Option<Statistic> {
        let ten = top.unwrap_or(10);
        Some(match name {
            "bounce-categories" => Statistic::BounceCategories {
                categories: 10,
                detail: Detail::Named("spam-related".into()),
                by_dsn: 10,
                by_domain: ten,
                by_both: 10,
            },
            "delivery-times" => Statistic::DeliveryTimes,
            "message-counts" => Statistic::MessageCounts,
            "top-bounce" => Statistic::TopBounce { domains: ten, codes: 10 },
            "top-domains" => Statistic::TopDomains { domains: ten, times: true },
            "top-rates" => Statistic::TopRates,
            "vmta-summary" => Statistic::VmtaSummary { by_date: false },
            "vmta-time-breakdown" => Statistic::VmtaTimeBreakdown { hourly: true },
            "vmta-top-bounce" => Statistic::VmtaTopBounce { domains: top.unwrap_or(20), by_date: false },
            _ => return None,
        })
    }
}

const ALL: [&str; 9] = [
    "message-counts",
    "delivery-times",
    "top-domains",
    "top-rates",
    "bounce-categories",
    "top-bounce",
    "vmta-summary",
    "vmta-time-breakdown",
    "vmta-top-bounce",
];
const ACCTSTATS: [&str; 5] = ["message-counts", "delivery-times", "top-domains", "bounce-categories", "top-bounce"];

/// What is asked for.
#[derive(Debug, Default)]
pub struct Options {
    /// HTML and not text.
    pub html: bool,
    /// Columns and what they begin with; the recipient's domain is column `@`.
    pub filters: Vec<(String, String)>,
    /// Seconds that records may be old.
    pub last: Option<i64>,
    /// Column that reports are split by.
    pub split: Option<String>,
    /// Reports at most.
    pub split_limit: usize,
    /// In the order of the command line.
    pub statistics: Vec<Statistic>,
    /// What is read.
    pub files: Vec<PathBuf>,
}

/// The column of filters that stands for the domain of the recipient.
pub const RCPT_DOMAIN: &str = "@";

/// A command line.
#[derive(Debug)]
pub enum Asked {
    Report(Options),
    Help,
    Version,
}

/// Reads the command line.
///
/// # Errors
/// [`Failure::Wrong`]
pub fn parse(words: &[String]) -> Result<Asked, Failure> {
    let mut of = Options { split_limit: 5000, ..Default::default() };
    let mut top = None;
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let Some(option) = word.strip_prefix("--").filter(|o| !o.is_empty()) else {
            match Statistic::named(word, top).filter(|_| of.files.is_empty()) {
                Some(s) => of.statistics.push(s),
                None if word == "--" => of.files.extend(words.by_ref().map(PathBuf::from)),
                None => of.files.push(word.into()),
            }
            continue;
        };
        let (name, mut given) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (option, None),
        };
        let mut value = || {
            let value = given.take().or_else(|| words.next().cloned());
            value.ok_or_else(|| Failure::Wrong(format!("expected a value behind --{name}")))
        };
        match name {
            "help" => return Ok(Asked::Help),
            "version" => return Ok(Asked::Version),
            "quiet" => {}
            "output" => {
                of.html = match value()?.as_str() {
                    "text" => false,
                    "html" => true,
                    other => {
                        return Err(Failure::Wrong(format!("expected text or html for --output, found `{other}`")));
                    }
                }
            }
            "envId" | "jobId" | "vmta" | "rcvSmtpUser" | "from" => of.filters.push((column(name), value()?)),
            "toDomain" => of.filters.push((RCPT_DOMAIN.into(), value()?)),
            "header" => {
                let header = value()?;
                of.filters.push((format!("header_{header}"), value()?));
            }
            "last" => {
                let text = value()?;
                let wrong = || Failure::Wrong(format!("expected a span such as 1d2h3m4s for --last, found `{text}`"));
                of.last = Some(moment::span(&text).ok_or_else(wrong)?);
            }
            "byEnvId" | "byJobId" | "byFrom" | "byVmta" | "byHeader" if of.split.is_some() => {
                return Err(Failure::Wrong(format!(
                    "only one of --byEnvId, --byJobId, --byFrom, --byVmta, --byHeader: --{name} is the second"
                )));
            }
            "byEnvId" => of.split = Some("envId".into()),
            "byJobId" => of.split = Some("jobId".into()),
            "byFrom" => of.split = Some("orig".into()),
            "byVmta" => of.split = Some("vmta".into()),
            "byHeader" => of.split = Some(format!("header_{}", value()?)),
            "splitLimit" => of.split_limit = number(name, &value()?)?.max(1),
            "all" => of.statistics.extend(ALL.iter().filter_map(|n| Statistic::named(n, top))),
            "acctstats" => of.statistics.extend(ACCTSTATS.iter().filter_map(|n| Statistic::named(n, top))),
            "topDomains" if of.statistics.is_empty() => top = Some(number(name, &value()?)?),
            _ => own(of.statistics.last_mut(), name, value)?,
        }
    }
    if of.statistics.is_empty() {
        return Err(Failure::Wrong(format!("expected a statistic: {}, or --all", ALL.join(", "))));
    }
    if of.files.is_empty() {
        return Err(Failure::Wrong("expected a file, or - for standard input".into()));
    }
    Ok(Asked::Report(of))
}

fn number(option: &str, text: &str) -> Result<usize, Failure> {
    text.parse().map_err(|_| Failure::Wrong(format!("expected a number for --{option}, found `{text}`")))
}

/// An option of the statistic before it.
fn own(
    of: Option<&mut Statistic>,
    name: &str,
    mut value: impl FnMut() -> Result<String, Failure>,
) -> Result<(), Failure> {
    let mut n = || number(name, &value()?);
    match (of, name) {
        (Some(Statistic::BounceCategories { categories, .. }), "topCategories") => *categories = n()?,
        (Some(Statistic::BounceCategories { by_dsn, .. }), "byDsn") => *by_dsn = n()?,
        (Some(Statistic::BounceCategories { by_domain, .. }), "byDomain") => *by_domain = n()?,
        (Some(Statistic::BounceCategories { by_both, .. }), "byDsnAndDomain") => *by_both = n()?,
        (Some(Statistic::BounceCategories { detail, .. }), "bounceCat") => {
            let text = value()?;
            *detail = match text.parse() {
                Ok(n) => Detail::Top(n),
                Err(_) if text == "all" => Detail::All,
                Err(_) => Detail::Named(text),
            };
        }
        (Some(Statistic::TopBounce { domains, .. } | Statistic::TopDomains { domains, .. }), "topDomains") => {
            *domains = n()?
        }
        (Some(Statistic::TopBounce { codes, .. }), "topStatusCodes") => *codes = n()?,
        (Some(Statistic::TopDomains { times, .. }), "noDeliveryTimes") => *times = false,
        (Some(Statistic::VmtaTimeBreakdown { hourly }), "noHourly") => *hourly = false,
        (Some(Statistic::VmtaTopBounce { domains, .. }), "topBounced" | "topDomains") => *domains = n()?,
        (Some(Statistic::VmtaSummary { by_date } | Statistic::VmtaTopBounce { by_date, .. }), "byDate") => {
            *by_date = true
        }
        (None, _) => return Err(Failure::Wrong(format!("there is no global option --{name}; see --help"))),
        (Some(_), _) => {
            return Err(Failure::Wrong(format!(
                "there is no option --{name}, and the statistic before it has none of this name; see --help"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Options, String> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        match parse(&words) {
            Ok(Asked::Report(of)) => Ok(of),
            Ok(_) => Err("no report".into()),
            Err(Failure::Wrong(e) | Failure::Failed(e) | Failure::NoServer(e)) => Err(e),
        }
    }

    #[test]
    fn options_belong_to_the_statistic_before_them() {
        let of = parsed("--topDomains 3 --vmta v1 top-domains --noDeliveryTimes top-bounce --topDomains 7 --last 1h vmta-top-bounce --byDate a.csv -").unwrap();
        assert_eq!(
            of.statistics,
            [
                Statistic::TopDomains { domains: 3, times: false },
                Statistic::TopBounce { domains: 7, codes: 10 },
                Statistic::VmtaTopBounce { domains: 3, by_date: true },
            ]
        );
        assert_eq!((of.last, of.filters), (Some(3600), vec![("vmta".into(), "v1".into())]));
        assert_eq!(of.files, [PathBuf::from("a.csv"), "-".into()]);
        assert_eq!(parsed("--all x").unwrap().statistics.len(), ALL.len());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, what) in [
            ("a.csv", "expected a statistic"),
            ("top-rates", "expected a file"),
            ("top-rates --byDate a", "--byDate"),
            ("--byVmta --byFrom top-rates a", "--byFrom is the second"),
            ("--last soon top-rates a", "soon"),
            ("--output xml top-rates a", "xml"),
            ("top-bounce --topDomains x a", "`x`"),
            ("top-rates a --header X", "expected a value behind --header"),
        ] {
            assert!(parsed(line).unwrap_err().contains(what), "{line}");
        }
    }
}
