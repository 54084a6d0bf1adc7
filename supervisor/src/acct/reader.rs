//! Reads accounting files as a stream: one record after the other, of CSV (RFC 4180) or of a JSON object a line. A line that
//! is no record is told of with file and number, and reading goes on behind it.

use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use std::borrow::Cow;

/// Bytes of a record; what is longer is no record.
const RECORD_MAX: usize = 1 << 20;
/// Bytes that are read at once.
const READ_BYTES: usize = 1 << 20;
/// Fields of a record.
const FIELDS_MAX: usize = 4096;
/// Broken lines of a file that are told of one by one.
const BROKEN_TOLD_MAX: u64 = 10;
/// Sets of names of JSON objects that are remembered.
const LAYOUTS_MAX: usize = 64;

/// The columns of the records that follow.
#[derive(Debug)]
pub struct Columns {
    /// Their names, `type` among them.
    pub names: Vec<String>,
    /// They stand in a header line: all records that follow have them.
    of_csv: bool,
    /// Tells it from any other.
    id: u64,
}

/// Where a value lies.
#[derive(Debug, Clone, Copy)]
struct Cell {
    from: usize,
    to: usize,
    /// It holds quotes that stand for one.
    doubled: bool,
}

/// One record.
#[derive(Debug)]
pub struct Record<'a> {
    bytes: &'a [u8],
    cells: &'a [Cell],
    /// Its columns.
    pub columns: &'a Columns,
}

impl<'a> Record<'a> {
    /// The value of a column by its place; empty where the record has none.
    pub fn value(&self, at: usize) -> Cow<'a, [u8]> {
        let Some(cell) = self.cells.get(at) else { return Cow::Borrowed(b"") };
        let bytes = &self.bytes[cell.from..cell.to];
        if !cell.doubled {
            return Cow::Borrowed(bytes);
        }
        let mut one = Vec::with_capacity(bytes.len());
        let mut at = 0;
        while let Some(quote) = memchr::memchr(b'"', &bytes[at..]) {
            one.extend_from_slice(&bytes[at..=at + quote]);
            at = (at + quote + 2).min(bytes.len());
        }
        one.extend_from_slice(&bytes[at..]);
        Cow::Owned(one)
    }

    /// Number of its columns.
    pub fn len(&self) -> usize {
        self.columns.names.len()
    }
}

/// Columns by name, found anew when a file has others.
#[derive(Debug)]
pub struct Wanted {
    names: Vec<String>,
    places: Vec<Option<usize>>,
    of: u64,
    found: Vec<bool>,
}

impl Wanted {
    /// These, in any case.
    pub fn new(names: Vec<String>) -> Wanted {
        Wanted { places: vec![None; names.len()], found: vec![false; names.len()], names, of: 0 }
    }

    /// One more; answers its number.
    pub fn add(&mut self, name: &str) -> usize {
        let known = self.names.iter().position(|n| n.eq_ignore_ascii_case(name));
        known.unwrap_or_else(|| {
            self.names.push(name.to_owned());
            self.places.push(None);
            self.found.push(false);
            self.of = 0;
            self.names.len() - 1
        })
    }

    /// Finds them in the record's columns.
    pub fn bind(&mut self, r: &Record) {
        if self.of == r.columns.id {
            return;
        }
        self.of = r.columns.id;
        for ((name, place), found) in self.names.iter().zip(&mut self.places).zip(&mut self.found) {
            *place = r.columns.names.iter().position(|n| n.eq_ignore_ascii_case(name));
            *found |= place.is_some();
        }
    }

    /// The value of the n-th, behind [`Wanted::bind`].
    pub fn value<'a>(&self, n: usize, r: &Record<'a>) -> Cow<'a, [u8]> {
        self.places[n].map_or(Cow::Borrowed(b""), |at| r.value(at))
    }

    /// Those that no record had so far.
    pub fn missing(&self) -> impl Iterator<Item = &str> {
        self.names.iter().zip(&self.found).filter(|(_, found)| !**found).map(|(n, _)| n.as_str())
    }
}

/// Why a line is no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    /// Fields it has, and should.
    Fields(usize, usize),
    Quote,
    Long,
    Many,
    Json,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Broken::Fields(has, of) => write!(f, "the record has {has} fields, its header line {of}"),
            Broken::Quote => f.write_str("a quoted field does not end with a quote"),
            Broken::Long => write!(f, "the record is longer than {RECORD_MAX} bytes"),
            Broken::Many => write!(f, "the record has more than {FIELDS_MAX} fields"),
            Broken::Json => f.write_str("no JSON object of texts and numbers"),
        }
    }
}

