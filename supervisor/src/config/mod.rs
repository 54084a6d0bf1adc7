//! The configuration: text → statements ([`syntax`]) → checked against the table
//! ([`directives`], [`value`], [`composite`]) → compiled ([`compile`]). Every error is
//! collected; [`lint`] finds what is legal and not meant.

pub mod builtin;
pub mod compile;
pub mod composite;
pub mod diagnostic;
pub mod diff;
pub mod directives;
pub mod explain;
pub mod files;
mod incomplete;
pub mod lint;
pub mod macros;
pub mod manual;
pub mod profiles;
pub mod records;
pub mod reply_rule;
pub mod source_hosts;
pub mod syntax;
pub mod value;

use std::path::Path;

pub use compile::{Compiled, Overrides, compile};
use ipc::snapshot::MappedSnapshot;

use crate::Failure;

/// A file as it would be put in force.
///
/// # Errors
/// [`Failure::Wrong`] with the errors of the file.
pub fn compiled(file: &Path, overrides: &Overrides) -> Result<Compiled, Failure> {
    let checked =
        compile(Some(file), overrides).map_err(|e| Failure::Wrong(format!("cannot read {}: {e}", file.display())))?;
    match checked.errors() {
        Some(errors) => Err(Failure::Wrong(format!("{} has errors\n\n{errors}", file.display()))),
        None => Ok(checked.compiled),
    }
}

/// The snapshot of a file that is not to be put in force.
///
/// # Errors
/// [`Failure::Wrong`] with the errors of the file.
pub fn snapshot_of(file: &Path) -> Result<MappedSnapshot, Failure> {
    let compiled = compiled(file, &Overrides::default())?;
    map(&compiled.snapshot.seal().map_err(|e| Failure::Failed(e.to_string()))?).map_err(Failure::Failed)
}

/// Maps a sealed snapshot.
///
/// # Errors
/// A sentence when it cannot be mapped.
pub fn map(fd: &std::os::fd::OwnedFd) -> Result<MappedSnapshot, String> {
    MappedSnapshot::map(fd).map_err(|e| format!("snapshot: {e}"))
}
