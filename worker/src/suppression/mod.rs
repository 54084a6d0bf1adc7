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
pub mod refusals;
pub mod table;

/// Name of the folder below the data folder.
pub const FOLDER: &str = "suppression";
/// The list that holds for all mail.
pub const GLOBAL: &str = "global";
/// Longest address that is taken, bytes.
pub const ADDRESS_MAX: usize = ipc::limits::ADDRESS_BYTES_MAX;
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
    let expected = || format!("expected an e-mail address, found {address:?}");
    let bare = address.trim();
    let bare = bare.strip_prefix('<').and_then(|a| a.strip_suffix('>')).unwrap_or(bare);
    let (local, domain) = bare.rsplit_once('@').ok_or_else(expected)?;
    // One mailbox has many spellings: quotes that need not be, case, the domain's last dot.
    let quoted = local.strip_prefix('"').and_then(|l| l.strip_suffix('"')).filter(|l| !l.is_empty());
    let local = match quoted {
        Some(inside) => unescaped(inside),
        None if local.contains([' ', '@', '"']) => return Err(expected()),
        None => local.to_owned(),
    };
    let domain = ipc::message::normalise_domain(domain).unwrap_or_else(|_| domain.to_owned());
    let a = format!("{local}@{domain}").to_lowercase();
    if local.is_empty() || domain.is_empty() || a.len() > ADDRESS_MAX || a.chars().any(char::is_control) {
        return Err(expected());
    }
    Ok(a)
}

/// An address of a list as mail writes it: the local part in quotes where it needs them (RFC 5321 section 4.1.2).
pub fn spelled(address: &str) -> String {
    let Some((local, domain)) = address.rsplit_once('@') else { return address.to_owned() };
    let plain = |c: char| c.is_alphanumeric() || !c.is_ascii() || "!#$%&'*+-/=?^_`{|}~.".contains(c);
    if local.chars().all(plain) {
        return address.to_owned();
    }
    let mut out = String::from("\"");
    for c in local.chars() {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out + "\"@" + domain
}

/// What stands behind each backslash, and the rest.
fn unescaped(quoted: &str) -> String {
    let mut chars = quoted.chars();
    let mut out = String::with_capacity(quoted.len());
    while let Some(c) = chars.next() {
        out.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    out
}

/// A list's name as files hold it.
///
/// # Errors
/// A sentence saying what is wrong with it.
pub fn normal_list(name: &str) -> Result<String, String> {
    let n = name.trim().to_lowercase();
    if n.is_empty() || n.len() > LIST_NAME_MAX || n.chars().any(|c| c.is_control() || c.is_whitespace() || c == ',') {
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_an_address_are_one() {
        for text in ["Ann@D.test", " <ann@d.test> ", "\"ann\"@d.test", "\"a\\nn\"@d.test.", "ANN@d.TEST."] {
            assert_eq!(normal_address(text).unwrap(), "ann@d.test", "{text}");
        }
        assert_eq!(normal_address("\"a b\"@d.test").unwrap(), "a b@d.test");
        assert_eq!(normal_address("u@b\u{fc}cher.test").unwrap(), "u@xn--bcher-kva.test");
        for text in ["", "a", "@", "a@", "@d.test", "a b@d.test", "a\n@d.test", "\"\"@"] {
            assert!(normal_address(text).is_err(), "{text:?}");
        }
    }
}
