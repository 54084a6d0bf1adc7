//! Blocks at top level.

use ipc::layers::{Named, Profile, Scope};
use ipc::reply_rules::{ReplyList, ReplyRule};
use ipc::rules::{Setting, SourceKey, Value};
use ipc::snapshot::{BouncePattern, Pool, Source, SourceGroup, SpoolDirectory, VirtualMta};

use super::super::{composite, reply_rule};
use super::listener_lines::Lines;
use super::{Accepted, Compiler, Problem, Statement, Status, directives};

/// Blocks of one kind, but for those that there is one of for each domain, client or virtual MTA.
const BLOCKS_MAX: usize = 10_000;

/// Whether the value of a `cold-virtual-mta` is an address and a name.
fn is_old_cold_virtual_mta(value: &str) -> bool {
    value.split_whitespace().nth(1).is_some() && super::super::source_hosts::parse(value).is_ok()
}

impl<'s> Compiler<'s> {
    pub(super) fn block(&mut self, s: &'s Statement) {
        let Some(d) = directives::find(&s.name, "global") else { return self.unknown("global", s) };
        if d.status == Status::Ignored {
            return self.ignored(d, s);
        }
        let tag: &'static str = d.name.trim_matches(['<', '>']);
        if tag != "domain" {
            self.repeated(tag, &s.inside);
        }
        if !self.are_few(s, tag) {
            return;
        }
        if s.value.is_empty() && !d.unit.contains("unnamed") {
            return self.error(s.at, "missing-value", format!("{} needs a name: {}", s.name, d.unit), "");
        }
        match tag {
            "source" => self.source(s),
            "source-group" => self.source_group(s),
            "smtp-user" => self.smtp_user(s),
            "domain" => self.domains.push((Scope::Global, s)),
            "virtual-mta" => self.virtual_mta(s),
            "virtual-mta-pool" => self.pool(s),
            "spool" => self.spool(s),
            "acct-file" => self.accounting(s),
            "smtp-listener" => self.listener(s),
            "profile" => self.profile(s),
            "smtp-pattern-list" => self.reply_list(s),
            "pattern-list" => self.pattern_list(s),
            "domain-key-list" => self.domain_key_list(s),
            "address-list" | "suppression-list" => self.address_list(s),
            "bounce-category-patterns" => self.bounce_patterns(s),
            "mx-rollup-list" => self.rollup_list(s),
            "acme" => self.acme(s),
            "dns" => self.dns(s),
            "rewrite-list" => self.rewrite_list(s),
            "bounce-processor" | "feedback-loop-processor" => {
                self.pend(d, s);
                self.processor(tag, s);
            }
            "aliases" => {
                for i in &s.inside {
                    if let Some(Value::Text(t)) = self.check(tag, i).and_then(Accepted::in_force) {
                        self.alias(i, &t);
                    }
                }
            }
            _ => {
                self.pend(d, s);
                self.inside(tag, s);
            }
        }
    }

    /// Of some blocks each is compared with all before it.
    fn are_few(&mut self, s: &Statement, tag: &'static str) -> bool {
        let count = self.blocks.entry(tag).or_default();
        *count += 1;
        if *count <= BLOCKS_MAX || matches!(tag, "domain" | "source" | "virtual-mta" | "virtual-mta-pool") {
            return true;
        }
        self.error(s.at, "too-many-blocks", format!("more than {BLOCKS_MAX} blocks <{tag}>"), "");
        false
    }

    /// Checks what is inside a block that is not in force yet.
    fn inside(&mut self, tag: &'static str, s: &'s Statement) {
        s.inside.iter().for_each(|i| self.inside_one(tag, i));
        if tag == "proxy" {
            for part in ["server", "client"] {
                if !s.inside.iter().any(|i| *i.name == *part) {
                    self.error(
                        s.at,
                        "missing-directive",
                        format!("<proxy {}> has no {part}", &*s.value),
                        "add the line",
                    );
                }
            }
        }
    }

