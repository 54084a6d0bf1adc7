//! The state of queues and paths in a cell of a table: mode, and what operators or receivers did to it.

use ipc::operator::QueueRow;

/// `normal`, or `backoff (by hand), paused, 2 sources disabled`.
pub fn cell(mode: &str, forced: bool, paused: bool, disabled_sources: &[String]) -> String {
    let mut text = if forced { format!("{mode} (by hand)") } else { mode.to_owned() };
    if paused {
        text.push_str(", paused");
    }
    match disabled_sources {
        [] => {}
        [one] => text.push_str(&format!(", {one} disabled")),
        all => text.push_str(&format!(", {} sources disabled", all.len())),
    }
    text
}

/// The same of a queue: of a pool's the modes of its members, where they differ.
pub fn of_queue(r: &QueueRow) -> String {
    let in_backoff = r.members.iter().filter(|m| m.mode == "backoff").count();
    let of_members = (in_backoff > 0 && in_backoff < r.members.len()).then(|| {
        let names = r.members.iter().filter(|m| m.mode == "backoff").map(|m| m.vmta.as_str());
        format!("{} of {} in backoff: {}", in_backoff, r.members.len(), names.take(4).collect::<Vec<_>>().join(" "))
    });
    cell(of_members.as_deref().unwrap_or(&r.mode), r.forced, r.paused, &r.disabled_sources)
}