/// What is told to the operator while files are read.
#[derive(Debug, Default)]
pub struct Told {
    /// A file could not be read.
    pub failed: bool,
    broken: u64,
}

impl Told {
    fn broken(&mut self, file: &str, line: u64, why: Broken) {
        self.broken += 1;
        if self.broken <= BROKEN_TOLD_MAX {
            eprintln!("sluice: {file}:{line}: {why}; the line is left out");
        }
    }

    fn end_of_file(&mut self, file: &str) {
        let broken = std::mem::take(&mut self.broken);
        if broken > BROKEN_TOLD_MAX {
            eprintln!("sluice: {file}: {broken} lines are left out, of which the first {BROKEN_TOLD_MAX} are shown");
        }
    }

    fn failed(&mut self, file: &str, why: &dyn fmt::Display) {
        self.failed = true;
        eprintln!("sluice: {file}: {why}");
    }
}

/// What became of a record's receiver: it wants more, or no more.
pub type Next = io::Result<bool>;

/// Reads all records of files in order. `each` answers whether it wants more; its error ends the reading.
///
/// # Errors
/// That of `each`; files that cannot be read are told of and left out.
pub fn read(files: &[PathBuf], told: &mut Told, each: &mut dyn FnMut(&Record) -> Next) -> io::Result<()> {
    let mut layouts = 0;
    for path in files {
        let name = if path == Path::new("-") { "standard input".into() } else { path.display().to_string() };
        let from: Box<dyn Read> = if path == Path::new("-") {
            Box::new(io::stdin().lock())
        } else {
            match std::fs::File::open(path) {
                Ok(f) => Box::new(f),
                Err(e) => {
                    told.failed(&name, &e);
                    continue;
                }
            }
        };
        let goes_on = Stream::new(name, from, &mut layouts).run(told, each)?;
        if !goes_on {
            return Ok(());
        }
    }
    Ok(())
}

/// The columns of files as far as their first records tell, each once; `None` when one is standard input.
pub fn columns_of(files: &[PathBuf]) -> Option<Vec<String>> {
    let mut all: Vec<String> = Vec::new();
    for path in files {
        if path == Path::new("-") || !path.is_file() {
            return None;
        }
        let Ok(file) = std::fs::File::open(path) else { continue };
        let mut layouts = 0;
        let mut stream = Stream::new(String::new(), Box::new(file), &mut layouts);
        stream.quiet = true;
        let mut left = 1000;
        let _ = stream.run(&mut Told::default(), &mut |r| {
            add_names(&mut all, &r.columns.names);
            left -= 1;
            // The header line of CSV says it all.
            Ok(!r.columns.of_csv && left > 0)
        });
        add_names(&mut all, &stream.header.names);
    }
    Some(all)
}

/// Adds the names that are not there yet; whether there were any.
pub fn add_names(all: &mut Vec<String>, names: &[String]) -> bool {
    let before = all.len();
    for n in names {
        if all.len() < FIELDS_MAX && !all.iter().any(|a| a.eq_ignore_ascii_case(n)) {
            all.push(n.clone());
        }
    }
    all.len() > before
}

/// One file.
struct Stream<'a> {
    name: String,
    from: Box<dyn Read>,
    buf: Vec<u8>,
    start: usize,
    end: usize,
    is_over: bool,
    line: u64,
    header: Columns,
    /// Names of JSON objects; they come in few orders.
    layouts: Vec<Columns>,
    next_id: &'a mut u64,
    cells: Vec<Cell>,
    /// Values of a JSON object.
    values: Vec<u8>,
    quiet: bool,
}

/// What the beginning of the buffer holds.
enum Scanned {
    /// A record of so many bytes and lines.
    Record(usize, u64),
    /// Its beginning.
    More,
    No(Broken),
}

