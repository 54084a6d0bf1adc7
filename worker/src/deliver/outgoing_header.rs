//! The header as it goes out: without fields that do not (`remove-header`), From by a `rewrite-list`, and with those that are known when mail is delivered
//! (`add-x-virtual-mta-header`, `date-header-time delivery`, and what is another to each recipient). The stored message is as it came: accounting and rules see that.

use bytes::Bytes;
use ipc::rules::DomainRules;

use crate::prepare::content::Content;
use crate::prepare::feedback_headers;
use crate::prepare::headers;
use crate::prepare::rewrite_list::RewriteList;

/// The way that mail goes out by, as far as its header shows it.
#[derive(Debug, Clone, Copy)]
pub struct Exit<'a> {
    /// Rules of the path.
    pub rules: &'a DomainRules,
    /// Name of the virtual MTA.
    pub vmta: &'a str,
    /// By what it is rewritten.
    pub rewriting: Option<&'a RewriteList>,
}

/// Whether it may be another than the stored one.
pub fn differs(content: &Content, exit: Exit<'_>) -> bool {
    content.kept.adds() || removes(content, exit.rules) || rewrites(exit)
}

fn rewrites(exit: Exit<'_>) -> bool {
    exit.rewriting.is_some_and(RewriteList::changes_header)
}

fn removes(content: &Content, rules: &DomainRules) -> bool {
    !content.kept.removed.is_empty() || !rules.remove_header.is_empty()
}

/// The content as it goes out at `now_s`, Unix seconds, to the recipient `to`, but for signatures.
pub fn outgoing(content: &Content, exit: Exit<'_>, to: &str, now_s: i64) -> [Bytes; 2] {
    let body = changed(content, exit);
    if !content.kept.adds() {
        return body;
    }
    let (fields, _) = headers::parse(&body[0]);
    let has = |name: &str| fields.iter().any(|f| f.name.eq_ignore_ascii_case(name));
    let mut head = String::new();
    if content.kept.adds_vmta && !has("X-Virtual-MTA") {
        head += &format!("X-Virtual-MTA: {}\r\n", exit.vmta);
    }
    if content.kept.adds_date && !has("Date") {
        head += &format!("Date: {}\r\n", crate::rfc5322_date(now_s));
    }
    content.kept.of_each.iter().for_each(|line| head += &feedback_headers::to_recipient(line, to));
    [Bytes::from([head.as_bytes(), &body[0]].concat()), body[1].clone()]
}

/// The content without the fields that its source, or the rules of its path, name, and with From as it is rewritten.
fn changed(content: &Content, exit: Exit<'_>) -> [Bytes; 2] {
    let body = &content.body;
    if !removes(content, exit.rules) && !rewrites(exit) {
        return body.clone();
    }
    let (fields, end) = headers::parse(&body[0]);
    let goes =
        |name: &str| content.kept.removed.iter().chain(&exit.rules.remove_header).any(|n| n.eq_ignore_ascii_case(name));
    let removed = fields.iter().filter(|f| goes(f.name)).map(|f| (f.range.clone(), Vec::new()));
    let rewritten = exit.rewriting.into_iter().flat_map(|list| list.changed(&fields)).filter(|(f, _)| !goes(f.name));
    let mut edits: Vec<_> = removed.chain(rewritten.map(|(f, value)| (f.place_of_value(), value))).collect();
    if edits.is_empty() {
        return body.clone();
    }
    edits.sort_unstable_by_key(|(place, _)| place.start);
    let mut head = Vec::with_capacity(body[0].len().min(end + 2));
    headers::edit(&body[0][..end], &edits, &mut head);
    // The header alone is copied where the rest is in one piece.
    let rest = match body[1].is_empty() {
        true => body[0].slice(end..),
        false => {
            head.extend_from_slice(&body[0][end..]);
            body[1].clone()
        }
    };
    [Bytes::from(head), rest]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn content(body: [&str; 2], removed: &[&str]) -> Content {
        let mut c = Content::new(rkyv::util::AlignedVec::new(), body.map(|b| Bytes::from(b.to_owned())));
        c.kept.removed = removed.iter().map(|r| (*r).to_owned()).collect();
        c
    }

    fn left(body: [&str; 2], removed: &[&str]) -> String {
        let exit = Exit { rules: &DomainRules::default(), vmta: "v", rewriting: None };
        let all = outgoing(&content(body, removed), exit, "u@d.test", 0);
        all.iter().map(|b| String::from_utf8_lossy(b).into_owned()).collect()
    }

    #[test]
    fn fields_go_with_their_folds_wherever_the_body_lies() {
        let (head, body) = ("A: 1\r\nX-b: 2\r\n\t3\r\nx-B: 4\r\nC: 5\r\n", "\r\nX-B: text\r\n");
        for parts in [[head, body], [&format!("{head}{body}"), ""], [&format!("{head}\r\n"), "X-B: text\r\n"]] {
            assert_eq!(left(parts, &["X-B"]), "A: 1\r\nC: 5\r\n\r\nX-B: text\r\n");
            assert_eq!(left(parts, &["a", "c", "x-b"]), "\r\nX-B: text\r\n");
            assert_eq!(left(parts, &["X", "B", "X-B:"]), format!("{head}{body}"));
        }
    }

    #[test]
    fn what_is_known_at_delivery_is_added_once() {
        let with = |header: &str, removed: &[&str]| {
            let mut c = content([header, "\r\nDate: body\r\n"], removed);
            (c.kept.adds_vmta, c.kept.adds_date) = (true, true);
            let exit = Exit { rules: &DomainRules::default(), vmta: "out-1", rewriting: None };
            let all = outgoing(&c, exit, "u@d.test", 86_400);
            all.iter().map(|b| String::from_utf8_lossy(b).into_owned()).collect::<String>()
        };
        let date = format!("Date: {}\r\n", crate::rfc5322_date(86_400));
        assert_eq!(with("A: 1\r\n", &[]), format!("X-Virtual-MTA: out-1\r\n{date}A: 1\r\n\r\nDate: body\r\n"));
        assert_eq!(with("date: x\r\nX-VIRTUAL-mta: y\r\n", &[]), "date: x\r\nX-VIRTUAL-mta: y\r\n\r\nDate: body\r\n");
        assert_eq!(with("Date: x\r\n", &["date"]), format!("X-Virtual-MTA: out-1\r\n{date}\r\nDate: body\r\n"));
    }

    proptest! {
        #[test]
        fn fields_of_the_name_go_and_nothing_else(text in "[aB: \t\r\n]{0,60}", cut in 0usize..60) {
            let (fields, end) = headers::parse(text.as_bytes());
            let stays = |f: &&headers::Field<'_>| !f.name.eq_ignore_ascii_case("A");
            let kept: String = fields.iter().filter(stays).map(|f| &text[f.range.clone()]).collect();
            let whole = left([&text, ""], &["A"]);
            prop_assert_eq!(&whole, &format!("{kept}{}", &text[end..]));
            // The header lies in one piece, wherever the body begins.
            let cut = cut.max(end).min(text.len());
            prop_assert_eq!(left([&text[..cut], &text[cut..]], &["A"]), whole);
        }
    }
}
