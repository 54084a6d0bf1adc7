//! Mail that Sluice writes itself.

pub mod dsn;
pub mod notice;
