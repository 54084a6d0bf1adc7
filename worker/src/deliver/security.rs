//! How a connection to a host is protected: what its operator demands, what DNS (DANE) and the
//! domain's own policy (MTA-STS) demand, and else what can be had.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;

use ipc::rules::DomainRules;
use ipc::snapshot::{ArchivedSnapshot, Global};

use crate::clock;
use crate::connect::dane::{self, Dane};
use crate::connect::mta_sts::{Mode, Policies, Policy};
use crate::connect::mx::{Host, Resolver};
use crate::connect::secure_dns::SecureResolver;
use crate::connect::tls::{ClientConfigs, Parameters, Trust};

/// How long a host whose STARTTLS broke is greeted in the clear where that may be, milliseconds.
const BROKEN_MS: i64 = 3_600_000;
/// Such hosts that are remembered.
const BROKEN_MAX: usize = 10_000;

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
    broken: RefCell<HashMap<String, i64>>,
}

impl Protection {
    /// By the server's settings.
    pub fn of(global: &Global) -> Protection {
        Protection {
            configs: ClientConfigs::default(),
            secure_dns: SecureResolver::new(&global.dnssec_name_servers, &global.name_servers),
            policies: Policies::in_folder(Path::new(&global.data_dir).join("mta-sts")),
            broken: RefCell::default(),
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
        if let Some(p) = sts.filter(|p| p.mode != Mode::None) {
            let allowed = p.allows(&host.name);
            if p.mode == Mode::Enforce {
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
        if !rules.smtp_tls_ca_file.is_empty() {
            let parameters = Parameters { trust: verified(snapshot, rules), ..own };
            let required = rules.require_starttls;
            return Ok(Security { wanted: true, required, policy: "smtp-tls-ca-file", parameters });
        }
        let policy = if rules.require_starttls { "require-starttls" } else { "opportunistic" };
        let wanted = rules.require_starttls || !self.is_broken(&host.name);
        Ok(Security { wanted, required: rules.require_starttls, policy, parameters: own })
    }

    fn is_broken(&self, host: &str) -> bool {
        self.broken.borrow().get(host).is_some_and(|until| *until > clock::now_ms())
    }

    /// STARTTLS of a host does not work: it is left out for a while where it may be.
    pub fn broke(&self, host: &str) {
        let now = clock::now_ms();
        let mut all = self.broken.borrow_mut();
        if all.len() >= BROKEN_MAX {
            all.retain(|_, until| *until > now);
            if all.len() >= BROKEN_MAX {
                all.clear();
            }
        }
        all.insert(host.to_owned(), now + BROKEN_MS);
    }
}

fn pem<'a>(snapshot: &'a ArchivedSnapshot, path: &str) -> &'a str {
    snapshot.pem_files.iter().find(|f| f.0.as_str() == path).map_or("", |f| f.1.as_str())
}

fn verified(snapshot: &ArchivedSnapshot, rules: &DomainRules) -> Trust {
    match rules.smtp_tls_ca_file.as_str() {
        "" => Trust::WebPki,
        path => Trust::Roots(pem(snapshot, path).to_owned()),
    }
}

fn parameters(snapshot: &ArchivedSnapshot, rules: &DomainRules) -> Parameters {
    let identity = match rules.smtp_client_certificate.as_str() {
        "" => String::new(),
        path => pem(snapshot, path).to_owned(),
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
