//! What lies in the data folder: the account, the certificates, and what failed of late.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use instant_acme::AccountCredentials;
use serde::{Deserialize, Serialize};

use super::error::AcmeError;
use crate::config::Compiled;
use crate::config::acme::{Acme, FOLDER, Wanted};
use crate::config::certificate::InForce;
use crate::config::pem::PemFile;
use crate::secret_file;

/// Why a certificate is not there yet, or not renewed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// Failures since the last success.
    pub failures: u32,
    /// The last one.
    pub error: String,
    /// When the next attempt is made, Unix seconds.
    pub next_s: i64,
    /// Of what was asked for, so that another configuration is tried at once.
    asked: u64,
}

impl Trouble {
    /// Challenges cannot be answered, so that nothing is asked for.
    pub fn of_ports(asked: u64, reason: &str, next_s: i64) -> Trouble {
        let error = format!("challenges cannot be answered: {reason}");
        Trouble { failures: 0, error: ipc::text::clean(&error, 500).into_owned(), next_s, asked }
    }

    /// One more failure behind `before`, of what is `asked` for.
    pub fn behind(before: Option<&Trouble>, asked: u64, error: &AcmeError, now_s: i64) -> Trouble {
        let failures = before.map_or(0, |t| t.failures).saturating_add(1);
        let next_s = now_s.saturating_add(error.wait(failures).as_secs() as i64);
        Trouble { failures, error: ipc::text::clean(&error.to_string(), 500).into_owned(), next_s, asked }
    }
}

/// What tells one configuration of a certificate from another.
pub fn asked(acme: &Acme, wanted: &Wanted) -> u64 {
    let mut h = DefaultHasher::new();
    (&acme.directory, &wanted.names, acme.challenge as u8, &acme.listeners, &acme.dns_command).hash(&mut h);
    (&acme.contacts, &acme.external_account, &acme.roots).hash(&mut h);
    acme.dns_update.as_ref().map(|u| (u.server, &u.key, &u.algorithm, &u.secret)).hash(&mut h);
    h.finish()
}

/// Takes the files of certificates, as far as they are there, into a configuration that a server puts in force. They lie in the data
/// folder that it was started with, whatever a reload says.
pub fn load(compiled: &mut Compiled, data_dir: &Path) {
    let Some(acme) = &compiled.acme else { return };
    for w in &acme.certificates {
        let path = w.path(data_dir).display().to_string();
        let configured = w.path(&compiled.data_dir).display().to_string();
        let shown = compiled.snapshot.listeners.iter_mut().flat_map(|l| &mut l.tls.certificates);
        shown.filter(|p| **p == configured).for_each(|p| p.clone_from(&path));
        let file = PemFile::identity(path.clone());
        let pem = file.read().unwrap_or_else(|error| {
            let is_missing = std::fs::metadata(&path).is_err_and(|e| e.kind() == ErrorKind::NotFound);
            if is_missing {
                return for_the_same_names(data_dir, w).unwrap_or_default();
            }
            tracing::error!(path, error, "a certificate of <acme> cannot be used, and another one is asked for");
            String::new()
        });
        compiled.pem_files.push(file);
        compiled.snapshot.pem_files.push((path, pem));
    }
}

/// A certificate with its key that was obtained for other lines of `domain`, and is for all these names.
fn for_the_same_names(data_dir: &Path, wanted: &Wanted) -> Option<String> {
    let files = std::fs::read_dir(data_dir.join(FOLDER)).ok()?.flatten().map(|f| f.path());
    // One that cannot be used is no help here; of the file that is meant the log was told.
    let read = |p: PathBuf| PemFile::identity(p.display().to_string()).read().ok();
    let pems = files.filter(|p| p.extension().is_some_and(|e| e == "pem")).filter_map(read);
    let fits = |pem: &String| InForce::of("", pem).is_some_and(|c| c.is_for_all(&wanted.names) && !c.is_due());
    pems.into_iter().find(fits)
}

fn folder(data_dir: &Path) -> Result<PathBuf, AcmeError> {
    let folder = data_dir.join(FOLDER);
    match std::fs::DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(AcmeError::File { path: folder.display().to_string(), error })
        }
        _ => Ok(folder),
    }
}

/// Puts a file in its place as a whole, readable to its owner alone.
fn write(path: &Path, text: &[u8]) -> Result<(), AcmeError> {
    secret_file::write(path, text).map_err(|error| AcmeError::File { path: path.display().to_string(), error })
}

/// Whether a certificate could be kept.
///
/// # Errors
/// [`AcmeError::File`]
pub fn can_be_kept(data_dir: &Path, wanted: &Wanted) -> Result<(), AcmeError> {
    folder(data_dir)?;
    let trial = wanted.path(data_dir).with_extension("trial");
    write(&trial, b"a trial\n")?;
    std::fs::remove_file(&trial).map_err(|error| AcmeError::File { path: trial.display().to_string(), error })
}

/// Keeps a certificate and its key.
///
/// # Errors
/// [`AcmeError::File`]
pub fn keep_certificate(data_dir: &Path, wanted: &Wanted, pem: &str) -> Result<(), AcmeError> {
    folder(data_dir)?;
    write(&wanted.path(data_dir), pem.as_bytes())
}

