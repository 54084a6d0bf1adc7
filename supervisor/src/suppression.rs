//! The suppression lists as the supervisor keeps them: what operators ask for, and a new table
//! when many changes have come together. All of it touches the disk and runs beside the loop.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use ipc::operator::SuppressionRow;
use worker::suppression::compaction::{Staged, compact, is_due};
use worker::suppression::delta::Change;
use worker::suppression::lists::Lists;
use worker::suppression::table::Table;
use worker::suppression::{Entry, normal_address, normal_list, short};

/// Time between two looks whether a new table is due.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The lists, and what is done with them one at a time.
#[derive(Debug, Clone)]
pub struct Suppression(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    lists: Mutex<Option<Lists>>,
    /// One table is made at a time.
    making: Mutex<()>,
    imports: AtomicU64,
}

/// Rows of a page, and where the next begins.
pub type Page = (Vec<SuppressionRow>, Option<u64>);

fn now_s() -> u32 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs().min(u64::from(u32::MAX)) as u32)
}

fn row(e: Entry) -> SuppressionRow {
    SuppressionRow {
        address: e.address,
        list: e.list,
        reason: e.reason,
        source: e.source,
        added_unix_s: e.added_s,
        expires_unix_s: e.expires_s,
    }
}

/// A row as an operator gave it.
fn entry(r: SuppressionRow, now_s: u32) -> Result<Entry, String> {
    Ok(Entry {
        address: normal_address(&r.address)?,
        list: normal_list(&r.list)?,
        reason: short(&r.reason),
        source: short(&r.source),
        added_s: if r.added_unix_s == 0 { now_s } else { r.added_unix_s },
        expires_s: r.expires_unix_s,
    })
}

fn failed(folder: &Path, e: &dyn std::fmt::Display) -> String {
    format!("suppression lists in {}: {e}", folder.display())
}

/// The list that is named; `None` for all.
fn one_or_all(list: &str) -> Result<Option<String>, String> {
    if list.is_empty() { Ok(None) } else { normal_list(list).map(Some) }
}

fn names(lists: &Lists, of: Option<String>) -> Vec<String> {
    of.map_or_else(|| lists.names(), |l| vec![l])
}

impl Suppression {
    /// Opens the lists below a data folder, and makes them where there are none.
    ///
    /// # Errors
    /// A sentence naming the folder.
    pub fn open(data_dir: &Path) -> Result<Suppression, String> {
        let folder = data_dir.join(worker::suppression::FOLDER);
        let opened = Lists::prepare(&folder).and_then(|()| Lists::open(&folder));
        let lists = opened.map_err(|e| failed(&folder, &e))?;
        let (making, imports) = Default::default();
        Ok(Suppression(Arc::new(Inner { folder, lists: Mutex::new(Some(lists)), making, imports })))
    }

