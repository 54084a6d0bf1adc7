//! The rebuildable key–value index, behind a trait so that the engine can be changed and
//! tests can break it. Losing it costs a replay of the segments, never mail.

/// Something is wrong with the index; the cure is always [`Index::set_aside`] and a rebuild.
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
    /// Takes the whole index out of the way for good: whatever happens, nothing of it is found
    /// at the next start. Every use fails until [`Index::begin`].
    ///
    /// # Errors
    /// [`IndexError`] when it is still where it was.
    fn set_aside(&mut self) -> Result<(), IndexError>;
    /// Begins an empty index.
    ///
    /// # Errors
    /// [`IndexError`] when there is no room for one, or the disk fails.
    fn begin(&mut self) -> Result<(), IndexError>;
}
