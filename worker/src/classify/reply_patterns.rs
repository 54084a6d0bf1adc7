//! `<smtp-pattern-list>`: which rules a receiver's reply matches, and what they do together.

use fancy_regex::Regex;
use ipc::reply_rules::{ArchivedReplyAction, ArchivedReplyList, ArchivedReplyRule};

use crate::schedule::matches::Matches;

/// What becomes of the mail that met a reply. One of these at most is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// `skip-mx`
    SkipMx,
    /// `bounce-queue`
    BounceQueue,
    /// `bounce-rcpt`
    BounceRcpt,
    /// `defer-queue`
    DeferQueue,
}

/// Into a mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switch {
    /// For so many milliseconds, where the rule says so.
    ToBackoff(Option<u64>),
    /// Out of backoff.
    ToNormal,
}

/// What the rules that matched do: of those that exclude each other the first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Effects {
    /// Another mode of the path.
    pub mode: Option<Switch>,
    /// What becomes of the mail.
    pub route: Option<Route>,
    /// The source address is not used any more, for so many milliseconds where the rule says so.
    pub disable_source: Option<Option<u64>>,
}

#[derive(Debug)]
struct Rule {
    expression: Regex,
    actions: Vec<ipc::reply_rules::ReplyAction>,
    count: usize,
    window_ms: i64,
    /// File and line, for those who are told.
    place: String,
}

/// A list, ready to be matched.
#[derive(Debug)]
pub struct Patterns {
    rules: Vec<Rule>,
    /// Where the rules of each list end.
    ends: Vec<usize>,
}

impl Patterns {
    /// Compiles lists, each asked where no rule of those before hits. An expression that does not compile was refused with the configuration.
    pub fn of(lists: &[&ArchivedReplyList], files: &[rkyv::string::ArchivedString]) -> Patterns {
        let rule = |r: &ArchivedReplyRule| {
            let file = files.get(usize::from(r.file.to_native())).map_or("", |f| f.as_str());
            Some(Rule {
                expression: super::expression::compile(r.expression.as_str()).ok()?,
                actions: r.actions.iter().map(action).collect(),
                count: r.count.to_native() as usize,
                window_ms: i64::try_from(r.window_ms.to_native()).unwrap_or(i64::MAX),
                place: format!("{file}:{}", r.line.to_native()),
            })
        };
        let (mut rules, mut ends) = (Vec::new(), Vec::new());
        for list in lists {
            rules.extend(list.rules.iter().filter_map(rule));
            ends.push(rules.len());
        }
        Patterns { rules, ends }
    }

    /// The same rules in the same order, wherever they stand.
    pub fn are_those_of(&self, other: &Patterns) -> bool {
        let same = |(a, b): (&Rule, &Rule)| {
            (a.expression.as_str(), &a.actions, a.count, a.window_ms)
                == (b.expression.as_str(), &b.actions, b.count, b.window_ms)
        };
        self.ends == other.ends && self.rules.iter().zip(&other.rules).all(same)
    }

    /// Rules that match a reply, in order.
    pub fn matching(&self, reply: &str) -> Vec<usize> {
        // An expression that gives up within its bounds does not match.
        let hits = |r: &Rule| r.expression.is_match(reply).unwrap_or(false);
        let mut from = 0;
        for end in &self.ends {
            let found: Vec<usize> = (from..*end).filter(|i| self.rules.get(*i).is_some_and(hits)).collect();
            if !found.is_empty() {
                return found;
            }
            from = *end;
        }
        Vec::new()
    }

    /// What rules do together. One with a trigger in time does nothing before its count is
    /// reached.
    pub fn effects(&self, matching: &[usize], seen: &mut Matches, now_ms: i64) -> (Effects, Option<&str>) {
        use ipc::reply_rules::ReplyAction as A;
        let mut e = Effects::default();
        let mut place = None;
        for i in matching {
            let Some(rule) = self.rules.get(*i).filter(|r| seen.triggers(*i, r.count, r.window_ms, now_ms)) else {
                continue;
            };
            place = place.or(Some(rule.place.as_str()));
            for a in &rule.actions {
                match a {
                    A::Backoff(after) => e.mode = e.mode.or(Some(Switch::ToBackoff(*after))),
                    A::Normal => e.mode = e.mode.or(Some(Switch::ToNormal)),
                    A::SkipMx => e.route = e.route.or(Some(Route::SkipMx)),
                    A::BounceQueue => e.route = e.route.or(Some(Route::BounceQueue)),
                    A::BounceRcpt => e.route = e.route.or(Some(Route::BounceRcpt)),
                    A::DeferQueue => e.route = e.route.or(Some(Route::DeferQueue)),
                    A::DisableSourceIp(after) => e.disable_source = e.disable_source.or(Some(*after)),
                }
            }
        }
        (e, place)
    }
}

