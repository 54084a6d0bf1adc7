//! Connections between shards, by Unix sockets in the folder that all of them know.

use std::fmt::Debug;
use std::io;
use std::path::PathBuf;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};

use super::pending::Pending;

/// Where the other shards are reached, and reach this one.
pub trait Mesh: Debug {
    /// Listens for other shards, and for `sluice inject`.
    ///
    /// # Errors
    /// The system's, with the name of the socket.
    fn listen(&self) -> io::Result<Box<dyn MeshListener>>;

    /// Connects to shard `number`.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] and [`io::ErrorKind::ConnectionRefused`] where it has no process. Others say nothing of that: no
    /// descriptor is left, or too many connect to it at once.
    fn connect(&self, number: u8) -> Pending<'_, io::Result<MeshStream>>;

    /// This shard takes no connections any more.
    fn leave(&self);
}

/// A shard that listens for the others.
pub trait MeshListener {
    /// The next connection.
    fn accept(&mut self) -> Pending<'_, io::Result<MeshStream>>;
}

/// A connection between two shards, in its two directions.
pub struct MeshStream {
    /// What the other one says.
    pub read: Box<dyn AsyncRead + Unpin>,
    /// What is said to it; dropped, it says no more.
    pub write: Box<dyn AsyncWrite + Unpin>,
}

impl Debug for MeshStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MeshStream").finish_non_exhaustive()
    }
}

impl From<UnixStream> for MeshStream {
    fn from(io: UnixStream) -> MeshStream {
        let (read, write) = io.into_split();
        MeshStream { read: Box::new(read), write: Box::new(write) }
    }
}

/// Sockets of the system.
#[derive(Debug)]
pub(super) struct System {
    /// Number of this shard.
    pub number: u8,
    /// Folder of all shards' sockets.
    pub run_dir: PathBuf,
}

impl System {
    fn socket_of(&self, number: u8) -> PathBuf {
        self.run_dir.join(format!("shard-{number:02}.sock"))
    }
}

impl Mesh for System {
    fn listen(&self) -> io::Result<Box<dyn MeshListener>> {
        let path = self.socket_of(self.number);
        // Left by a process that was killed; where it cannot be removed, binding says so.
        let _ = std::fs::remove_file(&path);
        let named = |e: io::Error| io::Error::new(e.kind(), format!("mesh socket {}: {e}", path.display()));
        Ok(Box::new(UnixListener::bind(&path).map_err(named)?))
    }

    fn connect(&self, number: u8) -> Pending<'_, io::Result<MeshStream>> {
        Box::pin(async move { UnixStream::connect(self.socket_of(number)).await.map(MeshStream::from) })
    }

    fn leave(&self) {
        // Others find that nobody listens, and the next start replaces it.
        let _ = std::fs::remove_file(self.socket_of(self.number));
    }
}

impl MeshListener for UnixListener {
    fn accept(&mut self) -> Pending<'_, io::Result<MeshStream>> {
        Box::pin(async move { UnixListener::accept(self).await.map(|(io, _)| io.into()) })
    }
}
