//! How a connection to a host is protected: what its operator demands, what DNS (DANE) and the
//! domain's own policy (MTA-STS) demand, and else what can be had.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use ipc::dice::HashMap;
use ipc::rules::DomainRules;
use ipc::snapshot::{ArchivedSnapshot, Global};

use crate::classify::outcome::{Outcome, Verdict};
use crate::clock;
use crate::connect::dane::{self, Dane};
use crate::connect::mta_sts::{Policies, Policy, PolicyMode};
use crate::connect::mx::{Host, Resolver};
use crate::connect::protection::{Parameters, Trust};
use crate::connect::secure_dns::SecureResolver;
use crate::connect::tls::ClientConfigs;
use crate::ports::Ports;

/// How long what was seen of a host holds, milliseconds.
const SEEN_MS: i64 = 3_600_000;
/// Such hosts that are remembered.
const SEEN_MAX: usize = 10_000;
/// Encryption needed (RFC 5248).
const NEEDS_TLS: [&str; 2] = ["5.7.10", "4.7.10"];
/// The command may not be given before STARTTLS (RFC 3207 section 4), or before AUTH.
const STARTTLS_FIRST: u16 = 530;

/// What was seen of a host's TLS where it is opportunistic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// STARTTLS does not work: the host is greeted in the clear where that may be.
    Broken,
    /// It takes no mail in the clear, so that nothing is gained by trying.
    Needed,
}

/// What holds for a connection to one host.
#[derive(Debug, Clone)]
pub struct Security {
    /// STARTTLS is used where it is offered.
    pub wanted: bool,
    /// Nothing is sent in the clear.
    pub required: bool,
    /// Why, as accounting names it.
    pub policy: &'static str,
    /// Certificates, versions, ciphers.
    pub parameters: Parameters,
}

/// What a worker needs to know of it all.
#[derive(Debug)]
pub struct Protection {
    /// Configurations by parameters.
    pub configs: ClientConfigs,
    secure_dns: SecureResolver,
    policies: Policies,
    /// Hosts, and until when it holds, Unix milliseconds.
    seen: RefCell<HashMap<String, (Seen, i64)>>,
}

impl Protection {
    /// By the server's settings.
    pub fn of(global: &Global, ports: &Ports) -> Protection {
        let (trusted, servers) = (&global.dnssec_name_servers, &global.name_servers);
        Protection {
            configs: ClientConfigs::default(),
            secure_dns: SecureResolver::new(trusted, servers, global.edns_udp_length, &ports.dns),
            policies: Policies::in_folder(Path::new(&global.data_dir).join("mta-sts"), &ports.net),
            seen: RefCell::default(),
        }
    }

    /// The domain's MTA-STS policy, if it is to be obeyed. Hosts that the configuration names are
    /// not the domain's.
    pub async fn policy_of(
        &self,
        snapshot: &ArchivedSnapshot,
        rules: &DomainRules,
        domain: &str,
        resolver: &Resolver,
    ) -> Option<Rc<Policy>> {
        if !rules.use_starttls || !rules.use_mta_sts || !rules.smtp_hosts.is_empty() || domain.starts_with('[') {
            return None;
        }
        let trust = verified(snapshot, rules);
        let web = Parameters { trust, identity: String::new(), ..parameters(snapshot, rules) };
        match self.configs.of(&web) {
            Ok(tls) => self.policies.of(domain, resolver, &tls).await,
            Err(e) => {
                tracing::debug!(domain, error = e, "no new MTA-STS policies are read");
                self.policies.kept(domain).await
            }
        }
    }

    /// What holds for a host of `domain` whose policy is `sts`.
    ///
    /// # Errors
    /// A sentence when it may not be used.
    pub async fn of_host(
        &self,
        snapshot: &ArchivedSnapshot,
        rules: &DomainRules,
        domain: &str,
        sts: Option<&Policy>,
        host: &Host,
    ) -> Result<Security, String> {
        let own = parameters(snapshot, rules);
        if !rules.use_starttls {
            return Ok(Security {
                wanted: false,
                required: rules.require_starttls,
                policy: "use-starttls no",
                parameters: own,
            });
        }
        if rules.use_dane {
            let port = host.addresses.first().map_or(25, std::net::SocketAddr::port);
            match dane::of_host(&self.secure_dns, domain, host, port).await {
                Ok(Dane::Demanded { records, names }) => {
                    let parameters = Parameters { trust: Trust::Dane { records, names }, ..own };
                    return Ok(Security { wanted: true, required: true, policy: "dane", parameters });
                }
                Ok(Dane::Unused) => {}
                Err(e) => return Err(format!("DANE: {e}")),
            }
        }
        if let Some(p) = sts.filter(|p| p.mode != PolicyMode::None) {
            let allowed = p.allows(&host.name);
            if p.mode == PolicyMode::Enforce {
                if !allowed {
                    return Err(format!("MTA-STS: {} is not among the mail hosts of {domain}'s policy", host.name));
                }
                let parameters = Parameters { trust: verified(snapshot, rules), ..own };
                return Ok(Security { wanted: true, required: true, policy: "mta-sts", parameters });
            }
            if !allowed {
                tracing::warn!(domain, host = host.name, "not among the mail hosts of the MTA-STS policy (testing)");
            }
        }
        let seen = self.seen_of(&host.name);
        if !rules.smtp_tls_ca_file.is_empty() {
            let parameters = Parameters { trust: verified(snapshot, rules), ..own };
            let required = rules.require_starttls || seen == Some(Seen::Needed);
            return Ok(Security { wanted: true, required, policy: "smtp-tls-ca-file", parameters });
        }
        let (wanted, required, policy) = match seen {
            _ if rules.require_starttls => (true, true, "require-starttls"),
            Some(Seen::Needed) => (true, true, "receiver"),
            Some(Seen::Broken) => (false, false, "opportunistic"),
            None => (true, false, "opportunistic"),
        };
        Ok(Security { wanted, required, policy, parameters: own })
    }

