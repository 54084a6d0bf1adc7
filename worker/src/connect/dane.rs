//! DANE for SMTP (RFC 7672): TLSA records that a receiver publishes under DNSSEC say that it
//! speaks TLS, and which certificate it shows.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, SHA512, digest};
use hickory_proto::rr::rdata::tlsa::{CertUsage, Matching, Selector};
use hickory_proto::rr::{RData, RecordType};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::certificate::{Certificate, PublicKey};
use super::mx::Host;
use super::secure_dns::SecureResolver;

use super::protection::Association;

/// AlgorithmIdentifier of RSA keys (RFC 3279 section 2.3.1), without its SEQUENCE.
const RSA_ENCRYPTION: &[u8] = &[6, 9, 42, 134, 72, 134, 247, 13, 1, 1, 1, 5, 0];
/// Records looked at for one host.
const RECORDS_MAX: usize = 32;

/// What DNS says of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dane {
    /// No DANE: something on the way is not signed, or there is no record.
    Unused,
    /// TLS is demanded. Without records that can be used, any certificate will do.
    Demanded {
        /// Records that can be used.
        records: Vec<Association>,
        /// Names that a certificate under DANE-TA may have.
        names: Vec<String>,
    },
}

/// What holds for `host` as a mail host of `domain`.
///
/// # Errors
/// A sentence when DNS cannot say: then the host is not used (RFC 7672 §2.1.1).
pub async fn of_host(resolver: &SecureResolver, domain: &str, host: &Host, port: u16) -> Result<Dane, String> {
    if !resolver.is_available() || host.name.starts_with('[') || host.name.parse::<std::net::IpAddr>().is_ok() {
        return Ok(Dane::Unused);
    }
    let unsigned = |r: &Result<std::rc::Rc<super::secure_dns::Answer>, String>| !r.as_ref().is_ok_and(|a| a.secure);
    // TLSA records of a host prove nothing when its name came from an unsigned MX record: an attacker could have named his own host.
    let name = host.name.trim_end_matches('.').to_ascii_lowercase();
    if !host.configured {
        let mx = resolver.vouched(resolver.look_up(domain, RecordType::MX).await)?;
        if unsigned(&mx) {
            return Ok(Dane::Unused);
        }
        let exchange = |d: &RData| match d {
            RData::MX(mx) => mx.exchange.to_ascii().trim_end_matches('.').eq_ignore_ascii_case(&name),
            _ => false,
        };
        // What is signed was answered.
        let data = mx.as_ref().map_or(&[][..], |a| &a.data);
        if !(data.iter().any(exchange) || (data.is_empty() && host.implicit)) {
            return Err(format!("{name} is not among the mail hosts of {domain} that DNSSEC vouches for"));
        }
    }
    let v4 = resolver.vouched(resolver.look_up(&name, RecordType::A).await)?;
    let addresses = match &v4 {
        Ok(a) if a.data.is_empty() => resolver.look_up(&name, RecordType::AAAA).await,
        _ => v4,
    };
    let mut bases = Vec::new();
    if unsigned(&addresses) {
        // An alias that is signed, into a zone that is not: the records are at the alias's own
        // name (RFC 7672 section 2.2.2).
        let alias = resolver.vouched(resolver.look_up(&name, RecordType::CNAME).await)?;
        if !alias.is_ok_and(|a| a.secure && !a.data.is_empty()) {
            return Ok(Dane::Unused);
        }
        bases.push(name.clone());
    } else {
        bases.push(addresses.map(|a| a.canonical.clone()).unwrap_or_default());
    }
    if bases[0] != name {
        bases.push(name);
    }
    for base in bases {
        let found = resolver.look_up(&format!("_{port}._tcp.{base}"), RecordType::TLSA).await?;
        if !found.secure || found.data.is_empty() {
            continue;
        }
        let records = found.data.iter().take(RECORDS_MAX).filter_map(association).collect();
        let mut names = vec![base];
        if names[0] != domain {
            names.push(domain.to_owned());
        }
        return Ok(Dane::Demanded { records, names });
    }
    Ok(Dane::Unused)
}

