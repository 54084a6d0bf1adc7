//! What crosses process borders in Sluice.
//!
//! | channel  | between                | carries                                           | module |
//! |----------|------------------------|---------------------------------------------------|--------|
//! | control  | worker → supervisor    | hello, descriptors, heartbeat, statistics, reports | [`control`] |
//! | control  | supervisor → worker    | snapshot, listeners, shard map, commands           | [`control`] |
//! | mesh     | worker ⇄ worker        | handoff of accepted mail, acknowledgement, release  | [`mesh`] |
//! | operator | client ⇄ supervisor    | commands of the operator and their answers          | [`operator`] |
//!
//! Frames are rkyv archives ([`frame`]), validated before they are read. The compiled
//! configuration ([`snapshot`]) and the cross-shard limits ([`ledger`]) are shared memory. Values that outlive
//! the build that wrote them carry a version ([`stored`]).
//!
//! Variants of archived enums and directives are numbers in what other processes and older builds wrote: they are append only, which
//! `tests/append_only.rs` holds them to.

pub mod backoff;
pub mod control;
pub mod descriptors;
pub mod dice;
pub mod frame;
pub mod layers;
pub mod ledger;
pub mod limits;
pub mod memory;
pub mod mesh;
pub mod message;
pub mod network;
pub mod operator;
pub mod pace;
pub mod pattern_lists;
pub mod planted;
pub mod queue_orders;
pub mod reply_rules;
pub mod rollup;
pub mod rules;
pub mod shard_map;
pub mod snapshot;
pub mod stored;
pub mod stream;
pub mod text;
pub mod windows;
