//! Configurations as operators meet them: through the built program.
#![allow(clippy::unwrap_used, missing_docs)]

mod check;
mod explain;
mod in_force;
mod log;
mod published;
mod reload;
mod trace;
