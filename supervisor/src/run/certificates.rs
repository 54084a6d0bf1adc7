//! The log's word on certificates that end.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::certificates;
use crate::state::Supervisor;

/// Time between two looks; the first is at the start.
const LOOK_EVERY: Duration = Duration::from_secs(600);
/// How often the log says the same again.
const TOLD_EVERY: Duration = Duration::from_secs(86_400);

impl Supervisor {
    /// Tells of certificates of listeners that end soon, each day as long as they are in force.
    pub(super) async fn watch_certificates(self: Rc<Self>) {
        let mut told: HashMap<(String, Option<i64>), Instant> = HashMap::new();
        while !self.stopping.get() {
            let all = certificates::shown(&self.compiled.borrow(), &self.acme.borrow());
            told.retain(|(path, ends), _| all.iter().any(|c| c.path == *path && c.ends == *ends));
            // What is not there yet is told of when it cannot be obtained.
            for c in all.iter().filter(|c| c.ends.is_some()) {
                let Some(warning) = &c.warning else { continue };
                let is_due = |at: &Instant| at.elapsed() >= TOLD_EVERY;
                let key = (c.path.clone(), c.ends);
                if told.get(&key).is_none_or(is_due) {
                    tracing::warn!("the certificate of a listener: {warning}");
                    told.insert(key, Instant::now());
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
