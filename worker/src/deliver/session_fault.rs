//! Why a session with a receiver cannot go on, and what that does to the mail that met it.

use std::net::IpAddr;

use crate::classify::outcome::{Failure, Stage, Verdict};
use crate::smtp::extension::Extension;
use crate::smtp::reply::Reply;

/// What a session was doing when the system or the time ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// The source address was being taken.
    Binding,
    /// There was no connection yet.
    Connecting,
    /// There was one.
    Talking,
}

impl std::fmt::Display for Doing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Doing::Binding => "binding the source address for",
            Doing::Connecting => "connecting to",
            Doing::Talking => "in connection to",
        })
    }
}

/// Why a session cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SessionFault {
    /// The operating system's error.
    #[error("{doing} {host} ({ip}): {error}")]
    Io {
        /// What was being done.
        doing: Doing,
        /// Host.
        host: String,
        /// Address.
        ip: IpAddr,
        /// Error.
        error: String,
    },
    /// The receiver closed.
    #[error("EDISCON in connection to {host} ({ip})")]
    Closed {
        /// Host.
        host: String,
        /// Address.
        ip: IpAddr,
    },
    /// No answer in time.
    #[error("ETIMEDOUT {doing} {host} ({ip})")]
    Timeout {
        /// What was being done.
        doing: Doing,
        /// Host.
        host: String,
        /// Address.
        ip: IpAddr,
    },
    /// A reply that ends the session.
    #[error("\"{reply}\" from {host} ({ip})", reply = .reply.text())]
    Refused {
        /// The reply.
        reply: Reply,
        /// Host.
        host: String,
        /// Address.
        ip: IpAddr,
    },
    /// A reply about the order or the form of our own commands.
    #[error("\"{reply}\" in answer to {command} from {host} ({ip}): it does not follow our commands", reply = .reply.text())]
    OutOfStep {
        /// The command.
        command: &'static str,
        /// The reply.
        reply: Reply,
        /// What was used that could be left out.
        concerned: Option<Extension>,
        /// Host.
        host: String,
        /// Address.
        ip: IpAddr,
    },
    /// The TLS handshake failed.
    #[error("TLS handshake failed ({error}) from {host} ({ip})")]
    Handshake {
        /// What the library says.
        error: String,
        /// The receiver's certificate will not do.
        about_certificate: bool,
        /// Host.
        host: String,
        /// Address.
        ip: IpAddr,
    },
    /// Not SMTP.
    #[error("{reason} from {host} ({ip})")]
    Protocol {
        /// What was found.
        reason: String,
        /// Host.
        host: String,
        /// Address.
        ip: IpAddr,
    },
}

impl SessionFault {
    /// The receiver closes the service channel.
    pub fn is_421(&self) -> bool {
        matches!(self, SessionFault::Refused { reply, .. } if reply.code == 421)
    }

    /// The receiver ended the session, with words or without.
    pub fn is_closing(&self) -> bool {
        self.is_421() || matches!(self, SessionFault::Closed { .. })
    }

    /// It ended the negotiation of TLS, and need not end that of another session from the beginning.
    pub fn may_pass_without_resumption(&self) -> bool {
        let is_handshake = matches!(self, SessionFault::Handshake { about_certificate: false, .. });
        is_handshake || self.is_closing() || matches!(self, SessionFault::Io { .. })
    }

    /// No connection came about.
    pub fn is_unconnected(&self) -> bool {
        matches!(self, SessionFault::Io { doing, .. } | SessionFault::Timeout { doing, .. } if *doing == Doing::Connecting)
    }

    /// What it does to mail, and who caused it.
    pub fn failure(&self) -> Failure {
        let (verdict, host, ip) = match self {
            SessionFault::Refused { reply, host, ip } => (Verdict::of_refusal(reply).at(Stage::Session), host, ip),
            SessionFault::Closed { host, ip }
            | SessionFault::Handshake { host, ip, .. }
            | SessionFault::Protocol { host, ip, .. } => (Verdict::own("4.4.2", self.to_string()), host, ip),
            SessionFault::OutOfStep { host, ip, .. } => (Verdict::own("4.5.0", self.to_string()), host, ip),
            SessionFault::Io { doing, host, ip, .. } | SessionFault::Timeout { doing, host, ip } => {
                let status = if *doing == Doing::Connecting { "4.4.1" } else { "4.4.2" };
                (Verdict::own(status, self.to_string()), host, ip)
            }
        };
        Failure::at(verdict, host, &ip.to_string())
    }
}