    fn seen_of(&self, host: &str) -> Option<Seen> {
        let seen = self.seen.borrow().get(host).copied();
        seen.filter(|(_, until)| *until > clock::now_ms()).map(|(what, _)| what)
    }

    fn note(&self, host: &str, what: Seen) {
        let now = clock::now_ms();
        let mut all = self.seen.borrow_mut();
        if all.len() >= SEEN_MAX {
            all.retain(|_, (_, until)| *until > now);
            if all.len() >= SEEN_MAX {
                all.clear();
            }
        }
        all.insert(host.to_owned(), (what, now + SEEN_MS));
    }

    /// STARTTLS of a host does not work: it is left out for a while where it may be.
    pub fn broke(&self, host: &str) {
        // A connection that began before may end in it.
        if self.seen_of(host) != Some(Seen::Needed) {
            self.note(host, Seen::Broken);
        }
    }

    /// What a receiver refuses because it came in the clear waits for TLS, which the host is not
    /// left without from then on; true when that was so, and the session of no more use.
    /// `decided` are the verdicts of a session in the clear; `offers_tls` says whether its host does.
    pub fn clear_text_refused<'v>(
        &self,
        rules: &DomainRules,
        host: &str,
        offers_tls: bool,
        decided: impl Iterator<Item = &'v mut Verdict>,
    ) -> bool {
        if !rules.use_starttls {
            return false;
        }
        let has_tls = offers_tls || self.seen_of(host).is_some();
        let needs_tls =
            |v: &Verdict| v.remote && (NEEDS_TLS.contains(&v.status.as_str()) || v.code == STARTTLS_FIRST && has_tls);
        let mut refused = false;
        for v in decided.filter(|v| needs_tls(v)) {
            (v.outcome, refused) = (Outcome::Deferred, true);
            NEEDS_TLS[1].clone_into(&mut v.status);
        }
        if refused {
            tracing::info!(host, "it takes no mail in the clear: TLS is demanded for a while");
            self.note(host, Seen::Needed);
        }
        refused
    }
}

fn verified(snapshot: &ArchivedSnapshot, rules: &DomainRules) -> Trust {
    match rules.smtp_tls_ca_file.as_str() {
        "" => Trust::WebPki,
        path => Trust::Roots(snapshot.pem(path).unwrap_or_default().to_owned()),
    }
}

fn parameters(snapshot: &ArchivedSnapshot, rules: &DomainRules) -> Parameters {
    let identity = match rules.smtp_client_certificate.as_str() {
        "" => String::new(),
        path => snapshot.pem(path).unwrap_or_default().to_owned(),
    };
    Parameters {
        trust: Trust::Any,
        tls12: rules.smtp_tls_allow_tlsv12,
        tls13: rules.smtp_tls_allow_tlsv13,
        ciphers: rules.smtp_tls_ciphers.clone(),
        suites: rules.smtp_tls_tlsv13_ciphersuites.clone(),
        identity,
        resume: rules.reuse_ssl_session,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_needs_tls_is_not_left_without_by_what_began_before() {
        let p = Protection::of(&Global::default(), &Ports::of_the_system(0, Default::default()));
        p.broke("a.test");
        assert_eq!(p.seen_of("a.test"), Some(Seen::Broken));
        p.note("a.test", Seen::Needed);
        p.broke("a.test");
        assert_eq!((p.seen_of("a.test"), p.seen_of("b.test")), (Some(Seen::Needed), None));
        p.seen.borrow_mut().insert("a.test".into(), (Seen::Needed, clock::now_ms() - 1));
        assert_eq!(p.seen_of("a.test"), None, "it is over");
        (0..SEEN_MAX + 10).for_each(|n| p.broke(&format!("{n}.test")));
        assert!(p.seen.borrow().len() <= SEEN_MAX);
    }
}
