//! DKIM signatures (RFC 6376, RFC 8463): which key signs a message, what is signed, and how.
//!
//! Ours rather than a library's: the configuration decides over every tag, over headers by
//! expressions and over what is listed once more than it is there, which none of those looked at
//! can express.

pub mod canonical;
pub mod key;
pub mod options;
pub mod request;
pub mod signature;
pub mod signers;
