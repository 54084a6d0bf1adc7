//! Checks of a client and its sender by DNS: SPF (RFC 7208) and the names of its address (`iprev`, RFC 8601 section 2.7.3).

use std::net::IpAddr;
use std::time::Duration;

use ipc::rules::SourceRules;
use tokio::time::timeout;

use crate::smtp::command::Refusal;
use crate::spf::names::{Names, confirmed};
use crate::spf::{self, SpfResult};

/// How long the checks of one sender may take (RFC 7208 section 4.6.4).
const CHECKS_MAX: Duration = Duration::from_secs(20);
/// Steps of a check that are shown, bytes: a line of a header has 998.
const SHOWN_MAX: usize = 700;

/// What is to be checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sender {
    /// The client's EHLO name.
    pub hello: String,
    /// The sender that it named; empty for the null sender.
    pub address: String,
}

/// Whether these clients' senders are checked at all.
pub fn are_asked_for(rules: &SourceRules) -> bool {
    rules.check_spf_inbound || rules.check_iprev_inbound
}

/// What a message of the client says of its authentication, as Authentication-Results has it behind the name of the server.
///
/// # Errors
/// The reply to a client whose mail is not taken.
pub async fn check(names: &impl Names, rules: &SourceRules, ip: IpAddr, sender: &Sender) -> Result<String, Refusal> {
    let mut results = Vec::new();
    let all = async {
        if rules.check_iprev_inbound {
            results.push(by_name(names, rules, ip).await?);
        }
        if rules.check_spf_inbound {
            results.push(by_spf(names, rules, ip, sender).await?);
        }
        Ok(())
    };
    match timeout(CHECKS_MAX, all).await {
        Ok(done) => done?,
        Err(_) => {
            let why = format!("DNS took longer than {} s", CHECKS_MAX.as_secs());
            // Which of them is not known: the first that asks for it has its reply.
            if rules.check_iprev_inbound && rules.reject_iprev_check_temperror {
                return Err(Refusal(451, "4.7.25", format!("{why} (reject-iprev-check-temperror)")));
            }
            if rules.check_spf_inbound && rules.reject_spf_check_temperror {
                return Err(Refusal(451, "4.7.24", format!("{why} (reject-spf-check-temperror)")));
            }
            let left = [("iprev", rules.check_iprev_inbound), ("spf", rules.check_spf_inbound)];
            results = left.iter().filter(|(_, on)| *on).map(|(method, _)| format!("{method}=temperror")).collect();
        }
    }
    Ok(results.join(";\r\n\t"))
}

/// The client's address has a name whose address it is.
async fn by_name(names: &impl Names, rules: &SourceRules, ip: IpAddr) -> Result<String, Refusal> {
    let (result, said) = match names.names_of(ip).await {
        Err(why) => ("temperror", why.0),
        Ok(all) if all.is_empty() => ("permerror", "the address has no name (PTR)".to_owned()),
        Ok(_) => match confirmed(names, ip).await {
            Ok(own) if own.is_empty() => ("fail", "no name of the address has it as an address".to_owned()),
            Ok(own) => ("pass", own.join(" ")),
            Err(why) => ("temperror", why.0),
        },
    };
    let refused = match result {
        "temperror" if rules.reject_iprev_check_temperror => Some((451, "4.7.25", "reject-iprev-check-temperror")),
        "permerror" if rules.reject_iprev_check_permerror => Some((550, "5.7.25", "reject-iprev-check-permerror")),
        "fail" if rules.reject_iprev_check_fail => Some((550, "5.7.25", "reject-iprev-check-fail")),
        _ => None,
    };
    if let Some((code, status, directive)) = refused {
        return Err(Refusal(code, status, format!("Reverse DNS of {ip} says {result}: {said} ({directive})")));
    }
    Ok(format!("iprev={result}{} policy.iprev={}", comment(rules.trace_iprev_check, &[said]), value(&ip.to_string())))
}

async fn by_spf(names: &impl Names, rules: &SourceRules, ip: IpAddr, sender: &Sender) -> Result<String, Refusal> {
    let voids_max = u32::try_from(rules.check_spf_inbound_max_void_lookups).unwrap_or(u32::MAX);
    let asked = spf::Asked { ip, hello: &sender.hello, sender: &sender.address, voids_max };
    let checked = spf::check(names, &asked).await;
    let refused = match checked.result {
        SpfResult::TempError if rules.reject_spf_check_temperror => Some((451, "4.7.24", "reject-spf-check-temperror")),
        SpfResult::PermError if rules.reject_spf_check_permerror => Some((550, "5.7.24", "reject-spf-check-permerror")),
        SpfResult::Fail if rules.reject_spf_check_fail => Some((550, "5.7.23", "reject-spf-check-fail")),
        _ => None,
    };
    if let Some((code, status, directive)) = refused {
        let (domain, result) = (&checked.domain, checked.result.word());
        return Err(Refusal(code, status, format!("SPF of {domain} says {result} to {ip} ({directive})")));
    }
    let property = if sender.address.is_empty() { "smtp.helo" } else { "smtp.mailfrom" };
    let comment = comment(rules.trace_spf_check, &checked.trace);
    Ok(format!("spf={}{comment} {property}={}", checked.result.word(), value(&checked.domain)))
}

/// Steps of a check as a comment of a header.
fn comment(is_asked_for: bool, steps: &[String]) -> String {
    if !is_asked_for {
        return String::new();
    }
    let text = ipc::text::clean(&steps.join("; "), SHOWN_MAX).into_owned();
    let plain = |c: char| if c.is_ascii() && !"()\\".contains(c) { c } else { '_' };
    format!("\r\n\t({})\r\n\t", text.chars().map(plain).collect::<String>())
}

/// A value as it stands in a header: a token (RFC 2045), else in quotes; nothing is there that quotes would not hold.
fn value(text: &str) -> String {
    let is_token = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    if is_token { text.to_owned() } else { format!("\"{text}\"") }
}
