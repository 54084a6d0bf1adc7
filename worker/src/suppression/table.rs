//! The table: every entry of a generation in one file that is mapped and never changed.
//!
//! ```text
//! 0   magic "SLUICESL"          16  entries      u64    32  names at     u64
//! 8   version u32, bits u32     24  records at   u64    40  file bytes   u64
//! 64  2^bits + 1 offsets u64: where the records of each bucket begin, from "records at" on
//!     records: hash u32 · list u16 · reason u16 · source u16 · added u32 · expires u32 ·
//!              length u16 · address
//!     names:   count u32, then length u8 and bytes each: lists, reasons and sources
//! ```
//! The bucket is the first bits of the hash of list and address, so a look-up reads one offset
//! and a few records that lie side by side. All numbers are little-endian.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use ipc::descriptors::Mapping;
use ipc::dice::HashMap;

use super::{Entry, hash};

const MAGIC: &[u8; 8] = b"SLUICESL";
const VERSION: u32 = 1;
const HEADER: u64 = 64;
const FIXED: usize = 20;
/// Entries in a bucket, on average at most.
const PER_BUCKET: u64 = 8;
/// Bits of the hash that name a part; a table is made part by part.
pub const PART_BITS: u32 = 6;
const BITS_MAX: u32 = 28;
/// Names that a table can have, of lists for the most part.
const NAMES_MAX: usize = u16::MAX as usize;
/// Reasons and sources of them; what comes behind is called [`VARIOUS`].
const REASONS_MAX: usize = 4096;
const VARIOUS: &str = "(various)";

/// A table in use.
#[derive(Debug)]
pub struct Table {
    map: Mapping,
    bits: u32,
    entries: u64,
    records_at: usize,
    records_end: usize,
    names: Vec<String>,
    /// Numbers of names that lists have.
    lists: HashMap<String, u16>,
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the suppression table is damaged: {what}"))
}

fn u64_at(b: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*b.get(at..)?.first_chunk()?))
}

fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*b.get(at..)?.first_chunk()?))
}

struct Record<'a> {
    hash: u32,
    list: u16,
    reason: u16,
    source: u16,
    added_s: u32,
    expires_s: u32,
    address: &'a [u8],
}

/// The record at the beginning of `b`, and what follows.
fn record(b: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let (fixed, rest) = b.split_first_chunk::<FIXED>()?;
    let u16_at = |i: usize| u16::from_le_bytes([fixed[i], fixed[i + 1]]);
    let (address, rest) = rest.split_at_checked(usize::from(u16_at(18)))?;
    let r = Record {
        hash: u32_at(fixed, 0)?,
        list: u16_at(4),
        reason: u16_at(6),
        source: u16_at(8),
        added_s: u32_at(fixed, 10)?,
        expires_s: u32_at(fixed, 14)?,
        address,
    };
    Some((r, rest))
}

impl Table {
    /// Buckets of the largest table.
    pub const BUCKETS_MAX: u64 = 1 << BITS_MAX;

