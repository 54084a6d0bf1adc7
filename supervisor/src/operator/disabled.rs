//! `sluice show disabled`: source addresses that are not used, where, since when and why.

use std::collections::BTreeMap;

use ipc::operator::{DisabledRow, Listed, Listing};
use ipc::queue_orders::QueuePattern;

use super::client::{Target, pages};
use super::output::{json, table};
use crate::Failure;

/// `show disabled`
///
/// # Errors
/// [`Failure`]
pub fn show(target: &Target, of: QueuePattern, as_json: bool) -> Result<(), Failure> {
    let rows: Vec<DisabledRow> =
        pages(target, &Listed::Disabled(of), |l| if let Listing::Disabled(r) = l { Some(r) } else { None })?;
    let rows = joined(rows);
    if as_json {
        return json(&rows);
    }
    let cells = rows.iter().map(|r| {
        let until = if r.until.is_empty() { "enabled" } else { &r.until };
        let queue = if r.is_order { format!("{} (all that match)", r.queue) } else { r.queue.clone() };
        vec![r.source.clone(), queue, r.since.clone(), until.to_owned(), r.why.clone()]
    });
    table(&["source", "queue", "since", "until", "why"], cells.collect())
}

/// Every shard knows the orders: each is one row.
fn joined(rows: Vec<DisabledRow>) -> Vec<DisabledRow> {
    let mut all: BTreeMap<(String, String, Option<u8>), DisabledRow> = BTreeMap::new();
    for row in rows {
        let key = (row.source.clone(), row.queue.clone(), (!row.is_order).then_some(row.shard));
        let known = all.get(&key).is_some_and(|r| !r.since.is_empty());
        if !known {
            all.insert(key, row);
        }
    }
    all.into_values().collect()
}
