//! Configuration text: whatever it says, it is read in bounded time, every complaint has a
//! place in it, and what comes out is a snapshot that workers can map.
#![no_main]

use std::path::Path;

use ipc::snapshot::MappedSnapshot;
use libfuzzer_sys::{Corpus, fuzz_target};
use supervisor::config::compile::compile_text;
use supervisor::config::explain::explain;

fn fuzz(text: &str) -> Corpus {
    // Files are the parser's tests' matter; here nothing outside of the text is read.
    if text.contains("include") {
        return Corpus::Reject;
    }
    let checked = compile_text(Path::new("c.conf"), text);
    let lines = text.split('\n').count() as u32;
    for d in &checked.diagnostics {
        assert!(d.at.file == 0 && d.at.line <= lines, "{d:?} in {lines} lines");
        let columns = checked.files.line(d.at).chars().count();
        assert!(usize::from(d.at.column) <= columns + 1, "{d:?} in {columns} columns");
        assert!(!d.render(&checked.files).is_empty());
    }
    let mut sorted = checked.diagnostics.clone();
    sorted.sort_by_key(|d| d.at);
    assert_eq!(sorted, checked.diagnostics, "by line");
    assert_eq!(compile_text(Path::new("c.conf"), text).diagnostics, checked.diagnostics, "the same again");
    if checked.errors().is_none() {
        let fd = checked.compiled.snapshot.seal().expect("memory");
        let mapped = MappedSnapshot::map(&fd).expect("a valid archive");
        for (i, vmta) in mapped.get().vmtas.iter().enumerate().take(4) {
            for destination in ["d.test", "a.b.test", "[127.0.0.1]", "gmail.com"] {
                let _ = mapped.get().domain_rules(destination, i as u32);
                assert!(explain(mapped.get(), destination, vmta.name.as_str(), "", None).is_ok());
            }
        }
    }
    Corpus::Keep
}

fuzz_target!(|input: &[u8]| -> Corpus { std::str::from_utf8(input).map_or(Corpus::Reject, fuzz) });
