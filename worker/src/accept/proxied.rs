//! Clients that come by way of a proxy, which says with a PROXY header whom it speaks for (the PROXY protocol of HAProxy, versions 1
//! and 2).

use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::time::Duration;

use ipc::network::Network;
use ppp::{v1, v2};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

use crate::log_limit;

/// How long a proxy may take to send its header: the protocol has it send that at once, and a receiver wait for 3 seconds or more.
const HEADER_WAIT: Duration = Duration::from_secs(5);
/// Bytes of a header of version 2 with what a proxy adds to the addresses; the protocol asks for 536.
const HEADER_MAX: usize = 4096;
/// Bytes of a header of version 1, its line end included.
const LINE_MAX: usize = 107;
/// Version 2 and the command LOCAL.
const LOCAL: u8 = 0x20;
/// By what version 2 begins.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Who talks to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// The client's address.
    pub client: SocketAddr,
    /// The address that the client connected to.
    pub server: SocketAddr,
}

/// Why a connection is not served.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The peer is none of the proxies.
    #[error("this listener is for its proxies alone (proxy-protocol), and the client is none of them")]
    NoProxy,
    /// The proxy sent none.
    #[error("no PROXY header came within {} s", HEADER_WAIT.as_secs())]
    Late,
    /// The connection ended.
    #[error("the connection ended before the PROXY header: {0}")]
    Ended(#[from] std::io::Error),
    /// Something else came.
    #[error("what came is no PROXY header of version 1 or 2: is the proxy told to send one?")]
    NoHeader,
    /// More than [`HEADER_MAX`].
    #[error("a PROXY header of {0} bytes, more than {HEADER_MAX}")]
    TooLong(usize),
}

impl Fault {
    /// Tells the operator, of each address once in a while.
    pub fn tell(&self, listener: &str, peer: IpAddr) {
        if log_limit::allows_line_of_client("proxy-protocol", &peer.to_string()) {
            tracing::warn!(listener, peer = %peer, "a connection was closed: {self}");
        }
    }
}

/// Reads the header of a proxy, and no byte more; `None` where the proxy speaks for itself.
///
/// # Errors
/// [`Fault`], whereupon the connection is to be closed without a word.
pub async fn ends(
    stream: &mut (impl AsyncRead + Unpin),
    peer: IpAddr,
    proxies: &[Network],
) -> Result<Option<Ends>, Fault> {
    if !proxies.iter().any(|n| n.contains(peer)) {
        return Err(Fault::NoProxy);
    }
    let header = timeout(HEADER_WAIT, header(stream)).await.map_err(|_| Fault::Late)??;
    of_header(&header)
}

async fn header(stream: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, Fault> {
    let mut header = vec![0; SIGNATURE.len()];
    stream.read_exact(&mut header).await?;
    if header == SIGNATURE {
        header.resize(16, 0);
        stream.read_exact(&mut header[SIGNATURE.len()..]).await?;
        let whole = 16 + usize::from(u16::from_be_bytes([header[14], header[15]]));
        if whole > HEADER_MAX {
            return Err(Fault::TooLong(whole));
        }
        header.resize(whole, 0);
        stream.read_exact(&mut header[16..]).await?;
        return Ok(header);
    }
    if !header.starts_with(b"PROXY ") {
        return Err(Fault::NoHeader);
    }
    // What follows is the client's: it is left unread.
    while !header.ends_with(b"\r\n") {
        if header.len() >= LINE_MAX {
            return Err(Fault::NoHeader);
        }
        header.push(stream.read_u8().await?);
    }
    Ok(header)
}

/// What a whole header says.
///
/// # Errors
/// [`Fault::NoHeader`]
pub fn of_header(header: &[u8]) -> Result<Option<Ends>, Fault> {
    let v4 = |client, from, server, to| {
        Some(Ends { client: SocketAddrV4::new(client, from).into(), server: SocketAddrV4::new(server, to).into() })
    };
    let v6 = |client, from, server, to| {
        let of = |ip, port| SocketAddr::from(SocketAddrV6::new(ip, port, 0, 0));
        Some(Ends { client: of(client, from), server: of(server, to) })
    };
    if header.starts_with(SIGNATURE) {
        // A health check of the proxy's own: whatever else stands there counts for nothing.
        if header.get(SIGNATURE.len()) == Some(&LOCAL) {
            return Ok(None);
        }
        let h = v2::Header::try_from(header).map_err(|_| Fault::NoHeader)?;
        return Ok(match h.addresses {
            v2::Addresses::IPv4(a) => v4(a.source_address, a.source_port, a.destination_address, a.destination_port),
            v2::Addresses::IPv6(a) => v6(a.source_address, a.source_port, a.destination_address, a.destination_port),
            v2::Addresses::Unix(_) | v2::Addresses::Unspecified => None,
        });
    }
    // What stands behind it counts for nothing.
    if header.strip_prefix(b"PROXY UNKNOWN").is_some_and(|rest| matches!(rest.first(), Some(b' ' | b'\r'))) {
        return Ok(None);
    }
    let h = v1::Header::try_from(header).map_err(|_| Fault::NoHeader)?;
    Ok(match h.addresses {
        v1::Addresses::Tcp4(a) => v4(a.source_address, a.source_port, a.destination_address, a.destination_port),
        v1::Addresses::Tcp6(a) => v6(a.source_address, a.source_port, a.destination_address, a.destination_port),
        v1::Addresses::Unknown => None,
    })
}
