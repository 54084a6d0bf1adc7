//! What the log says of a reload, in a line each.

use crate::config::diff::{Change, restart_needed};

/// Changes that are written out.
const NAMED: usize = 5;
/// Bytes of a reason.
const REASON_MAX: usize = 500;

/// Another configuration is in force.
pub fn of_reload(generation: u64, changes: &[Change]) {
    let restart = restart_needed(changes).join(", ");
    match restart.is_empty() {
        true => tracing::info!(generation, changes = summary(changes), "configuration reloaded"),
        false => {
            tracing::warn!(
                generation,
                changes = summary(changes),
                restart,
                "configuration reloaded, a part of it waits for a restart"
            );
        }
    }
}

/// It is not.
pub fn of_refusal(reason: &str) {
    tracing::error!(reason = cut(reason), "reload refused; the configuration before stays in force");
}

/// `domain a.test: max-smtp-out 5 → 7; … and 12 more`
fn summary(changes: &[Change]) -> String {
    if changes.is_empty() {
        return "none".to_owned();
    }
    let some: Vec<String> = changes.iter().take(NAMED).map(|c| cut(&c.to_string())).collect();
    let more = changes.len() - some.len();
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    some.join("; ") + &more
}

/// It is in force, and a worker lacks a part of it.
pub fn of_part(reason: &str) {
    tracing::error!(reason = cut(reason), "the configuration is in force, but a worker could not take all of it");
}

/// One line, of bounded length.
fn cut(text: &str) -> String {
    ipc::text::clean(&text.replace('\n', "; "), REASON_MAX).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::diff::Kind;

    #[test]
    fn changes_are_one_line_however_many_there_are() {
        let change = |n: usize| Change {
            path: format!("domain d{n}.test"),
            directive: "max-smtp-out".into(),
            change: Kind::Changed,
            before: Some("5".into()),
            after: Some("7".into()),
            needs_restart: false,
        };
        assert_eq!(summary(&[]), "none");
        assert_eq!(summary(&[change(1)]), "domain d1.test: max-smtp-out 5 → 7");
        let all: Vec<Change> = (0..1000).map(change).collect();
        let said = summary(&all);
        assert!(said.ends_with("; and 995 more") && said.len() < 400 && !said.contains('\n'), "{said}");
        assert!(cut(&"a\nb".repeat(1000)).len() <= REASON_MAX && !cut("a\nb").contains('\n'));
    }
}
