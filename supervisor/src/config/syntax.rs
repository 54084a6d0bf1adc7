//! Text to statements as written: lines, comments, quotes, blocks, includes.

mod expressions;
mod tags;

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use worker::regular_file;

use super::diagnostic::{Diagnostic, Diagnostics};
use super::files::{FileText, SourceFiles, Span};
use super::pattern::{closing_slash, unescaped_at};
use super::source::{BYTES_MAX, FILES_MAX, NotRead, Source, too_many_files};
use super::{directives, unknown};
use expressions::expression_of;

/// Files deep, and lines in all, that a configuration may have.
const INCLUDE_DEPTH_MAX: usize = 20;
const STATEMENTS_MAX: usize = 3_000_000;
/// Blocks in blocks; the language knows three.
const NESTING_MAX: usize = 16;
/// Names of blocks that are kept in memory once; the language has fewer.
const TAGS_MAX: usize = 100;
/// Lines that one quoted value or one list may span.
const LINES_MAX: usize = 1000;

/// Text of a name or value: a piece of the file where it stands there as it is.
#[derive(Clone)]
pub struct Text {
    of: Rc<FileText>,
    start: u32,
    end: u32,
}

impl Text {
    fn owned(text: impl Into<Box<str>>) -> Text {
        let text = text.into();
        Text { start: 0, end: text.len() as u32, of: Rc::new(FileText(text)) }
    }
}

impl std::ops::Deref for Text {
    type Target = str;
    fn deref(&self) -> &str {
        &self.of[self.start as usize..self.end as usize]
    }
}

impl std::fmt::Display for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self)
    }
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", &**self)
    }
}

/// A directive or a block. There may be millions of them.
#[derive(Debug, Clone)]
pub struct Statement {
    /// Name in lower case; of a block with its angle brackets. Lines that begin with a
    /// regular expression have it as their name.
    pub name: Text,
    /// What follows, comment and outer quotes removed.
    pub value: Text,
    /// It stood in quotes.
    pub quoted: bool,
    /// Where the name stands.
    pub at: Span,
    /// Column and width of the value, which begins on the line of the name.
    value_at: (u16, u16),
    /// What is inside a block, or in the block that ends a directive.
    pub inside: Inside,
    /// It is a block or ends in one.
    pub is_block: bool,
}

impl Statement {
    /// Where the value stands; where there is none, the name.
    pub fn value_at(&self) -> Span {
        let (column, width) = self.value_at;
        Span { column, width, ..self.at }
    }
}

/// Statements of a block. Most statements are none, and take no more than a pointer here.
#[expect(clippy::box_collection, reason = "a vector itself is three pointers, and few statements have one")]
#[derive(Debug, Clone, Default)]
pub struct Inside(Option<Box<Vec<Statement>>>);

impl std::ops::Deref for Inside {
    type Target = [Statement];
    fn deref(&self) -> &[Statement] {
        self.0.as_deref().map_or(&[], Vec::as_slice)
    }
}

impl Inside {
    fn push(&mut self, s: Statement) {
        self.0.get_or_insert_default().push(s);
    }

    fn shrink_to_fit(&mut self) {
        if let Some(all) = &mut self.0 {
            all.shrink_to_fit();
        }
    }
}

impl<'a> IntoIterator for &'a Inside {
    type Item = &'a Statement;
    type IntoIter = std::slice::Iter<'a, Statement>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Reads a file and everything it includes.
#[derive(Debug, Default)]
pub struct Reader {
    /// Where files come from.
    pub source: Source,
    /// What was read.
    pub files: SourceFiles,
    /// What is wrong.
    pub diagnostics: Diagnostics,
    /// What each `include` stands for.
    pub included: Vec<(PathBuf, Vec<PathBuf>)>,
    /// Lines at top level whose names no directive has are said to be wrong as they are read, and not kept. A file of
    /// another kind has millions.
    pub names_unknown: bool,
    /// A block is open in a file that includes the one being read.
    is_in_block: bool,
    /// There is more than a configuration may be: the rest was not read.
    pub gave_up: Option<Diagnostic>,
    /// Names of blocks, in their brackets.
    tags: HashMap<Box<str>, Text>,
    statements: usize,
    /// Bytes of files.
    bytes: u64,
    /// Entries of folders.
    looked_at: usize,
    /// Files that were to be included.
    tried: usize,
    /// Lines below tags that do not match.
    looked_ahead: usize,
    /// Files being read, outermost first.
    stack: Vec<PathBuf>,
}

/// A line with its comment removed, and where it lies in the file.
#[derive(Clone, Copy)]
struct Line<'a> {
    number: u32,
    /// Offset of `content` in the file.
    start: usize,
    whole: &'a str,
    content: &'a str,
}