    pub(super) fn inside_one(&mut self, tag: &'static str, s: &'s Statement) {
        if !s.name.starts_with('<') {
            drop(self.check(tag, s));
            return;
        }
        match directives::find(&s.name, tag) {
            Some(d) => self.inside(d.name.trim_matches(['<', '>']), s),
            None => self.unknown(tag, s),
        }
    }

    /// `<smtp-pattern-list>`
    fn reply_list(&mut self, s: &Statement) {
        let mut rules = Vec::with_capacity(s.inside.len());
        for i in &s.inside {
            if let Some(Value::Text(t)) = self.check("smtp-pattern-list", i).and_then(Accepted::in_force) {
                rules.extend(self.reply_rule(i, &t));
            }
        }
        self.add_reply_rules(&s.value, rules);
    }

    /// `<bounce-category-patterns>`
    fn bounce_patterns(&mut self, s: &Statement) {
        for i in &s.inside {
            if let Some(Value::Text(category)) = self.check("bounce-category-patterns", i).and_then(Accepted::in_force)
            {
                let Some(expression) = i.name.strip_prefix('/').and_then(|n| n.strip_suffix('/')) else { continue };
                if expression.is_empty() {
                    let message = "// matches every reply: neither lines below nor the rules that come with the program are asked";
                    self.warning(
                        i.at,
                        "catch-all",
                        message,
                        "remove it to have other replies classified by those rules",
                    );
                }
                if let Err(e) = worker::classify::expression::compile(expression) {
                    self.error(i.at, "bad-value", format!("/{expression}/ is no regular expression: {e}"), "");
                    continue;
                }
                let pattern =
                    BouncePattern { expression: expression.to_owned(), category, file: i.at.file, line: i.at.line };
                self.snapshot.bounce_patterns.push(pattern);
            }
        }
    }

    /// A rule whose expression is known to be one.
    pub(super) fn reply_rule(&mut self, s: &Statement, text: &str) -> Option<ReplyRule> {
        match reply_rule::read(text) {
            Ok(rule) => {
                if rule.actions.is_empty() {
                    self.warning(s.at, "no-effect", "a pattern without an action does nothing", "");
                }
                Some(ReplyRule { file: s.at.file, line: s.at.line, ..rule })
            }
            Err(p) => {
                self.problem(s, p);
                None
            }
        }
    }

    /// Adds rules to a list; one that is defined again goes on.
    pub(super) fn add_reply_rules(&mut self, name: &str, rules: Vec<ReplyRule>) {
        let name = name.to_lowercase();
        match self.snapshot.reply_lists.iter_mut().find(|l| l.name == name) {
            Some(list) => list.rules.extend(rules),
            None => self.snapshot.reply_lists.push(ReplyList { name, rules }),
        }
    }

    fn listener(&mut self, s: &'s Statement) {
        let (mut source, mut lines) = (String::new(), Lines::default());
        for i in &s.inside {
            if let Some(value) = self.check("smtp-listener", i).and_then(Accepted::in_force) {
                match &*i.name {
                    "source" => source = i.value.to_string(),
                    "tls-certificate" => lines.certificates.extend(self.certificate(i)),
                    "tls-ca-file" => lines.ca_file = self.issuers(i),
                    name => lines.take(name, value),
                }
            }
        }
        match composite::listener(&s.value) {
            Ok((listen, None)) => self.listeners.add(s.value_at(), listen, source, lines),
            Ok(_) => self.problem(s, Problem::expected("IP:PORT alone; source is a line inside", &s.value)),
            Err(p) => self.problem(s, p),
        }
    }

