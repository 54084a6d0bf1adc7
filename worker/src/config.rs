//! The configuration in force: the mapped snapshot, and what this worker made of it.

use std::cell::{OnceCell, RefCell};
use std::collections::VecDeque;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use ipc::dice::{HashMap, HashSet};
use ipc::layers::NO_VMTA;
use ipc::reply_rules::THEN;
use ipc::rules::DomainRules;
use ipc::snapshot::{ArchivedDomainKey, ArchivedSnapshot, Global, Listener, MappedSnapshot};

use crate::accept::auth::users::Users;
use crate::accept::places::Places;
use crate::classify::bounce_rules::Rules;
use crate::classify::reply_patterns::Patterns;
use crate::connect::loops::OwnServer;
use crate::connect::tls::{self, ClientTls};
use crate::dkim::key::Key;
use crate::dkim::options::Options;
use crate::dkim::signature::DomainKey;
use crate::prepare::pattern_list::PatternLists;
use crate::prepare::rewrite_list::RewriteList;
use crate::schedule::{Exit, Member};
use crate::suppression::address_list::AddressLists;

/// Sets of directives that are looked through for one that is the same.
const RULES_REMEMBERED: usize = 32;
/// Queues that send on to each other.
const QUEUE_TO_HOPS_MAX: usize = 8;
/// Keys of a virtual MTA or pool, and those of all.
type Keys = Rc<[Vec<DomainKey>; 2]>;
/// Rules, and the signatures that they ask for.
type Signing = (Rc<DomainRules>, Rc<[Options]>);

/// A listener, and what was made of its certificates.
#[derive(Debug, Clone)]
pub struct Listening {
    /// As configured.
    pub as_configured: Listener,
    /// TLS that its clients are offered.
    pub tls: Option<ClientTls>,
}

/// The configuration in force.
pub struct Config {
    /// The mapped snapshot.
    pub snapshot: MappedSnapshot,
    /// Its server settings.
    pub global: Rc<Global>,
    /// How `total-max-smtp-in` is shared.
    pub places: Places,
    /// `<smtp-user>`s.
    pub users: Arc<Users>,
    listeners: Vec<Rc<Listening>>,
    /// By what it is known that mail would come back to this server.
    pub own_server: OwnServer,
    /// `<pattern-list>`s.
    pub pattern_lists: PatternLists,
    /// `<address-list>`s.
    pub address_lists: AddressLists,
    /// `<rewrite-list>`s by name.
    rewrite_lists: HashMap<String, Rc<RewriteList>>,
    /// `<smtp-pattern-list>`s that were asked for, by name.
    patterns: RefCell<HashMap<String, Option<Rc<Patterns>>>>,
    /// What replies are classified by, from the first refusal on.
    bounce_rules: OnceCell<Rules>,
    /// DKIM keys that were asked for, by file.
    keys: RefCell<HashMap<String, Option<Arc<Key>>>>,
    /// Those of virtual MTAs, the pool's and those of all behind them, by index.
    key_lists: RefCell<HashMap<(u32, Option<u32>), Keys>>,
    /// Those of `<domain-key-list>`s that were asked for, by name.
    named_keys: RefCell<HashMap<String, Rc<[DomainKey]>>>,
    /// What rules ask to be signed, of those that were asked for of late.
    signing: RefCell<VecDeque<Signing>>,
    /// Virtual MTAs that were asked for as the only member of their queues, by index.
    single: RefCell<HashMap<u32, Rc<[Member]>>>,
    /// Members of pools that were asked for, by index.
    pools: RefCell<HashMap<u32, Rc<[Member]>>>,
    /// Rules that were resolved of late: most paths have those of another.
    rules: RefCell<VecDeque<Rc<DomainRules>>>,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config").field("global", &self.global).finish_non_exhaustive()
    }
}

impl Config {
    /// Source addresses of a virtual MTA.
    pub fn source_addresses(&self, vmta: u32) -> Vec<IpAddr> {
        let hosts = self.snapshot.get().vmtas.get(vmta as usize).map(|v| &v.source_hosts);
        hosts.into_iter().flat_map(|h| h.iter()).filter_map(|h| h.ip.as_str().parse().ok()).collect()
    }

