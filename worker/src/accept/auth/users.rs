//! The users of a configuration, and what a client's claim to be one of them is worth.
//!
//! A name that nobody has is treated as one that somebody has: it is likened to one of the users, the same one as long as there is that user,
//! and checked against what that user's password is stored in, at the same cost and with questions of the same form. Which names there are
//! can so be told neither by the answers nor by the time that they take.
//!
//! Names are compared as SASLprep makes them (RFC 4013), which the exchange has done to those that clients say.

use hmac::Mac as _;
use ipc::dice::HashMap;
use ipc::ledger::shared_limits::mixed;
use ipc::snapshot::ArchivedSnapshot;

use super::exchange::{Exchange, chance};
use super::mechanism::Mechanism;
use super::scram::{ClientFirst, Proof};
use super::stored::{ITERATIONS_MIN, StoredPassword, Verifier, mac, prepared, same, sha256};

/// Octets of salt for a password that is stored as it is.
const SALT_BYTES: usize = 16;

/// A claim to be somebody, to be checked by [`Users::check`].
pub enum Check {
    /// PLAIN, LOGIN
    Password {
        /// Who.
        name: String,
        /// What the client says the password is.
        password: String,
    },
    /// CRAM-MD5
    CramMd5 {
        /// Who.
        name: String,
        /// What the server asked.
        challenge: String,
        /// HMAC-MD5 of it by the password.
        digest: [u8; 16],
    },
    /// SCRAM, at first: what the server asks depends on the user.
    ScramFirst(ClientFirst),
    /// SCRAM, at last.
    ScramLast(Box<Proof>, Vec<u8>),
    /// The exchange has proven it: nothing is left to be checked.
    Proven {
        /// Who.
        name: String,
    },
    /// A claim that is wrong whatever is stored: to act in another's name, or a certificate that was not shown.
    Nobody {
        /// Who.
        name: String,
    },
}

impl std::fmt::Debug for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A password is not shown.
        f.debug_struct("Check").field("name", &self.name()).finish_non_exhaustive()
    }
}

impl Check {
    /// The name that is claimed.
    pub fn name(&self) -> &str {
        match self {
            Check::Password { name, .. } | Check::CramMd5 { name, .. } => name,
            Check::Proven { name } | Check::Nobody { name } => name,
            Check::ScramFirst(first) => &first.name,
            Check::ScramLast(proof, _) => &proof.name,
        }
    }
}

/// What a claim is worth.
pub enum Answer {
    /// It goes on.
    Ask(Vec<u8>, Exchange),
    /// The client is this user.
    Proven(String),
    /// It is not.
    Wrong,
    /// The password is stored in a form that the mechanism cannot use: nothing was guessed.
    Unusable,
    /// What the client said is no message of the mechanism.
    Malformed,
    /// The machine gives no chance for a nonce.
    Unavailable,
}

struct User {
    /// As the configuration has it.
    written: String,
    password: Option<StoredPassword>,
    certificate: Vec<u8>,
    source: String,
    /// By which names that nobody has are likened to it.
    likeness: u64,
}

/// All users.
#[derive(Default)]
pub struct Users {
    all: Vec<User>,
    /// By prepared name.
    by_name: HashMap<String, usize>,
    /// Those that have a password.
    with_password: Vec<usize>,
    /// Mechanisms that some password allows.
    allowed: Vec<Mechanism>,
    have_certificates: bool,
    /// Some password is stored in a form that takes long to check.
    any_takes_long: bool,
    salt_key: [u8; 32],
}

impl std::fmt::Debug for Users {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Users").field("number", &self.all.len()).finish_non_exhaustive()
    }
}

