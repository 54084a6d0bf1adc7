//! Directives that refer to a block by its name.

use super::{Compiler, Diagnostic, Statement, nearest};

impl Compiler<'_> {
    /// Notes that `s` refers to a name, which must be defined.
    pub(super) fn reference(&mut self, kind: &'static str, name: &str, s: &Statement, block: &'static str) {
        if kind == "queue" {
            return self.names.queues.push((name.to_lowercase(), s.value_at()));
        }
        let lower = name.to_lowercase();
        let kinds: &[&'static str] = match kind {
            "virtual-mta or pool" => &["virtual-mta", "pool"],
            "virtual-mta" => &["virtual-mta"],
            "pattern-list" => &["pattern-list"],
            "smtp-pattern-list" => &["smtp-pattern-list"],
            "source" => &["source"],
            "source-group" => &["source-group"],
            "rewrite-list" => &["rewrite-list"],
            "address-list" => &["address-list"],
            "proxy" => &["proxy"],
            "profile" => &["profile"],
            _ => return,
        };
        if !self.names.refer(kinds, &lower) {
            // A pattern list may name what only some hosts have; its other rules still work.
            let is_error = block != "pattern-list";
            if self.reader.diagnostics.counts_only(s.value_at(), is_error) {
                return;
            }
            let near = nearest(&lower, self.names.of_kinds(kinds)).map(|n| format!("did you mean {n}?"));
            let message = format!("{}: {kind} {name:?} is not defined", s.name);
            let d = Diagnostic::error(s.value_at(), "undefined", message, near.unwrap_or_default());
            self.reader.diagnostics.push(Diagnostic { is_error, ..d });
        }
    }
}
