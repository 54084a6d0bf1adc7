//! TLS for both sides. Outbound STARTTLS is opportunistic (RFC 7435) unless a policy demands
//! more: then nothing but what the policy trusts will do, and clear text never.

use std::cell::RefCell;
use std::sync::{Arc, OnceLock};

use ipc::dice::HashMap;
use ipc::snapshot::ListenerTls;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientSessionMemoryCache, ClientSessionStore, Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, DistinguishedName, HandshakeKind,
    ProtocolVersion, RootCertStore, ServerConfig, SignatureScheme, SupportedCipherSuite, SupportedProtocolVersion,
};

use super::certificate::Certificate;
use super::cipher_list;
use super::dane::{Verifier, verify_signature};
use super::protection::{Association, Parameters, Trust};

/// Configurations that are kept: one a policy, and one a host with DANE records of its own.
const CONFIGS_MAX: usize = 1024;
/// Hosts whose sessions are kept for resumption: of a configuration for all, and of one for
/// a host's own records.
const SESSIONS: (usize, usize) = (4096, 8);

/// What came of it, for accounting and logs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Negotiated {
    /// `TLSv1.3`
    pub version: String,
    /// By OpenSSL's names.
    pub cipher: String,
    /// `no`, `pkix`, `dane`
    pub verified: &'static str,
    /// `opportunistic`, `receiver`, `require-starttls`, `smtp-tls-ca-file`, `mta-sts`, `dane`
    pub policy: &'static str,
    /// An earlier session was resumed.
    pub resumed: bool,
}

impl Negotiated {
    /// Of a connection whose handshake is over.
    pub fn of(c: &ClientConnection, trust: &Trust, policy: &'static str) -> Negotiated {
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
        Negotiated {
            version,
            cipher: c.negotiated_cipher_suite().map(|s| cipher_list::shown(s.suite())).unwrap_or_default(),
            verified,
            policy,
            resumed: c.handshake_kind() == Some(HandshakeKind::Resumed),
        }
    }
}

/// A configuration, and the sessions that it can resume.
#[derive(Debug, Clone)]
struct Client {
    config: Arc<ClientConfig>,
    sessions: Arc<ClientSessionMemoryCache>,
}

/// Client configurations by what they are to do. Sessions are resumed within one.
#[derive(Debug, Default)]
pub struct ClientConfigs(RefCell<HashMap<Parameters, Client>>);

impl ClientConfigs {
    /// The configuration for `p`.
    ///
    /// # Errors
    /// A sentence when there can be none.
    pub fn of(&self, p: &Parameters) -> Result<Arc<ClientConfig>, String> {
        if let Some(c) = self.0.borrow().get(p) {
            return Ok(Arc::clone(&c.config));
        }
        let client = client(p)?;
        let config = Arc::clone(&client.config);
        let mut all = self.0.borrow_mut();
        if all.len() >= CONFIGS_MAX {
            // Those of single hosts come again with their records.
            all.retain(|p, _| !matches!(p.trust, Trust::Dane { .. }));
            if all.len() >= CONFIGS_MAX {
                all.clear();
            }
        }
        all.insert(p.clone(), client);
        Ok(config)
    }

    /// Forgets the sessions with a host: it does not take them any more.
    pub fn forget_sessions(&self, p: &Parameters, name: &ServerName<'static>) {
        let all = self.0.borrow();
        let Some(sessions) = all.get(p).map(|c| &c.sessions) else { return };
        sessions.remove_tls12_session(name);
        while sessions.take_tls13_ticket(name).is_some() {}
    }
}

fn provider() -> Arc<CryptoProvider> {
    static DEFAULT: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(DEFAULT.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider())))
}

fn with_suites(cipher_suites: Vec<SupportedCipherSuite>) -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider { cipher_suites, ..(*provider()).clone() })
}

fn versions(tls12: bool, tls13: bool) -> Vec<&'static SupportedProtocolVersion> {
    let all = [(tls13, &rustls::version::TLS13), (tls12, &rustls::version::TLS12)];
    all.into_iter().filter_map(|(on, v)| on.then_some(v)).collect()
}

