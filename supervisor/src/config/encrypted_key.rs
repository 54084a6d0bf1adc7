//! Private keys that a password protects (PKCS #8, RFC 5958; PBES2, RFC 8018). They are decrypted where a configuration is
//! read: nobody else needs the password.

use pkcs8::pkcs5::pbes2::Kdf;
use pkcs8::{EncryptedPrivateKeyInfo, LineEnding, SecretDocument};

use super::problem::Problem;

const BEGIN: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----";
const END: &str = "-----END ENCRYPTED PRIVATE KEY-----";
/// What OpenSSL wrote before PKCS #8.
const OLD: &str = "Proc-Type: 4,ENCRYPTED";
/// Rounds, and bytes of memory, that a password may be made to take.
const ROUNDS_MAX: u32 = 10_000_000;
const MEMORY_MAX: u64 = 256 << 20;

/// The text of a file in PEM, with the key in plain.
///
/// # Errors
/// [`Problem`] where it is encrypted and the password, empty for none, does not open it.
pub fn in_plain(path: &str, pem: String, password: &str) -> Result<String, Problem> {
    let problem = |why: &str| {
        let p = Problem::other(format!("the private key in {path} is encrypted{why}"));
        let help = "openssl pkey -in FILE writes it without its password; let only the server read that file";
        Problem { code: "encrypted-key", ..p }.help(help)
    };
    if pem.contains(OLD) {
        return Err(problem(" in a form that is read no more"));
    }
    let Some(start) = pem.find(BEGIN) else { return Ok(pem) };
    let end =
        pem[start..].find(END).map(|i| start + i + END.len()).ok_or_else(|| problem(", and its end is missing"))?;
    if password.is_empty() {
        return Err(problem(", and no password is given"));
    }
    let plain = decrypted(&pem[start..end], password).ok_or_else(|| problem(", and the password does not open it"))?;
    Ok(format!("{}{plain}{}", &pem[..start], &pem[end..]))
}

fn decrypted(block: &str, password: &str) -> Option<String> {
    let (_, der) = SecretDocument::from_pem(block).ok()?;
    let key = EncryptedPrivateKeyInfo::try_from(der.as_bytes()).ok()?;
    let is_bearable = match &key.encryption_algorithm.pbes2()?.kdf {
        Kdf::Pbkdf2(p) => p.iteration_count <= ROUNDS_MAX,
        Kdf::Scrypt(p) => {
            let memory = p.cost_parameter.saturating_mul(u64::from(p.block_size)).saturating_mul(128);
            memory.saturating_mul(u64::from(p.parallelization)) <= MEMORY_MAX
        }
        _ => false,
    };
    let plain = is_bearable.then(|| key.decrypt(password).ok()).flatten()?;
    plain.to_pem("PRIVATE KEY", LineEnding::LF).ok().map(|text| text.trim_end().to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const FILE: &str = include_str!("../../../tests/config/encrypted.pem");

    fn code(pem: &str, password: &str) -> Option<&'static str> {
        in_plain("f.pem", pem.to_owned(), password).err().map(|p| {
            assert!(password.is_empty() || !p.message.contains(password) && !p.help.contains(password));
            p.code
        })
    }

    #[test]
    fn the_right_password_opens_a_key() {
        let plain = in_plain("f.pem", FILE.to_owned(), "Geheim1").unwrap();
        worker::connect::tls::check_identity(&plain).unwrap();
        assert!(plain.contains("BEGIN CERTIFICATE") && !plain.contains("ENCRYPTED"));
        assert_eq!(in_plain("f.pem", plain.clone(), "whatever"), Ok(plain));
    }

    /// As OpenSSL wrote it before 1.1, and by scrypt: the same key, in other envelopes.
    const OTHERS: [&str; 2] = [
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\n\
         MIHVMEAGCSqGSIb3DQEFDTAzMBsGCSqGSIb3DQEFDDAOBAijps1xAvODoAICCAAw\n\
         FAYIKoZIhvcNAwcECJd0Kft+5AsTBIGQyfhRMTjgcMRSSDRiH70Eqww8XVvS1gCM\n\
         nzTVw3DX5WrwN/7RwDFQe2M0oXQVDOijAhxKOeE2lNgEJ90BgB8CTJsOhoChOvnr\n\
         1GzChVbXJw3KBH0rVQ5WcqpWWbj+UrJVoTQMUwjP9APiAdyBQ7gts3gh057XSsU7\n\
         vxd7K7sABwuUQQehObIMisCg4MbqBx32\n\
         -----END ENCRYPTED PRIVATE KEY-----",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\n\
         MIHkME8GCSqGSIb3DQEFDTBCMCEGCSsGAQQB2kcECzAUBAgylHeNQOoMUwICQAAC\n\
         AQgCAQEwHQYJYIZIAWUDBAEqBBCn1O+0abN9DbjIOV893q0aBIGQEcxYkPLYGWAv\n\
         SzANuDPfOrN/BEVz+o4/N8F2giOM7djxznf2lKLWMs2HDf4V6ibTx1jBqxdukFnn\n\
         OH+EBZNBZ1XqoJui6wSWD8j+MALwSXe7/KOJ32KedisqCu9l6SvLKZT/4Sc8gMpj\n\
         Z4jlTHXlxXMZs7kEZzwUMGPLCy/e+XpqfJnnX6MlVRhCmTJnPifR\n\
         -----END ENCRYPTED PRIVATE KEY-----",
    ];

    #[test]
    fn keys_of_other_envelopes_are_opened_too() {
        let key = |file: &str| {
            let plain = in_plain("f.pem", file.to_owned(), "Geheim1").unwrap();
            plain[plain.find("-----BEGIN PRIVATE KEY").unwrap()..].trim().to_owned()
        };
        assert!(OTHERS.iter().all(|other| key(other) == key(FILE)));
    }

    #[test]
    fn what_does_not_open_it_is_said() {
        let encrypted = Some("encrypted-key");
        assert_eq!((code(FILE, ""), code(FILE, "Geheim2")), (encrypted, encrypted));
        assert_eq!(code(&FILE.replace(END, ""), "Geheim1"), encrypted);
        assert_eq!(code(&format!("{BEGIN}\nAAAA\n{END}\n"), "Geheim1"), encrypted);
        assert_eq!(code("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n", "Geheim1"), encrypted);
        assert_eq!(code("nothing", ""), None);
    }
}
