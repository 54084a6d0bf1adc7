//! CIDR networks.

#![allow(missing_docs)] // for what derive(Archive) generates beside the documented types

use std::net::IpAddr;

use rkyv::{Archive, Deserialize, Serialize};

/// A CIDR network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Archive, Serialize, Deserialize)]
#[rkyv(derive(Debug))]
pub struct Network {
    /// IPv4 as IPv4-mapped IPv6.
    pub base: [u8; 16],
    /// Bits, of 128; 0 contains every address of both families.
    pub bits: u8,
}

impl Network {
    /// Whether `ip` lies in the network.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = mapped(ip);
        let (whole, rest) = (usize::from(self.bits / 8), self.bits % 8);
        let mask = if rest == 0 { 0 } else { 0xFFu8 << (8 - rest) };
        // More bits than an address has: a damaged snapshot may say so, and then nothing matches.
        self.bits <= 128
            && ip[..whole] == self.base[..whole]
            && (rest == 0 || (ip[whole] ^ self.base[whole]) & mask == 0)
    }
}

impl Network {
    /// The network of `bits` that an address lies in: of 32 for IPv4, of 128 for IPv6.
    pub fn around(ip: IpAddr, bits: u8) -> Network {
        let bits = if ip.is_ipv4() { bits.min(32) + 96 } else { bits.min(128) };
        Network { base: Network { base: mapped(ip), bits }.first(), bits }
    }

    /// The address, or of IPv6 its network of 64 bits: what one host can have as a whole. IPv4-mapped is IPv4.
    pub fn of_one_host(ip: IpAddr) -> Network {
        let ip = ip.to_canonical();
        Network::around(ip, if ip.is_ipv4() { 32 } else { 64 })
    }

    /// The address's network of 24 bits, of IPv6 of 48: what one customer of a provider can have.
    pub fn of_one_customer(ip: IpAddr) -> Network {
        let ip = ip.to_canonical();
        Network::around(ip, if ip.is_ipv4() { 24 } else { 48 })
    }

    /// Every address of a family, or of both.
    pub fn is_everybody(&self) -> bool {
        self.bits == 0 || self.bits == 96 && self.base == mapped(IpAddr::from([0, 0, 0, 0]))
    }

    /// The first address, as 16 bytes: what lies behind the prefix is zero.
    pub fn first(&self) -> [u8; 16] {
        let shift = 128u32.saturating_sub(u32::from(self.bits));
        u128::from_be_bytes(self.base).checked_shr(shift).and_then(|n| n.checked_shl(shift)).unwrap_or(0).to_be_bytes()
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let v6 = std::net::Ipv6Addr::from(self.base);
        match v6.to_ipv4_mapped() {
            Some(v4) => write!(f, "{v4}/{}", self.bits.saturating_sub(96)),
            None if self.bits == 0 => f.write_str("0/0"),
            None => write!(f, "{v6}/{}", self.bits),
        }
    }
}

/// An address as 16 bytes, IPv4 as IPv4-mapped.
pub fn mapped(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// `a.b.c.d/n` with short prefixes such as `10/8`, a plain address, `0/0` for every address
/// of both families, and the same for IPv6, which may stand in brackets as in `[IPv6:::1]`.
pub fn parse(t: &str) -> Option<Network> {
    let t = t.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(t);
    let t = t.get(..5).filter(|p| p.eq_ignore_ascii_case("ipv6:")).map_or(t, |_| &t[5..]);
    if t == "0/0" {
        return Some(Network { base: [0; 16], bits: 0 });
    }
    let (ip, bits) = t.split_once('/').map_or((t, None), |(ip, n)| (ip, Some(n)));
    let mut full = ip.to_owned();
    if bits.is_some() && !ip.contains(':') {
        for _ in full.split('.').count()..4 {
            full.push_str(".0");
        }
    }
    let ip: IpAddr = full.parse().ok()?;
    let width = if ip.is_ipv4() { 32 } else { 128 };
    let bits = match bits {
        Some(b) => b.parse::<u8>().ok().filter(|b| *b <= width)?,
        None => width,
    };
    let bits = if ip.is_ipv4() { bits + 96 } else { bits };
    let base = Network { base: mapped(ip), bits }.first();
    Some(Network { base, bits })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn networks_contain_what_they_should() {
        let n = parse("10/9").unwrap();
        assert!(n.contains("10.127.0.1".parse().unwrap()));
        assert!(!n.contains("10.128.0.1".parse().unwrap()));
        assert!(parse("0/0").unwrap().contains("::1".parse().unwrap()));
        assert!(parse("173.194/16").unwrap().contains("173.194.7.7".parse().unwrap()));
        let one = mapped("::1".parse().unwrap());
        assert!(Network { base: one, bits: 128 }.contains("::1".parse().unwrap()));
        for bits in [129, 136, 255] {
            assert!(!Network { base: one, bits }.contains("::1".parse().unwrap()));
        }
        assert_eq!(parse("[IPv6:::1]"), parse("::1"));
        for (network, is_everybody) in
            [("0/0", true), ("::/0", true), ("0.0.0.0/0", true), ("0/1", false), ("::/96", false)]
        {
            assert_eq!(parse(network).unwrap().is_everybody(), is_everybody, "{network}");
        }
        for (ip, bits, network) in [("10.1.2.3", 24, "10.1.2.0/24"), ("2001:db8:1:2::3", 48, "2001:db8:1::/48")] {
            assert_eq!(Some(Network::around(ip.parse().unwrap(), bits)), parse(network));
        }
        for (ip, host, customer) in [
            ("192.0.2.7", "192.0.2.7/32", "192.0.2.0/24"),
            ("::ffff:192.0.2.7", "192.0.2.7/32", "192.0.2.0/24"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64", "2001:db8:1::/48"),
            ("::1", "::/64", "::/48"),
        ] {
            let ip = ip.parse().unwrap();
            assert_eq!(Network::of_one_host(ip).to_string(), host);
            assert_eq!(Network::of_one_customer(ip).to_string(), customer);
        }
        assert_eq!(parse("10/8").unwrap().to_string(), "10.0.0.0/8");
        for wrong in ["10.0.0.0/33", "10.0.0.0.0/8", "host", "[::1", "::1/129", "10/-1", ""] {
            assert!(parse(wrong).is_none(), "{wrong}");
        }
    }
}
