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
pub mod lint;
pub mod macros;
pub mod manual;
pub mod profiles;
pub mod records;
pub mod reply_rule;
pub mod syntax;
pub mod value;

use std::path::Path;

pub use compile::{Compiled, compile};
use ipc::snapshot::MappedSnapshot;

use crate::Failure;

/// The snapshot of a file that is not to be put in force.
///
/// # Errors
/// [`Failure::Wrong`] with the errors of the file.
pub fn snapshot_of(file: &Path) -> Result<MappedSnapshot, Failure> {
    let checked = compile(Some(file), &compile::Overrides::default())
        .map_err(|e| Failure::Wrong(format!("cannot read {}: {e}", file.display())))?;
    if let Some(errors) = checked.errors() {
        return Err(Failure::Wrong(format!("{} has errors\n\n{errors}", file.display())));
    }
    map(&checked.compiled.snapshot.seal().map_err(|e| Failure::Failed(e.to_string()))?).map_err(Failure::Failed)
}

/// Maps a sealed snapshot.
///
/// # Errors
/// A sentence when it cannot be mapped.
pub fn map(fd: &std::os::fd::OwnedFd) -> Result<MappedSnapshot, String> {
    MappedSnapshot::map(fd).map_err(|e| format!("snapshot: {e}"))
}
