//! A certificate made for the run, and both sides of TLS with it.

use std::sync::{Arc, OnceLock};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// The name in the certificate.
pub const NAME: &str = "mta.test";

fn made() -> &'static (String, String) {
    static MADE: OnceLock<(String, String)> = OnceLock::new();
    MADE.get_or_init(|| {
        let c = rcgen::generate_simple_self_signed(vec![NAME.to_owned()]).unwrap();
        (c.cert.pem(), c.signing_key.serialize_pem())
    })
}

/// Certificate and key in PEM, as `smtp-server-tls-certificate` reads them.
pub fn pem() -> String {
    let (cert, key) = made();
    format!("{cert}{key}")
}

fn certificate() -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(made().0.as_bytes()).unwrap()
}

/// A server's side.
pub fn server() -> Arc<ServerConfig> {
    let key = PrivateKeyDer::from_pem_slice(made().1.as_bytes()).unwrap();
    Arc::new(ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate()], key).unwrap())
}

/// A client's side that trusts the certificate.
pub fn client() -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate()).unwrap();
    Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}
