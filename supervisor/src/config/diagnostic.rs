//! What is wrong with a configuration, and where.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use annotate_snippets::{Annotation, AnnotationKind, Group, Level, Renderer, Snippet};

use super::directives;
use super::files::{SourceFiles, Span};
use super::nearest::nearest;

/// Directives whose values reach no message and no excerpt: both end up in logs.
pub const SECRETS: &[&str] = &[
    "password",
    "auth-password",
    "http-api-key",
    "api-key",
    "access-token",
    "volume-audit-api-key",
    "privacy-policy",
    "external-account",
    "dns-update",
];

/// Directives whose first word is a file and whose second is its password, which is a secret likewise.
pub const WITH_PASSWORD: &[&str] = &["smtp-client-certificate", "smtp-server-tls-certificate", "tls-certificate"];

/// Errors that are kept of a configuration; the others are counted.
pub const KEPT_MAX: usize = 200;
/// Warnings that are kept: those that are alike are printed as one, and a kind that comes late is not lost among them.
pub const WARNINGS_KEPT_MAX: usize = 4000;
/// Characters of a message, of advice, and of a line in an excerpt.
const TEXT_CHARS_MAX: usize = 1000;
/// Lines between two places that are still shown in one excerpt.
const EXCERPT_LINES_MAX: u32 = 6;

/// One error or warning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Where.
    pub at: Span,
    /// Stable word for tools.
    pub code: &'static str,
    /// What was expected and what was found.
    pub message: String,
    /// What to do instead; empty for none.
    pub suggestion: String,
    /// Another place that has to do with it, and why.
    pub related: Option<(Span, String)>,
    /// An error refuses the configuration.
    pub is_error: bool,
}

impl Diagnostic {
    /// An error at a place.
    pub fn error(at: Span, code: &'static str, message: impl Into<String>, suggestion: impl Into<String>) -> Self {
        let (message, suggestion) = (cut(message.into()), cut(suggestion.into()));
        Diagnostic { at, code, message, suggestion, related: None, is_error: true }
    }

    /// A warning at a place.
    pub fn warning(at: Span, code: &'static str, message: impl Into<String>, suggestion: impl Into<String>) -> Self {
        Diagnostic { is_error: false, ..Self::error(at, code, message, suggestion) }
    }

    /// Names another place as well.
    pub fn with(mut self, at: Span, why: impl Into<String>) -> Self {
        self.related = Some((at, cut(why.into())));
        self
    }

    /// By file and line, and whatever else tells two apart.
    fn order(&self) -> (Span, &str, &str) {
        (self.at, self.code, &self.message)
    }

    /// The text for people: excerpt, marker, advice.
    pub fn render(&self, files: &SourceFiles) -> String {
        let level = if self.is_error { Level::ERROR } else { Level::WARNING };
        let mut group = Group::with_title(level.primary_title(self.message.as_str()).id(self.code));
        let mut places: Vec<(Span, AnnotationKind, &str)> = vec![(self.at, AnnotationKind::Primary, "")];
        if let Some((at, why)) = &self.related {
            places.push((*at, AnnotationKind::Context, why));
        }
        places.retain(|(at, _, _)| at.line > 0);
        // Places that are near each other share an excerpt.
        let near = places.len() == 2
            && places[0].0.file == places[1].0.file
            && places[0].0.line.abs_diff(places[1].0.line) <= EXCERPT_LINES_MAX;
        let parts: Vec<&[(Span, AnnotationKind, &str)]> =
            if near { vec![&places[..]] } else { places.chunks(1).collect() };
        for part in parts {
            group = group.element(excerpt(files, part));
        }
        if !self.suggestion.is_empty() {
            group = group.element(Level::HELP.message(self.suggestion.as_str()));
        }
        Renderer::plain().render(&[group])
    }

    /// The object for tools.
    pub fn as_json(&self, files: &SourceFiles) -> serde_json::Value {
        serde_json::json!({
            "file": files.path(self.at.file), "line": self.at.line, "column": self.at.column, "width": self.at.width,
            "code": self.code, "message": self.message, "suggestion": self.suggestion,
        })
    }
}

