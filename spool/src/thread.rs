//! The spool's thread: does the work of a spool on real files, and sleeps while there is none.

use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::SpoolError;
use crate::accounting::Stop;
use crate::accounting::writer::Runner;
use crate::disk::{Disk, Folder};
use crate::group_commit::{Options, Running};
use crate::inbox::{Shared, Working};
use crate::index::Index;
use crate::projection::Projection;
use crate::sled::SledIndex;
use crate::store::{Recovered, Values};

/// Starts the thread. It opens the spool, calls `each` for every message with recipients left,
/// says through `ready` that all have been passed, or why the spool cannot be opened, and works until it is told to stop.
///
/// # Errors
/// When no thread can be started.
pub(crate) fn start(
    options: Options,
    projection: Box<dyn Projection>,
    mut each: Box<dyn FnMut(Recovered) + Send>,
    working: Working,
    ready: oneshot::Sender<Result<Values, SpoolError>>,
) -> std::io::Result<JoinHandle<()>> {
    let index_path = options.path.join("index");
    std::thread::Builder::new().name("spool".into()).spawn(move || {
        let shared = Arc::clone(&working.0);
        let running = Folder::open(&options.path, options.sync).map_err(|e| options.failed(&e)).and_then(|folder| {
            let index = || SledIndex::open(&index_path);
            Running::open(folder, index, options, projection, &mut *each, Arc::clone(&shared), Runner::Threads)
        });
        match running {
            Ok(mut running) => {
                drop(each);
                // The caller that opened the spool may have gone. What the spool is given is done all the same.
                let _ = ready.send(Ok(running.values()));
                run(&mut running, &shared);
            }
            Err(e) => drop(ready.send(Err(e))),
        }
    })
}

/// Does the spool's work until it is told to stop: the whole life of the thread.
fn run<D: Disk, I: Index>(running: &mut Running<D, I>, shared: &Shared) {
    loop {
        wait(running, shared);
        let work = running.take();
        if !work.batch.is_empty() {
            running.commit(work.batch);
        }
        running.look_after(work.queries);
        if work.stop {
            break;
        }
    }
    let mut stop = Stop::begin();
    while let Some(pause) = running.finish_accounting(&mut stop) {
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
    let mut last = running.last(stop);
    while !last.is_empty() {
        running.commit(last);
        last = running.since_last();
    }
    running.close();
}

/// Waits until something is due.
fn wait<D: Disk, I: Index>(running: &mut Running<D, I>, shared: &Shared) {
    let pause = running.pause(Instant::now());
    let mut inbox = shared.lock();
    loop {
        let left = pause.left(&inbox, Instant::now());
        if left.is_zero() {
            return;
        }
        inbox = shared.bell.wait(inbox, left);
    }
}
