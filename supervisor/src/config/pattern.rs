//! Patterns: of domains, such as `*.example.com`, and regular expressions between slashes.

use ipc::message::normalise_domain;

use super::problem::Problem;

/// `*`, `name`, `*.name`, `[*.]name`, `[network]`, or a name in braces.
///
/// # Errors
/// [`Problem`]
pub fn pattern(t: &str) -> Result<(), Problem> {
    let bare = t.strip_prefix("[*.]").or_else(|| t.strip_prefix("*.")).unwrap_or(t);
    let literal = t.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    let fine = t == "*"
        || (t.starts_with('{') && t.ends_with('}') && t.len() > 2)
        || literal.is_some_and(|l| ipc::network::parse(l).is_some() || ipc::message::parse_literal(l).is_some())
        || (literal.is_none() && normalise_domain(bare).is_ok());
    if fine {
        Ok(())
    } else {
        Err(Problem::expected("a domain such as example.com, *.example.com, [*.]example.com or *", t))
    }
}

/// What stands between the slashes of `/…/` at the beginning of `text`, and what follows it.
///
/// # Errors
/// [`Problem`]
pub fn expression<'a>(text: &'a str, of: &str) -> Result<(&'a str, &'a str), Problem> {
    let inner = text.strip_prefix('/').ok_or_else(|| {
        Problem::expected("a regular expression /.../", text.split_whitespace().next().unwrap_or_default()).at(text, of)
    })?;
    let end = closing_slash(inner)
        .ok_or_else(|| Problem::other("the regular expression is not closed by a slash").at(text, of))?;
    Ok((&inner[..end], inner[end + 1..].trim_start()))
}

/// The expression of `/…/` at the beginning of `text`, compiled, and what follows it.
///
/// # Errors
/// [`Problem`]
pub fn regex<'a>(text: &'a str, of: &str) -> Result<(fancy_regex::Regex, &'a str), Problem> {
    let (source, rest) = expression(text, of)?;
    let compiled = worker::classify::expression::compile(source)
        .map_err(|why| Problem::other(format!("regular expression: {why}")).at(&text[..source.len() + 2], of))?;
    Ok((compiled, rest))
}

/// Where the slash stands that closes a regular expression; `text` begins behind the opening one.
pub fn closing_slash(text: &str) -> Option<usize> {
    unescaped_at(text, '/')
}

/// Where the character `wanted` first stands without a backslash before it.
pub(super) fn unescaped_at(text: &str, wanted: char) -> Option<usize> {
    let mut escaped = false;
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == wanted => return Some(i),
            _ => {}
        }
    }
    None
}

/// A pattern of domains in the spelling that names of queues have: lower case, A-labels.
pub fn pattern_key(p: &str) -> String {
    let p = p.trim().to_lowercase();
    for prefix in ["[*.]", "*."] {
        if let Some(rest) = p.strip_prefix(prefix) {
            return normalise_domain(rest).map_or_else(|_| p.clone(), |d| format!("{prefix}{d}"));
        }
    }
    normalise_domain(&p).unwrap_or(p)
}
