//! Accounting files as the spool sees them, and what of each record of the log goes there.

use std::io;

use bytes::Bytes;

use crate::layout::{DoneMeta, Kind, UpdateMeta, aligned};

/// Accounting files, as a projection of the log. Its methods are called on the thread of the accounting writer, after each
/// group is durable. After [`Projection::resume`] rows are passed again; those that the files have must be recognised and skipped.
pub trait Projection: Send {
    /// A message was accepted; `content` begins with its header section, or is empty unless
    /// [`Projection::reads_headers`].
    fn message(&mut self, envelope: &[u8], content: &[u8]);
    /// Why no new mail may come in, if so: its rows would find no room in the files.
    fn refuses_intake(&self) -> Option<String> {
        None
    }
    /// Whether [`Projection::message`] is to be called.
    fn takes_messages(&self) -> bool {
        true
    }
    /// Whether messages are to be passed with their header sections.
    fn reads_headers(&self) -> bool {
        false
    }
    /// The state with what this projection has begun since and could not sync, for another that
    /// goes on in its place.
    fn handed_on(&self, state: Vec<u8>) -> Vec<u8> {
        state
    }
    /// Whether none of its files is among those that `state`, of another projection, is about.
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
    /// Prepares for rows that begin behind this state, as [`Projection::sync`] answered it.
    fn resume(&mut self, state: &[u8]);
    /// Prepares for rows that no file has: everything before was written and synced by another projection.
    fn begin(&mut self) {}
}

/// What goes into accounting files.
#[derive(Debug)]
pub(crate) enum Item {
    /// A message was accepted. `headers` is empty unless they are asked for.
    Message { envelope: Bytes, headers: Bytes },
    /// A row of an outcome.
    Row(Vec<u8>),
}

impl Item {
    /// Bytes that it takes in memory, about.
    pub fn bytes(&self) -> usize {
        match self {
            Item::Message { envelope, headers } => envelope.len() + headers.len() + 64,
            Item::Row(row) => row.len() + 32,
        }
    }

    /// Passes it to accounting files.
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
    /// What this projection wants.
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
