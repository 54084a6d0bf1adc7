//! What a message asks of its signature: `X-DKIM-Options` and `X-DKIM-Key`.

use std::sync::Arc;

use super::key::Key;

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
    /// Reads the values of `X-DKIM-Options` and `X-DKIM-Key`.
    pub fn of(options: Option<&str>, key: Option<&str>) -> Request {
        let mut r = options.map_or_else(Request::default, Request::parse);
        if let Some(key) = key {
            // One that cannot be used signs nothing: it is told where the message is signed.
            r.key = Key::from_pem(&pem(key)).ok().map(Arc::new);
            r.unusable_key = r.key.is_none();
        }
        r
    }

    /// Reads the options. Tags that are not known mean nothing.
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
    fn options_and_a_folded_key_are_read() {
        let key = super::super::key::generate_ed25519().unwrap();
        let folded = format!(" {}", key.trim().replace('\n', "\r\n\t"));
        let r = Request::of(Some(" s=Sel ; d=D.test; i=@a.d.test; key-list=Mine; x=y"), Some(&folded));
        assert_eq!(
            (r.selector.as_str(), r.domain.as_str(), r.identity.as_str(), r.key_list.as_str()),
            ("Sel", "d.test", "@a.d.test", "mine")
        );
        assert!(r.key.is_some() && !r.unusable_key);
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
