//! Sender Policy Framework (RFC 7208): whether a domain says that an address may send for it.
//!
//! [`record`] reads what a domain publishes, [`check`] evaluates it, and asks [`Names`] of DNS meanwhile.

pub mod check;
pub mod expansion;
pub mod names;
pub mod record;

pub use check::{Asked, Checked, check};
pub use names::Names;

/// What a check comes to (RFC 7208 section 2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpfResult {
    /// The domain publishes nothing, or is none.
    None,
    /// It says nothing of the address.
    Neutral,
    /// The address may send.
    Pass,
    /// It may not.
    Fail,
    /// It may not, probably.
    SoftFail,
    /// DNS did not answer.
    TempError,
    /// What is published is wrong.
    PermError,
}

impl SpfResult {
    /// As Authentication-Results has it (RFC 8601 section 2.7.2).
    pub fn word(self) -> &'static str {
        match self {
            SpfResult::None => "none",
            SpfResult::Neutral => "neutral",
            SpfResult::Pass => "pass",
            SpfResult::Fail => "fail",
            SpfResult::SoftFail => "softfail",
            SpfResult::TempError => "temperror",
            SpfResult::PermError => "permerror",
        }
    }
}