/// A text of bounded length: values are repeated in messages, and a value may be a whole file.
fn cut(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(TEXT_CHARS_MAX) {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// What is wrong, as far as somebody will read it: the first errors and the first warnings by file and line, and how many
/// more there are.
#[derive(Debug)]
pub struct Diagnostics {
    errors: First,
    warnings: First,
}

impl Default for Diagnostics {
    fn default() -> Self {
        let first = |most| First { kept: BinaryHeap::new(), left_out: 0, most };
        Diagnostics { errors: first(KEPT_MAX), warnings: first(WARNINGS_KEPT_MAX) }
    }
}

/// How many were not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LeftOut {
    /// Errors.
    pub errors: usize,
    /// Warnings.
    pub warnings: usize,
}

impl Diagnostics {
    /// Takes one.
    pub fn push(&mut self, d: Diagnostic) {
        self.of(d.is_error).push(d);
    }

    /// Counts an error, or a warning, that would not be kept, so that nobody has to say what is wrong there; false when
    /// it would be.
    pub fn counts_only(&mut self, at: Span, is_error: bool) -> bool {
        let first = self.of(is_error);
        let full = first.is_full_at(at);
        first.left_out += usize::from(full);
        full
    }

    fn of(&mut self, is_error: bool) -> &mut First {
        if is_error { &mut self.errors } else { &mut self.warnings }
    }

    /// Nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.errors.kept.is_empty() && self.warnings.kept.is_empty()
    }

    /// Those that were kept, by file and line.
    pub fn into_sorted(self) -> (Vec<Diagnostic>, LeftOut) {
        let left_out = LeftOut { errors: self.errors.left_out, warnings: self.warnings.left_out };
        let mut all: Vec<Diagnostic> = self.errors.kept.into_iter().chain(self.warnings.kept).map(|d| d.0).collect();
        all.sort_by(|a, b| a.order().cmp(&b.order()));
        (all, left_out)
    }
}

/// The first of a kind, the last of them on top.
#[derive(Debug)]
struct First {
    kept: BinaryHeap<ByPlace>,
    left_out: usize,
    /// How many are kept.
    most: usize,
}

impl First {
    fn is_full_at(&self, at: Span) -> bool {
        self.kept.len() >= self.most && self.kept.peek().is_some_and(|last| at > last.0.at)
    }

    fn push(&mut self, d: Diagnostic) {
        self.kept.push(ByPlace(d));
        if self.kept.len() > self.most {
            self.kept.pop();
            self.left_out += 1;
        }
    }
}

#[derive(Debug)]
struct ByPlace(Diagnostic);

impl Ord for ByPlace {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.order().cmp(&other.0.order())
    }
}

