//! Mail that would come back: hosts of a destination that are this server itself (RFC 5321 section 5.1).

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipc::dice::HashSet;
use ipc::snapshot::ArchivedSnapshot;
use tokio::time::Instant;

use super::own_addresses;

/// The port at which a host's name alone says that it is this server.
const SMTP_PORT: u16 = 25;
/// How long the addresses of this machine are taken to be the same.
const ADDRESSES_KNOWN_FOR: Duration = Duration::from_secs(10);

/// What this server listens on, and the names that it goes by.
#[derive(Debug)]
pub struct OwnServer {
    listeners: Vec<SocketAddr>,
    /// `host-name`, and those of virtual MTAs.
    names: HashSet<String>,
    addresses: RefCell<Option<(Instant, Vec<IpAddr>)>>,
}

impl OwnServer {
    /// By a configuration.
    pub fn of(snapshot: &ArchivedSnapshot) -> OwnServer {
        let listeners = snapshot.listeners.iter().filter_map(|l| l.address.as_str().parse().ok()).collect();
        let of_vmtas = snapshot.vmtas.iter().map(|v| v.host_name.as_str());
        let all = of_vmtas.chain([snapshot.global.host_name.as_str()]);
        let names = all.filter(|n| !n.is_empty()).map(plain).collect();
        OwnServer { listeners, names, addresses: RefCell::default() }
    }

    /// Whether a mail host's name is one of the names that this server goes by. At other ports than 25 somebody else may
    /// well answer on the same machine.
    pub fn is_named(&self, name: &str, port: u16) -> bool {
        port == SMTP_PORT && self.names.contains(&plain(name))
    }

    /// Whether one of this server's listeners accepts connections to `to`.
    pub fn is_listened_at(&self, to: SocketAddr) -> bool {
        accepts(self.listeners.iter().copied(), to, |ip| self.is_of_this_machine(ip))
    }

    /// Whether an interface of this machine has the address.
    fn is_of_this_machine(&self, ip: IpAddr) -> bool {
        let mut known = self.addresses.borrow_mut();
        if known.as_ref().is_none_or(|(at, _)| at.elapsed() > ADDRESSES_KNOWN_FOR) {
            *known = Some((Instant::now(), own_addresses::all()));
        }
        known.as_ref().is_some_and(|(_, all)| all.contains(&ip))
    }
}

/// A name as it is compared.
fn plain(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
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
