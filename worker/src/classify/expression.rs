//! Regular expressions of configurations: PCRE's common ground, bounded in time.

/// Steps that one match may take, so that no reply and no header can stall a worker.
const BACKTRACK_LIMIT: usize = 100_000;

/// Compiles what stands between the slashes of `/…/`, to match without regard to case; `(?-i)` in it makes what follows
/// exact.
///
/// # Errors
/// Why it is no expression.
pub fn compile(between_slashes: &str) -> Result<fancy_regex::Regex, String> {
    let source = without_quoting(&between_slashes.replace("\\/", "/"));
    fancy_regex::RegexBuilder::new(&source)
        .case_insensitive(true)
        .backtrack_limit(BACKTRACK_LIMIT)
        .build()
        .map_err(|e| e.to_string().lines().last().unwrap_or_default().trim().to_owned())
}

/// Spells out what stands between `\Q` and `\E`, which PCRE takes literally.
fn without_quoting(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, after)) = split_at_quote(rest) {
        out.push_str(before);
        let (literal, behind) = after.split_once("\\E").unwrap_or((after, ""));
        out.push_str(&fancy_regex::escape(literal));
        rest = behind;
    }
    out.push_str(rest);
    out
}

/// What stands before and behind the first `\Q` whose backslash is not itself escaped.
fn split_at_quote(source: &str) -> Option<(&str, &str)> {
    let mut escaped = false;
    for (i, c) in source.char_indices() {
        match c {
            'Q' if escaped => return Some((&source[..i - 1], &source[i + 1..])),
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn expressions_of_pcre() {
        let hit = |e: &str, text: &str| compile(e).unwrap().is_match(text).unwrap();
        assert!(hit("^421 .*\\[TS03\\]", "421 4.7.0 [ts03] wait"));
        assert!(!hit("(?-i)TS03", "ts03"));
        assert!(hit("a\\/b", "A/B"));
        assert!(hit("\\Qa.b(\\E$", "xa.b(") && !hit("\\Qa.b(\\E", "aXb("));
        assert!(hit("\\\\Q", "\\q"));
        assert!(compile("(open").is_err());
    }

    #[test]
    fn an_expression_that_runs_away_ends_with_an_error() {
        let runs_away = |e: &str| compile(e).unwrap().is_match(&"a".repeat(60)).is_err();
        assert!(runs_away("((a|aa)+)\\1c"));
    }
}
