//! `<domain>` blocks in layers, and which of their settings are in force for a path.
//!
//! Every directive stands here once, wherever it applies: memory follows the lines of the
//! configuration, not virtual MTAs × domains, and a path is resolved when it is first used.

#![allow(missing_docs)] // for what derive(Archive) generates beside the documented types

use std::collections::BTreeMap;

use rkyv::{Archive, Deserialize, Serialize};

use crate::rules::{ArchivedSetting, ArchivedValue, Setting, Value};

/// Key of a setting that lets a `<profile>` take effect in its place; its value is the
/// profile's index.
pub const USE_PROFILE: u16 = u16::MAX;

/// An index that no virtual MTA has: that of a virtual MTA that does not exist. Only what stands
/// above virtual MTAs counts for it.
pub const NO_VMTA: u32 = u32::MAX >> 2;

/// Profiles that may be nested in each other.
const PROFILE_DEPTH_MAX: usize = 8;

/// Where a `<domain>` block stands, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// A receiver profile that comes with the program.
    BuiltIn,
    /// At top level.
    Global,
    /// In the pool of this index.
    Pool(u32),
    /// In the virtual MTA of this index.
    Vmta(u32),
}

impl Scope {
    /// A number that no other scope has.
    fn code(self) -> u32 {
        match self {
            Scope::BuiltIn => 0,
            Scope::Global => 1,
            // A damaged snapshot may name an index that none has.
            Scope::Pool(i) => i.saturating_mul(2).saturating_add(2),
            Scope::Vmta(i) => i.saturating_mul(2).saturating_add(3),
        }
    }
}

/// A block: its settings lie at `first..first + count`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Archive, Serialize, Deserialize)]
struct Block {
    pattern: u32,
    scope: u32,
    first: u32,
    count: u32,
}

/// A `<profile>`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Profile {
    /// Name as written.
    pub name: String,
    /// What it sets, in order.
    pub settings: Vec<Setting>,
}

/// All `<domain>` blocks of a configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Layers {
    /// Patterns, sorted.
    patterns: Vec<String>,
    /// Blocks by pattern and scope, sorted; one for each.
    blocks: Vec<Block>,
    settings: Vec<Setting>,
    /// Lines of blocks whose parameter stands for several names, by file and line, and that
    /// parameter.
    collective: BTreeMap<(u16, u32), String>,
    /// `<profile>`s.
    pub profiles: Vec<Profile>,
}

impl Layers {
    /// Every value of a directive whose values are text, wherever it is written.
    pub fn texts(&self, key: u16) -> impl Iterator<Item = &str> {
        let all = self.settings.iter().chain(self.profiles.iter().flat_map(|p| &p.settings));
        all.filter(move |s| s.key == key).filter_map(|s| match &s.value {
            Value::Text(t) => Some(t.as_str()),
            _ => None,
        })
    }
}

/// How a block names the destination that it speaks for, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Named {
    /// With a macro, or as one of the local domains.
    Collectively,
    /// By the pattern itself.
    Itself,
}

/// Gathers blocks in any order.
#[derive(Debug, Default)]
pub struct LayersBuilder {
    blocks: BTreeMap<String, BTreeMap<(Scope, Named), Vec<Setting>>>,
    collective: BTreeMap<(u16, u32), String>,
    /// `<profile>`s.
    pub profiles: Vec<Profile>,
}

impl LayersBuilder {
    /// Adds settings to the block of `pattern` in `scope`. Blocks of one pattern are one block,
    /// in which later lines beat earlier ones, and all of them the profiles that it uses.
    pub fn add(&mut self, scope: Scope, named: Named, pattern: &str, settings: &[Setting]) {
        if !self.blocks.contains_key(pattern) {
            self.blocks.insert(pattern.to_owned(), BTreeMap::new());
        }
        if let Some(scopes) = self.blocks.get_mut(pattern) {
            let all = scopes.entry((scope, named)).or_default();
            all.reserve_exact(settings.len());
            let mut profiles = all.iter().take_while(|s| s.key == USE_PROFILE).count();
            for s in settings {
                if s.key == USE_PROFILE {
                    all.insert(profiles, s.clone());
                    profiles += 1;
                } else {
                    all.push(s.clone());
                }
            }
        }
    }