impl Users {
    /// Those of a configuration.
    ///
    /// # Errors
    /// A sentence naming the user whose password cannot be used.
    pub fn of(snapshot: &ArchivedSnapshot) -> Result<Users, String> {
        let mut users = Users { salt_key: snapshot.salt_key.0, ..Users::default() };
        for u in snapshot.smtp_users.iter() {
            let (written, name) = (u.name.as_str().to_owned(), prepared(&u.name));
            let read = Some(u.password.as_str()).filter(|p| !p.is_empty()).map(StoredPassword::read);
            let password = read.transpose().map_err(|e| format!("<smtp-user {written}>: password: {e}"))?;
            let n = users.all.len();
            users.with_password.extend(password.is_some().then_some(n));
            users.any_takes_long |= password.as_ref().is_some_and(|p| !matches!(p, StoredPassword::Plain(_)));
            let likeness = users.number(&[b"user", name.as_bytes()]);
            users.by_name.insert(name, n);
            let (certificate, source) = (u.certificate.to_vec(), u.source.as_str().to_owned());
            users.have_certificates |= !certificate.is_empty();
            users.all.push(User { written, password, certificate, source, likeness });
        }
        let allow = |m: &Mechanism| users.passwords().any(|p| p.allows(*m));
        users.allowed = Mechanism::ALL.into_iter().filter(allow).collect();
        Ok(users)
    }

    /// Whether some user can prove itself by a mechanism. Of EXTERNAL that is never said: only a client that has shown its certificate can.
    pub fn allow(&self, mechanism: Mechanism) -> bool {
        self.allowed.contains(&mechanism)
    }

    /// Whether clients are to be asked for certificates.
    pub fn have_certificates(&self) -> bool {
        self.have_certificates
    }

    /// The name, as written, of the user with a certificate, given in DER.
    pub fn by_certificate(&self, der: &[u8]) -> Option<&str> {
        let digest = sha256(der);
        self.all.iter().find(|u| u.certificate == digest).map(|u| u.written.as_str())
    }

    /// The name of a user as the configuration has it; `name` in any spelling that is the same name.
    pub fn written(&self, name: &str) -> Option<&str> {
        self.user(&prepared(name)).map(|u| u.written.as_str())
    }

    /// The named source whose rules hold for a user, in lower case.
    pub fn source_of(&self, name: &str) -> &str {
        self.user(&prepared(name)).map_or("", |u| u.source.as_str())
    }

    /// Whether a user proves who it is by the same password or certificate here as in another configuration.
    pub fn agree_on(&self, name: &str, other: &Users) -> bool {
        let name = prepared(name);
        let same = |(a, b): (&User, &User)| a.password == b.password && a.certificate == b.certificate;
        self.user(&name).zip(other.user(&name)).is_some_and(same)
    }

    /// A number for something that is counted over all shards, which nobody outside can compute.
    pub fn secret_number(&self, what: &str, name: &str, window_s: u64) -> u64 {
        self.number(&[what.as_bytes(), &window_s.to_le_bytes(), name.as_bytes()])
    }

    fn number(&self, pieces: &[&[u8]]) -> u64 {
        mac(&self.salt_key, pieces).iter().take(8).fold(0, |n, b| n << 8 | u64::from(*b))
    }

    /// A check takes no longer than a few hashes.
    pub fn is_quick(&self, check: &Check) -> bool {
        match check {
            Check::CramMd5 { .. } | Check::ScramLast(..) | Check::Proven { .. } => true,
            Check::ScramFirst(_) => false,
            Check::Password { .. } | Check::Nobody { .. } => !self.any_takes_long,
        }
    }

    /// A check needs much memory for as long as it takes: that of Argon2id.
    pub fn needs_memory(&self, check: &Check) -> bool {
        let takes_password = matches!(check, Check::Password { .. } | Check::Nobody { .. });
        takes_password && matches!(self.stored(check.name()), Some((StoredPassword::Argon2id(_), _)))
    }

    fn passwords(&self) -> impl Iterator<Item = &StoredPassword> {
        self.with_password.iter().filter_map(|n| self.all[*n].password.as_ref())
    }

    fn user(&self, name: &str) -> Option<&User> {
        self.by_name.get(name).map(|n| &self.all[*n])
    }

    /// What a claim to be somebody is checked against, and whether it is that user's own: a name that nobody has is likened to a user.
    fn stored(&self, name: &str) -> Option<(&StoredPassword, bool)> {
        if let Some(own) = self.user(name).and_then(|u| u.password.as_ref()) {
            return Some((own, true));
        }
        // The user that fits best: a user that comes or goes changes what it is for few names.
        let own = self.number(&[b"likeness", name.as_bytes()]);
        let like = self.with_password.iter().max_by_key(|n| mixed(own, self.all[**n].likeness))?;
        Some((self.all[*like].password.as_ref()?, false))
    }

