//! `<address-list>`, by some configurations called `<suppression-list>`.

use ipc::rules::Value;
use ipc::snapshot::AddressList;
use worker::suppression::normal_address;

use super::{Accepted, Compiler, Statement};

impl<'s> Compiler<'s> {
    /// A list at top level; one that is defined again goes on.
    pub(super) fn address_list(&mut self, s: &'s Statement) {
        let name = s.value.to_lowercase();
        let list = AddressList { name, ..self.listed(s) };
        self.add_addresses(list);
    }

    /// What a list holds.
    fn listed(&mut self, s: &'s Statement) -> AddressList {
        let mut list = AddressList::default();
        for i in &s.inside {
            match (&*i.name, self.check("address-list", i).and_then(Accepted::in_force)) {
                ("domain", Some(Value::Text(t))) => {
                    list.domains.extend(self.expanded(i, &t).iter().map(|d| ascii_domain(d)));
                }
                ("address", Some(Value::Text(t))) => self.listed_address(i, &t, &mut list),
                ("address-file", Some(Value::Text(path))) => {
                    let text = self.list_file(i, &path);
                    for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
                        self.listed_address(i, line, &mut list);
                    }
                }
                _ => {}
            }
        }
        list
    }

    fn add_addresses(&mut self, mut list: AddressList) {
        match self.snapshot.address_lists.iter_mut().find(|l| l.name == list.name) {
            Some(l) => {
                l.domains.append(&mut list.domains);
                l.addresses.append(&mut list.addresses);
                l.expressions.append(&mut list.expressions);
            }
            None => self.snapshot.address_lists.push(list),
        }
    }

    /// `<bounce-processor>`, `<feedback-loop-processor>`: mail to what they list is no mail to deliver.
    pub(super) fn processor(&mut self, tag: &'static str, s: &'s Statement) {
        for i in &s.inside {
            if &*i.name == "<address-list>" {
                let list = self.listed(i);
                self.withhold(tag, list);
            } else {
                self.inside_one(tag, i);
            }
        }
    }

    /// Mail to these addresses is not taken as long as the directive is not in force.
    fn withhold(&mut self, directive: &str, mut list: AddressList) {
        list.name = format!("{{{directive}}}");
        let names = &mut self.snapshot.global.withheld_lists;
        if !names.contains(&list.name) {
            names.push(list.name.clone());
        }
        self.add_addresses(list);
    }

    /// An address, a local part, `@domain`, or an expression between slashes.
    fn listed_address(&mut self, s: &Statement, text: &str, list: &mut AddressList) {
        if let Some(inner) = text.strip_prefix('/') {
            let between = inner.rsplit_once('/').map_or(inner, |(e, _)| e);
            match worker::classify::expression::compile(between) {
                Ok(_) => list.expressions.push(between.to_owned()),
                Err(e) => self.error(s.value_at(), "bad-value", format!("{text}: {e}"), ""),
            }
        } else if let Some(domain) = text.strip_prefix('@') {
            list.domains.push(ascii_domain(domain));
        } else {
            // A local part alone is none that could be written another way.
            list.addresses.push(normal_address(text).unwrap_or_else(|_| text.to_lowercase()));
        }
    }
}

/// As recipients' domains are compared: in lower case, of internationalised ones the A-labels.
fn ascii_domain(text: &str) -> String {
    ipc::message::normalise_domain(text).unwrap_or_else(|_| text.to_lowercase())
}
