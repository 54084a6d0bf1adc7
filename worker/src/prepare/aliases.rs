//! `alias`: mail to an address goes to others in its place.

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
    let mut expanded = false;
    for r in recipients {
        match targets(snapshot, &r) {
            None => out.push(r),
            Some(to) => {
                expanded = true;
                let orcpt = if r.orcpt.is_empty() { original(&r.address) } else { r.orcpt.clone() };
                out.extend(to.filter_map(|address| {
                    let destination = ipc::message::destination_of(address).ok()?;
                    Some(Recipient { address: address.to_owned(), destination, orcpt: orcpt.clone(), ..r.clone() })
                }));
            }
        }
        if out.len() > RECIPIENTS_PER_MESSAGE_MAX {
            let text = format!("Aliases make more than {RECIPIENTS_PER_MESSAGE_MAX} recipients of it");
            return Err(Refusal(554, "5.5.3", text));
        }
    }
    Ok(if expanded { each_once(out) } else { out })
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
    let kind = if address.is_ascii() { "rfc822" } else { "utf-8" };
    let written = |c: char| match c {
        '\\' if kind == "utf-8" => "\\x{5C}".to_owned(),
        '!'..='~' if !"+=".contains(c) => c.to_string(),
        c if c.is_ascii() => format!("+{:02X}", u32::from(c)),
        c => format!("\\x{{{:X}}}", u32::from(c)),
    };
    format!("{kind};{}", address.chars().map(written).collect::<String>())
}
