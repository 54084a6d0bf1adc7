//! Why a certificate could not be had, and when it is asked for again.

use std::time::Duration;

use crate::config::acme::Challenge;

/// How long all that one certificate takes may take.
pub const TIME_MAX: Duration = Duration::from_secs(900);
/// Waits behind failures, one after the other; the last one goes on. Let's Encrypt bears five failures of a name in an hour.
const WAITS: [Duration; 6] = [
    Duration::from_secs(300),
    Duration::from_secs(900),
    Duration::from_secs(2700),
    Duration::from_secs(2 * 3600),
    Duration::from_secs(6 * 3600),
    Duration::from_secs(12 * 3600),
];

/// Why a certificate could not be had.
#[derive(Debug, thiserror::Error)]
pub enum AcmeError {
    /// The authority says no, or cannot be reached.
    #[error("{0}")]
    Authority(#[from] instant_acme::Error),
    /// It could not verify that a name is this server's.
    #[error("{name}: {why}")]
    NotProven {
        /// The name.
        name: String,
        /// What the authority says.
        why: String,
    },
    /// It does not offer the challenge.
    #[error("{name}: the authority does not offer challenge {challenge:?} for it")]
    NotOffered {
        /// The name.
        name: String,
        /// The configured one.
        challenge: Challenge,
    },
    /// The record of a challenge cannot be set.
    #[error("the record {name} cannot be changed: {why}")]
    Record {
        /// Its name.
        name: String,
        /// What the command or the name server says.
        why: String,
    },
    /// Key or request cannot be made.
    #[error("a key and its request cannot be made: {0}")]
    Request(#[from] rcgen::Error),
    /// What was issued is of no use.
    #[error("the certificate that was issued cannot be used: {0}")]
    Unusable(String),
    /// A file of the data folder.
    #[error("{path}: {error}")]
    File {
        /// Which.
        path: String,
        /// What is wrong with it.
        error: std::io::Error,
    },
    /// It takes longer than anything there is to wait for.
    #[error("the authority did not finish within {} minutes", TIME_MAX.as_secs() / 60)]
    Late,
}

impl AcmeError {
    /// The wait behind so many failures, of which this is the last.
    pub fn wait(&self, failures: u32) -> Duration {
        let usual = WAITS[(failures.max(1) as usize - 1).min(WAITS.len() - 1)];
        match self {
            // Rates are counted over hours and days.
            AcmeError::Authority(instant_acme::Error::Api(p))
                if p.r#type.as_deref() == Some("urn:ietf:params:acme:error:rateLimited") =>
            {
                usual.max(WAITS[3])
            }
            _ => usual,
        }
    }
}
