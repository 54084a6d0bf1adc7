//! Who gets no mail: lists of addresses that operators, replies and programs fill, on disk and
//! shared by all processes, and the `<address-list>`s of the configuration.
//!
//! What a folder holds:
//!
//! ```text
//! current       number of the generation in force
//! table-N       every entry of generation N, mapped by all processes, never changed (table.rs)
//! delta-N       what was added and removed since, appended to by any process (delta.rs)
//! ```
//! Each process keeps the delta in memory and looks four times a second for more. The supervisor
//! makes a new table from both when the delta has grown (compaction.rs). Whoever appends holds a
//! lock on the delta, and looks first whether it is still the one in force.

pub mod address_list;
pub mod compaction;
pub mod delta;
pub mod gate;
pub mod lists;
pub mod table;

/// Name of the folder below the data folder.
pub const FOLDER: &str = "suppression";
/// The list that holds for all mail.
pub const GLOBAL: &str = "global";
/// Longest address that is taken, bytes (RFC 5321 §4.5.3.1.3, with room).
pub const ADDRESS_MAX: usize = 320;
/// Longest name of a list, bytes.
pub const LIST_NAME_MAX: usize = 128;
/// Longest reason and source that are kept, bytes.
pub const TEXT_MAX: usize = 96;

/// What knows who gets no mail.
pub trait Suppresses {
    /// The list of those that hold for all mail, and of the named ones, that an address is in.
    fn list_of(&self, named: &[String], address: &str) -> Option<String>;
}

/// Nobody.
impl Suppresses for () {
    fn list_of(&self, _: &[String], _: &str) -> Option<String> {
        None
    }
}

/// One address in one list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// [`GLOBAL`], or `virtual-mta:NAME`, `pool:NAME`, `job:ID`, or a name of the operator's.
    pub list: String,
    /// In lower case.
    pub address: String,
    /// Category of the reply, or an operator's word.
    pub reason: String,
    /// Who added it: `policy`, `operator`, `import`.
    pub source: String,
    /// When, Unix seconds.
    pub added_s: u32,
    /// When it ends, Unix seconds; 0 for never.
    pub expires_s: u32,
}

impl Entry {
    /// It has ended.
    pub fn is_over(&self, now_s: u32) -> bool {
        self.expires_s != 0 && self.expires_s <= now_s
    }
}

/// An address as lists hold it.
///
/// # Errors
/// A sentence saying why it cannot be in one.
pub fn normal_address(address: &str) -> Result<String, String> {
    let a = address.trim().trim_start_matches('<').trim_end_matches('>').to_lowercase();
    let fits = a.rsplit_once('@').is_some_and(|(local, domain)| !local.is_empty() && !domain.is_empty());
    if !fits || a.len() > ADDRESS_MAX || a.chars().any(|c| c.is_control() || c == ' ') {
        return Err(format!("expected an e-mail address, found {address:?}"));
    }
    Ok(a)
}

/// A list's name as files hold it.
///
/// # Errors
/// A sentence saying what is wrong with it.
pub fn normal_list(name: &str) -> Result<String, String> {
    let n = name.trim().to_lowercase();
    if n.is_empty() || n.len() > LIST_NAME_MAX || n.chars().any(|c| c.is_control() || c == ',') {
        return Err(format!("expected the name of a list, found {name:?}"));
    }
    Ok(n)
}

/// The beginning of a text, at most [`TEXT_MAX`] bytes, without control characters.
pub fn short(text: &str) -> String {
    let mut t: String = text.chars().filter(|c| !c.is_control()).collect();
    t.truncate(t.floor_char_boundary(TEXT_MAX));
    t
}

/// Where an address lies: the seed is the list's.
pub(crate) fn hash(list: &str, address: &str) -> u64 {
    let seed = xxhash_rust::xxh3::xxh3_64(list.as_bytes());
    xxhash_rust::xxh3::xxh3_64_with_seed(address.as_bytes(), seed)
}
