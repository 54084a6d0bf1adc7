//! What checks of senders ask of DNS, by the resolver that mail is delivered by.

use std::net::IpAddr;

use hickory_proto::rr::{RData, RecordType};

use super::mx::{Resolver, text_of};
use crate::spf::Names;
use crate::spf::names::Unanswered;

impl Resolver {
    async fn data<T>(
        &self,
        name: &str,
        kind: RecordType,
        of: impl Fn(&RData) -> Option<T>,
    ) -> Result<Vec<T>, Unanswered> {
        let found = self.found(name, kind).await.map_err(Unanswered)?;
        Ok(found.records().iter().filter_map(of).collect())
    }
}

impl Names for Resolver {
    async fn texts(&self, name: &str) -> Result<Vec<Vec<u8>>, Unanswered> {
        self.data(name, RecordType::TXT, |r| match r {
            RData::TXT(t) => Some(t.txt_data.concat()),
            _ => None,
        })
        .await
    }

    async fn addresses(&self, name: &str, v6: bool) -> Result<Vec<IpAddr>, Unanswered> {
        self.data(name, if v6 { RecordType::AAAA } else { RecordType::A }, |r| match r {
            RData::A(a) => Some(IpAddr::V4(a.0)),
            RData::AAAA(a) => Some(IpAddr::V6(a.0)),
            _ => None,
        })
        .await
    }

    async fn mail_hosts(&self, name: &str) -> Result<Vec<String>, Unanswered> {
        let host = |r: &RData| match r {
            RData::MX(mx) if !mx.exchange.is_root() => Some((mx.preference, text_of(&mx.exchange))),
            _ => None,
        };
        let mut all = self.data(name, RecordType::MX, host).await?;
        all.sort_unstable();
        Ok(all.into_iter().map(|(_, name)| name).collect())
    }

    async fn names_of(&self, ip: IpAddr) -> Result<Vec<String>, Unanswered> {
        self.data(&reverse(ip), RecordType::PTR, |r| match r {
            RData::PTR(name) => Some(text_of(&name.0)),
            _ => None,
        })
        .await
    }
}

/// The name that an address's names are published at (RFC 1035 section 3.5, RFC 3596 section 2.5).
fn reverse(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(ip) => {
            let digits = ip.octets().into_iter().rev().flat_map(|o| [o & 15, o >> 4]);
            digits.map(|d| format!("{d:x}.")).collect::<String>() + "ip6.arpa"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_published_backwards() {
        assert_eq!(reverse(IpAddr::from([192, 0, 2, 10])), "10.2.0.192.in-addr.arpa");
        let v6 = reverse(IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x1f]));
        assert_eq!(v6, format!("f.1.{}8.b.d.0.1.0.0.2.ip6.arpa", "0.".repeat(22)));
    }
}
