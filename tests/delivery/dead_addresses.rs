//! Receivers most of whose addresses are dead: the one that lives is reached, over retries where one attempt has not enough tries.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use tests::dns::{Dns, Name};
use tests::engine::Engine;
use tests::eventually;
use tests::receiver::Receiver;

use crate::send;

/// What is behind an address.
enum Behind {
    /// Nobody listens.
    Nobody,
    /// Connections are never taken.
    Nothing,
    /// Connections are taken, and nothing is said.
    Silence,
    /// A greeting that refuses.
    Refusal,
}

/// A receiver that lives, and listeners at dead addresses on its port.
struct Dead {
    lives: Receiver,
    _full: Vec<(TcpListener, Vec<TcpStream>)>,
    _odd: Vec<Receiver>,
}

fn address(i: u8) -> Ipv4Addr {
    [127, 0, 116, i].into()
}

impl Dead {
    fn start(behind: &Behind, dead: u8) -> Dead {
        loop {
            let lives = Receiver::at("127.0.116.200:0");
            let (mut full, mut odd) = (Vec::new(), Vec::new());
            for i in 1..=dead {
                let at = SocketAddr::from((address(i), lives.address.port()));
                let Ok(listener) = TcpListener::bind(at) else { break };
                match behind {
                    Behind::Nobody => {}
                    Behind::Nothing => full.push(filled(listener, at)),
                    Behind::Silence | Behind::Refusal => {
                        drop(listener);
                        let r = Receiver::at(&at.to_string());
                        match behind {
                            Behind::Silence => r.script(|s| s.hang = true),
                            _ => r.script(|s| s.greeting = "421 4.3.2 not now"),
                        }
                        odd.push(r);
                    }
                }
            }
            let taken = full.len() + odd.len();
            if matches!(behind, Behind::Nobody) || taken == usize::from(dead) {
                return Dead { lives, _full: full, _odd: odd };
            }
        }
    }
}

/// Fills the queue of connections that nobody takes, so that more of them hang.
fn filled(listener: TcpListener, at: SocketAddr) -> (TcpListener, Vec<TcpStream>) {
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(1).unwrap()).unwrap();
    let connect = |_| TcpStream::connect_timeout(&at, Duration::from_millis(50)).ok();
    let open = (0..4).map_while(connect).collect();
    (listener, open)
}

/// Mail for a domain whose hosts are as `tell` says arrives within some retries, though `dead` addresses are before the one
/// that lives and an attempt has fewer tries.
fn arrives(behind: &Behind, dead: u8, tries: u8, tell: impl FnOnce(&Dns, u8)) {
    let (dns, receivers) = (Dns::start(), Dead::start(behind, dead));
    tell(&dns, dead);
    let engine = Engine::start(
        1,
        &format!(
            "{}\n<domain *>\n default-smtp-port {}\n retry-after 1s\n use-starttls no\n connect-timeout 1s\n \
             smtp-greeting-timeout 1s\n mx-connection-attempts {tries}\n</domain>",
            dns.directive(),
            receivers.lives.address.port()
        ),
    );
    send(&engine, &["u@many.test"]);
    eventually("it arrives", Duration::from_secs(40), || receivers.lives.unique() == 1);
}

/// A host for each address, each worse than the one before; the last one lives.
fn one_behind_the_other(dns: &Dns, dead: u8) {
    let mut mx: Vec<(u16, &'static str)> = Vec::new();
    for i in 1..=dead {
        let name: &'static str = Box::leak(format!("mx{i}.test").into_boxed_str());
        dns.host(name, address(i).octets());
        mx.push((u16::from(i) * 10, name));
    }
    dns.host("lives.test", [127, 0, 116, 200]);
    mx.push((1000, "lives.test"));
    dns.mx("many.test", &mx);
}

/// One host with all dead addresses, and one behind it.
fn one_host_and_another_behind(dns: &Dns, dead: u8) {
    dns.set("dead.test", Name { a: (1..=dead).map(address).collect(), ..Name::default() });
    dns.host("lives.test", [127, 0, 116, 200]);
    dns.mx("many.test", &[(10, "dead.test"), (20, "lives.test")]);
}

#[test]
fn behind_addresses_where_nobody_listens() {
    arrives(&Behind::Nobody, 12, 10, one_behind_the_other);
    arrives(&Behind::Nobody, 12, 10, one_host_and_another_behind);
    arrives(&Behind::Nobody, 4, 1, one_behind_the_other);
}

#[test]
fn behind_addresses_that_do_not_answer() {
    arrives(&Behind::Nothing, 5, 3, one_behind_the_other);
    arrives(&Behind::Nothing, 5, 3, one_host_and_another_behind);
}

#[test]
fn behind_hosts_that_greet_nobody() {
    arrives(&Behind::Silence, 5, 3, one_behind_the_other);
    arrives(&Behind::Refusal, 5, 3, one_behind_the_other);
}

#[test]
fn mail_goes_back_to_a_preferred_host_that_is_back() {
    let (dns, second) = (Dns::start(), Receiver::at("127.0.116.200:0"));
    let port = second.address.port();
    let first = Receiver::at(&format!("127.0.116.100:{port}"));
    first.script(|s| s.greeting = "421 4.3.2 not now");
    dns.host("first.test", [127, 0, 116, 100]);
    dns.host("second.test", [127, 0, 116, 200]);
    dns.mx("two.test", &[(10, "first.test"), (20, "second.test")]);
    let more = "retry-after 1s\n use-starttls no\n max-msg-per-connection 1\n mx-connection-attempts 1";
    let engine =
        Engine::start(1, &format!("{}\n<domain *>\n default-smtp-port {port}\n {more}\n</domain>", dns.directive()));
    send(&engine, &["u@two.test"]);
    eventually("the second has it", Duration::from_secs(10), || second.unique() == 1);
    first.script(|s| s.greeting = "220 back");
    send(&engine, &["v@two.test"]);
    eventually("the first has it", Duration::from_secs(10), || first.unique() == 1);
}
