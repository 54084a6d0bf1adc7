//! Fields that do not go out (`remove-header`). The stored message has them: accounting and rules see what came.

use bytes::Bytes;
use ipc::rules::DomainRules;

use crate::prepare::content::Content;
use crate::prepare::headers;

/// Whether any may have to go.
pub fn any(content: &Content, rules: &DomainRules) -> bool {
    !content.removed.is_empty() || !rules.remove_header.is_empty()
}

/// The content without the fields that its source, or the rules of its path, name.
pub fn without(content: &Content, rules: &DomainRules) -> [Bytes; 2] {
    let body = &content.body;
    if !any(content, rules) {
        return body.clone();
    }
    let (fields, end) = headers::parse(&body[0]);
    let goes = |name: &str| content.removed.iter().chain(&rules.remove_header).any(|n| n.eq_ignore_ascii_case(name));
    let mut head = Vec::with_capacity(body[0].len().min(end + 2));
    let mut at = 0;
    for f in fields.iter().filter(|f| goes(f.name)) {
        head.extend_from_slice(&body[0][at..f.range.start]);
        at = f.range.end;
    }
    if at == 0 {
        return body.clone();
    }
    head.extend_from_slice(&body[0][at..end]);
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
        c.removed = removed.iter().map(|r| (*r).to_owned()).collect();
        c
    }

    fn left(body: [&str; 2], removed: &[&str]) -> String {
        let all = without(&content(body, removed), &DomainRules::default());
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
