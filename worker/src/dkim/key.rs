//! Private keys.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;

/// Keys below are refused: receivers ignore their signatures (RFC 8301 section 3.2).
pub const BITS_MIN: usize = 1024;
/// Keys below are warned of.
pub const BITS_ADVISED: usize = 2048;
/// Keys above are warned of: verifiers need not take them (RFC 8301 section 3.2).
pub const BITS_VERIFIED_MAX: usize = 4096;
/// `DigestInfo` of a SHA-256 hash (RFC 8017 section 9.2).
const SHA256_PREFIX: [u8; 19] =
    [0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20];

/// A private key, erased from memory when it is dropped.
pub enum Key {
    /// RSA of 2048 bits and more.
    Rsa(Box<RsaKeyPair>),
    /// RSA below, which the library of the others does not take.
    ShortRsa(Box<rsa::RsaPrivateKey>),
    /// Ed25519.
    Ed25519(Box<Ed25519KeyPair>),
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} key of {} bits", self.algorithm(), self.bits())
    }
}

impl Key {
    /// Reads an unencrypted PEM file: PKCS#8 (`BEGIN PRIVATE KEY`) or PKCS#1 (`BEGIN RSA PRIVATE KEY`).
    ///
    /// # Errors
    /// What was expected, without anything of the key.
    pub fn from_pem(pem: &str) -> Result<Key, String> {
        let expected = "expected an unencrypted RSA or Ed25519 private key in PEM (PKCS#8 or PKCS#1)";
        let der = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| expected.to_owned())?;
        let key = match &der {
            PrivateKeyDer::Pkcs1(d) => rsa_key(d.secret_pkcs1_der(), false),
            PrivateKeyDer::Pkcs8(d) => {
                let d = d.secret_pkcs8_der();
                // Either kind may stand in PKCS#8; what is neither is refused below.
                let ed25519 = Ed25519KeyPair::from_pkcs8_maybe_unchecked(d).ok();
                ed25519.map(|k| Key::Ed25519(Box::new(k))).or_else(|| rsa_key(d, true))
            }
            _ => None,
        };
        let key = key.ok_or_else(|| expected.to_owned())?;
        match key.bits() {
            n if n < BITS_MIN && !matches!(key, Key::Ed25519(_)) => {
                Err(format!("the key has {n} bits; receivers ignore signatures of less than {BITS_MIN} (RFC 8301)"))
            }
            _ => Ok(key),
        }
    }

    /// Length of the modulus; 256 for Ed25519.
    pub fn bits(&self) -> usize {
        use rsa::traits::PublicKeyParts;
        match self {
            Key::Rsa(k) => k.public_modulus_len() * 8,
            Key::ShortRsa(k) => k.size() * 8,
            Key::Ed25519(_) => 256,
        }
    }

    /// `a=`
    pub fn algorithm(&self) -> &'static str {
        match self {
            Key::Rsa(_) | Key::ShortRsa(_) => "rsa-sha256",
            Key::Ed25519(_) => "ed25519-sha256",
        }
    }

    /// `p=` of the key's record, before base64.
    ///
    /// # Errors
    /// When the library cannot write it, which no sound key makes it do.
    pub fn public(&self) -> Result<Vec<u8>, String> {
        use rsa::pkcs8::EncodePublicKey;
        match self {
            Key::Rsa(k) => {
                let der: Result<PublicKeyX509Der<'_>, _> = k.public_key().as_der();
                der.map(|d| d.as_ref().to_vec()).map_err(|_| "the public key cannot be written".to_owned())
            }
            Key::ShortRsa(k) => {
                let der = k.to_public_key().to_public_key_der();
                der.map(|d| d.as_bytes().to_vec()).map_err(|e| format!("the public key cannot be written: {e}"))
            }
            Key::Ed25519(k) => Ok(k.public_key().as_ref().to_vec()),
        }
    }

    /// A signature takes far longer than what else a message needs.
    pub fn is_slow(&self) -> bool {
        !matches!(self, Key::Ed25519(_))
    }

    /// Signs the SHA-256 hash of what a signature covers; `data` is that itself.
    ///
    /// # Errors
    /// When the library refuses, which no sound key makes it do.
    pub fn sign(&self, data: &[u8]) -> Result<Vec<u8>, String> {
        let hash = || aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, data);
        match self {
            Key::Rsa(k) => {
                let mut out = vec![0; k.public_modulus_len()];
                let random = system_random();
                k.sign(&RSA_PKCS1_SHA256, &random, data, &mut out).map_err(|_| "the RSA key cannot sign".to_owned())?;
                Ok(out)
            }
            Key::ShortRsa(k) => {
                let scheme = rsa::Pkcs1v15Sign { hash_len: Some(32), prefix: Box::new(SHA256_PREFIX) };
                k.sign(scheme, hash().as_ref()).map_err(|e| format!("the RSA key cannot sign: {e}"))
            }
            // RFC 8463 section 3: the hash is what is signed.
            Key::Ed25519(k) => Ok(k.sign(hash().as_ref()).as_ref().to_vec()),
        }
    }
}

