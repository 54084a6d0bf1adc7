//! Which texts an expression can match at all: those that hold one of its literals. Of hundreds
//! of expressions only a few are left to be tried.

use regex_syntax::hir::{Hir, HirKind};

/// Literals of one expression.
const LITERALS_MAX: usize = 64;

/// Literals of which every text that matches `hir` holds one; `None` where there are none that
/// say anything.
pub fn of(hir: &Hir) -> Option<Vec<Vec<u8>>> {
    match hir.kind() {
        HirKind::Literal(l) => Some(vec![l.0.to_vec()]),
        HirKind::Capture(c) => of(&c.sub),
        HirKind::Repetition(r) if r.min > 0 => of(&r.sub),
        HirKind::Concat(parts) => parts.iter().filter_map(of).max_by_key(|l| worth(l)),
        HirKind::Alternation(parts) => {
            let all: Vec<Vec<u8>> = parts.iter().map(of).collect::<Option<Vec<_>>>()?.into_iter().flatten().collect();
            (all.len() <= LITERALS_MAX).then_some(all)
        }
        HirKind::Empty | HirKind::Class(_) | HirKind::Look(_) | HirKind::Repetition(_) => None,
    }
}

/// The longer the shortest the fewer texts hold one; of equals the fewest.
fn worth(literals: &[Vec<u8>]) -> (usize, std::cmp::Reverse<usize>) {
    let shortest = literals.iter().map(Vec::len).min().unwrap_or(0);
    (shortest.min(6), std::cmp::Reverse(literals.len()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn literals_that_a_match_must_hold() {
        for (expression, expected) in [
            ("abc", Some(vec!["abc"])),
            ("a.{0,3}(bcd|xyz)", Some(vec!["bcd", "xyz"])),
            ("(ab)?cd+", Some(vec!["d"])),
            ("^\\d{3} 5\\.7\\.1 ", Some(vec![" 5.7.1 "])),
            ("(abc|\\d)", None),
            ("[ab]*", None),
        ] {
            let hir = regex_syntax::parse(expression).unwrap();
            let found = of(&hir).map(|l| l.into_iter().map(|b| String::from_utf8(b).unwrap()).collect::<Vec<_>>());
            assert_eq!(
                found.as_deref(),
                expected.as_ref().map(|e| e.iter().map(|s| s.to_string()).collect::<Vec<_>>()).as_deref(),
                "{expression}"
            );
        }
    }
}
