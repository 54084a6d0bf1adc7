//! A client's connection that acknowledges at once what it cannot answer yet.
//!
//! Many clients send the content of a message in several small pieces and leave Nagle's algorithm on (RFC 9293 3.7.4): the last piece waits in
//! the client until what was sent before is acknowledged. The kernel here delays that acknowledgement, for a reply that it could go along with
//! (RFC 9293 3.8.6.3), but the reply comes only behind the last piece. Each message takes 40 ms more, until the delay is over.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A TCP connection that acknowledges what was read from it when more has to come before anything is written.
#[derive(Debug)]
pub struct QuickAck {
    stream: TcpStream,
    /// Something was read, and nothing was written or acknowledged since.
    is_unanswered: bool,
}

impl QuickAck {
    /// Takes over a connection from which nothing has been read yet.
    pub fn new(stream: TcpStream) -> QuickAck {
        QuickAck { stream, is_unanswered: false }
    }
}

impl AsyncRead for QuickAck {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        match read {
            Poll::Ready(_) => self.is_unanswered = buf.filled().len() > before,
            Poll::Pending if std::mem::take(&mut self.is_unanswered) => {
                // The kernel forgets it with the next reply. Where it cannot be set, the acknowledgement comes later.
                let _ = sockopt::set_tcp_quickack(&self.stream, true);
            }
            Poll::Pending => {}
        }
        read
    }
}

impl AsyncWrite for QuickAck {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.is_unanswered = false;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.is_unanswered = false;
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::*;

    /// Reads what is there until there is no more.
    async fn read(server: &mut QuickAck) {
        let mut bytes = [0; 100];
        while timeout(Duration::from_millis(20), server.read(&mut bytes)).await.is_ok() {}
    }

    #[tokio::test]
    async fn what_cannot_be_answered_yet_is_acknowledged_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut server = QuickAck::new(listener.accept().await.unwrap().0);
        let is_quick = |server: &QuickAck| sockopt::tcp_quickack(&server.stream).unwrap();
        let mut answer = [0; 3];
        // After some questions and answers the kernel delays acknowledgements.
        for _ in 0..5 {
            client.write_all(b"NOOP\r\n").await.unwrap();
            server.read_exact(&mut [0; 6]).await.unwrap();
            server.write_all(b"250").await.unwrap();
            client.read_exact(&mut answer).await.unwrap();
        }
        read(&mut server).await;
        assert!(!is_quick(&server), "all was answered");
        client.write_all(b"the beginning of content").await.unwrap();
        server.readable().await;
        read(&mut server).await;
        assert!(is_quick(&server));
    }

    impl QuickAck {
        async fn readable(&self) {
            self.stream.readable().await.unwrap();
        }
    }
}
