//! Where accounting rows go, and what goes there of each record of the log.

use std::io;

use bytes::Bytes;

use crate::layout::{DoneMeta, Kind, UpdateMeta, aligned};

/// Where accounting rows go. Called on a thread of its own after each group is durable;
/// rows passed again after [`Projection::resume`] must be recognised and skipped.
pub trait Projection: Send {
    /// A message was accepted; `content` begins with its header section, or is empty unless
    /// [`Projection::reads_headers`].
    fn message(&mut self, envelope: &[u8], content: &[u8]);
    /// Why no new mail may come in: rows of it would find no room.
    fn refuses_intake(&self) -> Option<String> {
        None
    }
    /// It shows messages: without, none is passed.
    fn takes_messages(&self) -> bool {
        true
    }
    /// It shows headers of messages.
    fn reads_headers(&self) -> bool {
        false
    }
    /// The state with what this projection has begun since and could not sync, for another that
    /// goes on in its place.
    fn handed_on(&self, state: Vec<u8>) -> Vec<u8> {
        state
    }
    /// None of its files is one that this state of a projection before is about.
    fn is_elsewhere(&self, _state: &[u8]) -> bool {
        false
    }
    /// A row of an outcome.
    fn row(&mut self, row: &[u8]);
    /// Writes out what was passed so far.
    ///
    /// # Errors
    /// When it could not be written; everything since the last [`Projection::sync`] is
    /// passed again later, after a [`Projection::resume`].
    fn write(&mut self) -> io::Result<()>;
    /// Makes it durable and answers the state to resume from.
    ///
    /// # Errors
    /// As for [`Projection::write`].
    fn sync(&mut self) -> io::Result<Vec<u8>>;
    /// What follows begins behind this state.
    fn resume(&mut self, state: &[u8]);
    /// What follows is new: everything before was written by another projection, and synced.
    fn begin(&mut self) {}
}

/// What accounting may show.
#[derive(Debug)]
pub(crate) enum Item {
    /// A message was accepted. `headers` is empty unless they are asked for.
    Message { envelope: Bytes, headers: Bytes },
    /// A row of an outcome.
    Row(Vec<u8>),
}

impl Item {
    pub fn bytes(&self) -> usize {
        match self {
            Item::Message { envelope, headers } => envelope.len() + headers.len() + 64,
            Item::Row(row) => row.len() + 32,
        }
    }

    pub fn pass_to(&self, projection: &mut dyn Projection) {
        match self {
            Item::Message { envelope, headers } => projection.message(envelope, headers),
            Item::Row(row) => projection.row(row),
        }
    }
}

/// What a projection wants to be passed beside rows.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wanted {
    /// Messages.
    pub messages: bool,
    /// Their headers.
    pub headers: bool,
}

impl Wanted {
    pub fn by(p: &dyn Projection) -> Wanted {
        Wanted { messages: p.takes_messages(), headers: p.reads_headers() }
    }

    /// What either of the two wants.
    pub fn and(self, other: Wanted) -> Wanted {
        Wanted { messages: self.messages || other.messages, headers: self.headers || other.headers }
    }
}

/// Passes what accounting may show of one record; messages where there is a way to their headers.
pub(crate) fn items_of(kind: Kind, meta: &[u8], headers: Option<&dyn Fn() -> Bytes>, take: &mut dyn FnMut(Item)) {
    match kind {
        Kind::Message => {
            if let Some(headers) = headers {
                take(Item::Message { envelope: Bytes::copy_from_slice(meta), headers: headers() });
            }
        }
        Kind::Update => {
            if let Ok(u) = ipc::frame::unarchive::<UpdateMeta>(0, &aligned(meta)) {
                u.rows.into_iter().for_each(|r| take(Item::Row(r)));
            }
        }
        Kind::Done => {
            if let Ok(d) = ipc::frame::unarchive::<DoneMeta>(0, &aligned(meta)) {
                d.rows.into_iter().for_each(|r| take(Item::Row(r)));
            }
        }
        _ => {}
    }
}
