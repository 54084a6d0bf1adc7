//! `<pattern-list>`: virtual MTA and priority of a message by its sender, recipients, headers.

use fancy_regex::Regex;
use ipc::pattern_lists::{ArchivedOn, ArchivedPatternList, ArchivedPatternResult};

use super::headers::Field;
use crate::classify::expression;

/// Lists that call each other.
const CALLS_MAX: usize = 16;

/// What the lists look at.
pub struct Subject<'a> {
    /// Envelope sender.
    pub sender: &'a str,
    /// One recipient.
    pub recipient: &'a str,
    /// Header fields.
    pub fields: &'a [Field<'a>],
}

/// What a list decided.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choice {
    /// Virtual MTA or pool; empty for none.
    pub vmta: String,
    /// 0 to 100.
    pub priority: Option<u8>,
}

#[derive(Debug)]
enum On {
    Sender,
    Recipient,
    Header(String),
    Any,
}

#[derive(Debug)]
enum Then {
    Choose(Choice),
    /// Place of another list.
    List(usize),
}

#[derive(Debug)]
struct Rule {
    on: On,
    expression: Option<Regex>,
    then: Then,
}

/// All lists of a configuration, compiled.
#[derive(Debug, Default)]
pub struct PatternLists {
    names: Vec<String>,
    lists: Vec<Vec<Rule>>,
}

impl PatternLists {
    /// Compiles them. What does not compile was refused with the configuration.
    pub fn of(lists: &[ArchivedPatternList]) -> PatternLists {
        let names: Vec<String> = lists.iter().map(|l| l.name.as_str().to_owned()).collect();
        let rule = |r: &ipc::pattern_lists::ArchivedPatternRule| {
            let on = match &r.on {
                ArchivedOn::Sender => On::Sender,
                ArchivedOn::Recipient => On::Recipient,
                ArchivedOn::Header(name) => On::Header(name.as_str().to_owned()),
                ArchivedOn::Any => On::Any,
            };
            let then = match &r.result {
                ArchivedPatternResult::Choose { vmta, priority } => {
                    Then::Choose(Choice { vmta: vmta.as_str().to_owned(), priority: priority.as_ref().copied() })
                }
                ArchivedPatternResult::CallTo(name) => Then::List(names.iter().position(|n| n == name.as_str())?),
                ArchivedPatternResult::Inside(at) => Then::List(at.to_native() as usize),
            };
            let any = matches!(on, On::Any);
            let expression = if any { None } else { Some(expression::compile_exact(r.expression.as_str()).ok()?) };
            Some(Rule { on, expression, then })
        };
        let lists = lists.iter().map(|l| l.rules.iter().filter_map(rule).collect()).collect();
        PatternLists { names, lists }
    }

    /// What the list of this name decides; nothing when no rule matches.
    pub fn decide(&self, name: &str, s: &Subject<'_>) -> Choice {
        let at = self.names.iter().position(|n| !n.is_empty() && n.eq_ignore_ascii_case(name));
        at.and_then(|at| self.ask(at, s, 0)).unwrap_or_default()
    }

    /// Whether what it decides may differ from recipient to recipient.
    pub fn looks_at_recipients(&self, name: &str) -> bool {
        // A list may call any other.
        !name.is_empty() && self.lists.iter().flatten().any(|r| matches!(r.on, On::Recipient))
    }

    fn ask(&self, at: usize, s: &Subject<'_>, calls: usize) -> Option<Choice> {
        for r in self.lists.get(at).filter(|_| calls < CALLS_MAX)? {
            if !matches(r, s) {
                continue;
            }
            match &r.then {
                Then::Choose(c) => return Some(c.clone()),
                // Of a list inside nothing may match: the search goes on behind it.
                Then::List(next) => {
                    if let Some(c) = self.ask(*next, s, calls + 1) {
                        return Some(c);
                    }
                }
            }
        }
        None
    }
}

fn matches(r: &Rule, s: &Subject<'_>) -> bool {
    let Some(e) = &r.expression else { return true };
    // An expression that runs away matches nothing.
    let hit = |text: &str| e.is_match(text).unwrap_or(false);
    match &r.on {
        On::Sender => hit(s.sender),
        On::Recipient => hit(s.recipient),
        On::Header(name) => {
            let named = s.fields.iter().filter(|f| f.name.eq_ignore_ascii_case(name));
            named.map(|f| String::from_utf8_lossy(f.value)).any(|v| hit(&v))
        }
        On::Any => true,
    }
}

#[cfg(test)]
mod tests {
    use super::super::headers;
    use super::*;

    fn rule(on: On, expression: &str, then: Then) -> Rule {
        Rule { on, expression: expression::compile_exact(expression).ok(), then }
    }

    fn choose(vmta: &str, priority: Option<u8>) -> Then {
        Then::Choose(Choice { vmta: vmta.into(), priority })
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let lists = PatternLists {
            names: vec!["l".into(), String::new(), "more".into()],
            lists: vec![
                vec![
                    rule(On::Recipient, "@vip\\.", choose("v1", Some(90))),
                    rule(On::Sender, "^news@", Then::List(1)),
                    rule(On::Header("x-kind".into()), "^\\s*reset$", choose("", Some(100))),
                    Rule { on: On::Any, expression: None, then: Then::List(2) },
                ],
                vec![rule(On::Recipient, "a@", choose("v2", None))],
                vec![
                    rule(On::Sender, "b@", choose("v3", None)),
                    Rule { on: On::Any, expression: None, then: Then::List(2) },
                ],
            ],
        };
        let message = b"X-Kind: reset\r\nOther: x\r\n\r\n";
        let (with, _) = headers::parse(message);
        let ask = |sender: &str, recipient: &str, fields: &[Field<'_>]| {
            let c = lists.decide("L", &Subject { sender, recipient, fields });
            (c.vmta, c.priority)
        };
        assert_eq!(ask("news@s", "x@vip.test", &[]), ("v1".into(), Some(90)));
        assert_eq!(ask("news@s", "a@d.test", &with), ("v2".into(), None));
        assert_eq!(ask("news@s", "c@d.test", &with), (String::new(), Some(100)));
        assert_eq!(ask("b@s", "c@d.test", &[]), ("v3".into(), None));
        // Expressions look at case, and lists that call themselves end.
        assert_eq!(ask("NEWS@s", "a@d.test", &[]), (String::new(), None));
        assert!(lists.looks_at_recipients("l") && !lists.looks_at_recipients(""));
    }
}
