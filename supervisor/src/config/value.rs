//! Types of the directive table: what a value may be, and what it becomes.
//!
//! A type is a word, for some with an argument behind a colon (`number:0..100`,
//! `enum:a,b`, `ref:virtual-mta`). [`super::composite`] has those of several parts.

use ipc::rules::{ANY_CONNECTIONS, NEVER_MS, Value};

use super::composite;

/// A value that was understood.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// What is stored.
    pub value: Value,
    /// Names that must be defined: kind and name.
    pub refs: Vec<(&'static str, String)>,
}

impl From<Value> for Parsed {
    fn from(value: Value) -> Parsed {
        Parsed { value, refs: Vec::new() }
    }
}

/// Why a value is not one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What was expected, and what was found.
    pub message: String,
    /// What to do; empty for none.
    pub help: String,
    /// The part that is meant: byte offset and length in the value.
    pub part: Option<(usize, usize)>,
    /// Stable word for tools.
    pub code: &'static str,
}

impl Problem {
    /// `expected WHAT, found TEXT`
    pub fn expected(what: impl std::fmt::Display, found: &str) -> Problem {
        Problem::other(format!("expected {what}, found {found:?}"))
    }

    /// Another sentence.
    pub fn other(message: impl Into<String>) -> Problem {
        Problem { message: message.into(), help: String::new(), part: None, code: "bad-value" }
    }

    /// A file that has to be there and cannot be read.
    pub fn missing(path: &str, e: &std::io::Error) -> Problem {
        Problem { code: "missing-file", ..Problem::other(format!("cannot read {path}: {e}")) }
    }

    /// Adds advice.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Problem {
        self.help = help.into();
        self
    }

    /// Says which part of the value is meant; `part` is a piece of `of`.
    #[must_use]
    pub fn at(mut self, part: &str, of: &str) -> Problem {
        self.part = Some(((part.as_ptr() as usize).saturating_sub(of.as_ptr() as usize), part.len()));
        self
    }
}

/// Checks `text` against a type of the table.
///
/// # Errors
/// [`Problem`]
pub fn parse(kind: &str, text: &str) -> Result<Parsed, Problem> {
    let (word, argument) = kind.split_once(':').unwrap_or((kind, ""));
    Ok(match word {
        "flag" => Value::Flag(flag(one(text)?)?),
        "number" => Value::Number(number(one(text)?, argument)?),
        "connections" => match one(text)?.to_ascii_lowercase().as_str() {
            "unlimited" => Value::Number(ANY_CONNECTIONS),
            n => Value::Number(number(n, "0..")?),
        },
        "size" => {
            let n = size(one(text)?)?;
            let least = if argument.is_empty() { 0 } else { size(argument)? };
            if n < least {
                return Err(Problem::expected(format_args!("a size of at least {argument}"), text));
            }
            Value::Number(n)
        }
        "duration" => {
            let n = duration(one(text)?)?;
            if !argument.is_empty() && n > duration(argument)? {
                return Err(Problem::expected(format_args!("a time interval of at most {argument}"), text));
            }
            Value::Millis(n)
        }
        "grace" => match one(text)?.to_ascii_lowercase().as_str() {
            "yes" | "true" => Value::Millis(0),
            "no" | "false" => Value::Millis(NEVER_MS),
            _ => Value::Millis(
                duration(text).map_err(|_| Problem::expected("yes, no, or a time interval such as 4h", text))?,
            ),
        },
        "durations" => Value::MillisList(durations(text)?),
        "rate" => rate(one(text)?)?,
        "data-rate" => data_rate(one(text)?)?,
        "enum" => {
            let names: Vec<&str> = argument.split(',').collect();
            let found = one(text)?;
            let is = |word: &str| names.iter().position(|n| n.eq_ignore_ascii_case(word));
            // Where yes and no are among the words, true and false say the same.
            let as_flag = || flag(found).ok().and_then(|yes| is(if yes { "yes" } else { "no" }));
            let at = is(found).or_else(as_flag).ok_or_else(|| {
                let near = super::diagnostic::nearest(&found.to_ascii_lowercase(), names.iter().copied());
                let help = near.map(|n| format!("did you mean {n}?")).unwrap_or_default();
                Problem::expected(format_args!("one of {}", names.join(", ")), found).help(help)
            })?;
            Value::Number(at as u64)
        }
        "list" => Value::TextList(list(text)),
        "word" | "path" => Value::Text(one(text)?.to_owned()),
        "text" => Value::Text(text.to_owned()),
        _ => return composite::parse(word, argument, text),
    }
    .into())
}