    /// A salt for a name, always the same.
    fn salt(&self, name: &str, length: usize) -> Vec<u8> {
        let blocks = (0..=u8::MAX).flat_map(|n| mac(&self.salt_key, &[b"salt", &[n], name.as_bytes()]));
        blocks.take(length).collect()
    }

    /// What a claim is worth. Takes long: see [`Users::is_quick`].
    pub fn check(&self, check: Check) -> Answer {
        let outcome = |name: String, is_right: bool| if is_right { Answer::Proven(name) } else { Answer::Wrong };
        match check {
            Check::Password { name, password } => {
                let Some((stored, is_own)) = self.stored(&name) else { return Answer::Wrong };
                let is_right = stored.is(&prepared(&password));
                outcome(name, is_right && is_own)
            }
            Check::CramMd5 { name, challenge, digest } => {
                let Some((StoredPassword::Plain(password), is_own)) = self.stored(&name) else {
                    return Answer::Unusable;
                };
                // RFC 2195 knows no SASLprep: clients take the password as it is, or as newer mechanisms have it.
                let is_of = |p: &str| cram_md5(p, &challenge).is_some_and(|d| same(&d, &digest));
                let is_right = is_of(password) | is_of(&prepared(password));
                outcome(name, is_right && is_own)
            }
            Check::ScramFirst(first) => {
                let Some((verifier, is_own)) = self.verifier(&first.name) else { return Answer::Unusable };
                let Some(nonce) = chance() else { return Answer::Unavailable };
                let acts_for_itself = first.acts_for.is_empty() || first.acts_for == first.name;
                let (proof, asked) = Proof::ask(first, verifier, !is_own || !acts_for_itself, &nonce);
                Answer::Ask(asked.into_bytes(), Exchange::ScramLast(Box::new(proof)))
            }
            Check::ScramLast(proof, message) => match proof.check(&message) {
                Ok(Some(last)) => Answer::Ask(last.into_bytes(), Exchange::ScramProven { name: proof.name }),
                Ok(None) => Answer::Wrong,
                Err(_) => Answer::Malformed,
            },
            Check::Proven { name } => Answer::Proven(name),
            Check::Nobody { name } => {
                // As long as for a wrong password.
                std::hint::black_box(self.stored(&name).is_some_and(|(p, _)| p.is("")));
                Answer::Wrong
            }
        }
    }

    /// The verifier of a name, and whether it is a user's own; `None` where the form that its password is stored in has none.
    fn verifier(&self, name: &str) -> Option<(Verifier, bool)> {
        let salt = |length| self.salt(name, length);
        Some(match self.stored(name)? {
            (StoredPassword::Argon2id(_), _) => return None,
            (StoredPassword::Scram(v), true) => (v.clone(), true),
            (StoredPassword::Scram(v), false) => {
                let keys = [b"stored", b"server"].map(|what| mac(&self.salt_key, &[what, name.as_bytes()]));
                let [stored_key, server_key] = keys;
                (Verifier { iterations: v.iterations, salt: salt(v.salt.len()), stored_key, server_key }, false)
            }
            // What it is of, where it is nobody's, makes no difference: no proof is right.
            (StoredPassword::Plain(p), is_own) => {
                (Verifier::of(&prepared(p), salt(SALT_BYTES), ITERATIONS_MIN), is_own)
            }
        })
    }
}

