//! SASL mechanisms (RFC 4422), and when each is offered.

use ipc::rules::SourceRules;

/// What a client said is no message of the mechanism.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// A mechanism, those that are best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mechanism {
    /// RFC 7677
    ScramSha256,
    /// RFC 4422 Appendix A, by the client's certificate.
    External,
    /// RFC 2195
    CramMd5,
    /// RFC 4616
    Plain,
    /// draft-murchison-sasl-login
    Login,
}

impl Mechanism {
    /// All of them, in the order of EHLO.
    pub const ALL: [Mechanism; 5] =
        [Mechanism::ScramSha256, Mechanism::External, Mechanism::CramMd5, Mechanism::Plain, Mechanism::Login];

    /// Its name in EHLO and AUTH.
    pub fn name(self) -> &'static str {
        match self {
            Mechanism::ScramSha256 => "SCRAM-SHA-256",
            Mechanism::External => "EXTERNAL",
            Mechanism::CramMd5 => "CRAM-MD5",
            Mechanism::Plain => "PLAIN",
            Mechanism::Login => "LOGIN",
        }
    }

    /// The one that a client names, in any case.
    pub fn named(name: &str) -> Option<Mechanism> {
        Mechanism::ALL.into_iter().find(|m| m.name().eq_ignore_ascii_case(name))
    }

    /// The password itself goes over the connection.
    pub fn shows_password(self) -> bool {
        matches!(self, Mechanism::Plain | Mechanism::Login)
    }

    /// Whether a client may use it on a connection with or without TLS.
    pub fn is_safe_on(self, tls: bool, rules: &SourceRules) -> bool {
        tls || !rules.require_starttls_before_auth && (!self.shows_password() || rules.allow_unencrypted_plain_auth)
    }
}