fn association(data: &RData) -> Option<Association> {
    let RData::TLSA(t) = data else { return None };
    let end_entity = match t.cert_usage {
        CertUsage::DaneEe => true,
        CertUsage::DaneTa => false,
        // The PKIX usages are not for SMTP (RFC 7672 section 3.1.3).
        _ => return None,
    };
    let key_only = match t.selector {
        Selector::Full => false,
        Selector::Spki => true,
        _ => return None,
    };
    let (matching, len) = match t.matching {
        Matching::Raw => (0, t.cert_data.len().max(1)),
        Matching::Sha256 => (1, 32),
        Matching::Sha512 => (2, 64),
        _ => return None,
    };
    (t.cert_data.len() == len).then(|| Association { end_entity, key_only, matching, data: t.cert_data.clone() })
}

impl Association {
    fn matches(&self, cert: &CertificateDer<'_>) -> bool {
        let of = |bytes: &[u8]| match self.matching {
            0 => bytes == self.data,
            1 => digest(&SHA256, bytes).as_ref() == self.data,
            _ => digest(&SHA512, bytes).as_ref() == self.data,
        };
        match self.key_only {
            false => of(cert),
            true => Certificate::of(cert).is_some_and(|c| of(c.key_info)),
        }
    }
}

/// Checks a server's certificate against TLSA records. Of none every certificate passes, and
/// nobody's signature is looked at: whoever sits between could show one of his own (RFC 7435).
#[derive(Debug)]
pub struct Verifier {
    /// Cryptography.
    pub provider: Arc<CryptoProvider>,
    /// Records.
    pub records: Vec<Association>,
    /// Names that a certificate under DANE-TA may have.
    pub names: Vec<String>,
}

impl Verifier {
    fn by_trust_anchor(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let of_issuer = || self.records.iter().filter(|r| !r.end_entity);
        let mut roots = RootCertStore::empty();
        for c in intermediates.iter().filter(|c| of_issuer().any(|r| r.matches(c))) {
            trust(&mut roots, c);
        }
        for r in of_issuer().filter(|r| r.matching == 0) {
            match r.key_only {
                false => trust(&mut roots, &CertificateDer::from(r.data.as_slice())),
                // A bare key bears no name: it may be the issuer of any certificate of the chain.
                true => {
                    let shown = std::iter::once(end_entity).chain(intermediates);
                    let issuers = shown.filter_map(|c| Certificate::of(c)).map(|c| c.issuer);
                    roots.roots.extend(issuers.filter_map(|name| anchor(name, &r.data)));
                }
            }
        }
        if roots.is_empty() {
            return Err(CertificateError::UnknownIssuer.into());
        }
        let cert = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&cert, &roots, intermediates, now, algorithms)?;
        let named = Certificate::of(end_entity).is_some_and(|c| self.names.iter().any(|n| c.is_for(n)));
        if named { Ok(()) } else { Err(CertificateError::NotValidForName.into()) }
    }
}

/// Takes a certificate for a trust anchor; one that cannot be read is none.
fn trust(roots: &mut RootCertStore, cert: &CertificateDer<'_>) {
    if roots.add(cert.clone().into_owned()).is_err() {
        roots.roots.extend(Certificate::of(cert).and_then(|c| anchor(c.subject, c.key_info)));
    }
}

/// A key as a trust anchor of this name.
fn anchor(subject: &[u8], key_info: &[u8]) -> Option<TrustAnchor<'static>> {
    Some(TrustAnchor {
        subject: subject.to_vec().into(),
        subject_public_key_info: PublicKey::inside(key_info)?.to_vec().into(),
        name_constraints: None,
    })
}

