//! How a connection is to be protected: a value that is compared, hashed and kept, and nothing that does it.

/// Whose certificates will do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Trust {
    /// Any: encryption is all that is asked for.
    Any,
    /// Those issued below the system's roots, for the host's name.
    WebPki,
    /// Those issued below these roots in PEM, for the host's name.
    Roots(String),
    /// Those that TLSA records match.
    Dane {
        /// The records.
        records: Vec<Association>,
        /// Names for DANE-TA.
        names: Vec<String>,
    },
}

/// How a connection is to be protected.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Parameters {
    /// Whose certificates will do.
    pub trust: Trust,
    /// `smtp-tls-allow-tlsv1.2`
    pub tls12: bool,
    /// `smtp-tls-allow-tlsv1.3`
    pub tls13: bool,
    /// `smtp-tls-ciphers`
    pub ciphers: String,
    /// `smtp-tls-tlsv1.3-ciphersuites`
    pub suites: String,
    /// Certificate chain and key that are shown when asked for, in PEM; empty for none.
    pub identity: String,
    /// `reuse-ssl-session`
    pub resume: bool,
}

/// A TLSA record that can be used for SMTP: DANE-TA(2) or DANE-EE(3).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Association {
    /// DANE-EE: the server's own certificate is meant; else one that issued it.
    pub end_entity: bool,
    /// The public key alone counts.
    pub key_only: bool,
    /// 0: as it is, 1: SHA-256, 2: SHA-512.
    pub matching: u8,
    /// What it has to be.
    pub data: Vec<u8>,
}
