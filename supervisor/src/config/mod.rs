//! The configuration: text → statements ([`syntax`]) → checked against the table
//! ([`directives`], [`types`]) → compiled ([`compile`]). Every error is
//! collected; [`lint`] finds what is legal and not meant.

pub mod acme;
mod aliases;
pub mod builtin;
pub mod certificate;
pub mod compile;
pub mod composite;
pub mod diagnostic;
pub mod diff;
pub mod directives;
mod encrypted_key;
pub mod explain;
pub mod files;
mod incomplete;
pub mod landing;
pub mod lint;
pub mod macros;
pub mod manual;
pub mod nearest;
mod never;
pub mod pattern;
pub mod pem;
pub mod problem;
pub mod profiles;
pub mod records;
pub mod reply_rule;
pub mod source;
pub mod source_hosts;
pub mod summary;
pub mod syntax;
pub mod trace;
pub mod types;
mod unknown;
pub mod value;
pub mod writable;

use std::os::fd::OwnedFd;
use std::path::Path;

pub use compile::{Compiled, Overrides, compile, compile_from, users_by_form};
use ipc::operator::{GivenFile, GivenFiles, GivenInclude};
use ipc::snapshot::MappedSnapshot;
use worker::config::Config;

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

/// A file and all that it includes, to be given to a server.
///
/// # Errors
/// [`Failure::Wrong`] when one cannot be read, or is not even a configuration.
pub fn given_files(file: &Path) -> Result<GivenFiles, Failure> {
    let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let mut reader = syntax::Reader::default();
    let read = reader.file(&file);
    read.map_err(|e| Failure::Wrong(format!("cannot read {}: {e}", file.display())))?;
    let (wrong, _) = std::mem::take(&mut reader.diagnostics).into_sorted();
    let errors: Vec<String> =
        reader.gave_up.iter().chain(wrong.iter().filter(|d| d.is_error)).map(|d| d.render(&reader.files)).collect();
    if !errors.is_empty() {
        return Err(Failure::Wrong(format!("{} has errors\n\n{}", file.display(), errors.join("\n\n"))));
    }
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let files = reader.files.each().map(|f| GivenFile { path: text(&f.path), text: f.text.to_string() });
    let includes = reader.included.iter().map(|(pattern, files)| GivenInclude {
        pattern: text(pattern),
        files: files.iter().map(|f| text(f)).collect(),
    });
    Ok(GivenFiles { files: files.collect(), includes: includes.collect() })
}

/// The snapshot of a file that is not to be put in force.
///
/// # Errors
/// [`Failure::Wrong`] with the errors of the file.
pub fn snapshot_of(file: &Path) -> Result<MappedSnapshot, Failure> {
    let sealed = compiled(file, &Overrides::default())?.snapshot.seal();
    map(&sealed.map_err(|e| Failure::Failed(e.to_string()))?).map_err(Failure::Failed)
}

/// What is in force for mail to a destination by a snapshot, see [`explain::explain`]; with `lookup` its mail hosts are looked
/// up.
///
/// # Errors
/// A sentence naming what does not exist, or is not found out.
pub fn explained(
    snapshot: MappedSnapshot,
    destination: &str,
    via: &str,
    only: &str,
    lookup: bool,
) -> Result<Vec<explain::Explained>, String> {
    if !lookup {
        return explain::explain(snapshot.get(), destination, via, only, None);
    }
    let config = Config::of(snapshot)?;
    let found = landing::look_up(&config, destination, via)?;
    explain::explain(config.snapshot.get(), destination, via, only, Some(&found))
}

/// Maps a sealed snapshot.
///
/// # Errors
/// A sentence when it cannot be mapped.
pub fn map(fd: &OwnedFd) -> Result<MappedSnapshot, String> {
    MappedSnapshot::map(fd).map_err(|e| format!("snapshot: {e}"))
}
