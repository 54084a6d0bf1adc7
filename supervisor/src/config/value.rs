//! Values of one part: numbers, sizes, time intervals, rates, lists, and how the configuration writes them.

use ipc::rules::{NEVER_MS, Value};

use super::problem::Problem;

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

pub(super) fn flag(t: &str) -> Result<bool, Problem> {
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

pub(super) fn durations(text: &str) -> Result<Vec<u64>, Problem> {
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

pub(super) fn show_size(n: u64) -> String {
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
