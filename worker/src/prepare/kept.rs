//! Fields that receivers do not see, but whoever delivers has to, maybe after a restart: what a message asks of its
//! signature, and which of its fields do not go out. They are kept in front of the stored content, and the envelope says which there are.

use bytes::Bytes;
use ipc::message::kept;

use super::headers;
use crate::dkim::request::Request;

/// Longest field of a message that is kept, bytes.
const FIELD_MAX: usize = 16 << 10;
/// Names and marks of the fields, in the order that they are written in.
const NAMES: [(&str, u8); 6] = [
    ("X-DKIM-Options", kept::DKIM_OPTIONS),
    ("X-DKIM-Key", kept::DKIM_KEY),
    ("Removed", kept::REMOVED),
    ("Added", kept::ADDED),
    ("Verp", kept::VERP),
    ("Each", kept::EACH),
];
/// What `Added` says of a field that is known at delivery.
const VMTA: &str = "x-virtual-mta";
const DATE: &str = "date";

/// What is known of how a message goes out.
#[derive(Debug, Default)]
pub struct Kept {
    /// What it asks of its signature.
    pub dkim: Option<Request>,
    /// Names of its fields that do not go out, whatever the path.
    pub removed: Vec<String>,
    /// It names the virtual MTA that it leaves by (`add-x-virtual-mta-header`).
    pub adds_vmta: bool,
    /// It is dated when it is delivered (`date-header-time delivery`).
    pub adds_date: bool,
    /// Fields that are another to each recipient, see [`super::feedback_headers`].
    pub of_each: Vec<String>,
}

impl Kept {
    /// Fields are added at delivery.
    pub fn adds(&self) -> bool {
        self.adds_vmta || self.adds_date || !self.of_each.is_empty()
    }
}

/// What is kept of a message.
#[derive(Debug, Default, Clone, Copy)]
pub struct Fields<'a> {
    /// The value of `X-DKIM-Options`.
    pub dkim_options: Option<&'a [u8]>,
    /// The value of `X-DKIM-Key`.
    pub dkim_key: Option<&'a [u8]>,
    /// Names of fields that do not go out (`remove-header` of its source).
    pub removed: &'a [String],
    /// [`Kept::adds_vmta`]
    pub adds_vmta: bool,
    /// [`Kept::adds_date`]
    pub adds_date: bool,
    /// The sender is another to each recipient: the envelope's mark says so, and has a field like the others.
    pub verp: bool,
    /// [`Kept::of_each`]
    pub of_each: &'a [String],
}

impl Fields<'_> {
    /// The fields to put in front of content, and the envelope's word for what they are.
    pub fn keep(self) -> (Vec<u8>, u8) {
        let (mut head, mut marks) = (Vec::new(), 0);
        let removed = (!self.removed.is_empty()).then(|| format!(" {}", self.removed.join(",")));
        let added: Vec<&str> = [(self.adds_vmta, VMTA), (self.adds_date, DATE)]
            .into_iter()
            .filter_map(|(on, n)| on.then_some(n))
            .collect();
        let added = (!added.is_empty()).then(|| format!(" {}", added.join(",")));
        // No such field has a tab.
        let of_each = (!self.of_each.is_empty()).then(|| format!(" {}", self.of_each.join("\t")));
        let fits = |v: &&[u8]| v.len() <= FIELD_MAX;
        let values = [
            self.dkim_options.filter(fits),
            self.dkim_key.filter(fits),
            removed.as_deref().map(str::as_bytes),
            added.as_deref().map(str::as_bytes),
            self.verp.then_some(&b" yes"[..]),
            of_each.as_deref().map(str::as_bytes),
        ];
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

/// Parts stored content into what came, and what is known of how it goes out.
pub fn part(body: [Bytes; 2], marks: u8) -> ([Bytes; 2], Kept) {
    if marks == 0 {
        return (body, Kept::default());
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
    let added = value(kept::ADDED).unwrap_or_default();
    let adds = |what: &str| added.split(',').any(|a| a == what);
    let of_each = value(kept::EACH).unwrap_or_default();
    let of_each = of_each.split('\t').filter(|l| !l.is_empty()).map(str::to_owned).collect();
    let end = own.last().map_or(0, |f| f.range.end);
    let [head, rest] = body;
    ([head.slice(end..), rest], Kept { dkim, removed, adds_vmta: adds(VMTA), adds_date: adds(DATE), of_each })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_in_front_does_not_go_out() {
        let removed = ["X-Mailer".to_owned(), "X-Id".to_owned()];
        let each = ["A: <${recipient:url}>".to_owned(), "B: ${recipient}".to_owned()];
        let all = Fields {
            dkim_options: Some(b" s=Sel;\r\n d=d.test"),
            dkim_key: Some(b" rubbish"),
            removed: &removed,
            ..Fields::default()
        };
        for (fields, asks) in [
            (all, true),
            (Fields { removed: &[], ..all }, true),
            (Fields { dkim_options: None, dkim_key: None, ..all }, false),
            (Fields { adds_vmta: true, ..all }, true),
            (Fields { adds_vmta: true, adds_date: true, removed: &[], ..all }, true),
            (Fields { adds_date: true, ..Fields::default() }, false),
            (Fields { verp: true, ..Fields::default() }, false),
            (Fields { of_each: &each, ..all }, true),
        ] {
            let (head, marks) = fields.keep();
            let stored = Bytes::from([&head[..], b"From: a@b\r\n\r\nx"].concat());
            let (out, kept) = part([stored.clone(), Bytes::new()], marks);
            assert_eq!(out[0], b"From: a@b\r\n\r\nx"[..]);
            assert_eq!((kept.removed, kept.of_each), (fields.removed.to_vec(), fields.of_each.to_vec()));
            assert_eq!((kept.adds_vmta, kept.adds_date), (fields.adds_vmta, fields.adds_date));
            assert_eq!(
                kept.dkim.as_ref().map(|r| (r.selector.as_str(), r.domain.as_str(), r.unusable_key)),
                match asks {
                    true => Some(("Sel", "d.test", true)),
                    false => None,
                }
            );
            let (out, kept) = part([stored.clone(), Bytes::new()], 0);
            assert!(out[0] == stored && kept.dkim.is_none() && kept.removed.is_empty() && !kept.adds());
        }
    }

    #[test]
    fn a_field_that_is_too_long_is_not_kept() {
        let long = vec![b'x'; FIELD_MAX + 1];
        assert_eq!(Fields { dkim_key: Some(&long), ..Fields::default() }.keep(), (Vec::new(), 0));
    }
}