/// Whether the holder of a certificate's key signed a handshake, whatever else the certificate
/// says.
///
/// # Errors
/// It did not, or the key cannot be used.
pub fn verify_signature(
    provider: &CryptoProvider,
    message: &[u8],
    cert: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
    tls13: bool,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    let key = Certificate::of(cert).and_then(|c| c.public_key()).ok_or(CertificateError::BadEncoding)?;
    let all = &provider.signature_verification_algorithms.mapping;
    let of_scheme = all.iter().find(|(scheme, _)| *scheme == dss.scheme).map_or(&[][..], |(_, all)| *all);
    // TLS 1.3 ties a scheme to one curve, and has no RSA with the padding of PKCS#1.
    let pkcs1 = matches!(
        dss.scheme,
        SignatureScheme::RSA_PKCS1_SHA256 | SignatureScheme::RSA_PKCS1_SHA384 | SignatureScheme::RSA_PKCS1_SHA512
    );
    let usable = match tls13 {
        true if pkcs1 => &[][..],
        true => &of_scheme[..of_scheme.len().min(1)],
        false => of_scheme,
    };
    let signed = |a: &&dyn SignatureVerificationAlgorithm| {
        a.public_key_alg_id().as_ref() == key.algorithm && a.verify_signature(key.key, message, dss.signature()).is_ok()
    };
    if usable.iter().any(signed) || signed_by_short_rsa(&key, message, dss, tls13) {
        return Ok(HandshakeSignatureValid::assertion());
    }
    Err(CertificateError::BadSignature.into())
}

/// The same for an RSA key of 1,024 to 2,047 bits, which the TLS library does not use: a receiver that has one may
/// still name it in a record of DNS, and then nothing else is asked of it.
fn signed_by_short_rsa(key: &PublicKey<'_>, message: &[u8], dss: &DigitallySignedStruct, tls13: bool) -> bool {
    use rsa::pkcs1::DecodeRsaPublicKey;
    use rsa::sha2::{Digest, Sha256, Sha384, Sha512};
    use rsa::traits::PublicKeyParts;
    use rsa::{Pkcs1v15Sign, Pss};
    if key.algorithm != RSA_ENCRYPTION {
        return false;
    }
    let Ok(rsa) = rsa::RsaPublicKey::from_pkcs1_der(key.key) else { return false };
    if !(1024..2048).contains(&rsa.n().bits()) {
        return false;
    }
    let signature = dss.signature();
    let checked = match dss.scheme {
        SignatureScheme::RSA_PSS_SHA256 => rsa.verify(Pss::new::<Sha256>(), &Sha256::digest(message), signature),
        SignatureScheme::RSA_PSS_SHA384 => rsa.verify(Pss::new::<Sha384>(), &Sha384::digest(message), signature),
        SignatureScheme::RSA_PSS_SHA512 => rsa.verify(Pss::new::<Sha512>(), &Sha512::digest(message), signature),
        _ if tls13 => return false,
        SignatureScheme::RSA_PKCS1_SHA256 => {
            rsa.verify(Pkcs1v15Sign::new::<Sha256>(), &Sha256::digest(message), signature)
        }
        SignatureScheme::RSA_PKCS1_SHA384 => {
            rsa.verify(Pkcs1v15Sign::new::<Sha384>(), &Sha384::digest(message), signature)
        }
        SignatureScheme::RSA_PKCS1_SHA512 => {
            rsa.verify(Pkcs1v15Sign::new::<Sha512>(), &Sha512::digest(message), signature)
        }
        _ => return false,
    };
    checked.is_ok()
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // Neither name nor dates count for DANE-EE (RFC 7672 section 3.1.1).
        let mut own = self.records.iter().filter(|r| r.end_entity);
        if !self.records.is_empty() && !own.any(|r| r.matches(end_entity)) {
            self.by_trust_anchor(end_entity, intermediates, now)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        match self.records.is_empty() {
            true => Ok(HandshakeSignatureValid::assertion()),
            false => verify_signature(&self.provider, message, cert, dss, false),
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        match self.records.is_empty() {
            true => Ok(HandshakeSignatureValid::assertion()),
            false => verify_signature(&self.provider, message, cert, dss, true),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let mut all = self.provider.signature_verification_algorithms.supported_schemes();
        if self.records.is_empty() {
            // What need not be verified may be signed as the receiver can.
            all.extend([SignatureScheme::ED448, SignatureScheme::ECDSA_SHA1_Legacy, SignatureScheme::RSA_PKCS1_SHA1]);
        }
        all
    }
}