/// The account at a directory has a file of its own.
fn account_path(data_dir: &Path, directory: &str) -> Result<PathBuf, AcmeError> {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-.".contains(c) { c } else { '_' };
    let name: String = directory.trim_start_matches("https://").chars().map(plain).take(100).collect();
    Ok(folder(data_dir)?.join(format!("account-{name}.json")))
}

/// The account at a directory, if there is one.
///
/// # Errors
/// [`AcmeError::File`]: a file that cannot be read is not made anew, for the authority counts accounts as well.
pub fn account(data_dir: &Path, directory: &str) -> Result<Option<AccountCredentials>, AcmeError> {
    let path = account_path(data_dir, directory)?;
    let failed = |error| AcmeError::File { path: path.display().to_string(), error };
    match std::fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|e| failed(e.into())),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed(e)),
    }
}

/// Keeps an account.
///
/// # Errors
/// [`AcmeError::File`]
pub fn keep_account(data_dir: &Path, directory: &str, account: &AccountCredentials) -> Result<(), AcmeError> {
    let path = account_path(data_dir, directory)?;
    let text = serde_json::to_vec(account);
    let text = text.map_err(|e| AcmeError::File { path: path.display().to_string(), error: e.into() })?;
    write(&path, &text)
}

/// Puts aside an account that the authority does not know any more.
///
/// # Errors
/// [`AcmeError::File`]
pub fn forget_account(data_dir: &Path, directory: &str) -> Result<(), AcmeError> {
    let path = account_path(data_dir, directory)?;
    let renamed = std::fs::rename(&path, path.with_extension("json.unknown"));
    renamed.map_err(|error| AcmeError::File { path: path.display().to_string(), error })
}

fn trouble_path(data_dir: &Path, wanted: &Wanted) -> PathBuf {
    wanted.path(data_dir).with_extension("failures.json")
}

/// What failed of late of what is `asked` for.
pub fn trouble(data_dir: &Path, wanted: &Wanted, asked: u64) -> Option<Trouble> {
    let text = std::fs::read(trouble_path(data_dir, wanted)).ok()?;
    serde_json::from_slice::<Trouble>(&text).ok().filter(|t| t.asked == asked)
}

/// Keeps what failed, so that a restart does not try again at once; `None` when nothing does.
pub fn keep_trouble(data_dir: &Path, wanted: &Wanted, trouble: Option<&Trouble>) {
    let path = trouble_path(data_dir, wanted);
    let kept = match trouble.and_then(|t| serde_json::to_vec(t).ok()) {
        Some(text) => folder(data_dir).and_then(|_| write(&path, &text)),
        None => match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(AcmeError::File { path: path.display().to_string(), error })
            }
            _ => Ok(()),
        },
    };
    if let Err(error) = kept {
        tracing::warn!(error = %error, "what failed of a certificate is not kept over a restart");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config::acme::Challenge;

    fn acme() -> Acme {
        Acme {
            directory: "https://ca.test:14000/dir".into(),
            contacts: Vec::new(),
            external_account: None,
            certificates: vec![Wanted { names: vec!["*.mta.test".into(), "mta.test".into()] }],
            challenge: Challenge::Dns01,
            listeners: vec!["0.0.0.0:80".parse().unwrap()],
            dns_command: Vec::new(),
            dns_update: None,
            roots: String::new(),
        }
    }

    #[test]
    fn failures_are_kept_for_what_was_asked_and_waits_grow() {
        let dir = tempfile::tempdir().unwrap();
        let (acme, mut other) = (acme(), acme());
        other.challenge = Challenge::Http01;
        let wanted = &acme.certificates[0];
        let (asked_now, asked_then) = (asked(&acme, wanted), asked(&other, wanted));
        let mut before: Option<Trouble> = None;
        let mut waits = Vec::new();
        for _ in 0..8 {
            let t = Trouble::behind(before.as_ref(), asked_now, &AcmeError::Late, 1000);
            waits.push(t.next_s - 1000);
            keep_trouble(dir.path(), wanted, Some(&t));
            before = trouble(dir.path(), wanted, asked_now);
            assert_eq!(before, Some(t));
        }
        assert_eq!(waits, [300, 900, 2700, 7200, 21_600, 43_200, 43_200, 43_200]);
        assert_eq!(trouble(dir.path(), wanted, asked_then), None, "another configuration is tried at once");
        keep_trouble(dir.path(), wanted, None);
        assert_eq!(trouble(dir.path(), wanted, asked_now), None);
        let limited = serde_json::json!({ "type": "urn:ietf:params:acme:error:rateLimited", "detail": "x" });
        let limited = AcmeError::from(instant_acme::Error::Api(serde_json::from_value(limited).unwrap()));
        assert_eq!(Trouble::behind(None, 0, &limited, 0).next_s, 7200);
    }

    #[test]
    fn keys_are_the_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = &acme().certificates[0];
        keep_certificate(dir.path(), wanted, "x").unwrap();
        let path = wanted.path(dir.path());
        assert_eq!(path, dir.path().join("acme/_.mta.test.pem"));
        let mode = |p: &Path| p.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert!(account(dir.path(), "https://ca.test/dir").unwrap().is_none());
        std::fs::write(dir.path().join("acme/account-ca.test_dir.json"), "not JSON").unwrap();
        assert!(account(dir.path(), "https://ca.test/dir").is_err());
    }
}
