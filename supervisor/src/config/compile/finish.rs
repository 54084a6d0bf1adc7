//! What can be said when everything has been read: domains, pools, defaults.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use ipc::layers::{Named, Scope};
use ipc::rules::{DomainKey, Setting, Value};
use ipc::shard_map::Spread;
use ipc::snapshot::{Listener, PoolMember, RecordFields, SpoolDirectory};
use worker::connect::own_addresses;

use super::super::directives::{self, Status};
use super::super::pattern::{pattern, pattern_key};
use super::super::writable::Folder;
use super::super::{composite, incomplete, never, source_hosts};
use super::{Checked, Compiled, Compiler, Diagnostic, Overrides, Problem, Span, Statement, lint};

impl<'s> Compiler<'s> {
    pub(super) fn finish(mut self, statements: &[Statement], overrides: &Overrides) -> Checked {
        self.pools();
        self.limits_of_members();
        self.domain_blocks();
        self.shadowed_lines();
        lint::statements(&mut self.reader.diagnostics, statements);
        incomplete::statements(&mut self.reader.diagnostics, statements);
        let diagnostics = &mut self.reader.diagnostics;
        never::expressions(statements, &mut |d| diagnostics.push(d));
        never::roll_ups(statements, &mut |d| diagnostics.push(d));
        for (kind, name, at) in self.names.unused() {
            if let Some(help) = never::source(name).filter(|_| kind == "source") {
                let message = format!("no client is in <source {name}>: clients go by their addresses");
                self.reader.diagnostics.push(Diagnostic::warning(at, "never-matches", message, help));
                continue;
            }
            let message = format!("nothing refers to {kind} {name:?}");
            self.reader.diagnostics.push(Diagnostic::warning(at, "unused", message, ""));
        }
        let places = |n: usize| if n == 1 { String::new() } else { format!(" ({n} lines, the first is shown)") };
        for ((name, status), (d, at, count)) in std::mem::take(&mut self.pending) {
            if status == Status::Withheld {
                let message = format!("{name} is not in force yet: {}{}", d.reason, places(count));
                self.warning(at, "withheld", message, "without the line mail goes as if there were no such directive");
                continue;
            }
            let message = format!("{name} is not in force yet: it is checked and stored{}", places(count));
            self.warning(at, "pending", message, "");
        }
        for ((name, why), (at, count)) in std::mem::take(&mut self.without_effect) {
            let (code, is) =
                if why.starts_with("obsolete") { ("obsolete", "is") } else { ("ignored", "has no effect:") };
            self.warning(at, code, format!("{name} {is} {why}{}", places(count)), "remove the line");
        }
        let data_dir =
            overrides.data_dir.clone().or(self.out.data_dir.take()).unwrap_or_else(|| "./sluice-data".into());
        if let Some(dir) = &overrides.data_dir {
            self.out.writes.retain(|f| !f.named.starts_with("data-dir "));
            let (at, named) = (Span::default(), "--data-dir".to_owned());
            self.out.writes.push(Folder { at, named, path: dir.clone(), at_start: true });
        }
        // Below a folder that depends on where the server is started nothing is known.
        self.out.writes.iter_mut().for_each(|f| f.path = data_dir.join(&f.path));
        self.out.writes.retain(|f| f.path.is_absolute());
        let data_dir = std::path::absolute(&data_dir).unwrap_or(data_dir);
        self.withheld_of_virtual_mtas();
        self.listeners();
        self.acme_certificates(&data_dir);
        self.defaults(&data_dir);
        self.aliases();
        self.other_machine();
        self.clashing_ports(statements);
        self.reserved_places();
        self.authentication();
        let (mut diagnostics, left_out) = std::mem::take(&mut self.reader.diagnostics).into_sorted();
        diagnostics.extend(self.reader.gave_up.take());
        diagnostics.sort_by_key(|d| d.at);
        let spread = self.layers.numbers(DomainKey::Spread as u16).into_iter();
        let spread = spread.map(|(pattern, n)| Spread { pattern, over: n.min(255) as u8 }).collect();
        let mut snapshot = self.snapshot;
        snapshot.layers = self.layers.build();
        // What operators say goes before what comes with the program.
        snapshot.rollups.sort_by_key(|r| r.built_in);
        snapshot.files = self.reader.files.paths();
        let mut out = self.out;
        let writes = std::mem::take(&mut out.writes);
        let compiled = Compiled {
            snapshot,
            spread,
            workers: overrides.workers.or(out.workers),
            worker_cpus: out.worker_cpus,
            data_dir,
            http_port: out.http_port.unwrap_or(8080),
            run_as_user: if out.run_as_user.is_empty() { "sluice".into() } else { out.run_as_user },
            run_as_root: out.run_as_root,
            listens_nowhere: out.no_address,
            acme: self.acme,
            pem_files: self.pem_files.into_iter().collect(),
        };
        Checked { compiled, diagnostics, left_out, included: self.reader.included, writes, files: self.reader.files }
    }

