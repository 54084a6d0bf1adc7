//! Receiver profiles become the lowest layer.

use std::collections::HashMap;
use std::path::PathBuf;

use ipc::layers::{Named, Scope};
use ipc::rules::{DomainKey, Value};

use super::super::profiles;
use super::{Compiler, Diagnostic, Macros, Problem, Setting, Statement, nearest};

/// Limits that a receiver has published, by domain: directive's key and value.
pub(super) type Published = HashMap<String, Vec<(u16, u64)>>;

impl Compiler<'_> {
    /// `receiver-profiles yes|no|NAME,…`
    pub(super) fn choose_profiles(&mut self, s: &Statement, list: &[String]) {
        self.profiles = match list {
            [one] if one.eq_ignore_ascii_case("yes") || one.eq_ignore_ascii_case("true") => None,
            [one] if one.eq_ignore_ascii_case("no") || one.eq_ignore_ascii_case("false") => Some(Vec::new()),
            names => Some(names.to_vec()),
        };
        for n in self.profiles.clone().unwrap_or_default() {
            if profiles::text(&n).is_none() {
                let near = nearest(&n.to_lowercase(), profiles::ALL.iter().map(|(n, _)| *n));
                let help = near.map_or("`sluice config profiles` lists them".into(), |n| format!("did you mean {n}?"));
                self.problem(s, Problem::expected("yes, no or names of receiver profiles", &n).help(help));
            }
        }
    }

    /// Puts the chosen profiles below everything else, and answers what receivers published.
    pub(super) fn receiver_profiles(&mut self) -> Published {
        let mut published = Published::new();
        let own: Vec<String> = self.snapshot.reply_lists.iter().map(|l| l.name.clone()).collect();
        // What the profiles hold and is not in force yet is no news about the operator's file.
        let pending = std::mem::take(&mut self.pending);
        for (name, text) in profiles::ALL {
            if self.profiles.as_ref().is_some_and(|p| !p.iter().any(|n| n.eq_ignore_ascii_case(name))) {
                continue;
            }
            let statements = self.reader.text(&PathBuf::from(format!("builtin:profiles/{name}.conf")), text);
            let mut macros = Macros::default();
            for s in &statements {
                match &*s.name {
                    "domain-macro" => macros.define(&s.value),
                    "<mx-rollup-list>" => s.inside.iter().for_each(|i| self.roll_up(&i.value, true)),
                    // A list of the operator's with this name takes its place.
                    "<smtp-pattern-list>" if own.contains(&s.value.to_lowercase()) => {}
                    "<smtp-pattern-list>" => {
                        // Their expressions are compiled by the test that has each hit its example,
                        // and by the worker that needs the list: not by every check and reload.
                        let rules = s.inside.iter().filter_map(|i| self.reply_rule(i, &i.value)).collect();
                        self.add_reply_rules(&s.value, rules);
                    }
                    "<domain>" => {
                        let settings = self.settings("domain", &s.inside);
                        let list = settings.iter().rev().find(|s| s.key == DomainKey::SmtpPatternList as u16);
                        let list = list.and_then(|s| if let Value::Text(t) = &s.value { Some(t) } else { None });
                        for pattern in macros.expand(&s.value).unwrap_or_default() {
                            self.profile_lists.extend(list.map(|l| (pattern.clone(), l.clone())));
                            if profiles::is_published(text) {
                                published.insert(pattern.clone(), limits(&settings));
                            }
                            self.layers.add(Scope::BuiltIn, Named::Itself, &pattern, &settings);
                        }
                    }
                    _ => {}
                }
            }
        }
        self.pending = pending;
        published
    }

    /// Notes a list of a block that names a receiver's domain: it takes the place of the profile's.
    pub(super) fn list_in_place_of_profile(&mut self, pattern: &str, settings: &[Setting]) {
        let Some(of_profile) = self.profile_lists.get(pattern) else { return };
        let line = settings.iter().rev().find(|s| s.key == DomainKey::SmtpPatternList as u16);
        let Some((s, Value::Text(list))) = line.map(|s| (s, &s.value)) else { return };
        if !list.is_empty() && !list.eq_ignore_ascii_case(of_profile) {
            self.in_place_of_profiles.push(((s.file, s.line), pattern.to_owned(), of_profile.clone()));
        }
    }

    /// Says once that lists take the place of those of profiles.
    pub(super) fn lists_in_place_of_profiles(&mut self) {
        let all = std::mem::take(&mut self.in_place_of_profiles);
        let Some((place, pattern, profile)) = all.first() else { return };
        let more = if all.len() > 1 { format!(" ({} domains, the first is shown)", all.len()) } else { String::new() };
        let message = format!("this list takes the place of the receiver profile's for {pattern}{more}");
        let help = format!(
            "`sluice config profiles {profile}` shows the rules that are not asked; those of a list in <domain *> are asked before them"
        );
        self.warning(self.line_at(*place), "profile-rules", message, help);
    }

    /// Warns of a limit above what the receiver says it refuses.
    pub(super) fn compare_with(&mut self, published: &Published, pattern: &str, settings: &[Setting]) {
        let Some(limits) = published.get(pattern) else { return };
        for (key, most) in limits {
            let said = settings.iter().rev().find(|s| s.key == *key);
            let Some((s, n)) = said.and_then(|s| if let Value::Number(n) = s.value { Some((s, n)) } else { None })
            else {
                continue;
            };
            // 0 connections send nothing, and 0 messages per connection are any number.
            if n > *most || (n == 0 && *key != DomainKey::MaxSmtpOut as u16) {
                let at = self.line_at((s.file, s.line));
                let name = if *key == DomainKey::MaxSmtpOut as u16 { "max-smtp-out" } else { "max-msg-per-connection" };
                let message = format!("{name} is above the {most} that the receiver itself names for {pattern}");
                let help = "`sluice config profiles` shows where it is from";
                self.reader.diagnostics.push(Diagnostic::warning(at, "above-profile", message, help));
            }
        }
    }
}

fn limits(settings: &[Setting]) -> Vec<(u16, u64)> {
    let keys = [DomainKey::MaxSmtpOut as u16, DomainKey::MaxMsgPerConnection as u16];
    let of = |s: &Setting| if let Value::Number(n) = s.value { Some((s.key, n)) } else { None };
    settings.iter().filter(|s| keys.contains(&s.key)).filter_map(of).collect()
}
