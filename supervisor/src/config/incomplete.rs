//! Directives that do nothing without another one, which nobody wrote.

use std::collections::HashSet;

use ipc::rules::Value;

use super::diagnostic::{Diagnostic, Diagnostics};
use super::syntax::Statement;
use super::types::Type;
use super::value;

/// What only matters beside `suppress-on`.
const OF_SUPPRESSION: [&str; 3] = ["suppress-after", "suppress-for", "suppress-in"];

/// Every statement, those in blocks included; a configuration nests a few levels deep.
fn each<'s>(statements: &'s [Statement], visit: &mut impl FnMut(&'s Statement)) {
    for s in statements {
        visit(s);
        each(&s.inside, visit);
    }
}

/// Warns of them.
pub fn statements(all: &mut Diagnostics, statements: &[Statement]) {
    let mut names = HashSet::new();
    let mut own = HashSet::new();
    each(statements, &mut |s| {
        names.insert(s.name.to_ascii_lowercase());
        if &*s.name == "<bounce-category-patterns>" {
            own.extend(s.inside.iter().map(|i| i.value.to_lowercase()));
        }
    });
    let has = |name: &str| names.contains(name);
    // A message may bring its own.
    let has_keys = ["domain-key", "<domain-key-list>", "process-x-dkim-key"].into_iter().any(has);
    let mut told = HashSet::new();
    each(statements, &mut |s| {
        let name = s.name.to_ascii_lowercase();
        if OF_SUPPRESSION.contains(&&*name) && !has("suppress-on") && told.insert(name.clone()) {
            let message = format!("{name} has no effect: nothing is suppressed without suppress-on");
            all.push(Diagnostic::warning(s.at, "no-effect", message, "add suppress-on bad-mailbox"));
        }
        let asks_for_key = matches!(&*name, "dkim-sign" | "second-dkim-sign");
        if asks_for_key && is_yes(s) && !has_keys && told.insert(name.clone()) {
            let message = format!("{name} signs nothing: no domain-key is given");
            all.push(Diagnostic::warning(
                s.at,
                "no-effect",
                message,
                "sluice dkim generate makes a key and shows the line",
            ));
        }
        if name == "suppress-on" {
            value::items(&s.value).filter_map(|c| unknown(s, c, &own)).for_each(|d| all.push(d));
        }
    });
}

fn is_yes(s: &Statement) -> bool {
    Type::Flag.parse(&s.value).is_ok_and(|p| p.value == Value::Flag(true))
}

/// A category that no rule has.
fn unknown(s: &Statement, category: &str, own: &HashSet<String>) -> Option<Diagnostic> {
    let shipped = || worker::classify::bounce_rules::shipped().any(|r| r.category.eq_ignore_ascii_case(category));
    if own.contains(&category.to_lowercase()) || shipped() {
        return None;
    }
    let message = format!("no rule gives the category {category:?}: it suppresses nobody");
    let help = "sluice bounce rules lists them; add yours to <bounce-category-patterns>";
    Some(Diagnostic::warning(s.value_at(), "unknown-category", message, help))
}
