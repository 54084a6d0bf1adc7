//! What a port gives in its time.

use std::pin::Pin;

/// What a port answers when it is done.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;
