//! Text to statements as written: lines, comments, quotes, blocks, includes, macros.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::diagnostic::{Diagnostic, Place};

/// Files deep and statements in all that a configuration may have.
const INCLUDE_DEPTH_MAX: usize = 20;
const STATEMENTS_MAX: usize = 5_000_000;

/// A directive or a block.
#[derive(Debug, Clone)]
pub struct Statement {
    /// Name in lower case; of a block with its angle brackets.
    pub name: String,
    /// What follows, comment and outer quotes removed.
    pub value: String,
    /// Where the name stands.
    pub at: Place,
    /// What is inside a block.
    pub inside: Vec<Statement>,
}

/// Reads a file and everything it includes.
#[derive(Debug, Default)]
pub struct Parser {
    /// What is wrong.
    pub diagnostics: Vec<Diagnostic>,
    /// `domain-macro` lists.
    pub macros: HashMap<String, Vec<String>>,
    statements: usize,
    depth: usize,
}

struct Open {
    statement: Statement,
}

impl Parser {
    /// Parses `file`.
    ///
    /// # Errors
    /// When it cannot be read; what is wrong inside is in `diagnostics`.
    pub fn file(&mut self, file: &Path) -> std::io::Result<Vec<Statement>> {
        let text = std::fs::read_to_string(file)?;
        Ok(self.text(file, &text))
    }

    /// Parses text as if it stood in `file`.
    pub fn text(&mut self, file: &Path, text: &str) -> Vec<Statement> {
        let name: Rc<Path> = Rc::from(file);
        let mut top = Vec::new();
        let mut open: Vec<Open> = Vec::new();
        let mut lines = text.lines().enumerate().peekable();
        while let Some((i, line)) = lines.next() {
            let mut content = strip_comment(line).trim_end().to_owned();
            // A list goes on behind a comma at the end of a line.
            while content.ends_with(',') && lines.peek().is_some() {
                if let Some((_, more)) = lines.next() {
                    content.push(' ');
                    content.push_str(strip_comment(more).trim());
                }
            }
            let trimmed = content.trim_start();
            if trimmed.is_empty() || trimmed == "\u{feff}" {
                continue;
            }
            let trimmed = trimmed.trim_start_matches('\u{feff}');
            self.statements += 1;
            if self.statements > STATEMENTS_MAX {
                break;
            }
            let place = |width: usize| Place {
                file: Rc::clone(&name),
                line: i + 1,
                column: line.chars().take_while(|c| c.is_whitespace()).count() + 1,
                width,
                text: Rc::from(line),
            };
            if let Some(closed) = trimmed.strip_prefix("</") {
                self.close(closed, &place(trimmed.chars().count()), &mut open, &mut top);
            } else if let Some(tag) = trimmed.strip_prefix('<') {
                self.open(tag, place(trimmed.chars().count()), &mut open);
            } else {
                let (word, value) = trimmed.split_once(char::is_whitespace).unwrap_or((trimmed, ""));
                let s = Statement {
                    name: word.to_ascii_lowercase(),
                    value: unquoted(value.trim()),
                    at: place(word.chars().count()),
                    inside: Vec::new(),
                };
                self.add(s, &mut open, &mut top);
            }
        }
        while let Some(o) = open.pop() {
            let end = o.statement.name.replace('<', "</");
            self.diagnostics.push(Diagnostic::error(
                &o.statement.at,
                "unclosed-block",
                format!("block {} is never closed", o.statement.name),
                format!("expected {end} before the end of the file"),
            ));
            top.push(o.statement);
        }
        top
    }

    fn open(&mut self, tag: &str, at: Place, open: &mut Vec<Open>) {
        let Some(tag) = tag.trim_end().strip_suffix('>') else {
            self.diagnostics.push(Diagnostic::error(&at, "malformed-tag", "expected '>' at the end of the tag", ""));
            return;
        };
        let (word, param) = tag.trim().split_once(char::is_whitespace).unwrap_or((tag.trim(), ""));
        let statement = Statement {
            name: format!("<{}>", word.to_ascii_lowercase()),
            value: unquoted(param.trim()),
            at,
            inside: Vec::new(),
        };
        open.push(Open { statement });
    }

    fn close(&mut self, tag: &str, at: &Place, open: &mut Vec<Open>, top: &mut Vec<Statement>) {
        let word =
            tag.trim_end().trim_end_matches('>').split_whitespace().next().unwrap_or_default().to_ascii_lowercase();
        match open.pop() {
            Some(o) if o.statement.name == format!("<{word}>") => match open.last_mut() {
                Some(outer) => outer.statement.inside.push(o.statement),
                None => top.push(o.statement),
            },
            Some(o) => {
                let expected = o.statement.name.replace('<', "</");
                let message = format!("expected {expected}, which line {} opens, found </{word}>", o.statement.at.line);
                self.diagnostics.push(Diagnostic::error(at, "mismatched-tag", message, ""));
                open.push(o);
            }
            None => {
                let message = format!("</{word}> closes a block that is not open");
                self.diagnostics.push(Diagnostic::error(at, "mismatched-tag", message, ""));
            }
        }
    }

