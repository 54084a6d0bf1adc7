//! Which domains are known to roll up, and to which queue.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use ipc::dice::HashMap;
use tokio::time::Instant;

/// How long mail is routed straight before the domain's owner looks at its hosts again.
const KNOWN_FOR: Duration = Duration::from_secs(3600);
/// Domains that are remembered.
const KNOWN_MAX: usize = 50_000;

/// What is known of domains.
#[derive(Debug, Default)]
pub struct Rollups(RefCell<HashMap<String, (Instant, Rc<str>)>>);

impl Rollups {
    /// The queue that a domain's mail joins, if it is known to join one.
    pub fn queue_of(&self, domain: &str) -> Option<Rc<str>> {
        let all = self.0.borrow();
        all.get(domain).filter(|(until, _)| *until > Instant::now()).map(|(_, q)| Rc::clone(q))
    }

    /// Takes note; answers whether it is news.
    pub fn learn(&self, domain: &str, queue: &str) -> bool {
        let news = self.queue_of(domain).is_none_or(|q| &*q != queue);
        let mut all = self.0.borrow_mut();
        if all.len() >= KNOWN_MAX && !all.contains_key(domain) {
            let now = Instant::now();
            all.retain(|_, (until, _)| *until > now);
            if all.len() >= KNOWN_MAX {
                all.clear();
            }
        }
        all.insert(domain.to_owned(), (Instant::now() + KNOWN_FOR, Rc::from(queue)));
        news
    }

    /// Another configuration is in force.
    pub fn forget(&self) {
        self.0.borrow_mut().clear();
    }
}
