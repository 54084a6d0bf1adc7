//! `<pattern-list>`: which virtual MTA or pool a message goes through, and with what priority,
//! by its sender, recipients and headers.

#![allow(missing_docs)] // for what derive(Archive) generates beside the documented types

use rkyv::{Archive, Deserialize, Serialize};

/// A list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct PatternList {
    /// Name, lower case; empty for one that stands inside another.
    pub name: String,
    /// From top to bottom; the first that matches decides.
    pub rules: Vec<PatternRule>,
}

/// A line of a list.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct PatternRule {
    /// What the expression is held against.
    pub on: On,
    /// Between the slashes.
    pub expression: String,
    /// What it decides.
    pub result: PatternResult,
    /// File it comes from, by its place in the snapshot's list.
    pub file: u16,
    /// Line of the file, from 1.
    pub line: u32,
}

/// What an expression is held against.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum On {
    /// `mail-from`
    Sender,
    /// `rcpt-to`
    Recipient,
    /// `header NAME`, in lower case; the value as it stands in the message.
    Header(String),
    /// `*`: always.
    Any,
}

/// What a rule decides.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum PatternResult {
    /// `virtual-mta=NAME`, `recipient-priority=N`
    Choose {
        /// Empty for none.
        vmta: String,
        /// 0 to 100.
        priority: Option<u8>,
    },
    /// `call-to: LIST`: that list goes on.
    CallTo(String),
    /// A list inside; its place among all lists. Both have to match.
    Inside(u32),
}
