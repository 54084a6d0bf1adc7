//! `<smtp-pattern-list>`: what a receiver's reply does to the path that got it.

#![allow(missing_docs)] // for what derive(Archive) generates beside the documented types

use rkyv::{Archive, Deserialize, Serialize};

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
