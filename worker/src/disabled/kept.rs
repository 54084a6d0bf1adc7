//! What is said of a source address that is left out, in memory and as it lies in the spool.

use std::cell::RefCell;
use std::collections::BTreeMap;

use rkyv::{Archive, Deserialize, Serialize};

/// Why an address is left out at a queue.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(super) struct Note {
    pub since_unix_ms: i64,
    pub until_unix_ms: i64,
    pub by_operator: bool,
    pub why: String,
}

/// What is noted, by queue and address.
#[derive(Debug, Default)]
pub struct Notes(pub(super) RefCell<BTreeMap<String, Note>>);

impl ipc::stored::Stored for Note {
    const WHAT: &'static str = "why a source address is left out";
    const VERSION: u8 = 1;
}
