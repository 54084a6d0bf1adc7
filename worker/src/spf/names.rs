//! What a check asks of DNS.

use std::future::Future;
use std::net::IpAddr;

/// Why DNS does not answer, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unanswered(pub String);

/// Answers of DNS; none where a name has no such records, or does not exist. Names have no final dot.
pub trait Names {
    /// Texts, each of its strings put together.
    fn texts(&self, name: &str) -> impl Future<Output = Result<Vec<Vec<u8>>, Unanswered>>;
    /// Addresses, of IPv6 or of IPv4.
    fn addresses(&self, name: &str, v6: bool) -> impl Future<Output = Result<Vec<IpAddr>, Unanswered>>;
    /// Names of mail hosts, best first.
    fn mail_hosts(&self, name: &str) -> impl Future<Output = Result<Vec<String>, Unanswered>>;
    /// Names of an address.
    fn names_of(&self, ip: IpAddr) -> impl Future<Output = Result<Vec<String>, Unanswered>>;
}

/// Names that are asked of an address's, at most (RFC 7208 section 4.6.4).
pub const NAMES_MAX: usize = 10;

/// Those of the names of an address that have it as an address of theirs (RFC 8601 section 2.7.3); how many of the first names were looked at is bounded.
///
/// # Errors
/// DNS does not answer for the address, or for a name of it where no other is confirmed.
pub async fn confirmed(names: &impl Names, ip: IpAddr) -> Result<Vec<String>, Unanswered> {
    let (mut found, mut unanswered) = (Vec::new(), None);
    for name in names.names_of(ip).await?.into_iter().take(NAMES_MAX) {
        match names.addresses(&name, ip.is_ipv6()).await {
            Ok(all) if all.contains(&ip) => found.push(name.to_ascii_lowercase()),
            Ok(_) => {}
            Err(why) => unanswered = Some(why),
        }
    }
    match unanswered {
        Some(why) if found.is_empty() => Err(why),
        _ => Ok(found),
    }
}
