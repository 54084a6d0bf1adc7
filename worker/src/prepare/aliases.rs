//! `alias`: mail to an address goes to others in its place.

use ipc::dice::HashSet;
use ipc::limits::RECIPIENTS_PER_MESSAGE_MAX;
use ipc::message::{Recipient, notify};
use ipc::snapshot::ArchivedSnapshot;

use super::recipients::each_once;
use crate::smtp::command::Refusal;
use crate::suppression::normal_address;

/// Key of the addresses of a whole domain in [`ipc::snapshot::Snapshot::aliases`].
pub fn of_domain(domain: &str) -> String {
    format!("*@{domain}")
}

/// Puts those in the place of recipients that aliases name for them. What was said of the recipient holds for each of them, and reports name it as
/// the original recipient (RFC 3461 section 5.2.7.3).
///
/// # Errors
/// The reply when there are more recipients then than a message may have.
pub fn expand(snapshot: &ArchivedSnapshot, recipients: Vec<Recipient>) -> Result<Vec<Recipient>, Refusal> {
    if snapshot.aliases.is_empty() {
        return Ok(recipients);
    }
    let mut out: Vec<Recipient> = Vec::with_capacity(recipients.len());
    // Places of those that aliases name.
    let mut named = Vec::new();
    for r in recipients {
        match targets(snapshot, &r) {
            None => out.push(r),
            Some(to) => {
                let orcpt = if r.orcpt.is_empty() { original(&r.address) } else { r.orcpt.clone() };
                let before = out.len();
                out.extend(to.filter_map(|address| {
                    let destination = ipc::message::destination_of(address).ok()?;
                    Some(Recipient { address: address.to_owned(), destination, orcpt: orcpt.clone(), ..r.clone() })
                }));
                named.extend(before..out.len());
                if out.len() == before {
                    // The configuration was checked: an alias leads somewhere.
                    out.push(r);
                }
            }
        }
        if out.len() > RECIPIENTS_PER_MESSAGE_MAX {
            let text = format!("Aliases make more than {RECIPIENTS_PER_MESSAGE_MAX} recipients of it");
            return Err(Refusal(554, "5.5.3", text));
        }
    }
    if named.is_empty() {
        return Ok(out);
    }
    // Who was given directly has no original recipient by an alias, which may be that of a copy that nobody is to know of.
    let is_named: HashSet<usize> = named.iter().copied().collect();
    let key = |r: &Recipient| (r.address.rsplit_once('@').map_or("", |(l, _)| l).to_owned(), r.destination.clone());
    let given: HashSet<_> =
        out.iter().enumerate().filter(|(n, _)| !is_named.contains(n)).map(|(_, r)| key(r)).collect();
    for n in named {
        if given.contains(&key(&out[n])) {
            out[n].orcpt.clear();
        }
    }
    Ok(each_once(out))
}

/// The addresses that aliases name for a recipient; `None` where it stays what it is.
fn targets<'s>(snapshot: &'s ArchivedSnapshot, r: &Recipient) -> Option<impl Iterator<Item = &'s str> + use<'s>> {
    if r.notify & notify::NOT_TO_BE_SENT != 0 {
        return None;
    }
    let address = normal_address(&r.address).ok()?;
    let (_, domain) = address.rsplit_once('@')?;
    let of = snapshot.aliases.get(address.as_str()).or_else(|| snapshot.aliases.get(of_domain(domain).as_str()))?;
    let to = of.iter().map(|t| t.as_str());
    // One that leads to itself alone is none.
    let stays = of.len() == 1 && normal_address(of[0].as_str()).is_ok_and(|t| t == address);
    (!stays).then_some(to)
}

/// An address as ORCPT has it (RFC 3461 section 4.2; RFC 6533 section 3 where it is not ASCII).
fn original(address: &str) -> String {
    let is_ascii = address.is_ascii();
    let written = |c: char| match c {
        '+' | '=' | '\\' if !is_ascii => format!("\\x{{{:X}}}", u32::from(c)),
        '!'..='~' if !"+=".contains(c) => c.to_string(),
        c if is_ascii => format!("+{:02X}", u32::from(c)),
        c => format!("\\x{{{:X}}}", u32::from(c)),
    };
    format!("{};{}", if is_ascii { "rfc822" } else { "utf-8" }, address.chars().map(written).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn original_recipients_are_written_as_their_kind_wants() {
        assert_eq!(original("a+b=c@d.test"), "rfc822;a+2Bb+3Dc@d.test");
        assert_eq!(original("\"a b\"@d.test"), "rfc822;\"a+20b\"@d.test");
        assert_eq!(original("\u{fc}+x@d.test"), "utf-8;\\x{FC}\\x{2B}x@d.test");
    }
}
