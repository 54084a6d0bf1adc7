//! Lines that another line of the same block beats, and blocks that are defined again.

use std::collections::{BTreeSet, HashMap};

use ipc::layers::USE_PROFILE;
use ipc::rules::Setting;

use super::super::directives::{self, Directive};
use super::super::types::Type;
use super::{Compiler, Diagnostic, Span, Statement};

impl Compiler<'_> {
    /// A line that says what another line of its block says. Of what becomes settings only
    /// lines that add up are looked at: [`Compiler::shadowed_lines`] sees the others in all
    /// blocks of their kind together.
    pub(super) fn repeated(&mut self, block: &'static str, inside: &[Statement]) {
        if inside.len() < 2 {
            return;
        }
        let settings = matches!(block, "domain" | "virtual-mta" | "virtual-mta-pool");
        let mut first: HashMap<(&str, &str), &Statement> = HashMap::new();
        // Members of a pool are told of where their weights are added up.
        let looked_at =
            |s: &&Statement| !s.name.starts_with(['<', '/', '*']) && !s.is_block && &*s.name != "virtual-mta";
        for s in inside.iter().filter(looked_at) {
            let Some(d) = directives::find(&s.name, block).filter(|d| d.repeats || !settings) else { continue };
            let whom = distinguished_by(d, &s.value);
            let Some(before) = first.insert((directives::canonical(d.name), whom), s) else { continue };
            let what = if d.repeats && !whom.is_empty() { format!("{} {whom}", s.name) } else { s.name.to_string() };
            self.beaten(&what, *before.value == *s.value, before.at, s.at);
        }
    }

    /// Directives that blocks of one pattern, virtual MTA or pool set twice: the last line is
    /// in force.
    pub(super) fn shadowed_lines(&mut self) {
        let mut found: Vec<Pair> = Vec::new();
        for settings in self.layers.blocks() {
            pairs(settings, |s| directives::of_domain_key(s.key), &mut found);
        }
        let (vmtas, pools) = (&self.snapshot.vmtas, &self.snapshot.pools);
        for settings in vmtas.iter().map(|v| &v.settings).chain(pools.iter().map(|p| &p.settings)) {
            pairs(settings, |s| directives::all().get(usize::from(s.key)), &mut found);
        }
        // A macro gives the same pair for each of its names.
        let mut told = BTreeSet::new();
        for p in found {
            if told.insert((p.now, p.before)) {
                self.beaten(p.name, p.same, self.line_at(p.before), self.line_at(p.now));
            }
        }
    }

    fn beaten(&mut self, what: &str, same: bool, before: Span, now: Span) {
        let (message, label) = match same {
            true => (format!("{what} is given twice"), "the same"),
            false => (format!("{what} is given again here, and this line is in force"), "has no effect"),
        };
        let d = Diagnostic::warning(now, "shadowed", message, "remove one of them");
        self.reader.diagnostics.push(d.with(before, label));
    }

    /// The first word of a line.
    pub(super) fn line_at(&self, (file, line): (u16, u32)) -> Span {
        let at = Span { file, line, column: 1, width: 1 };
        let text = self.reader.files.line(at);
        let column = text.chars().take_while(|c| c.is_whitespace()).count();
        at.part(column, text.split_whitespace().next().map_or(1, |w| w.chars().count()))
    }

    /// Blocks of the same name are one block, and somebody may not know.
    pub(super) fn defined_again(&mut self) {
        for (kind, name, first, again) in std::mem::take(&mut self.names.again) {
            let message = format!("{kind} {name} is defined again; both blocks count as one");
            let d = Diagnostic::warning(again, "defined-again", message, "join them, or rename one");
            self.reader.diagnostics.push(d.with(first, "defined here first"));
        }
    }
}

/// What tells lines of one directive apart that add up; empty where only one may stand.
fn distinguished_by<'s>(d: &Directive, value: &'s str) -> &'s str {
    match d.kind {
        _ if !d.repeats => "",
        // max-smtp-out-per-source-ip N says what source-ip-max-smtp-out 0/0 N says.
        Type::Args("number") => "0/0",
        Type::SourceHost => value.split_whitespace().next().unwrap_or_default(),
        kind if kind.is_by_network() => value.split_whitespace().next().unwrap_or_default(),
        _ => value,
    }
}

/// Two lines of one block that set the same directive.
struct Pair {
    name: &'static str,
    /// Both say the same.
    same: bool,
    /// File and line of the one that has no effect.
    before: (u16, u32),
    /// File and line of the one that is in force.
    now: (u16, u32),
}

fn pairs(settings: &[Setting], directive: impl Fn(&Setting) -> Option<&'static Directive>, found: &mut Vec<Pair>) {
    if settings.len() < 2 {
        return;
    }
    let mut last: HashMap<u16, &Setting> = HashMap::with_capacity(settings.len());
    for s in settings.iter().filter(|s| s.key != USE_PROFILE) {
        let Some(d) = directive(s).filter(|d| !d.repeats) else { continue };
        if let Some(before) = last.insert(s.key, s) {
            let (same, before, now) = (before.value == s.value, (before.file, before.line), (s.file, s.line));
            found.push(Pair { name: d.name, same, before, now });
        }
    }
}
