//! Looks after the certificates of `<acme>` as long as the server runs.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::answers::{self, Answers};
use super::files::{self, Trouble};
use super::order::{self, NameServers};
use crate::config::acme::{Acme, Challenge, Wanted};
use crate::config::certificate::InForce;
use crate::config::pem::{Form, PemFile};
use crate::listen;
use crate::state::Supervisor;

/// Time between two looks at what is due.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A certificate is renewed when less than this part of its time is left.
const RENEWED_PART: i64 = 3;

/// Binds the listener that challenges are answered at, which may need a right that the server gives up when it has started.
///
/// # Errors
/// A sentence naming address, error and what to do.
pub fn bind(acme: &Acme) -> Result<Option<std::net::TcpListener>, String> {
    match acme.challenge {
        Challenge::Dns01 => Ok(None),
        _ => listen::bind_to(&acme.listener.to_string()).map(|fd| Some(fd.into())),
    }
}

/// The listener in use, and for what.
struct Serving {
    acme: Arc<Acme>,
    task: Option<JoinHandle<()>>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        if let Some(t) = &self.task {
            t.abort();
        }
    }
}

impl Serving {
    fn begin(
        acme: &Arc<Acme>,
        answers: &Arc<Answers>,
        bound: Result<Option<std::net::TcpListener>, String>,
    ) -> Serving {
        let listener = bound.and_then(|l| l.map(TcpListener::from_std).transpose().map_err(|e| e.to_string()));
        let listener = listener.unwrap_or_else(|error| {
            tracing::error!(error, "challenges of <acme> cannot be answered: certificates will not be issued");
            None
        });
        let task = listener.map(|l| tokio::task::spawn_local(answers::serve(Arc::clone(answers), acme.challenge, l)));
        Serving { acme: Arc::clone(acme), task }
    }

    /// It answers what this configuration wants answered.
    fn serves(&self, acme: &Acme) -> bool {
        let is_same = self.acme.challenge == acme.challenge && self.acme.listener == acme.listener;
        is_same && (self.task.is_some() || acme.challenge == Challenge::Dns01)
    }
}

/// Obtains and renews certificates until the server stops. `bound` is what [`bind`] has bound for the configuration at the start.
pub async fn keep(sup: Rc<Supervisor>, bound: Option<Result<Option<std::net::TcpListener>, String>>) {
    let answers = Arc::new(Answers::default());
    let mut bound = bound;
    let mut serving: Option<Serving> = None;
    // What this process did last, whether or not it could be written to disk: nothing is asked for twice at once.
    let mut not_before: HashMap<u64, i64> = HashMap::new();
    while !sup.stopping.get() {
        let (acme, data_dir) = {
            let c = sup.compiled.borrow();
            (c.acme.clone(), c.data_dir.clone())
        };
        let Some(acme) = acme else {
            serving = None;
            not_before.clear();
            sup.acme.borrow_mut().clear();
            tokio::time::sleep(LOOK_EVERY).await;
            continue;
        };
        if !serving.as_ref().is_some_and(|s| s.serves(&acme)) && bound.is_none() {
            // The port may be the one in use.
            drop(serving.take());
            bound = Some(bind(&acme));
        }
        if let Some(bound) = bound.take() {
            serving = Some(Serving::begin(&acme, &answers, bound));
        }
        let all_asked: Vec<u64> = acme.certificates.iter().map(|w| files::asked(&acme, w)).collect();
        not_before.retain(|asked, _| all_asked.contains(asked));
        sup.acme.borrow_mut().retain(|p, _| acme.certificates.iter().any(|w| w.path(&data_dir) == *p));
        for wanted in &acme.certificates {
            let path = wanted.path(&data_dir);
            if !is_due(&sup, &path, wanted) {
                continue;
            }
            let asked = files::asked(&acme, wanted);
            let before = files::trouble(&data_dir, wanted, asked);
            note(&sup, &path, before.clone());
            let next_s = before.as_ref().map_or(0, |t| t.next_s).max(not_before.get(&asked).copied().unwrap_or(0));
            if now_s() < next_s {
                continue;
            }
            let servers = name_servers(&sup);
            let obtained = order::obtain(&acme, wanted, &data_dir, &answers, &servers).await;
            let kept = obtained.and_then(|pem| files::keep_certificate(&data_dir, wanted, &pem));
            let trouble = kept.err().map(|error| {
                let t = Trouble::behind(before.as_ref(), asked, &error, now_s());
                let minutes = (t.next_s - now_s()) / 60;
                let names = wanted.names.join(", ");
                tracing::error!(
                    names,
                    error = t.error,
                    "a certificate could not be obtained; next attempt in {minutes} min"
                );
                t
            });
            files::keep_trouble(&data_dir, wanted, trouble.as_ref());
            let wait_s = trouble.as_ref().map_or(300, |t| t.next_s - now_s());
            not_before.insert(asked, now_s() + wait_s);
            if trouble.is_none() {
                tracing::info!(names = wanted.names.join(", "), file = %path.display(), "a certificate was issued");
                let file = PemFile { path: path.display().to_string(), form: Form::Identity, password: String::new() };
                sup.take_pem_files(vec![file]).await;
            }
            note(&sup, &path, trouble);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn note(sup: &Supervisor, path: &std::path::Path, trouble: Option<Trouble>) {
    let mut all = sup.acme.borrow_mut();
    match trouble {
        Some(t) => all.insert(path.to_owned(), t),
        None => all.remove(path),
    };
}

fn now_s() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

fn name_servers(sup: &Supervisor) -> NameServers {
    let c = sup.compiled.borrow();
    let g = &c.snapshot.global;
    NameServers { addresses: g.name_servers.clone(), udp_bytes: g.edns_udp_length }
}

/// The certificate in force is none, is for other names, or has little of its time left.
fn is_due(sup: &Supervisor, path: &std::path::Path, wanted: &Wanted) -> bool {
    let compiled = sup.compiled.borrow();
    let shown = path.display().to_string();
    let Some((_, pem)) = compiled.snapshot.pem_files.iter().find(|(p, _)| *p == shown) else { return false };
    let Some(c) = InForce::of(&shown, pem) else { return true };
    let is_for_all = wanted.names.iter().all(|n| c.names.iter().any(|have| have.eq_ignore_ascii_case(n)));
    !is_for_all || c.left_s() < (c.ends - c.begins) / RENEWED_PART
}
