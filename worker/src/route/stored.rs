//! Messages as they lie in the spool.

use std::rc::Rc;

use bytes::Bytes;
use ipc::message::ArchivedEnvelope;
use rkyv::util::AlignedVec;

use crate::prepare::content::Content;
use crate::shard::Shard;

/// Envelope and content of a message: from memory before the first attempt, else from disk.
pub async fn load(shard: &Rc<Shard>, slot: u32, key: u64) -> Result<Rc<Content>, spool::SpoolError> {
    let held = shard.scheduler().message(slot, key).and_then(|m| m.content.clone());
    if let Some(c) = held {
        return Ok(c);
    }
    let (envelope, body) = read(shard, key).await?;
    Ok(Rc::new(Content::new(envelope, [body, Bytes::new()])))
}

/// Envelope and content of a message as they are on disk; the envelope has been validated.
///
/// # Errors
/// [`spool::SpoolError::Unreadable`] where they are damaged, others where they cannot be had now.
pub async fn read(shard: &Shard, key: u64) -> Result<(AlignedVec<16>, Bytes), spool::SpoolError> {
    let (bytes, body) = shard.spool.read(key).await?;
    let mut envelope = AlignedVec::<16>::with_capacity(bytes.len());
    envelope.extend_from_slice(&bytes);
    rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&envelope)
        .map_err(|e| spool::SpoolError::Unreadable { key, reason: e.to_string() })?;
    Ok((envelope, body))
}
