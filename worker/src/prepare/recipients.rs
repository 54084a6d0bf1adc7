//! The recipients of a message, each once however often it was given.

use ipc::dice::HashMap;

use ipc::message::{Recipient, notify};

use crate::smtp::command::Rcpt;

/// Recipients of RCPT with their destinations.
pub fn of_rcpt(given: Vec<(Rcpt, String)>) -> Vec<Recipient> {
    let recipient = |(r, destination): (Rcpt, String)| Recipient {
        address: r.address,
        destination,
        notify: r.notify,
        priority_given: 0,
        given_again: 0,
        orcpt: r.orcpt,
    };
    given.into_iter().map(recipient).collect()
}

/// Recipients in the order in which they were given first. Applications that take To, Cc and Bcc as they are give an address twice: its
/// mailbox gets one copy.
///
/// Addresses are the same by their local part, octet for octet, and their domain, however that is spelled.
pub fn each_once(given: Vec<Recipient>) -> Vec<Recipient> {
    let again = first_of_each(&given);
    if again.is_empty() {
        return given;
    }
    let mut all: Vec<Recipient> = Vec::with_capacity(given.len());
    // Where a recipient went: those behind one that was given again move up.
    let mut places = Vec::with_capacity(given.len());
    for (n, r) in given.into_iter().enumerate() {
        let first = again.get(n).filter(|first| **first != n).and_then(|first| places.get(*first).copied());
        places.push(first.unwrap_or(all.len()));
        match first.and_then(|place: usize| all.get_mut(place)) {
            Some(of) => join(of, r),
            None => all.push(r),
        }
    }
    all
}

/// For each recipient the first of the same address; empty where all differ.
fn first_of_each(given: &[Recipient]) -> Vec<usize> {
    if given.len() < 2 {
        return Vec::new();
    }
    let mut seen: HashMap<_, _> = HashMap::default();
    seen.reserve(given.len());
    let firsts: Vec<usize> = given
        .iter()
        .enumerate()
        .map(|(n, r)| {
            let local = r.address.rsplit_once('@').map_or(r.address.as_str(), |(local, _)| local);
            *seen.entry((local, r.destination.as_str(), r.notify & notify::NO_ADDRESS)).or_insert(n)
        })
        .collect();
    if seen.len() == given.len() { Vec::new() } else { firsts }
}

/// Takes in what was said of the same address when it was given again.
fn join(of: &mut Recipient, again: Recipient) {
    of.given_again = of.given_again.saturating_add(again.given_again).saturating_add(1);
    // The spelling that every receiver takes.
    if !of.address.is_ascii() && again.address.is_ascii() {
        of.address = again.address;
    }
    if of.orcpt.is_empty() {
        of.orcpt = again.orcpt;
    }
    of.notify = both(of.notify, again.notify);
}

/// Whoever wants a report gets it. Where nothing was said, that is of failures and delays (RFC 3461 section 4.1).
fn both(a: u8, b: u8) -> u8 {
    let marks = (a | b) & !notify::GIVEN;
    let (a, b) = (a & notify::GIVEN, b & notify::GIVEN);
    let given = match (a, b) {
        (a, b) if a == b => a,
        (notify::NEVER, other) | (other, notify::NEVER) => other,
        (0, other) | (other, 0) => other | notify::FAILURE | notify::DELAY,
        (a, b) => a | b,
    };
    given | marks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn each(addresses: &[&str]) -> Vec<(String, u16)> {
        let rcpt = |a: &&str| Rcpt { address: (*a).to_owned(), notify: 0, orcpt: String::new() };
        let given = addresses.iter().map(|a| (rcpt(a), ipc::message::destination_of(a).unwrap_or_default())).collect();
        each_once(of_rcpt(given)).into_iter().map(|r| (r.address, r.given_again)).collect()
    }

    #[test]
    fn the_same_address_is_one_recipient() {
        let all = ["a@d.test", "b@d.test", "a@D.Test", "A@d.test", "a@e.test", "a@d.test", "b@d.test"];
        let expected = [("a@d.test", 2), ("b@d.test", 1), ("A@d.test", 0), ("a@e.test", 0)];
        assert_eq!(each(&all), expected.map(|(a, n)| (a.to_owned(), n)));
        assert_eq!(each(&["\"a\"@d.test", "a@d.test"]).len(), 2, "whether quotes matter is the receiver's to say");
        assert_eq!(each(&["a@b\u{fc}cher.test", "a@xn--bcher-kva.test"]), [("a@xn--bcher-kva.test".to_owned(), 1)]);
    }

    #[test]
    fn whoever_wants_a_report_gets_it() {
        use notify::{DELAY, FAILURE, NEVER, NOT_TO_BE_SENT, SUCCESS};
        for (a, b, of_both) in [
            (0, 0, 0),
            (NEVER, NEVER, NEVER),
            (NEVER, 0, 0),
            (NEVER, SUCCESS, SUCCESS),
            (0, SUCCESS, SUCCESS | FAILURE | DELAY),
            (FAILURE, DELAY, FAILURE | DELAY),
            (FAILURE, NOT_TO_BE_SENT | FAILURE, NOT_TO_BE_SENT | FAILURE),
        ] {
            assert_eq!((both(a, b), both(b, a)), (of_both, of_both), "{a} {b}");
        }
    }
}