impl Reader {
    /// Reads files that come from there.
    pub fn from(source: Source) -> Reader {
        Reader { source, ..Reader::default() }
    }

    /// Reads `file`.
    ///
    /// # Errors
    /// When it cannot be read; what is wrong inside is in `diagnostics`.
    pub fn file(&mut self, file: &Path) -> Result<Vec<Statement>, NotRead> {
        let bytes = self.source.read(file, self.bytes_left())?;
        self.bytes += bytes.len() as u64;
        let wrong = std::str::from_utf8(&bytes).err();
        let wrong = wrong.map(|e| 1 + memchr::memchr_iter(b'\n', &bytes[..e.valid_up_to()]).count());
        // What is valid is not copied.
        let text = String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned());
        self.stack.push(self.source.identity(file));
        let number = self.files.next_number();
        let statements = self.read(file, text.into());
        self.stack.pop();
        if let Some(line) = wrong {
            let at = Span { file: number as u16, line: line as u32, column: 1, width: 1 };
            self.error(at, "not-utf8", "expected UTF-8, found other bytes on this line", "save the file as UTF-8");
        }
        Ok(statements)
    }

    /// A file that a directive names, at most `max` bytes.
    ///
    /// # Errors
    /// When it cannot be read as UTF-8.
    pub fn named_file(&mut self, file: &Path, max: u64) -> std::io::Result<String> {
        let text = regular_file::read_to_string(file, max.min(self.bytes_left()))?;
        self.bytes += text.len() as u64;
        Ok(text)
    }

    fn bytes_left(&self) -> u64 {
        BYTES_MAX.saturating_sub(self.bytes)
    }

    /// Says so, and reads nothing more.
    fn give_up(&mut self, at: Span, why: impl Into<String>) {
        self.gave_up.get_or_insert_with(|| Diagnostic::error(at, "too-large", why, "the rest was not read"));
    }

    /// Reads text as if it stood in `file`.
    pub fn text(&mut self, file: &Path, text: &str) -> Vec<Statement> {
        self.read(file, text.into())
    }

    fn read(&mut self, file: &Path, text: Box<str>) -> Vec<Statement> {
        let text = Rc::new(FileText(text));
        let Some(number) = self.files.add(file, Rc::clone(&text)) else { return Vec::new() };
        FileReader { reader: self, file: number, text: Rc::clone(&text), top: Vec::new(), open: Vec::new() }.read(&text)
    }

    fn error(&mut self, at: Span, code: &'static str, message: impl Into<String>, help: impl Into<String>) {
        self.diagnostics.push(Diagnostic::error(at, code, message, help));
    }

    /// The name of a block, once in memory however many there are.
    fn tag(&mut self, word: &str) -> Text {
        let tag = format!("<{}>", word.to_ascii_lowercase());
        if let Some(known) = self.tags.get(tag.as_str()) {
            return known.clone();
        }
        let name = Text::owned(tag.as_str());
        if self.tags.len() < TAGS_MAX {
            self.tags.insert(tag.into(), name.clone());
        }
        name
    }

    fn include(&mut self, s: &Statement) -> Vec<Statement> {
        if s.value.starts_with("http://") || s.value.starts_with("https://") {
            let help = "fetch it into a file and include that";
            self.error(s.value_at(), "include", "a configuration is not fetched from the network", help);
            return Vec::new();
        }
        let file = self.files.path(s.at.file);
        // What comes on standard input is of the folder that the operator is in.
        let base = file.parent().filter(|_| file != Path::new("/dev/stdin")).unwrap_or(Path::new(".")).to_owned();
        let pattern = base.join(&*s.value);
        let files = match self.source.included(&pattern, &mut self.looked_at) {
            Ok(f) => f,
            Err(NotRead::TooMuch(why)) => {
                self.give_up(s.value_at(), why);
                return Vec::new();
            }
            Err(NotRead::Failed(e)) => {
                self.error(s.value_at(), "missing-file", format!("cannot include {}: {e}", pattern.display()), "");
                return Vec::new();
            }
        };
        if files.is_empty() {
            let message = format!("no file matches {}", pattern.display());
            self.diagnostics.push(Diagnostic::warning(s.value_at(), "no-effect", message, ""));
        }
        self.included.push((pattern, files.clone()));
        let mut all = Vec::new();
        for f in files {
            self.tried += 1;
            if self.tried >= FILES_MAX {
                self.give_up(s.value_at(), too_many_files().to_string());
            }
            if self.gave_up.is_some() {
                break;
            }
            let same = self.source.identity(&f);
            if let Some(i) = self.stack.iter().position(|s| *s == same) {
                let chain: Vec<String> =
                    self.stack[i..].iter().chain([&same]).map(|p| p.display().to_string()).collect();
                let message = format!("the file includes itself: {}", chain.join(" -> "));
                self.error(s.value_at(), "include-cycle", message, "remove one of the include lines");
                continue;
            }
            if self.stack.len() >= INCLUDE_DEPTH_MAX {
                let message = format!("includes are nested more than {INCLUDE_DEPTH_MAX} deep");
                self.error(s.value_at(), "include-cycle", message, "");
                continue;
            }
            match self.file(&f) {
                Ok(inner) => all.extend(inner),
                Err(NotRead::TooMuch(why)) => self.give_up(s.value_at(), why),
                Err(NotRead::Failed(e)) => {
                    self.error(s.value_at(), "missing-file", format!("cannot include {}: {e}", f.display()), "");
                }
            }
        }
        all
    }
}