    fn source(&mut self, s: &'s Statement) {
        let network = ipc::network::parse(&s.value);
        let looks_like_one = s.value.contains(['/', ':']) || s.value.starts_with(|c: char| c.is_ascii_digit());
        match composite::network(&s.value) {
            // What stands in braces is a name, whatever it is: {auth}, {/var/spool/pickup}.
            Err(_) if s.value.starts_with('{') && s.value.ends_with('}') => {}
            Err(p) if looks_like_one => {
                self.problem(s, p.help("each range or address is a block of its own; names begin with a letter"));
            }
            Err(_) => self.block_name("source", s),
            Ok(()) => self.host_bits(s),
        }
        let (mut settings, mut flags) = (Vec::new(), Vec::new());
        for i in &s.inside {
            let (file, line) = (i.at.file, i.at.line);
            let accepted = self.check("source", i).and_then(Accepted::in_force);
            if let (Some(value), Some(key)) = (accepted, SourceKey::named(&i.name)) {
                if let Value::Flag(yes) = value {
                    flags.push((key, yes, i.at));
                }
                settings.push(Setting { key: key as u16, file, line, value });
            }
        }
        self.auth.take(&flags);
        let name = if network.is_some() { String::new() } else { s.value.to_lowercase() };
        self.snapshot.sources.push(Source { network, name, settings });
    }

    /// `<source-group>`
    fn source_group(&mut self, s: &'s Statement) {
        self.block_name("source group", s);
        let mut group = SourceGroup { name: s.value.to_lowercase(), max_smtp_in: 0, reserved_smtp_in: 0 };
        for i in &s.inside {
            match (&*i.name, self.check("source-group", i).and_then(Accepted::in_force)) {
                ("max-smtp-in", Some(Value::Number(n))) => group.max_smtp_in = n,
                ("reserved-smtp-in", Some(Value::Number(n))) => group.reserved_smtp_in = n,
                _ => {}
            }
        }
        if group.max_smtp_in > 0 && group.reserved_smtp_in > group.max_smtp_in {
            let message = format!("reserved-smtp-in of <source-group {}> is above its max-smtp-in", &*s.value);
            self.warning(s.at, "no-effect", message, "what is reserved beyond max-smtp-in serves nobody");
        }
        self.reserved_in.push((group.reserved_smtp_in, s.at));
        self.snapshot.source_groups.push(group);
    }

    /// Names that commands and queue names can carry.
    fn block_name(&mut self, kind: &str, s: &Statement) {
        let reserved = s.value.starts_with('{') || s.value.eq_ignore_ascii_case("by-smtp-source-ip");
        let problem = if reserved && kind != "source" {
            Problem::other(format!("{} is reserved", &*s.value))
        } else if s.value.contains(|c: char| c.is_whitespace() || "/*,;=\"'<>@".contains(c)) {
            Problem::expected("a name without blanks and without any of / * , ; = @ and quotes", &s.value)
        } else {
            return;
        };
        self.problem(s, Problem { message: format!("the name of a {kind}: {}", problem.message), ..problem });
    }

    /// `10.1.2.3/8` is all of `10.0.0.0/8`, and somebody may have meant the address.
    fn host_bits(&mut self, s: &Statement) {
        let Some((ip, bits)) = s.value.split_once('/') else { return };
        let Some((one, net)) = ipc::network::parse(ip).zip(ipc::network::parse(&s.value)) else { return };
        if net.base != one.base {
            let message = format!("{} is all of {net}: {ip} has more than {bits} bits", &*s.value);
            self.warning(s.value_at(), "host-bits", message, format!("write {net}, or {ip}, whichever is meant"));
        }
    }

