//! Connections to receivers, by TCP.

use std::fmt::Debug;
use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};

use super::pending::Pending;

/// Where receivers are reached.
pub trait Net: Debug {
    /// Connects to `peer`, from `source` if it is given. Small pieces are sent at once (`tcp(7)`, TCP_NODELAY).
    fn connect(&self, source: Option<IpAddr>, peer: SocketAddr) -> Pending<'_, Result<Box<dyn Stream>, ConnectFault>>;
}

/// Why no connection came about.
#[derive(Debug)]
pub enum ConnectFault {
    /// The source address cannot be used.
    Source(io::Error),
    /// The peer cannot be reached, or refuses.
    Peer(io::Error),
}

impl From<ConnectFault> for io::Error {
    fn from(f: ConnectFault) -> io::Error {
        match f {
            ConnectFault::Source(e) | ConnectFault::Peer(e) => e,
        }
    }
}

/// A connection that stands.
pub trait Stream: AsyncRead + AsyncWrite + Unpin {
    /// Our address.
    ///
    /// # Errors
    /// The system's.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// Acknowledges at once what was read (`tcp(7)`, TCP_QUICKACK), where that can be had.
    fn acknowledge(&self);
}

/// The system's network.
#[derive(Debug)]
pub(super) struct System;

impl Net for System {
    fn connect(&self, source: Option<IpAddr>, peer: SocketAddr) -> Pending<'_, Result<Box<dyn Stream>, ConnectFault>> {
        Box::pin(async move {
            let socket = if peer.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
            let socket = socket.map_err(ConnectFault::Peer)?;
            if let Some(ip) = source {
                socket.bind(SocketAddr::new(ip, 0)).map_err(ConnectFault::Source)?;
            }
            let stream = socket.connect(peer).await.map_err(ConnectFault::Peer)?;
            let _ = stream.set_nodelay(true);
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }
}

impl Stream for TcpStream {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        TcpStream::local_addr(self)
    }

    fn acknowledge(&self) {
        // Without it some receivers are slow, and nothing else changes.
        let _ = rustix::net::sockopt::set_tcp_quickack(self, true);
    }
}