struct FileReader<'r> {
    reader: &'r mut Reader,
    file: u16,
    text: Rc<FileText>,
    top: Vec<Statement>,
    open: Vec<Statement>,
}

impl FileReader<'_> {
    fn read(mut self, text: &str) -> Vec<Statement> {
        let mut lines = Lines { text, at: if text.starts_with('\u{feff}') { 3 } else { 0 }, number: 0 };
        while let Some(line) = lines.next() {
            let trimmed = line.content.trim();
            if trimmed.is_empty() {
                continue;
            }
            self.reader.statements += 1;
            if self.reader.statements > STATEMENTS_MAX {
                let at = self.span(&line, trimmed);
                self.reader.give_up(at, format!("a configuration of more than {STATEMENTS_MAX} lines"));
            }
            if self.reader.gave_up.is_some() {
                return self.top;
            }
            if trimmed.contains(|c: char| c.is_control() && c != '\t') {
                let at = self.span(&line, trimmed);
                self.reader.error(at, "control-character", "a control character in the line", "remove it");
                continue;
            }
            // Blanks in a tag mean nothing: < / domain >.
            match trimmed.strip_prefix('<').map(str::trim_start) {
                Some(tag) => match tag.strip_prefix('/') {
                    Some(tag) => self.close(tag.trim_start(), &line, &lines),
                    None => self.open_block(tag, &line, &lines),
                },
                None => self.directive(trimmed, &line, &mut lines),
            }
        }
        while let Some(s) = self.open.pop() {
            let end = s.name.replace('<', "</");
            let message = format!("block {} is not closed at the end of the file", s.name);
            self.reader.error(s.at, "unclosed-block", message, format!("add {end}"));
            self.put(s);
        }
        self.top
    }

    /// The place of `part`, which is a piece of the line.
    fn span(&self, line: &Line<'_>, part: &str) -> Span {
        let offset = (part.as_ptr() as usize).saturating_sub(line.whole.as_ptr() as usize).min(line.whole.len());
        let column = line.whole.get(..offset).map_or(0, |b| b.chars().count()) + 1;
        let width = part.chars().count().max(1);
        Span { file: self.file, line: line.number, column: 1, width: 1 }.part(column - 1, width)
    }

    /// `piece` of the line as a text without a copy.
    fn verbatim(&self, line: &Line<'_>, piece: &str) -> Text {
        let start = line.start + (piece.as_ptr() as usize).saturating_sub(line.content.as_ptr() as usize);
        Text { of: Rc::clone(&self.text), start: start as u32, end: (start + piece.len()) as u32 }
    }

    /// The text of `inner`, which stands in quotes on the line.
    fn unquoted(&self, line: &Line<'_>, inner: &str) -> Text {
        if inner.contains(['\\', '"']) { Text::owned(unescaped(inner)) } else { self.verbatim(line, inner) }
    }

    fn put(&mut self, mut s: Statement) {
        // Most blocks hold a line or two, and there may be half a million of them.
        s.inside.shrink_to_fit();
        match self.open.last_mut() {
            Some(outer) => outer.inside.push(s),
            None if self.reader.names_unknown
                && !self.reader.is_in_block
                && !s.name.starts_with('<')
                && directives::find(&s.name, "global").is_none() =>
            {
                unknown::name(&mut self.reader.diagnostics, "global", &s.name, s.at);
            }
            None => self.top.push(s),
        }
    }

    fn directive(&mut self, trimmed: &str, line: &Line<'_>, lines: &mut Lines<'_>) {
        if let Some(expression) = expression_of(trimmed)
            && closing_slash(&expression[1..]).is_none()
        {
            return self.over_lines(trimmed, line, lines);
        }
        // A line of a pattern block may begin with its expression, blanks included.
        let (word, raw) = name_and_value(trimmed);
        let at = self.span(line, word);
        let value_at = if raw.is_empty() { at } else { self.span(line, raw) };
        let mut s = Statement {
            name: match lower(word) {
                Cow::Owned(name) => Text::owned(name),
                Cow::Borrowed(name) => self.verbatim(line, name),
            },
            value: self.verbatim(line, raw),
            quoted: false,
            at,
            value_at: (value_at.column, value_at.width),
            inside: Inside::default(),
            is_block: false,
        };
        if raw.starts_with('"') {
            self.quoted(&mut s, line, raw, lines);
        } else if raw.ends_with(',') || (&*s.name == "domain-macro" && !raw.contains([' ', '\t', ','])) {
            self.continued(&mut s, raw, lines);
        } else if s.name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
            && let Some(pattern) = before_nested_list(raw)
        {
            s.value = self.verbatim(line, pattern);
            s.is_block = true;
            self.open.push(s);
            return;
        }
        if &*s.name == "include" && !s.value.is_empty() {
            let is_in_block = self.reader.is_in_block;
            self.reader.is_in_block |= !self.open.is_empty();
            let included = self.reader.include(&s);
            self.reader.is_in_block = is_in_block;
            included.into_iter().for_each(|i| self.put(i));
            return;
        }
        self.put(s);
    }

    /// A value in quotes, which may span lines. Quotes that close and are followed by more
    /// are text: `"a" "b"`.
    fn quoted(&mut self, s: &mut Statement, line: &Line<'_>, raw: &str, lines: &mut Lines<'_>) {
        s.quoted = true;
        if let Some(end) = closing_quote(&raw[1..]) {
            if end + 2 != raw.len() {
                s.quoted = false;
                return;
            }
            s.value = self.unquoted(line, &raw[1..=end]);
            return;
        }
        let mut all = raw[1..].to_owned();
        for _ in 0..LINES_MAX {
            // Comments are not looked for inside of quotes; a tag there is a quote that was forgotten.
            if lines.peek().is_none_or(|l| is_tag(l.whole.trim()) && l.whole.trim().ends_with('>')) {
                break;
            }
            let Some(next) = lines.next_whole() else { break };
            let piece = next.trim();
            if let Some(end) = closing_quote(piece) {
                if !strip_comment(&piece[end + 1..]).trim().is_empty() {
                    let help = "is a quote missing further up?";
                    self.reader.error(s.value_at(), "unclosed-quote", "text follows the closing quote", help);
                }
                all.push(' ');
                all.push_str(&piece[..end]);
                s.value = Text::owned(unescaped(&all));
                return;
            }
            all.push(' ');
            all.push_str(piece);
        }
        self.reader.error(s.value_at(), "unclosed-quote", "expected a closing quote", "add \" at the end of the value");
    }

    /// A list goes on behind a comma at the end of a line.
    fn continued(&mut self, s: &mut Statement, raw: &str, lines: &mut Lines<'_>) {
        let mut all = raw.to_owned();
        for _ in 0..LINES_MAX {
            let Some(next) = lines.peek().filter(|l| !l.content.trim().starts_with('<')) else { break };
            lines.next();
            let piece = next.content.trim();
            if piece.is_empty() {
                continue;
            }
            all.push(' ');
            all.push_str(piece);
            if !piece.ends_with(',') {
                break;
            }
        }
        s.value = Text::owned(all);
    }
}

