//! What was put in force is kept, see [`crate::configurations`].

use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::reload::beside;
use crate::config::diff;
use crate::configurations::{self, By, Text};
use crate::operator::configurations::Log;
use crate::state::Supervisor;

impl Supervisor {
    /// Keeps a configuration that is in force now. Where that fails the log says so: what is in force stays.
    pub(super) async fn keep_configuration(self: Rc<Self>, text: Text, by: By, changes: Option<usize>) {
        let folder = self.configurations.clone();
        let _one_at_a_time = self.keeping.lock().await;
        let kept = beside(move || {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64);
            let kept = configurations::keep(&folder, &text, by, changes, now);
            kept.map_err(|e| format!("{}: {e}", folder.display()))
        });
        let number = kept.await.unwrap_or_else(|error| {
            tracing::warn!(error, "the configuration in force is not kept for config log and config rollback");
            None
        });
        self.kept_in_force.set(number);
    }

    /// `config log` as JSON.
    ///
    /// # Errors
    /// A sentence when the folder cannot be read.
    pub async fn configurations(&self) -> Result<String, String> {
        let folder = self.configurations.clone();
        let _one_at_a_time = self.keeping.lock().await;
        let (file, in_force) = (self.file.clone(), self.kept_in_force.get());
        beside(move || {
            let configurations = configurations::list(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
            serde_json::to_string(&Log { folder, file, in_force, configurations }).map_err(|e| e.to_string())
        })
        .await
    }

    /// What a configuration changed, a line each or as JSON.
    ///
    /// # Errors
    /// A sentence when it or the one before is not kept.
    pub async fn configuration_changes(&self, number: u64, json: bool) -> Result<String, String> {
        let folder = self.configurations.clone();
        let _one_at_a_time = self.reading.lock().await;
        beside(move || {
            let all = configurations::changes(&folder, number)?;
            match json {
                true => serde_json::to_string_pretty(&all).map_err(|e| e.to_string()),
                false => Ok(diff::as_text(&all)),
            }
        })
        .await
    }
}
