//! The supervisor's side of the control channel.

use std::rc::Rc;
use std::time::{Duration, Instant};

use ipc::control::{TO_SUPERVISOR, TO_WORKER, ToSupervisor, ToWorker, Welcome};
use ipc::frame::{FrameError, archive, unarchive};
use ipc::limits::SHARDS_MAX;
use ipc::stream::FrameStream;
use tokio::net::UnixListener;
use tokio::time::timeout;

use super::State;
use super::orders::Orders;
use super::process::Process;
use crate::listen::{self, Place, Places};
use crate::programs::Programs;
use crate::state::Supervisor;

/// Connections of workers: one of each, and another of one that comes back before the first was seen to end.
const CONNECTIONS_MAX: usize = 2 * SHARDS_MAX;
/// How long a worker may take to say who it is.
const GREETING_WAIT: Duration = Duration::from_secs(10);

/// Serves workers.
pub async fn serve(sup: Rc<Supervisor>, listener: UnixListener) {
    let accept = async || listener.accept().await.map(|(io, _)| io);
    let serve = |io, place| serve_one(Rc::clone(&sup), FrameStream::new(io), place);
    listen::serve_each(accept, Places::new(CONNECTIONS_MAX), serve).await;
}

async fn serve_one(sup: Rc<Supervisor>, mut stream: FrameStream, place: Rc<Place>) {
    let Ok(Some(number)) = timeout(GREETING_WAIT, greet(&sup, &mut stream)).await else { return };
    place.is_answered();
    let orders = Rc::new(Orders::default());
    let (state, process) = sup
        .slot_mut(number, |s| {
            s.orders = Some(Rc::clone(&orders));
            s.is_alive();
            (s.state, s.process.clone())
        })
        .unwrap_or((State::Waiting, None));
    match state {
        State::Serving => sup.bring_up_to_date(number),
        // It was told while it had no ear yet.
        State::Draining => sup.tell_to_stop(number),
        State::Waiting | State::Starting => {}
    }
    sup.changed.notify_waiters();
    let mut programs = Programs::of(&sup, &orders);
    if let Err(e) = speak(&sup, number, stream, &orders, &mut programs).await {
        // Rubbish from a worker restarts that worker, and nothing else.
        tracing::error!(shard = number, error = %e, "bad frame from a worker; it is restarted");
        if let Some(p) = process {
            p.kill();
        }
    }
    sup.slot_mut(number, |s| {
        if s.orders.as_ref().is_some_and(|o| Rc::ptr_eq(o, &orders)) {
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
    let (switch, files) = sup.accounting.in_use();
    let known = sup.slot_mut(number, |s| {
        s.generation = sup.generation.get();
        s.writes_to(&files);
        s.switched = switch;
        s.accounting_before.clone()
    });
    let accounting_before = known?;
    let (names, fds) = sup.descriptors();
    let welcome = Welcome { map: sup.map_for_shards(), listeners: names, accounting: files, accounting_before };
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
    let process = match Process::of_peer(stream) {
        Ok(p) => Rc::new(p),
        Err(e) => {
            tracing::warn!(shard = hello.shard, error = %e, "a worker came back and is gone again");
            return None;
        }
    };
    sup.take_back(listeners, fds, &accounting, &map);
    sup.outrank(hello.generation);
    let number = hello.shard;
    if sup.slot(number, |_| ()).is_none() {
        sup.take_surplus(number, hello.cpu as usize);
    }
    let known = sup.slot_mut(number, |s| {
        s.process = Some(process);
        s.cpu = hello.cpu as usize;
        s.state = if s.retired { State::Draining } else { State::Serving };
        s.serving_since = Some(Instant::now());
        s.generation = hello.generation;
        s.writes_to(&accounting);
    });
    known?;
    tracing::info!(shard = number, pid = hello.pid, "worker adopted");
    let sent = stream.send(TO_WORKER, &archive(&ToWorker::Adopted), &[], &[]).await;
    sent.is_ok().then_some(number)
}

/// Reads and writes side by side: neither end waits for the other to read first.
async fn speak(
    sup: &Rc<Supervisor>,
    number: u8,
    mut stream: FrameStream,
    orders: &Orders,
    programs: &mut Programs,
) -> Result<(), FrameError> {
    let writer = stream.writer();
    let give = async {
        loop {
            let (what, fds) = orders.next().await;
            if writer.send(TO_WORKER, &archive(&what), &[], &fds).await.is_err() {
                return;
            }
        }
    };
    let listen = async {
        loop {
            match stream.next().await {
                Ok(Some((f, fds))) => match unarchive::<ToSupervisor>(TO_SUPERVISOR, &f.archive)? {
                    ToSupervisor::RunProgram { number, command, words } => programs.run(number, command, words, fds)?,
                    other => hear(sup, number, other),
                },
                Ok(None) | Err(FrameError::Io(_) | FrameError::Truncated) => return Ok(()),
                Err(e) => return Err(e),
            }
        }
    };
    tokio::select! {
        () = give => Ok(()),
        heard = listen => heard,
    }
}

fn hear(sup: &Rc<Supervisor>, number: u8, message: ToSupervisor) {
    match message {
        ToSupervisor::Heartbeat(h) => {
            sup.slot_mut(number, |s| {
                s.is_alive();
                s.heartbeat = h;
            });
            return;
        }
        ToSupervisor::Serving => {
            tracing::info!(shard = number, "serving");
            sup.slot_mut(number, |s| {
                if s.state != State::Draining {
                    s.state = State::Serving;
                }
                s.serving_since = Some(Instant::now());
                s.is_alive();
                s.left_complete = false;
            });
            sup.bring_up_to_date(number);
        }
        ToSupervisor::Leaving => drop(sup.slot_mut(number, |s| s.state = State::Draining)),
        ToSupervisor::Complete => drop(sup.slot_mut(number, |s| s.left_complete = true)),
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
        // Programs are the connection's.
        ToSupervisor::Hello(_) | ToSupervisor::Return { .. } | ToSupervisor::RunProgram { .. } => {}
    }
    sup.changed.notify_waiters();
}
