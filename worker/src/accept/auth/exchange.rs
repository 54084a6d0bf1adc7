//! One AUTH command (RFC 4954 §4): what the server asks, and what is made of the client's answers. Without a socket.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::prelude::BASE64_STANDARD;

use super::mechanism::{Malformed, Mechanism};
use super::scram::{ClientFirst, Proof};
use super::stored::{NAME_MAX, PASSWORD_MAX, prepared, secret};
use super::users::Check;

/// Longest line of an exchange (RFC 4954 §4), CR LF included.
pub const LINE_MAX: usize = 12_288 + 2;
const DIGEST_BYTES: usize = 16;
/// Bytes of chance in challenges and nonces; a multiple of three, so that their base64 has no padding.
const CHANCE_BYTES: usize = 18;
/// Clients are known that leave the padding out.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What the server waits for.
pub enum Exchange {
    /// PLAIN: all of it.
    Plain,
    /// LOGIN: the name.
    LoginName,
    /// LOGIN: the password.
    LoginPassword {
        /// The name given before.
        name: String,
    },
    /// CRAM-MD5: name and digest.
    CramMd5 {
        /// What the digest is of.
        challenge: String,
    },
    /// SCRAM: the client's first message.
    ScramFirst,
    /// SCRAM: its last.
    ScramLast(Box<Proof>),
    /// SCRAM: the client's empty answer to what proves that this server knows the password, too.
    ScramProven {
        /// Who the client is.
        name: String,
    },
    /// EXTERNAL: in whose name the client acts.
    External,
}

/// What follows from a client's message.
pub enum Next {
    /// The server asks this, and waits for the answer.
    Ask(Vec<u8>, Exchange),
    /// This has to be checked; [`super::users::Users::check`] says how it goes on.
    Check(Check),
    /// Nothing can be made of it.
    Malformed,
}

/// Base64 of chance; `None` where the machine has none to give.
pub fn chance() -> Option<String> {
    secret::<CHANCE_BYTES>().ok().map(|bytes| BASE64_STANDARD.encode(bytes))
}

/// A client's line as bytes.
///
/// # Errors
/// [`Malformed`] where it is no base64.
pub fn decoded(line: &str) -> Result<Vec<u8>, Malformed> {
    LENIENT.decode(line.trim_end_matches(' ')).map_err(|_| Malformed)
}

/// A line that asks a client.
pub fn encoded(asked: &[u8]) -> String {
    BASE64_STANDARD.encode(asked)
}

impl Exchange {
    /// By a mechanism, of the server `host`; `None` where the machine gives no chance for a challenge.
    pub fn begin(mechanism: Mechanism, host: &str) -> Option<Exchange> {
        Some(match mechanism {
            Mechanism::Plain => Exchange::Plain,
            Mechanism::Login => Exchange::LoginName,
            Mechanism::CramMd5 => Exchange::CramMd5 { challenge: format!("<{}@{host}>", chance()?) },
            Mechanism::ScramSha256 => Exchange::ScramFirst,
            Mechanism::External => Exchange::External,
        })
    }

    /// What the server asks where the client said nothing together with AUTH.
    pub fn first_question(&self) -> &[u8] {
        match self {
            Exchange::LoginName => b"Username:",
            Exchange::CramMd5 { challenge } => challenge.as_bytes(),
            _ => b"",
        }
    }

    /// Whether the client may say something together with AUTH: LOGIN's name, though LOGIN lets the server begin, is usual there.
    pub fn lets_client_begin(&self) -> bool {
        !matches!(self, Exchange::CramMd5 { .. })
    }

    /// What follows from a client's message. `shown` is the user whose certificate the client has shown.
    pub fn heard(self, message: &[u8], shown: Option<&str>) -> Next {
        self.next(message, shown).unwrap_or(Next::Malformed)
    }

    fn next(self, message: &[u8], shown: Option<&str>) -> Result<Next, Malformed> {
        Ok(match self {
            Exchange::Plain => {
                let mut parts = message.split(|b| *b == 0).map(|p| std::str::from_utf8(p).map_err(|_| Malformed));
                let mut part = || parts.next().ok_or(Malformed)?;
                let (acts_for, name, password) = (part()?, part()?, part()?);
                if parts.next().is_some() {
                    return Err(Malformed);
                }
                Next::Check(of_password(acts_for, name, password)?)
            }
            Exchange::LoginName => {
                // A name that nobody can have is refused behind the password, which would be read as a command otherwise.
                let name = std::str::from_utf8(message).map_err(|_| Malformed)?.to_owned();
                Next::Ask(b"Password:".to_vec(), Exchange::LoginPassword { name })
            }
            Exchange::LoginPassword { name } => {
                let password = std::str::from_utf8(message).map_err(|_| Malformed)?;
                match named(&name) {
                    Ok(_) => Next::Check(of_password("", &name, password)?),
                    Err(_) => Next::Check(Check::Nobody { name: String::new() }),
                }
            }
            Exchange::CramMd5 { challenge } => {
                let text = std::str::from_utf8(message).map_err(|_| Malformed)?;
                let (name, digest) = text.rsplit_once(' ').ok_or(Malformed)?;
                let name = named(name)?;
                Next::Check(Check::CramMd5 { name, challenge, digest: digest_of(digest)? })
            }
            Exchange::ScramFirst => {
                let mut first = ClientFirst::read(message)?;
                first.name = named(&first.name)?;
                first.acts_for = prepared(&first.acts_for);
                Next::Check(Check::ScramFirst(first))
            }
            Exchange::ScramLast(proof) => Next::Check(Check::ScramLast(proof, message.to_vec())),
            Exchange::ScramProven { name } if message.is_empty() => Next::Check(Check::Proven { name }),
            Exchange::ScramProven { .. } => return Err(Malformed),
            Exchange::External => {
                let acts_for = std::str::from_utf8(message).map_err(|_| Malformed)?;
                match shown {
                    Some(name) if acts_for.is_empty() || prepared(acts_for) == prepared(name) => {
                        Next::Check(Check::Proven { name: name.to_owned() })
                    }
                    _ => Next::Check(Check::Nobody { name: prepared(acts_for) }),
                }
            }
        })
    }
}

/// A name as it is compared, whichever of its spellings a client uses.
fn named(name: &str) -> Result<String, Malformed> {
    Some(name).filter(|n| n.len() <= NAME_MAX).map(prepared).filter(|n| !n.is_empty()).ok_or(Malformed)
}

fn of_password(acts_for: &str, name: &str, password: &str) -> Result<Check, Malformed> {
    let name = named(name)?;
    if !(1..=PASSWORD_MAX).contains(&password.len()) {
        return Err(Malformed);
    }
    // Nobody acts in another's name.
    Ok(match acts_for.is_empty() || prepared(acts_for) == name {
        true => Check::Password { name, password: password.to_owned() },
        false => Check::Nobody { name },
    })
}

/// Sixteen bytes of 32 hexadecimal digits.
fn digest_of(digits: &str) -> Result<[u8; DIGEST_BYTES], Malformed> {
    let mut out = [0; DIGEST_BYTES];
    if digits.len() != 2 * DIGEST_BYTES || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Malformed);
    }
    for (byte, pair) in out.iter_mut().zip(digits.as_bytes().chunks(2)) {
        let pair = std::str::from_utf8(pair).map_err(|_| Malformed)?;
        *byte = u8::from_str_radix(pair, 16).map_err(|_| Malformed)?;
    }
    Ok(out)
}
