//! Listening sockets: systemd's, a predecessor's, or our own.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{UnixListener, UnixStream};

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

/// Serves every connection of a local socket in a task of its own.
pub async fn serve_each<F: Future<Output = ()> + 'static>(listener: UnixListener, serve: impl Fn(UnixStream) -> F) {
    loop {
        match listener.accept().await {
            Ok((io, _)) => drop(tokio::task::spawn_local(serve(io))),
            Err(e) => {
                // Out of descriptors, say: asking again at once would only burn the core.
                tracing::warn!(error = %e, "accepting on a local socket failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Binds and listens.
///
/// # Errors
/// A sentence naming address, error and what to do.
pub fn bind_to(address: &str) -> Result<OwnedFd, String> {
    let failed = |e: std::io::Error| {
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
