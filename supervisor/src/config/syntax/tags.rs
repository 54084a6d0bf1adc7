//! Tags: which blocks they open and close, and what was meant where they do not match.

use super::super::directives;
use super::super::nearest::nearest;
use super::{Diagnostic, FileReader, Inside, Line, Lines, NESTING_MAX, Statement, before_nested_list};

/// Lines that are looked at below a tag that does not match, and below all of them in a configuration.
const AHEAD_MAX: usize = 10_000;
const AHEAD_IN_ALL_MAX: usize = 1_000_000;

impl FileReader<'_> {
    /// `inside` is what stands behind the opening bracket.
    pub(super) fn open_block(&mut self, inside: &str, line: &Line<'_>, lines: &Lines<'_>) {
        let at = self.span(line, line.content.trim());
        let tag = inside.strip_suffix('>').unwrap_or_else(|| {
            // The block is read all the same, so that its lines and its end are not wrong as well.
            self.reader.error(at, "malformed-tag", "expected '>' at the end of the tag", format!("write <{inside}>"));
            inside
        });
        let tag = tag.trim();
        // A program needs no blank before it: <acct-file|/bin/feed>.
        let (word, param) = tag.split_at(tag.find(|c: char| c.is_whitespace() || c == '|').unwrap_or(tag.len()));
        let param = param.trim();
        let inner = param.strip_prefix('"').and_then(|p| p.strip_suffix('"')).filter(|_| param.len() >= 2);
        let value = match inner {
            Some(i) => self.unquoted(line, i),
            None => self.verbatim(line, param),
        };
        let name = self.reader.tag(word);
        self.close_what_was_forgotten(&name, line, lines);
        if self.open.len() >= NESTING_MAX {
            self.reader.error(at, "nesting", format!("blocks are nested more than {NESTING_MAX} deep"), "");
            return;
        }
        let value_at = if param.is_empty() { at } else { self.span(line, param) };
        let value_at = (value_at.column, value_at.width);
        let quoted = inner.is_some();
        self.open.push(Statement { name, value, quoted, at, value_at, inside: Inside::default(), is_block: true });
    }

    /// Closes the blocks that `tag` cannot stand in, where their closing tags are missing.
    fn close_what_was_forgotten(&mut self, tag: &str, line: &Line<'_>, lines: &Lines<'_>) {
        let Some(innermost) = self.open.len().checked_sub(1) else { return };
        if may_stand(tag, block_of(&self.open[innermost])) || self.reader.is_in_block {
            return;
        }
        let fits = (0..innermost).rev().find(|i| may_stand(tag, block_of(&self.open[*i])));
        let stays = match fits {
            Some(i) => i + 1,
            None if may_stand(tag, "global") => 0,
            None => return,
        };
        // One that is closed below was begun at the wrong place itself.
        if self.is_closed_below(innermost, Some(bare(tag)), lines) {
            return;
        }
        let at = self.span(line, line.content.trim());
        while self.open.len() > stays {
            let Some(s) = self.open.pop() else { break };
            let message = format!("block {} is not closed before the next one", s.name);
            let help = format!("add </{}>", block_of(&s));
            let d = Diagnostic::error(s.at, "unclosed-block", message, help);
            self.reader.diagnostics.push(d.with(at, "begins here"));
            self.put(s);
        }
    }

    /// `tag` is what stands behind `</`.
    pub(super) fn close(&mut self, tag: &str, line: &Line<'_>, lines: &Lines<'_>) {
        let at = self.span(line, line.content.trim());
        let inside = tag.trim_end().trim_end_matches('>').trim();
        let (word, named) = inside.split_once(char::is_whitespace).unwrap_or((inside, ""));
        let (word, named) = (word.to_ascii_lowercase(), named.trim().trim_matches('"'));
        let stray = |reader: &mut super::Reader| {
            let message = format!("closing tag </{word}> without an opening tag");
            reader.error(at, "mismatched-tag", message, "remove it, or add the opening tag");
        };
        let Some(innermost) = self.open.len().checked_sub(1) else { return stray(self.reader) };
        let closes = match self.open.iter().rposition(|s| block_of(s) == word) {
            Some(i) if i == innermost => i,
            // The block further out has its own tag below: this one stands for another.
            Some(i) if self.is_closed_below(i, None, lines) => innermost,
            Some(i) => i,
            None if self.is_closed_below(innermost, None, lines) => return stray(self.reader),
            None => innermost,
        };
        while self.open.len() > closes + 1 {
            self.end_wrongly(&word, at);
        }
        match self.open.last() {
            Some(s) if block_of(s) != word => return self.end_wrongly(&word, at),
            Some(s) if !named.is_empty() && !named.eq_ignore_ascii_case(&s.value) => {
                let message = format!("the tag closes <{word} {}> and names {named}", &*s.value);
                let d = Diagnostic::warning(at, "mismatched-tag", message, "is a closing tag missing above?");
                self.reader.diagnostics.push(d.with(s.at, "the block begins here"));
            }
            _ => {}
        }
        if let Some(s) = self.open.pop() {
            self.put(s);
        }
    }

    /// Ends the innermost block at a tag that is not its own.
    fn end_wrongly(&mut self, word: &str, at: super::Span) {
        let Some(s) = self.open.pop() else { return };
        let name = block_of(&s);
        // Of a name that no block has it is said that it is wrong.
        let is_misspelt = !is_known(name) && is_known(word) && nearest(name, std::iter::once(word)).is_some();
        if !is_misspelt {
            let message = format!("expected </{name}>, found </{word}>");
            let help = format!("line {} opens <{name}>", s.at.line);
            self.reader.error(at, "mismatched-tag", message, help);
        }
        self.put(s);
    }

    /// Whether the open block of this number has its closing tag below, where all blocks in it are closed here, but for one
    /// that has just `begun`.
    fn is_closed_below(&mut self, number: usize, begun: Option<&str>, lines: &Lines<'_>) -> bool {
        let block = block_of(&self.open[number]);
        let mut inside: Vec<String> = begun.map(str::to_owned).into_iter().collect();
        let mut below = Lines { ..*lines };
        for _ in 0..AHEAD_MAX {
            let Some(line) = below.next().filter(|_| self.reader.looked_ahead < AHEAD_IN_ALL_MAX) else { return false };
            self.reader.looked_ahead += 1;
            let text = line.content.trim();
            let Some(tag) = text.strip_prefix('<').map(str::trim_start) else {
                if before_nested_list(text).is_some() {
                    inside.push("pattern-list".into());
                }
                continue;
            };
            let (is_end, tag) = tag.strip_prefix('/').map_or((false, tag), |t| (true, t.trim_start()));
            let word = tag.split(|c: char| c.is_whitespace() || c == '>' || c == '|').next().unwrap_or_default();
            let word = word.to_ascii_lowercase();
            if !is_end {
                if inside.is_empty() && !may_stand(&word, block) {
                    return false;
                }
                inside.push(word);
            } else if let Some(i) = inside.iter().rposition(|w| *w == word) {
                inside.truncate(i);
            } else if word == block {
                return true;
            } else if self.open[..number].iter().any(|s| block_of(s) == word) {
                return false;
            }
        }
        false
    }
}

