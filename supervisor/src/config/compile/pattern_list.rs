//! `<pattern-list>` to its rules.

use ipc::pattern_lists::{On, PatternList, PatternResult, PatternRule};
use ipc::rules::Value;

use super::super::pattern::expression;
use super::super::value::items;
use super::{Accepted, Compiler, Statement};

impl Compiler<'_> {
    /// A list at top level; one that is defined again goes on.
    pub(super) fn pattern_list(&mut self, s: &Statement) {
        let name = s.value.to_lowercase();
        let at = match self.snapshot.pattern_lists.iter().position(|l| l.name == name) {
            Some(at) => at,
            None => self.add_pattern_list(name),
        };
        self.pattern_rules(at, &s.inside);
    }

    fn add_pattern_list(&mut self, name: String) -> usize {
        self.snapshot.pattern_lists.push(PatternList { name, rules: Vec::new() });
        self.snapshot.pattern_lists.len() - 1
    }

    fn pattern_rules(&mut self, at: usize, lines: &[Statement]) {
        for s in lines {
            let accepted = self.check("pattern-list", s).and_then(Accepted::in_force);
            let inside = (s.is_block && !s.name.starts_with('<')).then(|| {
                let list = self.add_pattern_list(String::new());
                self.pattern_rules(list, &s.inside);
                list as u32
            });
            let Some(Value::Text(text)) = accepted else { continue };
            if let Some(rule) = rule(s, &text, inside) {
                self.snapshot.pattern_lists[at].rules.push(rule);
            } else if inside.is_none() {
                self.warning(s.at, "no-effect", "a pattern without a result decides nothing", "");
            }
        }
    }
}

/// A line that was checked; `None` when it decides nothing.
fn rule(s: &Statement, text: &str, inside: Option<u32>) -> Option<PatternRule> {
    let (on, text) = match &*s.name {
        "mail-from" => (On::Sender, text),
        "rcpt-to" => (On::Recipient, text),
        "header" => {
            let (header, rest) = text.split_once(char::is_whitespace)?;
            (On::Header(header.to_lowercase()), rest.trim_start())
        }
        _ => (On::Any, text),
    };
    let (source, results) = match on {
        On::Any => ("", text),
        _ => expression(text, text).ok()?,
    };
    let result = match inside {
        Some(list) => PatternResult::Inside(list),
        None => result(results)?,
    };
    Some(PatternRule { on, expression: source.to_owned(), result, file: s.at.file, line: s.at.line })
}

fn result(text: &str) -> Option<PatternResult> {
    let (mut vmta, mut priority) = (String::new(), None);
    for item in items(text) {
        let (name, value) = item.split_once(['=', ':'])?;
        let value = value.trim();
        match name.trim().to_ascii_lowercase().as_str() {
            "virtual-mta" => vmta = value.to_owned(),
            "recipient-priority" => priority = value.parse().ok(),
            "call-to" => return Some(PatternResult::CallTo(value.to_lowercase())),
            _ => {}
        }
    }
    (!vmta.is_empty() || priority.is_some()).then_some(PatternResult::Choose { vmta, priority })
}
