//! The look of `pmtastats`: headings and tables, as text or HTML.

use super::output::markup;

/// Where the cells of a column stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

/// A column: its head and where its cells stand. One without a head has no line below it.
pub type Column<'a> = (&'a str, Align);

/// Characters up to which the last column has a line of its width below its head.
const LAST_WIDTH_MAX: usize = 24;

/// A report in the making.
#[derive(Debug)]
pub struct Report {
    html: bool,
    out: String,
}

impl Report {
    /// Begins one.
    pub fn new(html: bool) -> Report {
        let out = match html {
            true => {
                "<!DOCTYPE html>\n<html><head><meta charset=\"utf-8\"><title>pmtastats</title></head><body>\n".into()
            }
            false => String::new(),
        };
        Report { html, out }
    }

    /// What a report of its own is about.
    pub fn title(&mut self, text: &str) {
        self.line(0, "h1", text);
    }

    /// The name of a statistic.
    pub fn heading(&mut self, text: &str) {
        self.line(0, "h2", text);
    }

    /// The name of a table.
    pub fn subheading(&mut self, text: &str) {
        self.line(3, "h3", text);
    }

    /// A remark.
    pub fn remark(&mut self, text: &str) {
        self.line(3, "p", text);
    }

    fn line(&mut self, indent: usize, element: &str, text: &str) {
        if self.html {
            self.out.push_str(&format!("<{element}>{}</{element}>\n", escaped(text)));
        } else {
            self.out.push_str(&format!("{:indent$}{text}\n\n", ""));
        }
    }

    /// A table, so many blanks from the left.
    pub fn table(&mut self, indent: usize, columns: &[Column], rows: &[Vec<String>]) {
        if self.html {
            return self.html_table(columns, rows);
        }
        let mut widths: Vec<usize> = columns.iter().map(|(head, _)| head.chars().count()).collect();
        for r in rows {
            for (w, c) in widths.iter_mut().zip(r) {
                *w = (*w).max(c.chars().count());
            }
        }
        // What stands last may be a reply, and longer than any line.
        if let (Some(last), Some((head, Align::Left))) = (widths.last_mut(), columns.last())
            && *last > LAST_WIDTH_MAX
        {
            *last = head.chars().count();
        }
        let mut line = |cells: &mut dyn Iterator<Item = String>| {
            let mut text = " ".repeat(indent);
            for (n, cell) in cells.enumerate() {
                if n > 0 {
                    text.push_str("  ");
                }
                let room = " ".repeat(widths[n].saturating_sub(cell.chars().count()));
                match columns[n].1 {
                    Align::Left => text.push_str(&format!("{cell}{room}")),
                    Align::Right => text.push_str(&format!("{room}{cell}")),
                }
            }
            self.out.push_str(text.trim_end());
            self.out.push('\n');
        };
        line(&mut columns.iter().map(|(head, _)| (*head).to_owned()));
        let below = |n: usize| if columns[n].0.is_empty() { 0 } else { widths[n] };
        line(&mut (0..columns.len()).map(|n| "-".repeat(below(n))));
        for r in rows {
            line(&mut r.iter().cloned());
        }
        self.out.push('\n');
    }

    fn html_table(&mut self, columns: &[Column], rows: &[Vec<String>]) {
        self.out.push_str("<table border=\"1\">\n<tr>");
        for (head, _) in columns {
            self.out.push_str(&format!("<th>{}</th>", escaped(head)));
        }
        self.out.push_str("</tr>\n");
        for r in rows {
            self.out.push_str("<tr>");
            for (cell, (_, align)) in r.iter().zip(columns) {
                let side = if *align == Align::Right { " align=\"right\"" } else { "" };
                self.out.push_str(&format!("<td{side}>{}</td>", escaped(cell.trim())));
            }
            self.out.push_str("</tr>\n");
        }
        self.out.push_str("</table>\n");
    }

    /// The report.
    pub fn end(mut self) -> String {
        if self.html {
            self.out.push_str("</body></html>\n");
        }
        self.out
    }
}

fn escaped(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    markup(text.as_bytes(), &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

/// `1,234,567`
pub fn number(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (i, d) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(d);
    }
    out
}

/// `1,234.5`, of tenths.
pub fn tenths(n: u64) -> String {
    format!("{}.{}", number(n / 10), n % 10)
}

/// `12.5%`
pub fn percent(part: u64, whole: u64) -> String {
    let thousandths = (u128::from(part) * 2000 / u128::from(whole.max(1))).div_ceil(2) as u64;
    format!("{}%", tenths(thousandths))
}

/// `0:05:01`
pub fn hours(seconds: u64) -> String {
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_and_tables_look_as_they_should() {
        assert_eq!([number(0), number(999), number(1_234_567)], ["0", "999", "1,234,567"]);
        assert_eq!([percent(1, 3), percent(2, 3), percent(0, 0), percent(5, 5)], ["33.3%", "66.7%", "0.0%", "100.0%"]);
        assert_eq!(hours(3_661), "1:01:01");
        let mut r = Report::new(false);
        let rows = [vec!["total".into(), "7".into(), "a long reply of somebody else".into()]];
        r.table(2, &[("", Align::Left), ("count", Align::Right), ("dsn", Align::Left)], &rows);
        assert_eq!(
            r.end(),
            "         count  dsn\n         -----  ---\n  total      7  a long reply of somebody else\n\n"
        );
        let mut r = Report::new(true);
        r.heading("a<b");
        assert!(r.end().contains("<h2>a&lt;b</h2>"));
    }
}
