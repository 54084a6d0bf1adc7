//! Looks after the certificates of `<acme>` as long as the server runs.

use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::answers::{self, Answers};
use super::files::{self, Trouble};
use super::order::{self, Means};
use crate::config::acme::{Acme, Challenge, Wanted};
use crate::config::certificate::{InForce, now_s};
use crate::config::pem::PemFile;
use crate::listen;
use crate::state::Supervisor;

/// Time between two looks at what is due.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Time between two attempts to bind a port that cannot be had.
const BIND_EVERY: Duration = Duration::from_secs(60);
/// How long a certificate that was just issued is not asked for again, whatever becomes of it.
const ISSUED_WAIT_S: i64 = 300;

/// Listeners for challenges, each bound or with the reason why not.
pub type Bound = Vec<Result<std::net::TcpListener, String>>;

/// Binds the listeners that challenges are answered at, which may need a right that the server gives up when it has started.
pub fn bind(acme: &Acme) -> Bound {
    acme.listeners.iter().map(|at| listen::bind_to(&at.to_string()).map(Into::into)).collect()
}

/// The listeners in use, and for what.
struct Serving {
    acme: Arc<Acme>,
    tasks: Vec<JoinHandle<()>>,
    /// Why none is bound, if that is so; since when.
    failed: Option<(String, Instant)>,
}

impl Serving {
    /// `said` is what the log was told of last.
    fn begin(acme: &Arc<Acme>, answers: &Arc<Answers>, bound: Bound, said: &mut String) -> Serving {
        let (mut tasks, mut reasons) = (Vec::new(), Vec::new());
        for listener in bound {
            match listener.and_then(|l| TcpListener::from_std(l).map_err(|e| e.to_string())) {
                Ok(l) => {
                    let serve = answers::serve(Arc::clone(answers), acme.challenge, l);
                    tasks.push(tokio::task::spawn_local(serve));
                }
                Err(reason) => reasons.push(reason),
            }
        }
        let reason = reasons.join("; ");
        if reason != *said && !reason.is_empty() {
            match tasks.is_empty() {
                true => tracing::error!(reason, "challenges of <acme> cannot be answered: no certificate is asked for"),
                false => tracing::warn!(reason, "challenges of <acme> are answered at other addresses only"),
            }
        }
        said.clone_from(&reason);
        let fails = tasks.is_empty() && acme.challenge != Challenge::Dns01;
        Serving { acme: Arc::clone(acme), tasks, failed: fails.then(|| (reason, Instant::now())) }
    }

    /// It is for what this configuration wants answered. Where no port could be had, that holds until it is time to try again.
    fn serves(&self, acme: &Acme) -> bool {
        let is_same = self.acme.challenge == acme.challenge && self.acme.listeners == acme.listeners;
        is_same && self.failed.as_ref().is_none_or(|(_, since)| since.elapsed() < BIND_EVERY)
    }

    /// Gives the ports back.
    async fn end(self) {
        for t in self.tasks {
            t.abort();
            // All that there is to hear is that it was aborted.
            let _ = t.await;
        }
    }
}

