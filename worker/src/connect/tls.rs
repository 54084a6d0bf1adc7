//! TLS for both sides. Outbound STARTTLS is opportunistic (RFC 7435) unless a policy demands
//! more: then nothing but what the policy trusts will do, and clear text never.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, ProtocolVersion, RootCertStore, ServerConfig};

use super::cipher_list;
use super::dane::{Association, Verifier};

/// Configurations that are kept: one a policy, and one a host with DANE records of its own.
const CONFIGS_MAX: usize = 1024;
/// Hosts whose sessions are kept for resumption: of a configuration for all, and of one for
/// a host's own records.
const SESSIONS: (usize, usize) = (4096, 8);

/// Whose certificates will do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Trust {
    /// Any: encryption is all that is asked for.
    Any,
    /// Those issued below the system's roots, for the host's name.
    WebPki,
    /// Those issued below these roots in PEM, for the host's name.
    Roots(String),
    /// Those that TLSA records match.
    Dane {
        /// The records.
        records: Vec<Association>,
        /// Names for DANE-TA.
        names: Vec<String>,
    },
}

/// How a connection is to be protected.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Parameters {
    /// Whose certificates will do.
    pub trust: Trust,
    /// `smtp-tls-allow-tlsv1.2`
    pub tls12: bool,
    /// `smtp-tls-allow-tlsv1.3`
    pub tls13: bool,
    /// `smtp-tls-ciphers`
    pub ciphers: String,
    /// `smtp-tls-tlsv1.3-ciphersuites`
    pub suites: String,
    /// Certificate chain and key that are shown when asked for, in PEM; empty for none.
    pub identity: String,
    /// `reuse-ssl-session`
    pub resume: bool,
}

/// What came of it, for accounting and logs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// `TLSv1.3`
    pub version: String,
    /// By OpenSSL's names.
    pub cipher: String,
    /// `no`, `pkix`, `dane`
    pub verified: &'static str,
    /// `opportunistic`, `require-starttls`, `smtp-tls-ca-file`, `mta-sts`, `dane`
    pub policy: &'static str,
    /// An earlier session was resumed.
    pub resumed: bool,
}

impl Outcome {
    /// Of a connection whose handshake is over.
    pub fn of(c: &ClientConnection, trust: &Trust, policy: &'static str) -> Outcome {
        let version = match c.protocol_version() {
            Some(ProtocolVersion::TLSv1_2) => "TLSv1.2".to_owned(),
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3".to_owned(),
            v => format!("{v:?}"),
        };
        let verified = match trust {
            Trust::Any => "no",
            Trust::WebPki | Trust::Roots(_) => "pkix",
            Trust::Dane { records, .. } if records.is_empty() => "no",
            Trust::Dane { .. } => "dane",
        };
        Outcome {
            version,
            cipher: c.negotiated_cipher_suite().map(|s| cipher_list::shown(s.suite())).unwrap_or_default(),
            verified,
            policy,
            resumed: c.handshake_kind() == Some(HandshakeKind::Resumed),
        }
    }
}

/// Client configurations by what they are to do. Sessions are resumed within one.
#[derive(Debug, Default)]
pub struct ClientConfigs(RefCell<HashMap<Parameters, Arc<ClientConfig>>>);

impl ClientConfigs {
    /// The configuration for `p`.
    ///
    /// # Errors
    /// A sentence when there can be none.
    pub fn of(&self, p: &Parameters) -> Result<Arc<ClientConfig>, String> {
        if let Some(c) = self.0.borrow().get(p) {
            return Ok(Arc::clone(c));
        }
        let config = Arc::new(client(p)?);
        let mut all = self.0.borrow_mut();
        if all.len() >= CONFIGS_MAX {
            // Those of single hosts come again with their records.
            all.retain(|p, _| !matches!(p.trust, Trust::Dane { .. }));
            if all.len() >= CONFIGS_MAX {
                all.clear();
            }
        }
        all.insert(p.clone(), Arc::clone(&config));
        Ok(config)
    }
}