impl<'a> Stream<'a> {
    fn new(name: String, from: Box<dyn Read>, next_id: &'a mut u64) -> Stream<'a> {
        Stream {
            name,
            from,
            buf: vec![0; READ_BYTES + RECORD_MAX],
            start: 0,
            end: 0,
            is_over: false,
            line: 1,
            header: Columns { names: Vec::new(), of_csv: true, id: 0 },
            layouts: Vec::new(),
            next_id,
            cells: Vec::new(),
            values: Vec::new(),
            quiet: false,
        }
    }

    /// Makes room and reads; whether anything came.
    fn fill(&mut self, told: &mut Told) -> bool {
        self.buf.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        while !self.is_over && self.end < self.buf.len() {
            match self.from.read(&mut self.buf[self.end..]) {
                Ok(0) => self.is_over = true,
                Ok(n) => {
                    self.end += n;
                    return true;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    told.failed(&self.name, &e);
                    self.is_over = true;
                }
            }
        }
        false
    }

    fn run(&mut self, told: &mut Told, each: &mut dyn FnMut(&Record) -> Next) -> Next {
        let goes_on = self.records(told, each);
        if !self.quiet {
            told.end_of_file(&self.name);
        }
        goes_on
    }

    fn records(&mut self, told: &mut Told, each: &mut dyn FnMut(&Record) -> Next) -> Next {
        loop {
            if self.start == self.end && !self.fill(told) {
                return Ok(true);
            }
            match self.buf[self.start] {
                b'\n' => {
                    self.start += 1;
                    self.line += 1;
                }
                b'\r' if self.buf[self.start..self.end].get(1) == Some(&b'\n') => self.start += 1,
                b'{' => {
                    if !self.json(told, each)? {
                        return Ok(false);
                    }
                }
                first => match self.csv(told, each)? {
                    Line::Taken => {}
                    Line::Enough => return Ok(false),
                    Line::NoHeader => {
                        if !self.quiet {
                            told.failed(
                                &self.name,
                                &no_accounting_file(&[first, self.buf.get(self.start + 1).copied().unwrap_or(0)]),
                            );
                        }
                        return Ok(true);
                    }
                },
            }
        }
    }

    /// Leaves out the line that the buffer begins with.
    fn skip(&mut self, told: &mut Told, why: Broken) {
        if !self.quiet {
            told.broken(&self.name, self.line, why);
        }
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.buf[self.start..self.end]) {
                self.start += end + 1;
                self.line += 1;
                return;
            }
            self.start = self.end;
            if !self.fill(told) {
                return;
            }
        }
    }

    fn csv(&mut self, told: &mut Told, each: &mut dyn FnMut(&Record) -> Next) -> io::Result<Line> {
        let (bytes, lines) = match self.scanned(told) {
            Ok(found) => found,
            Err(_) if self.header.names.is_empty() => return Ok(Line::NoHeader),
            Err(why) => {
                self.skip(told, why);
                return Ok(Line::Taken);
            }
        };
        let from = self.start;
        let record = |columns| Record { bytes: &self.buf[from..from + bytes], cells: &self.cells, columns };
        let first = record(&self.header).value(0);
        // A header line stands at the beginning, and within what was put together from several files.
        if first.eq_ignore_ascii_case(b"type") {
            let names =
                (0..self.cells.len()).map(|i| String::from_utf8_lossy(&record(&self.header).value(i)).into_owned());
            let names: Vec<String> = names.collect();
            if names != self.header.names {
                *self.next_id += 1;
                self.header = Columns { names, of_csv: true, id: *self.next_id };
            }
            self.start += bytes;
            self.line += lines;
            return Ok(Line::Taken);
        }
        let columns = self.header.names.len();
        if columns == 0 {
            return Ok(Line::NoHeader);
        }
        // PowerMTA's own samples leave a last column out that is empty.
        let lacks_pool = self.cells.len() + 1 == columns && self.header.names[columns - 1] == "vmtaPool";
        if self.cells.len() != columns && !lacks_pool {
            let why = Broken::Fields(self.cells.len(), columns);
            self.skip(told, why);
            return Ok(Line::Taken);
        }
        let wants_more = each(&record(&self.header))?;
        self.start += bytes;
        self.line += lines;
        Ok(if wants_more { Line::Taken } else { Line::Enough })
    }

    /// The record that the buffer begins with: its bytes and lines.
    fn scanned(&mut self, told: &mut Told) -> Result<(usize, u64), Broken> {
        loop {
            match scan(&self.buf[self.start..self.end], self.is_over, &mut self.cells) {
                Scanned::Record(bytes, lines) => return Ok((bytes, lines)),
                Scanned::No(why) => return Err(why),
                Scanned::More if self.end - self.start >= RECORD_MAX => return Err(Broken::Long),
                Scanned::More => {
                    self.fill(told);
                }
            }
        }
    }

    fn json(&mut self, told: &mut Told, each: &mut dyn FnMut(&Record) -> Next) -> Next {
        let mut looked = 0;
        let bytes = loop {
            let line = &self.buf[self.start..self.end];
            match memchr::memchr(b'\n', &line[looked..]) {
                Some(end) => break looked + end + 1,
                None if self.is_over => break line.len(),
                None if line.len() >= RECORD_MAX => {
                    self.skip(told, Broken::Long);
                    return Ok(true);
                }
                None => {
                    looked = line.len();
                    self.fill(told);
                }
            }
        };
        let Ok(object) = serde_json::from_slice::<Object>(&self.buf[self.start..self.start + bytes]) else {
            self.skip(told, Broken::Json);
            return Ok(true);
        };
        let names = || object.0.iter().map(|(n, _)| n.0.as_ref());
        let known = self.layouts.iter().position(|l| l.names.iter().map(String::as_str).eq(names()));
        self.values.clear();
        self.cells.clear();
        for (_, value) in &object.0 {
            let from = self.values.len();
            self.values.extend_from_slice(value.0.as_bytes());
            self.cells.push(Cell { from, to: self.values.len(), doubled: false });
        }
        let at = known.unwrap_or_else(|| {
            if self.layouts.len() >= LAYOUTS_MAX {
                self.layouts.clear();
            }
            *self.next_id += 1;
            self.layouts.push(Columns {
                names: names().map(str::to_owned).collect(),
                of_csv: false,
                id: *self.next_id,
            });
            self.layouts.len() - 1
        });
        let record = Record { bytes: &self.values, cells: &self.cells, columns: &self.layouts[at] };
        let wants_more = each(&record)?;
        self.start += bytes;
        self.line += 1;
        Ok(wants_more)
    }
}

