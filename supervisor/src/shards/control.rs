//! The supervisor's side of the control channel.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Instant;

use ipc::control::{TO_SUPERVISOR, TO_WORKER, ToSupervisor, ToWorker, Welcome};
use ipc::frame::{FrameError, archive, unarchive};
use ipc::stream::FrameStream;
use tokio::net::UnixListener;
use tokio::sync::mpsc;

use super::State;
use crate::listen;
use crate::run::Supervisor;

/// Orders that may wait for one worker.
const ORDERS_MAX: usize = 64;

/// Serves workers.
pub async fn serve(sup: Rc<Supervisor>, listener: UnixListener) {
    listen::serve_each(listener, |io| serve_one(Rc::clone(&sup), FrameStream::new(io))).await;
}

async fn serve_one(sup: Rc<Supervisor>, mut stream: FrameStream) {
    let Some(number) = greet(&sup, &mut stream).await else { return };
    let (tx, rx) = mpsc::channel(ORDERS_MAX);
    let pid = sup.slot_mut(number, |s| {
        s.orders = Some(tx.clone());
        s.beat_at = Instant::now();
        s.pid
    });
    if sup.slot(number, |s| s.state == State::Serving).unwrap_or(false) {
        sup.bring_up_to_date(number);
    }
    sup.changed.notify_waiters();
    if let Err(e) = speak(&sup, number, stream, rx).await {
        // Rubbish from a worker restarts that worker, and nothing else.
        tracing::error!(shard = number, pid, error = %e, "bad frame from a worker; it is restarted");
        super::kill_now(pid.unwrap_or(0));
    }
    sup.slot_mut(number, |s| {
        if s.orders.as_ref().is_some_and(|o| o.same_channel(&tx)) {
            s.orders = None;
        }
    });
    sup.changed.notify_waiters();
}

/// Hello, and the answer to it.
async fn greet(sup: &Rc<Supervisor>, stream: &mut FrameStream) -> Option<u8> {
    let first = match stream.next().await {
        Ok(Some((f, _))) if f.header.kind == TO_SUPERVISOR => unarchive::<ToSupervisor>(TO_SUPERVISOR, &f.archive),
        Ok(_) => return None,
        Err(e) => Err(e),
    };
    let hello = match first {
        Ok(ToSupervisor::Hello(h)) => h,
        Ok(_) => return None,
        Err(e) => {
            tracing::error!(error = %e, "a process that is no worker spoke on the control socket");
            return None;
        }
    };
    let number = hello.shard;
    if hello.serving {
        return adopt(sup, stream, hello).await;
    }
    let known = sup.slot_mut(number, |s| {
        s.pid = hello.pid;
        s.generation = sup.generation.get();
        s.accounting.clone_from(&sup.accounting.borrow().current);
        s.switched = sup.accounting.borrow().switch;
    });
    known?;
    let (names, fds) = sup.descriptors();
    let welcome = Welcome {
        map: sup.map.borrow().clone(),
        listeners: names,
        accounting: sup.accounting.borrow().current.clone(),
    };
    let sent = stream.send(TO_WORKER, &archive(&ToWorker::Welcome(welcome)), &[], &fds).await;
    sent.is_ok().then_some(number)
}

/// Takes a worker over that another supervisor started.
async fn adopt(sup: &Rc<Supervisor>, stream: &mut FrameStream, hello: ipc::control::Hello) -> Option<u8> {
    let Ok(Some((f, fds))) = stream.next().await else { return None };
    let Ok(ToSupervisor::Return { listeners, accounting, map }) = unarchive::<ToSupervisor>(TO_SUPERVISOR, &f.archive)
    else {
        return None;
    };
    sup.take_back(listeners, fds, &accounting, &map);
    sup.outrank(hello.generation);
    let number = hello.shard;
    if sup.slot(number, |_| ()).is_none() {
        sup.take_surplus(number, hello.cpu as usize);
    }
    let known = sup.slot_mut(number, |s| {
        s.pid = hello.pid;
        s.cpu = hello.cpu as usize;
        s.state = State::Serving;
        s.serving_since = Some(Instant::now());
        s.generation = hello.generation;
        s.accounting = accounting;
    });
    known?;
    tracing::info!(shard = number, pid = hello.pid, "worker adopted");
    let sent = stream.send(TO_WORKER, &archive(&ToWorker::Adopted), &[], &[]).await;
    sent.is_ok().then_some(number)
}

async fn speak(
    sup: &Rc<Supervisor>,
    number: u8,
    mut stream: FrameStream,
    mut orders: mpsc::Receiver<super::Order>,
) -> Result<(), FrameError> {
    loop {
        tokio::select! {
            order = orders.recv() => {
                let Some((what, fds)) = order else { return Ok(()) };
                let fds: Vec<OwnedFd> = fds;
                if stream.send(TO_WORKER, &archive(&what), &[], &fds).await.is_err() {
                    return Ok(());
                }
            }
            frame = stream.next() => match frame {
                Ok(Some((f, _))) => hear(sup, number, unarchive::<ToSupervisor>(TO_SUPERVISOR, &f.archive)?),
                Ok(None) | Err(FrameError::Io(_) | FrameError::Truncated) => return Ok(()),
                Err(e) => return Err(e),
            },
        }
    }
}

fn hear(sup: &Rc<Supervisor>, number: u8, message: ToSupervisor) {
    match message {
        ToSupervisor::Heartbeat(h) => {
            sup.slot_mut(number, |s| {
                s.beat_at = Instant::now();
                s.heartbeat = h;
            });
            return;
        }
        ToSupervisor::Serving => {
            tracing::info!(shard = number, "serving");
            sup.slot_mut(number, |s| {
                s.state = State::Serving;
                s.serving_since = Some(Instant::now());
                s.beat_at = Instant::now();
            });
            sup.bring_up_to_date(number);
        }
        ToSupervisor::Leaving => drop(sup.slot_mut(number, |s| s.state = State::Draining)),
        ToSupervisor::Reloaded { generation, error } => {
            sup.slot_mut(number, |s| {
                s.generation = generation;
                s.reload_error = error;
            });
        }
        ToSupervisor::AccountingSwitched { switch } => {
            sup.slot_mut(number, |s| {
                s.switched = s.switched.max(switch);
            });
            sup.accounting_switched();
        }
        ToSupervisor::Rows { request, rows } => sup.rows_came(request, rows),
        ToSupervisor::Hello(_) | ToSupervisor::Return { .. } => {}
    }
    sup.changed.notify_waiters();
}
