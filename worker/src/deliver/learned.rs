//! What the replies of mail hosts taught, for an hour each: extensions that they offer and do not
//! keep, recipients that they take in a transaction, refusals after which they close.

use std::cell::RefCell;

use ipc::dice::HashMap;

use crate::clock;
use crate::smtp::extension::Lesson;

/// A lesson is kept so long, milliseconds.
const KEPT_MS: i64 = 3_600_000;
/// Hosts of which something is kept.
const HOSTS_MAX: usize = 10_000;

/// What is known of all hosts.
#[derive(Debug, Default)]
pub struct Learned {
    hosts: RefCell<HashMap<String, (i64, Lesson)>>,
}

impl Learned {
    /// What is known of a host.
    pub fn of(&self, host: &str) -> Lesson {
        let hosts = self.hosts.borrow();
        if hosts.is_empty() {
            return Lesson::default();
        }
        hosts.get(host).filter(|(until, _)| *until > clock::now_ms()).map_or_else(Lesson::default, |(_, l)| *l)
    }

    /// Adds to it; whether that was news.
    pub fn note(&self, host: &str, change: impl FnOnce(&mut Lesson)) -> bool {
        let before = self.of(host);
        let mut lesson = before;
        change(&mut lesson);
        if lesson == before {
            return false;
        }
        let now = clock::now_ms();
        let mut hosts = self.hosts.borrow_mut();
        if hosts.len() >= HOSTS_MAX && !hosts.contains_key(host) {
            hosts.retain(|_, (until, _)| *until > now);
            if hosts.len() >= HOSTS_MAX {
                // What is lost is learned again.
                hosts.clear();
            }
        }
        hosts.insert(host.to_owned(), (now + KEPT_MS, lesson));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smtp::extension::Extension;

    #[test]
    fn only_what_is_new_is_news() {
        let l = Learned::default();
        assert!(l.note("mx.test", |l| l.leave_out(Extension::Chunking)));
        assert!(!l.note("mx.test", |l| l.leave_out(Extension::Chunking)));
        assert!(l.note("mx.test", |l| l.recipients_max = 7));
        let known = l.of("mx.test");
        assert_eq!((known.without_chunking, known.without_pipelining, known.recipients_max), (true, false, 7));
        assert_eq!(l.of("other.test"), Lesson::default());
    }

    #[test]
    fn hosts_are_bounded() {
        let l = Learned::default();
        for n in 0..=HOSTS_MAX {
            l.note(&format!("h{n}.test"), |l| l.refusals_max = 3);
        }
        assert!(l.hosts.borrow().len() <= HOSTS_MAX);
        assert_eq!(l.of(&format!("h{HOSTS_MAX}.test")).refusals_max, 3);
    }
}