    /// Takes a snapshot into use.
    ///
    /// # Errors
    /// A sentence naming what cannot be used.
    pub fn of(snapshot: MappedSnapshot) -> Result<Config, String> {
        let global = Rc::new(snapshot.get().global().map_err(|e| e.to_string())?);
        let users = Arc::new(Users::of(snapshot.get())?);
        let listeners = listening(snapshot.get(), users.have_certificates())?;
        let places = Places::of(snapshot.get(), global.total_max_smtp_in);
        let own_server = OwnServer::of(snapshot.get());
        let pattern_lists = PatternLists::of(&snapshot.get().pattern_lists);
        let address_lists = AddressLists::of(&snapshot.get().address_lists);
        let lists = snapshot.get().rewrite_lists.iter();
        let rewrite_lists = lists.map(|l| (l.name.as_str().to_owned(), Rc::new(RewriteList::of(l)))).collect();
        let (patterns, bounce_rules, keys, key_lists, named_keys, signing) = Default::default();
        let (single, pools, rules) = Default::default();
        Ok(Config {
            snapshot,
            global,
            places,
            users,
            listeners,
            own_server,
            pattern_lists,
            address_lists,
            rewrite_lists,
            patterns,
            bounce_rules,
            keys,
            key_lists,
            named_keys,
            signing,
            single,
            pools,
            rules,
        })
    }

    /// The directives in force for mail to `destination` through a virtual MTA. Equal ones are
    /// held once.
    pub fn rules(&self, destination: &str, vmta: u32) -> Rc<DomainRules> {
        self.held_once(self.snapshot.get().domain_rules(destination, vmta))
    }

    fn held_once(&self, rules: DomainRules) -> Rc<DomainRules> {
        let mut known = self.rules.borrow_mut();
        if let Some(r) = known.iter().find(|r| ***r == rules) {
            return Rc::clone(r);
        }
        let new = Rc::new(rules);
        known.push_front(Rc::clone(&new));
        known.truncate(RULES_REMEMBERED);
        new
    }

    /// A `<smtp-pattern-list>`, or two of which the second is asked behind the first, compiled when it is first asked for.
    pub fn patterns(&self, name: &str) -> Option<Rc<Patterns>> {
        if name.is_empty() {
            return None;
        }
        let mut known = self.patterns.borrow_mut();
        let snapshot = self.snapshot.get();
        let compile = || {
            let named = |n: &str| snapshot.reply_lists.iter().find(|l| l.name.as_str().eq_ignore_ascii_case(n));
            let lists: Vec<_> = name.split(THEN).filter_map(named).collect();
            (!lists.is_empty()).then(|| Rc::new(Patterns::of(&lists, &snapshot.files)))
        };
        known.entry(name.to_owned()).or_insert_with(compile).clone()
    }

    /// Whether a `<smtp-pattern-list>` is that of another configuration.
    pub fn has_patterns_of(&self, other: &Config, name: &str) -> bool {
        match (self.patterns(name), other.patterns(name)) {
            (Some(a), Some(b)) => a.are_those_of(&b),
            (a, b) => a.is_none() && b.is_none(),
        }
    }

    /// The signatures that rules ask for.
    pub fn signing(&self, rules: &Rc<DomainRules>) -> Rc<[Options]> {
        let mut known = self.signing.borrow_mut();
        if let Some((_, o)) = known.iter().find(|(r, _)| Rc::ptr_eq(r, rules)) {
            return Rc::clone(o);
        }
        let new: Rc<[Options]> = Options::of(rules).into();
        known.push_front((Rc::clone(rules), Rc::clone(&new)));
        known.truncate(RULES_REMEMBERED);
        new
    }