fn rsa_key(der: &[u8], pkcs8: bool) -> Option<Key> {
    use rsa::pkcs1::DecodeRsaPrivateKey;
    use rsa::pkcs8::DecodePrivateKey;
    use rsa::traits::PublicKeyParts;
    let long = if pkcs8 { RsaKeyPair::from_pkcs8(der) } else { RsaKeyPair::from_der(der) };
    if let Ok(k) = long {
        return Some(Key::Rsa(Box::new(k)));
    }
    let short = match pkcs8 {
        true => rsa::RsaPrivateKey::from_pkcs8_der(der).ok(),
        false => rsa::RsaPrivateKey::from_pkcs1_der(der).ok(),
    };
    // A message may bring its own key, and by this library a signature of 20,000 bits takes seconds.
    short.filter(|k| k.size() * 8 <= BITS_VERIFIED_MAX).map(|k| Key::ShortRsa(Box::new(k)))
}

/// As records and signatures write bytes.
pub fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

fn pem(pkcs8: &[u8]) -> String {
    let text = base64(pkcs8);
    let mut out = String::from("-----BEGIN PRIVATE KEY-----\n");
    for line in text.as_bytes().chunks(64) {
        out.extend(line.iter().map(|b| char::from(*b)));
        out.push('\n');
    }
    out + "-----END PRIVATE KEY-----\n"
}

/// A new RSA key of 2048, 3072 or 4096 bits in PEM.
///
/// # Errors
/// A sentence when there is no such length.
pub fn generate_rsa(bits: usize) -> Result<String, String> {
    let size = match bits {
        2048 => KeySize::Rsa2048,
        3072 => KeySize::Rsa3072,
        4096 => KeySize::Rsa4096,
        n => return Err(format!("expected 2048, 3072 or 4096 bits, found {n}")),
    };
    let failed = |_| "the key could not be made".to_owned();
    let key = RsaKeyPair::generate(size).map_err(failed)?;
    let der: Pkcs8V1Der<'_> = key.as_der().map_err(failed)?;
    Ok(pem(der.as_ref()))
}

#[expect(clippy::disallowed_methods, reason = "keys are secrets, and signatures by RSA take no chance of it")]
fn system_random() -> SystemRandom {
    SystemRandom::new()
}

/// A new Ed25519 key in PEM.
///
/// # Errors
/// A sentence when the system has no random numbers.
pub fn generate_ed25519() -> Result<String, String> {
    let der = Ed25519KeyPair::generate_pkcs8v1(&system_random()).map_err(|_| "the key could not be made".to_owned())?;
    Ok(pem(der.as_ref()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rsa::BigUint;
    use rsa::pkcs8::EncodePrivateKey;

    use super::*;

    #[test]
    fn keys_that_take_seconds_to_sign_are_none() {
        // Two primes of Mersenne.
        let prime = |n: usize| (BigUint::from(1u8) << n) - BigUint::from(1u8);
        let large = rsa::RsaPrivateKey::from_p_q(prime(4423), prime(4253), BigUint::from(65_537u32)).unwrap();
        let der = large.to_pkcs8_der().unwrap();
        assert!(Key::from_pem(&pem(der.as_bytes())).is_err());
    }
}
