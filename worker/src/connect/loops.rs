//! Mail that would come back: hosts of a destination that are this server itself (RFC 5321 section 5.1).

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ipc::snapshot::ArchivedSnapshot;

/// The port at which a host's name alone says that it is this server.
const SMTP_PORT: u16 = 25;
/// How long the addresses of this machine are taken to be the same.
const ADDRESSES_KNOWN_FOR: Duration = Duration::from_secs(10);

thread_local! {
    static OWN_ADDRESSES: RefCell<Option<(Instant, Vec<IpAddr>)>> = const { RefCell::new(None) };
}

/// Whether a mail host's name is one of the names that this server goes by: `host-name`, or that of a virtual MTA. At other
/// ports than 25 somebody else may well answer on the same machine.
pub fn is_named(snapshot: &ArchivedSnapshot, name: &str, port: u16) -> bool {
    let same =
        |own: &str| !own.is_empty() && own.trim_end_matches('.').eq_ignore_ascii_case(name.trim_end_matches('.'));
    port == SMTP_PORT
        && (same(snapshot.global.host_name.as_str()) || snapshot.vmtas.iter().any(|v| same(v.host_name.as_str())))
}

/// Whether one of this server's listeners accepts connections to `to`.
pub fn is_listened_at(snapshot: &ArchivedSnapshot, to: SocketAddr) -> bool {
    let listeners = snapshot.listeners.iter().filter_map(|l| l.address.as_str().parse().ok());
    accepts(listeners, to, is_of_this_machine)
}

fn accepts(mut listeners: impl Iterator<Item = SocketAddr>, to: SocketAddr, is_own: impl Fn(IpAddr) -> bool) -> bool {
    let ip = to.ip().to_canonical();
    listeners.any(|l| {
        let at = l.ip().to_canonical();
        // The unspecified address leads to this machine, by whatever address the connection comes from.
        let same = || at == ip || ip.is_unspecified() && at.is_ipv4() == ip.is_ipv4();
        // A listener for every address of IPv6 takes no IPv4.
        let all = || at.is_unspecified() && at.is_ipv4() == ip.is_ipv4() && (ip.is_loopback() || is_own(ip));
        l.port() == to.port() && (same() || all())
    })
}

/// Whether an interface of this machine has the address.
fn is_of_this_machine(ip: IpAddr) -> bool {
    OWN_ADDRESSES.with_borrow_mut(|known| {
        if known.as_ref().is_none_or(|(at, _)| at.elapsed() > ADDRESSES_KNOWN_FOR) {
            *known = Some((Instant::now(), addresses()));
        }
        known.as_ref().is_some_and(|(_, all)| all.contains(&ip))
    })
}

fn addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    let ip = |i: nix::ifaddrs::InterfaceAddress| {
        let address = i.address?;
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
    };
    interfaces.filter_map(ip).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_and_port_count() {
        let own = |ip: IpAddr| ip == IpAddr::from([192, 0, 2, 1]);
        let accepts = |listener: &str, to: &str| {
            let (Ok(l), Ok(to)) = (listener.parse(), to.parse()) else { return false };
            accepts(std::iter::once(l), to, own)
        };
        for (listener, to) in [
            ("127.0.0.1:25", "127.0.0.1:25"),
            ("127.0.0.1:25", "0.0.0.0:25"),
            ("[::1]:25", "[::]:25"),
            ("127.0.0.1:25", "[::ffff:127.0.0.1]:25"),
            ("0.0.0.0:25", "127.9.9.9:25"),
            ("0.0.0.0:25", "192.0.2.1:25"),
            ("[::]:25", "[::1]:25"),
        ] {
            assert!(accepts(listener, to), "{listener} {to}");
        }
        for (listener, to) in [
            ("127.0.0.1:25", "127.0.0.2:25"),
            ("127.0.0.1:25", "127.0.0.1:26"),
            ("0.0.0.0:25", "127.0.0.1:26"),
            ("0.0.0.0:25", "192.0.2.2:25"),
            ("0.0.0.0:25", "[::1]:25"),
            ("192.0.2.1:25", "127.0.0.1:25"),
            ("[::]:25", "192.0.2.1:25"),
        ] {
            assert!(!accepts(listener, to), "{listener} {to}");
        }
    }
}