    /// DKIM keys of a virtual MTA, or of the pool that mail came by, or of its pool; and those of all.
    pub fn domain_keys(&self, vmta: u32, by_pool: Option<&str>) -> Keys {
        let s = self.snapshot.get();
        let pool = self.pool(vmta, by_pool);
        if let Some(l) = self.key_lists.borrow().get(&(vmta, pool)) {
            return Rc::clone(l);
        }
        let own = s.vmtas.get(vmta as usize).map_or(&[][..], |v| &v.domain_keys);
        let of_pool = pool.and_then(|i| s.pools.get(i as usize));
        let own = if own.is_empty() { of_pool.map_or(own, |p| &p.domain_keys) } else { own };
        let lists = Rc::new([self.usable(own), self.usable(&s.domain_keys)]);
        self.key_lists.borrow_mut().insert((vmta, pool), Rc::clone(&lists));
        lists
    }

    /// A `<rewrite-list>`; none of a name that is empty, or that no list has.
    pub fn rewrite_list(&self, name: &str) -> Option<Rc<RewriteList>> {
        self.rewrite_lists.get(&name.to_lowercase()).cloned()
    }

    /// By what mail is rewritten that goes through a virtual MTA, and maybe came by a pool: the virtual MTA's own `rewrite-list`, else that of the
    /// pool, or of the pool that the virtual MTA is in.
    pub fn rewriting(&self, vmta: u32, by_pool: Option<&str>) -> Option<Rc<RewriteList>> {
        if self.rewrite_lists.is_empty() {
            return None;
        }
        let s = self.snapshot.get();
        if let Some(own) = s.vmtas.get(vmta as usize).and_then(|v| v.rewrite_list.as_ref()) {
            return self.rewrite_list(own);
        }
        let pool = self.pool(vmta, by_pool).and_then(|i| s.pools.get(i as usize))?;
        self.rewrite_list(&pool.rewrite_list)
    }

    /// The pool that mail came by, or that its virtual MTA is in.
    fn pool(&self, vmta: u32, by_pool: Option<&str>) -> Option<u32> {
        let s = self.snapshot.get();
        let by_pool = by_pool.and_then(|p| s.pool_by_name.get(p.to_lowercase().as_str())).map(|i| i.to_native());
        by_pool.or_else(|| s.pool_of(vmta))
    }

    /// The keys of a `<domain-key-list>`; none of one that does not exist.
    pub fn domain_key_list(&self, name: &str) -> Rc<[DomainKey]> {
        if let Some(l) = self.named_keys.borrow().get(name) {
            return Rc::clone(l);
        }
        let list = self.snapshot.get().domain_key_lists.iter().find(|l| l.0.as_str() == name);
        let Some(list) = list else { return Rc::from([]) };
        let keys: Rc<[DomainKey]> = self.usable(&list.1).into();
        self.named_keys.borrow_mut().insert(name.to_owned(), Rc::clone(&keys));
        keys
    }

    fn usable(&self, keys: &[ArchivedDomainKey]) -> Vec<DomainKey> {
        let one = |k: &ArchivedDomainKey| {
            let (selector, domain) = (k.selector.as_str().to_owned(), k.domain.as_str().to_owned());
            self.key(k.path.as_str()).map(|key| DomainKey { selector, domain, key })
        };
        keys.iter().filter_map(one).collect()
    }

    /// A key, read when it is first asked for. One that cannot be used was refused with the configuration.
    fn key(&self, path: &str) -> Option<Arc<Key>> {
        let mut known = self.keys.borrow_mut();
        let read = || Key::from_pem(self.snapshot.get().pem(path)?).ok().map(Arc::new);
        known.entry(path.to_owned()).or_insert_with(read).clone()
    }

    /// What replies are classified by.
    pub fn bounce_rules(&self) -> &Rules {
        self.bounce_rules.get_or_init(|| Rules::of_snapshot(self.snapshot.get()))
    }