    /// Maps a table.
    ///
    /// # Errors
    /// By the system, or when the file is no table.
    pub fn open(path: &Path) -> io::Result<Table> {
        let map = Mapping::immutable_file(&File::open(path)?).map_err(io::Error::from)?;
        let b = map.bytes();
        let number = |at| u64_at(b, at).ok_or_else(|| bad("it is cut off"));
        let (version, bits) = (u32_at(b, 8), u32_at(b, 12).unwrap_or(u32::MAX));
        if b.get(..8) != Some(MAGIC) || version != Some(VERSION) || !(PART_BITS..=BITS_MAX).contains(&bits) {
            return Err(bad("its header is of another kind"));
        }
        let (records_at, names_at) = (number(24)?, number(32)?);
        let offsets_end = HEADER + ((1u64 << bits) + 1) * 8;
        if number(40)? != b.len() as u64
            || records_at != offsets_end
            || !(records_at..=b.len() as u64).contains(&names_at)
        {
            return Err(bad("its parts do not fit its length"));
        }
        let entries = number(16)?;
        let mut rest = &b[names_at as usize..];
        let count = u32_at(rest, 0).ok_or_else(|| bad("it names no lists"))? as usize;
        rest = rest.get(4..).unwrap_or_default();
        let mut names = Vec::with_capacity(count.min(NAMES_MAX));
        for _ in 0..count.min(NAMES_MAX) {
            let (len, behind) = rest.split_first().ok_or_else(|| bad("a name is cut off"))?;
            let (name, behind) = behind.split_at_checked(usize::from(*len)).ok_or_else(|| bad("a name is cut off"))?;
            names.push(String::from_utf8_lossy(name).into_owned());
            rest = behind;
        }
        let lists = names.iter().enumerate().map(|(i, n)| (n.clone(), i as u16)).collect();
        Ok(Table { bits, entries, records_at: records_at as usize, records_end: names_at as usize, names, lists, map })
    }

    /// Entries in it.
    pub fn len(&self) -> u64 {
        self.entries
    }

    /// It has none.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Names of lists, among others.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// The entry of an address in a list.
    pub fn find(&self, list: &str, address: &str) -> Option<Entry> {
        let number = *self.lists.get(list)?;
        let h = hash(list, address);
        let mut rest = self.bucket(h >> (64 - self.bits))?;
        while let Some((r, behind)) = record(rest) {
            if r.hash == h as u32 && r.list == number && r.address == address.as_bytes() {
                return Some(self.entry(&r));
            }
            rest = behind;
        }
        None
    }

    fn bucket(&self, n: u64) -> Option<&[u8]> {
        let b = self.map.bytes();
        let at = HEADER as usize + n as usize * 8;
        let (from, to) = (u64_at(b, at)? as usize, u64_at(b, at + 8)? as usize);
        let records = b.get(self.records_at..self.records_end)?;
        records.get(from..to)
    }

    fn entry(&self, r: &Record) -> Entry {
        let name = |n: u16| self.names.get(usize::from(n)).cloned().unwrap_or_default();
        Entry {
            list: name(r.list),
            address: String::from_utf8_lossy(r.address).into_owned(),
            reason: name(r.reason),
            source: name(r.source),
            added_s: r.added_s,
            expires_s: r.expires_s,
        }
    }

    /// Buckets in it.
    pub fn buckets(&self) -> u64 {
        1 << self.bits
    }

    /// Entries of one bucket.
    pub fn in_bucket(&self, n: u64) -> Vec<Entry> {
        let mut rest = self.bucket(n).unwrap_or_default();
        let mut all = Vec::new();
        while let Some((r, behind)) = record(rest) {
            all.push(self.entry(&r));
            rest = behind;
        }
        all
    }

    /// Buckets of one of the 2^[`PART_BITS`] parts.
    pub fn part(&self, n: u64) -> std::ops::Range<u64> {
        let each = 1 << (self.bits - PART_BITS);
        n * each..(n + 1) * each
    }
}

/// Writes a table, part by part.
pub struct Builder {
    out: BufWriter<File>,
    bits: u32,
    offsets: Vec<u64>,
    at: u64,
    entries: u64,
    names: Vec<String>,
    numbers: HashMap<String, u16>,
    reasons: usize,
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder").field("entries", &self.entries).finish_non_exhaustive()
    }
}

impl Builder {
    /// Begins a table of at most about `entries`.
    ///
    /// # Errors
    /// By the system.
    pub fn create(path: &Path, entries: u64) -> io::Result<Builder> {
        let bits = (entries / PER_BUCKET).max(1).ilog2() + 1;
        let bits = bits.clamp(PART_BITS, BITS_MAX);
        let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
        let records_at = HEADER + ((1u64 << bits) + 1) * 8;
        out.seek(SeekFrom::Start(records_at))?;
        let offsets = Vec::with_capacity((1usize << bits) + 1);
        let (names, numbers) = (vec![VARIOUS.to_owned()], HashMap::from_iter([(VARIOUS.to_owned(), 0)]));
        Ok(Builder { out, bits, offsets, at: 0, entries: 0, names, numbers, reasons: 0 })
    }

