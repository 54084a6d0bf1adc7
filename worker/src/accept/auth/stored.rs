//! The forms in which passwords of `<smtp-user>` are stored: plain text, SCRAM verifiers, Argon2id.

use std::num::NonZeroU32;

use argon2::{Algorithm, Argon2, Params, PasswordHash, PasswordVerifier, Version};
use aws_lc_rs::{constant_time, digest, hmac, pbkdf2, rand};
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD};

use super::mechanism::Mechanism;

/// What a SCRAM verifier begins with (RFC 5803 §2, in the spelling of PostgreSQL).
const SCRAM_PREFIX: &str = "SCRAM-SHA-256$";
/// What an Argon2id hash begins with (PHC string format).
const ARGON2_PREFIX: &str = "$argon2id$";
/// RFC 7677 §4.
pub const ITERATIONS_MIN: u32 = 4096;
/// A check takes about a quarter of a second with 1,000,000 of them.
pub const ITERATIONS_MAX: u32 = 10_000_000;
/// Of verifiers that `sluice user hash` makes: about 4 ms a check.
pub const ITERATIONS: u32 = 15_000;
/// Memory of one check of Argon2id, KiB; two are made at once in each shard.
pub const ARGON2_MEMORY_MAX_KIB: u32 = 256 << 10;
/// Passes of Argon2id over its memory.
pub const ARGON2_PASSES_MAX: u32 = 20;
/// Lanes of Argon2id.
pub const ARGON2_LANES_MAX: u32 = 16;
/// Of hashes that `sluice user hash` makes: memory in KiB, passes, lanes.
const ARGON2_NEW: (u32, u32, u32) = (19_456, 2, 1);
/// Octets of a name.
pub const NAME_MAX: usize = 255;
/// Octets of a password.
pub const PASSWORD_MAX: usize = 1024;
const SALT_BYTES: usize = 16;
const KEY_BYTES: usize = digest::SHA256_OUTPUT_LEN;
/// Octets of salt in a verifier that somebody else made.
const SALT_BYTES_MAX: usize = 128;

/// Why a stored password cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StoredFault {
    /// It begins as a SCRAM verifier and is none.
    #[error("expected SCRAM-SHA-256$ITERATIONS:SALT$STORED-KEY:SERVER-KEY, the last three in base64")]
    Scram,
    /// Its number of iterations cannot be.
    #[error("expected {ITERATIONS_MIN} to {ITERATIONS_MAX} iterations, found {0}")]
    Iterations(u64),
    /// It begins as an Argon2id hash and is none.
    #[error("expected $argon2id$v=19$m=KIB,t=PASSES,p=LANES$SALT$HASH: {0}")]
    Argon2(String),
    /// It would take too much.
    #[error(
        "expected m (KiB of memory) of at most {ARGON2_MEMORY_MAX_KIB}, t (passes) of at most {ARGON2_PASSES_MAX} and p (lanes) of \
         at most {ARGON2_LANES_MAX}, found m={0},t={1},p={2}"
    )]
    Argon2Cost(u32, u32, u32),
    /// There is no salt to be had.
    #[error("this machine gives no random bytes")]
    NoChance,
    /// It is empty, or too long.
    #[error("expected a password of 1 to {PASSWORD_MAX} octets that can be seen, found {0}")]
    Length(usize),
}

/// A SCRAM verifier (RFC 5802 §3).
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    /// Iterations of PBKDF2.
    pub iterations: u32,
    /// Its salt.
    pub salt: Vec<u8>,
    /// By which a client's proof is checked.
    pub stored_key: [u8; KEY_BYTES],
    /// By which this server proves that it knows the password.
    pub server_key: [u8; KEY_BYTES],
}

