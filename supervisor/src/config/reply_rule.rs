//! `reply /REGEX/ ACTION[,ACTION…]` of `<smtp-pattern-list>`.

use super::composite::regex;
use super::value::{Problem, duration, items, number};

/// What a matching reply does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// `mode=backoff`
    Backoff,
    /// `mode=normal`
    Normal,
    /// `skip-mx`
    SkipMx,
    /// `bounce-queue`
    BounceQueue,
    /// `bounce-rcpt`
    BounceRcpt,
    /// `disable-source-ip`
    DisableSourceIp,
    /// `reenable-after=DURATION`
    ReenableAfter,
    /// `defer-queue`
    DeferQueue,
    /// `after=N/DURATION`: the rule acts on the N-th match within that time.
    After,
}

/// Reads a rule: what happens when its expression matches.
///
/// # Errors
/// [`Problem`] when the expression is wrong or actions exclude each other.
pub fn parse(text: &str) -> Result<Vec<Action>, Problem> {
    let (_, rest) = regex(text, text)?;
    let mut actions = Vec::new();
    for item in items(rest) {
        let action = action(item).map_err(|p| p.at(item, text))?;
        let exclude = |a: &Action, b: &Action| {
            matches!((a, b), (Action::Backoff, Action::Normal) | (Action::SkipMx, Action::BounceQueue))
        };
        if let Some(other) = actions.iter().find(|a| exclude(a, &action) || exclude(&action, a)) {
            let message = format!("{} and {} exclude each other", name(other), name(&action));
            return Err(Problem::other(message).at(item, text));
        }
        if action == Action::ReenableAfter {
            if !actions.contains(&Action::DisableSourceIp) {
                let message = "reenable-after needs a preceding disable-source-ip";
                return Err(Problem::other(message).at(item, text));
            }
            if actions.contains(&action) {
                return Err(Problem::other("reenable-after is given twice").at(item, text));
            }
        }
        actions.push(action);
    }
    Ok(actions)
}

fn action(item: &str) -> Result<Action, Problem> {
    let lower = item.to_ascii_lowercase();
    let (name, value) = lower.split_once('=').unwrap_or((&lower, ""));
    Ok(match (name.trim(), value.trim()) {
        ("mode", "backoff") => Action::Backoff,
        ("mode", "normal") => Action::Normal,
        ("skip-mx", "") => Action::SkipMx,
        ("bounce-queue", "") => Action::BounceQueue,
        ("bounce-rcpt", "") => Action::BounceRcpt,
        ("disable-source-ip", "") => Action::DisableSourceIp,
        ("defer-queue", "") => Action::DeferQueue,
        ("reenable-after", t) => duration(t).map(|_| Action::ReenableAfter)?,
        ("after", t) => {
            let (n, time) = t.split_once('/').ok_or_else(|| Problem::expected("after=N/DURATION", item))?;
            number(n, "1..1000000")?;
            duration(time).map(|_| Action::After)?
        }
        _ => {
            let known = "mode=backoff, mode=normal, skip-mx, bounce-queue, bounce-rcpt, disable-source-ip, \
                         reenable-after=DURATION, defer-queue, after=N/DURATION";
            return Err(Problem::expected("an action", item).help(known));
        }
    })
}

fn name(a: &Action) -> &'static str {
    match a {
        Action::Backoff => "mode=backoff",
        Action::Normal => "mode=normal",
        Action::SkipMx => "skip-mx",
        Action::BounceQueue => "bounce-queue",
        Action::BounceRcpt => "bounce-rcpt",
        Action::DisableSourceIp => "disable-source-ip",
        Action::ReenableAfter => "reenable-after",
        Action::DeferQueue => "defer-queue",
        Action::After => "after",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn actions_and_their_conflicts() {
        let actions = parse("/TS03/ mode=backoff, disable-source-ip,reenable-after=1h").unwrap();
        assert_eq!(actions, [Action::Backoff, Action::DisableSourceIp, Action::ReenableAfter]);
        assert!(regex("/TS03/", "").unwrap().0.is_match("421 [ts03] wait").unwrap());
        assert!(!regex("/(?-i)TS03/ skip-mx", "").unwrap().0.is_match("ts03").unwrap());
        for bad in [
            "/a/ mode=normal,mode=backoff",
            "/a/ bounce-queue,skip-mx",
            "/a/ reenable-after=1h",
            "/a/ nothing",
            "a skip-mx",
            "/a/ disable-source-ip,reenable-after=1h,reenable-after=2h",
            "/a/ after=0/1h",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
