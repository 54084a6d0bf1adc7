//! `reply /REGEX/ ACTION[,ACTION…]` of `<smtp-pattern-list>`.

use ipc::reply_rules::{ReplyAction, ReplyRule};

use super::pattern::{expression, regex};
use super::problem::Problem;
use super::value::{duration, items, number};

/// What stands between the commas.
enum Part {
    Action(ReplyAction),
    /// `reenable-after=DURATION`, milliseconds.
    ReenableAfter(u64),
    /// `backoff-to-normal-after=DURATION`, milliseconds.
    ToNormalAfter(u64),
    /// `after=N/DURATION`: the rule acts on the N-th match within that time, milliseconds.
    After(u64, u64),
}

/// Checks a rule.
///
/// # Errors
/// [`Problem`] when the expression is wrong or actions exclude each other.
pub fn parse(text: &str) -> Result<ReplyRule, Problem> {
    regex(text, text)?;
    read(text)
}

/// Reads a rule whose expression is known to be one; its place is left to the caller.
///
/// # Errors
/// [`Problem`] when actions exclude each other.
pub fn read(text: &str) -> Result<ReplyRule, Problem> {
    let (expression, rest) = expression(text, text)?;
    let mut rule = ReplyRule { expression: expression.to_owned(), ..Default::default() };
    for item in items(rest) {
        let wrong = |message: String| Problem::other(message).at(item, text);
        match part(item).map_err(|p| p.at(item, text))? {
            Part::Action(action) => {
                if let Some(other) = rule.actions.iter().find(|a| exclude(a, &action)) {
                    return Err(wrong(format!("{} and {} exclude each other", name(other), name(&action))));
                }
                rule.actions.push(action);
            }
            Part::ReenableAfter(ms) => {
                match rule.actions.iter_mut().find(|a| matches!(a, ReplyAction::DisableSourceIp(_))) {
                    Some(ReplyAction::DisableSourceIp(after @ None)) => *after = Some(ms),
                    Some(_) => return Err(wrong("reenable-after is given twice".into())),
                    None => return Err(wrong("reenable-after needs a preceding disable-source-ip".into())),
                }
            }
            Part::ToNormalAfter(ms) => match rule.actions.iter_mut().find(|a| matches!(a, ReplyAction::Backoff(_))) {
                Some(ReplyAction::Backoff(after @ None)) => *after = Some(ms),
                Some(_) => return Err(wrong("backoff-to-normal-after is given twice".into())),
                None => return Err(wrong("backoff-to-normal-after needs a preceding mode=backoff".into())),
            },
            Part::After(count, window_ms) => (rule.count, rule.window_ms) = (count as u32, window_ms),
        }
    }
    Ok(rule)
}

fn exclude(a: &ReplyAction, b: &ReplyAction) -> bool {
    use ReplyAction::{Backoff, BounceQueue, Normal, SkipMx};
    let pair = |a: &ReplyAction, b: &ReplyAction| matches!((a, b), (Backoff(_), Normal) | (SkipMx, BounceQueue));
    pair(a, b) || pair(b, a)
}

fn part(item: &str) -> Result<Part, Problem> {
    let lower = item.to_ascii_lowercase();
    let (name, value) = lower.split_once('=').unwrap_or((&lower, ""));
    Ok(Part::Action(match (name.trim(), value.trim()) {
        ("mode", "backoff") => ReplyAction::Backoff(None),
        ("mode", "normal") => ReplyAction::Normal,
        ("skip-mx", "") => ReplyAction::SkipMx,
        ("bounce-queue", "") => ReplyAction::BounceQueue,
        ("bounce-rcpt", "") => ReplyAction::BounceRcpt,
        ("disable-source-ip", "") => ReplyAction::DisableSourceIp(None),
        ("defer-queue", "") => ReplyAction::DeferQueue,
        ("backoff-to-normal-after", t) => return Ok(Part::ToNormalAfter(duration(t)?)),
        ("reenable-after", t) => return Ok(Part::ReenableAfter(duration(t)?)),
        ("after", t) => {
            let (n, time) = t.split_once('/').ok_or_else(|| Problem::expected("after=N/DURATION", item))?;
            return Ok(Part::After(number(n, "1..1000000")?, duration(time)?));
        }
        _ => {
            let known = "mode=backoff, backoff-to-normal-after=DURATION, mode=normal, skip-mx, bounce-queue, bounce-rcpt, \
                         disable-source-ip, reenable-after=DURATION, defer-queue, after=N/DURATION";
            return Err(Problem::expected("an action", item).help(known));
        }
    }))
}

fn name(a: &ReplyAction) -> &'static str {
    match a {
        ReplyAction::Backoff(_) => "mode=backoff",
        ReplyAction::Normal => "mode=normal",
        ReplyAction::SkipMx => "skip-mx",
        ReplyAction::BounceQueue => "bounce-queue",
        ReplyAction::BounceRcpt => "bounce-rcpt",
        ReplyAction::DisableSourceIp(_) => "disable-source-ip",
        ReplyAction::DeferQueue => "defer-queue",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn actions_and_their_conflicts() {
        let rule = parse("/TS03/ mode=backoff, disable-source-ip,reenable-after=1h, after=3/10m").unwrap();
        assert_eq!(rule.actions, [ReplyAction::Backoff(None), ReplyAction::DisableSourceIp(Some(3_600_000))]);
        assert_eq!((rule.expression.as_str(), rule.count, rule.window_ms), ("TS03", 3, 600_000));
        assert!(regex("/TS03/", "").unwrap().0.is_match("421 [ts03] wait").unwrap());
        assert!(!regex("/(?-i)TS03/ skip-mx", "").unwrap().0.is_match("ts03").unwrap());
        let rule = parse("/^421 .*too many/ mode=backoff,backoff-to-normal-after=10m").unwrap();
        assert_eq!(rule.actions, [ReplyAction::Backoff(Some(600_000))]);
        for bad in [
            "/a/ mode=normal,mode=backoff",
            "/a/ bounce-queue,skip-mx",
            "/a/ reenable-after=1h",
            "/a/ backoff-to-normal-after=10m,mode=backoff",
            "/a/ mode=backoff,backoff-to-normal-after=10m,backoff-to-normal-after=10m",
            "/a/ nothing",
            "a skip-mx",
            "/a/ disable-source-ip,reenable-after=1h,reenable-after=2h",
            "/a/ after=0/1h",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
