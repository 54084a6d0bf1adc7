//! SCRAM-SHA-256 (RFC 5802, RFC 7677), the server's part, without channel binding.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::mechanism::Malformed;
use super::stored::{Verifier, mac, same, sha256};

/// Octets of a client's nonce.
const NONCE_MAX: usize = 256;
/// Octets of what a client says at first.
const FIRST_MAX: usize = 2048;

/// A client's first message.
#[derive(Debug, PartialEq, Eq)]
pub struct ClientFirst {
    /// The name that it authenticates as.
    pub name: String,
    /// In whose name it wants to act; empty for its own.
    pub acts_for: String,
    gs2_header: String,
    bare: String,
    nonce: String,
}

/// Text of an attribute `letter=`.
fn attribute(part: Option<&str>, letter: char) -> Result<&str, Malformed> {
    part.and_then(|p| p.strip_prefix(letter)?.strip_prefix('=')).ok_or(Malformed)
}

/// `=2C` and `=3D` of a name stand for a comma and an equals sign (RFC 5802 §5.1).
fn name(text: &str) -> Result<String, Malformed> {
    // Before the first sign, or all of it, nothing is escaped.
    let (plain, escaped) = text.split_at(text.find('=').unwrap_or(text.len()));
    let mut out = plain.to_owned();
    for p in escaped.split('=').skip(1) {
        let (code, rest) = p.split_at_checked(2).ok_or(Malformed)?;
        out.push(match code {
            "2C" => ',',
            "3D" => '=',
            _ => return Err(Malformed),
        });
        out.push_str(rest);
    }
    Ok(out)
}

impl ClientFirst {
    /// Reads it.
    ///
    /// # Errors
    /// [`Malformed`], also where the client insists on channel binding, which is not offered, or on an extension.
    pub fn read(message: &[u8]) -> Result<ClientFirst, Malformed> {
        let text = std::str::from_utf8(message).ok().filter(|t| t.len() <= FIRST_MAX).ok_or(Malformed)?;
        let mut parts = text.splitn(3, ',');
        let (flag, acts_for, bare) = (parts.next(), parts.next().ok_or(Malformed)?, parts.next().ok_or(Malformed)?);
        // "y": the client could bind, and believes that this server cannot. So it is.
        if !matches!(flag, Some("n" | "y")) {
            return Err(Malformed);
        }
        let gs2_header = text[..text.len() - bare.len()].to_owned();
        let acts_for = if acts_for.is_empty() { String::new() } else { name(attribute(Some(acts_for), 'a')?)? };
        let mut parts = bare.split(',');
        let user = name(attribute(parts.next(), 'n')?)?;
        let nonce = attribute(parts.next(), 'r')?;
        if nonce.is_empty() || nonce.len() > NONCE_MAX || !nonce.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Malformed);
        }
        Ok(ClientFirst { name: user, acts_for, gs2_header, nonce: nonce.to_owned(), bare: bare.to_owned() })
    }
}

/// What the client's last message is checked by.
pub struct Proof {
    /// The name that the client authenticates as.
    pub name: String,
    verifier: Verifier,
    /// Nobody has the name, or the password is of no use here: no proof is right.
    is_decoy: bool,
    gs2_header: String,
    /// The client's first message without its header, and the server's.
    said: String,
    nonce: String,
}

impl Proof {
    /// What the server says to a client's first message; `server_nonce` is random, of printable characters other than a comma.
    pub fn ask(first: ClientFirst, verifier: Verifier, is_decoy: bool, server_nonce: &str) -> (Proof, String) {
        let nonce = format!("{}{server_nonce}", first.nonce);
        let asked = format!("r={nonce},s={},i={}", BASE64_STANDARD.encode(&verifier.salt), verifier.iterations);
        let said = format!("{},{asked}", first.bare);
        (Proof { name: first.name, verifier, is_decoy, gs2_header: first.gs2_header, said, nonce }, asked)
    }

    /// What the server says to a client's last message, which proves that the server knows the password too; `None` where the client does
    /// not know it.
    ///
    /// # Errors
    /// [`Malformed`]
    pub fn check(&self, message: &[u8]) -> Result<Option<String>, Malformed> {
        let text = std::str::from_utf8(message).map_err(|_| Malformed)?;
        let (without_proof, proof) = text.rsplit_once(",p=").ok_or(Malformed)?;
        let mut parts = without_proof.split(',');
        let header = BASE64_STANDARD.decode(attribute(parts.next(), 'c')?).map_err(|_| Malformed)?;
        let nonce = attribute(parts.next(), 'r')?;
        let proof = BASE64_STANDARD.decode(proof).map_err(|_| Malformed)?;
        let said = [self.said.as_bytes(), b",", without_proof.as_bytes()];
        let signature = mac(&self.verifier.stored_key, &said);
        if proof.len() != signature.len() {
            return Err(Malformed);
        }
        let client_key: Vec<u8> = proof.iter().zip(signature).map(|(p, s)| p ^ s).collect();
        let knows = same(&sha256(&client_key), &self.verifier.stored_key);
        let is_ours = header == self.gs2_header.as_bytes() && nonce == self.nonce;
        let server = BASE64_STANDARD.encode(mac(&self.verifier.server_key, &said));
        Ok((knows && is_ours && !self.is_decoy).then(|| format!("v={server}")))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The exchange of RFC 7677 §3.
    fn rfc(is_decoy: bool) -> Proof {
        let first = ClientFirst::read(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO").unwrap();
        let salt = BASE64_STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let verifier = Verifier::of("pencil", salt, 4096);
        let (proof, asked) = Proof::ask(first, verifier, is_decoy, "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0");
        assert_eq!(asked, "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096");
        proof
    }

    const LAST: &str =
        "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";

    #[test]
    fn the_exchange_of_the_rfc() {
        let proven = rfc(false).check(LAST.as_bytes()).unwrap();
        assert_eq!(proven.unwrap(), "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        assert_eq!(rfc(true).check(LAST.as_bytes()), Ok(None), "whoever guesses a decoy's proof");
        let other = LAST.replace("biws", "eSws");
        assert_eq!(rfc(false).check(other.as_bytes()), Ok(None), "another header than at first");
        assert_eq!(rfc(false).check(LAST.replace("p=dH", "p=eH").as_bytes()), Ok(None));
        assert_eq!(rfc(false).check(LAST.replace("$k0", "$k1").as_bytes()), Ok(None), "another nonce");
    }

    #[test]
    fn names_have_escapes_and_first_messages_rules() {
        let read = |m: &str| ClientFirst::read(m.as_bytes()).map(|f| (f.name, f.acts_for));
        assert_eq!(read("y,a=b=2Cc,n=a=3Db=2C,r=x,e=1"), Ok(("a=b,".to_owned(), "b,c".to_owned())));
        for wrong in [
            "n,,n=a=2D,r=x",
            "n,,n=a=,r=x",
            "p=tls-unique,,n=a,r=x",
            "n,,m=1,n=a,r=x",
            "n,,n=a,r=",
            "n,,n=a,r=\u{e4}",
            "n,n=a,r=x",
            "",
        ] {
            assert_eq!(read(wrong), Err(Malformed), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_malformed(first in proptest::collection::vec(any::<u8>(), 0..60), s in "[nya=,2C3Dr x]{0,30}", last in "[cr=,p a-z+/]{0,60}") {
            let _ = ClientFirst::read(&first);
            let _ = ClientFirst::read(s.as_bytes());
            prop_assert!(rfc(false).check(last.as_bytes()) != Ok(Some(String::new())));
        }
    }
}