/// A tag's name without its brackets.
fn bare(tag: &str) -> &str {
    tag.trim_matches(['<', '>'])
}

/// The name in the tag that closes a block, which is that of what may stand in it.
fn block_of(s: &Statement) -> &str {
    // A directive that a block ends: mail-from /…/ <pattern-list>
    if s.name.starts_with('<') { bare(&s.name) } else { "pattern-list" }
}

fn is_known(block: &str) -> bool {
    directives::all().iter().any(|d| d.name.starts_with('<') && bare(d.name) == block)
}

/// Whether a block may stand in another; of one that does not exist nothing is known.
fn may_stand(tag: &str, block: &str) -> bool {
    let tag = bare(tag);
    directives::find(&format!("<{tag}>"), block).is_some() || !is_known(tag)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::super::tests::read;
    use crate::config::compile::compile_text;

    /// Lines and codes of errors.
    fn errors(text: &str) -> Vec<String> {
        let checked = compile_text(Path::new("c.conf"), text);
        checked.diagnostics.iter().filter(|d| d.is_error).map(|d| format!("{} {}", d.at.line, d.code)).collect()
    }

    #[test]
    fn blanks_in_tags_mean_nothing() {
        let (s, wrong) = read("< domain *>\n a 1\n< / domain >\n<domain * >\n</ domain>\n<domain *>\n</domain >");
        assert!(wrong.is_empty(), "{wrong:?}");
        assert!(s.len() == 3 && s.iter().all(|s| &*s.name == "<domain>" && &*s.value == "*"));
        let at = s[0].value_at();
        assert_eq!((at.line, at.column, at.width, s[0].inside.len()), (1, 10, 1, 1));
        assert_eq!(read("<acct-file|/bin/x -a>\n</acct-file>").0[0].value.to_string(), "|/bin/x -a");
    }

    #[test]
    fn blocks_that_do_not_match_are_all_named() {
        assert_eq!(read("<a>\n<b>\n</a>\n</c>\n<d>").1, ["mismatched-tag", "mismatched-tag", "unclosed-block"]);
        assert_eq!(read("<a\nb \u{1}\n</a>").1, ["malformed-tag", "control-character"]);
        assert_eq!(read("<a x>\n</a y>").1, ["mismatched-tag"]);
    }

    /// Each is wrong once, and so is the line behind.
    #[test]
    fn what_follows_a_tag_that_does_not_match_is_read_as_it_is_meant() {
        let behind = "<domain b.test>\n max-smtp-out x\n</domain>\n<virtual-mta v>\n smtp-source-host 127.0.0.1 v.test\n \
                      <domain *>\n  max-msg-rate 1/h\n </domain>\n</virtual-mta>\n";
        for (wrong, said) in [
            // Another block's tag, a misspelt one, and none.
            ("<domain a.test>\n max-smtp-out 1\n</source>\n", "3 mismatched-tag"),
            ("<domain a.test>\n max-smtp-out 1\n</domian>\n", "3 mismatched-tag"),
            ("<domain a.test>\n max-smtp-out 1\n\n", "1 unclosed-block"),
            ("<domian a.test>\n max-smtp-out 1\n</domain>\n", "1 unknown-directive"),
            ("<virtual-mta u>\n <domain *>\n </virtual-mta>\n", "3 mismatched-tag"),
            ("<virtual-mta u>\n <domain *>\n </virtual-mta>\n</virtual-mta>\n", "3 mismatched-tag"),
            ("<virtual-mta u>\n <domain *>\n </domian>\n</virtual-mta>\n", "3 mismatched-tag"),
            ("<virtual-mta u>\n <domain *>\n </domain>\n </domain>\n</virtual-mta>\n", "4 mismatched-tag"),
            ("<virtual-mta u>\n <domain *>\n <domain c.test>\n </domain>\n</virtual-mta>\n", "2 unclosed-block"),
            ("</domain>\n", "1 mismatched-tag"),
            ("<source 10.0.0.0/8>\n <domain c.test>\n </domain>\n</source>\n", "2 wrong-block"),
        ] {
            let line = wrong.lines().count() + 2;
            let all = errors(&format!("{wrong}{behind}"));
            assert_eq!(all, [said.to_owned(), format!("{line} bad-value")], "{wrong}");
        }
        let list =
            "<pattern-list p>\n mail-from /a/ <pattern-list>\n  * virtual-mta=v\n <pattern-list>\n</pattern-list>\n";
        assert!(!errors(&format!("{list}{behind}")).is_empty());
    }

    #[test]
    fn many_tags_that_do_not_match_are_read_in_bounded_time() {
        let text = format!("<domain a.test>\n{}", "</source>\n<source 10.0.0.0/8>\n".repeat(100_000));
        assert!(!read(&text).1.is_empty());
    }
}
