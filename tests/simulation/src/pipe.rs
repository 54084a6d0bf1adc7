//! A connection in memory: bytes arrive after a time, and somebody may cut it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// Bytes on their way in one direction; more must wait.
const WINDOW: usize = 64 << 10;

/// How long bytes that are written now take to arrive; others may change it.
pub type Latency = Rc<Cell<Duration>>;

/// What both ends of a connection have in common.
#[derive(Debug, Default)]
struct Wire {
    /// What end 0 wrote, and what end 1 wrote.
    ways: [Way; 2],
    /// Since then nothing passes any more, and both ends are told so.
    cut: Option<Instant>,
    /// A task of a shard panicked at it.
    has_panicked: bool,
    /// When a receiver took the last message.
    last_taken: Option<Instant>,
    latency: Latency,
}

#[derive(Debug, Default)]
struct Way {
    /// Bytes, and when they arrive.
    underway: VecDeque<(Instant, Bytes)>,
    bytes: usize,
    /// Its writer ends here.
    is_over: bool,
    /// Its reader is gone.
    is_deaf: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Way {
    fn wake(&mut self) {
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
    }
}

/// Cuts a connection, from outside of it.
#[derive(Debug, Clone)]
pub struct Scissors(Rc<RefCell<Wire>>);

impl Scissors {
    /// Both ends find the connection reset; what was underway is lost.
    pub fn cut(&self) {
        let mut wire = self.0.borrow_mut();
        wire.cut.get_or_insert_with(Instant::now);
        wire.ways.iter_mut().for_each(Way::wake);
    }

    /// The task of a shard that reads or writes panics.
    pub fn panicked(&self) {
        self.0.borrow_mut().has_panicked = true;
    }

    /// A receiver takes a message now.
    pub fn takes(&self) {
        self.0.borrow_mut().last_taken = Some(Instant::now());
    }

    /// Whether what was written at that time never arrived, or may have been forgotten with the task that read it: when that panicked, no
    /// more than the last message was in its hands.
    pub fn has_lost(&self, written: Instant) -> bool {
        let wire = self.0.borrow();
        let is_cut = wire.cut.is_some_and(|cut| cut <= written + wire.latency.get());
        is_cut || wire.has_panicked && wire.last_taken == Some(written)
    }

    /// The end that opened it is gone, or it is cut.
    pub fn is_closed(&self) -> bool {
        let wire = self.0.borrow();
        wire.cut.is_some() || wire.ways[0].is_over
    }

    /// Both ends are gone, or it is cut.
    pub fn is_over(&self) -> bool {
        let wire = self.0.borrow();
        wire.cut.is_some() || wire.ways.iter().any(|w| w.is_over && w.is_deaf)
    }
}

/// One end of a connection.
#[derive(Debug)]
pub struct End {
    wire: Rc<RefCell<Wire>>,
    number: usize,
    address: SocketAddr,
    waits: Option<Pin<Box<Sleep>>>,
}

/// A connection between two addresses; bytes take `latency` from end to end.
pub fn connection(addresses: [SocketAddr; 2], latency: &Latency) -> (End, End, Scissors) {
    let wire = Rc::new(RefCell::new(Wire { latency: Rc::clone(latency), ..Wire::default() }));
    let [a, b] = [0, 1].map(|number| End { wire: Rc::clone(&wire), number, address: addresses[number], waits: None });
    (a, b, Scissors(wire))
}

impl Drop for End {
    fn drop(&mut self) {
        let mut wire = self.wire.borrow_mut();
        let (own, other) = (self.number, 1 - self.number);
        wire.ways[own].is_over = true;
        wire.ways[own].wake();
        wire.ways[other].is_deaf = true;
        wire.ways[other].wake();
    }
}

impl AsyncRead for End {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        let mut wire = me.wire.borrow_mut();
        if wire.cut.is_some() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let way = &mut wire.ways[1 - me.number];
        let now = Instant::now();
        let mut is_read = false;
        while buf.remaining() > 0 {
            let Some((at, bytes)) = way.underway.front_mut() else { break };
            if *at > now {
                break;
            }
            let n = bytes.len().min(buf.remaining());
            buf.put_slice(&bytes[..n]);
            bytes.advance(n);
            let is_empty = bytes.is_empty();
            way.bytes -= n;
            is_read = true;
            if is_empty {
                way.underway.pop_front();
            }
        }
        if is_read {
            way.writer.take().into_iter().for_each(Waker::wake);
            return Poll::Ready(Ok(()));
        }
        way.reader = Some(cx.waker().clone());
        match way.underway.front() {
            Some((at, _)) => {
                let sleep = me.waits.get_or_insert_with(|| Box::pin(sleep_until(*at)));
                if sleep.deadline() != *at {
                    sleep.as_mut().reset(*at);
                }
                if sleep.as_mut().poll(cx).is_ready() {
                    cx.waker().wake_by_ref();
                }
                Poll::Pending
            }
            None if way.is_over => Poll::Ready(Ok(())),
            None => Poll::Pending,
        }
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let mut wire = me.wire.borrow_mut();
        if wire.cut.is_some() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let at = Instant::now() + wire.latency.get();
        let way = &mut wire.ways[me.number];
        if way.is_deaf {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let n = bytes.len().min(WINDOW - way.bytes);
        if n == 0 && !bytes.is_empty() {
            way.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        way.bytes += n;
        // What was written before arrives before.
        let at = way.underway.back().map_or(at, |(before, _)| at.max(*before));
        way.underway.push_back((at, Bytes::copy_from_slice(&bytes[..n])));
        way.reader.take().into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut wire = self.wire.borrow_mut();
        let way = &mut wire.ways[self.number];
        way.is_over = true;
        way.reader.take().into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(()))
    }
}

impl worker::ports::Stream for End {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn acknowledge(&self) {}
}
