//! The rebuildable key–value index, behind a trait so that the engine can be changed and
//! tests can break it. Losing it costs a replay of the segments, never mail.

/// Something is wrong with the index; the cure is always [`Index::wipe`] and a rebuild.
#[derive(Debug, thiserror::Error)]
#[error("index: {0}")]
pub struct IndexError(pub String);

/// A change: a key and its new value, or its removal.
pub type Change = (Vec<u8>, Option<Vec<u8>>);

/// What [`Index::scan`] calls.
pub type Each<'a> = dyn FnMut(&[u8], &[u8]) -> Result<(), IndexError> + 'a;

/// An ordered key–value store.
pub trait Index: Send {
    /// Messages that a rebuild holds in memory before it writes them here.
    const REBUILD_BATCH: usize;
    /// Makes changes visible; durable only after [`Index::flush`].
    ///
    /// # Errors
    /// [`IndexError`] by the engine.
    fn apply(&mut self, changes: Vec<Change>) -> Result<(), IndexError>;
    /// Makes everything applied durable, also against power loss.
    ///
    /// # Errors
    /// [`IndexError`] by the engine.
    fn flush(&mut self) -> Result<(), IndexError>;
    /// The value of a key.
    ///
    /// # Errors
    /// [`IndexError`] by the engine.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError>;
    /// Calls `each` for every key that begins with `prefix`, in order.
    ///
    /// # Errors
    /// [`IndexError`] by the engine, or from `each`.
    fn scan(&self, prefix: &[u8], each: &mut Each<'_>) -> Result<(), IndexError>;
    /// Sets the whole index aside and begins an empty one.
    ///
    /// # Errors
    /// [`IndexError`] when not even that works.
    fn wipe(&mut self) -> Result<(), IndexError>;
}