fn client(p: &Parameters) -> Result<Client, String> {
    let suites = cipher_list::select(&p.ciphers, &p.suites)?;
    let provider = with_suites(suites);
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_protocol_versions(&versions(p.tls12, p.tls13)).map_err(|e| e.to_string())?;
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
        Trust::Roots(pem) => {
            let named = Named::of(pem, Arc::clone(&provider))?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(named))
        }
    };
    let mut config = match p.identity.as_str() {
        "" => builder.with_no_client_auth(),
        pem => {
            let (chain, key) = identity(pem)?;
            builder.with_client_auth_cert(chain, key).map_err(|e| e.to_string())?
        }
    };
    let hosts = if matches!(p.trust, Trust::Dane { .. }) { SESSIONS.1 } else { SESSIONS.0 };
    let sessions = Arc::new(ClientSessionMemoryCache::new(if p.resume { hosts } else { 0 }));
    let store: Arc<dyn ClientSessionStore> = Arc::<ClientSessionMemoryCache>::clone(&sessions);
    config.resumption = if p.resume { Resumption::store(store) } else { Resumption::disabled() };
    Ok(Client { config: Arc::new(config), sessions })
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

/// Checks a server's certificate against those that the operator names (`smtp-tls-ca-file`): it
/// is below one of them, or one of them itself, which need not be an authority's.
#[derive(Debug)]
struct Named {
    provider: Arc<CryptoProvider>,
    certificates: Vec<CertificateDer<'static>>,
    /// `None` where none of them can be an authority's.
    issued: Option<Arc<WebPkiServerVerifier>>,
}

impl Named {
    fn of(pem: &str, provider: Arc<CryptoProvider>) -> Result<Named, String> {
        let certificates = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
        let certificates = certificates.map_err(|e| e.to_string())?;
        let mut store = RootCertStore::empty();
        for c in &certificates {
            match store.add(c.clone()) {
                Err(e) if Certificate::of(c).is_none() => return Err(e.to_string()),
                _ => {}
            }
        }
        if certificates.is_empty() {
            return Err("expected certificates in PEM, found none".into());
        }
        let issued = match store.is_empty() {
            true => None,
            false => {
                let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(&provider));
                Some(builder.build().map_err(|e| e.to_string())?)
            }
        };
        Ok(Named { provider, certificates, issued })
    }
}

