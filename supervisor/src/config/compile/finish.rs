//! What can be said when everything has been read: domains, pools, defaults.

use std::collections::HashMap;
use std::path::PathBuf;

use ipc::layers::Scope;
use ipc::message::normalise_domain;
use ipc::snapshot::{Listener, PoolMember, SpoolDirectory};

use super::{Checked, Compiled, Compiler, Diagnostic, Overrides, Problem, Statement, lint};

impl<'s> Compiler<'s> {
    pub(super) fn finish(mut self, statements: &[Statement], overrides: &Overrides) -> Checked {
        self.pools();
        self.domain_blocks();
        lint::statements(&mut self.reader.diagnostics, statements);
        for (kind, name, at) in self.names.unused() {
            let message = format!("nothing refers to {kind} {name:?}");
            self.reader.diagnostics.push(Diagnostic::warning(at, "unused", message, ""));
        }
        for (name, (at, count)) in std::mem::take(&mut self.pending) {
            let places = if count == 1 { String::new() } else { format!(" ({count} lines, the first is shown)") };
            let message = format!("{name} is not in force yet: it is checked and stored{places}");
            self.warning(at, "pending", message, "");
        }
        let data_dir =
            overrides.data_dir.clone().or(self.out.data_dir.take()).unwrap_or_else(|| "./sluice-data".into());
        let data_dir = std::path::absolute(&data_dir).unwrap_or(data_dir);
        self.defaults(&data_dir);
        let mut diagnostics = std::mem::take(&mut self.reader.diagnostics);
        diagnostics.sort_by(|a, b| (a.at, a.code, &a.message).cmp(&(b.at, b.code, &b.message)));
        let mut snapshot = self.snapshot;
        snapshot.layers = self.layers.build();
        snapshot.files = self.reader.files.paths();
        let out = self.out;
        let compiled = Compiled {
            snapshot,
            workers: overrides.workers.or(out.workers),
            worker_cpus: out.worker_cpus,
            data_dir,
            http_port: out.http_port.unwrap_or(8080),
            run_as_user: if out.run_as_user.is_empty() { "sluice".into() } else { out.run_as_user },
            run_as_root: out.run_as_root,
        };
        Checked { compiled, diagnostics, files: self.reader.files }
    }

    fn pools(&mut self) {
        let mut first: HashMap<u32, u32> = HashMap::new();
        for (pool, name, weight, at) in std::mem::take(&mut self.members) {
            let Some(vmta) = self.snapshot.vmta_by_name.get(&name.to_lowercase()).copied() else { continue };
            self.snapshot.pools[pool as usize].members.push(PoolMember { vmta, weight });
            if !self.pool_domains.contains_key(&pool) {
                continue;
            }
            match first.get(&vmta).copied() {
                Some(other) if other != pool => {
                    let other_at = self.pool_domains.get(&other).copied().unwrap_or_default();
                    let message = format!("{name} is in two pools that have <domain> blocks");
                    let d = Diagnostic::error(at, "two-pools", message, "keep the <domain> blocks of one of them");
                    self.reader.diagnostics.push(d.with(other_at, "the other pool"));
                }
                _ => {
                    first.insert(vmta, pool);
                    self.snapshot.vmtas[vmta as usize].pool = Some(pool);
                }
            }
        }
    }

    /// `<domain>` blocks become layers. One written out beats one that a macro gave.
    fn domain_blocks(&mut self) {
        let published = self.receiver_profiles();
        let domains = std::mem::take(&mut self.domains);
        let (by_macro, explicit): (Vec<_>, Vec<_>) = domains.into_iter().partition(|(_, s)| s.value.contains('$'));
        let mut similar = lint::Similar::default();
        let mut shadows = lint::Shadows::default();
        for (scope, s) in by_macro.into_iter().chain(explicit) {
            self.repeated("domain", &s.inside);
            lint::domain(&mut self.reader.diagnostics, s);
            match scope {
                Scope::Vmta(_) => {
                    similar.note(s);
                    shadows.of_vmta(s);
                }
                Scope::Global => shadows.of_global(s),
                _ => {}
            }
            let settings = self.settings("domain", &s.inside);
            for pattern in self.patterns(s) {
                self.compare_with(&published, &pattern, &settings);
                self.layers.add(scope, &pattern, &settings);
            }
        }
        similar.report(&mut self.reader.diagnostics);
        shadows.report(&mut self.reader.diagnostics);
    }

