//! `<rewrite-list>`

use ipc::rules::Value;
use ipc::snapshot::RewriteList;

use super::{Accepted, Compiler, Statement, pattern_key};

/// Lines of a list: each is compared with the sender of every message.
const LINES_MAX: usize = 1000;

impl<'s> Compiler<'s> {
    /// A list; one that is defined again goes on.
    pub(super) fn rewrite_list(&mut self, s: &'s Statement) {
        let mut list = RewriteList { name: s.value.to_lowercase(), ..Default::default() };
        if s.inside.len() > LINES_MAX {
            let message = format!("more than {LINES_MAX} lines in <rewrite-list {}>", &*s.value);
            return self.error(s.at, "too-many-lines", message, "");
        }
        for i in &s.inside {
            let value = self.check("rewrite-list", i).and_then(Accepted::in_force);
            let (name, Some(Value::Text(t))) = (&*i.name, value) else { continue };
            let Some((from, to)) = t.split_once(char::is_whitespace) else { continue };
            let (from, to) = (from.to_owned(), to.trim().to_owned());
            match name {
                "mail-from" => list.senders.push((from, to)),
                "from-domain" => list.from_domains.push((pattern_key(&from), to)),
                _ => {}
            }
        }
        if list.senders.is_empty() && list.from_domains.is_empty() {
            let message = format!("<rewrite-list {}> has no lines: it changes nothing", &*s.value);
            self.warning(s.at, "no-effect", message, "");
        }
        match self.snapshot.rewrite_lists.iter_mut().find(|l| l.name == list.name) {
            Some(l) => {
                l.senders.append(&mut list.senders);
                l.from_domains.append(&mut list.from_domains);
            }
            None => self.snapshot.rewrite_lists.push(list),
        }
    }
}
