//! A new table from the last one, the delta, and an import.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use nix::fcntl::FlockArg;

use super::delta::Change;
use super::lists::{Lists, delta_path, set_current, table_path};
use super::table::{Builder, PART_BITS, Table};
use super::{Entry, hash};

/// Parts that a table is made in, so that one of fifty million takes little memory.
const PARTS: u64 = 1 << PART_BITS;
/// Records of a small delta.
const SMALL: u64 = 20_000;
/// Largest part of a table's size that its delta has, one in so many.
const OF_TABLE: u64 = 50;
/// Records of the largest delta: every process holds them.
const LARGE: u64 = 300_000;
/// Hits that were not enough are carried on for so long, seconds.
const HITS_S: u32 = 90 * 86_400;
/// And so many addresses of them at most.
const HITS_MAX: usize = 100_000;

/// The delta has grown so that a new table is worth its making.
pub fn is_due(lists: &Lists) -> bool {
    let in_table = lists.table.as_ref().map_or(0, Table::len);
    lists.delta.records() > (in_table / OF_TABLE).clamp(SMALL, LARGE)
}

fn part_of(list: &str, address: &str) -> u64 {
    hash(list, address) >> (64 - PART_BITS)
}

/// Entries of an import, on disk until they are put in force together.
#[derive(Debug)]
pub struct Staged {
    folder: PathBuf,
    parts: Vec<BufWriter<File>>,
    /// Entries so far.
    pub entries: u64,
}

impl Staged {
    /// Begins an import in the lists' folder.
    ///
    /// # Errors
    /// By the system.
    pub fn begin(lists: &Path, number: u64) -> io::Result<Staged> {
        let folder = lists.join(format!("import-{number}"));
        std::fs::create_dir(&folder)?;
        let part = |n| File::create(folder.join(format!("{n}"))).map(|f| BufWriter::with_capacity(16 << 10, f));
        let parts = (0..PARTS).map(part).collect::<io::Result<_>>()?;
        Ok(Staged { folder, parts, entries: 0 })
    }

    /// Adds an entry.
    ///
    /// # Errors
    /// By the system.
    pub fn add(&mut self, e: Entry) -> io::Result<()> {
        let part = part_of(&e.list, &e.address) as usize;
        let mut bytes = Vec::with_capacity(96);
        Change::Add(e).encode(&mut bytes);
        self.entries += 1;
        self.parts.get_mut(part).map_or(Ok(()), |p| p.write_all(&bytes))
    }

    fn part(&mut self, n: u64) -> io::Result<Vec<Entry>> {
        if let Some(p) = self.parts.get_mut(n as usize) {
            p.flush()?;
        }
        let mut bytes = Vec::new();
        BufReader::new(File::open(self.folder.join(format!("{n}")))?).read_to_end(&mut bytes)?;
        let (mut at, mut all) = (0, Vec::new());
        while let Some((change, n)) = Change::decode(&bytes[at..]) {
            at += n;
            if let Change::Add(e) = change {
                all.push(e);
            }
        }
        Ok(all)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.folder) {
            tracing::warn!(folder = %self.folder.display(), %error, "what was imported cannot be removed; the next start does it");
        }
    }
}

/// Makes the next generation and puts it in force; answers how many entries it has. One process
/// at a time may do this; others go on reading and appending meanwhile.
///
/// # Errors
/// By the system; the generation before stays in force.
pub fn compact(folder: &Path, staged: Option<&mut Staged>, now_s: u32) -> io::Result<u64> {
    let mut lists = Lists::open(folder)?;
    let (old, next, seen) = (lists.generation, lists.generation + 1, lists.position());
    let made = make_table(&lists, staged, &table_path(folder, next), now_s);
    let entries = made.inspect_err(|_| drop(std::fs::remove_file(table_path(folder, next))))?;
    // From here to the end nobody appends, and what was appended meanwhile goes along.
    lists.locked(FlockArg::LockExclusive, |lists| {
        if lists.generation != old {
            return Err(io::Error::other("another process compacts the suppression lists"));
        }
        let mut bytes = Vec::new();
        let is_young = |at: &u32| at.saturating_add(HITS_S) > now_s;
        for ((list, address), hits) in lists.delta.hits().take(HITS_MAX) {
            for at_s in hits.iter().copied().filter(is_young) {
                Change::Hit { list: list.clone(), address: address.clone(), at_s, carried: true }.encode(&mut bytes);
            }
        }
        bytes.extend(later_changes(&lists.delta_bytes(seen)?));
        let mut f = File::create(delta_path(folder, next))?;
        f.write_all(&bytes)?;
        f.sync_all()?;
        set_current(folder, next)?;
        std::fs::remove_file(delta_path(folder, old))?;
        match std::fs::remove_file(table_path(folder, old)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(entries),
        }
    })
}

/// Additions and removals; the hits were taken from memory.
fn later_changes(log: &[u8]) -> Vec<u8> {
    let (mut at, mut out) = (0, Vec::new());
    while let Some((change, n)) = Change::decode(&log[at..]) {
        if !matches!(change, Change::Hit { .. }) {
            out.extend_from_slice(&log[at..at + n]);
        }
        at += n;
    }
    out
}

