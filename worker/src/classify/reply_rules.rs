//! The rules of `<smtp-pattern-list>` that a path listens by: which replies matched since it was asked last.

use std::cell::RefCell;
use std::rc::Rc;

use super::reply_patterns::{Patterns, Route};
use crate::schedule::matches::Matches;
use crate::smtp::reply::Reply;

/// Listens to every reply for rules that it matches.
#[derive(Debug, Default)]
pub struct ReplyRules {
    patterns: Option<Rc<Patterns>>,
    heard: RefCell<Vec<Heard>>,
}

/// A reply that matched.
#[derive(Debug, Clone)]
pub struct Heard {
    /// Rules, by their place in the list.
    pub matching: Vec<usize>,
    /// The reply.
    pub reply: Reply,
}

impl ReplyRules {
    /// For a list; none hears nothing.
    pub fn new(patterns: Option<Rc<Patterns>>) -> Rc<ReplyRules> {
        Rc::new(ReplyRules { patterns, heard: RefCell::default() })
    }

    /// Notes a reply that a rule matches.
    pub fn hear(&self, reply: &Reply) {
        let Some(p) = &self.patterns else { return };
        let matching = p.matching(&reply.text());
        if !matching.is_empty() {
            self.heard.borrow_mut().push(Heard { matching, reply: reply.clone() });
        }
    }

    /// The list, and what was heard since it was asked last.
    pub fn take(&self) -> Option<(Rc<Patterns>, Vec<Heard>)> {
        let heard = std::mem::take(&mut *self.heard.borrow_mut());
        self.patterns.clone().filter(|_| !heard.is_empty()).map(|p| (p, heard))
    }

    /// What becomes of a recipient by the reply that was just read, if that is what was heard last.
    pub fn route_of(&self, reply: &Reply) -> Option<Route> {
        let p = self.patterns.as_ref()?;
        let heard = self.heard.borrow();
        let last = heard.last().filter(|h| h.reply == *reply)?;
        p.effects(&last.matching, &mut Matches::default(), 0).0.route
    }
}