    /// Notes how the block of these settings is written, when that is not the patterns that it
    /// was added under.
    pub fn written_as(&mut self, parameter: &str, settings: &[Setting]) {
        self.collective.extend(settings.iter().map(|s| ((s.file, s.line), parameter.to_owned())));
    }

    /// The settings of each block that an operator wrote.
    pub fn blocks(&self) -> impl Iterator<Item = &[Setting]> {
        let all = self.blocks.values().flatten();
        all.filter(|((scope, _), _)| *scope != Scope::BuiltIn).map(|(_, settings)| settings.as_slice())
    }

    /// Patterns of blocks at top level that set a directive whose value is a number, most
    /// specific first.
    pub fn numbers(&self, key: u16) -> Vec<(String, u64)> {
        let mut all = Vec::new();
        for (pattern, scopes) in &self.blocks {
            let mut last = None;
            for (_, settings) in scopes.iter().filter(|((scope, _), _)| *scope == Scope::Global) {
                settings.iter().for_each(|s| last = self.number(s, key, 0).or(last));
            }
            all.extend(last.map(|n| (pattern.clone(), n)));
        }
        // As `matching_patterns` orders them: by suffix, and of one suffix the narrower.
        let rank = |p: &str| match p {
            "*" => (0, 0),
            _ => match (p.strip_prefix("[*.]"), p.strip_prefix("*.")) {
                (Some(suffix), _) => (suffix.len(), 1),
                (_, Some(suffix)) => (suffix.len(), 2),
                _ => (usize::MAX, 3),
            },
        };
        all.sort_by_key(|(p, _)| std::cmp::Reverse(rank(p)));
        all
    }

    fn number(&self, s: &Setting, key: u16, depth: usize) -> Option<u64> {
        match s.value {
            Value::Number(n) if s.key == key => Some(n),
            Value::Number(n) if s.key == USE_PROFILE && depth < PROFILE_DEPTH_MAX => {
                let settings = self.profiles.get(n as usize).map_or(&[][..], |p| &p.settings);
                settings.iter().fold(None, |last, s| self.number(s, key, depth + 1).or(last))
            }
            _ => None,
        }
    }

    /// The layers as the snapshot holds them.
    pub fn build(self) -> Layers {
        let mut all = Layers { profiles: self.profiles, collective: self.collective, ..Layers::default() };
        for (pattern, scopes) in self.blocks {
            let number = all.patterns.len() as u32;
            all.patterns.push(pattern);
            let at = all.blocks.len();
            for ((scope, _), settings) in scopes {
                let first = all.settings.len() as u32;
                let count = settings.len() as u32;
                all.settings.extend(settings);
                match all.blocks[at..].last_mut() {
                    // What is named itself lies behind what is named collectively, and beats it.
                    Some(b) if b.scope == scope.code() => b.count += count,
                    _ => all.blocks.push(Block { pattern: number, scope: scope.code(), first, count }),
                }
            }
            all.blocks[at..].sort_unstable();
        }
        all
    }
}

impl ArchivedLayers {
    fn pattern(&self, pattern: &str) -> Option<u32> {
        self.patterns.binary_search_by(|p| p.as_str().cmp(pattern)).ok().map(|i| i as u32)
    }

    fn block(&self, pattern: u32, scope: Scope) -> &[ArchivedSetting] {
        let wanted = (pattern, scope.code());
        let found = self.blocks.binary_search_by_key(&wanted, |b| (b.pattern.to_native(), b.scope.to_native()));
        let Some(b) = found.ok().and_then(|i| self.blocks.get(i)) else { return &[] };
        let (first, count) = (b.first.to_native() as usize, b.count.to_native() as usize);
        self.settings.get(first..first.saturating_add(count)).unwrap_or(&[])
    }

