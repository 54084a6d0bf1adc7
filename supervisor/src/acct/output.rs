//! How `acctfind` prints records.

use std::borrow::Cow;
use std::io::{self, Write};

use worker::account::columns::write_cell;

use super::moment::Clock;

/// A form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Format {
    /// A field a line, an empty line behind a record.
    Standard,
    Csv,
    Tsv,
    Html,
    Xml,
    PrettyXml,
    /// Texts, and the numbers of fields between them.
    Custom(Vec<Part>),
}

/// A piece of a custom form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    Text(String),
    Field(usize),
}

/// A form with the fields to show.
#[derive(Debug)]
pub struct Output {
    format: Format,
    names: Vec<String>,
    header: bool,
}

impl Output {
    /// Reads `FORMAT[FIELDS]`: the form, and the fields where some are named.
    ///
    /// # Errors
    /// A sentence.
    pub fn parse(text: &str) -> Result<(Format, Option<Vec<String>>), String> {
        let (name, list) = match text.split_once('[') {
            Some((name, list)) => {
                (name, Some(list.strip_suffix(']').ok_or("expected ] behind the fields of --output")?))
            }
            None => (text, None),
        };
        let fields = list.map(|l| l.split(',').map(str::trim).filter(|f| !f.is_empty()).map(str::to_owned).collect());
        let format = match name {
            "standard" => Format::Standard,
            "csv" => Format::Csv,
            "tsv" => Format::Tsv,
            "html" => Format::Html,
            "xml" => Format::Xml,
            "prettyxml" => Format::PrettyXml,
            "custom" => {
                let (parts, fields) = custom(list.unwrap_or_default())?;
                return Ok((Format::Custom(parts), Some(fields)));
            }
            other => {
                return Err(format!(
                    "expected standard, csv, tsv, html, xml, prettyxml or custom[TEXT] for --output, found `{other}`"
                ));
            }
        };
        Ok((format, fields.filter(|f: &Vec<String>| !f.is_empty())))
    }

    /// Shows fields of these names; `header` for a first line of csv and tsv.
    pub fn new(format: Format, names: Vec<String>, header: bool) -> Output {
        Output { format, names, header }
    }

    /// The fields.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The fields, to be added to.
    pub fn names_mut(&mut self) -> &mut Vec<String> {
        &mut self.names
    }

    /// What stands before the first record.
    ///
    /// # Errors
    /// Those of writing.
    pub fn begin(&self, to: &mut dyn Write) -> io::Result<()> {
        match self.format {
            Format::Html => {
                to.write_all(b"<!DOCTYPE html>\n<html><head><meta charset=\"utf-8\"><title>acctfind</title></head><body>\n<table border=\"1\">\n")?;
                self.heads(to)
            }
            Format::Xml | Format::PrettyXml => to.write_all(b"<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<records>\n"),
            _ => self.heads(to),
        }
    }

    /// Names of columns, again when there are more of them.
    ///
    /// # Errors
    /// Those of writing.
    pub fn begin_anew(&self, to: &mut dyn Write, has_begun: bool) -> io::Result<()> {
        if has_begun { self.heads(to) } else { self.begin(to) }
    }

    fn heads(&self, to: &mut dyn Write) -> io::Result<()> {
        let mut line = Vec::new();
        match self.format {
            Format::Csv if self.header => {
                for (n, name) in self.names.iter().enumerate() {
                    separated(n, b',', &mut line);
                    write_cell(name.as_bytes(), &mut line);
                }
                line.extend_from_slice(b"\r\n");
            }
            Format::Tsv if self.header => {
                for (n, name) in self.names.iter().enumerate() {
                    separated(n, b'\t', &mut line);
                    tsv_cell(name.as_bytes(), &mut line);
                }
                line.push(b'\n');
            }
            Format::Html => {
                line.extend_from_slice(b"<tr>");
                for name in &self.names {
                    line.extend_from_slice(b"<th>");
                    markup(name.as_bytes(), &mut line);
                    line.extend_from_slice(b"</th>");
                }
                line.extend_from_slice(b"</tr>\n");
            }
            _ => {}
        }
        to.write_all(&line)
    }