struct Lines<'a> {
    text: &'a str,
    at: usize,
    number: u32,
}

impl<'a> Lines<'a> {
    fn next_whole(&mut self) -> Option<&'a str> {
        let rest = self.text.get(self.at..).filter(|r| !r.is_empty())?;
        let end = memchr::memchr(b'\n', rest.as_bytes());
        let whole = &rest[..end.unwrap_or(rest.len())];
        self.at += whole.len() + usize::from(end.is_some());
        self.number += 1;
        Some(whole.strip_suffix('\r').unwrap_or(whole))
    }

    fn next(&mut self) -> Option<Line<'a>> {
        let start = self.at;
        let whole = self.next_whole()?;
        Some(Line { number: self.number, start, whole, content: strip_comment(whole) })
    }

    fn peek(&self) -> Option<Line<'a>> {
        Lines { text: self.text, at: self.at, number: self.number }.next()
    }
}

/// A line up to its comment; `#` inside double quotes belongs to the value.
fn strip_comment(line: &str) -> &str {
    if !line.contains('#') {
        return line;
    }
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

/// Name and value of a line; the name of one that begins with an expression is that.
fn name_and_value(line: &str) -> (&str, &str) {
    let split = match line.strip_prefix('/') {
        Some(rest) => closing_slash(rest).map_or(line.len(), |i| i + 2),
        None => line.find(char::is_whitespace).unwrap_or(line.len()),
    };
    let (name, rest) = line.split_at(split);
    (name, rest.trim_start())
}

/// Names count in any case, but for expressions.
fn lower(name: &str) -> Cow<'_, str> {
    match name.bytes().any(|b| b.is_ascii_uppercase()) && !name.starts_with('/') {
        true => name.to_ascii_lowercase().into(),
        false => name.into(),
    }
}

