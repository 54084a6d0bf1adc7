//! `smtp-source-host`: addresses of this machine to send from.

use std::net::{IpAddr, Ipv4Addr};

use ipc::network::Network;
use ipc::snapshot::SourceHost;

use super::composite::{domain, ip};
use super::problem::Problem;

/// What a line names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// One address.
    Ip(IpAddr),
    /// The addresses of this machine that lie in a network.
    Network(Network),
}

/// Addresses and EHLO name of `IP|CIDR HOST-NAME`; the name is empty where none is given.
///
/// # Errors
/// [`Problem`]
pub fn parse(text: &str) -> Result<(From, &str), Problem> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let (first, name) = match words[..] {
        [] => return Err(Problem::other("argument missing").help("form: IP HOST-NAME")),
        [first] => (first, ""),
        [first, name] => (first, name),
        _ => return Err(Problem::expected("IP HOST-NAME", text)),
    };
    let from = match first.split_once('/') {
        Some(_) => ipc::network::parse(first).map(From::Network),
        None => ip(first).ok().map(From::Ip),
    };
    let Some(from) = from else {
        let p = Problem::expected("an IP address or a network first", first).at(first, text);
        let swapped = ip(name).is_ok();
        return Err(if swapped { p.help("the arguments look swapped: IP HOST-NAME") } else { p });
    };
    if !name.is_empty() {
        domain(name).map_err(|p| p.at(name, text))?;
    }
    Ok((from, name))
}

/// What a line that was checked stands for on a machine with these addresses. Of a network
/// 127.0.0.1 is left out: nothing but this machine is reached from it.
pub fn expand(text: &str, local: &[IpAddr]) -> Vec<SourceHost> {
    let Ok((from, name)) = parse(text) else { return Vec::new() };
    let host = |ip: IpAddr| SourceHost { ip: ip.to_string(), name: name.to_owned() };
    match from {
        From::Ip(ip) => vec![host(ip)],
        From::Network(n) => {
            within(n, local).into_iter().filter(|ip| *ip != IpAddr::V4(Ipv4Addr::LOCALHOST)).map(host).collect()
        }
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// Addresses of a network of 127/8 that are all taken for addresses of this machine.
const LOOPBACK_MAX: u32 = 256;

/// The addresses of this machine in a network, where `local` are those of its interfaces. Every address of 127/8 is this
/// machine's without an interface that says so; a wide network there means those of the interfaces.
pub fn within(network: Network, local: &[IpAddr]) -> Vec<IpAddr> {
    let hosts = 1u32.checked_shl(128u32.saturating_sub(u32::from(network.bits))).filter(|n| *n <= LOOPBACK_MAX);
    match (IpAddr::from(network.first()).to_canonical(), hosts) {
        (IpAddr::V4(first), Some(hosts)) if first.is_loopback() => {
            // 127.255.255.255 is the broadcast address of the network.
            let all = (first.to_bits()..=first.to_bits() + (hosts - 1)).map(Ipv4Addr::from_bits);
            all.filter(|ip| *ip != Ipv4Addr::new(127, 255, 255, 255)).map(IpAddr::V4).collect()
        }
        // Link-local addresses cannot be used without the name of their interface.
        _ => local.iter().copied().filter(|ip| network.contains(*ip) && !is_link_local(*ip)).collect(),
    }
}

/// Whether connections can begin at an address here.
///
/// # Errors
/// As `bind(2)`.
pub fn usable(ip: &str) -> std::io::Result<()> {
    let ip: IpAddr = ip.parse().map_err(|_| std::io::Error::other("not an address"))?;
    std::net::UdpSocket::bind((ip, 0)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_stands_for_the_addresses_of_this_machine_in_it() {
        let local = ["127.0.0.1", "10.1.0.1", "10.1.0.2", "192.0.2.1"].map(|t| t.parse().expect("an address"));
        let ips =
            |text: &str| expand(text, &local).into_iter().map(|h| format!("{} {}", h.ip, h.name)).collect::<Vec<_>>();
        assert_eq!(ips("10.1/16 m.test"), ["10.1.0.1 m.test", "10.1.0.2 m.test"]);
        assert_eq!(ips("0/0 m.test").len(), 3);
        assert_eq!(ips("127.0.0.1 m.test"), ["127.0.0.1 m.test"]);
        assert_eq!(ips("[IPv6:::1] m.test"), ["::1 m.test"]);
        assert!(ips("172.16/12 m.test").is_empty());
    }

    #[test]
    fn every_address_of_the_loopback_network_is_this_machines() {
        let local = ["127.0.0.1", "10.1.0.1"].map(|t| t.parse().expect("an address"));
        let of = |t: &str| within(ipc::network::parse(t).expect("a network"), &local);
        let texts = |t: &str| of(t).iter().map(IpAddr::to_string).collect::<Vec<_>>();
        assert_eq!(texts("127.0.4.0/30"), ["127.0.4.0", "127.0.4.1", "127.0.4.2", "127.0.4.3"]);
        assert_eq!((of("127.0.4.0/24").len(), of("127.255.255.0/24").len()), (256, 255));
        assert_eq!(texts("127.0.0.0/23"), ["127.0.0.1"]);
        assert_eq!(texts("127/8"), ["127.0.0.1"]);
        assert_eq!((of("0/0").len(), of("10.1.0.0/30").len(), of("::/120").len()), (2, 1, 0));
    }
}
