//! A certificate made for the run, and both sides of TLS with it.

use std::sync::{Arc, OnceLock};

use rsa::pkcs1::EncodeRsaPublicKey;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};

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

/// The certificate of the tests' servers.
pub fn certificate() -> CertificateDer<'static> {
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

/// A client's side that speaks one version alone.
pub fn client_of(version: &'static rustls::SupportedProtocolVersion) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate()).unwrap();
    let builder = ClientConfig::builder_with_protocol_versions(&[version]);
    Arc::new(builder.with_root_certificates(roots).with_no_client_auth())
}

/// An authority that issues certificates.
#[derive(Debug)]
pub struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    certificate: CertificateDer<'static>,
    /// Its certificate in PEM.
    pub pem: String,
}

impl Authority {
    pub fn new() -> Authority {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "authority of the tests");
        let key = rcgen::KeyPair::generate().unwrap();
        let c = params.self_signed(&key).unwrap();
        Authority { certificate: c.der().clone(), pem: c.pem(), issuer: rcgen::Issuer::new(params, key) }
    }

    /// A server that shows a certificate for `name`, and this authority's behind it.
    pub fn server(&self, name: &str) -> Issued {
        self.server_of(&[name.to_owned()])
    }

    /// The same for several names.
    pub fn server_of(&self, names: &[String]) -> Issued {
        let (chain, key, public) = self.issue(names);
        let certificate = chain[0].to_vec();
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
        Issued { certificate, key: public, config: Arc::new(config) }
    }

    /// A certificate with this authority's behind it, and its key.
    pub fn identity(&self, name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let (chain, key, _) = self.issue(&[name.to_owned()]);
        (chain, key)
    }

    fn issue(&self, names: &[String]) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>, Vec<u8>) {
        use rcgen::PublicKeyData;
        let key = rcgen::KeyPair::generate().unwrap();
        let c = rcgen::CertificateParams::new(names.to_vec()).unwrap().signed_by(&key, &self.issuer).unwrap();
        let der = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        (vec![c.der().clone(), self.certificate.clone()], der, key.subject_public_key_info())
    }

    /// A server whose certificate bears `name` in the common name only, and that does not show this authority's.
    pub fn server_by_common_name(&self, name: &str) -> Arc<ServerConfig> {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = rcgen::KeyPair::generate().unwrap();
        let c = params.signed_by(&key, &self.issuer).unwrap();
        let der = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        Arc::new(ServerConfig::builder().with_no_client_auth().with_single_cert(vec![c.der().clone()], der).unwrap())
    }

    /// Its public key (SubjectPublicKeyInfo).
    pub fn key(&self) -> Vec<u8> {
        use rcgen::PublicKeyData;
        self.issuer.key().subject_public_key_info()
    }

    /// Its certificate.
    pub fn der(&self) -> Vec<u8> {
        self.certificate.to_vec()
    }
}

impl Default for Authority {
    fn default() -> Authority {
        Authority::new()
    }
}

/// A server that shows whatever it is given, which the library would not take for a certificate.
pub fn shows(certificate: Vec<u8>, key: &rcgen::KeyPair) -> Arc<ServerConfig> {
    let der = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der).unwrap();
    let pair = rustls::sign::CertifiedKey::new(vec![certificate.into()], key);
    let resolver = rustls::sign::SingleCertAndKey::from(pair);
    Arc::new(ServerConfig::builder().with_no_client_auth().with_cert_resolver(Arc::new(resolver)))
}

/// A server with an RSA key of 1,024 bits, which the library neither makes nor uses by itself.
pub fn short_rsa(name: &str) -> Issued {
    let private = rsa::RsaPrivateKey::new(&mut Random, 1024).unwrap();
    let public = ShortRsaPublic(private.to_public_key().to_pkcs1_der().unwrap().into_vec());
    let issuer = rcgen::Issuer::new(rcgen::CertificateParams::default(), rcgen::KeyPair::generate().unwrap());
    let c = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&public, &issuer).unwrap();
    let pair = rustls::sign::CertifiedKey::new(vec![c.der().clone()], Arc::new(ShortRsa(Arc::new(private))));
    let resolver = Arc::new(rustls::sign::SingleCertAndKey::from(pair));
    let config = Arc::new(ServerConfig::builder().with_no_client_auth().with_cert_resolver(resolver));
    let key = rcgen::PublicKeyData::subject_public_key_info(&public);
    Issued { certificate: c.der().to_vec(), key, config }
}

struct ShortRsaPublic(Vec<u8>);

impl rcgen::PublicKeyData for ShortRsaPublic {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_RSA_SHA256
    }
}

