//! Sorts any number of lines in bounded memory: sorted runs go to files without a name, and are merged.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;

/// Bytes of lines in memory.
const RUN_BYTES: usize = 64 << 20;

/// Lines and what they are sorted by. Lines of the same key stay in the order that they came in.
#[derive(Debug)]
pub struct Sorter {
    numbers: bool,
    lines: Vec<(Vec<u8>, Vec<u8>)>,
    bytes: usize,
    run_bytes: usize,
    runs: Vec<File>,
}

impl Sorter {
    /// Keys are texts, or numbers.
    pub fn new(numbers: bool) -> Sorter {
        Sorter { numbers, lines: Vec::new(), bytes: 0, run_bytes: RUN_BYTES, runs: Vec::new() }
    }

    /// Adds a line.
    ///
    /// # Errors
    /// Those of a temporary file.
    pub fn add(&mut self, key: &[u8], line: &[u8]) -> io::Result<()> {
        let key =
            if self.numbers { format!("{:0>20}", String::from_utf8_lossy(key)).into_bytes() } else { key.to_vec() };
        self.bytes += key.len() + line.len() + size_of::<(Vec<u8>, Vec<u8>)>();
        self.lines.push((key, line.to_vec()));
        if self.bytes < self.run_bytes {
            return Ok(());
        }
        self.lines.sort_by(|a, b| a.0.cmp(&b.0));
        let mut to = BufWriter::with_capacity(1 << 20, unnamed_file()?);
        for (key, line) in self.lines.drain(..) {
            for part in [&key, &line] {
                to.write_all(&(part.len() as u32).to_le_bytes())?;
                to.write_all(part)?;
            }
        }
        let mut file = to.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.rewind()?;
        self.runs.push(file);
        self.bytes = 0;
        Ok(())
    }

    /// Writes all lines in order.
    ///
    /// # Errors
    /// Those of files and of `to`.
    pub fn write(mut self, to: &mut dyn Write) -> io::Result<()> {
        self.lines.sort_by(|a, b| a.0.cmp(&b.0));
        let mut last = self.lines.into_iter();
        let room = (RUN_BYTES / self.runs.len().max(1)).clamp(4 << 10, 256 << 10);
        let mut runs: Vec<BufReader<File>> = self.runs.into_iter().map(|f| BufReader::with_capacity(room, f)).collect();
        let in_memory = runs.len();
        let mut next = |n: usize| -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
            match runs.get_mut(n) {
                Some(run) => match part(run)? {
                    Some(key) => Ok(Some((key, part(run)?.ok_or(io::ErrorKind::UnexpectedEof)?))),
                    None => Ok(None),
                },
                None => Ok(last.next()),
            }
        };
        // Of equal keys the earlier run goes first.
        let mut heap = BinaryHeap::new();
        for n in 0..=in_memory {
            if let Some((key, line)) = next(n)? {
                heap.push(Reverse((key, n, line)));
            }
        }
        while let Some(Reverse((_, n, line))) = heap.pop() {
            to.write_all(&line)?;
            if let Some((key, line)) = next(n)? {
                heap.push(Reverse((key, n, line)));
            }
        }
        Ok(())
    }
}

/// The next key or line; `None` at the end of the run.
fn part(from: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    if from.fill_buf()?.is_empty() {
        return Ok(None);
    }
    let mut len = [0; 4];
    from.read_exact(&mut len)?;
    let mut bytes = vec![0; u32::from_le_bytes(len) as usize];
    from.read_exact(&mut bytes)?;
    Ok(Some(bytes))
}

/// A file in the folder for temporary ones that nobody else can open, and that ends with this process.
fn unnamed_file() -> io::Result<File> {
    let folder = std::env::temp_dir();
    let open = File::options().read(true).write(true).mode(0o600).custom_flags(nix::libc::O_TMPFILE).open(&folder);
    open.map_err(|e| {
        io::Error::new(
            e.kind(),
            format!("cannot sort with a file in {}: {e} (TMPDIR names another folder)", folder.display()),
        )
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn lines_come_in_order_however_many_runs_there_are(keys in proptest::collection::vec("[ab]{0,3}", 0..60), run_bytes in 1usize..2000) {
            let mut s = Sorter { run_bytes, ..Sorter::new(false) };
            let mut all: Vec<(String, String)> = keys.iter().enumerate().map(|(n, k)| (k.clone(), format!("{k} {n}\n"))).collect();
            for (k, line) in &all {
                s.add(k.as_bytes(), line.as_bytes()).unwrap();
            }
            let mut out = Vec::new();
            s.write(&mut out).unwrap();
            all.sort_by(|a, b| a.0.cmp(&b.0));
            prop_assert_eq!(String::from_utf8(out).unwrap(), all.into_iter().map(|(_, l)| l).collect::<String>());
        }
    }

    #[test]
    fn a_run_that_ends_early_is_an_error() {
        let whole = [&1u32.to_le_bytes()[..], b"k", &1u32.to_le_bytes()[..], b"l"].concat();
        let written = |bytes: &[u8]| {
            let mut run = unnamed_file().unwrap();
            run.write_all(bytes).unwrap();
            run.rewind().unwrap();
            let mut out = Vec::new();
            Sorter { runs: vec![run], ..Sorter::new(false) }.write(&mut out).map(|()| out)
        };
        assert_eq!(written(&whole).unwrap(), b"l");
        for end in 1..whole.len() {
            assert_eq!(written(&whole[..end]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "{end}");
        }
    }

    #[test]
    fn numbers_are_no_texts() {
        let mut s = Sorter::new(true);
        for n in ["10", "9", ""] {
            s.add(n.as_bytes(), n.as_bytes()).unwrap();
        }
        let mut out = Vec::new();
        s.write(&mut out).unwrap();
        assert_eq!(out, b"910");
    }
}