enum Line {
    Taken,
    Enough,
    NoHeader,
}

fn no_accounting_file(first: &[u8; 2]) -> &'static str {
    match first {
        [0x1f, 0x8b] => "the file is compressed; unpack it, or read it as standard input: `zcat FILE | … -`",
        [0x28, 0xb5] => "the file is compressed; unpack it, or read it as standard input: `zstdcat FILE | … -`",
        _ => "no accounting file: its first line does not name the columns, `type` first",
    }
}

fn scan(bytes: &[u8], is_last: bool, cells: &mut Vec<Cell>) -> Scanned {
    cells.clear();
    let (mut at, mut lines) = (0, 1);
    loop {
        if cells.len() == FIELDS_MAX {
            return Scanned::No(Broken::Many);
        }
        let end = if bytes.get(at) == Some(&b'"') {
            let (from, mut doubled) = (at + 1, false);
            let mut look = from;
            let end = loop {
                let Some(quote) = memchr::memchr(b'"', &bytes[look..]).map(|q| look + q) else {
                    return if is_last { Scanned::No(Broken::Quote) } else { Scanned::More };
                };
                match bytes.get(quote + 1) {
                    Some(b'"') => {
                        doubled = true;
                        look = quote + 2;
                    }
                    None if !is_last => return Scanned::More,
                    _ => break quote,
                }
            };
            lines += memchr::memchr_iter(b'\n', &bytes[from..end]).count() as u64;
            cells.push(Cell { from, to: end, doubled });
            end + 1
        } else {
            let end = match memchr::memchr2(b',', b'\n', &bytes[at..]) {
                Some(n) => at + n,
                None if is_last => bytes.len(),
                None => return Scanned::More,
            };
            let ends_line = bytes.get(end) != Some(&b',');
            let to = if ends_line && end > at && bytes[end - 1] == b'\r' { end - 1 } else { end };
            cells.push(Cell { from: at, to, doubled: false });
            end
        };
        match (bytes.get(end), bytes.get(end + 1)) {
            (Some(b','), _) => at = end + 1,
            (Some(b'\n'), _) => return Scanned::Record(end + 1, lines),
            (Some(b'\r'), Some(b'\n')) => return Scanned::Record(end + 2, lines),
            (Some(b'\r'), None) if !is_last => return Scanned::More,
            (None, _) if is_last => return Scanned::Record(end, lines),
            (None, _) => return Scanned::More,
            _ => return Scanned::No(Broken::Quote),
        }
    }
}

/// A JSON object whose values are texts, numbers and nothings.
struct Object<'a>(Vec<(Text<'a>, Text<'a>)>);

struct Text<'a>(Cow<'a, str>);

impl<'de> serde::Deserialize<'de> for Object<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> serde::de::Visitor<'de> for Fields {
            type Value = Object<'de>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Object<'de>, A::Error> {
                let mut all = Vec::with_capacity(32);
                while let Some(field) = map.next_entry()? {
                    if all.len() == FIELDS_MAX {
                        return Err(serde::de::Error::custom("too many fields"));
                    }
                    all.push(field);
                }
                Ok(Object(all))
            }
        }
        from.deserialize_map(Fields)
    }
}

