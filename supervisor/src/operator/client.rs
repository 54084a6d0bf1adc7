//! The client's end of the operator's socket: the server to ask, and conversations with it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::BytesMut;
use ipc::frame::{Frame, Header, archive, unarchive};
use ipc::limits::ARCHIVE_BYTES_MAX;
use ipc::operator::{ANSWER, Answer, Listed, Listing, Place, REQUEST, Request};

use super::output::print;
use crate::Failure;

/// How long a server that has stopped may take to let its process end.
const ENDED_WAIT: Duration = Duration::from_secs(5);

/// The server to ask: its control socket, if one was named.
#[derive(Debug)]
pub struct Target(pub Option<PathBuf>);

impl Target {
    fn path(&self) -> PathBuf {
        self.0.clone().unwrap_or_else(|| {
            let places =
                ["./sluice-data/run/control.sock", "/run/sluice/control.sock", "/var/lib/sluice/run/control.sock"];
            places.iter().map(PathBuf::from).find(|p| p.exists()).unwrap_or_else(|| places[0].into())
        })
    }
}

/// A connection to a server that answers one request after the other.
#[derive(Debug)]
pub struct Conversation {
    io: UnixStream,
    path: PathBuf,
    buf: BytesMut,
}

impl Conversation {
    /// Connects to the server.
    ///
    /// # Errors
    /// [`Failure`]
    pub fn with(target: &Target) -> Result<Conversation, Failure> {
        Self::at(&target.path())
    }

    pub(super) fn at(path: &Path) -> Result<Conversation, Failure> {
        let io = UnixStream::connect(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::PermissionDenied => Failure::Failed(format!(
                "you may not speak to the server at {} ({e}); run this as root or as the user that it runs as",
                path.display()
            )),
            _ => Failure::NoServer(format!(
                "no server answers at {} ({e}); start one with `sluice run`, or name its socket with --control",
                path.display()
            )),
        })?;
        Ok(Conversation { io, path: path.to_owned(), buf: BytesMut::new() })
    }

    fn lost(&self, e: &std::io::Error) -> Failure {
        Failure::Failed(format!("the server at {} broke off: {e}", self.path.display()))
    }

    pub(super) fn send(&mut self, kind: u8, request: &[u8], raw: &[u8]) -> Result<(), Failure> {
        let header = Header::new(kind, request.len(), raw.len()).encode();
        let sent = [&header[..], request, raw].into_iter().try_for_each(|part| self.io.write_all(part));
        sent.map_err(|e| self.lost(&e))
    }

    pub(super) fn frame(&mut self) -> Result<Frame, Failure> {
        let mut chunk = vec![0u8; 64 << 10];
        loop {
            if let Some(f) = Frame::take(&mut self.buf).map_err(|e| Failure::Failed(e.to_string()))? {
                return Ok(f);
            }
            match self.io.read(&mut chunk).map_err(|e| self.lost(&e))? {
                0 => {
                    let path = self.path.display();
                    return Err(Failure::Failed(format!("the server at {path} closed without an answer")));
                }
                n => self.buf.extend_from_slice(&chunk[..n]),
            }
        }
    }

    /// Asks, and answers what the server did not refuse.
    ///
    /// # Errors
    /// [`Failure`]
    pub fn ask(&mut self, request: &Request) -> Result<Answer, Failure> {
        let request = archive(request);
        if request.len() > ARCHIVE_BYTES_MAX {
            let why = "larger than the server takes from an operator";
            return Err(Failure::Failed(format!("this takes {} bytes, {why} ({ARCHIVE_BYTES_MAX})", request.len())));
        }
        self.send(REQUEST, &request, &[])?;
        let f = self.frame()?;
        match unarchive::<Answer>(ANSWER, &f.archive).map_err(|e| Failure::Failed(e.to_string()))? {
            Answer::Failed(t) => Err(Failure::Failed(t)),
            Answer::Wrong(t) => Err(Failure::Wrong(t)),
            a => Ok(a),
        }
    }
}

/// `stop`: waits until the server's process has ended, as far as it says so by its socket.
///
/// # Errors
/// [`Failure`]
pub fn stop(target: &Target, wait: bool) -> Result<(), Failure> {
    let mut server = Conversation::with(target)?;
    let answer = server.ask(&Request::Stop { wait });
    if wait {
        // The kernel closes the socket with the process; what it says before does not matter any more.
        let _ = server.io.set_read_timeout(Some(ENDED_WAIT)).and_then(|()| server.io.read(&mut [0]));
    }
    match answer? {
        Answer::Done(t) => print(format!("{t}\n").as_bytes()),
        _ => Err(unexpected()),
    }
}

/// The server's answer to one request.
///
/// # Errors
/// [`Failure`]
pub fn ask(target: &Target, request: &Request) -> Result<Answer, Failure> {
    Conversation::with(target)?.ask(request)
}

/// The server's answer to a request for JSON, read.
pub(super) fn read<T: serde::de::DeserializeOwned>(target: &Target, request: &Request) -> Result<T, Failure> {
    let Answer::Status(text) = ask(target, request)? else { return Err(unexpected()) };
    serde_json::from_str(&text).map_err(|e| Failure::Failed(e.to_string()))
}

/// A request whose answer is a sentence.
///
/// # Errors
/// [`Failure`]
pub fn act(target: &Target, request: Request) -> Result<(), Failure> {
    match ask(target, &request)? {
        Answer::Done(t) => print(format!("{t}\n").as_bytes()),
        _ => Err(unexpected()),
    }
}

/// Asks for all pages of a listing. `take` picks the rows of the listing out of each answer.
pub(super) fn pages<R>(
    target: &Target,
    of: &Listed,
    take: impl Fn(Listing) -> Option<Vec<R>>,
) -> Result<Vec<R>, Failure> {
    let mut server = Conversation::with(target)?;
    let (mut all, mut at) = (Vec::new(), Place::default());
    loop {
        let Answer::Page { rows, next } = server.ask(&Request::Page { of: of.clone(), at })? else {
            return Err(unexpected());
        };
        all.extend(take(rows).ok_or_else(unexpected)?);
        match next {
            Some(n) => at = n,
            None => return Ok(all),
        }
    }
}

pub(super) fn unexpected() -> Failure {
    Failure::Failed("the server gave an answer of another kind; is it another version?".into())
}

/// Unix milliseconds when so many have passed from now, as orders name the end of a time.
pub fn until(ms: u64) -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64);
    now.saturating_add(i64::try_from(ms).unwrap_or(i64::MAX))
}
