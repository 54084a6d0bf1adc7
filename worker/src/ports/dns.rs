//! Questions to name servers.

use std::fmt::Debug;
use std::net::SocketAddr;
use std::time::Duration;

use hickory_proto::op::Message;

use super::pending::Pending;
use crate::connect::exchange::{self, Question, Trouble};

/// Where name servers are asked.
pub trait Dns: Debug {
    /// Asks one server, with EDNS (RFC 6891) for answers of so many bytes by UDP or without, and waits at most so long for
    /// the answer. The answer is whole, and belongs to the question.
    fn ask<'a>(
        &'a self,
        server: SocketAddr,
        question: &'a Question<'a>,
        edns: Option<u16>,
        wait: Duration,
    ) -> Pending<'a, Result<Message, Trouble>>;
}

/// Servers on the system's network, by UDP, and by TCP what does not fit.
#[derive(Debug)]
pub(super) struct System;

impl Dns for System {
    fn ask<'a>(
        &'a self,
        server: SocketAddr,
        question: &'a Question<'a>,
        edns: Option<u16>,
        wait: Duration,
    ) -> Pending<'a, Result<Message, Trouble>> {
        Box::pin(exchange::exchange(server, question, edns, wait))
    }
}