    fn virtual_mta(&mut self, s: &'s Statement) {
        self.block_name("virtual MTA", s);
        let (vmtas, names) = (&mut self.snapshot.vmtas, &mut self.snapshot.vmta_by_name);
        let index = *names.entry(s.value.to_lowercase()).or_insert_with(|| {
            vmtas.push(VirtualMta { name: s.value.to_string(), ..Default::default() });
            vmtas.len() as u32 - 1
        });
        for i in &s.inside {
            if &*i.name == "<domain>" {
                self.domains.push((Scope::Vmta(index), i));
                continue;
            }
            if &*i.name == "cold-virtual-mta" && is_old_cold_virtual_mta(&i.value) {
                self.old_cold_virtual_mta(i);
                continue;
            }
            let Some(a) = self.check("virtual-mta", i) else { continue };
            if &*i.name == "use-profile" {
                self.use_profile_everywhere(Scope::Vmta(index), i);
                continue;
            }
            let written = a.as_written(i);
            self.snapshot.vmtas[index as usize].settings.push(written);
            match (&*i.name, a.in_force()) {
                ("smtp-source-host" | "smtp-source-ip", Some(Value::Text(t))) => {
                    let hosts = self.source_hosts(i, &t);
                    self.snapshot.vmtas[index as usize].source_hosts.extend(hosts);
                }
                ("host-name", Some(Value::Text(t))) => self.snapshot.vmtas[index as usize].host_name = t,
                ("include-headers-from", Some(Value::Text(path))) => {
                    self.snapshot.vmtas[index as usize].included_headers = self.included_headers(i, &path);
                }
                ("rewrite-list", Some(Value::Text(name))) => {
                    self.snapshot.vmtas[index as usize].rewrite_list = Some(name.to_lowercase());
                }
                ("domain-key", Some(Value::Text(t))) => {
                    let keys = self.domain_keys(i, &t);
                    self.snapshot.vmtas[index as usize].domain_keys.extend(keys);
                }
                ("max-smtp-out", Some(Value::Number(n))) => self.snapshot.vmtas[index as usize].max_smtp_out = n,
                ("max-smtp-msg-rate", Some(Value::Rate { count, per_ms })) => {
                    self.snapshot.vmtas[index as usize].msg_rate = (count, per_ms);
                }
                ("max-smtp-data-volume-rate", Some(Value::Rate { count, per_ms })) => {
                    self.snapshot.vmtas[index as usize].data_volume_rate = (count, per_ms);
                }
                _ => {}
            }
        }
    }

    /// `cold-virtual-mta ADDRESS HOST` made a virtual MTA that nobody saw, until PowerMTA 4.5.
    fn old_cold_virtual_mta(&mut self, s: &Statement) {
        let message = "cold-virtual-mta with an address and a name has no effect: PowerMTA 4.5 did away with this form";
        self.warning(s.value_at(), "ignored", message, "define a <virtual-mta> of them and name it here");
    }

    /// `use-profile` beside `<domain>` blocks holds for every destination.
    fn use_profile_everywhere(&mut self, scope: Scope, s: &Statement) {
        if let Some(used) = self.used_profile(s) {
            self.layers.add(scope, Named::Itself, "*", &[used]);
        }
    }

    fn pool(&mut self, s: &'s Statement) {
        let key = s.value.to_lowercase();
        if let Some(at) = self.names.place("virtual-mta", &key) {
            let message = format!("{:?} names a pool and a virtual MTA", &*s.value);
            let d =
                super::Diagnostic::error(s.value_at(), "duplicate", message, "both share one name space: rename one");
            self.reader.diagnostics.push(d.with(at, "the virtual MTA"));
        }
        self.block_name("pool", s);
        let (pools, names) = (&mut self.snapshot.pools, &mut self.snapshot.pool_by_name);
        let index = *names.entry(key).or_insert_with(|| {
            pools.push(Pool { name: s.value.to_string(), ..Default::default() });
            pools.len() as u32 - 1
        });
        let mut members = 0;
        for i in &s.inside {
            match &*i.name {
                "<domain>" => {
                    self.pool_domains.entry(index).or_insert(s.at);
                    self.domains.push((Scope::Pool(index), i));
                }
                "virtual-mta" => {
                    members += 1;
                    self.member(index, i);
                }
                "use-profile" => {
                    if self.check("virtual-mta-pool", i).is_some() {
                        self.pool_domains.entry(index).or_insert(s.at);
                        self.use_profile_everywhere(Scope::Pool(index), i);
                    }
                }
                _ => {
                    if let Some(a) = self.check("virtual-mta-pool", i) {
                        if i.name.starts_with("max-smtp-") {
                            // A member can have one limit only.
                            self.pool_domains.entry(index).or_insert(s.at);
                        }
                        self.snapshot.pools[index as usize].settings.push(a.as_written(i));
                        match (&*i.name, a.in_force()) {
                            ("domain-key", Some(Value::Text(t))) => {
                                let keys = self.domain_keys(i, &t);
                                self.snapshot.pools[index as usize].domain_keys.extend(keys);
                            }
                            ("rewrite-list", Some(Value::Text(name))) => {
                                self.snapshot.pools[index as usize].rewrite_list = name.to_lowercase();
                            }
                            ("include-headers-from", Some(Value::Text(path))) => {
                                self.snapshot.pools[index as usize].included_headers = self.included_headers(i, &path);
                            }
                            _ => {}
                        }
                    }
                }
            }
        }
        if members == 0 && self.snapshot.pools[index as usize].members.is_empty() {
            let message = format!("pool {} has no virtual-mta", &*s.value);
            self.error(s.at, "empty-pool", message, "add virtual-mta NAME inside");
        }
    }

