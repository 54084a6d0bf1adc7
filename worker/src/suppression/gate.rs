//! The suppression lists as a shard holds them, and replies that are to be noted there.

use std::cell::RefCell;
use std::path::Path;

use ipc::dice::HashMap;

use super::Entry;
use super::delta::Change;
use super::lists::Lists;
use crate::clock;
use crate::log_limit;

/// Replies that wait to be noted; more of them in a quarter of a second are noted another time.
const NOTED_MAX: usize = 50_000;

/// The lists as this shard holds them.
#[derive(Debug, Default)]
pub struct Gate {
    lists: RefCell<Option<Lists>>,
    noted: RefCell<Vec<Note>>,
}

/// A reply that counts.
#[derive(Debug, Clone)]
pub(super) struct Note {
    pub list: String,
    pub address: String,
    pub category: String,
    pub at_s: u32,
    pub needed: usize,
    pub within_s: u32,
    pub expires_s: u32,
}

/// Unix seconds.
pub(super) fn now_s() -> u32 {
    (clock::wall_ms(clock::now_ms()) / 1000).clamp(0, i64::from(u32::MAX)) as u32
}

impl Gate {
    /// Opens the lists of a folder.
    ///
    /// # Errors
    /// A sentence naming the folder.
    pub fn open(&self, folder: &Path) -> Result<(), String> {
        let lists = Lists::open(folder).map_err(|e| format!("suppression lists in {}: {e}", folder.display()))?;
        *self.lists.borrow_mut() = Some(lists);
        Ok(())
    }

    /// The first of some lists that an address is in, and which it is.
    pub(super) fn find<'a>(&self, lists: impl IntoIterator<Item = &'a str>, address: &str) -> Option<String> {
        self.lists.borrow().as_ref()?.find(lists, address, now_s()).map(|e| e.list)
    }

    /// Names of all lists.
    pub(super) fn names(&self) -> Vec<String> {
        self.lists.borrow().as_ref().map(Lists::names).unwrap_or_default()
    }

    /// Nobody is on any list: most servers, most of the time.
    pub(super) fn is_empty(&self) -> bool {
        self.lists.borrow().as_ref().is_none_or(Lists::is_empty)
    }

    /// A reply is to be noted; it is left out where too many are.
    pub(super) fn note(&self, note: Note) {
        let mut noted = self.noted.borrow_mut();
        if noted.len() < NOTED_MAX {
            noted.push(note);
        }
    }

    /// Notes what replies said, and takes in what others changed.
    pub(super) fn look(&self) -> std::io::Result<()> {
        let mut lists = self.lists.borrow_mut();
        let Some(lists) = &mut *lists else { return Ok(()) };
        while lists.refresh()? {}
        let notes = std::mem::take(&mut *self.noted.borrow_mut());
        if notes.is_empty() {
            return Ok(());
        }
        let done = take_note(lists, &notes);
        if done.is_err() {
            // Another process appends just now, or the disk is full: another time.
            let mut noted = self.noted.borrow_mut();
            let newer = std::mem::replace(&mut *noted, notes);
            noted.extend(newer);
            noted.truncate(NOTED_MAX);
        }
        match done {
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            done => done,
        }
    }
}

/// Counts refusals, and adds whom they were enough for: all of them in one append, or none.
fn take_note(lists: &mut Lists, notes: &[Note]) -> std::io::Result<()> {
    let mut changes: Vec<Change> = Vec::new();
    let mut hits: HashMap<(&str, &str), usize> = HashMap::default();
    for n in notes {
        let key = (n.list.as_str(), n.address.as_str());
        let new = hits.entry(key).or_default();
        *new += 1;
        let (list, address) = (n.list.clone(), n.address.clone());
        let since = n.at_s.saturating_sub(n.within_s);
        if n.needed > 1 && lists.delta.hits_since(key.0, key.1, since) + *new < n.needed {
            changes.push(Change::Hit { list, address, at_s: n.at_s, carried: false });
            continue;
        }
        let known = lists.find([key.0], key.1, n.at_s).is_some();
        if !known && !changes.iter().any(|c| matches!(c, Change::Add(_)) && c.key() == key) {
            if log_limit::allows_line("suppressed (suppress-on)", &list) {
                tracing::info!(address, list, reason = n.category, "suppressed (suppress-on)");
            }
            let (reason, source) = (n.category.clone(), "policy".into());
            changes.push(Change::Add(Entry { list, address, reason, source, added_s: n.at_s, expires_s: n.expires_s }));
        }
    }
    if changes.is_empty() { Ok(()) } else { lists.try_append(&changes) }
}
