//! Accounting: rows in the shard's log, and the files projected from them.

pub mod columns;
pub mod field;
pub mod file;
pub mod file_name;
pub mod privacy;
pub mod record;
