//! What of a queue may go now, in its order: by priority, among jobs of one priority in turn,
//! within a job as it came. A campaign of a million recipients and ten password resets under
//! another job share the next connections one for one.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};

use super::entry::Entry;
use super::job::JobId;

/// Entries of one priority.
#[derive(Debug)]
struct Level {
    priority: u8,
    /// The job that was served last.
    last: JobId,
    jobs: BTreeMap<JobId, VecDeque<Entry>>,
}

impl Level {
    /// The job whose turn it is, of those that may go.
    fn turn(&self, may_go: impl Fn(JobId) -> bool) -> Option<(JobId, Entry)> {
        let behind = self.jobs.range((Excluded(self.last), Unbounded));
        let all = behind.chain(self.jobs.range(..=self.last));
        all.filter(|(job, _)| may_go(**job)).find_map(|(job, entries)| Some((*job, *entries.front()?)))
    }
}

/// Entries that may go now.
#[derive(Debug, Default)]
pub struct Ready {
    /// The only one there is, as in nearly all of a hundred thousand queues that wait for
    /// their receiver: the levels are empty then.
    one: Option<(JobId, Entry)>,
    more: Option<Box<Levels>>,
}

/// What waits beside others.
#[derive(Debug, Default)]
struct Levels {
    /// Highest priority first; none is empty.
    levels: Vec<Level>,
    /// Entries in the levels.
    len: usize,
}

impl Levels {
    fn entries(&mut self, job: JobId, priority: u8) -> &mut VecDeque<Entry> {
        let at = self.levels.partition_point(|l| l.priority > priority);
        if self.levels.get(at).is_none_or(|l| l.priority != priority) {
            self.levels.reserve_exact(1);
            self.levels.insert(at, Level { priority, last: JobId::MAX, jobs: BTreeMap::new() });
        }
        self.len += 1;
        self.levels[at].jobs.entry(job).or_default()
    }

    /// Takes the first `n` recipients of `entry`.
    fn take(&mut self, job: JobId, entry: Entry, n: u64) {
        let Some(at) = self.levels.iter().position(|l| l.priority == entry.priority) else { return };
        let level = &mut self.levels[at];
        level.last = job;
        let Some(entries) = level.jobs.get_mut(&job) else { return };
        let Some(front) = entries.front_mut().filter(|f| **f == entry) else { return };
        if n < entry.len() {
            front.start += n as u16;
            return;
        }
        entries.pop_front();
        self.len -= 1;
        if entries.is_empty() {
            level.jobs.remove(&job);
        } else if entries.capacity() > 1024 && entries.len() < entries.capacity() / 4 {
            entries.shrink_to(entries.len() * 2);
        }
        if self.levels[at].jobs.is_empty() {
            self.levels.remove(at);
        }
    }
}

impl Ready {
    fn levels(&self) -> &[Level] {
        self.more.as_deref().map_or(&[], |m| &m.levels)
    }

    /// Entries here.
    pub fn len(&self) -> usize {
        self.more.as_ref().map_or(0, |m| m.len) + usize::from(self.one.is_some())
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Entries of at least this priority.
    pub fn len_from(&self, priority: u8) -> usize {
        let levels = self.levels().iter().take_while(|l| l.priority >= priority);
        let one = self.one.filter(|(_, e)| e.priority >= priority);
        levels.flat_map(|l| l.jobs.values()).map(VecDeque::len).sum::<usize>() + usize::from(one.is_some())
    }

    /// Adds an entry behind the others of its job.
    pub fn push(&mut self, job: JobId, entry: Entry) {
        match self.is_empty() {
            true => self.one = Some((job, entry)),
            false => self.spread().entries(job, entry.priority).push_back(entry),
        }
    }

    /// Puts an entry in front of its job, and the job in front of the others.
    pub fn put_back(&mut self, job: JobId, entry: Entry) {
        if self.is_empty() {
            self.one = Some((job, entry));
            return;
        }
        let more = self.spread();
        more.entries(job, entry.priority).push_front(entry);
        if let Some(l) = more.levels.iter_mut().find(|l| l.priority == entry.priority) {
            l.last = job.wrapping_sub(1);
        }
    }

    /// The levels; the only one joins them, for others come.
    fn spread(&mut self) -> &mut Levels {
        let more = self.more.get_or_insert_default();
        if let Some((job, entry)) = self.one.take() {
            more.entries(job, entry.priority).push_back(entry);
        }
        more
    }

    /// What goes next, of the jobs that may go.
    pub fn next(&self, may_go: impl Fn(JobId) -> bool) -> Option<(JobId, Entry)> {
        self.one.filter(|(job, _)| may_go(*job)).or_else(|| self.levels().iter().find_map(|l| l.turn(&may_go)))
    }

    /// Takes the first `n` recipients of `entry`, which [`Ready::next`] answered for `job`.
    pub fn take(&mut self, job: JobId, entry: Entry, n: u64) {
        if let Some((_, one)) = self.one.as_mut().filter(|(_, one)| *one == entry) {
            if n < entry.len() {
                one.start += n as u16;
            } else {
                self.one = None;
            }
            return;
        }
        let Some(more) = &mut self.more else { return };
        more.take(job, entry, n);
        if more.len == 0 {
            self.more = None;
        }
    }

    /// All entries with their jobs.
    pub fn iter(&self) -> impl Iterator<Item = (JobId, Entry)> + '_ {
        let levels = self.levels().iter().flat_map(|l| l.jobs.iter());
        self.one.into_iter().chain(levels.flat_map(|(job, all)| all.iter().map(|e| (*job, *e))))
    }