/// The whole text, which may be one argument only.
///
/// # Errors
/// [`Problem`] when it is none or several.
pub fn one(text: &str) -> Result<&str, Problem> {
    match text.split_whitespace().count() {
        0 => Err(Problem::other("argument missing")),
        1 => Ok(text.trim()),
        n => Err(Problem::other(format!("one argument expected, got {n}: {text:?}"))),
    }
}

/// A comma list.
pub fn list(text: &str) -> Vec<String> {
    items(text).map(str::to_owned).collect()
}

/// Items of a comma list, as pieces of the text.
pub fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|t| !t.is_empty())
}

fn flag(t: &str) -> Result<bool, Problem> {
    match t.to_ascii_lowercase().as_str() {
        "yes" | "true" => Ok(true),
        "no" | "false" => Ok(false),
        _ => Err(Problem::expected("yes, no, true or false", t)),
    }
}

/// `range`: `LO..HI`, `LO..HI,auto`, or empty; where they are allowed, `unlimited` and `auto` are 0.
///
/// # Errors
/// [`Problem`]
pub fn number(t: &str, range: &str) -> Result<u64, Problem> {
    let (range, or_auto) = range.strip_suffix(",auto").map_or((range, false), |r| (r, true));
    let bounds = range.split_once("..").map(|(lo, hi)| (lo.parse().unwrap_or(0), hi.parse().unwrap_or(u64::MAX)));
    let n = match t.to_ascii_lowercase().as_str() {
        "unlimited" | "auto" if bounds.is_none() => 0,
        "auto" if or_auto => return Ok(0),
        n => n.parse().map_err(|_| match n.bytes().all(|b| b.is_ascii_digit()) && !n.is_empty() {
            true => Problem::other(format!("{t} is larger than any number that this program counts with")),
            false => Problem::expected("a whole number", t),
        })?,
    };
    match bounds {
        Some((lo, hi)) if n < lo || n > hi => Err(Problem::expected(
            match hi {
                u64::MAX => format!("a number of at least {lo}"),
                _ => format!("a number from {lo} to {hi}{}", if or_auto { ", or auto" } else { "" }),
            },
            t,
        )),
        _ => Ok(n),
    }
}

/// Bytes; `0` and `unlimited` are no limit.
///
/// # Errors
/// [`Problem`]
pub fn size(found: &str) -> Result<u64, Problem> {
    let t = found.to_ascii_lowercase();
    if t == "unlimited" {
        return Ok(0);
    }
    let (digits, unit) = t.split_at(t.find(|c: char| !c.is_ascii_digit()).unwrap_or(t.len()));
    let expected = || Problem::expected("a size such as 512K, 25M or 2G", found);
    let n: u64 = digits.parse().map_err(|_| expected().help("digits, then a unit: b, k, m, g, t"))?;
    let shift = match unit {
        "" | "b" => 0,
        "k" | "kb" => 10,
        "m" | "mb" => 20,
        "g" | "gb" => 30,
        "t" | "tb" => 40,
        unit => return Err(expected().help(format!("unknown unit {unit:?}: b, k, m, g, t"))),
    };
    n.checked_mul(1 << shift).ok_or_else(|| Problem::other(format!("{found} is larger than any size there is")))
}

fn unit_ms(u: &str) -> Option<u64> {
    Some(match u {
        "s" | "sec" | "second" => 1000,
        "m" | "min" | "minute" => 60_000,
        "h" | "hr" | "hour" => 3_600_000,
        "d" | "day" => 86_400_000,
        "w" | "week" => 604_800_000,
        _ => return None,
    })
}

/// Milliseconds of `4d12h`; `0` and `never`.
///
/// # Errors
/// [`Problem`]
pub fn duration(found: &str) -> Result<u64, Problem> {
    let expected = || Problem::expected("a time interval such as 90s, 10m or 4d12h", found);
    let lower = found.to_ascii_lowercase();
    match lower.as_str() {
        "never" => return Ok(NEVER_MS),
        "0" => return Ok(0),
        "" => return Err(expected()),
        _ => {}
    }
    let mut total = 0u64;
    let mut rest = lower.as_str();
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(expected)?;
        let n: u64 = rest[..digits].parse().map_err(|_| expected())?;
        let after = &rest[digits..];
        let unit = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let unknown = || {
            expected().help(match after[..unit].trim() {
                "" => "a unit is missing: w, d, h, m, s".to_owned(),
                unit => format!("unknown unit {unit:?}: w, d, h, m, s"),
            })
        };
        let ms = unit_ms(&after[..unit]).ok_or_else(unknown)?;
        total = n.checked_mul(ms).and_then(|x| total.checked_add(x)).filter(|x| *x < NEVER_MS).ok_or_else(expected)?;
        rest = &after[unit..];
    }
    Ok(total)
}