/// HMAC-MD5 (RFC 2104), by which CRAM-MD5 proves a password.
fn cram_md5(password: &str, challenge: &str) -> Option<[u8; 16]> {
    let mut mac = hmac::Hmac::<md5::Md5>::new_from_slice(password.as_bytes()).ok()?;
    mac.update(challenge.as_bytes());
    Some(mac.finalize().into_bytes().into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::exchange::Next;
    use super::super::stored::{Form, made};
    use super::*;
    use ipc::snapshot::{MappedSnapshot, SaltKey, SmtpUser, Snapshot};

    fn users() -> Users {
        let user = |name: &str, password: String| SmtpUser {
            name: name.into(),
            password,
            source: "{auth}".into(),
            ..Default::default()
        };
        let smtp_users = vec![
            user("plain", "secret".into()),
            user("scram@d.test", made("secret", Form::ScramSha256(5000)).unwrap()),
            user("argon", made("secret", Form::Argon2id).unwrap()),
            SmtpUser { name: "cert".into(), certificate: sha256(b"der").to_vec(), ..Default::default() },
        ];
        let snapshot = Snapshot { smtp_users, salt_key: SaltKey([7; 32]), ..Default::default() };
        Users::of(MappedSnapshot::map(&snapshot.seal().unwrap()).unwrap().get()).unwrap()
    }

    fn proven(a: &Answer) -> Option<&str> {
        if let Answer::Proven(name) = a { Some(name) } else { None }
    }

    #[test]
    fn passwords_are_right_or_wrong_in_each_form() {
        let users = users();
        for name in ["plain", "scram@d.test", "argon"] {
            let said = |password: &str| {
                let message = format!("\0{name}\0{password}");
                let Next::Check(check) = Exchange::Plain.heard(message.as_bytes(), None) else { panic!() };
                users.check(check)
            };
            assert_eq!(proven(&said("secret")), Some(name));
            assert!(matches!(said("Secret"), Answer::Wrong));
        }
        for message in [
            "\0nobody\0secret",
            "\0cert\0secret",
            "argon\0plain\0secret",
            "\0plain\0\u{0}secret",
            "\0\0secret",
            "plain",
        ] {
            let worth = match Exchange::Plain.heard(message.as_bytes(), None) {
                Next::Check(check) => users.check(check),
                _ => Answer::Malformed,
            };
            assert!(matches!(worth, Answer::Wrong | Answer::Malformed), "{message:?}");
        }
    }

    #[test]
    fn the_exchange_of_rfc_2195() {
        let digest = cram_md5("tanstaaftanstaaf", "<1896.697170952@postoffice.reston.mci.net>").unwrap();
        assert_eq!(format!("{:032x}", u128::from_be_bytes(digest)), "b913a602c7eda7a495b4e6e7334d3890");
        let challenge = "<x@h>".to_owned();
        let said = |name: &str| {
            let digest = cram_md5("secret", &challenge).unwrap();
            users().check(Check::CramMd5 { name: name.into(), challenge: challenge.clone(), digest })
        };
        assert_eq!(proven(&said("plain")), Some("plain"));
        assert!(matches!(said("argon"), Answer::Unusable), "its password is not known");
    }

    #[test]
    fn scram_asks_alike_whether_there_is_such_a_user_or_not() {
        let users = users();
        let asked = |name: &str| {
            let first = ClientFirst::read(format!("n,,n={name},r=abc").as_bytes()).unwrap();
            match users.check(Check::ScramFirst(first)) {
                Answer::Ask(asked, _) => String::from_utf8(asked).unwrap().split_once(",s=").unwrap().1.to_owned(),
                Answer::Unusable => ",i=none".into(),
                _ => panic!(),
            }
        };
        for name in ["plain", "scram@d.test", "argon", "nobody"] {
            assert_eq!(asked(name), asked(name), "the salt lasts");
        }
        let rounds: std::collections::BTreeSet<_> =
            (0..40).map(|n| asked(&format!("nobody{n}")).split_once(",i=").unwrap().1.to_owned()).collect();
        assert_eq!(rounds.into_iter().collect::<Vec<_>>(), ["4096", "5000", "none"], "those of users");
    }

    #[test]
    fn a_certificate_is_its_user_alone() {
        let users = users();
        assert_eq!((users.by_certificate(b"der"), users.by_certificate(b"other")), (Some("cert"), None));
        let said = |message: &[u8]| Exchange::External.heard(message, Some("cert"));
        assert!(matches!(said(b""), Next::Check(Check::Proven { name }) if name == "cert"));
        assert!(matches!(said(b"cert"), Next::Check(Check::Proven { .. })));
        assert!(matches!(said(b"plain"), Next::Check(Check::Nobody { .. })));
    }
}
