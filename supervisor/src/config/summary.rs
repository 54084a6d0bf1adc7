//! What a check prints: of findings that are alike the first in full, and the lines of the others.

use std::collections::HashMap;

use super::diagnostic::Diagnostic;
use super::files::SourceFiles;

/// Findings alike that are still printed in full.
const IN_FULL_MAX: usize = 3;
/// Lines of the others that are named.
const NAMED_MAX: usize = 20;

/// The findings as text, in their order; with `all` each in full.
pub fn as_text(found: &[&Diagnostic], files: &SourceFiles, all: bool) -> String {
    let mut kinds: HashMap<(bool, &str, String), Vec<&Diagnostic>> = HashMap::new();
    for d in found {
        kinds.entry(kind(d)).or_default().push(d);
    }
    let mut text = String::new();
    for d in found {
        let alike = kinds.get(&kind(d)).map_or(&[][..], Vec::as_slice);
        // The same file that is missing for a hundred lines is one matter.
        let in_full = if d.code == "missing-file" { 1 } else { IN_FULL_MAX };
        let is_first = alike.first().is_some_and(|first| std::ptr::eq(*first, *d));
        let merged = !all && alike.len() > in_full;
        if merged && !is_first {
            continue;
        }
        text.push_str(&d.render(files));
        if merged {
            text.push_str(&format!("\n  = and {} more like it: {}", alike.len() - 1, places(&alike[1..], d, files)));
        }
        text.push_str("\n\n");
    }
    text
}

/// What findings have in common that are alike: the words of their messages but for those that look like names and figures.
fn kind(d: &Diagnostic) -> (bool, &'static str, String) {
    // Two findings that different files are missing are not alike.
    let is_meant =
        |w: &&str| d.code == "missing-file" || !w.contains(|c: char| c.is_ascii_digit() || "\"'./@$<>*".contains(c));
    (d.is_error, d.code, d.message.split_whitespace().filter(is_meant).collect::<Vec<_>>().join(" "))
}

/// Lines, with their files where those are others than the first one's.
fn places(others: &[&Diagnostic], first: &Diagnostic, files: &SourceFiles) -> String {
    let mut file = first.at.file;
    let place = |d: &&Diagnostic| {
        let name = if d.at.file == file { String::new() } else { format!("{}:", files.path(d.at.file).display()) };
        file = d.at.file;
        format!("{name}{}", d.at.line)
    };
    let named: Vec<String> = others.iter().take(NAMED_MAX).map(place).collect();
    let more = if others.len() > NAMED_MAX { " … (--all shows each)" } else { "" };
    format!("line{} {}{more}", if others.len() == 1 { "" } else { "s" }, named.join(", "))
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;
    use std::path::Path;

    use super::*;
    use crate::config::compile::compile_text;

    fn summary(text: &str, all: bool) -> String {
        let checked = compile_text(Path::new("c.conf"), text);
        as_text(&checked.diagnostics.iter().collect::<Vec<_>>(), &checked.files, all)
    }

    #[test]
    fn a_large_file_with_the_same_findings_again_and_again_fits_a_screen() {
        let mut text = String::new();
        for v in 0..50 {
            let _ = writeln!(text, "<virtual-mta v{v}>\n smtp-source-host 127.0.0.1 v{v}.test");
            for d in 0..10 {
                let _ = writeln!(
                    text,
                    " <domain d{d}.test>\n  max-msg-rate {d}0/h\n  max-smtp-out 5\n  max-smtp-out 5\n  backoff-max-msg-rate 500/h\n  \
                     max-msg-rate 200/h\n </domain>"
                );
            }
            text.push_str("</virtual-mta>\n");
        }
        // A finding of another kind at the end is printed all the same.
        text.push_str("domain-macro nobody a.test\n");
        let said = summary(&text, false);
        assert!(text.lines().count() > 3500 && said.lines().count() < 50, "{said}");
        assert!(said.contains("more like it: lines ") && said.contains("--all shows each"), "{said}");
        assert!(said.contains("nothing refers to domain-macro"), "{said}");
        assert!(summary(&text, true).lines().count() > 1000);
    }

    #[test]
    fn findings_that_differ_in_more_than_names_are_each_shown() {
        let block = |n: u32, line: &str| format!("<domain d{n}.test>\n {line}\n</domain>\n");
        let alike: String = (0..5).map(|n| block(n, "max-smtp-out x")).collect();
        let said = summary(&format!("{alike}{}", block(9, "retry-after x")), false);
        assert_eq!(
            (said.matches("error[bad-value]").count(), said.matches("and 4 more like it: lines 5, 8, 11, 14").count()),
            (2, 1),
            "{said}"
        );
        let few: String = (0..3).map(|n| block(n, "max-smtp-out x")).collect();
        assert_eq!(summary(&few, false).matches("error[bad-value]").count(), 3);
    }
}
