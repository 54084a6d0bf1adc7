//! Connections of shards whose tasks panic, by chance, where they read or write.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::dice::Dice;
use crate::pipe::{End, Scissors};

/// How often tasks panic.
#[derive(Debug)]
pub struct Panics {
    dice: Dice,
    /// In how many of a thousand reads and writes.
    permille: Cell<u64>,
    happened: Cell<u64>,
}

impl Panics {
    /// None yet.
    pub fn new(dice: Dice) -> Rc<Panics> {
        Rc::new(Panics { dice, permille: Cell::new(0), happened: Cell::new(0) })
    }

    /// Lets tasks panic in so many of a thousand reads and writes from now on.
    pub fn set(&self, permille: u64) {
        self.permille.set(permille);
    }

    /// How many there were.
    pub fn happened(&self) -> u64 {
        self.happened.get()
    }
}

/// A connection, or one direction of it, as a shard has it.
#[derive(Debug)]
pub struct Fragile<T> {
    io: T,
    panics: Rc<Panics>,
    scissors: Scissors,
}

impl<T> Fragile<T> {
    /// What reads `io` or writes to it panics now and then.
    pub fn new(io: T, panics: &Rc<Panics>, scissors: Scissors) -> Fragile<T> {
        Fragile { io, panics: Rc::clone(panics), scissors }
    }

    fn may_panic(&self) {
        let permille = self.panics.permille.get();
        if permille > 0 && self.panics.dice.permille(permille) {
            self.panics.happened.set(self.panics.happened.get() + 1);
            self.scissors.panicked();
            panic!("the simulation lets this task panic");
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Fragile<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        let read = ready!(Pin::new(&mut me.io).poll_read(cx, buf));
        // What was read is lost with the task.
        me.may_panic();
        Poll::Ready(read)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Fragile<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let written = ready!(Pin::new(&mut me.io).poll_write(cx, bytes));
        me.may_panic();
        Poll::Ready(written)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

impl worker::ports::Stream for Fragile<End> {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    fn acknowledge(&self) {
        self.io.acknowledge();
    }
}
