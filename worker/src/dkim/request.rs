//! What a message asks of its signature: `X-DKIM-Options` and `X-DKIM-Key`.
//!
//! Receivers do not see these fields, but whoever signs has to, maybe after a restart: they are kept
//! in front of the stored content, and the envelope says how many they are.

use std::sync::Arc;

use bytes::Bytes;
use ipc::message::kept;

use super::key::Key;
use crate::prepare::headers;

/// Longest of the fields that is kept, bytes.
const FIELD_MAX: usize = 16 << 10;

/// What a message asks for; what is empty is as the configuration says.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// `s=`: the key's selector.
    pub selector: String,
    /// `d=`: the key's domain, in lower case.
    pub domain: String,
    /// `i=`
    pub identity: String,
    /// `q=`
    pub query_method: String,
    /// The `<domain-key-list>` to search, and no other.
    pub key_list: String,
    /// The message's own key.
    pub key: Option<Arc<Key>>,
    /// It has one that is none.
    pub unusable_key: bool,
}

impl Request {
    /// Reads the value of `X-DKIM-Options`. Tags that are not known mean nothing.
    fn parse(value: &str) -> Request {
        let mut r = Request::default();
        for (name, value) in value.split(';').filter_map(|t| t.split_once('=')) {
            let value = value.trim().to_owned();
            match name.trim().to_ascii_lowercase().as_str() {
                "s" => r.selector = value,
                "d" => r.domain = value.to_lowercase(),
                "i" => r.identity = value,
                "q" => r.query_method = value,
                "key-list" => r.key_list = value.to_lowercase(),
                _ => {}
            }
        }
        r
    }
}

/// The fields to keep in front of content: the options, and a key for them; and the envelope's word
/// for what they are.
pub fn keep(options: Option<&[u8]>, key: Option<&[u8]>) -> (Vec<u8>, u8) {
    let (mut head, mut marks) = (Vec::new(), 0);
    let given = [("X-DKIM-Options", options, kept::DKIM_OPTIONS), ("X-DKIM-Key", key, kept::DKIM_KEY)];
    for (name, value, mark) in given {
        let Some(value) = value.filter(|v| v.len() <= FIELD_MAX) else { continue };
        head.extend_from_slice(name.as_bytes());
        head.push(b':');
        head.extend_from_slice(value);
        head.extend_from_slice(b"\r\n");
        marks |= mark;
    }
    (head, marks)
}

/// Parts stored content into what goes out and what its fields in front ask for.
pub fn part(body: [Bytes; 2], marks: u8) -> ([Bytes; 2], Option<Request>) {
    let count = (marks & (kept::DKIM_OPTIONS | kept::DKIM_KEY)).count_ones() as usize;
    if count == 0 {
        return (body, None);
    }
    let (fields, _) = headers::parse(&body[0]);
    let own = &fields[..count.min(fields.len())];
    let mut r = Request::default();
    if let Some(f) = own.iter().find(|f| f.name == "X-DKIM-Options") {
        r = Request::parse(&headers::unfolded(f.value));
    }
    if let Some(f) = own.iter().find(|f| f.name == "X-DKIM-Key") {
        // One that cannot be used signs nothing: it is told where the message is signed.
        r.key = Key::from_pem(&pem(&String::from_utf8_lossy(f.value))).ok().map(Arc::new);
        r.unusable_key = r.key.is_none();
    }
    let end = own.last().map_or(0, |f| f.range.end);
    let [head, rest] = body;
    ([head.slice(end..), rest], Some(r))
}

/// A folded PEM text with its lines as they were.
fn pem(folded: &str) -> String {
    let words: Vec<&str> = folded.split_whitespace().collect();
    let text = words.join(" ");
    let Some((label, rest)) = text.split_once("-----BEGIN ").and_then(|(_, t)| t.split_once("-----")) else {
        return String::new();
    };
    let base64: String = rest.split("-----END").next().unwrap_or_default().split_whitespace().collect();
    let mut out = format!("-----BEGIN {label}-----\n");
    let mut at = 0;
    while let Some(line) = base64.get(at..(at + 64).min(base64.len())).filter(|l| !l.is_empty()) {
        out.push_str(line);
        out.push('\n');
        at += line.len();
    }
    out + &format!("-----END {label}-----\n")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_in_front_does_not_go_out() {
        let key = super::super::key::generate_ed25519().unwrap();
        let folded = format!(" {}", key.trim().replace('\n', "\r\n\t"));
        let (head, marks) =
            keep(Some(b" s=Sel ; d=D.test; i=@a.d.test;\r\n key-list=Mine; x=y"), Some(folded.as_bytes()));
        let stored = Bytes::from([&head[..], b"From: a@b\r\n\r\nx"].concat());
        let (out, r) = part([stored.clone(), Bytes::new()], marks);
        assert_eq!(out[0], b"From: a@b\r\n\r\nx"[..]);
        let r = r.unwrap();
        assert_eq!(
            (r.selector.as_str(), r.domain.as_str(), r.identity.as_str(), r.key_list.as_str()),
            ("Sel", "d.test", "@a.d.test", "mine")
        );
        assert!(r.key.is_some());
        let (out, r) = part([stored.clone(), Bytes::new()], 0);
        assert!(out[0] == stored && r.is_none());
    }

    #[test]
    fn rubbish_asks_for_nothing() {
        for text in ["", ";;=;", "s", "s=;d"] {
            let r = Request::parse(text);
            assert!(r.selector.is_empty() && r.domain.is_empty(), "{text}");
        }
        assert_eq!((pem("-----BEGIN"), pem("x")), (String::new(), String::new()));
    }
}