fn durations(text: &str) -> Result<Vec<u64>, Problem> {
    let mut all = Vec::new();
    for item in text.split(',').map(str::trim) {
        let n = duration(item).map_err(|p| p.at(item, text))?;
        if n == 0 {
            return Err(Problem::other("a time interval of zero would attempt again without end").at(item, text));
        }
        all.push(n);
    }
    if all.len() > 30 {
        return Err(Problem::other(format!("a list of at most 30 time intervals expected, got {}", all.len())));
    }
    Ok(all)
}

fn window(t: &str, found: &str) -> Result<u64, Problem> {
    let digits = t.find(|c: char| !c.is_ascii_digit()).unwrap_or(t.len());
    let n: u64 = if digits == 0 { 1 } else { t[..digits].parse().unwrap_or(0) };
    let unknown = || {
        Problem::expected("a rate such as 600/h or 100/15m", found).help(match &t[digits..] {
            "" => "a unit is missing behind the slash: s, m, h, d".to_owned(),
            unit => format!("unknown rate unit {unit:?}: s, m, h, d"),
        })
    };
    let unit = Some(&t[digits..]).filter(|u| !matches!(*u, "w" | "week"));
    let window = unit.and_then(unit_ms).ok_or_else(unknown)?.checked_mul(n).unwrap_or(0);
    if window == 0 { Err(Problem::expected("a rate over some time", found)) } else { Ok(window) }
}

/// Splits `N/WINDOW`; `None` for no limit.
fn per(found: &str) -> Result<Option<(&str, u64)>, Problem> {
    if found.eq_ignore_ascii_case("unlimited") || found == "0" {
        return Ok(None);
    }
    let expected = || Problem::expected("a rate such as 600/h or 100/15m, or unlimited", found);
    let (n, rest) = found.split_once('/').ok_or_else(expected)?;
    Ok(Some((n, window(&rest.to_ascii_lowercase(), found)?)))
}

fn limit(count: Option<(u64, u64)>, found: &str) -> Result<Value, Problem> {
    match count {
        None => Ok(Value::Rate { count: 0, per_ms: 0 }),
        Some((0, _)) => {
            Err(Problem::other(format!("a rate of zero: {found:?}")).help("write 0 or unlimited for no limit"))
        }
        Some((count, per_ms)) => Ok(Value::Rate { count, per_ms }),
    }
}

/// `N/[M]unit`, `0`, `unlimited`
///
/// # Errors
/// [`Problem`]
pub fn rate(found: &str) -> Result<Value, Problem> {
    let count = match per(found)? {
        None => None,
        Some((n, ms)) => Some((n.parse().map_err(|_| Problem::expected("a whole number before /", found))?, ms)),
    };
    limit(count, found)
}

/// `size/[M]unit`, `0`, `unlimited`
///
/// # Errors
/// [`Problem`]
pub fn data_rate(found: &str) -> Result<Value, Problem> {
    let count = match per(found)? {
        None => None,
        Some((n, ms)) => Some((size(n)?, ms)),
    };
    limit(count, found)
}

/// A value as the configuration would write it.
pub fn show(kind: &str, value: &Value) -> String {
    match value {
        Value::Flag(b) => if *b { "yes" } else { "no" }.to_owned(),
        Value::Number(n) => match kind.split_once(':') {
            Some(("enum", names)) => names.split(',').nth(*n as usize).unwrap_or_default().to_owned(),
            _ if kind.starts_with("size") => show_size(*n),
            _ if kind == "connections" && *n == ANY_CONNECTIONS => "unlimited".to_owned(),
            _ if *n == 0 && kind.ends_with(",auto") => "auto".to_owned(),
            _ => n.to_string(),
        },
        Value::Millis(NEVER_MS) if kind == "grace" => "no".to_owned(),
        Value::Millis(n) => show_duration(*n),
        Value::MillisList(l) => l.iter().map(|n| show_duration(*n)).collect::<Vec<_>>().join(","),
        Value::Rate { count: 0, .. } => "unlimited".to_owned(),
        Value::Rate { count, per_ms } => {
            let n = if kind.starts_with("data-rate") { show_size(*count) } else { count.to_string() };
            let window = show_duration(*per_ms);
            format!("{n}/{}", window.strip_prefix('1').filter(|u| u.len() == 1).unwrap_or(&window))
        }
        Value::PerNetwork { network, count, per_ms } => {
            let of = kind.rsplit_once(',').map_or("", |(_, last)| last);
            let limit = match (*count, *per_ms) {
                (0, _) => "unlimited".to_owned(),
                (count, 0) => count.to_string(),
                (count, per_ms) => show(of, &Value::Rate { count, per_ms }),
            };
            format!("{network} {limit}")
        }
        Value::Text(t) => t.clone(),
        Value::TextList(l) => l.join(", "),
    }
}

