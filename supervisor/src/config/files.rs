//! The files of a configuration and places in them.

use std::path::{Path, PathBuf};
use std::rc::Rc;

/// A place in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Span {
    /// The file, by its number in [`SourceFiles`].
    pub file: u16,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u16,
    /// Characters.
    pub width: u16,
}

impl Span {
    /// The part of this place that lies `offset` characters in and is `width` wide.
    pub fn part(self, offset: usize, width: usize) -> Span {
        let column = usize::from(self.column).saturating_add(offset).min(usize::from(u16::MAX)) as u16;
        Span { column, width: width.min(usize::from(u16::MAX)) as u16, ..self }
    }
}

/// The text of a file, or of a part of it that does not stand there as it is meant.
#[derive(Debug)]
pub struct FileText(pub Box<str>);

impl std::ops::Deref for FileText {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

/// A file as it was read.
#[derive(Debug)]
pub struct File {
    /// Path as the operator named it.
    pub path: PathBuf,
    /// Its text.
    pub text: Rc<FileText>,
    /// Where each line begins.
    lines: Vec<u32>,
}

/// All files of a configuration, in the order of their first line.
#[derive(Debug, Default)]
pub struct SourceFiles {
    all: Vec<File>,
}

impl SourceFiles {
    /// Adds a file; `None` when there are too many.
    pub fn add(&mut self, path: &Path, text: Rc<FileText>) -> Option<u16> {
        let number = u16::try_from(self.all.len()).ok()?;
        let lines = std::iter::once(0).chain(memchr::memchr_iter(b'\n', text.as_bytes()).map(|i| i as u32 + 1));
        let mut lines: Vec<u32> = lines.collect();
        lines.shrink_to_fit();
        self.all.push(File { path: path.to_owned(), text, lines });
        Some(number)
    }

    /// The number that the next file gets.
    pub fn next_number(&self) -> usize {
        self.all.len()
    }

    /// The file of a number.
    pub fn get(&self, file: u16) -> Option<&File> {
        self.all.get(usize::from(file))
    }

    /// Path of a file; empty for none.
    pub fn path(&self, file: u16) -> &Path {
        self.get(file).map_or(Path::new(""), |f| &f.path)
    }

    /// The line of a place, without its end.
    pub fn line(&self, at: Span) -> &str {
        let Some(f) = self.get(at.file) else { return "" };
        let start = f.lines.get((at.line as usize).saturating_sub(1)).copied().unwrap_or_default() as usize;
        let end = f.lines.get(at.line.max(1) as usize).map_or(f.text.len(), |next| *next as usize - 1);
        f.text.get(start..end).unwrap_or_default().trim_end_matches('\r')
    }

    /// All of them, in order.
    pub fn each(&self) -> impl Iterator<Item = &File> {
        self.all.iter()
    }

    /// Their paths, in order.
    pub fn paths(&self) -> Vec<String> {
        self.all.iter().map(|f| f.path.display().to_string()).collect()
    }
}
