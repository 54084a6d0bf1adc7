//! The configuration: text → statements ([`parse`]) → checked against the table
//! ([`directives`]) → compiled ([`compile`]). Every error is collected.

pub mod builtin;
pub mod compile;
pub mod diagnostic;
pub mod directives;
pub mod parse;
pub mod value;

pub use compile::{Compiled, compile};