fn show_size(n: u64) -> String {
    let unit =
        [(40, "T"), (30, "G"), (20, "M"), (10, "K")].into_iter().find(|(s, _)| n > 0 && n.is_multiple_of(1 << s));
    unit.map_or_else(|| n.to_string(), |(s, u)| format!("{}{u}", n >> s))
}

/// `4d12h`; `0`, `never`.
pub fn show_duration(ms: u64) -> String {
    if ms == 0 {
        return "0".to_owned();
    }
    if ms >= NEVER_MS {
        return "never".to_owned();
    }
    let mut out = String::new();
    let mut left = ms / 1000;
    for (unit, s) in [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)] {
        if left >= s {
            out.push_str(&format!("{}{unit}", left / s));
            left %= s;
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value(kind: &str, text: &str) -> Value {
        parse(kind, text).unwrap().value
    }

    #[test]
    fn units() {
        assert_eq!(value("duration", "4d12h"), Value::Millis(388_800_000));
        assert_eq!(value("size", "25M"), Value::Number(26_214_400));
        assert_eq!(value("rate", "100/15m"), Value::Rate { count: 100, per_ms: 900_000 });
        assert_eq!(value("rate", "200/min"), Value::Rate { count: 200, per_ms: 60_000 });
        assert_eq!(value("data-rate", "1T/7d"), Value::Rate { count: 1 << 40, per_ms: 604_800_000 });
        for (kind, bad) in [
            ("duration", "5"),
            ("duration", "5x"),
            ("duration", "m"),
            ("duration", "5m5"),
            ("duration", ""),
            ("duration:10m", "11m"),
            ("durations", "10m, 5 minutes"),
            ("durations", "1m,"),
            ("rate", "0/h"),
            ("rate", "5/0h"),
            ("rate", "5/fortnight"),
            ("rate", "x/h"),
            ("size", "5q"),
            ("size:1M", "10K"),
            ("number:0..100", "101"),
            ("number", "many"),
            ("flag", "maybe"),
            ("size", "10 M"),
            ("enum:a,b", "c"),
        ] {
            assert!(parse(kind, bad).is_err(), "{kind} {bad}");
        }
    }

    #[test]
    fn yes_and_no_among_other_words_are_true_and_false() {
        for d in crate::config::directives::all().iter().filter(|d| d.kind.starts_with("enum:")) {
            let words: Vec<&str> = d.kind[5..].split(',').collect();
            if words.contains(&"yes") {
                assert!(words.contains(&"no"), "{}", d.name);
                assert!(parse(d.kind, "TRUE").is_ok() && parse(d.kind, "false").is_ok(), "{}", d.name);
            }
        }
        assert_eq!(value("enum:no,yes,override", "true"), value("enum:no,yes,override", "yes"));
        assert_eq!(value("enum:no,yes,override", "False"), value("enum:no,yes,override", "no"));
        assert!(parse("enum:a,b", "true").is_err());
    }

    #[test]
    fn values_are_shown_as_they_are_written() {
        for (kind, text) in [
            ("flag", "yes"),
            ("number", "20"),
            ("connections", "0"),
            ("connections", "unlimited"),
            ("size", "25M"),
            ("duration", "4d12h"),
            ("duration", "never"),
            ("grace", "no"),
            ("durations", "10m,1h30m"),
            ("rate", "600/h"),
            ("rate", "100/15m"),
            ("rate", "unlimited"),
            ("data-rate", "10M/m"),
            ("enum:a,b", "b"),
            ("list", "a, b"),
            ("word", "x"),
        ] {
            assert_eq!(show(kind, &value(kind, text)), text, "{kind}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_value_or_a_problem(s in "\\PC{0,20}") {
            for d in crate::config::directives::all() {
                if let Err(Problem { part: Some((at, len)), .. }) = parse(d.kind, &s) {
                    prop_assert!(at + len <= s.len(), "{} {s:?}", d.kind);
                }
            }
        }
    }
}