    fn number(&mut self, name: &str) -> Option<u16> {
        if let Some(n) = self.numbers.get(name) {
            return Some(*n);
        }
        let n = u16::try_from(self.names.len()).ok().filter(|n| usize::from(*n) < NAMES_MAX)?;
        self.names.push(name.to_owned());
        self.numbers.insert(name.to_owned(), n);
        Some(n)
    }

    /// A list must keep its name.
    fn list(&mut self, name: &str) -> io::Result<u16> {
        self.number(name).ok_or_else(|| io::Error::other(format!("more than {NAMES_MAX} suppression lists")))
    }

    /// Reasons and sources may be many, and do without.
    fn reason(&mut self, name: &str) -> u16 {
        let known = self.numbers.contains_key(name);
        if !known && self.reasons >= REASONS_MAX {
            return 0;
        }
        self.reasons += usize::from(!known);
        self.number(name).unwrap_or(0)
    }

    /// Adds the entries of the next part, in any order; of those with the same list and address
    /// the last counts.
    ///
    /// # Errors
    /// By the system.
    pub fn add_part(&mut self, part: u64, entries: Vec<Entry>) -> io::Result<()> {
        let mut all: Vec<(u64, usize, Entry)> =
            entries.into_iter().enumerate().map(|(i, e)| (hash(&e.list, &e.address), i, e)).collect();
        // The last comes first, and its predecessors are passed over.
        all.sort_by(|a, b| (a.0, &a.2.list, &a.2.address, b.1).cmp(&(b.0, &b.2.list, &b.2.address, a.1)));
        all.dedup_by(|b, a| (&a.2.list, &a.2.address) == (&b.2.list, &b.2.address));
        let each = 1u64 << (self.bits - PART_BITS);
        let mut next = part * each;
        for (h, _, e) in all {
            let bucket = h >> (64 - self.bits);
            while next <= bucket {
                self.offsets.push(self.at);
                next += 1;
            }
            let (list, reason, source) = (self.list(&e.list)?, self.reason(&e.reason), self.reason(&e.source));
            let mut fixed = Vec::with_capacity(FIXED + e.address.len());
            fixed.extend_from_slice(&(h as u32).to_le_bytes());
            for n in [list, reason, source] {
                fixed.extend_from_slice(&n.to_le_bytes());
            }
            fixed.extend_from_slice(&e.added_s.to_le_bytes());
            fixed.extend_from_slice(&e.expires_s.to_le_bytes());
            fixed.extend_from_slice(&(e.address.len() as u16).to_le_bytes());
            fixed.extend_from_slice(e.address.as_bytes());
            self.out.write_all(&fixed)?;
            self.at += fixed.len() as u64;
            self.entries += 1;
        }
        while next < (part + 1) * each {
            self.offsets.push(self.at);
            next += 1;
        }
        Ok(())
    }