impl Verifier {
    /// That of a password, which is prepared already.
    pub fn of(password: &str, salt: Vec<u8>, iterations: u32) -> Verifier {
        let rounds = NonZeroU32::new(iterations).unwrap_or(NonZeroU32::MIN);
        let mut salted = [0; KEY_BYTES];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, &salt, password.as_bytes(), &mut salted);
        let client_key = mac(&salted, &[b"Client Key"]);
        let server_key = mac(&salted, &[b"Server Key"]);
        Verifier { iterations, salt, stored_key: sha256(&client_key), server_key }
    }
}

/// HMAC-SHA-256 over several pieces.
pub fn mac(key: &[u8], pieces: &[&[u8]]) -> [u8; KEY_BYTES] {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    pieces.iter().for_each(|p| context.update(p));
    fixed(context.sign().as_ref())
}

/// SHA-256.
pub fn sha256(data: &[u8]) -> [u8; KEY_BYTES] {
    fixed(digest::digest(&digest::SHA256, data).as_ref())
}

fn fixed(bytes: &[u8]) -> [u8; KEY_BYTES] {
    let mut out = [0; KEY_BYTES];
    out.copy_from_slice(bytes);
    out
}

/// Bytes that nobody can guess.
///
/// # Errors
/// [`StoredFault::NoChance`]
#[expect(clippy::disallowed_methods, reason = "secrets come from the system, in a simulation too")]
pub fn secret<const N: usize>() -> Result<[u8; N], StoredFault> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).map_err(|_| StoredFault::NoChance)?;
    Ok(bytes)
}

/// Whether two secrets are the same. The comparison takes as long wherever they differ, and whatever their lengths are.
pub fn same(a: &[u8], b: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(&sha256(a), &sha256(b)).is_ok()
}

/// A name or password as it is compared: by SASLprep (RFC 4013), and as it is where SASLprep has none.
pub fn prepared(text: &str) -> String {
    stringprep::saslprep(text).map_or_else(|_| text.to_owned(), std::borrow::Cow::into_owned)
}

/// A password as it is stored.
#[derive(Clone, PartialEq, Eq)]
pub enum StoredPassword {
    /// As it is.
    Plain(String),
    /// For SCRAM-SHA-256.
    Scram(Verifier),
    /// A PHC string.
    Argon2id(String),
}

impl StoredPassword {
    /// Reads what `password` says.
    ///
    /// # Errors
    /// [`StoredFault`]; none of them quotes the value.
    pub fn read(value: &str) -> Result<StoredPassword, StoredFault> {
        if let Some(rest) = value.strip_prefix(SCRAM_PREFIX) {
            return verifier(rest).map(StoredPassword::Scram);
        }
        if value.starts_with(ARGON2_PREFIX) {
            let hash = PasswordHash::new(value).map_err(|e| StoredFault::Argon2(e.to_string()))?;
            let params = Params::try_from(&hash).map_err(|e| StoredFault::Argon2(e.to_string()))?;
            if hash.hash.is_none() || hash.salt.is_none() || hash.version != Some(Version::V0x13 as u32) {
                return Err(StoredFault::Argon2("version 19, a salt and a hash are needed".into()));
            }
            let cost = (params.m_cost(), params.t_cost(), params.p_cost());
            if cost.0 > ARGON2_MEMORY_MAX_KIB || cost.1 > ARGON2_PASSES_MAX || cost.2 > ARGON2_LANES_MAX {
                return Err(StoredFault::Argon2Cost(cost.0, cost.1, cost.2));
            }
            return Ok(StoredPassword::Argon2id(value.to_owned()));
        }
        fits(value)?;
        Ok(StoredPassword::Plain(value.to_owned()))
    }

