//! The words of SMTP (RFC 5321) for both sides, without sockets and without a clock: commands and content that clients send, replies
//! that receivers give, and content as it goes out.

pub mod command;
pub mod content;
pub mod dot_stuffing;
pub mod extension;
pub mod reply;
