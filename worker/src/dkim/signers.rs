//! Threads that sign by slow keys. A signature by RSA takes several times what all else of a message takes: made on
//! whatever CPU is idle, those of a shard that has more mail than others do not wait for its own CPU, and a large key does
//! not hold up everything else in the shard.

use std::cell::OnceCell;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Semaphore, oneshot};

use super::key::Key;
use crate::rights;

/// Threads at most: every shard of the machine has its own.
const THREADS_MAX: usize = 4;

type Made = Result<Vec<u8>, String>;

struct Job {
    key: Arc<Key>,
    data: Vec<u8>,
    done: oneshot::Sender<Made>,
}

/// A shard's threads, from the first slow signature on. They end with it.
pub struct Signers {
    /// `None` where the process has no second CPU.
    jobs: OnceCell<Option<SyncSender<Job>>>,
    /// Of other long work so much goes on at once.
    aside: Semaphore,
}

impl Default for Signers {
    fn default() -> Self {
        Signers { jobs: OnceCell::new(), aside: Semaphore::new(THREADS_MAX) }
    }
}

impl std::fmt::Debug for Signers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Signers").field(&self.jobs.get().is_some()).finish()
    }
}

impl Signers {
    /// Does long work on a thread of its own, whatever CPU is idle; `None` when the process ends meanwhile.
    pub async fn aside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let _one = self.aside.acquire().await.ok()?;
        let unpinned = move || {
            rights::unpin_thread();
            work()
        };
        tokio::task::spawn_blocking(unpinned).await.ok()
    }

    /// A signature by a key: made here where the key is quick, or as many wait already as there are threads.
    ///
    /// # Errors
    /// When the key cannot sign.
    pub async fn sign(&self, key: &Arc<Key>, data: &[u8]) -> Made {
        if !key.is_slow() {
            return key.sign(data);
        }
        let Some(jobs) = self.jobs.get_or_init(|| start(rights::cpus())) else { return key.sign(data) };
        let (done, made) = oneshot::channel();
        if jobs.try_send(Job { key: Arc::clone(key), data: data.to_vec(), done }).is_err() {
            return key.sign(data);
        }
        // A thread that ended answers nothing.
        made.await.unwrap_or_else(|_| key.sign(data))
    }
}

/// A thread for each of some CPUs.
fn start(cpus: usize) -> Option<SyncSender<Job>> {
    let threads = cpus.min(THREADS_MAX);
    if threads < 2 {
        return None;
    }
    let (jobs, next) = sync_channel(threads);
    let next = Arc::new(Mutex::new(next));
    for _ in 0..threads {
        let next = Arc::clone(&next);
        let started = std::thread::Builder::new().name("sign".into()).spawn(move || serve(&next));
        if let Err(e) = started {
            tracing::warn!(error = %e, "no thread for signatures: the shard makes them itself");
            return None;
        }
    }
    Some(jobs)
}

fn serve(next: &Mutex<Receiver<Job>>) {
    rights::unpin_thread();
    loop {
        let job = next.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { key, data, done }) = job else { return };
        // The connection that asked for the signature may have ended.
        let _ = done.send(key.sign(&data));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "a panic of what tests begin is a failure of theirs")]

    use std::rc::Rc;

    use super::*;

    #[tokio::test]
    async fn every_signature_is_made_whoever_makes_it() {
        let key = Arc::new(Key::from_pem(&crate::dkim::key::generate_rsa(2048).unwrap()).unwrap());
        for cpus in [1, 2, 64] {
            let signers = Rc::new(Signers { jobs: OnceCell::from(start(cpus)), ..Signers::default() });
            let local = tokio::task::LocalSet::new();
            let one = |n: u8| {
                let (signers, key) = (Rc::clone(&signers), Arc::clone(&key));
                local.spawn_local(async move { (n, signers.sign(&key, &[n; 600]).await) })
            };
            let all: Vec<_> = (0..40).map(one).collect();
            local.await;
            for made in all {
                let (n, signature) = made.await.unwrap();
                assert_eq!(signature, key.sign(&[n; 600]));
            }
        }
    }
}
