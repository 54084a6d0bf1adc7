//! `<smtp-pattern-list>`: what a receiver's reply does to the path that got it.

#![allow(missing_docs)] // for what derive(Archive) generates beside the documented types

use rkyv::{Archive, Deserialize, Serialize};

use crate::layers::Scope;
use crate::rules::{ArchivedSetting, ArchivedValue, DomainKey};

/// What stands between the names of two lists in `smtp-pattern-list` of rules that are in force: what no rule of the first hits is
/// held against the second.
pub const THEN: &str = ", then ";

/// Which list of a receiver's profile goes on being asked behind the operator's: one that `<domain *>` names is for all receivers,
/// and takes none of the rules away that one receiver needs. A list in a block that names the domain takes the place of both.
#[derive(Debug, Default)]
pub struct ReplyListsInForce<'s> {
    of_profile: &'s str,
}

impl<'s> ReplyListsInForce<'s> {
    /// Takes the settings of a destination, weakest first.
    pub fn take(&mut self, scope: Scope, pattern: &str, setting: &'s ArchivedSetting) {
        let ArchivedValue::Text(list) = &setting.value else { return };
        if setting.key.to_native() != DomainKey::SmtpPatternList as u16 {
            return;
        }
        match scope {
            Scope::BuiltIn => self.of_profile = list.as_str(),
            _ if pattern == "*" && !list.is_empty() => {}
            _ => self.of_profile = "",
        }
    }

    /// The value in force, where the strongest line names `list`.
    pub fn joined(&self, list: String) -> String {
        match self.of_profile {
            "" => list,
            of_profile if list.eq_ignore_ascii_case(of_profile) => list,
            of_profile => format!("{list}{THEN}{of_profile}"),
        }
    }
}

/// A list, tried from its first rule on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct ReplyList {
    /// Name, lower case.
    pub name: String,
    /// Rules in the order of the file.
    pub rules: Vec<ReplyRule>,
}

/// `reply /EXPRESSION/ ACTION,…`
#[derive(Debug, Clone, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct ReplyRule {
    /// Expression, as it is written between the slashes.
    pub expression: String,
    /// What happens.
    pub actions: Vec<ReplyAction>,
    /// The rule acts on the `count`-th match within `window_ms`; 0 for on each.
    pub count: u32,
    /// See `count`.
    pub window_ms: u64,
    /// File, by its place in the snapshot's list.
    pub file: u16,
    /// Line, from 1.
    pub line: u32,
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Archive, Serialize, Deserialize)]
#[rkyv(derive(Debug, Clone, Copy))]
pub enum ReplyAction {
    /// `mode=backoff`, with `backoff-to-normal-after` in milliseconds where the rule says it.
    Backoff(Option<u64>),
    /// `mode=normal`
    Normal,
    /// `skip-mx`
    SkipMx,
    /// `bounce-queue`
    BounceQueue,
    /// `bounce-rcpt`
    BounceRcpt,
    /// `disable-source-ip`, with `reenable-after` in milliseconds where the rule says it.
    DisableSourceIp(Option<u64>),
    /// `defer-queue`
    DeferQueue,
}