/// What stands before the `<pattern-list>` that ends a line.
fn before_nested_list(raw: &str) -> Option<&str> {
    let (pattern, tag) = raw.strip_suffix('>')?.rsplit_once(" <")?;
    tag.trim().eq_ignore_ascii_case("pattern-list").then(|| pattern.trim_end())
}

/// Whether a line looks like the beginning of a tag.
fn is_tag(line: &str) -> bool {
    line.strip_prefix('<').is_some_and(|t| t.trim_start().starts_with(|c: char| c == '/' || c.is_ascii_alphabetic()))
}

/// Where the quote that `text` begins behind is closed; two quotes in a row are one of the text.
fn closing_quote(text: &str) -> Option<usize> {
    let mut from = 0;
    loop {
        let at = from + unescaped_at(&text[from..], '"')?;
        if !text[at + 1..].starts_with('"') {
            return Some(at);
        }
        from = at + 2;
    }
}

/// Text of a quoted value: `\x` is `x`, and `""` is one quote.
fn unescaped(inner: &str) -> String {
    let mut out = String::with_capacity(inner.len());
    let mut chars = inner.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.extend(chars.next()),
            '"' => {
                chars.next_if_eq(&'"');
                out.push(c);
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(super) fn read(text: &str) -> (Vec<Statement>, Vec<&'static str>) {
        let mut r = Reader::default();
        let s = r.text(Path::new("c"), text);
        (s, r.diagnostics.into_sorted().0.iter().map(|d| d.code).collect())
    }

    #[test]
    fn comments_quotes_and_blocks() {
        let (s, wrong) = read("\u{feff}a  \"x # y\" # z\r\n<domain *>\n  b 1,\n\n  2\n</domain *>\nc it's \"odd # z");
        assert!(wrong.is_empty());
        assert_eq!(
            (&*s[0].value, &*s[1].value, &*s[1].inside[0].value, &*s[2].value),
            ("x # y", "*", "1, 2", "it's \"odd")
        );
        assert_eq!((s[1].inside[0].at.line, s[1].inside[0].at.column, s[1].inside[0].value_at().column), (3, 3, 5));
    }

    #[test]
    fn quoted_values_span_lines_and_lists_go_on() {
        let (s, wrong) = read("command \"a \\\"b\\\" \\\\d\n   --c # no comment\"\ndomain-macro g\na.com,b.com\nx y");
        assert!(wrong.is_empty(), "{wrong:?}");
        assert_eq!(&*s[0].value, "a \"b\" \\d --c # no comment");
        assert_eq!((&*s[1].value, &*s[2].name), ("g a.com,b.com", "x"));
        assert_eq!(read("a \"b\nc").1, ["unclosed-quote"]);
    }

    #[test]
    fn two_quotes_inside_of_quotes_are_one() {
        let value = |text: &str| read(text).0[0].value.to_string();
        assert_eq!(value(r#"command "/bin/x --to=""$to"" --end""#), r#"/bin/x --to="$to" --end"#);
        assert_eq!(value(r#"command "/bin/x ""$to""""#), r#"/bin/x "$to""#);
        assert_eq!(value("command \"/bin/x \"\"a\n   b\"\" c\" # comment"), r#"/bin/x "a b" c"#);
        assert_eq!(value(r##"a """#""" # comment"##), "\"#\"");
        assert_eq!(value(r#"a """#), "");
        let (s, wrong) = read(r#"a "" # nothing"#);
        assert!(wrong.is_empty() && s[0].quoted && s[0].value.is_empty());
        // Two values in quotes are text, as one that is followed by more.
        assert_eq!(value(r#"a "b" "c""#), r#""b" "c""#);
        assert_eq!(read("<acct-file \"|x \"\"a b\"\"\">\n</acct-file>").0[0].value.to_string(), r#"|x "a b""#);
        assert_eq!(read("a \"b\"\"\n<domain *>\n</domain>").1, ["unclosed-quote"]);
    }

    #[test]
    fn nested_lists_and_lines_that_begin_with_an_expression() {
        let (s, wrong) = read(
            "<pattern-list p>\n mail-from /a b/ <pattern-list>\n  * virtual-mta=x\n </pattern-list>\n /s p\\/am/ c\n</pattern-list>",
        );
        assert!(wrong.is_empty(), "{wrong:?}");
        let inside = &s[0].inside;
        assert_eq!((&*inside[0].value, inside[0].inside.len()), ("/a b/", 1));
        assert_eq!((&*inside[1].name, &*inside[1].value), ("/s p\\/am/", "c"));
        let (s, wrong) = read(
            "<Pattern-List p>\n Mail-From /a/ <Pattern-List>\n  * Virtual-MTA=x\n </pattern-list>\n</pattern-list>",
        );
        assert!(wrong.is_empty() && s[0].inside[0].inside.len() == 1, "in any case: {wrong:?}");
    }

    #[test]
    fn included_text_takes_the_place_of_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        std::fs::create_dir_all(dir.path().join("d1")).unwrap();
        write("main", "<domain *>\n include d?/*.cf\n z 1\n</domain>\ninclude main\ninclude nothing\n");
        write("d1/b.cf", "b 2");
        write("d1/a.cf", "a 1\r\n");
        let mut r = Reader::default();
        let s = r.file(&dir.path().join("main")).unwrap();
        let names: Vec<&str> = s[0].inside.iter().map(|i| &*i.name).collect();
        assert_eq!(names, ["a", "b", "z"]);
        let codes: Vec<&str> = r.diagnostics.into_sorted().0.iter().map(|d| d.code).collect();
        assert_eq!(codes, ["include-cycle", "missing-file"]);
        // Lines of other names are said and not kept, but in a block they may belong there.
        write("unknown", "<domain *>\n include d1/a.cf\n</domain>\nnothing-such 1\nmax-smtp-out 2\nhost-name h\n");
        let mut r = Reader { names_unknown: true, ..Reader::default() };
        let s = r.file(&dir.path().join("unknown")).unwrap();
        assert_eq!((s.len(), s[0].inside.len()), (2, 1));
        let (wrong, _) = r.diagnostics.into_sorted();
        let wrong: Vec<_> = wrong.iter().map(|d| (d.code, d.at.line)).collect();
        assert_eq!(wrong, [("unknown-directive", 4), ("wrong-block", 5)]);
        write("bytes", "a b\nc \u{e4}\n");
        std::fs::write(dir.path().join("bytes"), b"a b\nc \xe4\n").unwrap();
        let mut r = Reader::default();
        assert_eq!(r.file(&dir.path().join("bytes")).unwrap().len(), 2);
        let (wrong, _) = r.diagnostics.into_sorted();
        assert_eq!((wrong[0].code, wrong[0].at.line), ("not-utf8", 2));
    }

    #[test]
    fn a_configuration_that_is_too_much_is_given_up_once() {
        let mut r = Reader::default();
        r.text(Path::new("c"), &"a 1\n".repeat(STATEMENTS_MAX + 1));
        assert!(r.diagnostics.is_empty() && r.gave_up.unwrap().message.contains("3000000 lines"));
        let dir = tempfile::tempdir().unwrap();
        (0..200).for_each(|n| std::fs::write(dir.path().join(format!("{n}.conf")), "a 1\n").unwrap());
        std::fs::write(dir.path().join("main"), "include *.conf\n".repeat(1000)).unwrap();
        let mut r = Reader::default();
        r.file(&dir.path().join("main")).unwrap();
        assert!(r.diagnostics.is_empty() && r.gave_up.unwrap().message.contains("10000 files"));
    }

    /// Name, value, and what is inside a block.
    type Tree = (String, String, Option<Vec<(String, String)>>);

    fn print(all: &[Tree]) -> String {
        let mut t = String::new();
        for (i, (name, value, inside)) in all.iter().enumerate() {
            // A quote inside of quotes is written in either of two ways.
            let quote = if i % 2 == 0 { "\\\"" } else { "\"\"" };
            let quoted = format!("\"{}\"", value.replace('\\', "\\\\").replace('"', quote));
            match inside {
                None => t.push_str(&format!("{name} {quoted}  # comment\n")),
                Some(inner) => {
                    t.push_str(&format!("<{name} {quoted}>\n"));
                    inner.iter().for_each(|(n, v)| t.push_str(&format!("\t{n} {v}\r\n")));
                    t.push_str(&format!("</{name}>\n"));
                }
            }
        }
        t
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(tree in proptest::collection::vec((
            "[a-b][a-z-]{0,8}", "[a-z \"#\\\\/]{0,12}",
            proptest::option::of(proptest::collection::vec(("[a-b][a-z-]{0,8}", "[a-z0-9/]{1,8}"), 0..4))
        ), 0..6)) {
            let (read, wrong) = read(&print(&tree));
            prop_assert!(wrong.is_empty(), "{:?}", wrong);
            prop_assert_eq!(read.len(), tree.len());
            for (s, (name, value, inside)) in read.iter().zip(&tree) {
                prop_assert_eq!(s.name.trim_matches(['<', '>']), name);
                prop_assert_eq!(&*s.value, value);
                let inner: Vec<(String, String)> =
                    s.inside.iter().map(|i| (i.name.to_string(), i.value.to_string())).collect();
                prop_assert_eq!(inner, inside.clone().unwrap_or_default());
            }
        }

        #[test]
        fn any_text_is_read(s in "[a<>/\" #\n,\\\\\r\u{e4}]{0,80}") {
            let _ = read(&s);
        }
    }
}
