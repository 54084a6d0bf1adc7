//! Which texts an expression can match at all: those that hold one of its literals. Of hundreds
//! of expressions only a few are left to be tried.

use regex_syntax::hir::{Class, Hir, HirKind};

/// Literals of one expression.
const LITERALS_MAX: usize = 64;
/// Bytes of a class that are literals of their own.
const CLASS_MAX: usize = 4;

/// Literals of which every text that matches `hir` holds one; `None` where there are none that
/// say anything.
pub fn of(hir: &Hir) -> Option<Vec<Vec<u8>>> {
    if let Some(all) = exact(hir) {
        return says_something(&all).then_some(all);
    }
    match hir.kind() {
        HirKind::Capture(c) => of(&c.sub),
        HirKind::Repetition(r) if r.min > 0 => of(&r.sub),
        HirKind::Concat(parts) => of_sequence(parts),
        HirKind::Alternation(parts) => {
            let all: Vec<Vec<u8>> = parts.iter().map(of).collect::<Option<Vec<_>>>()?.into_iter().flatten().collect();
            (all.len() <= LITERALS_MAX).then_some(all)
        }
        _ => None,
    }
}

/// The best of what its parts need, neighbours that are literals taken together.
fn of_sequence(parts: &[Hir]) -> Option<Vec<Vec<u8>>> {
    let (mut found, mut run) = (Vec::new(), vec![Vec::new()]);
    for part in parts {
        let own = exact(part);
        if let Some(longer) = own.as_ref().and_then(|o| joined(&run, o)) {
            run = longer;
            continue;
        }
        found.push(std::mem::replace(&mut run, own.clone().unwrap_or_else(|| vec![Vec::new()])));
        if own.is_none() {
            found.extend(of(part));
        }
    }
    found.push(run);
    found.into_iter().filter(|l| says_something(l)).max_by_key(|l| worth(l))
}

/// All texts that `hir` matches, where they are few.
fn exact(hir: &Hir) -> Option<Vec<Vec<u8>>> {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => Some(vec![Vec::new()]),
        HirKind::Literal(l) => Some(vec![l.0.to_vec()]),
        HirKind::Capture(c) => exact(&c.sub),
        HirKind::Class(c) => {
            let all: Vec<Vec<u8>> = match c {
                Class::Bytes(c) => {
                    c.iter().flat_map(|r| r.start()..=r.end()).take(CLASS_MAX + 1).map(|b| vec![b]).collect()
                }
                Class::Unicode(c) => {
                    let chars = c.iter().flat_map(|r| r.start()..=r.end()).take(CLASS_MAX + 1);
                    chars.map(|c| c.to_string().into_bytes()).collect()
                }
            };
            Some(all).filter(|all| all.len() <= CLASS_MAX)
        }
        HirKind::Repetition(r) if (r.min, r.max) == (0, Some(1)) => {
            let mut all = exact(&r.sub)?;
            all.push(Vec::new());
            Some(all)
        }
        HirKind::Concat(parts) => parts.iter().try_fold(vec![Vec::new()], |run, p| joined(&run, &exact(p)?)),
        HirKind::Alternation(parts) => {
            let all: Vec<Vec<u8>> =
                parts.iter().map(exact).collect::<Option<Vec<_>>>()?.into_iter().flatten().collect();
            (all.len() <= LITERALS_MAX).then_some(all)
        }
        HirKind::Repetition(_) => None,
    }
}

/// Every one of the first followed by every one of the second, unless they are too many.
fn joined(first: &[Vec<u8>], second: &[Vec<u8>]) -> Option<Vec<Vec<u8>>> {
    let all = || first.iter().flat_map(|a| second.iter().map(|b| [&a[..], &b[..]].concat())).collect();
    (first.len() * second.len() <= LITERALS_MAX).then(all)
}

fn says_something(literals: &[Vec<u8>]) -> bool {
    !literals.is_empty() && literals.iter().all(|l| !l.is_empty())
}

/// The longer the shortest the fewer texts hold one; of equals the fewest.
fn worth(literals: &[Vec<u8>]) -> (usize, std::cmp::Reverse<usize>) {
    let shortest = literals.iter().map(Vec::len).min().unwrap_or(0);
    (shortest.min(8), std::cmp::Reverse(literals.len()))
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
            (
                "5\\.7\\.(70[58]|750) x?.*no",
                Some(vec!["5.7.705 x", "5.7.705 ", "5.7.708 x", "5.7.708 ", "5.7.750 x", "5.7.750 "]),
            ),
            ("user (is )?(un)?known", Some(vec!["user is unknown", "user is known", "user unknown", "user known"])),
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
