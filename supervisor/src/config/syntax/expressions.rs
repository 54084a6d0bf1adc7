//! Regular expressions in lines, and those that go on over the ends of lines.

use super::{
    Diagnostic, FileReader, Inside, LINES_MAX, Line, Lines, Statement, Text, before_nested_list, is_tag, lower,
};
use super::{closing_slash, name_and_value};

/// Directives whose values are, or begin with, an expression.
const OF_EXPRESSIONS: &[&str] = &["reply", "mail-from", "rcpt-to", "address", "relay-address"];

/// The expression of a line that has one, from its first slash to the end of the line.
pub(super) fn expression_of(line: &str) -> Option<&str> {
    if line.starts_with('/') {
        return Some(line);
    }
    let (word, mut rest) = line.split_once(char::is_whitespace)?;
    let is = |name: &str| word.eq_ignore_ascii_case(name);
    if is("header") {
        // header NAME /…/
        rest = rest.trim_start().split_once(char::is_whitespace)?.1;
    } else if !OF_EXPRESSIONS.iter().any(|n| is(n)) {
        return None;
    }
    Some(rest.trim_start()).filter(|r| r.starts_with('/'))
}

/// Whether a line can be no part of an expression that was opened above.
fn begins_another(line: &str) -> bool {
    if let Some(rest) = line.strip_prefix('/') {
        // A slash alone, before a result, closes; one before an expression opens the next.
        return closing_slash(rest).is_some();
    }
    let word = line.split(char::is_whitespace).next().unwrap_or_default();
    let is = |name: &&str| word.eq_ignore_ascii_case(name);
    is_tag(line) || ["header", "include"].iter().any(is) || OF_EXPRESSIONS.iter().any(is)
}

impl FileReader<'_> {
    /// A line whose expression is not closed on it. It goes on up to the line with the closing slash, as long as no line
    /// between begins something else.
    pub(super) fn over_lines(&mut self, trimmed: &str, line: &Line<'_>, lines: &mut Lines<'_>) {
        let at = self.span(line, trimmed);
        let mut ahead = Lines { ..*lines };
        let mut all = trimmed.to_owned();
        for _ in 0..LINES_MAX {
            let Some(next) = ahead.next().filter(|l| !begins_another(l.content.trim())) else { break };
            let piece = next.content.trim();
            if piece.is_empty() {
                continue;
            }
            all.push(' ');
            all.push_str(piece);
            if expression_of(&all).is_some_and(|e| closing_slash(&e[1..]).is_some()) {
                *lines = ahead;
                let (name, value) = name_and_value(&all);
                let message = "the expression goes on over a line end: its lines are joined by one blank";
                let d = Diagnostic::warning(
                    at,
                    "continued",
                    message,
                    "write it on one line, with the blanks that are meant",
                );
                self.reader.diagnostics.push(d.with(self.span(&next, piece), "ends here"));
                let list = before_nested_list(value);
                let s = Statement {
                    name: Text::owned(lower(name)),
                    value: Text::owned(list.unwrap_or(value)),
                    quoted: false,
                    at,
                    value_at: (at.column, at.width),
                    inside: Inside::default(),
                    is_block: list.is_some(),
                };
                return if s.is_block { self.open.push(s) } else { self.put(s) };
            }
        }
        let help = "add / behind the expression; a slash inside of it is written \\/";
        self.reader.error(at, "unclosed-expression", "expected a slash that closes the expression", help);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::read;
    use super::LINES_MAX;

    #[test]
    fn expressions_go_on_over_line_ends() {
        let (s, wrong) = read(
            "<bounce-category-patterns>\n  /(now|for\n\n   +)?(a|b)/ x # one\n  /c\n  / y\n /d\\/ # e\n f/ z\n</bounce-category-patterns>",
        );
        assert_eq!(wrong, ["continued"; 3]);
        let lines: Vec<_> = s[0].inside.iter().map(|i| (&*i.name, &*i.value, i.at.line)).collect();
        assert_eq!(lines, [("/(now|for +)?(a|b)/", "x", 2), ("/c /", "y", 5), ("/d\\/ f/", "z", 7)]);
        let (s, wrong) = read(
            "<pattern-list p>\n header x-A /a\n b/ <pattern-list>\n  * virtual-mta=x\n </pattern-list>\n Rcpt-To /c\n d/ virtual-mta=y\n</pattern-list>",
        );
        assert_eq!(wrong, ["continued"; 2]);
        let inside = &s[0].inside;
        assert_eq!((&*inside[0].value, inside[0].inside.len()), ("x-A /a b/", 1));
        assert_eq!((&*inside[1].name, &*inside[1].value), ("rcpt-to", "/c d/ virtual-mta=y"));
    }

    #[test]
    fn an_expression_that_is_not_closed_swallows_no_line() {
        let names = |text: &str| {
            let (s, wrong) = read(text);
            let inside: Vec<String> = s[0].inside.iter().map(|i| i.name.to_string()).collect();
            (wrong, inside)
        };
        for next in ["/c/ d", "reply /c/ skip-mx", "include x-not-there*"] {
            let (wrong, inside) = names(&format!("<x>\n /a b\n {next}\n</x>"));
            assert_eq!(wrong[0], "unclosed-expression", "{next}");
            assert_eq!(inside.len(), usize::from(!next.starts_with("include")));
        }
        assert_eq!(names("<x>\n /a b\n</x>").0, ["unclosed-expression"]);
        let long = format!("<x>\n /a{}\n c/ d\n</x>", "\n b".repeat(LINES_MAX + 1));
        assert_eq!(names(&long).0, ["unclosed-expression"]);
    }
}
