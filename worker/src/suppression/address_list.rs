//! `<address-list>`s of the configuration.

use ipc::dice::{HashMap, HashSet};

use fancy_regex::Regex;
use ipc::snapshot::ArchivedAddressList;

use crate::classify::expression;

/// One list.
#[derive(Debug, Default)]
struct AddressList {
    domains: HashSet<String>,
    addresses: HashSet<String>,
    /// Local parts that are meant at any domain.
    locals: HashSet<String>,
    expressions: Vec<Regex>,
}

/// All lists of a configuration, by name in lower case.
#[derive(Debug, Default)]
pub struct AddressLists(HashMap<String, AddressList>);

impl AddressLists {
    /// Takes them into use. What does not compile was refused with the configuration.
    pub fn of(lists: &[ArchivedAddressList]) -> AddressLists {
        let texts = |all: &rkyv::vec::ArchivedVec<rkyv::string::ArchivedString>| -> HashSet<String> {
            all.iter().map(|t| t.as_str().to_lowercase()).collect()
        };
        let list = |l: &ArchivedAddressList| {
            let (addresses, locals) = texts(&l.addresses).into_iter().partition(|a| a.contains('@'));
            let expressions = l.expressions.iter().filter_map(|e| expression::compile(e.as_str()).ok()).collect();
            (l.name.as_str().to_lowercase(), AddressList { domains: texts(&l.domains), addresses, locals, expressions })
        };
        AddressLists(lists.iter().map(list).collect())
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Whether an address, in lower case, is in a list.
    pub fn has(&self, list: &str, address: &str) -> bool {
        let Some(l) = self.0.get(list) else { return false };
        let (local, domain) = address.rsplit_once('@').unwrap_or((address, ""));
        l.addresses.contains(address)
            || l.domains.contains(domain)
            || l.locals.contains(local)
            || l.expressions.iter().any(|e| e.is_match(address).unwrap_or(false))
    }
}