    /// Calls `each` with the settings that apply to `destination`, weakest first, and the
    /// scope, pattern and profiles that they stand in.
    ///
    /// Scope comes before specificity: the virtual MTA's own `<domain *>` beats the global
    /// block that names the destination.
    pub fn each<'a>(
        &'a self,
        destination: &str,
        pool: Option<u32>,
        vmta: u32,
        mut each: impl FnMut(Scope, &str, Option<&'a ArchivedProfile>, &'a ArchivedSetting),
    ) {
        let patterns: Vec<(u32, String)> = matching_patterns(destination)
            .into_iter()
            .filter_map(|p| self.pattern(&p).map(|n| (n, p)))
            .chain(self.literals(destination))
            .collect();
        let scopes = [Some(Scope::BuiltIn), Some(Scope::Global), pool.map(Scope::Pool), Some(Scope::Vmta(vmta))];
        for scope in scopes.into_iter().flatten() {
            for (number, pattern) in &patterns {
                for s in self.block(*number, scope) {
                    self.unfold(s, None, 0, &mut |profile, s| each(scope, pattern, profile, s));
                }
            }
        }
    }

    /// Patterns of address literals that contain `destination`, wider networks first.
    fn literals(&self, destination: &str) -> Vec<(u32, String)> {
        let Some(ip) = destination.strip_prefix('[').and_then(|d| d.strip_suffix(']')) else { return Vec::new() };
        let Some(ip) = crate::message::parse_literal(ip) else { return Vec::new() };
        let candidates = self.patterns.iter().enumerate().filter(|(_, p)| p.starts_with('[') && p.contains('/'));
        let mut found: Vec<(u8, u32, String)> = candidates
            .filter_map(|(i, p)| {
                let network = crate::network::parse(p.strip_prefix('[')?.strip_suffix(']')?)?;
                network.contains(ip).then(|| (network.bits, i as u32, p.as_str().to_owned()))
            })
            .collect();
        found.sort_unstable();
        found.into_iter().map(|(_, i, p)| (i, p)).collect()
    }

    fn unfold<'a>(
        &'a self,
        s: &'a ArchivedSetting,
        inside: Option<&'a ArchivedProfile>,
        depth: usize,
        each: &mut dyn FnMut(Option<&'a ArchivedProfile>, &'a ArchivedSetting),
    ) {
        if s.key.to_native() != USE_PROFILE {
            return each(inside, s);
        }
        let ArchivedValue::Number(n) = &s.value else { return };
        let Some(profile) = self.profiles.get(n.to_native() as usize).filter(|_| depth < PROFILE_DEPTH_MAX) else {
            return;
        };
        profile.settings.iter().for_each(|s| self.unfold(s, Some(profile), depth + 1, each));
    }

    /// The parameter of the block that a setting stands in, where it is not the pattern.
    pub fn parameter(&self, setting: &ArchivedSetting) -> Option<&str> {
        let place = rkyv::tuple::ArchivedTuple2(setting.file, setting.line);
        self.collective.get(&place).map(|p| p.as_str())
    }

    /// Every value of a directive whose values are text, wherever it is written.
    pub fn texts(&self, key: u16) -> impl Iterator<Item = &str> {
        let all = self.settings.iter().chain(self.profiles.iter().flat_map(|p| p.settings.iter()));
        all.filter(move |s| s.key == key).filter_map(|s| match &s.value {
            ArchivedValue::Text(t) => Some(t.as_str()),
            _ => None,
        })
    }

    /// Every pattern that is written somewhere, with the scopes that are asked about.
    pub fn patterns(&self) -> impl Iterator<Item = &str> {
        self.patterns.iter().map(|p| p.as_str())
    }

    /// Whether an operator's block speaks for `destination` other than by `*`.
    pub fn names(&self, destination: &str) -> bool {
        let operators = |n: u32| {
            let from = self.blocks.partition_point(|b| b.pattern.to_native() < n);
            let here = self.blocks[from..].iter().take_while(|b| b.pattern.to_native() == n);
            here.into_iter().any(|b| b.scope.to_native() != Scope::BuiltIn.code())
        };
        let patterns = matching_patterns(destination);
        patterns.iter().filter(|p| *p != "*").filter_map(|p| self.pattern(p)).any(operators)
    }

    /// Whether some virtual MTA has a block of this pattern.
    pub fn has_vmtas(&self, pattern: &str) -> bool {
        let Some(n) = self.pattern(pattern) else { return false };
        let from = self.blocks.partition_point(|b| b.pattern.to_native() < n);
        let here = self.blocks[from..].iter().take_while(|b| b.pattern.to_native() == n);
        // Codes of virtual MTAs are odd, from 3 on.
        here.into_iter().any(|b| b.scope.to_native() >= 3 && b.scope.to_native() % 2 == 1)
    }

    /// The block of a pattern in one scope, as written.
    pub fn written(&self, pattern: &str, scope: Scope) -> &[ArchivedSetting] {
        self.pattern(pattern).map_or(&[], |n| self.block(n, scope))
    }
}