    fn add(&mut self, s: Statement, open: &mut [Open], top: &mut Vec<Statement>) {
        let into = match open.last_mut() {
            Some(o) => &mut o.statement.inside,
            None => top,
        };
        match s.name.as_str() {
            "include" => {
                let included = self.include(&s);
                into.extend(included);
            }
            "domain-macro" => {
                let (name, list) = s.value.split_once(char::is_whitespace).unwrap_or((&s.value, ""));
                self.macros.insert(name.to_owned(), super::value::list(list));
                into.push(s);
            }
            _ => into.push(s),
        }
    }

    fn include(&mut self, s: &Statement) -> Vec<Statement> {
        let base = s.at.file.parent().unwrap_or(Path::new("."));
        let pattern = base.join(&s.value);
        let files = match matching_files(&pattern) {
            Ok(f) => f,
            Err(e) => {
                let message = format!("cannot include {}: {e}", pattern.display());
                self.diagnostics.push(Diagnostic::error(&s.at, "missing-file", message, ""));
                return Vec::new();
            }
        };
        if self.depth >= INCLUDE_DEPTH_MAX {
            let message = format!(
                "includes are nested more than {INCLUDE_DEPTH_MAX} deep; does {} include itself?",
                pattern.display()
            );
            self.diagnostics.push(Diagnostic::error(&s.at, "include-cycle", message, ""));
            return Vec::new();
        }
        self.depth += 1;
        let mut all = Vec::new();
        for f in files {
            match self.file(&f) {
                Ok(inner) => all.extend(inner),
                Err(e) => {
                    let message = format!("cannot include {}: {e}", f.display());
                    self.diagnostics.push(Diagnostic::error(&s.at, "missing-file", message, ""));
                }
            }
        }
        self.depth -= 1;
        all
    }

    /// The names that a `<domain>` parameter stands for.
    ///
    /// # Errors
    /// A sentence when a macro is not defined or loops.
    pub fn expand(&self, pattern: &str) -> Result<Vec<String>, String> {
        self.expand_within(pattern, 0)
    }

    fn expand_within(&self, pattern: &str, depth: usize) -> Result<Vec<String>, String> {
        let Some(at) = pattern.find('$') else { return Ok(vec![pattern.to_owned()]) };
        if depth > 20 {
            return Err(format!("the macros in {pattern} refer to each other in a loop"));
        }
        let rest = &pattern[at + 1..];
        let len = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        let items =
            self.macros.get(&rest[..len]).ok_or_else(|| format!("domain-macro {} is not defined", &rest[..len]))?;
        let mut all = Vec::new();
        for item in items {
            all.extend(self.expand_within(&format!("{}{item}{}", &pattern[..at], &rest[len..]), depth + 1)?);
        }
        Ok(all)
    }
}

/// Files that a path stands for; `*` may stand in its last part. Without one the file must
/// be there.
fn matching_files(pattern: &Path) -> std::io::Result<Vec<PathBuf>> {
    let name = pattern.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let Some((before, after)) = name.split_once('*') else {
        return std::fs::metadata(pattern).map(|_| vec![pattern.to_owned()]);
    };
    let mut files = Vec::new();
    for e in std::fs::read_dir(pattern.parent().unwrap_or(Path::new(".")))? {
        let path = e?.path();
        let n = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        if path.is_file() && n.len() >= before.len() + after.len() && n.starts_with(before) && n.ends_with(after) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// A line up to its comment; `#` inside double quotes belongs to the value.
fn strip_comment(line: &str) -> &str {
    let (mut quoted, mut escaped) = (false, false);
    for (i, c) in line.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '#' if !quoted => return &line[..i],
            _ => {}
        }
    }
    // An odd quote is text, not a string: the comment counts after all.
    if quoted { line.split('#').next().unwrap_or(line) } else { line }
}

/// A value without its outer quotes, escapes resolved.
fn unquoted(v: &str) -> String {
    let Some(inner) = v.strip_prefix('"').and_then(|v| v.strip_suffix('"')).filter(|_| v.len() >= 2) else {
        return v.to_owned();
    };
    let mut out = String::with_capacity(inner.len());
    let mut escaped = false;
    for c in inner.chars() {
        if c == '\\' && !escaped {
            escaped = true;
        } else {
            escaped = false;
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn comments_quotes_and_blocks() {
        let mut p = Parser::default();
        let s = p.text(Path::new("c"), "a  \"x # y\" # z\r\n<domain *>\n  b 1,\n  2\n</domain>\n");
        assert!(p.diagnostics.is_empty());
        assert_eq!((s[0].value.as_str(), s[1].value.as_str(), s[1].inside[0].value.as_str()), ("x # y", "*", "1, 2"));
        assert_eq!((s[1].inside[0].at.line, s[1].inside[0].at.column), (3, 3));
    }

    #[test]
    fn macros_cross() {
        let mut p = Parser::default();
        p.text(Path::new("c"), "domain-macro isp yahoo, aol\ndomain-macro tld com, de\ndomain-macro l $l\n");
        assert_eq!(p.expand("$isp.$tld").unwrap().len(), 4);
        assert!(p.expand("$l").is_err() && p.expand("$none").is_err());
    }

    proptest! {
        #[test]
        fn any_text_parses(s in "[a<>/\" #\n,\\\\]{0,60}") {
            let _ = Parser::default().text(Path::new("c"), &s);
        }
    }
}