    /// The virtual MTAs that mail to `destination` leaves through if it chose `via`, a virtual MTA or pool; empty for none. In place of one
    /// that does not exist goes `invalid-virtual-mta-fallback`.
    pub fn exit(&self, destination: &str, via: &str) -> Exit {
        let snapshot = self.snapshot.get();
        let key = via.to_lowercase();
        let index = |name: &str| snapshot.vmta_by_name.get(name).map(|i| i.to_native());
        let pool = snapshot.pool_by_name.get(key.as_str()).map(|i| i.to_native());
        let fallback = || index(&self.global.invalid_virtual_mta_fallback.to_lowercase());
        let of_pool = if key.is_empty() || index(&key).is_some() { None } else { pool };
        if let Some(i) = of_pool {
            let members = self.members(i);
            let rules = self.held_once(snapshot.pool_rules(destination, i));
            return Exit { members, of_pool: true, rules };
        }
        let vmta = if key.is_empty() { Some(0) } else { index(&key).or_else(fallback) }.unwrap_or(NO_VMTA);
        let alone = |name: &str| Rc::from([Member { vmta, name: Rc::from(name), weight: 1 }]);
        let members = match snapshot.vmtas.get(vmta as usize).map(|v| v.name.as_str()) {
            Some(name) => Rc::clone(self.single.borrow_mut().entry(vmta).or_insert_with(|| alone(name))),
            None => alone(via),
        };
        Exit { members, of_pool: false, rules: self.rules(destination, vmta) }
    }

    /// The destination that mail for `destination` which chose `via` is queued under: where
    /// `queue-to` sends it. One that names itself has no effect.
    pub fn queued_under(&self, destination: String, via: &str) -> String {
        if !self.snapshot.get().has_queue_to {
            return destination;
        }
        let mut seen = vec![destination];
        while let Some(at) = seen.last() {
            let next = self.exit(at, via).rules.queue_to.clone();
            if next.is_empty() || seen.contains(&next) || seen.len() > QUEUE_TO_HOPS_MAX {
                break;
            }
            seen.push(next);
        }
        seen.pop().unwrap_or_default()
    }

    /// A virtual MTA or pool has this name (lower case), or all are meant by it.
    pub fn is_via(&self, name: &str) -> bool {
        let s = self.snapshot.get();
        name == "*" || s.vmta_by_name.contains_key(name) || s.pool_by_name.contains_key(name)
    }

    /// Names of the members of a pool; none when it is no pool.
    pub fn members_of(&self, pool: &str) -> HashSet<String> {
        let index = self.snapshot.get().pool_by_name.get(pool).map(|i| i.to_native());
        index.map(|i| self.members(i).iter().map(|m| m.name.as_ref().to_owned()).collect()).unwrap_or_default()
    }

    fn members(&self, pool: u32) -> Rc<[Member]> {
        let snapshot = self.snapshot.get();
        let of = || {
            let all = snapshot.pools.get(pool as usize).map(|p| p.members.iter()).into_iter().flatten();
            all.filter_map(|m| {
                let vmta = m.vmta.to_native();
                let name = snapshot.vmtas.get(vmta as usize)?.name.as_str();
                Some(Member { vmta, name: Rc::from(name), weight: m.weight.to_native() })
            })
            .collect()
        };
        Rc::clone(self.pools.borrow_mut().entry(pool).or_insert_with(of))
    }

    /// The listener at `address`, unless there is none any more.
    pub fn listener(&self, address: &str) -> Option<&Rc<Listening>> {
        self.listeners.iter().find(|l| l.as_configured.address == address)
    }
}

/// The listeners, with their TLS: what is the same for several is made once.
fn listening(snapshot: &ArchivedSnapshot, asks_for_certificates: bool) -> Result<Vec<Rc<Listening>>, String> {
    let pem = |path: &str| snapshot.pem(path).unwrap_or_default();
    let mut all: Vec<Rc<Listening>> = Vec::new();
    for l in snapshot.listeners.iter() {
        let l: Listener = rkyv::deserialize::<_, rkyv::rancor::Error>(l).map_err(|e| e.to_string())?;
        let same = all.iter().find(|other| other.as_configured.tls == l.tls).map(|other| other.tls.clone());
        let tls = same.map_or_else(
            || {
                let certificates = l.tls.certificates.iter().map(|path| pem(path));
                let certificates: Vec<&str> = certificates.filter(|pem| !pem.is_empty()).collect();
                if certificates.is_empty() {
                    return Ok(None);
                }
                let made = tls::listener(&l.tls, &certificates, pem(&l.tls.ca_file), asks_for_certificates);
                made.map(Some).map_err(|e| format!("listener {}: {e}", l.address))
            },
            Ok,
        )?;
        all.push(Rc::new(Listening { as_configured: l, tls }));
    }
    Ok(all)
}