fn make_table(lists: &Lists, mut staged: Option<&mut Staged>, path: &Path, now_s: u32) -> io::Result<u64> {
    let in_table = lists.table.as_ref().map_or(0, Table::len);
    let expected = in_table + lists.delta.records() + staged.as_ref().map_or(0, |s| s.entries);
    let mut changed: Vec<Vec<Entry>> = vec![Vec::new(); PARTS as usize];
    let mut builder = Builder::create(path, expected)?;
    for (list, address, entry) in lists.delta.changes() {
        if let (Some(e), Some(part)) = (entry, changed.get_mut(part_of(list, address) as usize)) {
            part.push(e.clone());
        }
    }
    for n in 0..PARTS {
        let mut all = Vec::new();
        if let Some(t) = &lists.table {
            let unchanged = |e: &Entry| lists.delta.find(&e.list, &e.address).is_none();
            all.extend(t.part(n).flat_map(|b| t.in_bucket(b)).filter(unchanged));
        }
        all.append(&mut changed[n as usize]);
        if let Some(s) = &mut staged {
            all.extend(s.part(n)?);
        }
        all.retain(|e| !e.is_over(now_s));
        builder.add_part(n, all)?;
    }
    builder.finish()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const NOW: u32 = 1_000;

    fn entry(list: &str, n: u8, added_s: u32, expires_s: u32) -> Entry {
        let (reason, source) = (format!("r{n}"), "operator".to_owned());
        Entry { list: list.into(), address: format!("u{n}@d.test"), reason, source, added_s, expires_s }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Add(u8, u8, u32),
        Remove(u8, u8),
        Compact,
        Import(Vec<u8>),
        /// An append of a process that was killed.
        Torn,
        Reopen,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let one = prop_oneof![
            4 => (0..3u8, 0..20u8, prop_oneof![Just(0u32), Just(NOW), Just(NOW + 1)]).prop_map(|(l, n, x)| Step::Add(l, n, x)),
            2 => (0..3u8, 0..20u8).prop_map(|(l, n)| Step::Remove(l, n)),
            1 => Just(Step::Compact),
            1 => proptest::collection::vec(0..20u8, 0..6).prop_map(Step::Import),
            1 => Just(Step::Torn),
            1 => Just(Step::Reopen),
        ];
        proptest::collection::vec(one, 1..40)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn lists_are_what_was_added_and_not_removed(steps in steps()) {
            let dir = tempfile::tempdir().unwrap();
            Lists::prepare(dir.path()).unwrap();
            // Two processes append and look in turn.
            let mut both = [Lists::open(dir.path()).unwrap(), Lists::open(dir.path()).unwrap()];
            let mut model: BTreeMap<(String, String), Entry> = BTreeMap::new();
            let lists = ["global", "job:7", "x"];
            for (i, step) in steps.into_iter().enumerate() {
                let one = &mut both[i % 2];
                match step {
                    Step::Add(l, n, expires) => {
                        let e = entry(lists[usize::from(l)], n, i as u32, expires);
                        one.append(&[Change::Add(e.clone())], false).unwrap();
                        model.insert((e.list.clone(), e.address.clone()), e);
                    }
                    Step::Remove(l, n) => {
                        let e = entry(lists[usize::from(l)], n, 0, 0);
                        one.append(&[Change::Remove { list: e.list.clone(), address: e.address.clone() }], true).unwrap();
                        model.remove(&(e.list, e.address));
                    }
                    Step::Compact => {
                        compact(dir.path(), None, NOW).unwrap();
                    }
                    Step::Import(all) => {
                        let mut staged = Staged::begin(dir.path(), i as u64).unwrap();
                        for n in all {
                            let e = entry("x", n, i as u32, 0);
                            staged.add(e.clone()).unwrap();
                            model.insert((e.list.clone(), e.address.clone()), e);
                        }
                        compact(dir.path(), Some(&mut staged), NOW).unwrap();
                    }
                    Step::Torn => {
                        let generation = Lists::open(dir.path()).unwrap().generation;
                        let mut f = File::options().append(true).open(delta_path(dir.path(), generation)).unwrap();
                        f.write_all(&[40, 0, 0, 0, 9, 9]).unwrap();
                    }
                    Step::Reopen => {
                        Lists::prepare(dir.path()).unwrap();
                        *one = Lists::open(dir.path()).unwrap();
                    }
                }
                for l in &mut both {
                    while l.refresh().unwrap() {}
                    for list in lists {
                        for n in 0..20 {
                            let e = entry(list, n, 0, 0);
                            let expected = model.get(&(e.list.clone(), e.address.clone())).filter(|e| !e.is_over(NOW));
                            prop_assert_eq!(l.find([list], &e.address, NOW), expected.cloned());
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn hits_survive_a_new_table_until_they_are_old() {
        let dir = tempfile::tempdir().unwrap();
        Lists::prepare(dir.path()).unwrap();
        let mut l = Lists::open(dir.path()).unwrap();
        let hit = |at_s| Change::Hit { list: "global".into(), address: "a@b".into(), at_s, carried: false };
        l.append(&[hit(10), hit(20)], false).unwrap();
        compact(dir.path(), None, 30).unwrap();
        l.append(&[hit(25)], false).unwrap();
        assert_eq!((l.delta.hits_since("global", "a@b", 0), l.delta.hits_since("global", "a@b", 20)), (3, 2));
        compact(dir.path(), None, 20 + HITS_S).unwrap();
        l.refresh().unwrap();
        assert_eq!((l.delta.hits_since("global", "a@b", 0), l.delta.records()), (1, 0));
    }
}