    /// What the form is called.
    pub fn form(&self) -> &'static str {
        match self {
            StoredPassword::Plain(_) => "plain text",
            StoredPassword::Scram(_) => "SCRAM-SHA-256",
            StoredPassword::Argon2id(_) => "Argon2id",
        }
    }

    /// Whether clients can prove by a mechanism that they know it.
    pub fn allows(&self, mechanism: Mechanism) -> bool {
        match mechanism {
            Mechanism::Plain | Mechanism::Login => true,
            Mechanism::ScramSha256 => !matches!(self, StoredPassword::Argon2id(_)),
            Mechanism::CramMd5 => matches!(self, StoredPassword::Plain(_)),
            Mechanism::External => false,
        }
    }

    /// Whether `password`, which is prepared, is the one. Takes as long as the form says.
    pub fn is(&self, password: &str) -> bool {
        match self {
            StoredPassword::Plain(own) => same(prepared(own).as_bytes(), password.as_bytes()),
            StoredPassword::Scram(v) => {
                same(&Verifier::of(password, v.salt.clone(), v.iterations).stored_key, &v.stored_key)
            }
            StoredPassword::Argon2id(phc) => {
                PasswordHash::new(phc).is_ok_and(|h| Argon2::default().verify_password(password.as_bytes(), &h).is_ok())
            }
        }
    }
}

/// A password that something can be made of: nothing is left of one that consists of what cannot be seen.
fn fits(password: &str) -> Result<(), StoredFault> {
    let is_empty = prepared(password).is_empty();
    match password.len() {
        1..=PASSWORD_MAX if !is_empty && !password.contains('\0') => Ok(()),
        n => Err(StoredFault::Length(n)),
    }
}

/// A value that looks like a hash of a form that is none here: it would be taken for the password itself.
pub fn looks_like_a_hash(value: &str) -> bool {
    let of_crypt = value
        .strip_prefix('$')
        .and_then(|v| v.split_once('$'))
        .is_some_and(|(form, _)| !form.is_empty() && form.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'));
    let of_ldap = value.strip_prefix('{').and_then(|v| v.split_once('}')).is_some_and(|(form, hash)| {
        !hash.is_empty() && !form.is_empty() && form.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    });
    of_crypt || of_ldap || value.get(..6).is_some_and(|v| v.eq_ignore_ascii_case("SCRAM-")) && value.contains('$')
}

fn verifier(rest: &str) -> Result<Verifier, StoredFault> {
    let (first, keys) = rest.split_once('$').ok_or(StoredFault::Scram)?;
    let (iterations, salt) = first.split_once(':').ok_or(StoredFault::Scram)?;
    let (stored_key, server_key) = keys.split_once(':').ok_or(StoredFault::Scram)?;
    let iterations = crate::smtp::command::digits(iterations).ok_or(StoredFault::Scram)?;
    let in_range = u32::try_from(iterations).ok().filter(|n| (ITERATIONS_MIN..=ITERATIONS_MAX).contains(n));
    let key = |text: &str| -> Result<[u8; KEY_BYTES], StoredFault> {
        let bytes = BASE64_STANDARD.decode(text).map_err(|_| StoredFault::Scram)?;
        bytes.try_into().map_err(|_| StoredFault::Scram)
    };
    let salt = BASE64_STANDARD.decode(salt).ok().filter(|s| (1..=SALT_BYTES_MAX).contains(&s.len()));
    Ok(Verifier {
        iterations: in_range.ok_or(StoredFault::Iterations(iterations))?,
        salt: salt.ok_or(StoredFault::Scram)?,
        stored_key: key(stored_key)?,
        server_key: key(server_key)?,
    })
}

/// A form that `sluice user hash` makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// For PLAIN and LOGIN.
    Argon2id,
    /// For SCRAM-SHA-256, PLAIN and LOGIN, with so many iterations.
    ScramSha256(u32),
}