/// The patterns that match `destination`, least specific first: `*`, then by growing suffix
/// `[*.]suffix` before `*.suffix`, then the name itself.
pub fn matching_patterns(destination: &str) -> Vec<String> {
    let mut all = vec!["*".to_owned()];
    if !destination.starts_with('[') {
        let labels: Vec<&str> = destination.split('.').collect();
        for i in (1..labels.len()).rev() {
            let suffix = labels[i..].join(".");
            all.push(format!("[*.]{suffix}"));
            all.push(format!("*.{suffix}"));
        }
        all.push(format!("[*.]{destination}"));
    }
    all.push(destination.to_owned());
    all
}

/// Whether a domain pattern (`*`, `name`, `*.name`, `[*.]name`) matches `domain`.
pub fn pattern_matches(pattern: &str, domain: &str) -> bool {
    let below = |of: &str| domain.strip_suffix(of).is_some_and(|labels| labels.ends_with('.'));
    if pattern == "*" || pattern == domain {
        return true;
    }
    if domain.starts_with('[') {
        return false;
    }
    match pattern.strip_prefix("[*.]") {
        Some(of) => of == domain || below(of),
        None => pattern.strip_prefix("*.").is_some_and(below),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn setting(key: u16, n: u64) -> Setting {
        Setting { key, file: 0, line: 0, value: Value::Number(n) }
    }

    /// Value of key 0 in force, by the layers and by what they stand for.
    fn resolved(
        all: &[(Scope, String, Vec<Setting>)],
        destination: &str,
        pool: Option<u32>,
        vmta: u32,
    ) -> [Option<u64>; 2] {
        let mut b = LayersBuilder::default();
        all.iter().for_each(|(scope, pattern, s)| b.add(*scope, Named::Itself, pattern, s));
        let bytes = crate::frame::archive(&b.build());
        let layers = rkyv::access::<ArchivedLayers, rkyv::rancor::Error>(&bytes).expect("just archived");
        let mut by_layers = None;
        layers.each(destination, pool, vmta, |_, _, _, s| {
            if let ArchivedValue::Number(n) = &s.value {
                by_layers = Some(n.to_native());
            }
        });
        // Rank of each block by the rules' own words; the highest that matches wins.
        let rank = |scope: Scope, pattern: &str| {
            let level = match scope {
                Scope::BuiltIn => 0,
                Scope::Global => 1,
                Scope::Pool(i) => (Some(i) == pool).then_some(2)?,
                Scope::Vmta(i) => (i == vmta).then_some(3)?,
            };
            let (form, suffix) = match pattern {
                "*" => (0, ""),
                p => match (p.strip_prefix("[*.]"), p.strip_prefix("*.")) {
                    (Some(s), _) => (1, s),
                    (_, Some(s)) => (2, s),
                    _ => (3, p),
                },
            };
            let below = destination.strip_suffix(suffix).is_some_and(|rest| rest.ends_with('.'));
            let matches = match form {
                0 => true,
                1 => destination == suffix || below,
                2 => below,
                _ => destination == suffix,
            };
            matches.then_some((level, suffix.len(), form))
        };
        let best = all.iter().enumerate().filter_map(|(i, (scope, p, s))| Some((rank(*scope, p)?, i, s.last()?)));
        let naive = best.max_by_key(|(r, i, _)| (*r, *i)).map(|(_, _, s)| match s.value {
            Value::Number(n) => n,
            _ => 0,
        });
        [by_layers, naive]
    }

    fn scope() -> impl Strategy<Value = Scope> {
        prop_oneof![
            Just(Scope::BuiltIn),
            Just(Scope::Global),
            (0u32..2).prop_map(Scope::Pool),
            (0u32..3).prop_map(Scope::Vmta)
        ]
    }

    proptest! {
        #[test]
        fn precedence_is_what_the_reference_says(
            blocks in proptest::collection::vec((scope(), "(\\*|(\\*\\.|\\[\\*\\.\\])?[ab](\\.[ab]){0,2})", 0u64..100), 0..12),
            destination in "[ab](\\.[ab]){0,3}",
            pool in proptest::option::of(0u32..2),
            vmta in 0u32..3,
        ) {
            let all: Vec<_> = blocks.into_iter().map(|(s, p, n)| (s, p, vec![setting(0, n)])).collect();
            let [layers, naive] = resolved(&all, &destination, pool, vmta);
            prop_assert_eq!(layers, naive);
        }

        #[test]
        fn a_pattern_matches_what_it_is_among_the_patterns_of(
            pattern in "\\*|(\\*\\.|\\[\\*\\.\\])?\\[?[ab.]{0,4}\\]?",
            domain in "\\[?[ab.]{0,5}\\]?",
        ) {
            prop_assert_eq!(pattern_matches(&pattern, &domain), matching_patterns(&domain).contains(&pattern));
        }
    }

    #[test]
    fn profiles_unfold_where_they_are_used_and_a_loop_ends() {
        let mut b = LayersBuilder::default();
        let used = |n| Setting { key: USE_PROFILE, file: 0, line: 0, value: Value::Number(n) };
        b.profiles.push(Profile { name: "p".into(), settings: vec![setting(0, 1), setting(1, 2), used(1)] });
        b.profiles.push(Profile { name: "q".into(), settings: vec![used(0), setting(2, 3)] });
        b.add(Scope::Global, Named::Itself, "*", &[used(0), setting(0, 9)]);
        let bytes = crate::frame::archive(&b.build());
        let layers = rkyv::access::<ArchivedLayers, rkyv::rancor::Error>(&bytes).expect("just archived");
        let mut last = BTreeMap::new();
        layers.each("d.test", None, 0, |_, _, profile, s| {
            last.insert(s.key.to_native(), (profile.map(|p| p.name.as_str().to_owned()), s.key.to_native()));
        });
        assert_eq!(last.len(), 3);
        assert_eq!(last[&0].0, None);
        assert_eq!(last[&2].0.as_deref(), Some("q"));
    }

    #[test]
    fn numbers_at_top_level_are_found_most_specific_first() {
        let mut b = LayersBuilder::default();
        b.profiles.push(Profile { name: "p".into(), settings: vec![setting(7, 3)] });
        let profile = Setting { key: USE_PROFILE, file: 0, line: 0, value: Value::Number(0) };
        b.add(Scope::Global, Named::Itself, "*", &[setting(7, 1)]);
        b.add(Scope::Global, Named::Itself, "*.b.test", &[profile]);
        b.add(Scope::Global, Named::Itself, "[*.]b.test", &[setting(7, 4)]);
        b.add(Scope::Global, Named::Itself, "a.b.test", &[setting(7, 5), setting(7, 6), setting(8, 9)]);
        b.add(Scope::Vmta(1), Named::Itself, "other.test", &[setting(7, 8)]);
        let found = b.numbers(7);
        let found: Vec<(&str, u64)> = found.iter().map(|(p, n)| (p.as_str(), *n)).collect();
        assert_eq!(found, [("a.b.test", 6), ("*.b.test", 3), ("[*.]b.test", 4), ("*", 1)]);
    }

    #[test]
    fn an_index_that_none_has_finds_nothing() {
        let mut b = LayersBuilder::default();
        b.add(Scope::Global, Named::Itself, "*", &[setting(0, 1)]);
        let bytes = crate::frame::archive(&b.build());
        let layers = rkyv::access::<ArchivedLayers, rkyv::rancor::Error>(&bytes).expect("just archived");
        let mut scopes = Vec::new();
        layers.each("d.test", Some(u32::MAX), u32::MAX, |scope, _, _, _| scopes.push(scope));
        assert_eq!(scopes, [Scope::Global]);
    }

    #[test]
    fn address_literals_match_networks() {
        let one = |p: &str| (Scope::Global, p.to_owned(), vec![setting(0, p.len() as u64)]);
        let all = [one("[0/0]"), one("[10.0.0.0/8]"), one("[10.1.2.3]")];
        let value = |d| resolved(&all, d, None, 0)[0];
        assert_eq!(value("[192.0.2.1]"), Some(5));
        assert_eq!(value("[10.9.9.9]"), Some(12));
        assert_eq!(value("d.test"), None);
    }
}