    /// Completes the file and syncs it; answers how many entries it has.
    ///
    /// # Errors
    /// By the system.
    pub fn finish(mut self) -> io::Result<u64> {
        self.offsets.push(self.at);
        let records_at = HEADER + ((1u64 << self.bits) + 1) * 8;
        let names_at = records_at + self.at;
        let mut names = (self.names.len() as u32).to_le_bytes().to_vec();
        for n in &self.names {
            names.push(n.len().min(255) as u8);
            names.extend_from_slice(&n.as_bytes()[..n.len().min(255)]);
        }
        self.out.write_all(&names)?;
        self.out.seek(SeekFrom::Start(0))?;
        let mut header = MAGIC.to_vec();
        header.extend_from_slice(&VERSION.to_le_bytes());
        header.extend_from_slice(&self.bits.to_le_bytes());
        for n in [self.entries, records_at, names_at, names_at + names.len() as u64] {
            header.extend_from_slice(&n.to_le_bytes());
        }
        header.resize(HEADER as usize, 0);
        self.out.write_all(&header)?;
        for o in &self.offsets {
            self.out.write_all(&o.to_le_bytes())?;
        }
        self.out.flush()?;
        self.out.get_ref().sync_all()?;
        Ok(self.entries)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn entry(list: &str, n: usize) -> Entry {
        let (reason, source) = ("bad-mailbox".to_owned(), "import".to_owned());
        let address = format!("user{n}@example{}.test", n % 97);
        Entry { list: list.into(), address, reason, source, added_s: n as u32, expires_s: 0 }
    }

    fn build(path: &Path, all: &[Entry]) -> u64 {
        let mut b = Builder::create(path, all.len() as u64).unwrap();
        for part in 0..1u64 << PART_BITS {
            let of_part = |e: &&Entry| hash(&e.list, &e.address) >> (64 - PART_BITS) == part;
            b.add_part(part, all.iter().filter(of_part).cloned().collect()).unwrap();
        }
        b.finish().unwrap()
    }

    #[test]
    fn every_entry_is_found_in_its_list_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("table");
        for n in [0, 1, 5000] {
            let mut all: Vec<Entry> =
                (0..n).map(|i| entry("global", i)).chain((0..n / 2).map(|i| entry("job:a", i))).collect();
            all.extend((0..n / 3).map(|i| Entry { added_s: 7, ..entry("global", i) }));
            let _ = std::fs::remove_file(&path);
            assert_eq!(build(&path, &all), (n + n / 2) as u64);
            let t = Table::open(&path).unwrap();
            for i in 0..n {
                let expected = Entry { added_s: if i < n / 3 { 7 } else { i as u32 }, ..entry("global", i) };
                assert_eq!(t.find("global", &expected.address), Some(expected.clone()));
                assert_eq!(t.find("job:a", &expected.address).is_some(), i < n / 2);
                assert_eq!(t.find("other", &expected.address), None);
            }
            assert_eq!(t.find("global", "nobody@example.test"), None);
            assert_eq!((0..t.buckets()).map(|b| t.in_bucket(b).len()).sum::<usize>() as u64, t.len());
        }
    }

    #[test]
    fn lists_keep_their_names_whatever_the_number_of_reasons() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("table");
        let mut all: Vec<Entry> =
            (0..REASONS_MAX + 50).map(|i| Entry { reason: format!("r{i}"), ..entry("global", i) }).collect();
        all.push(entry("job:42", 7));
        build(&path, &all);
        let t = Table::open(&path).unwrap();
        assert!(t.find("job:42", &all[7].address).is_some());
        let various = all.iter().filter(|e| t.find(&e.list, &e.address).unwrap().reason == VARIOUS).count();
        assert!((40..60).contains(&various), "{various}");
    }

    #[test]
    fn a_file_that_is_damaged_is_no_table_or_finds_less() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("table");
        let all: Vec<Entry> = (0..50).map(|i| entry("global", i)).collect();
        build(&path, &all);
        let good = std::fs::read(&path).unwrap();
        let other = dir.path().join("other");
        for cut in [0, 1, 63, 64, 200, good.len() - 1] {
            std::fs::write(&other, &good[..cut]).unwrap();
            assert!(Table::open(&other).is_err(), "{cut}");
        }
        for at in (0..good.len()).step_by(3) {
            let mut bytes = good.clone();
            bytes[at] ^= 0xFF;
            let _ = std::fs::remove_file(&other);
            std::fs::write(&other, &bytes).unwrap();
            if let Ok(t) = Table::open(&other) {
                all.iter().for_each(|e| drop(t.find("global", &e.address)));
                (0..t.buckets()).for_each(|b| drop(t.in_bucket(b)));
            }
        }
    }
}
