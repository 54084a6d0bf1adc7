//! What the engine decides, tried without a shard: no socket, no spool, no clock.

use std::rc::Rc;
use std::time::Duration;

use ipc::ledger::Ledger;
use ipc::mesh::{PathState, Windows};
use ipc::network::Network;
use ipc::queue_orders::{QueueAction, QueueOrder, QueuePattern};
use ipc::rules::{DomainRules, Rate};
use ipc::shard_map::ShardMap;
use ipc::snapshot::{MappedSnapshot, Snapshot, VirtualMta};

use super::{Action, Engine, News, Now, Tasks};
use crate::config::Config;
use crate::schedule::path::ModeChange;
use crate::schedule::{Entry, Message, QueueId};

const NOW: Now = Now { ns: 1_800_000_000_000_000_000 };

/// One with the virtual MTAs `{default}` and `other`, in a map of so many shards.
fn engine(total_max_smtp_out: u64, shards: u8) -> Engine<()> {
    let mut snapshot = Snapshot::default();
    for (n, name) in (0..).zip(["{default}", "other"]) {
        snapshot.vmtas.push(VirtualMta { name: name.into(), ..Default::default() });
        snapshot.vmta_by_name.insert(name.into(), n);
    }
    snapshot.global.total_max_smtp_out = total_max_smtp_out;
    let config = Config::of(MappedSnapshot::map(&snapshot.seal().unwrap()).unwrap()).unwrap();
    let ledger = Rc::new(Ledger::create().unwrap().0);
    let mut e = Engine::new(0, Rc::new(config), ledger, Rc::new(ShardMap::first(shards, Vec::new())));
    e.begins(Tasks { opening: 0, may_send: true });
    e
}

/// Puts `n` messages into the queue of a destination.
fn queued(e: &mut Engine<()>, destination: &str, via: &str, n: u64) -> QueueId {
    let id = e.queue_for(destination, via, NOW);
    for key in 0..n {
        let m = Message {
            key,
            received_ms: 0,
            body_len: 9,
            left: 1,
            notify_delay: false,
            alone: false,
            windows_end_s: 0,
            job: 0,
            content: None,
        };
        let slot = e.scheduler.add("", m);
        e.scheduler.enqueue(id, Entry { slot, start: 0, end: 1, priority: 50, attempts: 0 }, 0, NOW.ms());
    }
    id
}

fn acts(e: &mut Engine<()>) -> Vec<Action> {
    e.take_actions(Vec::new())
}

fn opens(e: &mut Engine<()>) -> usize {
    acts(e).iter().filter(|a| matches!(a, Action::Open(_))).count()
}

/// A destination that the first of `shards` owns, or another does.
fn destination(shards: u8, owned: bool) -> String {
    let map = ShardMap::first(shards, Vec::new());
    let mut names = (0..).map(|n| format!("d{n}.test"));
    names.find(|d| map.is_owner(d, 0) == owned).unwrap()
}

#[test]
fn whoever_finds_no_room_has_a_turn_when_there_is_some() {
    // A shard's share of four connections, of which one stays free of those that nothing good is known of.
    let mut e = engine(32, 1);
    for n in 0..5 {
        let id = queued(&mut e, &format!("d{n}.test"), "", 1);
        e.pump_queue(id, NOW);
    }
    assert_eq!(opens(&mut e), 3);
    assert!(e.scheduler.paths.iter().filter(|(_, p)| p.waits_to_open).count() == 2);
    e.begins(Tasks { opening: 3, may_send: true });
    e.opened(NOW);
    assert_eq!(opens(&mut e), 0, "none is free yet");
    e.begins(Tasks { opening: 2, may_send: true });
    e.opened(NOW);
    assert_eq!(opens(&mut e), 1);
    e.begins(Tasks { opening: 0, may_send: false });
    e.opened(NOW);
    assert_eq!(opens(&mut e), 0, "nothing is opened by a shard that stops");
}

