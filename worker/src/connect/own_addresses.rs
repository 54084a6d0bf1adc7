//! Addresses of this machine's interfaces, as the kernel shows them in `/proc/net`. No socket has to be made for it: neither
//! workers nor the service need those by which routes and interfaces are managed (`AF_NETLINK`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Routes of IPv4, among them those to this machine itself (`Documentation/networking/fib_trie.rst`).
const V4: &str = "/proc/self/net/fib_trie";
/// Addresses of IPv6; missing where there is no IPv6.
const V6: &str = "/proc/self/net/if_inet6";

/// The flag of an address that is made anew every day so that its machine is not recognised (RFC 8981), `IFA_F_TEMPORARY`.
const TEMPORARY: u32 = 0x01;

/// Those of [`all`] that stay: temporary addresses of IPv6 are given up after a day or a week.
pub fn lasting() -> Vec<IpAddr> {
    let temporary: Vec<Ipv6Addr> = read(V6).lines().filter(|l| is_temporary(l)).filter_map(of_line).collect();
    let is_meant = |ip: &IpAddr| !matches!(ip, IpAddr::V6(ip) if temporary.contains(ip));
    all().into_iter().filter(is_meant).collect()
}

/// Each once, in order; none where the kernel does not show them, and none where they cannot be read, which the log says.
pub fn all() -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = of_v4(&read(V4)).map(IpAddr::V4).chain(of_v6(&read(V6)).map(IpAddr::V6)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| {
        if error.kind() != std::io::ErrorKind::NotFound {
            tracing::warn!(path, %error, "this machine's addresses are not known: mail that would come back is sent out");
        }
        String::new()
    })
}

/// `|-- ADDRESS` lines, each followed by its routes, of which `/32 host LOCAL` is one to this machine.
fn of_v4(trie: &str) -> impl Iterator<Item = Ipv4Addr> {
    let mut address = None;
    trie.lines().filter_map(move |line| {
        let line = line.trim();
        if let Some(text) = line.strip_prefix("|-- ") {
            // What is no address has no routes.
            address = text.parse().ok();
        }
        address.filter(|_| line == "/32 host LOCAL")
    })
}

/// Lines that begin with the 32 digits of an address.
fn of_v6(addresses: &str) -> impl Iterator<Item = Ipv6Addr> {
    addresses.lines().filter_map(of_line)
}

fn of_line(line: &str) -> Option<Ipv6Addr> {
    u128::from_str_radix(line.get(..32)?, 16).ok().map(Ipv6Addr::from_bits)
}

/// Address, interface, bits of the prefix, scope, flags, name; numbers in hexadecimal digits.
fn is_temporary(line: &str) -> bool {
    let flags = line.split_whitespace().nth(4).and_then(|f| u32::from_str_radix(f, 16).ok());
    flags.is_some_and(|f| f & TEMPORARY != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_to_this_machine_are_its_addresses() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     +-- 127.0.0.0/8 2 0 2\n        \
                    |-- 127.0.0.0\n           /8 host LOCAL\n        |-- 127.0.0.1\n           /32 host LOCAL\n     \
                    |-- 192.0.2.2\n        /32 host LOCAL\n        |-- 192.0.2.255\n           /32 link BROADCAST\n";
        let v4: Vec<String> = of_v4(trie).map(|ip| ip.to_string()).collect();
        assert_eq!(v4, ["127.0.0.1", "192.0.2.2"]);
        let v6 = "fe8000000000000000fc00fffe000001 04 40 20 80     eth0\n00000000000000000000000000000001 01 80 10 80 lo\nx\n";
        assert_eq!(of_v6(v6).map(|ip| ip.to_string()).collect::<Vec<_>>(), ["fe80::fc:ff:fe00:1", "::1"]);
    }

    #[test]
    fn addresses_that_are_given_up_are_known_by_their_flag() {
        let lines = "20010db8000000000000000000000001 02 40 00 80     eth0\n\
                     20010db800000000b4d1c3f2a1e00f11 02 40 00 01     eth0\n20010db800000000b4d1c3f2a1e00f12 02 40 00 21     eth0\nx 1\n";
        assert_eq!(lines.lines().map(is_temporary).collect::<Vec<_>>(), [false, true, true, false]);
    }

    #[test]
    fn they_are_those_of_the_interfaces() {
        let mut said: Vec<IpAddr> = nix::ifaddrs::getifaddrs()
            .into_iter()
            .flatten()
            .filter_map(|i| {
                let a = i.address?;
                let v4 = a.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
                v4.or_else(|| a.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
            })
            .collect();
        said.sort_unstable();
        said.dedup();
        assert_eq!(all(), said);
        assert!(all().contains(&IpAddr::from([127, 0, 0, 1])));
    }
}
