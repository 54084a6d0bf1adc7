//! `<pattern-list>`: virtual MTA and priority of a message by its sender, recipients, headers.

use ipc::dice::HashMap;

use fancy_regex::Regex;
use ipc::pattern_lists::{ArchivedOn, ArchivedPatternList, ArchivedPatternResult};

use super::headers::Field;
use crate::classify::expression;

/// Lists that call each other.
const CALLS_MAX: usize = 16;
/// Rules that are looked at for one recipient, in all lists that call each other.
const RULES_MAX: usize = 10_000;
/// Fields of one name that a rule looks at.
const FIELDS_MAX: usize = 10;
/// Bytes of a field's value that a rule looks at.
const VALUE_MAX: usize = 4096;

/// What the lists look at in a message, whoever gets it.
pub struct Subject<'a> {
    /// Envelope sender.
    pub sender: &'a str,
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
    /// File, by its place in the snapshot's list, and line.
    at: (u16, u32),
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
            let expression = if any { None } else { Some(expression::compile(r.expression.as_str()).ok()?) };
            Some(Rule { on, expression, then, at: (r.file.to_native(), r.line.to_native()) })
        };
        let lists = lists.iter().map(|l| l.rules.iter().filter_map(rule).collect()).collect();
        PatternLists { names, lists }
    }

    /// The list of this name, to be asked for the recipients of one message.
    pub fn of_message<'a>(&'a self, name: &str, subject: Subject<'a>) -> Decider<'a> {
        let first = self.names.iter().position(|n| !n.is_empty() && n.eq_ignore_ascii_case(name));
        Decider { lists: &self.lists, first, subject, known: HashMap::default(), rules: 0, decided_at: None }
    }

    /// Whether what it decides may differ from recipient to recipient.
    pub fn looks_at_recipients(&self, name: &str) -> bool {
        // A list may call any other.
        !name.is_empty() && self.lists.iter().flatten().any(|r| matches!(r.on, On::Recipient))
    }
}

/// What a list decides for the recipients of a message, one after the other. What depends on the message alone is looked at
/// once, however many they are.
pub struct Decider<'a> {
    lists: &'a [Vec<Rule>],
    first: Option<usize>,
    subject: Subject<'a>,
    /// Of rules on the sender and on headers, by list and place: whether they match.
    known: HashMap<(usize, usize), bool>,
    /// Rules that were looked at for this recipient.
    rules: usize,
    /// The rule that decided: its file, by the place in the snapshot's list, and its line.
    pub decided_at: Option<(u16, u32)>,
}

impl Decider<'_> {
    /// What it decides for one; nothing when no rule matches.
    pub fn decide(&mut self, recipient: &str) -> Choice {
        self.rules = 0;
        self.decided_at = None;
        self.first.and_then(|at| self.ask(at, recipient, 0)).unwrap_or_default()
    }

    fn ask(&mut self, at: usize, recipient: &str, calls: usize) -> Option<Choice> {
        let lists = self.lists;
        for (place, r) in lists.get(at).filter(|_| calls < CALLS_MAX)?.iter().enumerate() {
            self.rules += 1;
            if self.rules > RULES_MAX {
                return None;
            }
            if !self.matches(r, (at, place), recipient) {
                continue;
            }
            match &r.then {
                Then::Choose(c) => {
                    self.decided_at = Some(r.at);
                    return Some(c.clone());
                }
                // Of a list inside nothing may match: the search goes on behind it.
                Then::List(next) => {
                    if let Some(c) = self.ask(*next, recipient, calls + 1) {
                        return Some(c);
                    }
                }
            }
        }
        None
    }

    fn matches(&mut self, r: &Rule, place: (usize, usize), recipient: &str) -> bool {
        let Some(e) = &r.expression else { return true };
        if let On::Recipient = r.on {
            return hits(e, recipient);
        }
        let subject = &self.subject;
        *self.known.entry(place).or_insert_with(|| match &r.on {
            On::Sender => hits(e, subject.sender),
            On::Header(name) => {
                let named = subject.fields.iter().filter(|f| f.name.eq_ignore_ascii_case(name)).take(FIELDS_MAX);
                named.map(|f| &f.value[..f.value.len().min(VALUE_MAX)]).any(|v| hits(e, &String::from_utf8_lossy(v)))
            }
            On::Recipient | On::Any => true,
        })
    }
}

