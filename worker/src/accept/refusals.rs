//! Log lines about mail that is refused: client, command, and the reply, which names the directive. What the client sent is not
//! repeated but for addresses that the reply quotes.

use std::net::IpAddr;

use ipc::text;

use crate::log_limit;
use crate::smtp::command::Refusal;

/// What lines begin with, and are counted under.
const CAUSE: &str = "mail refused";
/// Bytes of a reply that are written: it may quote a client, who can send more.
const REPLY_MAX: usize = 500;
/// Status of replies that only follow from another refusal: RCPT behind a refused MAIL, DATA without a recipient.
const OUT_OF_ORDER: &str = "5.5.1";

/// Tells of a command that was refused.
pub fn tell(shard: u8, client: IpAddr, command: &'static str, r: &Refusal) {
    let Refusal(code, status, words) = r;
    if command.is_empty() || *status == OUT_OF_ORDER {
        return;
    }
    if log_limit::allows_line_of_client(CAUSE, &format!("{client} {command} {code} {status}")) {
        let reply = format!("{code} {status} {words}");
        tracing::info!(shard, %client, command, reply = &*text::clean(&reply, REPLY_MAX), "mail refused");
    }
}

/// Tells of a connection that was refused, with what it was told.
pub fn tell_of_connection(shard: u8, client: IpAddr, reply: &str) {
    let reply = &*text::clean(reply.trim_end(), REPLY_MAX);
    let code = reply.get(..3).unwrap_or_default();
    if log_limit::allows_line_of_client(CAUSE, &format!("{client} connection {code}")) {
        tracing::info!(shard, %client, command = "connection", reply, "mail refused");
    }
}
