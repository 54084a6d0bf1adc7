//! Framed Unix stream sockets for control and operator channels.
//!
//! Reading keeps partial frames in its own buffer, so it may be cancelled at any await and
//! taken up again. The mesh batches its writes itself and uses [`FrameReader`] alone.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, Interest};
use tokio::net::UnixStream;

use crate::descriptors;
use crate::frame::{Frame, FrameError, Header};
use crate::limits::{ARCHIVE_BYTES_MAX, DESCRIPTORS_PER_FRAME_MAX};

/// Takes whole frames from any byte stream.
#[derive(Debug, Default)]
pub struct FrameReader {
    buf: BytesMut,
}

impl FrameReader {
    /// The next frame, or `None` at a clean end between frames. Cancel safe.
    ///
    /// # Errors
    /// [`FrameError`]; the stream is then out of step and must be closed.
    pub async fn next(&mut self, io: &mut (impl AsyncRead + Unpin)) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some(f) = Frame::take(&mut self.buf)? {
                return Ok(Some(f));
            }
            if self.buf.capacity() - self.buf.len() < 4096 {
                self.buf.reserve(64 << 10);
            }
            if io.read_buf(&mut self.buf).await? == 0 {
                return if self.buf.is_empty() { Ok(None) } else { Err(FrameError::Truncated) };
            }
        }
    }
}

/// A stream of frames that may carry descriptors.
#[derive(Debug)]
pub struct FrameStream {
    io: Arc<UnixStream>,
    buf: BytesMut,
    fds: Vec<OwnedFd>,
}

impl FrameStream {
    /// Frames over `io`.
    pub fn new(io: UnixStream) -> Self {
        FrameStream { io: Arc::new(io), buf: BytesMut::new(), fds: Vec::new() }
    }

    /// Writes to the same stream beside whoever reads it. Two peers that wrote to each other and
    /// did not read meanwhile would wait for each other for good.
    pub fn writer(&self) -> FrameWriter {
        FrameWriter { io: Arc::clone(&self.io) }
    }

    /// The next frame and its descriptors, or `None` at a clean end. Cancel safe.
    ///
    /// # Errors
    /// [`FrameError`]; the stream must then be closed.
    pub async fn next(&mut self) -> Result<Option<(Frame, Vec<OwnedFd>)>, FrameError> {
        loop {
            if let Some(f) = Frame::take(&mut self.buf)? {
                if self.fds.len() < f.header.fds {
                    return Err(FrameError::Descriptors(f.header.fds));
                }
                let fds = self.fds.drain(..f.header.fds).collect();
                return Ok(Some((f, fds)));
            }
            // They come with the first bytes of their frame, of which one may be on its way behind this.
            if self.fds.len() > 2 * DESCRIPTORS_PER_FRAME_MAX {
                return Err(FrameError::TooLarge {
                    what: "descriptors",
                    found: self.fds.len(),
                    max: 2 * DESCRIPTORS_PER_FRAME_MAX,
                });
            }
            self.io.readable().await?;
            let (raw, buf, fds) = (self.io.as_raw_fd(), &mut self.buf, &mut self.fds);
            let mut chunk = [0u8; 16 << 10];
            let got = self
                .io
                .try_io(Interest::READABLE, || descriptors::receive_with(raw, &mut chunk, fds).map_err(Into::into));
            match got {
                Ok(0) if buf.is_empty() => return Ok(None),
                Ok(0) => return Err(FrameError::Truncated),
                Ok(n) => buf.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Writes one frame with its descriptors.
    ///
    /// # Errors
    /// As [`FrameWriter::send`].
    pub async fn send(&self, kind: u8, archive: &[u8], raw: &[u8], fds: &[OwnedFd]) -> std::io::Result<()> {
        send(&self.io, kind, archive, raw, fds).await
    }

    /// The peer's process and user, from the kernel.
    ///
    /// # Errors
    /// As `getsockopt(2)`.
    pub fn peer(&self) -> std::io::Result<tokio::net::unix::UCred> {
        self.io.peer_cred()
    }
}

impl AsFd for FrameStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.io.as_fd()
    }
}

/// The writing side of a [`FrameStream`].
#[derive(Debug)]
pub struct FrameWriter {
    io: Arc<UnixStream>,
}

impl FrameWriter {
    /// Writes one frame with its descriptors.
    ///
    /// # Errors
    /// The socket's error. `InvalidInput` for an archive that the peer would refuse: nothing was
    /// written then.
    pub async fn send(&self, kind: u8, archive: &[u8], raw: &[u8], fds: &[OwnedFd]) -> std::io::Result<()> {
        send(&self.io, kind, archive, raw, fds).await
    }
}

async fn send(io: &UnixStream, kind: u8, archive: &[u8], raw: &[u8], fds: &[OwnedFd]) -> std::io::Result<()> {
    if archive.len() > ARCHIVE_BYTES_MAX {
        let error = FrameError::TooLarge { what: "archive", found: archive.len(), max: ARCHIVE_BYTES_MAX };
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, error));
    }
    let mut header = Header::new(kind, archive.len(), raw.len());
    header.fds = fds.len();
    let mut bytes = Vec::with_capacity(crate::frame::HEADER_BYTES + archive.len() + raw.len());
    bytes.extend_from_slice(&header.encode());
    bytes.extend_from_slice(archive);
    bytes.extend_from_slice(raw);
    let mut rights = descriptors::raw(fds);
    let mut at = 0;
    while at < bytes.len() {
        let sent = io
            .async_io(Interest::WRITABLE, || {
                descriptors::send_with(io.as_raw_fd(), &bytes[at..], &rights).map_err(Into::into)
            })
            .await?;
        at += sent;
        rights.clear();
    }
    Ok(())
}