    /// Does something with the lists, beside the loop.
    async fn with<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Lists) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, String> {
        let inner = Arc::clone(&self.0);
        let done = tokio::task::spawn_blocking(move || {
            let mut held = locked(&inner.lists);
            let lists = match &mut *held {
                Some(l) => l,
                none => none.insert(Lists::open(&inner.folder)?),
            };
            while lists.refresh()? {}
            f(lists)
        });
        done.await.map_err(|e| failed(&self.0.folder, &e))?.map_err(|e| failed(&self.0.folder, &e))
    }

    /// `suppress add`: on disk, and in force in every shard within half a second, when this
    /// returns a number; that of addresses that were new.
    ///
    /// # Errors
    /// A sentence: an address that is none, or the disk.
    pub async fn add(&self, rows: Vec<SuppressionRow>) -> Result<usize, String> {
        let now = now_s();
        let all: Vec<Entry> = rows.into_iter().map(|r| entry(r, now)).collect::<Result<_, _>>()?;
        self.with(move |lists| {
            let new = all.iter().filter(|e| lists.find([e.list.as_str()], &e.address, now).is_none()).count();
            let changes: Vec<Change> = all.into_iter().map(Change::Add).collect();
            lists.append(&changes, true)?;
            Ok(new)
        })
        .await
    }

    /// `suppress remove`: answers how many addresses were in a list. An empty list means all.
    ///
    /// # Errors
    /// As [`Suppression::add`].
    pub async fn remove(&self, addresses: Vec<String>, list: String) -> Result<usize, String> {
        let addresses: Vec<String> = addresses.iter().map(|a| normal_address(a)).collect::<Result<_, _>>()?;
        let list = one_or_all(&list)?;
        let now = now_s();
        self.with(move |lists| {
            let names = names(lists, list);
            let held = |a: &String| {
                let of: Vec<&String> = names.iter().filter(|l| lists.find([l.as_str()], a, now).is_some()).collect();
                of.into_iter().map(|l| Change::Remove { list: l.clone(), address: a.clone() }).collect::<Vec<_>>()
            };
            let each: Vec<Vec<Change>> = addresses.iter().map(held).filter(|c| !c.is_empty()).collect();
            let found = each.len();
            lists.append(&each.concat(), true)?;
            Ok(found)
        })
        .await
    }

    /// The lists that an address is in.
    ///
    /// # Errors
    /// As [`Suppression::add`].
    pub async fn find(&self, address: &str, list: &str) -> Result<Vec<SuppressionRow>, String> {
        let address = normal_address(address)?;
        let list = one_or_all(list)?;
        let now = now_s();
        self.with(move |lists| {
            let names = names(lists, list);
            Ok(names.iter().filter_map(|l| lists.find([l.as_str()], &address, now)).map(row).collect())
        })
        .await
    }

    /// A page of entries from `after` on, of one list or (empty) all: first what changed of late, then the
    /// table bucket by bucket.
    ///
    /// # Errors
    /// By the disk.
    pub async fn page(&self, list: String, after: u64, most: usize) -> Result<Page, String> {
        let now = now_s();
        self.with(move |lists| {
            let wanted = |e: &Entry| (list.is_empty() || e.list == list) && !e.is_over(now);
            let mut rows: Vec<SuppressionRow> = Vec::new();
            if after == 0 {
                let changed = lists.delta.changes().filter_map(|(_, _, e)| e).filter(|e| wanted(e));
                rows.extend(changed.cloned().map(row));
                rows.sort_by(|a, b| (&a.list, &a.address).cmp(&(&b.list, &b.address)));
            }
            let Some(table) = &lists.table else { return Ok((rows, None)) };
            // A page ends with a whole bucket. Tables that are made meanwhile may have others, so the place
            // is given in the largest number of buckets.
            let scale = BUCKETS / table.buckets();
            let mut bucket = after / scale;
            while bucket < table.buckets() && rows.len() < most {
                let unchanged = |e: &Entry| lists.delta.find(&e.list, &e.address).is_none();
                rows.extend(table.in_bucket(bucket).into_iter().filter(|e| wanted(e) && unchanged(e)).map(row));
                bucket += 1;
            }
            Ok((rows, (bucket < table.buckets()).then_some(bucket * scale)))
        })
        .await
    }

    /// Begins an import.
    ///
    /// # Errors
    /// By the disk.
    pub async fn begin_import(&self) -> Result<Staged, String> {
        let inner = Arc::clone(&self.0);
        let number = inner.imports.fetch_add(1, Ordering::Relaxed);
        let begun = tokio::task::spawn_blocking(move || Staged::begin(&inner.folder, number));
        begun.await.map_err(|e| e.to_string())?.map_err(|e| failed(&self.0.folder, &e))
    }

    /// Takes rows of an import, and puts it in force with the last; answers the import until then.
    ///
    /// # Errors
    /// A sentence; the import is over.
    pub async fn import(&self, mut staged: Staged, rows: Vec<SuppressionRow>, last: bool) -> Result<Imported, String> {
        let inner = Arc::clone(&self.0);
        let done = tokio::task::spawn_blocking(move || -> Result<Imported, String> {
            let now = now_s();
            let disk = |e: std::io::Error| failed(&inner.folder, &e);
            for r in rows {
                staged.add(entry(r, now)?).map_err(disk)?;
            }
            if !last {
                return Ok(Imported::So(staged));
            }
            let _one = locked(&inner.making);
            let entries = staged.entries;
            compact(&inner.folder, Some(&mut staged), now).map_err(disk)?;
            Ok(Imported::Whole(entries))
        });
        done.await.map_err(|e| e.to_string())?
    }

    /// Looks after the lists, while the server runs.
    pub async fn keep_looked_after(&self) {
        let mut failed = false;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            match self.look_after().await {
                Ok(()) => failed = false,
                Err(e) if !failed => {
                    failed = true;
                    tracing::error!(error = e, "the suppression lists cannot be compacted");
                }
                Err(_) => {}
            }
        }
    }

    /// Makes a new table when it is due.
    async fn look_after(&self) -> Result<(), String> {
        if !self.with(|lists| Ok(is_due(lists))).await? {
            return Ok(());
        }
        let inner = Arc::clone(&self.0);
        let made = tokio::task::spawn_blocking(move || {
            let _one = locked(&inner.making);
            compact(&inner.folder, None, now_s())
        });
        let entries = made.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        tracing::info!(entries, "a new table of the suppression lists is in force");
        ipc::descriptors::give_back_heap();
        Ok(())
    }
}

/// The largest number of buckets of a table.
const BUCKETS: u64 = Table::BUCKETS_MAX;

/// What became of an import.
#[derive(Debug)]
pub enum Imported {
    /// More is to come.
    So(Staged),
    /// It is in force: so many entries.
    Whole(u64),
}

fn locked<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}