/// An expression that runs away matches nothing.
fn hits(e: &Regex, text: &str) -> bool {
    e.is_match(text).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::super::headers;
    use super::*;

    fn rule(on: On, expression: &str, then: Then) -> Rule {
        Rule { on, expression: expression::compile(expression).ok(), then, at: (0, 0) }
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
                    Rule { on: On::Any, expression: None, then: Then::List(2), at: (0, 0) },
                ],
                vec![rule(On::Recipient, "a@", choose("v2", None))],
                vec![
                    rule(On::Sender, "b@", choose("v3", None)),
                    Rule { on: On::Any, expression: None, then: Then::List(2), at: (0, 0) },
                ],
            ],
        };
        let message = b"X-Kind: reset\r\nOther: x\r\n\r\n";
        let (with, _) = headers::parse(message);
        let ask = |sender: &str, recipient: &str, fields: &[Field<'_>]| {
            let c = lists.of_message("L", Subject { sender, fields }).decide(recipient);
            (c.vmta, c.priority)
        };
        assert_eq!(ask("news@s", "x@vip.test", &[]), ("v1".into(), Some(90)));
        assert_eq!(ask("news@s", "a@d.test", &with), ("v2".into(), None));
        assert_eq!(ask("news@s", "c@d.test", &with), (String::new(), Some(100)));
        assert_eq!(ask("b@s", "c@d.test", &[]), ("v3".into(), None));
        // Expressions pay no regard to case, and lists that call themselves end.
        assert_eq!(ask("NEWS@s", "x@VIP.test", &[]), ("v1".into(), Some(90)));
        assert!(lists.looks_at_recipients("l") && !lists.looks_at_recipients(""));
    }
    #[test]
    fn headers_are_looked_at_once_and_within_bounds() {
        let on_header = |e: &str, vmta: &str| rule(On::Header("x".into()), e, choose(vmta, None));
        let vip = || rule(On::Recipient, "^vip@", choose("v", None));
        let lists = PatternLists {
            names: vec!["l".into()],
            lists: vec![vec![vip(), on_header("far", "far"), on_header("near", "near")]],
        };
        let value = format!("near{}far", "-".repeat(VALUE_MAX));
        let beyond = "X: no\r\n".repeat(FIELDS_MAX);
        for (message, decided) in [(format!("X: {value}\r\n\r\n"), "near"), (format!("{beyond}X: near\r\n\r\n"), "")] {
            let (fields, _) = headers::parse(message.as_bytes());
            let mut decider = lists.of_message("l", Subject { sender: "", fields: &fields });
            for n in 0..5 {
                assert_eq!(decider.decide(&format!("{n}@d.test")).vmta, decided);
                assert_eq!(decider.decide("vip@d.test").vmta, "v");
            }
            assert_eq!(decider.known.len(), 2, "each rule on a header was asked once");
        }
    }

    #[test]
    fn lists_that_call_each_other_many_times_end() {
        let call = || Rule { on: On::Any, expression: None, then: Then::List(0), at: (0, 0) };
        let lists = PatternLists { names: vec!["l".into()], lists: vec![(0..8).map(|_| call()).collect()] };
        let mut decider = lists.of_message("l", Subject { sender: "", fields: &[] });
        assert_eq!(decider.decide("a@d.test"), Choice::default());
        assert!(decider.rules <= RULES_MAX + CALLS_MAX, "{}", decider.rules);
    }
}