    /// One word on addresses that this machine does not have: the file may be for another one.
    fn other_machine(&mut self) {
        let local = self.local_addresses.get_or_insert_with(own_addresses::all);
        let top = self.snapshot.written.iter().flat_map(|w| &w.settings);
        let lines = top.chain(self.snapshot.vmtas.iter().flat_map(|v| &v.settings));
        let mut missing = Vec::new();
        for s in lines.filter(|s| is_source_host(s)) {
            let Value::Text(t) = &s.value else { continue };
            if let Ok((source_hosts::From::Ip(ip), _)) = source_hosts::parse(t)
                // The whole of 127/8 is this machine's.
                && !local.contains(&ip) && !ip.is_loopback()
            {
                missing.push(((s.file, s.line), ip));
            }
        }
        missing.sort_unstable();
        let Some((place, ip)) = missing.first().copied() else { return };
        let more =
            if missing.len() > 1 { format!(" ({} lines, the first is shown)", missing.len()) } else { String::new() };
        let message = format!("this machine does not have the address {ip}{more}");
        self.warning(
            self.line_at(place),
            "foreign-address",
            message,
            "on such a machine a reload with it is refused, and a start says so: mail from there waits",
        );
    }

    /// What groups of sources reserve is more than there is.
    fn reserved_places(&mut self) {
        let (total, mut reserved) = (self.snapshot.global.total_max_smtp_in, 0u64);
        for (n, at) in std::mem::take(&mut self.reserved_in) {
            reserved = reserved.saturating_add(n);
            if reserved > total {
                let message = format!(
                    "reserved-smtp-in asks for {reserved} connections, with the groups before; total-max-smtp-in is {total}"
                );
                return self.error(at, "bad-value", message, "reserve less, or raise total-max-smtp-in");
            }
        }
    }

    /// The web port is the one of a listener, or a challenge's is.
    fn clashing_ports(&mut self, statements: &[Statement]) {
        let of_challenge = self.acme.iter().flat_map(|a| &a.listeners).map(ToString::to_string);
        let taken = of_challenge.into_iter().find(|a| self.snapshot.listeners.iter().any(|l| l.address == *a));
        if let (Some(address), Some(at)) = (taken, self.acme_at) {
            let message = format!("<acme> answers challenges at {address}, which is an smtp-listener, too");
            self.error(at, "duplicate", message, "choose another port for one of them");
        }
        let Some(port) = self.out.http_port.filter(|p| *p > 0) else { return };
        let clashes = |l: &Listener| {
            l.address
                .parse::<std::net::SocketAddr>()
                .is_ok_and(|a| a.port() == port && (a.ip().is_loopback() || a.ip().is_unspecified()))
        };
        let Some(address) = self.snapshot.listeners.iter().find(|l| clashes(l)).map(|l| l.address.clone()) else {
            return;
        };
        if let Some(s) = statements.iter().rfind(|s| &*s.name == "http-mgmt-port") {
            let message = format!("port {port} is that of the listener {address}, too");
            self.error(s.value_at(), "duplicate", message, "choose another port for one of them");
        }
    }

    fn pools(&mut self) {
        let mut first: HashMap<u32, u32> = HashMap::new();
        let mut places: HashMap<(u32, u32), Span> = HashMap::new();
        let mut keyed: Vec<(u32, u32)> = Vec::new();
        for (pool, name, weight, at) in std::mem::take(&mut self.members) {
            let Some(vmta) = self.snapshot.vmta_by_name.get(&name.to_lowercase()).copied() else { continue };
            if let Some(before) = places.insert((pool, vmta), at) {
                let message = format!("{name} is a member of this pool twice: its weights add up");
                let d =
                    Diagnostic::warning(at, "duplicate", message, "keep one line, with weight=N for a larger share");
                self.reader.diagnostics.push(d.with(before, "the other line"));
            }
            self.snapshot.pools[pool as usize].members.push(PoolMember { vmta, weight });
            if !self.pool_domains.contains_key(&pool) {
                if !self.snapshot.pools[pool as usize].domain_keys.is_empty() {
                    keyed.push((vmta, pool));
                }
                continue;
            }
            match first.get(&vmta).copied() {
                Some(other) if other != pool => {
                    let other_at = self.pool_domains.get(&other).copied().unwrap_or_default();
                    let message =
                        format!("{name} is in two pools that have <domain> blocks, use-profile or max-smtp-… limits");
                    let d = Diagnostic::error(at, "two-pools", message, "keep those of one of them");
                    self.reader.diagnostics.push(d.with(other_at, "the other pool"));
                }
                _ => {
                    first.insert(vmta, pool);
                    self.snapshot.vmtas[vmta as usize].pool = Some(pool);
                }
            }
        }
        // Mail that came by another pool is signed by that one's keys all the same.
        for (vmta, pool) in keyed {
            self.snapshot.vmtas[vmta as usize].pool.get_or_insert(pool);
        }
    }

