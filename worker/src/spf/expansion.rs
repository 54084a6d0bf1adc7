//! Macros (RFC 7208 section 7).

use std::net::IpAddr;

/// Longest name that DNS has.
const NAME_MAX: usize = 253;

/// A text with macros.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    Macro(Macro),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Macro {
    letter: char,
    /// Parts that are left, from the right; 0 for all.
    kept: usize,
    is_reversed: bool,
    is_escaped: bool,
    delimiters: String,
}

/// What macros stand for.
#[derive(Debug, Clone, Copy)]
pub struct Values<'a> {
    /// `<sender>`
    pub sender: &'a str,
    /// `<domain>`
    pub domain: &'a str,
    /// The client.
    pub ip: IpAddr,
    /// Its EHLO name.
    pub hello: &'a str,
    /// Its name, confirmed.
    pub name: &'a str,
}

impl Text {
    /// A macro-string; `None` where it breaks the grammar.
    pub fn of(text: &str) -> Option<Text> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            rest = &rest[c.len_utf8()..];
            if c != '%' {
                if !('\x21'..='\x7e').contains(&c) {
                    return None;
                }
                literal.push(c);
                continue;
            }
            let kind = rest.chars().next()?;
            rest = &rest[kind.len_utf8()..];
            match kind {
                '%' => literal.push('%'),
                '_' => literal.push(' '),
                '-' => literal.push_str("%20"),
                '{' => {
                    let (inside, behind) = rest.split_once('}')?;
                    rest = behind;
                    if !literal.is_empty() {
                        parts.push(Part::Literal(std::mem::take(&mut literal)));
                    }
                    parts.push(Part::Macro(Macro::of(inside)?));
                }
                _ => return None,
            }
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        Some(Text(parts))
    }

    /// The same that stands for a domain (`domain-spec`): it ends in a macro, or in what can be a top-level domain.
    pub fn of_domain(text: &str) -> Option<Text> {
        let all = Text::of(text)?;
        match all.0.last()? {
            Part::Macro(_) => Some(all),
            Part::Literal(end) => {
                let end = end.strip_suffix('.').unwrap_or(end);
                let top = end.rsplit_once('.')?.1;
                let is_top = !top.is_empty()
                    && top.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                    && !top.bytes().all(|b| b.is_ascii_digit())
                    && !top.starts_with('-')
                    && !top.ends_with('-');
                is_top.then_some(all)
            }
        }
    }

    /// Whether it has the confirmed name of the client in it.
    pub fn needs_name(&self) -> bool {
        self.0.iter().any(|p| matches!(p, Part::Macro(m) if m.letter == 'p'))
    }

    /// What it stands for, as the name of a domain.
    pub fn expanded(&self, v: &Values<'_>) -> String {
        // From the right: of more than a name has room for, the left is given up anyway.
        let (mut parts, mut len) = (Vec::new(), 0);
        for part in self.0.iter().rev() {
            let text = match part {
                Part::Literal(l) => l.clone(),
                Part::Macro(m) => m.expanded(v),
            };
            len += text.len();
            parts.push(text);
            if len > NAME_MAX + 1 {
                break;
            }
        }
        parts.reverse();
        let out = parts.concat();
        let mut name = out.strip_suffix('.').unwrap_or(&out);
        while name.len() > NAME_MAX {
            name = name.split_once('.').map_or("", |(_, rest)| rest);
        }
        name.to_owned()
    }
}

impl Macro {
    fn of(text: &str) -> Option<Macro> {
        let first = text.chars().next()?;
        let letter = first.to_ascii_lowercase();
        // Those for explanations alone have no place in a domain.
        if !"slodipvh".contains(letter) {
            return None;
        }
        let rest = &text[first.len_utf8()..];
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let kept = match (&rest[..digits], rest[..digits].trim_start_matches('0')) {
            ("", _) => 0,
            // No part at all is none that could be left.
            (_, "") => return None,
            (_, number) => number.parse().unwrap_or(usize::MAX),
        };
        let rest = &rest[digits..];
        let (is_reversed, delimiters) = match rest.strip_prefix(['r', 'R']) {
            Some(d) => (true, d),
            None => (false, rest),
        };
        let are_fine = delimiters.chars().all(|c| ".-+,/_=".contains(c));
        let delimiters = if delimiters.is_empty() { "." } else { delimiters }.to_owned();
        are_fine.then_some(Macro { letter, kept, is_reversed, is_escaped: first.is_ascii_uppercase(), delimiters })
    }

    fn expanded(&self, v: &Values<'_>) -> String {
        let (local, domain) = v.sender.rsplit_once('@').unwrap_or(("postmaster", v.sender));
        let value = match self.letter {
            's' => v.sender.to_owned(),
            'l' => local.to_owned(),
            'o' => domain.to_owned(),
            'd' => v.domain.to_owned(),
            'i' => written(v.ip),
            'p' => v.name.to_owned(),
            'v' => if v.ip.is_ipv4() { "in-addr" } else { "ip6" }.to_owned(),
            _ => v.hello.to_owned(),
        };
        let mut parts: Vec<&str> = value.split(|c| self.delimiters.contains(c)).collect();
        if self.is_reversed {
            parts.reverse();
        }
        if self.kept > 0 && self.kept < parts.len() {
            parts.drain(..parts.len() - self.kept);
        }
        let text = parts.join(".");
        if self.is_escaped { escaped(&text) } else { text }
    }
}

/// An address as `%{i}` has it: of IPv6 each digit by itself.
fn written(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => {
            let digits: Vec<String> =
                ip.octets().iter().flat_map(|o| [o >> 4, o & 15]).map(|d| format!("{d:x}")).collect();
            digits.join(".")
        }
    }
}

/// As in a URL (RFC 3986 section 2.1).
fn escaped(text: &str) -> String {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    text.bytes().map(|b| if is_plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}
