//! `<mx-rollup-list>` and `mx-rollup` to the queues that domains join by their mail hosts.

use ipc::rollup::Rollup;
use ipc::rules::{DomainKey, Setting, Value};

use super::{Accepted, Compiler, Statement, pattern_key};

/// Queues that domains join by their mail hosts: each line is compared with those before it.
const ROLLUPS_MAX: usize = 10_000;

impl Compiler<'_> {
    /// A list of the operator's.
    pub(super) fn rollup_list(&mut self, s: &Statement) {
        for i in &s.inside {
            if let Some(Value::Text(line)) = self.check("mx-rollup-list", i).and_then(Accepted::in_force) {
                if self.snapshot.rollups.len() >= ROLLUPS_MAX {
                    let message = format!("more than {ROLLUPS_MAX} queues that domains join");
                    self.error(i.at, "too-many-queues", message, "");
                    continue;
                }
                self.roll_up(&line, false);
            }
        }
    }

    /// `HOST QUEUE.rollup [rollup-by-ip]`. Hosts of one queue belong together.
    pub(super) fn roll_up(&mut self, line: &str, built_in: bool) {
        let mut words = line.split_whitespace();
        let (Some(host), Some(queue)) = (words.next().map(pattern_key), words.next()) else { return };
        let queue = pattern_key(queue.trim_matches('"'));
        let by_ip = words.next().is_some();
        let is_pattern = host.contains('*');
        let all = &mut self.snapshot.rollups;
        let same = |r: &&mut Rollup| {
            r.queue == queue && r.by_ip == by_ip && r.built_in == built_in && r.hosts.is_empty() == is_pattern
        };
        match all.iter_mut().filter(|r| r.like.is_empty()).find(same) {
            Some(r) if is_pattern => r.patterns.push(host),
            Some(r) => r.hosts.push(host),
            None => {
                let (hosts, patterns) = if is_pattern { (Vec::new(), vec![host]) } else { (vec![host], Vec::new()) };
                all.push(Rollup { queue, hosts, patterns, by_ip, built_in, like: String::new() });
            }
        }
    }

    /// `mx-rollup DESTINATION` in `<domain D>`: domains with D's mail hosts, and D, join it.
    pub(super) fn roll_up_like(&mut self, pattern: &str, settings: &[Setting]) {
        let of = settings.iter().rev().find(|s| s.key == DomainKey::MxRollup as u16);
        let Some((s, Value::Text(queue))) = of.map(|s| (s, &s.value)) else { return };
        if pattern.contains('*') || pattern.starts_with('[') {
            let at = self.line_at((s.file, s.line));
            let message = format!("mx-rollup has no effect in <domain {pattern}>: the mail hosts of one domain count");
            return self.warning(at, "no-effect", message, "name the domain whose hosts the others share");
        }
        let queue = pattern_key(queue);
        self.snapshot.rollups.push(Rollup { queue, like: pattern.to_owned(), ..Default::default() });
    }
}
