//! Lines that can never match what they are meant for.

use super::diagnostic::Diagnostic;
use super::pattern::closing_slash;
use super::syntax::Statement;

/// Blocks whose lines hold expressions.
const OF_EXPRESSIONS: [&str; 3] = ["<smtp-pattern-list>", "<bounce-category-patterns>", "<pattern-list>"];

/// Mail hosts that their receivers publish behind others, with a higher preference: none of them is ever among the preferred
/// hosts of a domain as long as its records are those that the receiver asks for. A star stands for one label's rest.
const BEHIND_OTHERS: &[&str] = &[
    "alt*.aspmx.l.google.com",
    "alt*.gmail-smtp-in.l.google.com",
    "alt*.gmr-smtp-in.l.google.com",
    "aspmx2.googlemail.com",
    "aspmx3.googlemail.com",
    "aspmx4.googlemail.com",
    "aspmx5.googlemail.com",
    "mailsec.protonmail.ch",
    "in2-smtp.messagingengine.com",
    "mx2.emailsrvr.com",
    "mailstore1.secureserver.net",
    "fb.mail.gandi.net",
    "mx2.zoho.*",
    "mx3.zoho.*",
];

/// Warns of expressions at any depth of `statements` whose backslashes were lost, as in copying from a page.
pub fn expressions(statements: &[Statement], tell: &mut impl FnMut(Diagnostic)) {
    for s in statements.iter().filter(|s| OF_EXPRESSIONS.contains(&&*s.name)) {
        in_list(s, tell);
    }
}

fn in_list(list: &Statement, tell: &mut impl FnMut(Diagnostic)) {
    for s in &list.inside {
        let (text, at) = if s.name.starts_with('/') { (&*s.name, s.at) } else { (&*s.value, s.value_at()) };
        let Some(begin) = text.find('/') else { continue };
        let expression = &text[begin + 1..];
        let expression = &expression[..closing_slash(expression).unwrap_or(expression.len())];
        if let Some((found, meant)) = lost_backslash(expression) {
            let message = match found.starts_with('\\') {
                true => format!("{found} asks for a backslash in the text, and no character class is meant"),
                false => format!("{found} asks for the letter {:?}: it seems that a backslash was lost", &found[..1]),
            };
            tell(Diagnostic::warning(at, "lost-backslash", message, format!("write {meant} if that is meant")));
        }
        in_list(s, tell);
    }
}

/// A letter that is repeated, stands by itself and would be a character class with a backslash, as written and as it is meant.
/// Where some class is written with its backslash, none was lost.
fn lost_backslash(expression: &str) -> Option<(String, String)> {
    let chars: Vec<char> = expression.chars().collect();
    let is_class = |c: &char| "dDsSwW".contains(*c);
    let repeated = |i: usize| match chars.get(i) {
        Some('+' | '*') => true,
        Some('{') => chars.get(i + 1).is_some_and(char::is_ascii_digit),
        _ => false,
    };
    let (mut escaped, mut in_set, mut found) = (false, false, None);
    for (i, c) in chars.iter().enumerate() {
        if escaped {
            escaped = false;
            if is_class(c) || *c == 'b' {
                return None;
            }
            // \\d+: the first backslash takes the second for a character of the text.
            if *c == '\\' && chars.get(i + 1).is_some_and(is_class) && repeated(i + 2) {
                let name = chars[i + 1];
                found = found.or_else(|| Some((format!("\\\\{name}"), format!("\\{name}"))));
            }
            continue;
        }
        match c {
            '\\' => escaped = true,
            '[' => in_set = true,
            ']' => in_set = false,
            c if is_class(c) && !in_set && repeated(i + 1) => {
                let before = i.checked_sub(1).and_then(|i| chars.get(i));
                if !before.is_some_and(|b| b.is_alphanumeric() || *b == '\\') {
                    let sign = chars[i + 1];
                    let rest = if sign == '{' { String::new() } else { sign.to_string() };
                    found = found.or_else(|| Some((format!("{c}{rest}"), format!("\\{c}{rest}"))));
                }
            }
            _ => {}
        }
    }
    found
}

/// Warns of hosts of one queue in `<mx-rollup-list>` that are never all of them preferred hosts of a domain.
pub fn roll_ups(statements: &[Statement], tell: &mut impl FnMut(Diagnostic)) {
    let lists = statements.iter().filter(|s| &*s.name == "<mx-rollup-list>");
    // The queue, and the first of its hosts by name.
    let mut first: Vec<(String, String, super::files::Span)> = Vec::new();
    for s in lists.flat_map(|l| l.inside.iter()).filter(|s| &*s.name == "mx") {
        let mut words = s.value.split_whitespace().map(str::to_lowercase);
        let (Some(host), Some(queue)) = (words.next(), words.next()) else { continue };
        if host.contains('*') {
            continue;
        }
        let rule =
            "a domain joins where all hosts of the queue are among its preferred ones, those of the lowest preference";
        if BEHIND_OTHERS.iter().any(|p| is_named(&host, p)) {
            let message = format!(
                "no domain joins {queue} with this line: its receiver has {host} behind other hosts, and {rule}"
            );
            let help = "remove the line: the preferred host alone is enough, or a wildcard for all of the receiver's";
            tell(Diagnostic::warning(s.value_at(), "never-matches", message, help));
            continue;
        }
        match first.iter().find(|(q, _, _)| *q == queue) {
            Some((_, other, at)) if organisation(other) != organisation(&host) => {
                let message = format!("domains that have {other} and {host} as their hosts are few: {rule}");
                let help = "give each receiver a queue of its own, or write wildcards (mx *.example.com …), of which one is enough";
                tell(
                    Diagnostic::warning(s.value_at(), "never-matches", message, help)
                        .with(*at, "another receiver's host"),
                );
            }
            Some(_) => {}
            None => first.push((queue, host, s.value_at())),
        }
    }
}

