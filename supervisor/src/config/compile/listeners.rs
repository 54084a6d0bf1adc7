//! `smtp-listener` lines and blocks to the addresses of this machine that are listened on.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::ControlFlow;

use ipc::snapshot::Listener;
use worker::connect::own_addresses;

use super::super::composite::Listen;
use super::super::source_hosts::within;
use super::listener_lines::{Asked, Lines};
use super::{Compiler, Diagnostic, Span};

/// Listeners of a server: they travel to a worker in one frame, with the snapshot, the ledger and `dummy-smtp-port`'s.
const LISTENERS_MAX: usize = ipc::limits::DESCRIPTORS_PER_FRAME_MAX - 3;

/// Addresses that are listened on, and the lines that say so.
#[derive(Default)]
struct Taken {
    all: Vec<(Span, Listener)>,
    /// The lines that were last said to name an address again, with another meaning and with the same.
    told: [Option<Span>; 2],
}

impl Compiler<'_> {
    /// Puts the listeners in their place. Addresses that are named beat those that a network stands for.
    pub(super) fn listeners(&mut self) {
        let asked = std::mem::take(&mut self.listeners.asked);
        self.old_listener(&asked);
        let mut taken = Taken::default();
        for a in &asked {
            self.check_tls(a);
            if let Listen::On(address) = a.listen
                && self.listen(a, address, &mut taken).is_break()
            {
                break;
            }
        }
        let named = taken.all.len();
        for a in &asked {
            let Listen::Within(network, port) = a.listen else { continue };
            let local = self.lasting_addresses.get_or_insert_with(own_addresses::lasting);
            let all = within(network, local);
            if all.is_empty() {
                let message = format!("no address of this machine lies in {network}: nothing is listened on");
                self.warning(a.at, "no-address", message, "a server refuses to start with this on such a machine");
                self.out.no_address.push(format!("{network}:{port}"));
            }
            for address in all.into_iter().map(|ip| SocketAddr::new(ip, port)) {
                let is_named = taken.all[..named].iter().any(|(_, l)| l.address == address.to_string());
                if !is_named && self.listen(a, address, &mut taken).is_break() {
                    break;
                }
            }
        }
        self.snapshot.listeners = taken.all.into_iter().map(|(_, l)| l).collect();
        if asked.is_empty() {
            let ip = self.out.smtp_ip.unwrap_or(IpAddr::from(Ipv4Addr::UNSPECIFIED));
            let address = SocketAddr::new(ip, self.out.smtp_port.unwrap_or(25)).to_string();
            let listener = Lines::default().listener(&self.of_listeners, address, String::new());
            self.snapshot.listeners.push(listener);
        }
    }

    /// Says what of a listener's TLS cannot be.
    fn check_tls(&mut self, a: &Asked) {
        let tls = a.lines.listener(&self.of_listeners, String::new(), String::new()).tls;
        let has_certificate = !tls.certificates.is_empty() || self.acme.is_some();
        if tls.immediate && !has_certificate {
            let help = "name the file with tls-certificate here, or with smtp-server-tls-certificate for all listeners";
            self.error(a.at, "missing-directive", "immediate-tls needs a certificate", help);
        }
        if has_certificate && tls.bars_tls12 && tls.bars_tls13 {
            let help = "allow TLS 1.2 or 1.3, or remove the certificate";
            self.error(
                a.at,
                "no-tls-version",
                "this listener has a certificate, and no version of TLS is allowed",
                help,
            );
        }
    }

    /// Takes an address; breaks off where nothing more can be taken.
    fn listen(&mut self, a: &Asked, address: SocketAddr, taken: &mut Taken) -> ControlFlow<()> {
        let new = a.lines.listener(&self.of_listeners, address.to_string(), a.source.clone());
        if let Some((before, l)) = taken.all.iter().find(|(_, l)| l.address == new.address) {
            let is_same = *l == new;
            // Of a network that is said once.
            if taken.told[usize::from(is_same)].replace(a.at) == Some(a.at) {
                return ControlFlow::Continue(());
            }
            let message = format!("listener {} is given twice", new.address);
            let d = match is_same {
                true => Diagnostic::warning(a.at, "duplicate", message, "remove one of them"),
                false => Diagnostic::error(a.at, "duplicate", message, "they do not say the same: keep one"),
            };
            self.reader.diagnostics.push(d.with(*before, "the other one"));
            return ControlFlow::Continue(());
        }
        if taken.all.len() >= LISTENERS_MAX {
            self.error(a.at, "too-many-listeners", format!("more than {LISTENERS_MAX} listeners"), "");
            return ControlFlow::Break(());
        }
        taken.all.push((a.at, new));
        ControlFlow::Continue(())
    }

    /// `smtp-ip` and `smtp-port` say where to listen only where nothing else does.
    fn old_listener(&mut self, asked: &[Asked]) {
        let Some(other) = asked.first() else { return };
        for (name, at) in std::mem::take(&mut self.out.old_listener) {
            let d =
                Diagnostic::warning(at, "no-effect", format!("{name} has no effect beside smtp-listener"), "remove it");
            self.reader.diagnostics.push(d.with(other.at, "is in force"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::compile::compile_text;

    /// Addresses with their sources, and lines and codes of what is wrong.
    fn found(text: &str) -> (Vec<String>, Vec<String>) {
        let checked = compile_text(Path::new("c.conf"), text);
        let listeners = checked.compiled.snapshot.listeners.iter();
        let wrong = checked.diagnostics.iter().filter(|d| d.code != "unused");
        (
            listeners.map(|l| format!("{} {}", l.address, l.source).trim_end().to_owned()).collect(),
            wrong.map(|d| format!("{} {}", d.at.line, d.code)).collect(),
        )
    }

    #[test]
    fn without_a_listener_the_old_directives_say_where() {
        assert_eq!(found("").0, ["0.0.0.0:25"]);
        assert_eq!(found("smtp-port 2525").0, ["0.0.0.0:2525"]);
        assert_eq!(found("smtp-ip 127.0.0.2\nsmtp-port 26").0, ["127.0.0.2:26"]);
        let (all, wrong) = found("smtp-port 26\nsmtp-listener 127.0.0.1:25");
        assert_eq!((all, wrong), (vec!["127.0.0.1:25".to_owned()], vec!["1 no-effect".to_owned()]));
    }

    #[test]
    fn a_network_that_nothing_here_lies_in_is_not_everything() {
        let (all, wrong) = found("smtp-listener 203.0.113.0/24:25");
        assert_eq!((all, wrong), (vec![], vec!["1 no-address".to_owned()]));
    }

    #[test]
    fn an_address_beats_its_network_and_what_is_wrong_is_said_once() {
        let sources = "<source a>\n</source>\n<source b>\n</source>\n";
        let (all, wrong) =
            found(&format!("{sources}smtp-listener 127.0.4.0/31:25 source=a\nsmtp-listener 127.0.4.1:25 source=B\n"));
        assert_eq!(all, ["127.0.4.1:25 b", "127.0.4.0:25 a"]);
        assert!(wrong.is_empty(), "{wrong:?}");
        let (all, wrong) = found("smtp-listener 127.0.4.0/30:25\nsmtp-listener 127.0.4.0/29:25\n");
        assert_eq!((all.len(), wrong), (8, vec!["2 duplicate".to_owned()]));
        let (all, wrong) = found("smtp-listener 127.0.4.0/24:25\n");
        assert_eq!((all.len(), wrong), (197, vec!["1 too-many-listeners".to_owned()]));
    }
}
