//! Certificates that listeners show: for which names, and until when.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::acme::files::Trouble;
use crate::config::Compiled;
use crate::config::acme::Wanted;
use crate::config::certificate::{DAY_S, InForce, now_s};

/// A certificate that listeners show, or are to show, and what an operator should know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Its file.
    pub path: String,
    /// Hosts that it is for.
    pub names: Vec<String>,
    /// When it ends, Unix seconds; `None` where `<acme>` has none yet.
    pub ends: Option<i64>,
    /// What is wrong with it, or soon will be.
    pub warning: Option<String>,
}

impl Shown {
    /// For `status --json`.
    pub fn as_json(&self) -> Value {
        let at = self.ends.map(|s| worker::shown_time(s.saturating_mul(1000).max(0)));
        let left = self.ends.map(|s| s - now_s());
        json!({ "file": self.path, "names": self.names, "ends": at, "expires_s": left, "warning": self.warning })
    }
}

/// Those of all listeners, each once. `<acme>` renews its own: a word is said of them when that fails.
pub fn shown(compiled: &Compiled, troubles: &HashMap<PathBuf, Trouble>) -> Vec<Shown> {
    let snapshot = &compiled.snapshot;
    let mut paths: Vec<&String> = snapshot.listeners.iter().flat_map(|l| &l.tls.certificates).collect();
    paths.sort_unstable();
    paths.dedup();
    let wanted = compiled.acme.iter().flat_map(|a| &a.certificates);
    let wanted: HashMap<PathBuf, &Wanted> = wanted.map(|w| (w.path(&compiled.data_dir), w)).collect();
    let one = |path: &String| {
        let pem = snapshot.pem(path).unwrap_or_default();
        let in_force = InForce::of(path, pem);
        let renewed = wanted.get(Path::new(path));
        let trouble = troubles.get(Path::new(path)).map(|t| {
            let next = worker::shown_time(t.next_s.saturating_mul(1000).max(0));
            format!("{}; next attempt at {next}", t.error)
        });
        let warning = match (&in_force, renewed, trouble) {
            (None, _, None) => Some(format!("{path} is not there yet")),
            (None, _, Some(why)) => Some(format!("{path} could not be obtained: {why}")),
            (Some(c), Some(_), Some(why)) => {
                Some(format!("{path} ends in {} days and could not be renewed: {why}", c.left_s() / DAY_S))
            }
            (Some(c), Some(_), None) if c.left_s() >= 0 => None,
            (Some(c), ..) => c.warning(),
        };
        let (names, ends) = match (in_force, renewed) {
            (Some(c), _) => (c.names, Some(c.ends)),
            (None, w) => (w.map(|w| w.names.clone()).unwrap_or_default(), None),
        };
        Shown { path: path.clone(), names, ends, warning }
    };
    paths.into_iter().map(one).collect()
}
