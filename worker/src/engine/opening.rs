//! Which paths open connections, how many, and whose turn it is.

use super::action::{Action, News};
use super::line::{OPENING_MAX, Standing, shares};
use super::now::Now;
use super::state::Engine;
use crate::schedule::ids::{PathId, QueueId};
use crate::schedule::message::HeldContent;
use crate::schedule::path::{ModeChange, Path};
use crate::schedule::spread_path::follow;

/// Queues of one path that are counted for the connections that it needs.
const QUEUES_LOOKED_AT: usize = 256;
/// Paths that have their turn to open connections when one was opened, where some have no use for it any more.
const TURNS_AT_ONCE: usize = 64;
/// Members of a pool that are asked, at most, for one that can take a message.
const TURNS_MAX: usize = 8;

impl<C: HeldContent> Engine<C> {
    /// How many connections more may be asked for. A part of them stays free of those of which nothing good is known.
    fn room(&self, standing: Standing) -> u32 {
        let all = shares(self.config.global.total_max_smtp_out, self.ownership.map().shards.len()).0;
        let most = match standing {
            Standing::Asks => OPENING_MAX,
            Standing::Known => all,
            Standing::New | Standing::Failed => all - (all / 4).max(1),
        };
        most.saturating_sub(self.tasks.opening)
    }

    /// The path that has its turn, when there is room for one.
    fn next_in_line(&mut self) -> Option<PathId> {
        match (self.room(Standing::New), self.room(Standing::Known)) {
            (0, 0) => None,
            (0, _) => self.line.known.pop_front(),
            _ => self.line.pop(),
        }
    }

    /// Mail came into queue `id`: a path of it takes it, or opens a connection for it.
    pub fn pump_queue(&mut self, id: QueueId, now: Now) {
        self.act(Action::LookAtTimers);
        let turns = match self.scheduler.queues.get(id) {
            Some(q) if self.tasks.may_send && !q.ready.is_empty() && q.may_go(now.ms()) => {
                q.members.len().min(TURNS_MAX)
            }
            _ => return,
        };
        for _ in 0..turns {
            let Some(q) = self.scheduler.queues.get_mut(id) else { return };
            let member = if q.members.len() == 1 { 0 } else { q.next_turn() };
            let path = self.path_for(id, member, now);
            if path.is_some_and(|p| self.pump(p, now)) {
                break;
            }
        }
    }

    /// Pumps every path that has pulled from queue `id`.
    pub fn pump_pullers(&mut self, id: QueueId, now: Now) {
        let Some(q) = self.scheduler.queues.get(id) else { return };
        let paths: Vec<PathId> = q.pullers.iter().map(|p| p.path).collect();
        for p in paths {
            self.pump(p, now);
        }
    }

    /// Lets one more member of a pool pull from queue `id`.
    pub fn pump_another_member(&mut self, id: QueueId, now: Now) {
        let Some(q) = self.scheduler.queues.get(id).filter(|q| q.pullers.len() < q.members.len()) else { return };
        let new = (0..q.members.len()).find(|m| !q.pullers.iter().any(|p| p.member == *m));
        if let Some(path) = new.and_then(|m| self.path_for(id, m, now)) {
            self.pump(path, now);
        }
    }

    /// Opens connections of a path and wakes idle ones as its queues' work and its limits
    /// allow; answers whether there is one that serves.
    pub fn pump(&mut self, id: PathId, now: Now) -> bool {
        if !self.tasks.may_send {
            return false;
        }
        self.keep_up(id, now);
        let s = &mut self.scheduler;
        // So many queues have mail for more connections than the path may open at once.
        let some = |p: &Path| p.in_turn().take(QUEUES_LOOKED_AT).collect::<Vec<_>>();
        let Some((held, queues)) = s.paths.get(id).map(|p| (p.held, some(p))) else { return false };
        if held {
            // The destination belongs to another shard, and mail came for it here: it is sent after it.
            self.act(Action::LookForForeign);
            return self.is_released(id, now) && self.pump(id, now);
        }
        let may_pull = queues.iter().filter(|q| s.may_pull(**q, id, now.ms()));
        let backlog: u64 = may_pull.map(|q| s.share_of(*q, id, now.ms())).sum();
        let Some(p) = s.paths.get(id) else { return false };
        let from = p.rules.reserved_priority.min(100) as u8;
        let urgent = match p.rules.reserved_smtp_out {
            0 => 0,
            _ => queues.iter().filter_map(|q| s.queues.get(*q)).map(|q| q.ready.len_from(from) as u64).sum(),
        };
        if backlog == 0 {
            return false;
        }
        if p.idle > 0 && p.may_send(now.ms()) {
            self.actions.push(Action::WakeOne(id));
        }
        let wanted = p.wanted(backlog, urgent, now.ms());
        let n = if wanted > 0 { self.may_open(id, wanted, now) } else { 0 };
        let Some(p) = self.scheduler.paths.get_mut(id) else { return false };
        (0..n).for_each(|_| p.opening(now.ns));
        let serves = p.may_send(now.ms()) && p.connections + p.connecting > 0;
        let at = p.connect_at_ms();
        if at > now.ms() {
            self.scheduler.wake_at(id, at);
        }
        self.tasks.opening += n;
        (0..n).for_each(|_| self.act(Action::Open(id)));
        serves
    }

    /// How many of the connections that a path wants it may open now; it waits in line for the others.
    fn may_open(&mut self, id: PathId, wanted: u32, now: Now) -> u32 {
        let Some(p) = self.scheduler.paths.get(id) else { return 0 };
        let standing = self.line.standing(p, now.ms());
        let n = wanted.min(self.room(standing));
        if n < wanted
            && let Some(p) = self.scheduler.paths.get_mut(id)
            && !std::mem::replace(&mut p.waits_to_open, true)
        {
            self.line.push(id, standing);
        }
        n
    }

    /// A task that opened a connection has finished, or takes long and does not count any more: paths that wait in line have their turn.
    pub fn opened(&mut self, now: Now) {
        // Some paths in line have no mail any more, and leave their turn to the next.
        for _ in 0..TURNS_AT_ONCE {
            let Some(id) = self.next_in_line() else { return };
            if let Some(p) = self.scheduler.paths.get_mut(id) {
                p.waits_to_open = false;
            }
            self.pump(id, now);
        }
    }

    /// Keeps a path of a destination that several shards own in line with the paths of the others, see
    /// [`crate::schedule::spread_path`]. The shard that changed the mode has sent the notices about it.
    pub fn keep_up(&mut self, id: PathId, now: Now) {
        let Some(p) = self.scheduler.paths.get_mut(id).filter(|p| p.spread.is_some()) else { return };
        let before = p.retry_at_ms;
        let change = follow(&self.ledger, p, now.ms());
        let at = p.retry_at_ms;
        let followed = change.map(|t| (t, p.name(), p.queues.clone()));
        if at > before {
            self.scheduler.wake_at(id, at);
        }
        let Some((change, path, queues)) = followed else { return };
        self.note_mode(id, now);
        self.act(Action::Tell(News::ModeFollowed { path, change }));
        if change == ModeChange::Entered {
            queues.iter().for_each(|q| self.reroute(q, now));
        }
    }
}