impl ServerCertVerifier for Named {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.certificates.iter().any(|c| c == end_entity)
            && let Some(c) = Certificate::of(end_entity)
        {
            let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
            return match () {
                () if now < c.valid.0 => Err(CertificateError::NotValidYet.into()),
                () if now > c.valid.1 => Err(CertificateError::Expired.into()),
                () if !c.is_for(&name.to_str()) => Err(CertificateError::NotValidForName.into()),
                () => Ok(ServerCertVerified::assertion()),
            };
        }
        match &self.issued {
            Some(v) => v.verify_server_cert(end_entity, intermediates, name, ocsp, now),
            None => Err(CertificateError::UnknownIssuer.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_signature(&self.provider, message, cert, dss, false)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_signature(&self.provider, message, cert, dss, true)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Whether certificates in PEM can be trusted (`smtp-tls-ca-file`).
///
/// # Errors
/// A sentence saying what is wrong with them.
pub fn check_roots(pem: &str) -> Result<(), String> {
    Named::of(pem, provider()).map(drop)
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

/// TLS of a listener, from its certificates in PEM. Clients may be asked for a certificate, which `roots` in PEM, if there are any, say who
/// issues; whose it is, is looked up when they have shown it.
///
/// # Errors
/// A sentence saying what the PEM lacks, why a key does not fit, or that no suite is left.
pub fn listener(
    tls: &ListenerTls,
    pems: &[&str],
    roots: &str,
    asks_for_certificates: bool,
) -> Result<ClientTls, String> {
    let suites = cipher_list::select(&tls.ciphers, &tls.suites)?;
    let provider = with_suites(suites);
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&versions(!tls.bars_tls12, !tls.bars_tls13))
        .map_err(|e| e.to_string())?;
    let issued = match roots {
        "" => None,
        pem => Some(issued_by(pem, &provider)?),
    };
    let builder = match asks_for_certificates {
        true => {
            let hints = issued.as_ref().map(|v| v.root_hint_subjects().to_vec()).unwrap_or_default();
            builder.with_client_cert_verifier(Arc::new(AnyClient { provider: Arc::clone(&provider), hints }))
        }
        false => builder.with_no_client_auth(),
    };
    let certified = |pem: &&str| {
        let (chain, key) = identity(pem)?;
        CertifiedKey::from_der(chain, key, &provider).map(Arc::new).map_err(|e| e.to_string())
    };
    let certificates = pems.iter().map(certified).collect::<Result<_, _>>()?;
    let config = Arc::new(builder.with_cert_resolver(Arc::new(ByName(certificates))));
    Ok(ClientTls { config, issued })
}

/// TLS that a listener's clients are offered.
#[derive(Debug, Clone)]
pub struct ClientTls {
    /// Certificates, versions and suites.
    pub config: Arc<ServerConfig>,
    /// What a client's certificate has to be issued by; `None` for no matter by whom.
    issued: Option<Arc<dyn ClientCertVerifier>>,
}

impl ClientTls {
    /// What a client has shown, its own certificate first, is issued by those that may.
    ///
    /// # Errors
    /// A sentence saying what is wrong with it.
    pub fn verified(&self, shown: &[CertificateDer<'_>]) -> Result<(), String> {
        match (&self.issued, shown) {
            (None, _) => Ok(()),
            (Some(v), [own, others @ ..]) => {
                v.verify_client_cert(own, others, UnixTime::now()).map(drop).map_err(|e| e.to_string())
            }
            (Some(_), []) => Err("there is none".into()),
        }
    }
}

/// A verifier of clients' certificates that one of the authorities in PEM issues.
fn issued_by(pem: &str, provider: &Arc<CryptoProvider>) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let mut store = RootCertStore::empty();
    for c in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        store.add(c.map_err(|e| e.to_string())?).map_err(|e| format!("this is not an authority's certificate: {e}"))?;
    }
    if store.is_empty() {
        return Err("expected certificates of authorities in PEM, found none".into());
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider));
    builder.build().map_err(|e| e.to_string())
}

/// Whether certificates in PEM are those of authorities that clients' certificates may be issued by (`tls-ca-file`).
///
/// # Errors
/// A sentence saying what is wrong with them.
pub fn check_issuers(pem: &str) -> Result<(), String> {
    issued_by(pem, &provider()).map(drop)
}

/// Certificates of a listener, chosen by the name that a client asks for (RFC 6066 section 3) and the signatures that it can verify.
#[derive(Debug)]
struct ByName(Vec<Arc<CertifiedKey>>);

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let is_for = |c: &CertifiedKey, name: &str| {
            c.end_entity_cert().ok().and_then(|der| Certificate::of(der)).is_some_and(|c| c.is_for(name))
        };
        let can_verify = |c: &CertifiedKey| c.key.choose_scheme(hello.signature_schemes()).is_some();
        let named = hello.server_name().filter(|_| self.0.len() > 1);
        let fits = named.and_then(|name| self.0.iter().find(|c| is_for(c, name) && can_verify(c)));
        fits.or_else(|| self.0.iter().find(|c| can_verify(c))).or(self.0.first()).cloned()
    }
}

/// Takes any certificate of a client that holds its key, and clients without. A certificate makes a client somebody only where a user has
/// that very certificate, so nobody has to vouch for it here.
#[derive(Debug)]
struct AnyClient {
    provider: Arc<CryptoProvider>,
    /// Names of those that issue certificates which count; empty for anybody.
    hints: Vec<DistinguishedName>,
}

impl ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_signature(&self.provider, message, cert, dss, false)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_signature(&self.provider, message, cert, dss, true)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Whether a certificate chain and key in PEM can be shown to others.
///
/// # Errors
/// A sentence saying what the PEM lacks or why the key does not fit.
pub fn check_identity(pem: &str) -> Result<(), String> {
    let (chain, key) = identity(pem)?;
    CertifiedKey::from_der(chain, key, &provider()).map(drop).map_err(|e| e.to_string())
}