    /// Limits that a pool's block sets are those of each member that sets none itself.
    fn limits_of_members(&mut self) {
        let own = |v: &ipc::snapshot::VirtualMta| -> Vec<&'static str> {
            v.settings.iter().map(|s| directives::all()[usize::from(s.key)].name).collect()
        };
        for pool in &self.snapshot.pools {
            for s in &pool.settings {
                let name = directives::all()[usize::from(s.key)].name;
                for m in &pool.members {
                    let Some(v) = self.snapshot.vmtas.get_mut(m.vmta as usize).filter(|v| !own(v).contains(&name))
                    else {
                        continue;
                    };
                    match (name, &s.value) {
                        ("max-smtp-out", Value::Number(n)) => v.max_smtp_out = *n,
                        ("max-smtp-msg-rate", Value::Rate { count, per_ms }) => v.msg_rate = (*count, *per_ms),
                        ("max-smtp-data-volume-rate", Value::Rate { count, per_ms }) => {
                            v.data_volume_rate = (*count, *per_ms);
                        }
                        _ => {}
                    }
                }
            }
        }
    }

    /// `<domain>` blocks become layers. One written out beats one that a macro gave.
    fn domain_blocks(&mut self) {
        let published = self.receiver_profiles();
        let domains = std::mem::take(&mut self.domains);
        let mut similar = lint::Similar::default();
        let anywhere: HashSet<&str> = domains.iter().flat_map(|(_, s)| s.inside.iter().map(|i| &*i.name)).collect();
        let mut shadows = lint::Shadows::default();
        let mut everywhere: HashMap<Scope, Vec<&Statement>> = HashMap::new();
        for (scope, s) in domains.iter().filter(|(_, s)| &*s.value == "*") {
            everywhere.entry(*scope).or_default().push(s);
        }
        for (scope, s) in domains {
            self.repeated("domain", &s.inside);
            lint::domain(&mut self.reader.diagnostics, s, &anywhere);
            if let Some(of_all) = everywhere.get(&scope).filter(|_| &*s.value != "*") {
                lint::backoff_beside(&mut self.reader.diagnostics, s, of_all);
            }
            match scope {
                Scope::Vmta(_) => {
                    similar.note(s);
                    shadows.of_vmta(s);
                }
                Scope::Global => shadows.of_global(s),
                _ => {}
            }
            if scope != Scope::Global
                && let Some(line) = s.inside.iter().find(|i| &*i.name == "spread")
            {
                let message = "spread speaks for a destination over all its virtual MTAs";
                self.error(line.at, "misplaced", message, "write it in a <domain> outside of virtual MTAs and pools");
            }
            if scope == Scope::Global
                && &*s.value == "*"
                && self.snapshot.rollups.iter().any(|r| r.built_in)
                && let Some(d) = lint::shared_by_roll_up(&s.inside)
            {
                self.reader.diagnostics.push(d);
            }
            let settings = self.settings("domain", &s.inside);
            let named = if is_local(s) || s.value.contains('$') { Named::Collectively } else { Named::Itself };
            if named == Named::Collectively {
                self.layers.written_as(&s.value, &settings);
            }
            for pattern in self.patterns(s) {
                self.compare_with(&published, &pattern, &settings);
                self.list_in_place_of_profile(&pattern, &settings);
                self.roll_up_like(&pattern, &settings);
                self.layers.add(scope, named, &pattern, &settings);
            }
        }
        self.lists_in_place_of_profiles();
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
        if is_local(s) {
            return self.local_domains().iter().map(|d| pattern_key(d)).chain(["local".to_owned()]).collect();
        }
        match self.macros.expand(&s.value) {
            Ok(names) => {
                let mut all = Vec::with_capacity(names.len());
                for n in names {
                    match pattern(&n) {
                        Ok(()) => all.push(pattern_key(&n)),
                        Err(p) => self.problem(s, p),
                    }
                }
                all
            }
            Err(e) => {
                self.error(s.value_at(), "macro", e, "");
                Vec::new()
            }
        }
    }

    /// The machine's own name and every `host-name`.
    fn local_domains(&self) -> Vec<String> {
        let own = system_host_name();
        self.out.host_names.iter().filter(|n| **n != own).cloned().chain([own.clone()]).collect()
    }

    /// What is not in force and keeps mail of a virtual MTA back: its own lines go before those of its pools, and these before
    /// those of the top level.
    fn withheld_of_virtual_mtas(&mut self) {
        let top: Vec<Setting> =
            self.snapshot.written.iter().filter(|w| w.block.is_empty()).flat_map(|w| w.settings.clone()).collect();
        let of_pools = self.snapshot.pools.iter().filter(|p| p.settings.iter().any(is_key_in_vault));
        let signed_by_pool: HashSet<u32> = of_pools.flat_map(|p| p.members.iter().map(|m| m.vmta)).collect();
        // A list may be asked for by any message.
        let lists = self.snapshot.written.iter().filter(|w| w.block == "domain-key-list");
        let signed_by_all = top.iter().chain(lists.flat_map(|w| &w.settings)).any(is_key_in_vault);
        for (n, v) in self.snapshot.vmtas.iter_mut().enumerate() {
            let own = &v.settings;
            let in_vault = signed_by_all || signed_by_pool.contains(&(n as u32)) || own.iter().any(is_key_in_vault);
            // Addresses of its own stand in place of all of the top level.
            let has_sources = own.iter().any(is_source_host);
            let of_top = |name| asks_for(&top, name).unwrap_or_default();
            let all = [
                ("use-proxy", asks_for(own, "use-proxy").unwrap_or_else(|| of_top("use-proxy"))),
                (
                    "smtp-proxy-source-host",
                    asks_for(own, "smtp-proxy-source-host")
                        .unwrap_or_else(|| !has_sources && of_top("smtp-proxy-source-host")),
                ),
                ("domain-key (of Vault)", in_vault),
            ];
            let withheld = all.iter().find(|(_, asks)| *asks).map_or("", |(name, _)| name);
            withheld.clone_into(&mut v.withheld);
        }
    }

    fn defaults(&mut self, data_dir: &std::path::Path) {
        let local_domains = self.local_domains();
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
        g.local_domains = local_domains;
        g.host_name = host;
        g.run_dir = data_dir.join("run").display().to_string();
        g.data_dir = data_dir.display().to_string();
        if g.spools.is_empty() {
            g.spools.push(SpoolDirectory { path: "spool".into(), priority: 1, min_free_space: 0, deliver_only: false });
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
        // Receipts name the pool in place of the virtual MTA where one was chosen.
        let pools: Vec<String> = s.pools.iter().map(|p| p.name.clone()).collect();
        let shows_pool = |r: &RecordFields| r.record == "r" && r.fields.iter().any(|f| f == "vmtaPool");
        for a in s.accounting.iter_mut().filter(|a| a.fields.iter().any(shows_pool)) {
            a.pools.clone_from(&pools);
        }
        if self.out.dummy_port > 0 {
            let ip = self.out.dummy_ip.unwrap_or(std::net::Ipv4Addr::LOCALHOST.into());
            let address = std::net::SocketAddr::new(ip, self.out.dummy_port).to_string();
            s.global.dummy_smtp.address.clone_from(&address);
            if !s.listeners.iter().any(|l| l.address == address) {
                s.listeners.push(Listener { address, ..Listener::default() });
            }
        }
        // Wider networks first: what is narrower is applied over them. Named ones come last.
        s.sources.sort_by_key(|x| x.network.map_or(255, |n| n.bits));
    }
}

/// `<domain local>` speaks for all local domains.
fn is_local(s: &Statement) -> bool {
    s.value.eq_ignore_ascii_case("local")
}

fn system_host_name() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|n| n.into_string().ok())
        .unwrap_or_else(|| "localhost".into())
        .to_lowercase()
}

/// Whether the last line of a directive, if there is one, asks for something.
fn asks_for(settings: &[Setting], name: &str) -> Option<bool> {
    let last = settings.iter().rev().find(|s| directives::all()[usize::from(s.key)].name == name)?;
    Some(!directives::is_nothing(&last.value))
}

/// Whether a line as written is a `domain-key` whose key lies in Vault.
fn is_key_in_vault(s: &Setting) -> bool {
    let Value::Text(text) = &s.value else { return false };
    directives::all()[usize::from(s.key)].name == "domain-key" && composite::is_in_vault(text)
}

/// Whether a line as written is a `smtp-source-host`, by that or its old name.
fn is_source_host(s: &Setting) -> bool {
    directives::canonical(directives::all()[usize::from(s.key)].name) == "smtp-source-host"
}
