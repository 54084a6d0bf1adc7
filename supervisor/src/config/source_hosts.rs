//! `smtp-source-host`: addresses of this machine to send from.

use std::net::IpAddr;

use ipc::network::Network;
use ipc::snapshot::SourceHost;

use super::value::Problem;

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
        None => super::composite::ip(first).ok().map(From::Ip),
    };
    let Some(from) = from else {
        let p = Problem::expected("an IP address or a network first", first).at(first, text);
        let swapped = super::composite::ip(name).is_ok();
        return Err(if swapped { p.help("the arguments look swapped: IP HOST-NAME") } else { p });
    };
    if !name.is_empty() {
        super::composite::domain(name).map_err(|p| p.at(name, text))?;
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
        From::Network(n) => local
            .iter()
            .filter(|ip| n.contains(**ip) && **ip != IpAddr::from([127, 0, 0, 1]))
            .map(|ip| host(*ip))
            .collect(),
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
}