    fn member(&mut self, pool: u32, s: &'s Statement) {
        let mut words = s.value.split_whitespace();
        let name = words.next().unwrap_or_default().to_owned();
        if name.is_empty() {
            return self.problem(s, Problem::other("argument missing"));
        }
        let weight = match (words.next().map(|w| w.split_once('=')), words.next()) {
            (None, _) => Ok(1),
            (Some(Some((key, n))), None) if key.eq_ignore_ascii_case("weight") => match n.parse() {
                Ok(0) | Err(_) => Err(Problem::expected("a weight of at least 1", n)),
                Ok(n) => Ok(n),
            },
            _ => Err(Problem::expected("NAME [weight=N]", &s.value)),
        };
        let weight = match weight {
            Ok(n) => n,
            Err(p) => return self.problem(s, p),
        };
        self.reference("virtual-mta", &name, s, "virtual-mta-pool");
        self.members.push((pool, name, weight, s.value_at()));
    }

    fn spool(&mut self, s: &'s Statement) {
        let mut d = SpoolDirectory { path: s.value.to_string(), priority: 1, min_free_space: 0, deliver_only: false };
        for i in &s.inside {
            match (&*i.name, self.check("spool", i).and_then(Accepted::in_force)) {
                ("priority", Some(Value::Number(n))) => d.priority = n as u32,
                ("min-free-space", Some(Value::Number(n))) => d.min_free_space = n,
                ("deliver-only", Some(Value::Flag(b))) => d.deliver_only = b,
                _ => {}
            }
        }
        if self.snapshot.global.spools.iter().any(|o| o.path == d.path) {
            return self.error(
                s.value_at(),
                "duplicate",
                format!("spool {} is given twice", d.path),
                "remove one of them",
            );
        }
        self.writes_to(s, &d.path);
        self.snapshot.global.spools.push(d);
    }

    fn profile(&mut self, s: &'s Statement) {
        let name = s.value.to_lowercase();
        let Some(n) = self.names.profiles.get(&name).copied() else { return };
        let settings = self.settings("profile", &s.inside);
        while self.layers.profiles.len() <= n {
            self.layers.profiles.push(Profile::default());
        }
        let loops = settings.iter().any(|x| {
            x.key == ipc::layers::USE_PROFILE && matches!(x.value, Value::Number(used) if self.leads_to(used, n as u64))
        });
        if loops {
            return self.error(s.at, "profile-loop", format!("profile {} uses itself", &*s.value), "");
        }
        let p = &mut self.layers.profiles[n];
        p.name = s.value.to_string();
        p.settings.extend(settings);
        // Lines beat the profiles that it uses, wherever they stand.
        p.settings.sort_by_key(|s| s.key != ipc::layers::USE_PROFILE);
    }

    /// Whether profile `from` is `to` or uses it, as far as profiles have been read.
    fn leads_to(&self, from: u64, to: u64) -> bool {
        let uses = |p: &Profile| -> Vec<u64> {
            let used = p.settings.iter().filter(|s| s.key == ipc::layers::USE_PROFILE);
            used.filter_map(|s| if let Value::Number(n) = s.value { Some(n) } else { None }).collect()
        };
        let (mut seen, mut next) = (vec![from], vec![from]);
        while let Some(n) = next.pop() {
            if n == to {
                return true;
            }
            for used in self.layers.profiles.get(n as usize).map(uses).unwrap_or_default() {
                if !seen.contains(&used) {
                    seen.push(used);
                    next.push(used);
                }
            }
        }
        false
    }
}
