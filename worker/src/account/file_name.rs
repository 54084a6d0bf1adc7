//! Names of accounting files: `stem-YYYY-MM-DD-NNNN.ext` beside the path of the `<acct-file>`.

use std::path::{Path, PathBuf};

fn parts(path: &Path) -> (String, String) {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let ext = path.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default();
    (stem, ext)
}

/// Permissions of a new file.
pub fn mode(world_readable: bool) -> u32 {
    if world_readable { 0o644 } else { 0o640 }
}

/// The file of number `n` of a day.
pub fn numbered(path: &Path, date: &str, n: u32) -> PathBuf {
    let (stem, ext) = parts(path);
    path.with_file_name(format!("{stem}-{date}-{n:04}{ext}"))
}

/// Day and number of a file's name, if it is one that [`numbered`] gives for `path`; `acct.csv`
/// must leave the files of `acct-bounces.csv` alone.
pub fn number_of<'a>(name: &'a str, path: &Path) -> Option<(&'a str, u32)> {
    let (stem, ext) = parts(path);
    let middle = name.strip_prefix(stem.as_str())?.strip_suffix(ext.as_str())?.strip_prefix('-')?;
    let (date, number) = middle.rsplit_once('-')?;
    let is_date = date.len() == 10 && date.bytes().all(|b| b.is_ascii_digit() || b == b'-');
    let digits = number.len() >= 4 && number.bytes().all(|b| b.is_ascii_digit());
    (is_date && digits).then(|| number.parse().ok())?.map(|n| (date, n))
}

/// All files of `path` in `folder`, oldest first.
pub fn all_in(folder: &Path, path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut all: Vec<((String, u32), PathBuf)> = entries
        .flatten()
        .filter_map(|e| {
            let name = e.file_name();
            let (date, n) = number_of(name.to_str()?, path)?;
            Some(((date.to_owned(), n), e.path()))
        })
        .collect();
    all.sort();
    all.into_iter().map(|(_, p)| p).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_files_are_known() {
        let path = Path::new("/a/acct.csv");
        let own = numbered(path, "2026-01-31", 7);
        let name = own.file_name().unwrap_or_default().to_string_lossy().into_owned();
        assert_eq!(number_of(&name, path), Some(("2026-01-31", 7)));
        assert_eq!(number_of("acct-2026-01-31-12345.csv", path), Some(("2026-01-31", 12_345)));
        for other in
            ["acct-bounces-2026-01-31-0007.csv", "acct.csv", "acct-2026-01-31-0007.csv.gz", "acct-2026-01-31-.csv"]
        {
            assert_eq!(number_of(other, path), None, "{other}");
        }
    }
}
