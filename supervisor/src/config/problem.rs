//! What is wrong with a value of the configuration.

/// Why a value is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What was expected, and what was found.
    pub message: String,
    /// What to do; empty for none.
    pub help: String,
    /// The part that is meant: byte offset and length in the value.
    pub part: Option<(usize, usize)>,
    /// Stable word for tools.
    pub code: &'static str,
}

impl Problem {
    /// `expected WHAT, found TEXT`
    pub fn expected(what: impl std::fmt::Display, found: &str) -> Problem {
        Problem::other(format!("expected {what}, found {found:?}"))
    }

    /// Another sentence.
    pub fn other(message: impl Into<String>) -> Problem {
        Problem { message: message.into(), help: String::new(), part: None, code: "bad-value" }
    }

    /// A file that has to be there and cannot be read.
    pub fn missing(path: &str, e: &std::io::Error) -> Problem {
        Problem { code: "missing-file", ..Problem::other(format!("cannot read {path}: {e}")) }
    }

    /// Adds advice.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Problem {
        self.help = help.into();
        self
    }

    /// Says which part of the value is meant; `part` is a piece of `of`.
    #[must_use]
    pub fn at(mut self, part: &str, of: &str) -> Problem {
        self.part = Some(((part.as_ptr() as usize).saturating_sub(of.as_ptr() as usize), part.len()));
        self
    }
}