/// It signs by RSASSA-PSS, as TLS 1.3 demands.
#[derive(Debug, Clone)]
struct ShortRsa(Arc<rsa::RsaPrivateKey>);

impl rustls::sign::SigningKey for ShortRsa {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn rustls::sign::Signer>> {
        offered.contains(&SignatureScheme::RSA_PSS_SHA256).then(|| Box::new(self.clone()) as _)
    }

    fn algorithm(&self) -> rustls::SignatureAlgorithm {
        rustls::SignatureAlgorithm::RSA
    }
}

impl rustls::sign::Signer for ShortRsa {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        use rsa::sha2::{Digest, Sha256};
        Ok(self.0.sign_with_rng(&mut Random, rsa::Pss::new::<Sha256>(), &Sha256::digest(message)).unwrap())
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::RSA_PSS_SHA256
    }
}

/// The random numbers that the library wants.
struct Random;

impl rsa::rand_core::CryptoRng for Random {}

impl rsa::rand_core::RngCore for Random {
    fn next_u32(&mut self) -> u32 {
        rsa::rand_core::impls::next_u32_via_fill(self)
    }

    fn next_u64(&mut self) -> u64 {
        rsa::rand_core::impls::next_u64_via_fill(self)
    }

    fn fill_bytes(&mut self, dest: &mut [u8]) {
        aws_lc_rs::rand::fill(dest).unwrap();
    }

    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), rsa::rand_core::Error> {
        self.fill_bytes(dest);
        Ok(())
    }
}

/// A certificate as version 1 has it: without version and extensions. Its signature fits it no more.
pub fn as_version_1(certificate: &[u8]) -> Vec<u8> {
    /// Header and content of the first element, and what is behind it.
    fn first(der: &[u8]) -> (&[u8], &[u8], &[u8]) {
        let (header, length) = match der[1] {
            n if n < 0x80 => (2, usize::from(n)),
            n => {
                let end = 2 + usize::from(n & 0x7f);
                (end, der[2..end].iter().fold(0, |l, b| l << 8 | usize::from(*b)))
            }
        };
        (&der[..header], &der[header..header + length], &der[header + length..])
    }
    fn sequence(content: &[u8]) -> Vec<u8> {
        let n = content.len() as u16;
        [&[0x30, 0x82], &n.to_be_bytes()[..], content].concat()
    }
    const VERSION: u8 = 0xa0;
    const EXTENSIONS: u8 = 0xa3;
    let (_, whole, _) = first(certificate);
    let (_, mut fields, signature) = first(whole);
    let mut kept = Vec::new();
    while !fields.is_empty() {
        let (header, content, rest) = first(fields);
        if header[0] != VERSION && header[0] != EXTENSIONS {
            kept.extend_from_slice(&[header, content].concat());
        }
        fields = rest;
    }
    sequence(&[sequence(&kept), signature.to_vec()].concat())
}

/// A certificate and the server that shows it.
#[derive(Debug)]
pub struct Issued {
    pub certificate: Vec<u8>,
    /// Its public key (SubjectPublicKeyInfo).
    pub key: Vec<u8>,
    pub config: Arc<ServerConfig>,
}

/// A chain and its key in PEM.
pub fn as_pem(chain: &[CertificateDer<'_>], key: &PrivateKeyDer<'_>) -> String {
    let block = |name: &str, der: &[u8]| {
        let mut text = format!("-----BEGIN {name}-----\n");
        for line in base64(der).as_bytes().chunks(64) {
            text.push_str(&String::from_utf8_lossy(line));
            text.push('\n');
        }
        text + &format!("-----END {name}-----\n")
    };
    let chain: String = chain.iter().map(|c| block("CERTIFICATE", c)).collect();
    chain + &block("PRIVATE KEY", key.secret_der())
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for c in bytes.chunks(3) {
        let n = c.iter().chain([&0, &0]).take(3).fold(0u32, |n, b| n << 8 | u32::from(*b));
        for i in 0..4 {
            let digit = DIGITS[(n >> (18 - 6 * i) & 63) as usize] as char;
            out.push(if i <= c.len() { digit } else { '=' });
        }
    }
    out
}

/// A client's side that takes whatever certificate it is shown.
#[derive(Debug)]
pub struct Anything {
    pub provider: CryptoProvider,
    /// It says that it verifies signatures of RSA keys alone.
    pub rsa_only: bool,
}

impl Default for Anything {
    fn default() -> Anything {
        Anything { provider: rustls::crypto::aws_lc_rs::default_provider(), rsa_only: false }
    }
}

impl ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let all = self.provider.signature_verification_algorithms.supported_schemes();
        all.into_iter().filter(|s| !self.rsa_only || format!("{s:?}").starts_with("RSA")).collect()
    }
}
