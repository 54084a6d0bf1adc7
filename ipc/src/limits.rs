//! Every bound on what one process accepts from another, with its unit and its relation
//! to the others. Bounds that operators set are directives and live in [`crate::rules`].

/// Version of every frame and archive layout on control, mesh and operator channels.
/// Peers with another version are refused in the first frame.
pub const PROTOCOL_VERSION: u8 = 16;

/// Largest archive in one frame, in bytes. The largest legitimate ones are the envelope of
/// a message with [`RECIPIENTS_PER_MESSAGE_MAX`] recipients and a page of [`PAGE_BYTES`].
pub const ARCHIVE_BYTES_MAX: usize = 64 << 20;

/// Largest message content in one frame, in bytes; `max-message-size` cannot exceed it.
pub const CONTENT_BYTES_MAX: usize = 1 << 30;

/// Most recipients of one message, whatever `max-rcpt-per-message` says: recipient indexes
/// are 16 bits wide in the queues.
pub const RECIPIENTS_PER_MESSAGE_MAX: usize = 60_000;

/// Longest address, in bytes: with a domain of 253 its local part has twelve times what RFC 5321 wants taken.
pub const ADDRESS_BYTES_MAX: usize = 1000;

/// Most shards of one node. Shard numbers are one byte in the ledger.
pub const SHARDS_MAX: usize = 255;

/// Most descriptors one control frame carries (SCM_RIGHTS allows 253 in one message).
pub const DESCRIPTORS_PER_FRAME_MAX: usize = 200;

/// Bytes a mesh connection may have waiting to be written before handoffs are kept by the
/// accepting shard instead.
pub const MESH_BACKLOG_BYTES_MAX: usize = 16 << 20;

/// Handoffs of one origin that may wait for an acknowledgement at one owner.
pub const HANDOFFS_IN_FLIGHT_MAX: usize = 4096;

/// Connections the ledger can count in each direction.
pub const LEDGER_SLOTS: usize = 65_536;

/// Cells of the ledger for connections under limits that have a name.
pub const LEDGER_CELLS: usize = 131_072;

/// Rates that the ledger counts over all shards.
pub const LEDGER_PACES: usize = 65_536;

/// Addresses and users whose failures to authenticate the ledger counts at once.
pub const LEDGER_FAILURES: usize = 65_536;

/// Paths that may ask for a place at once.
pub const LEDGER_REQUESTS: usize = 256;

/// Bytes of rows behind which a page of a listing ends (`show queues`, `show paths`); the last row
/// may go beyond them. Making a page takes a shard some milliseconds.
pub const PAGE_BYTES: usize = 1 << 20;

/// Bytes of an answer from DNS by UDP that arrive unfragmented (RFC 6891 §6.2.5, flag day 2020).
pub const EDNS_UDP_BYTES: u16 = 1232;

/// Programs of a shard that are given mail at once (`type pipe`); others wait for their turn.
pub const PROGRAMS_PER_SHARD_MAX: usize = 256;

/// Rows of a page of the suppression lists, each of a few hundred bytes.
pub const SUPPRESSION_ROWS_MAX: usize = 20_000;

const _: () = assert!(RECIPIENTS_PER_MESSAGE_MAX < u16::MAX as usize);
const _: () = assert!(SHARDS_MAX <= u8::MAX as usize);
const _: () = assert!(CONTENT_BYTES_MAX < u32::MAX as usize);
const _: () = assert!(PAGE_BYTES < ARCHIVE_BYTES_MAX / 4);
const _: () = assert!(ARCHIVE_BYTES_MAX < CONTENT_BYTES_MAX);
const _: () = assert!(MESH_BACKLOG_BYTES_MAX < CONTENT_BYTES_MAX);