    /// The patterns that a block's parameter stands for, as queues spell them.
    fn patterns(&mut self, s: &'s Statement) -> Vec<String> {
        let words = s.value.split([' ', '\t', ',']).filter(|w| !w.is_empty()).count();
        if words != 1 {
            let problem = match words {
                0 => Problem::other("a domain is missing").help("form: <domain example.com>"),
                n => Problem::other(format!("one pattern expected, got {n}"))
                    .help("list the names in a domain-macro and write <domain $NAME>"),
            };
            self.problem(s, problem);
            return Vec::new();
        }
        match self.macros.expand(&s.value) {
            Ok(names) => {
                let mut all = Vec::with_capacity(names.len());
                for n in names {
                    match super::super::composite::pattern(&n) {
                        Ok(()) => all.push(pattern_key(&n)),
                        Err(p) => self.problem(s, p),
                    }
                }
                all
            }
            Err(e) => {
                self.error(s.value_at, "macro", e, "");
                Vec::new()
            }
        }
    }

    fn defaults(&mut self, data_dir: &std::path::Path) {
        let s = &mut self.snapshot;
        s.vmtas[0].source_hosts = std::mem::take(&mut self.out.source_hosts);
        let host = self.out.host_names.first().cloned().unwrap_or_else(system_host_name);
        let defaults = s.vmtas[0].source_hosts.clone();
        for v in &mut s.vmtas {
            if v.host_name.is_empty() {
                v.host_name.clone_from(&host);
            }
            if v.source_hosts.is_empty() {
                v.source_hosts.clone_from(&defaults);
            }
        }
        let g = &mut s.global;
        g.local_domains = std::mem::take(&mut self.out.host_names);
        g.local_domains.push(system_host_name());
        g.host_name = host;
        g.run_dir = data_dir.join("run").display().to_string();
        if g.spools.is_empty() {
            g.spools.push(SpoolDirectory { path: "spool".into(), priority: 1, min_free_space: 0 });
        }
        let below = |path: &str| -> String { PathBuf::from(data_dir).join(path).display().to_string() };
        for d in &mut g.spools {
            d.path = below(&d.path);
            if d.min_free_space == 0 {
                d.min_free_space = self.out.min_free_space;
            }
        }
        g.spools.sort_by_key(|d| std::cmp::Reverse(d.priority));
        for a in &mut s.accounting {
            a.path = below(&a.path);
            if !a.move_to.is_empty() {
                a.move_to = below(&a.move_to);
            }
        }
        for l in s.listeners.iter_mut().filter(|l| l.tls_pem.is_empty()) {
            l.tls_pem.clone_from(&self.tls_pem);
        }
        if s.listeners.is_empty() {
            let (source, tls_pem) = (String::new(), self.tls_pem.clone());
            s.listeners.push(Listener { address: "0.0.0.0:25".into(), source, tls_pem });
        }
        // Wider networks first: what is narrower is applied over them. Named ones come last.
        s.sources.sort_by_key(|x| x.network.map_or(255, |n| n.bits));
    }
}

/// A pattern in the spelling that queues use.
pub fn pattern_key(p: &str) -> String {
    let p = p.trim().to_lowercase();
    for prefix in ["[*.]", "*."] {
        if let Some(rest) = p.strip_prefix(prefix) {
            return normalise_domain(rest).map_or_else(|_| p.clone(), |d| format!("{prefix}{d}"));
        }
    }
    normalise_domain(&p).unwrap_or(p)
}

fn system_host_name() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|n| n.into_string().ok())
        .unwrap_or_else(|| "localhost".into())
        .to_lowercase()
}