#[test]
fn backoff_sends_mail_on_tells_of_it_and_outlives_the_process() {
    let mut e = engine(100, 1);
    let id = queued(&mut e, "d.test", "", 3);
    let path = e.path_for(id, 0, NOW).unwrap();
    let rules = DomainRules {
        backoff_reroute_to_virtual_mta: "other".into(),
        backoff_notify: vec!["ops@mta.test".into()],
        ..Default::default()
    };
    e.scheduler.queues[id].rules = Rc::new(rules.clone());
    e.scheduler.paths[path].rules = Rc::new(rules);
    assert_eq!(e.scheduler.paths[path].enter_backoff(NOW.ms()), Some(ModeChange::Entered));
    e.mode_changed(path, ModeChange::Entered, "421 slow down", NOW);
    let acts = acts(&mut e);
    let target = e.queue_for("d.test", "", NOW);
    assert_ne!(target, id);
    assert_eq!((e.scheduler.queues[id].recipients, e.scheduler.queues[target].recipients), (0, 3));
    let moved = News::Rerouted { from: "{default}".into(), to: e.scheduler.queues[target].name(), recipients: 3 };
    assert!(acts.contains(&Action::Tell(moved)), "{acts:?}");
    assert!(acts.iter().any(|a| matches!(a, Action::Open(p) if *p != path)), "it leaves by the other one: {acts:?}");
    let subject = "d.test/{default}: backoff mode";
    assert!(acts.iter().any(|a| matches!(a, Action::Notify { subject: s, .. } if s == subject)), "{acts:?}");
    let kept = acts.iter().find_map(|a| match a {
        Action::Keep(name, value) if name == "path/d.test/{default}" => Some(value.clone()),
        _ => None,
    });
    // The next process sends mail on before it has a path.
    let mut next = engine(100, 1);
    next.inherit(ipc::stored::read::<PathState>(&kept.unwrap()).unwrap(), true, NOW);
    let id = next.queue_for("d.test", "", NOW);
    next.path_for(id, 0, NOW).unwrap();
    assert!(next.scheduler.paths.iter().all(|(_, p)| p.mode == ipc::backoff::Mode::Backoff && p.noted));
}

#[test]
fn what_sources_may_have_sent_before_a_kill_outlasts_the_mail_and_the_next_process() {
    let limit = (Network::of_one_host([127, 0, 0, 1].into()), Rate { count: 10, per: Duration::from_secs(600) });
    let rules = Rc::new(DomainRules { source_ip_max_msg_rate: [limit].into_iter().collect(), ..Default::default() });
    let later = |s: i64| Now { ns: NOW.ns + s * 1_000_000_000 };
    let path_of = |e: &mut Engine<()>, now: Now| {
        let id = e.queue_for("d.test", "", now);
        e.scheduler.queues[id].rules = Rc::clone(&rules);
        let path = e.path_for(id, 0, now).unwrap();
        e.scheduler.paths[path].rules = Rc::clone(&rules);
        (id, path)
    };
    let mut e = engine(100, 1);
    let (id, path) = path_of(&mut e, NOW);
    let killed = PathState {
        destination: "d.test".into(),
        vmta: "{default}".into(),
        windows: Windows::InUse,
        ..Default::default()
    };
    e.inherit(killed, true, NOW);
    e.scheduler.forget_queue(id);
    assert!(!e.scheduler.paths[path].is_idle(later(30).ms()) && e.scheduler.paths[path].is_idle(later(100).ms()));
    e.keep_paths(later(30));
    let kept = acts(&mut e).into_iter().find_map(|a| if let Action::Keep(_, v) = a { Some(v) } else { None });
    let state: PathState = ipc::stored::read(&kept.unwrap()).unwrap();
    let mut next = engine(100, 1);
    let (_, path) = path_of(&mut next, later(31));
    next.inherit(state, true, later(31));
    assert!(next.scheduler.paths[path].source_ready_ms([127, 0, 0, 1].into()) > later(31).ms());
}