fn provider() -> Arc<CryptoProvider> {
    static DEFAULT: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(DEFAULT.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider())))
}

fn client(p: &Parameters) -> Result<ClientConfig, String> {
    let suites = cipher_list::select(&p.ciphers, &p.suites)?;
    let provider = Arc::new(CryptoProvider { cipher_suites: suites, ..(*provider()).clone() });
    let versions: Vec<_> = [(p.tls13, &rustls::version::TLS13), (p.tls12, &rustls::version::TLS12)]
        .into_iter()
        .filter_map(|(on, v)| on.then_some(v))
        .collect();
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_protocol_versions(&versions).map_err(|e| e.to_string())?;
    let dane = |records: &[Association], names: &[String]| Verifier {
        provider: Arc::clone(&provider),
        records: records.to_vec(),
        names: names.to_vec(),
    };
    let builder = match &p.trust {
        Trust::Any => builder.dangerous().with_custom_certificate_verifier(Arc::new(dane(&[], &[]))),
        Trust::Dane { records, names } => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(dane(records, names)))
        }
        Trust::WebPki => builder.with_root_certificates(system_roots()?),
        Trust::Roots(pem) => builder.with_root_certificates(roots(pem)?),
    };
    let mut config = match p.identity.as_str() {
        "" => builder.with_no_client_auth(),
        pem => {
            let (chain, key) = identity(pem)?;
            builder.with_client_auth_cert(chain, key).map_err(|e| e.to_string())?
        }
    };
    let hosts = if matches!(p.trust, Trust::Dane { .. }) { SESSIONS.1 } else { SESSIONS.0 };
    config.resumption = if p.resume { Resumption::in_memory_sessions(hosts) } else { Resumption::disabled() };
    Ok(config)
}

/// The system's root certificates (`SSL_CERT_FILE` and `SSL_CERT_DIR` name others), read once.
fn system_roots() -> Result<Arc<RootCertStore>, String> {
    static ROOTS: OnceLock<Result<Arc<RootCertStore>, String>> = OnceLock::new();
    let read = || {
        let found = rustls_native_certs::load_native_certs();
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(found.certs);
        if store.is_empty() {
            let why = found.errors.first().map(|e| format!(" ({e})")).unwrap_or_default();
            return Err(format!("this system has no root certificates{why}: install ca-certificates"));
        }
        Ok(Arc::new(store))
    };
    ROOTS.get_or_init(read).clone()
}

/// Root certificates in PEM (`smtp-tls-ca-file`).
///
/// # Errors
/// A sentence saying what is wrong with them.
pub fn roots(pem: &str) -> Result<Arc<RootCertStore>, String> {
    let mut store = RootCertStore::empty();
    for c in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        store.add(c.map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
    }
    if store.is_empty() { Err("expected certificates in PEM, found none".into()) } else { Ok(Arc::new(store)) }
}

/// A certificate chain and its key in PEM.
///
/// # Errors
/// A sentence saying what the PEM lacks.
pub fn identity(pem: &str) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), String> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| format!("certificate: {e}"))?;
    if chain.is_empty() {
        return Err("expected a certificate in PEM, found none".into());
    }
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|e| format!("private key: {e}"))?;
    Ok((chain, key))
}

/// The configuration of a listener from its certificate chain and key in PEM.
///
/// # Errors
/// A sentence saying what the PEM lacks or why the key does not fit.
pub fn listener(pem: &str) -> Result<Arc<ServerConfig>, String> {
    let (chain, key) = identity(pem)?;
    ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map(Arc::new)
        .map_err(|e| e.to_string())
}

/// Whether a certificate chain and key in PEM can be shown to receivers.
///
/// # Errors
/// A sentence saying what the PEM lacks or why the key does not fit.
pub fn check_identity(pem: &str) -> Result<(), String> {
    listener(pem).map(drop)
}
