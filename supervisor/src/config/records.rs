//! Types and fields of accounting records, by PowerMTA's names.

use ipc::queue_orders::QueuePattern;
use ipc::snapshot::QueueFilter;
use worker::account::field::{self, RecordType, record_type};

use super::nearest::nearest;
use super::problem::Problem;
use super::value::items;

/// A list of record types.
///
/// # Errors
/// [`Problem`]
pub fn types(text: &str) -> Result<(), Problem> {
    items(text).try_for_each(|i| record_type(i).map(drop).ok_or_else(|| no_record_type(i).at(i, text)))
}

fn no_record_type(found: &str) -> Problem {
    Problem::expected("a record type: d, b, t, tq, r, rb, rs or f", found)
}

/// The type and the fields that a `record-fields` asks for.
///
/// # Errors
/// [`Problem`]
pub fn fields(text: &str) -> Result<(RecordType, Vec<String>), Problem> {
    let (record, list) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let of @ (kind, short) = record_type(record).ok_or_else(|| no_record_type(record).at(record, text))?;
    if items(list).next().is_none() {
        return Err(Problem::other("the list of fields is missing"));
    }
    let listed: Vec<&str> = items(list).collect();
    let all = field::asked(kind, listed.into_iter()).map_err(|item| {
        let name = item.strip_prefix('!').unwrap_or(item);
        no_field(short, name).at(item, text)
    })?;
    Ok((of, all))
}

fn no_field(record_type: &str, name: &str) -> Problem {
    if name.eq_ignore_ascii_case("type") {
        return Problem::other("type is always the first field: it cannot be left out or replaced");
    }
    let known = field::all().any(|f| f.eq_ignore_ascii_case(name));
    let p = Problem::expected(format_args!("a field of {record_type} records"), name);
    if known {
        return p.help("other types of records have it");
    }
    let near = nearest(name, field::all());
    p.help(near.map(|n| format!("did you mean {n}?")).unwrap_or_default())
}

/// The type, the header and the field of a `map-header-to-field`.
///
/// # Errors
/// [`Problem`]
pub fn header_map(text: &str) -> Result<(RecordType, &str, String), Problem> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let [record, header, name] = words[..] else {
        return Err(Problem::expected("TYPE header_NAME FIELD", text));
    };
    let of @ (kind, short) = record_type(record).ok_or_else(|| no_record_type(record).at(record, text))?;
    if kind == b'q' {
        return Err(Problem::other("records of type tq are of no message and have no headers").at(record, text));
    }
    let named = header.get(..7).filter(|p| p.eq_ignore_ascii_case("header_")).map(|_| &header[7..]);
    let named =
        named.filter(|h| !h.is_empty()).ok_or_else(|| Problem::expected("header_NAME", header).at(header, text))?;
    let name = field::of_kind(kind, name).ok_or_else(|| no_field(short, name).at(name, text))?;
    Ok((of, named, name))
}

/// The entries of a `queue-filter`; one without a virtual MTA means `{default}`.
///
/// # Errors
/// [`Problem`]
pub fn queue_filter(text: &str) -> Result<Vec<QueueFilter>, Problem> {
    let entry = |item: &str| {
        let (excludes, pattern) = item.strip_prefix('!').map_or((false, item), |p| (true, p));
        if pattern.starts_with('{') {
            return Err(Problem::other("names in braces are no destinations").at(item, text));
        }
        let whole = if pattern.contains('/') { pattern.to_owned() } else { format!("{pattern}/{{default}}") };
        let of = QueuePattern::parse(&whole).map_err(|e| Problem::other(e).at(item, text))?;
        Ok(QueueFilter { excludes, of })
    };
    items(text).map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named_where_it_stands() {
        assert!(fields("b *,!orcpt,header_X").is_ok_and(|((_, t), f)| t == "b" && f.len() == 22));
        assert!(fields("r dsnDiag").is_err_and(|p| p.help.contains("other types")));
        assert!(fields("d rcpp").is_err_and(|p| p.help.contains("rcpt") && p.part == Some((2, 4))));
        assert!(
            header_map("feedback-loop header_X rcpt")
                .is_ok_and(|((_, t), h, f)| (t, h, f.as_str()) == ("f", "X", "rcpt"))
        );
        for wrong in ["tq header_X vmta", "d X rcpt", "d header_ rcpt", "d header_X nosuch", "d header_X"] {
            assert!(header_map(wrong).is_err(), "{wrong}");
        }
        let filter = queue_filter("!gmail.com/v1, *.com, */*").unwrap_or_default();
        assert_eq!(
            filter.iter().map(|f| f.of.to_string()).collect::<Vec<_>>(),
            ["gmail.com/v1", "*.com/{default}", "*/*"]
        );
        assert!(filter[0].excludes && queue_filter("{x}/*").is_err());
    }
}
