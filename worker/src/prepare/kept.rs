//! Fields that receivers do not see, but whoever delivers has to, maybe after a restart: what a message asks of its
//! signature, and which of its fields do not go out. They are kept in front of the stored content, and the envelope says which there are.

use bytes::Bytes;
use ipc::message::kept;

use super::headers;
use crate::dkim::request::Request;

/// Longest field of a message that is kept, bytes.
const FIELD_MAX: usize = 16 << 10;
/// Names and marks of the fields, in the order that they are written in.
const NAMES: [(&str, u8); 3] =
    [("X-DKIM-Options", kept::DKIM_OPTIONS), ("X-DKIM-Key", kept::DKIM_KEY), ("Removed", kept::REMOVED)];

/// What is kept of a message.
#[derive(Debug, Default, Clone, Copy)]
pub struct Fields<'a> {
    /// The value of `X-DKIM-Options`.
    pub dkim_options: Option<&'a [u8]>,
    /// The value of `X-DKIM-Key`.
    pub dkim_key: Option<&'a [u8]>,
    /// Names of fields that do not go out (`remove-header` of its source).
    pub removed: &'a [String],
}

impl Fields<'_> {
    /// The fields to put in front of content, and the envelope's word for what they are.
    pub fn keep(self) -> (Vec<u8>, u8) {
        let (mut head, mut marks) = (Vec::new(), 0);
        let removed = (!self.removed.is_empty()).then(|| format!(" {}", self.removed.join(",")));
        let fits = |v: &&[u8]| v.len() <= FIELD_MAX;
        let values =
            [self.dkim_options.filter(fits), self.dkim_key.filter(fits), removed.as_deref().map(str::as_bytes)];
        for ((name, mark), value) in NAMES.into_iter().zip(values) {
            let Some(value) = value else { continue };
            head.extend_from_slice(name.as_bytes());
            head.push(b':');
            head.extend_from_slice(value);
            head.extend_from_slice(b"\r\n");
            marks |= mark;
        }
        (head, marks)
    }
}

/// Parts stored content into what goes out, what it asks of its signature, and the names of fields that do not go out.
pub fn part(body: [Bytes; 2], marks: u8) -> ([Bytes; 2], Option<Request>, Vec<String>) {
    if marks == 0 {
        return (body, None, Vec::new());
    }
    let (fields, _) = headers::parse(&body[0]);
    let own = &fields[..(marks.count_ones() as usize).min(fields.len())];
    let value = |mark: u8| {
        let (name, _) = NAMES.into_iter().find(|(_, m)| *m == mark && marks & mark != 0)?;
        own.iter().find(|f| f.name == name).map(|f| headers::unfolded(f.value))
    };
    let (options, removed) = (value(kept::DKIM_OPTIONS), value(kept::REMOVED));
    let key = own.iter().find(|f| f.name == "X-DKIM-Key").map(|f| String::from_utf8_lossy(f.value));
    let asks = options.is_some() || key.is_some();
    let dkim = asks.then(|| Request::of(options.as_deref(), key.as_deref()));
    let removed = removed.iter().flat_map(|r| r.split(',')).map(str::to_owned).collect();
    let end = own.last().map_or(0, |f| f.range.end);
    let [head, rest] = body;
    ([head.slice(end..), rest], dkim, removed)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_in_front_does_not_go_out() {
        let removed = ["X-Mailer".to_owned(), "X-Id".to_owned()];
        let all =
            Fields { dkim_options: Some(b" s=Sel;\r\n d=d.test"), dkim_key: Some(b" rubbish"), removed: &removed };
        for (fields, asks) in [
            (all, true),
            (Fields { removed: &[], ..all }, true),
            (Fields { dkim_options: None, dkim_key: None, ..all }, false),
        ] {
            let (head, marks) = fields.keep();
            let stored = Bytes::from([&head[..], b"From: a@b\r\n\r\nx"].concat());
            let (out, dkim, names) = part([stored.clone(), Bytes::new()], marks);
            assert_eq!(out[0], b"From: a@b\r\n\r\nx"[..]);
            assert_eq!(names, fields.removed);
            assert_eq!(
                dkim.as_ref().map(|r| (r.selector.as_str(), r.domain.as_str(), r.unusable_key)),
                match asks {
                    true => Some(("Sel", "d.test", true)),
                    false => None,
                }
            );
            let (out, dkim, names) = part([stored.clone(), Bytes::new()], 0);
            assert!(out[0] == stored && dkim.is_none() && names.is_empty());
        }
    }

    #[test]
    fn a_field_that_is_too_long_is_not_kept() {
        let long = vec![b'x'; FIELD_MAX + 1];
        assert_eq!(Fields { dkim_key: Some(&long), ..Fields::default() }.keep(), (Vec::new(), 0));
    }
}
