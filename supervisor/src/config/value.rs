//! Value types of the language: flags, durations, sizes, rates, choices.

use ipc::rules::{NEVER_MS, Value};

/// Checks `text` against a type of the table.
///
/// # Errors
/// What was expected.
pub fn parse(kind: &str, text: &str) -> Result<Value, String> {
    match kind {
        "flag" => flag(text).map(Value::Flag),
        "number" => number(text).map(Value::Number),
        "size" => size(text).map(Value::Number),
        "duration" => duration(text).map(Value::Millis),
        "grace" => match text.to_ascii_lowercase().as_str() {
            "yes" | "true" => Ok(Value::Millis(0)),
            "no" | "false" => Ok(Value::Millis(NEVER_MS)),
            _ => duration(text).map(Value::Millis).map_err(|_| "yes, no, or a duration such as 4h".into()),
        },
        "durations" => {
            let list: Result<Vec<u64>, String> = text.split(',').map(|t| duration(t.trim())).collect();
            match list?.as_slice() {
                l if l.len() > 30 => Err("a list of at most 30 durations".into()),
                l => Ok(Value::MillisList(l.to_vec())),
            }
        }
        "rate" => rate(text),
        "data-rate" => data_rate(text),
        "list" => Ok(Value::TextList(list(text))),
        k if k.starts_with("enum:") => {
            let names: Vec<&str> = k["enum:".len()..].split(',').collect();
            let at = names.iter().position(|n| n.eq_ignore_ascii_case(text));
            at.map(|i| Value::Number(i as u64)).ok_or_else(|| format!("one of {}", names.join(", ")))
        }
        _ => Ok(Value::Text(text.to_owned())),
    }
}

/// A comma list.
pub fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(str::to_owned).collect()
}

fn flag(t: &str) -> Result<bool, String> {
    match t.to_ascii_lowercase().as_str() {
        "yes" | "true" => Ok(true),
        "no" | "false" => Ok(false),
        _ => Err("yes or no".into()),
    }
}

fn number(t: &str) -> Result<u64, String> {
    match t.to_ascii_lowercase().as_str() {
        "unlimited" | "auto" => Ok(0),
        n => n.parse().map_err(|_| "a whole number".into()),
    }
}

/// Bytes; `0` and `unlimited` are no limit.
///
/// # Errors
/// What was expected.
pub fn size(t: &str) -> Result<u64, String> {
    let expected = || "a size such as 512K, 25M or 2G".to_owned();
    let t = t.to_ascii_lowercase();
    if t == "unlimited" {
        return Ok(0);
    }
    let (digits, unit) = t.split_at(t.find(|c: char| !c.is_ascii_digit()).unwrap_or(t.len()));
    let n: u64 = digits.parse().map_err(|_| expected())?;
    let shift = match unit {
        "" | "b" => 0,
        "k" | "kb" => 10,
        "m" | "mb" => 20,
        "g" | "gb" => 30,
        "t" | "tb" => 40,
        _ => return Err(expected()),
    };
    n.checked_mul(1 << shift).ok_or_else(expected)
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
/// What was expected.
pub fn duration(t: &str) -> Result<u64, String> {
    let expected = || "a duration such as 90s, 10m or 4d12h".to_owned();
    let lower = t.to_ascii_lowercase();
    match lower.as_str() {
        "never" => return Ok(NEVER_MS),
        "0" => return Ok(0),
        _ => {}
    }
    let mut total = 0u64;
    let mut rest = lower.as_str();
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(expected)?;
        let n: u64 = rest[..digits].parse().map_err(|_| expected())?;
        let after = &rest[digits..];
        let unit = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let ms = unit_ms(&after[..unit]).ok_or_else(expected)?;
        total = n.checked_mul(ms).and_then(|x| total.checked_add(x)).filter(|x| *x < NEVER_MS).ok_or_else(expected)?;
        rest = &after[unit..];
    }
    if lower.is_empty() { Err(expected()) } else { Ok(total) }
}

fn window(t: &str) -> Option<u64> {
    let digits = t.find(|c: char| !c.is_ascii_digit())?;
    let n: u64 = if digits == 0 { 1 } else { t[..digits].parse().ok()? };
    unit_ms(&t[digits..])?.checked_mul(n).filter(|n| *n > 0)
}

fn rate(t: &str) -> Result<Value, String> {
    let expected = || "a rate such as 600/h or 100/15m, or unlimited".to_owned();
    let t = t.to_ascii_lowercase();
    if t == "unlimited" || t == "0" {
        return Ok(Value::Rate { count: 0, per_ms: 0 });
    }
    let (n, per) = t.split_once('/').ok_or_else(expected)?;
    let count = n.parse().ok().filter(|n| *n > 0).ok_or_else(expected)?;
    Ok(Value::Rate { count, per_ms: window(per).ok_or_else(expected)? })
}

fn data_rate(t: &str) -> Result<Value, String> {
    let expected = || "a data rate such as 12M/m or 1G/2h, or unlimited".to_owned();
    let t = t.to_ascii_lowercase();
    if t == "unlimited" || t == "0" {
        return Ok(Value::Rate { count: 0, per_ms: 0 });
    }
    let (n, per) = t.split_once('/').ok_or_else(expected)?;
    Ok(Value::Rate { count: size(n).map_err(|_| expected())?, per_ms: window(per).ok_or_else(expected)? })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn units() {
        assert_eq!(duration("4d12h").unwrap(), 388_800_000);
        assert_eq!(size("25M").unwrap(), 26_214_400);
        assert_eq!(rate("100/15m").unwrap(), Value::Rate { count: 100, per_ms: 900_000 });
        assert_eq!(rate("200/min").unwrap(), Value::Rate { count: 200, per_ms: 60_000 });
        for bad in ["", "5", "5x", "m", "5m5"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert!(rate("0/h").is_err() && rate("5/0h").is_err() && size("5q").is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_a_value_or_an_expectation(s in "\\PC{0,20}") {
            for k in ["flag", "number", "size", "duration", "grace", "durations", "rate", "data-rate", "enum:a,b", "list", "text"] {
                let _ = parse(k, &s);
            }
        }
    }
}