    /// A record; `value` answers the field of a number and name. Times that are numbers become dates where there is a clock.
    pub fn record<'a>(
        &self,
        out: &mut Vec<u8>,
        mut clock: Option<&mut Clock>,
        value: impl Fn(usize, &str) -> Cow<'a, [u8]>,
    ) {
        let mut field = |n: usize, name: &str| -> Cow<'a, [u8]> {
            let value = value(n, name);
            match &mut clock {
                Some(clock) if is_time(name) && value.iter().all(u8::is_ascii_digit) => {
                    clock.read(&value).map_or(value, |m| m.with_offset().into_bytes().into())
                }
                _ => value,
            }
        };
        let names = self.names.iter().enumerate();
        match &self.format {
            Format::Standard => {
                for (n, name) in names {
                    let value = field(n, name);
                    if !value.is_empty() {
                        out.extend_from_slice(name.as_bytes());
                        out.extend_from_slice(b": ");
                        printable(&value, out);
                        out.push(b'\n');
                    }
                }
                out.push(b'\n');
            }
            Format::Csv => {
                for (n, name) in names {
                    separated(n, b',', out);
                    write_cell(&field(n, name), out);
                }
                out.extend_from_slice(b"\r\n");
            }
            Format::Tsv => {
                for (n, name) in names {
                    separated(n, b'\t', out);
                    tsv_cell(&field(n, name), out);
                }
                out.push(b'\n');
            }
            Format::Html => {
                out.extend_from_slice(b"<tr>");
                for (n, name) in names {
                    out.extend_from_slice(b"<td>");
                    markup(&field(n, name), out);
                    out.extend_from_slice(b"</td>");
                }
                out.extend_from_slice(b"</tr>\n");
            }
            Format::Xml | Format::PrettyXml => {
                let (indent, end): (&[u8], &[u8]) =
                    if self.format == Format::Xml { (b"", b"") } else { (b"    ", b"\n") };
                out.extend_from_slice(&indent[..indent.len() / 2]);
                out.extend_from_slice(b"<record>");
                out.extend_from_slice(end);
                for (n, name) in names {
                    let element = element(name);
                    out.extend_from_slice(indent);
                    let _ = write!(out, "<{element}>");
                    markup(&field(n, name), out);
                    let _ = write!(out, "</{element}>");
                    out.extend_from_slice(end);
                }
                out.extend_from_slice(&indent[..indent.len() / 2]);
                out.extend_from_slice(b"</record>\n");
            }
            Format::Custom(parts) => {
                for p in parts {
                    match p {
                        Part::Text(t) => out.extend_from_slice(t.as_bytes()),
                        Part::Field(n) => printable(&field(*n, &self.names[*n]), out),
                    }
                }
                out.push(b'\n');
            }
        }
    }

    /// What stands behind the last record.
    ///
    /// # Errors
    /// Those of writing.
    pub fn end(&self, to: &mut dyn Write) -> io::Result<()> {
        match self.format {
            Format::Html => to.write_all(b"</table>\n</body></html>\n"),
            Format::Xml | Format::PrettyXml => to.write_all(b"</records>\n"),
            _ => Ok(()),
        }
    }
}

fn is_time(name: &str) -> bool {
    let is = |n: &str| name.eq_ignore_ascii_case(n);
    is("timeLogged") || is("timeQueued") || is("timeDelivered") || is("timeFirstAttempt") || is("timeImprinted")
}

fn separated(n: usize, by: u8, out: &mut Vec<u8>) {
    if n > 0 {
        out.push(by);
    }
}