impl<'de> serde::Deserialize<'de> for Text<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Value;
        impl<'de> serde::de::Visitor<'de> for Value {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a text or number")
            }
            fn visit_borrowed_str<E>(self, v: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(v)))
            }
            fn visit_str<E>(self, v: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(v.to_owned())))
            }
            fn visit_unit<E>(self) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed("")))
            }
            fn visit_bool<E>(self, v: bool) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(if v { "true" } else { "false" })))
            }
            fn visit_i64<E>(self, v: i64) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(v.to_string())))
            }
            fn visit_u64<E>(self, v: u64) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(v.to_string())))
            }
            fn visit_f64<E>(self, v: f64) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(v.to_string())))
            }
        }
        from.deserialize_any(Value)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Gives a few bytes at a time, so that records lie across reads.
    struct Dripping(Vec<u8>, usize);

    impl Read for Dripping {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            let n = self.1.min(self.0.len()).min(to.len());
            to[..n].copy_from_slice(&self.0[..n]);
            self.0.drain(..n);
            Ok(n)
        }
    }

    fn records(bytes: &[u8], at_once: usize) -> (Vec<Vec<(String, String)>>, u64, bool) {
        let (mut all, mut told, mut ids) = (Vec::new(), Told::default(), 0);
        let mut stream = Stream::new("x".into(), Box::new(Dripping(bytes.to_vec(), at_once)), &mut ids);
        let done = stream.records(&mut told, &mut |r| {
            let cells = r.columns.names.iter().enumerate();
            all.push(cells.map(|(i, n)| (n.clone(), String::from_utf8_lossy(&r.value(i)).into_owned())).collect());
            Ok(true)
        });
        assert!(done.unwrap());
        (all, told.broken, told.failed)
    }

    proptest! {
        #[test]
        fn records_come_back_as_they_were_written(
            rows in proptest::collection::vec(proptest::collection::vec("[a,\"\r\n é]{0,5}", 3), 0..6), at_once in 1usize..40, csv in any::<bool>(),
        ) {
            let mut bytes = Vec::new();
            if csv {
                let mut w = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(&mut bytes);
                w.write_record(["type", "a", "b", "c"]).unwrap();
                rows.iter().for_each(|r| w.write_record(std::iter::once("d").chain(r.iter().map(String::as_str))).unwrap());
                w.flush().unwrap();
            } else {
                for r in &rows {
                    let line = serde_json::json!({ "type": "d", "a": r[0], "b": r[1], "c": r[2] });
                    bytes.extend_from_slice(format!("{line}\n").as_bytes());
                }
            }
            let (read, broken, failed) = records(&bytes, at_once);
            prop_assert!(broken == 0 && !failed);
            let value = |r: &[(String, String)], name: &str| r.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone()).unwrap();
            let back: Vec<Vec<String>> = read.iter().map(|r| ["a", "b", "c"].map(|n| value(r, n)).to_vec()).collect();
            prop_assert_eq!(back, rows);
        }

        #[test]
        fn any_bytes_are_read_to_their_end(bytes in proptest::collection::vec(prop_oneof![Just(b'"'), Just(b','), Just(b'\n'), Just(b'{'), any::<u8>()], 0..300), at_once in 1usize..40) {
            let mut with_header = b"type,a\n".to_vec();
            with_header.extend_from_slice(&bytes);
            records(&bytes, at_once);
            records(&with_header, at_once);
        }
    }

    #[test]
    fn broken_lines_cost_themselves_alone() {
        let text = "type,rcpt,vmta\r\nd,a,v\r\nd,torn\r\nd,\"open,v\r\nd,b,\"x\"y\r\n\r\nd,c,v\r\n{\"type\":\"b\",\"rcpt\":[]}\r\n{\"type\":\"b\",\"new\":7,\"none\":null}\r\ntype,rcpt\r\nd,e\nd,f";
        let (read, broken, failed) = records(text.as_bytes(), 7);
        let short: Vec<String> =
            read.iter().map(|r| r.iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            short,
            ["type=d rcpt=a vmta=v", "type=d rcpt=c vmta=v", "type=b new=7 none=", "type=d rcpt=e", "type=d rcpt=f"]
        );
        assert_eq!((broken, failed), (4, false));
        assert!(records(b"d,a\nd,b\n", 9).2, "no header");
        assert_eq!(records(b"type,a,vmtaPool\nd,a\nd,b,p\n", 9).0.len(), 2, "as PowerMTA's samples");
    }

    #[test]
    fn a_record_without_end_takes_no_more_than_its_bound() {
        let mut text = b"type,a\nd,\"".to_vec();
        text.extend(std::iter::repeat_n(b'x', 3 * RECORD_MAX));
        text.extend_from_slice(b"\nd,b\n");
        let (read, broken, _) = records(&text, READ_BYTES);
        assert_eq!((read.len(), broken), (1, 1));
    }
}