/// What `password` is to say for a password.
///
/// # Errors
/// [`StoredFault::Length`], [`StoredFault::NoChance`], or [`StoredFault::Argon2`] where the hash cannot be made.
pub fn made(password: &str, form: Form) -> Result<String, StoredFault> {
    fits(password)?;
    let password = prepared(password);
    let salt = secret::<SALT_BYTES>()?.to_vec();
    match form {
        Form::ScramSha256(iterations) => {
            let v = Verifier::of(&password, salt, iterations);
            let [salt, stored, server] = [&v.salt[..], &v.stored_key, &v.server_key].map(|b| BASE64_STANDARD.encode(b));
            Ok(format!("{SCRAM_PREFIX}{iterations}:{salt}${stored}:{server}"))
        }
        Form::Argon2id => {
            let (memory, passes, lanes) = ARGON2_NEW;
            let fault = |e: argon2::Error| StoredFault::Argon2(e.to_string());
            let params = Params::new(memory, passes, lanes, Some(KEY_BYTES)).map_err(fault)?;
            let mut hash = [0; KEY_BYTES];
            let hasher = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
            hasher.hash_password_into(password.as_bytes(), &salt, &mut hash).map_err(fault)?;
            let [salt, hash] = [&salt[..], &hash].map(|b| BASE64_STANDARD_NO_PAD.encode(b));
            Ok(format!("{ARGON2_PREFIX}v=19$m={memory},t={passes},p={lanes}${salt}${hash}"))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_is_read_and_knows_its_password() {
        for form in [Form::Argon2id, Form::ScramSha256(ITERATIONS_MIN)] {
            let value = made("pencil \u{aa}", form).unwrap();
            assert!(!value.contains([' ', '"', '#']), "it stands in a configuration: {value}");
            let stored = StoredPassword::read(&value).unwrap();
            // SASLprep takes U+00AA for an `a`.
            assert!(stored.is(&prepared("pencil a")) && !stored.is("pencil"));
            assert_ne!(made("pencil \u{aa}", form).unwrap(), value, "another salt");
        }
    }

    #[test]
    fn forms_of_others_are_read() {
        // Of the password "pencil": that of RFC 7677 section 3, and what the reference implementation of Argon2 (20190702) prints.
        let salt = BASE64_STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let v = Verifier::of("pencil", salt, 4096);
        let [stored, server] = [v.stored_key, v.server_key].map(|k| BASE64_STANDARD.encode(k));
        assert_eq!(stored, "WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=");
        assert_eq!(server, "wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=");
        let text = format!("SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==${stored}:{server}");
        assert!(StoredPassword::read(&text).is_ok_and(|s| s == StoredPassword::Scram(v)));
        let argon2id = "$argon2id$v=19$m=4096,t=3,p=1$c29tZXNhbHQtb2YtMTZi$6EKKD4RQeH/A7eqLYFq6denQAh1OS7RBlQ05dxgf8EU";
        assert!(StoredPassword::read(argon2id).is_ok_and(|s| s.is("pencil") && !s.is("pencils")));
    }

    #[test]
    fn what_looks_like_a_hash_of_another_kind_is_known() {
        for value in
            ["scram-sha-256$4096:x$y:z", "SCRAM-SHA-1$x", "$2b$12$abc", "$6$salt$hash", "$argon2i$x", "{SSHA}abc"]
        {
            assert!(looks_like_a_hash(value), "{value}");
        }
        for value in ["pa$$word", "$ecret", "{x", "scramble", "$$x", "{}"] {
            assert!(!looks_like_a_hash(value), "{value}");
        }
        assert!(StoredPassword::read("\u{ad}").is_err());
        assert!(made("\u{ad}", Form::Argon2id).is_err() && made("a\0b", Form::Argon2id).is_err());
    }

    #[test]
    fn what_cannot_be_used_says_why_and_does_not_quote() {
        for (value, expected) in [
            ("SCRAM-SHA-256$4096:secret", "SALT$STORED-KEY"),
            (
                "SCRAM-SHA-256$1:c2VjcmV0$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=",
                "found 1",
            ),
            ("$argon2id$secret", "expected $argon2id$v=19"),
            (
                "$argon2id$v=19$m=1048576,t=3,p=4$c2VjcmV0c2FsdA$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY",
                "found m=1048576",
            ),
            ("", "found 0"),
        ] {
            let Err(fault) = StoredPassword::read(value) else { panic!("{value} is read") };
            let text = fault.to_string();
            assert!(text.contains(expected) && !text.contains("secret"), "{value}: {text}");
        }
    }
}
