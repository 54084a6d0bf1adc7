//! `sluice show orders`: what operators ordered and did not take back, also where it matches nothing yet.

use std::collections::BTreeMap;

use ipc::operator::{Listed, Listing, OrderRow};
use ipc::queue_orders::QueuePattern;

use super::client::{Target, pages};
use super::output::{json, table};
use crate::Failure;

/// `show orders`
///
/// # Errors
/// [`Failure`]
pub fn show(target: &Target, of: QueuePattern, as_json: bool) -> Result<(), Failure> {
    let rows = pages(target, &Listed::Orders(of), |l| if let Listing::Orders(r) = l { Some(r) } else { None })?;
    let rows = joined(rows);
    if as_json {
        return json(&rows);
    }
    let cells = rows.iter().map(|r| {
        let words = [r.order.as_str(), &r.source].into_iter().filter(|w| !w.is_empty()).collect::<Vec<_>>();
        let known = |text: &String| if text.is_empty() { "-".to_owned() } else { text.clone() };
        let undo = format!("sluice {}", r.taken_back_by);
        vec![words.join(" "), r.of.clone(), known(&r.since), known(&r.until), known(&r.by), undo]
    });
    table(&["order", "of", "since", "until", "by", "taken back by"], cells.collect())
}

/// Every shard knows the orders, and a destination that is spread has a path in several: each is one row, of the shard that
/// knows since when.
fn joined(rows: Vec<OrderRow>) -> Vec<OrderRow> {
    let mut all: BTreeMap<(String, String, String), OrderRow> = BTreeMap::new();
    for row in rows {
        let key = (row.of.clone(), row.order.clone(), row.source.clone());
        if all.get(&key).is_none_or(|r| r.since.is_empty()) {
            all.insert(key, row);
        }
    }
    all.into_values().collect()
}
