//! What is wrong with a configuration, and where.

use annotate_snippets::{Annotation, AnnotationKind, Group, Level, Renderer, Snippet};

use super::files::{Files, Span};

/// Directives whose values reach no message and no excerpt: both end up in logs.
pub const SECRETS: &[&str] = &["password", "auth-password", "http-api-key", "api-key", "privacy-policy"];

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
        let (message, suggestion) = (message.into(), suggestion.into());
        Diagnostic { at, code, message, suggestion, related: None, is_error: true }
    }

    /// A warning at a place.
    pub fn warning(at: Span, code: &'static str, message: impl Into<String>, suggestion: impl Into<String>) -> Self {
        Diagnostic { is_error: false, ..Self::error(at, code, message, suggestion) }
    }

    /// Names another place as well.
    pub fn with(mut self, at: Span, why: impl Into<String>) -> Self {
        self.related = Some((at, why.into()));
        self
    }

    /// The text for people: excerpt, marker, advice.
    pub fn render(&self, files: &Files) -> String {
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
    pub fn as_json(&self, files: &Files) -> serde_json::Value {
        serde_json::json!({
            "file": files.path(self.at.file), "line": self.at.line, "column": self.at.column, "width": self.at.width,
            "code": self.code, "message": self.message, "suggestion": self.suggestion,
        })
    }
}

/// Lines of a file around places in it, which are marked.
fn excerpt<'a>(files: &'a Files, places: &[(Span, AnnotationKind, &'a str)]) -> Snippet<'a, Annotation<'a>> {
    let lines = || places.iter().map(|(at, _, _)| at.line);
    let (first, last) = (lines().min().unwrap_or(1), lines().max().unwrap_or(1));
    let file = places.first().map_or(0, |(at, _, _)| at.file);
    let mut source = String::new();
    let mut spans = Vec::new();
    for line in first..=last {
        let text = files.line(Span { file, line, ..Span::default() });
        let name = text.split_whitespace().next().unwrap_or_default().to_ascii_lowercase();
        let text = match SECRETS.contains(&name.as_str()) {
            true => &text[..text.find(|c: char| !c.is_whitespace()).unwrap_or(0) + name.len()],
            false => text,
        };
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

/// The name among `all` that `word` was probably meant to be.
pub fn nearest<'a>(word: &str, all: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let limit = 1 + word.len() / 4;
    let near = all.filter(|n| n.len().abs_diff(word.len()) <= limit).map(|n| (distance(word, n), n));
    near.filter(|(d, _)| *d <= limit).min().map(|(_, n)| n)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let cost = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