    /// Drops the entries that `keep` does not want.
    pub fn retain(&mut self, mut keep: impl FnMut(&Entry) -> bool) {
        self.one = self.one.filter(|(_, e)| keep(e));
        let Some(more) = &mut self.more else { return };
        let mut len = 0;
        for l in &mut more.levels {
            l.jobs.retain(|_, entries| {
                entries.retain(&mut keep);
                len += entries.len();
                !entries.is_empty()
            });
        }
        more.levels.retain(|l| !l.jobs.is_empty());
        more.len = len;
        if len == 0 {
            self.more = None;
        }
    }

    /// Takes all out, in the order that they would have gone if nothing else came.
    pub fn drain(&mut self) -> Vec<Entry> {
        let all = std::mem::take(self);
        all.iter().map(|(_, e)| e).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(slot: u32, priority: u8) -> Entry {
        Entry { slot, start: 0, end: 1, priority, attempts: 0 }
    }

    fn order(r: &mut Ready) -> Vec<u32> {
        let mut all = Vec::new();
        while let Some((job, e)) = r.next(|_| true) {
            r.take(job, e, e.len());
            all.push(e.slot);
        }
        all
    }

    #[test]
    fn priorities_first_then_jobs_in_turn_then_as_it_came() {
        let mut r = Ready::default();
        for (slot, job, priority) in
            [(0, 1, 50), (1, 1, 50), (2, 1, 50), (3, 2, 50), (4, 2, 50), (5, 1, 10), (6, 3, 90), (7, 3, 50)]
        {
            r.push(job, entry(slot, priority));
        }
        assert_eq!(r.len_from(50), 7);
        assert_eq!(order(&mut r), [6, 0, 3, 7, 1, 4, 2, 5]);
        assert!(r.is_empty() && r.more.is_none() && size_of::<Ready>() <= 32);
    }

    #[test]
    fn what_was_put_back_goes_first_and_a_paused_job_not_at_all() {
        let mut r = Ready::default();
        (0..4).for_each(|slot| r.push(slot % 2, entry(slot, 50)));
        let (job, e) = r.next(|j| j != 0).unwrap_or_else(|| panic!("nothing"));
        assert_eq!((job, e.slot), (1, 1));
        r.take(job, e, 1);
        r.put_back(1, e);
        assert_eq!(order(&mut r), [1, 0, 3, 2]);
    }

    #[test]
    fn an_entry_that_is_split_keeps_its_place_in_its_job() {
        let mut r = Ready::default();
        r.push(1, Entry { slot: 0, start: 0, end: 5, priority: 50, attempts: 0 });
        r.push(2, entry(1, 50));
        let mut all = Vec::new();
        while let Some((job, e)) = r.next(|_| true) {
            let n = e.len().min(2);
            r.take(job, e, n);
            all.push((e.slot, n));
        }
        assert_eq!(all, [(0, 2), (1, 1), (0, 2), (0, 1)]);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_no_job_waits_twice_for_another(all in proptest::collection::vec((0u32..4, 0u8..3), 1..60)) {
            let mut r = Ready::default();
            all.iter().enumerate().for_each(|(slot, (job, p))| r.push(*job, entry(slot as u32, *p)));
            let mut seen = Vec::new();
            while let Some((job, e)) = r.next(|_| true) {
                let waiting: Vec<JobId> = r.iter().filter(|(_, x)| x.priority == e.priority).map(|(j, _)| j).collect();
                r.take(job, e, 1);
                seen.push((job, e, waiting));
            }
            prop_assert_eq!(seen.len(), all.len());
            for w in seen.windows(2) {
                prop_assert!(w[0].1.priority >= w[1].1.priority);
                // Nobody is served twice while another of the same priority has something.
                if w[0].1.priority == w[1].1.priority && w[0].0 == w[1].0 {
                    prop_assert!(w[1].2.iter().all(|j| *j == w[0].0));
                }
            }
        }
    }
}
