//! `inject`: submits a message to a worker, by way of the supervisor's control socket.

use std::io::Read;
use std::path::Path;

use ipc::frame::{archive, unarchive};
use ipc::mesh;
use ipc::operator::{Answer, Request};

use super::client::{Conversation, Target, ask, unexpected};
use super::output::print;
use crate::Failure;

/// `inject`
///
/// # Errors
/// [`Failure`]
pub fn inject(
    target: &Target,
    sender: String,
    recipients: Vec<String>,
    vmta: String,
    file: &Path,
) -> Result<(), Failure> {
    let Answer::Socket(socket) = ask(target, &Request::InjectSocket)? else { return Err(unexpected()) };
    let mut message = Vec::new();
    let read = if file == Path::new("-") {
        std::io::stdin().read_to_end(&mut message)
    } else {
        std::fs::File::open(file).and_then(|mut f| f.read_to_end(&mut message))
    };
    read.map_err(|e| Failure::Failed(format!("cannot read {}: {e}", file.display())))?;
    let message = with_crlf(&message);
    let request = mesh::Inject { sender, recipients, vmta };
    let mut worker = Conversation::at(Path::new(&socket))?;
    worker.send(mesh::HELLO, &archive(&mesh::Hello { from: mesh::Speaker::Client, epoch: 0 }), &[])?;
    worker.send(mesh::INJECT, &archive(&request), &message)?;
    let f = worker.frame()?;
    match unarchive::<mesh::Injected>(mesh::INJECTED, &f.archive).map_err(|e| Failure::Failed(e.to_string()))? {
        mesh::Injected::Queued(id) => print(format!("{id}\n").as_bytes()),
        mesh::Injected::Refused(why) => Err(Failure::Failed(why)),
    }
}

/// Text files end lines in LF; messages in CR LF.
fn with_crlf(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + text.len() / 40);
    for line in text.split_inclusive(|b| *b == b'\n') {
        let bare = line.strip_suffix(b"\n").map(|l| l.strip_suffix(b"\r").unwrap_or(l)).unwrap_or(line);
        out.extend_from_slice(bare);
        out.extend_from_slice(b"\r\n");
    }
    out
}