/// Obtains and renews certificates until the server stops. `bound` is what [`bind`] has bound for the configuration at the start. All
/// lies in the data folder that the server was started with.
pub async fn keep(sup: Rc<Supervisor>, mut bound: Option<Bound>) {
    let answers = Arc::new(Answers::default());
    let mut serving: Option<Serving> = None;
    let mut said = String::new();
    // What this process did last, whether or not it could be written to disk: nothing is asked for twice at once.
    let mut not_before: HashMap<u64, i64> = HashMap::new();
    let mut failed: HashMap<u64, Trouble> = HashMap::new();
    while !sup.stopping.get() {
        let acme = sup.compiled.borrow().acme.clone();
        // An operator who puts a configuration in force has seen to what was wrong.
        let is_asked = sup.acme_asked.take();
        let is_old = |s: &Serving| (is_asked && s.failed.is_some()) || acme.as_ref().is_none_or(|a| !s.serves(a));
        if let Some(s) = serving.take_if(|s| is_old(s)) {
            s.end().await;
        }
        if is_asked {
            not_before.clear();
        }
        let Some(acme) = acme else {
            sup.acme.borrow_mut().clear();
            tokio::time::sleep(LOOK_EVERY).await;
            continue;
        };
        let served = serving.get_or_insert_with(|| {
            let bound = bound.take().unwrap_or_else(|| bind(&acme));
            Serving::begin(&acme, &answers, bound, &mut said)
        });
        let data_dir = &sup.data_dir;
        sup.acme.borrow_mut().retain(|p, _| acme.certificates.iter().any(|w| w.path(data_dir) == *p));
        for wanted in &acme.certificates {
            let path = wanted.path(data_dir);
            if !is_due(&sup, &path, wanted) {
                if sup.acme.borrow_mut().remove(&path).is_some() {
                    files::keep_trouble(data_dir, wanted, None);
                }
                continue;
            }
            let asked = files::asked(&acme, wanted);
            if let Some((reason, since)) = &served.failed {
                let next_s = now_s() + BIND_EVERY.saturating_sub(since.elapsed()).as_secs() as i64;
                note(&sup, &path, Some(Trouble::of_ports(asked, reason, next_s)));
                continue;
            }
            let before = failed.get(&asked).cloned().or_else(|| files::trouble(data_dir, wanted, asked));
            note(&sup, &path, before.clone());
            let of_before = before.as_ref().filter(|_| !is_asked).map_or(0, |t| t.next_s);
            if now_s() < of_before.max(not_before.get(&asked).copied().unwrap_or(0)) {
                continue;
            }
            // The authority counts what it issues, also where it cannot be kept.
            let obtained = match files::can_be_kept(data_dir, wanted) {
                Ok(()) => order::obtain(&acme, wanted, data_dir, &means(&sup, &answers)).await,
                Err(e) => Err(e),
            };
            let kept = obtained.and_then(|pem| files::keep_certificate(data_dir, wanted, &pem));
            let names = wanted.names.join(", ");
            let trouble = kept.err().map(|error| {
                let t = Trouble::behind(before.as_ref(), asked, &error, now_s());
                let minutes = (t.next_s - now_s()) / 60;
                let error = t.error.as_str();
                tracing::error!(names, error, "a certificate could not be obtained; next attempt in {minutes} min");
                t
            });
            files::keep_trouble(data_dir, wanted, trouble.as_ref());
            match &trouble {
                Some(t) => failed.insert(asked, t.clone()),
                None => failed.remove(&asked),
            };
            not_before.insert(asked, trouble.as_ref().map_or(now_s() + ISSUED_WAIT_S, |t| t.next_s));
            if trouble.is_none() {
                tracing::info!(names, file = %path.display(), "a certificate was issued");
                sup.take_pem_files(vec![(PemFile::identity(path.display().to_string()), true)]).await;
            }
            note(&sup, &path, trouble);
        }
        let all_asked: Vec<u64> = acme.certificates.iter().map(|w| files::asked(&acme, w)).collect();
        not_before.retain(|asked, _| all_asked.contains(asked));
        failed.retain(|asked, _| all_asked.contains(asked));
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn note(sup: &Supervisor, path: &Path, trouble: Option<Trouble>) {
    let mut all = sup.acme.borrow_mut();
    match trouble {
        Some(t) => all.insert(path.to_owned(), t),
        None => all.remove(path),
    };
}

fn means(sup: &Supervisor, answers: &Arc<Answers>) -> Means {
    let cpus_of_workers = sup.cpus_of_workers();
    let c = sup.compiled.borrow();
    let g = &c.snapshot.global;
    let (name_servers, udp_bytes) = (g.name_servers.clone(), g.edns_udp_length);
    Means { answers: Arc::clone(answers), name_servers, udp_bytes, cpus_of_workers }
}

/// The certificate in force is none, is for other names, or has little of its time left.
fn is_due(sup: &Supervisor, path: &Path, wanted: &Wanted) -> bool {
    let compiled = sup.compiled.borrow();
    let shown = path.display().to_string();
    let Some(pem) = compiled.snapshot.pem(&shown) else { return false };
    InForce::of(&shown, pem).is_none_or(|c| !c.is_for_all(&wanted.names) || c.is_due())
}