#[test]
fn what_another_shard_owns_is_held_and_what_moved_here_waits_for_its_release() {
    let mut e = engine(100, 2);
    let foreign = queued(&mut e, &destination(2, false), "", 1);
    e.pump_queue(foreign, NOW);
    let acts_of_foreign = acts(&mut e);
    assert!(acts_of_foreign.contains(&Action::LookForForeign));
    assert!(!acts_of_foreign.iter().any(|a| matches!(a, Action::Open(_))));
    // The other shard leaves: what it had is this one's when it has closed its connections.
    let map = ShardMap::first(2, Vec::new()).next(1, Vec::new());
    e.ownership.set_map(Rc::new(map));
    assert_eq!(e.begins_epoch(NOW), [1]);
    let name = destination(2, false);
    e.released(1, vec![name.clone()], NOW);
    assert_eq!((opens(&mut e), e.is_settled()), (0, false));
    let state = PathState {
        destination: name,
        vmta: "{default}".into(),
        windows: Windows::Until([0; 4]),
        retry_at_unix_ms: NOW.ms() + 5_000,
        ..Default::default()
    };
    e.inherit(state, false, NOW);
    e.released(1, Vec::new(), NOW);
    assert_eq!((opens(&mut e), e.is_settled()), (0, true), "it waits as the owner before would have");
    let later = Now { ns: NOW.ns + 6_000_000_000 };
    e.pump_queue(foreign, later);
    assert_eq!(opens(&mut e), 1);
}

#[test]
fn what_an_owner_before_the_last_one_has_connections_to_is_held_too() {
    // A supervisor that is configured for one shard finds a map in force that has given everything to shard 3, and does not know what the
    // owners before that one have left.
    let mut e = engine(100, 1);
    let alone = ShardMap { shards: vec![3], previous: vec![0, 1, 2, 3], epoch: 2, ..ShardMap::default() };
    let map = alone.next_unsettled(1, Vec::new());
    assert_eq!((&map.previous, &map.unreleased), (&vec![3], &vec![0, 1, 2, 3]));
    e.ownership.set_map(Rc::new(map));
    assert_eq!(e.begins_epoch(NOW), [1, 2, 3]);
    let id = queued(&mut e, "d.test", "", 1);
    [2, 3].into_iter().for_each(|s| e.released(s, Vec::new(), NOW));
    e.pump_queue(id, NOW);
    assert_eq!(opens(&mut e), 0, "shard 1 has not answered");
    e.released(1, vec!["d.test".into()], NOW);
    e.pump_queue(id, NOW);
    assert_eq!(opens(&mut e), 0, "it is busy");
    e.released(1, Vec::new(), NOW);
    assert_eq!((opens(&mut e), e.is_settled()), (1, true));
}

#[test]
fn what_was_released_before_waits_for_no_shard_that_does_not_answer() {
    // Shard 2 has left, and shard 1 hangs; whether it has released what it had is not known to the supervisor, but to this shard.
    let mut e = engine(100, 3);
    let second = ShardMap::first(3, Vec::new()).next(2, Vec::new());
    let third = second.next_unsettled(2, Vec::new());
    e.ownership.set_map(Rc::new(second));
    assert_eq!(e.begins_epoch(NOW), [1, 2]);
    [1, 2].into_iter().for_each(|s| e.released(s, Vec::new(), NOW));
    let id = queued(&mut e, &destination(2, true), "", 1);
    e.ownership.set_map(Rc::new(third.clone()));
    assert_eq!(e.begins_epoch(NOW), [1, 2]);
    e.pump_queue(id, NOW);
    assert_eq!(opens(&mut e), 1);
    // Another process of it, which has heard nothing, waits.
    let mut again = engine(100, 3);
    again.ownership.set_map(Rc::new(ShardMap { epoch: 7, ..third }));
    again.begins_epoch(NOW);
    let id = queued(&mut again, &destination(2, true), "", 1);
    again.pump_queue(id, NOW);
    assert_eq!(opens(&mut again), 0);
    [1, 2].into_iter().for_each(|s| again.released(s, Vec::new(), NOW));
    assert_eq!(opens(&mut again), 1);
}

#[test]
fn orders_hold_for_what_comes_behind_them() {
    let mut e = engine(100, 1);
    let of = QueuePattern { destination: "d.test".into(), via: "*".into() };
    e.switches.note(&QueueOrder { of, action: QueueAction::Pause(true) }).unwrap();
    let id = queued(&mut e, "d.test", "", 1);
    e.pump_queue(id, NOW);
    assert_eq!(opens(&mut e), 0);
    let of = QueuePattern { destination: "d.test".into(), via: "*".into() };
    e.switches.note(&QueueOrder { of, action: QueueAction::Pause(false) }).unwrap();
    let mut told = Vec::new();
    assert_eq!(e.apply_pauses(|id, _, was| told.push((id, was))), [id]);
    assert_eq!(told, [(id, true)]);
    e.pump_queue(id, NOW);
    assert_eq!(opens(&mut e), 1);
}