fn action(a: &ArchivedReplyAction) -> ipc::reply_rules::ReplyAction {
    use ipc::reply_rules::ReplyAction as A;
    match a {
        ArchivedReplyAction::Backoff(after) => A::Backoff(after.as_ref().map(|n| n.to_native())),
        ArchivedReplyAction::Normal => A::Normal,
        ArchivedReplyAction::SkipMx => A::SkipMx,
        ArchivedReplyAction::BounceQueue => A::BounceQueue,
        ArchivedReplyAction::BounceRcpt => A::BounceRcpt,
        ArchivedReplyAction::DeferQueue => A::DeferQueue,
        ArchivedReplyAction::DisableSourceIp(after) => A::DisableSourceIp(after.as_ref().map(|n| n.to_native())),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use ipc::reply_rules::{ReplyAction as A, ReplyList, ReplyRule};

    fn patterns(rules: &[(&str, &[A], u32)]) -> Patterns {
        lists(&[rules])
    }

    fn lists(all: &[&[(&str, &[A], u32)]]) -> Patterns {
        let bytes: Vec<_> = all.iter().map(|rules| archived(rules)).collect();
        let lists = bytes.iter().map(|b| rkyv::access::<ArchivedReplyList, rkyv::rancor::Error>(b).unwrap());
        Patterns::of(&lists.collect::<Vec<_>>(), &[])
    }

    fn archived(rules: &[(&str, &[A], u32)]) -> rkyv::util::AlignedVec {
        let rules = rules.iter().map(|(expression, actions, count)| ReplyRule {
            expression: (*expression).to_owned(),
            actions: actions.to_vec(),
            count: *count,
            window_ms: 60_000,
            ..Default::default()
        });
        ipc::frame::archive(&ReplyList { name: "l".into(), rules: rules.collect() })
    }

    #[test]
    fn a_second_list_is_asked_where_no_rule_of_the_first_hits() {
        let p = lists(&[&[("busy", &[A::Backoff(None)], 0)], &[("^421", &[A::SkipMx], 0), ("busy", &[A::SkipMx], 0)]]);
        assert_eq!([p.matching("421 busy"), p.matching("421 no"), p.matching("450 no")], [vec![0], vec![1], vec![]]);
        assert!(!p.are_those_of(&patterns(&[("busy", &[A::Backoff(None)], 0)])));
    }

    #[test]
    fn all_rules_count_and_of_those_that_conflict_the_first() {
        let p = patterns(&[
            ("busy", &[A::Backoff(Some(7)), A::DeferQueue], 0),
            ("^421", &[A::Normal, A::SkipMx, A::DisableSourceIp(Some(5))], 0),
            ("421 .* blocked", &[A::DisableSourceIp(None)], 0),
        ]);
        let judge = |reply: &str| p.effects(&p.matching(reply), &mut Matches::default(), 0).0;
        assert_eq!(judge("250 ok"), Effects::default());
        let both = judge("421 too BUSY, blocked");
        assert_eq!((both.mode, both.route), (Some(Switch::ToBackoff(Some(7))), Some(Route::DeferQueue)));
        assert_eq!(both.disable_source, Some(Some(5)));
    }

    #[test]
    fn a_trigger_in_time_waits_for_its_count() {
        let p = patterns(&[("slow", &[A::Backoff(None)], 3)]);
        let mut seen = Matches::default();
        let mut at = |now| p.effects(&p.matching("421 slow"), &mut seen, now).0.mode.is_some();
        assert_eq!([at(0), at(50_000), at(70_000), at(100_000)], [false, false, false, true]);
        // It counts anew.
        assert_eq!([at(100_001), at(100_002), at(100_003)], [false, false, true]);
    }
}
