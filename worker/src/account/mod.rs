//! Accounting: rows in the shard's log, and the CSV files projected from them.

pub mod file;
pub mod record;
