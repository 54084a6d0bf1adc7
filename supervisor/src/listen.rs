//! Listening sockets: systemd's, a predecessor's, or our own.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::Notify;

use crate::config::Compiled;

/// Connections the kernel holds until a worker takes them.
const BACKLOG: i32 = 1024;

/// Sockets that systemd handed over, by address.
pub fn inherited() -> Vec<(String, OwnedFd)> {
    let Ok(numbers) = sd_notify::listen_fds() else { return Vec::new() };
    let mut all = Vec::new();
    for n in numbers {
        match ipc::descriptors::adopt_inherited(n) {
            Ok(fd) => match address_of(&fd) {
                Some(a) => all.push((a.to_string(), fd)),
                None => tracing::warn!(descriptor = n, "a socket from systemd is not a TCP socket; ignored"),
            },
            Err(e) => tracing::warn!(descriptor = n, error = %e, "a socket from systemd cannot be used"),
        }
    }
    all
}

fn address_of(fd: &OwnedFd) -> Option<SocketAddr> {
    let socket = Socket::from(fd.try_clone().ok()?);
    socket.local_addr().ok()?.as_socket()
}

/// Serves every connection of a listener in a task of its own, as long as it has its place.
pub async fn serve_each<S: 'static, F: Future<Output = ()> + 'static>(
    accept: impl AsyncFn() -> io::Result<S>,
    places: Rc<Places>,
    serve: impl Fn(S, Rc<Place>) -> F,
) {
    loop {
        match accept().await {
            Ok(io) => {
                // Turned away where all others are being answered.
                let Some(place) = places.take() else { continue };
                let served = serve(io, Rc::clone(&place));
                let places = Rc::clone(&places);
                tokio::task::spawn_local(async move {
                    tokio::select! {
                        () = served => {}
                        () = place.taken.notified() => {}
                    }
                    places.give_back(&place);
                });
            }
            Err(e) => {
                // Out of descriptors, say: asking again at once would only burn the core.
                tracing::warn!(error = %e, "accepting on a socket of the supervisor failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Places of the connections that a listener may have at once: they never take the descriptors that workers are started
/// with. When all are taken, a new connection gets the place of the one that has been silent longest.
#[derive(Debug)]
pub struct Places {
    most: usize,
    all: RefCell<Vec<Rc<Place>>>,
}

/// One of them.
#[derive(Debug)]
pub struct Place {
    /// Since when nothing came; none while it is being answered, when nobody takes its place.
    silent_since: Cell<Option<Instant>>,
    taken: Notify,
}

impl Place {
    /// A whole request has come.
    pub fn is_answered(&self) {
        self.silent_since.set(None);
    }

    /// It is waited for again.
    pub fn is_silent(&self) {
        self.silent_since.set(Some(Instant::now()));
    }
}

impl Places {
    /// So many.
    pub fn new(most: usize) -> Rc<Places> {
        Rc::new(Places { most, all: RefCell::default() })
    }

    fn take(&self) -> Option<Rc<Place>> {
        let mut all = self.all.borrow_mut();
        if all.len() >= self.most {
            let silent = all.iter().enumerate().filter_map(|(i, p)| Some((p.silent_since.get()?, i)));
            let (_, longest) = silent.min()?;
            all.remove(longest).taken.notify_one();
        }
        let place = Rc::new(Place { silent_since: Cell::new(Some(Instant::now())), taken: Notify::new() });
        all.push(Rc::clone(&place));
        Some(place)
    }

    fn give_back(&self, place: &Rc<Place>) {
        self.all.borrow_mut().retain(|p| !Rc::ptr_eq(p, place));
    }
}

/// Why listeners of a configuration stand for no address of this machine; `None` when all do.
pub fn nowhere(compiled: &Compiled) -> Option<String> {
    let networks = compiled.listens_nowhere.join(", ");
    (!networks.is_empty()).then(|| format!("cannot listen on {networks}: no interface has an address there"))
}

/// Binds and listens.
///
/// # Errors
/// A sentence naming address, error and what to do.
pub fn bind_to(address: &str) -> Result<OwnedFd, String> {
    let failed = |e: io::Error| {
        let hint = match e.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EACCES) => "; ports below 1024 need root or CAP_NET_BIND_SERVICE",
            Some(Errno::EADDRINUSE) => "; another process listens there",
            Some(Errno::EADDRNOTAVAIL) => "; no interface has the address",
            _ => "",
        };
        format!("cannot listen on {address}: {e}{hint}")
    };
    let a: SocketAddr = address.parse().map_err(|_| format!("{address} is not IP:PORT"))?;
    let s = Socket::new(Domain::for_address(a), Type::STREAM, Some(Protocol::TCP)).map_err(failed)?;
    s.set_reuse_address(true).map_err(failed)?;
    if a.is_ipv6() {
        s.set_only_v6(true).map_err(failed)?;
    }
    s.set_nonblocking(true).map_err(failed)?;
    s.bind(&a.into()).map_err(failed)?;
    s.listen(BACKLOG).map_err(failed)?;
    Ok(s.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_comes_gets_the_place_of_who_was_silent_longest() {
        let places = Places::new(2);
        let ended = |p: &Rc<Place>| !places.all.borrow().iter().any(|q| Rc::ptr_eq(p, q));
        let (a, b) = (places.take().expect("a place"), places.take().expect("a place"));
        a.is_answered();
        let c = places.take().expect("that of b");
        assert_eq!([&a, &b, &c].map(ended), [false, true, false]);
        c.is_answered();
        assert!(places.take().is_none(), "both are being answered");
        c.is_silent();
        a.is_silent();
        let d = places.take().expect("that of c");
        assert_eq!([&a, &c, &d].map(ended), [false, true, false]);
        places.give_back(&a);
        assert!(places.take().is_some() && !ended(&d), "there was one");
    }
}