impl PartialOrd for ByPlace {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for ByPlace {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for ByPlace {}

/// Words by which the name of a directive that holds a secret is recognised where it is mistyped; of two that fit the first counts.
const SECRET_WORDS: &[&str] =
    &["password", "passwort", "passwd", "pass", "pas", "pwd", "secret", "token", "api-key", "apikey"];

/// Where the word for a secret ends in a name that no directive has; `None` in the names of directives, and where there is no such word.
fn end_of_secret_word(name: &str) -> Option<usize> {
    let lower = name.to_ascii_lowercase();
    let is_known = directives::all().iter().any(|d| d.name == lower);
    let end = SECRET_WORDS.iter().find_map(|w| lower.find(w).map(|at| at + w.len()));
    end.filter(|_| !is_known)
}

/// A name that no directive has, and that a directive with a secret was meant by.
fn is_like_a_secret(name: &str) -> bool {
    let is_known = directives::all().iter().any(|d| d.name == name);
    !is_known && nearest(name, SECRETS.iter().chain(WITH_PASSWORD).copied()).is_some()
}

/// What may be shown of a name that no directive has: what stands behind a word for a secret may be the secret.
pub fn public_name(name: &str) -> &str {
    end_of_secret_word(name).map_or(name, |end| &name[..end])
}

/// A line without the secret that it may hold.
fn public_part(line: &str) -> &str {
    let end_of_word = |from: usize| {
        let rest = &line[from..];
        let start = rest.find(|c: char| !c.is_whitespace()).unwrap_or(rest.len());
        from + rest[start..].find(char::is_whitespace).map_or(rest.len(), |i| start + i)
    };
    let name_end = end_of_word(0);
    let name = line[..name_end].trim().to_ascii_lowercase();
    let indent = line.len() - line.trim_start().len();
    if let Some(end) = end_of_secret_word(&name) {
        return &line[..indent + end];
    }
    match () {
        () if SECRETS.contains(&name.as_str()) => &line[..name_end],
        () if WITH_PASSWORD.contains(&name.as_str()) => &line[..end_of_word(name_end)],
        () if is_like_a_secret(&name) => &line[..name_end],
        () => line,
    }
}

/// Lines of a file around places in it, which are marked.
fn excerpt<'a>(files: &'a SourceFiles, places: &[(Span, AnnotationKind, &'a str)]) -> Snippet<'a, Annotation<'a>> {
    let lines = || places.iter().map(|(at, _, _)| at.line);
    let (first, last) = (lines().min().unwrap_or(1), lines().max().unwrap_or(1));
    let file = places.first().map_or(0, |(at, _, _)| at.file);
    let mut source = String::new();
    let mut spans = Vec::new();
    for line in first..=last {
        let text = files.line(Span { file, line, ..Span::default() });
        let text = text.char_indices().nth(TEXT_CHARS_MAX).map_or(text, |(end, _)| &text[..end]);
        let text = public_part(text);
        for (at, kind, label) in places.iter().filter(|(at, _, _)| at.line == line) {
            let byte = |column: usize| text.char_indices().nth(column).map_or(text.len(), |(i, _)| i);
            let start = byte(usize::from(at.column).saturating_sub(1));
            let end = byte((usize::from(at.column) + usize::from(at.width)).saturating_sub(1)).max(start);
            spans.push(kind.span(source.len() + start..source.len() + end).label(*label));
        }
        source.push_str(text);
        source.push('\n');
    }
    Snippet::source(source).line_start(first as usize).path(files.path(file).display().to_string()).annotations(spans)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(line: u32) -> Span {
        Span { line, column: 1, width: 1, ..Span::default() }
    }

    proptest! {
        #[test]
        fn the_first_are_kept_in_whatever_order_they_come(lines in proptest::collection::vec(0u32..500, 0..600)) {
            let mut all = Diagnostics::default();
            for line in &lines {
                if !all.counts_only(at(*line), true) {
                    all.push(Diagnostic::error(at(*line), "x", "", ""));
                }
            }
            let (kept, left_out) = all.into_sorted();
            let mut sorted = lines.clone();
            sorted.sort_unstable();
            prop_assert_eq!(left_out, LeftOut { errors: lines.len().saturating_sub(KEPT_MAX), warnings: 0 });
            sorted.truncate(KEPT_MAX);
            prop_assert_eq!(kept.iter().map(|d| d.at.line).collect::<Vec<_>>(), sorted);
        }
    }

    #[test]
    fn warnings_and_errors_are_kept_apart() {
        let mut all = Diagnostics::default();
        for line in 0..=WARNINGS_KEPT_MAX as u32 {
            if !all.counts_only(at(line), false) {
                all.push(Diagnostic::warning(at(line), "x", "", ""));
            }
        }
        assert!(!all.counts_only(at(9999), true), "there is room for errors");
        let (kept, left_out) = all.into_sorted();
        assert_eq!((kept.len(), left_out), (WARNINGS_KEPT_MAX, LeftOut { errors: 0, warnings: 1 }));
    }

    #[test]
    fn secrets_are_cut_from_lines() {
        for (line, shown) in [
            ("  password a b", "  password"),
            ("auth-password", "auth-password"),
            (" pasword hunter2", " pas"),
            (" smtp-password hunter2", " smtp-password"),
            ("password=hunter2", "password"),
            ("\"password\" hunter2", "\"password"),
            ("max-smtp-uot 20", "max-smtp-uot 20"),
            ("\tTLS-Certificate  /c.pem  a secret", "\tTLS-Certificate  /c.pem"),
            ("smtp-client-certificate", "smtp-client-certificate"),
            ("  max-smtp-out 5 6", "  max-smtp-out 5 6"),
            ("", ""),
        ] {
            assert_eq!(public_part(line), shown);
        }
    }

    #[test]
    fn messages_and_excerpts_are_bounded() {
        let mut files = SourceFiles::default();
        let text = crate::config::files::FileText("\u{e4}".repeat(1 << 20).into());
        files.add(std::path::Path::new("c"), text.into());
        let d = Diagnostic::error(Span { width: u16::MAX, ..at(1) }, "x", "y".repeat(1 << 20), "z".repeat(1 << 20));
        assert!(d.render(&files).len() < 16 << 10);
    }
}
