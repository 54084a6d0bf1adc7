//! What the engine decided, as lines of the log. Where thousands of paths change at once the log keeps to some of them.

use crate::engine::News;
use crate::log_limit::allows_line;

/// Writes a line.
pub(super) fn tell(shard: u8, news: News) {
    match news {
        News::ModeChanged { path, mode, why } if allows_line("path changes its mode", &path) => {
            tracing::warn!(shard, path, mode, why, "path changes its mode");
        }
        News::ModeFollowed { path, change } => {
            tracing::info!(shard, path, ?change, "mode as on the other shards of the destination");
        }
        News::Rerouted { from, to, recipients } if allows_line("mail rerouted", &to) => {
            tracing::info!(shard, from, to, recipients, "mail rerouted");
        }
        News::VirtualMtaChanged { path, held } => {
            tracing::warn!(shard, path, held, "virtual MTA of a path went or came back");
        }
        News::SourcesDisabled { path } if allows_line("All SMTP sources are disabled", &path) => {
            tracing::warn!(shard, path, "All SMTP sources for queue {path} are now disabled.");
        }
        News::SettledTwice { key, recipients } => {
            tracing::error!(
                shard,
                key,
                recipients,
                "recipients of a message ended that had ended before: an error of this program"
            );
        }
        News::ModeChanged { .. } | News::Rerouted { .. } | News::SourcesDisabled { .. } => {}
    }
}