/// A cell of a line: what separates cells and lines is a blank in it.
fn tsv_cell(value: &[u8], out: &mut Vec<u8>) {
    out.extend(value.iter().map(|b| if matches!(b, b'\t' | b'\r' | b'\n') { b' ' } else { *b }));
}

/// For a terminal: control characters are blanks.
fn printable(value: &[u8], out: &mut Vec<u8>) {
    out.extend(value.iter().map(|b| if b.is_ascii_control() { b' ' } else { *b }));
}

/// Text of HTML and XML.
pub fn markup(value: &[u8], out: &mut Vec<u8>) {
    for c in String::from_utf8_lossy(value).chars() {
        match c {
            '<' => out.extend_from_slice(b"&lt;"),
            '>' => out.extend_from_slice(b"&gt;"),
            '&' => out.extend_from_slice(b"&amp;"),
            '"' => out.extend_from_slice(b"&quot;"),
            // XML has no such characters.
            '\u{0}'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => out.push(b' '),
            c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// The name of an XML element for a field.
fn element(name: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let name: String = name.chars().map(|c| if fits(c) { c } else { '_' }).collect();
    if name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') { name } else { format!("_{name}") }
}

fn custom(text: &str) -> Result<(Vec<Part>, Vec<String>), String> {
    let (mut parts, mut fields, mut literal) = (Vec::new(), Vec::new(), String::new());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('t') => literal.push('\t'),
                Some('n') => literal.push('\n'),
                Some(other) => literal.push(other),
                None => literal.push('\\'),
            },
            '{' => {
                let rest = chars.as_str();
                let (name, behind) = rest.split_once('}').ok_or("expected } behind a field of custom[TEXT]")?;
                if name.is_empty() {
                    return Err("expected the name of a field in {} of custom[TEXT]".into());
                }
                parts.push(Part::Text(std::mem::take(&mut literal)));
                parts.push(Part::Field(fields.len()));
                fields.push(name.to_owned());
                chars = behind.chars();
            }
            c => literal.push(c),
        }
    }
    parts.push(Part::Text(literal));
    if fields.is_empty() {
        return Err("expected a text with {FIELD} in custom[TEXT]".into());
    }
    Ok((parts, fields))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn printed(text: &str, values: &[&str]) -> String {
        let (format, names) = Output::parse(text).unwrap();
        let out = Output::new(format, names.unwrap_or_else(|| vec!["a".into(), "b".into()]), true);
        let mut bytes = Vec::new();
        out.begin(&mut bytes).unwrap();
        out.record(&mut bytes, None, |n, _| Cow::Owned(values[n].as_bytes().to_vec()));
        out.end(&mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn what_separates_values_is_never_in_them() {
        let odd = ["x,\"y\"\r\n", "<&>\t"];
        assert_eq!(printed("csv", &odd), "a,b\r\n\"x,\"\"y\"\"\r\n\",<&>\t\r\n");
        assert_eq!(printed("tsv[to,dsnDiag]", &odd), "to\tdsnDiag\nx,\"y\"  \t<&> \n");
        assert_eq!(printed("standard", &odd), "a: x,\"y\"  \nb: <&> \n\n");
        assert!(printed("html", &odd).contains("<td>x,&quot;y&quot;\r\n</td><td>&lt;&amp;&gt;\t</td>"));
        assert!(printed("xml[header:x a,1b]", &odd).contains("<record><header_x_a>x,"));
        assert!(printed("prettyxml[1b]", &["\u{1}é"]).contains("  <record>\n    <_1b> é</_1b>\n  </record>\n"));
        assert_eq!(printed(r"custom[{to}\t-> {b}\]]", &["u", "v"]), "u\t-> v]\n");
    }

    #[test]
    fn other_forms_are_refused() {
        for wrong in ["json", "csv[to", "custom", "custom[]", "custom[{to]", "custom[{}]"] {
            assert!(Output::parse(wrong).is_err(), "{wrong}");
        }
    }
}