fn is_named(host: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        Some((before, after)) => host
            .strip_prefix(before)
            .and_then(|rest| rest.strip_suffix(after))
            .is_some_and(|rest| !rest.is_empty() && (after.is_empty() || !rest.contains('.'))),
        None => host == pattern,
    }
}

/// The last two labels, which hosts of one receiver share as a rule.
fn organisation(host: &str) -> &str {
    let host = host.trim_end_matches('.');
    let from = host.rmatch_indices('.').nth(1).map_or(0, |(i, _)| i + 1);
    &host[from..]
}

/// What is wrong with the name of a `<source>` that nothing refers to, where it looks as if clients were meant.
pub fn source(name: &str) -> Option<String> {
    let help = match name {
        "localhost" => "write <source 127.0.0.1>, and <source ::1> for IPv6",
        n if n.contains('.') => "write the addresses or networks of these clients",
        _ => return None,
    };
    Some(format!("{help}; a name acts where a listener or a line names it"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::compile::compile_text;

    #[test]
    fn letters_that_were_classes_are_found_and_words_are_not() {
        for (expression, found) in [
            ("^421 4.7.0 S+", Some("S+")),
            ("450 d+.d+.d+ try", Some("d+")),
            ("(s*|x)", Some("s*")),
            ("^d{3} 4", Some("d")),
            (r"4\.7\.0 \\d+ x", Some(r"\\d")),
            // Words, sets, and expressions that have their backslashes.
            (r"^421 \S+ s+", None),
            ("address(es)? unknowns* d", None),
            ("[sd]+ [d+] too", None),
            ("block(ed|s)+ class", None),
            (r"\bs+\b", None),
            (r"4\.7\.0 d? s", None),
        ] {
            assert_eq!(lost_backslash(expression).map(|(f, _)| f).as_deref(), found, "{expression}");
        }
    }

    fn warnings(text: &str) -> Vec<String> {
        let checked = compile_text(Path::new("c.conf"), text);
        let all = checked.diagnostics.iter().filter(|d| d.code != "unused" && d.code != "no-hosts");
        all.map(|d| format!("{} {}", d.at.line, d.code)).collect()
    }

    #[test]
    fn each_kind_of_list_is_looked_at() {
        let text = "<smtp-pattern-list a>\n reply /^421 4.7.0 S+/ mode=backoff\n</smtp-pattern-list>\n\
                    <bounce-category-patterns>\n /s+full/ quota-issues\n</bounce-category-patterns>\n<virtual-mta v>\n</virtual-mta>\n\
                    <pattern-list b>\n mail-from /^d+@/ <pattern-list>\n  header subject /x d+/ virtual-mta=v\n </pattern-list>\n\
                    </pattern-list>\n";
        let lost = |line: u32| format!("{line} lost-backslash");
        assert_eq!(warnings(text), [lost(2), lost(5), lost(10), lost(11)]);
    }

    #[test]
    fn hosts_that_are_never_preferred_together_are_found() {
        let list = |lines: &str| warnings(&format!("<mx-rollup-list>\n{lines}</mx-rollup-list>\n"));
        let google = "mx gmail-smtp-in.l.google.com g.rollup\nmx alt1.gmail-smtp-in.l.google.com g.rollup\n";
        assert_eq!(list(google), ["3 never-matches"]);
        assert_eq!(list("mx mx1.a.test q.rollup\nmx mx1.b.example q.rollup\n"), ["3 never-matches"]);
        for right in [
            "mx mta5.am0.yahoodns.net y.rollup\nmx mta6.am0.yahoodns.net y.rollup\n",
            "mx *.a.test q.rollup rollup-by-ip\nmx *.b.example q.rollup rollup-by-ip\n",
            "mx mx1.a.test a.rollup\nmx mx1.b.example b.rollup\n",
            "mx alt.google.com a.rollup\n",
        ] {
            assert!(list(right).is_empty(), "{right}");
        }
    }

    #[test]
    fn a_source_of_a_host_name_is_no_client() {
        let codes = |text: &str| {
            let checked = compile_text(Path::new("c.conf"), text);
            checked.diagnostics.iter().map(|d| d.code).collect::<Vec<_>>()
        };
        assert_eq!(codes("<source localhost>\n always-allow-relaying yes\n</source>"), ["never-matches"]);
        assert_eq!(codes("<source app.d.test>\n</source>"), ["never-matches"]);
        assert_eq!(codes("<source other>\n</source>"), ["unused"]);
        assert!(codes("<source localhost>\n</source>\nsmtp-listener 127.0.0.1:25 source=localhost").is_empty());
    }
}
