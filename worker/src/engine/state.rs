//! What the decisions of a shard depend on.

use std::rc::Rc;

use ipc::dice::HashMap;
use ipc::ledger::Ledger;
use ipc::queue_orders::Switches;
use ipc::shard_map::ShardMap;

use super::action::Action;
use super::inherited::Inherited;
use super::line::Line;
use super::ownership::Ownership;
use crate::config::Config;
use crate::schedule::message::HeldContent;
use crate::schedule::scheduler::Scheduler;

/// What the shard's tasks are doing, as far as decisions depend on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tasks {
    /// Connections that are being opened or are to be, without those that take long.
    pub opening: u32,
    /// Mail may be sent: the shard is not stopping, and what comes of attempts can be written down.
    pub may_send: bool,
}

/// Everything that the decisions of one shard depend on. `C` is what messages hold in memory.
#[derive(Debug)]
pub struct Engine<C> {
    /// Queues and paths.
    pub(super) scheduler: Scheduler<C>,
    pub(super) config: Rc<Config>,
    pub(super) ledger: Rc<Ledger>,
    /// Which destinations are this shard's.
    pub(super) ownership: Ownership,
    /// What is known of paths that have no mail here.
    pub(super) inherited: Inherited,
    /// What operators paused and disabled.
    pub(super) switches: Switches,
    /// Paths that wait for their turn to open connections.
    pub(super) line: Line,
    /// Turns of pools' members at destinations that are new.
    pub(super) pool_turns: HashMap<Rc<str>, u32>,
    pub(super) tasks: Tasks,
    pub(super) actions: Vec<Action>,
}

impl<C: HeldContent> Engine<C> {
    /// The engine of shard `number`, without mail.
    pub fn new(number: u8, config: Rc<Config>, ledger: Rc<Ledger>, map: Rc<ShardMap>) -> Self {
        Engine {
            scheduler: Scheduler::default(),
            config,
            ledger,
            ownership: Ownership::new(number, map),
            inherited: Inherited::default(),
            switches: Switches::default(),
            line: Line::default(),
            pool_turns: HashMap::default(),
            tasks: Tasks::default(),
            actions: Vec::new(),
        }
    }

    /// Queues and paths, to look at.
    pub fn scheduler(&self) -> &Scheduler<C> {
        &self.scheduler
    }

    /// What operators paused and disabled, to look at.
    pub fn switches(&self) -> &Switches {
        &self.switches
    }

    /// What is known of paths that have no mail here, to look at.
    pub fn inherited(&self) -> &Inherited {
        &self.inherited
    }

    /// Another map of shards is in force; [`Engine::begins_epoch`] follows where it is of another epoch.
    pub fn set_map(&mut self, map: Rc<ShardMap>) {
        self.ownership.set_map(map);
    }

    /// Queues and paths, for tests to bring about what they are about.
    #[cfg(test)]
    pub fn scheduler_mut(&mut self) -> &mut Scheduler<C> {
        &mut self.scheduler
    }

    /// Tells the engine what the shard's tasks are doing, before it decides something.
    pub fn begins(&mut self, tasks: Tasks) {
        self.tasks = tasks;
    }

    /// What is to be carried out, in exchange for an empty table for what comes next.
    pub fn take_actions(&mut self, empty: Vec<Action>) -> Vec<Action> {
        std::mem::replace(&mut self.actions, empty)
    }

    pub(super) fn act(&mut self, action: Action) {
        self.actions.push(action);
    }
}
