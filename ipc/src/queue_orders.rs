//! What operators do to queues and paths: `pause queue`, `set queue`, `schedule`, `disable
//! source` and their opposites.

#![allow(missing_docs)] // for what derive(Archive) generates beside the documented types

use rkyv::{Archive, Deserialize, Serialize};

use crate::layers::pattern_matches;
use crate::message::normalise_domain;

/// `domain[/vmta]` of a command; either half may be `*`, the domain any pattern.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct QueuePattern {
    /// Domain pattern.
    pub destination: String,
    /// Virtual MTA or pool, lower case; `*` for all.
    pub via: String,
}

impl QueuePattern {
    /// Reads a pattern; without a virtual MTA all are meant.
    ///
    /// # Errors
    /// A sentence when it is none.
    pub fn parse(text: &str) -> Result<QueuePattern, String> {
        let behind_literal = text.find(']').filter(|_| text.starts_with('[')).map_or(0, |i| i + 1);
        let slash = text[behind_literal..].find('/').map(|i| i + behind_literal);
        let (domain, via) = slash.map_or((text, "*"), |i| (&text[..i], &text[i + 1..]));
        let wrong = || format!("expected DOMAIN[/VMTA], either of which may be *, found {text:?}");
        if domain.is_empty() || via.is_empty() || via.contains('/') {
            return Err(wrong());
        }
        let prefix = ["[*.]", "*."].into_iter().find(|p| domain.starts_with(p)).unwrap_or_default();
        let destination = match domain {
            "*" => "*".to_owned(),
            d if d.starts_with('{') => d.to_lowercase(),
            d => format!("{prefix}{}", normalise_domain(&d[prefix.len()..]).map_err(|_| wrong())?),
        };
        Ok(QueuePattern { destination, via: via.to_lowercase() })
    }

    /// Whether it means mail to `destination` through `via`.
    pub fn matches(&self, destination: &str, via: &str) -> bool {
        (self.via == "*" || self.via.eq_ignore_ascii_case(via))
            && (self.destination == "*" || pattern_matches(&self.destination, destination))
    }

    /// Whether it means everything that `other` means.
    pub fn covers(&self, other: &QueuePattern) -> bool {
        (self.via == "*" || self.via == other.via)
            && (self.destination == "*"
                || self.destination == other.destination
                || (!other.destination.contains('*') && pattern_matches(&self.destination, &other.destination)))
    }
}

impl std::fmt::Display for QueuePattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.destination, self.via)
    }
}

/// An order about queues.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct QueueOrder {
    /// Which.
    pub of: QueuePattern,
    /// What.
    pub action: QueueAction,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum QueueAction {
    /// `pause queue`, `resume queue`
    Pause(bool),
    /// `set queue --mode=`; true for backoff.
    Mode(bool),
    /// `schedule`, with `--retry-recipients`.
    Schedule {
        /// Recipients that wait for their own time go, too.
        recipients: bool,
    },
    /// `disable source`: until this time, Unix milliseconds.
    DisableSource {
        /// The address.
        ip: String,
        /// `i64::MAX` until it is enabled.
        until_unix_ms: i64,
    },
    /// `enable source`
    EnableSource {
        /// The address.
        ip: String,
    },
}

/// `delete`: which recipients are taken out of their queues.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Deletion {
    /// `--queue`
    pub of: QueuePattern,
    /// `--orig`: the sender; `*` stands for any characters.
    pub orig: Option<String>,
    /// `--rcpt`, likewise.
    pub rcpt: Option<String>,
    /// `--jobId`
    pub job_id: Option<String>,
    /// `--envId`
    pub env_id: Option<String>,
    /// `--older-than`: accepted so long ago, milliseconds.
    pub older_than_ms: Option<u64>,
    /// Senders are told.
    pub dsn: bool,
    /// Records of type b are written.
    pub accounting: bool,
}

/// What operators switched, which outlives the process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Switches {
    /// Paused or resumed; the last that matches counts.
    pub pauses: Vec<(QueuePattern, bool)>,
    /// Source addresses that are not used until a time, Unix milliseconds; 0 where that is an exception. The last that
    /// matches counts.
    pub disabled: Vec<(QueuePattern, String, i64)>,
}

impl crate::stored::Stored for Switches {
    const WHAT: &'static str = "what operators switched";
    const VERSION: u8 = 1;
}

/// The user that gave an order, and when.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Given {
    /// When, Unix milliseconds.
    pub unix_ms: i64,
    /// The user who ran the command.
    pub by: String,
}

impl crate::stored::Stored for Given {
    const WHAT: &'static str = "who gave an order";
    const VERSION: u8 = 1;
}

/// Entries of each kind that are kept.
const SWITCHES_MAX: usize = 10_000;

impl Switches {
    /// Notes an order.
    ///
    /// # Errors
    /// A sentence when there are too many.
    pub fn note(&mut self, order: &QueueOrder) -> Result<(), String> {
        match &order.action {
            QueueAction::Pause(paused) => {
                self.pauses.retain(|(p, _)| !order.of.covers(p));
                // What nothing pauses needs no exception.
                if *paused || !self.pauses.is_empty() {
                    self.pauses.push((order.of.clone(), *paused));
                }
            }
            QueueAction::DisableSource { ip, until_unix_ms } => {
                self.disabled.retain(|(p, i, _)| i != ip || !order.of.covers(p));
                self.disabled.push((order.of.clone(), ip.clone(), *until_unix_ms));
            }
            QueueAction::EnableSource { ip } => {
                self.disabled.retain(|(p, i, _)| i != ip || !order.of.covers(p));
                // Of what is disabled more widely this is an exception.
                if self.disabled.iter().any(|(_, i, _)| i == ip) {
                    self.disabled.push((order.of.clone(), ip.clone(), 0));
                }
                let is_disabled = |ip: &str| self.disabled.iter().any(|(_, i, until_ms)| i == ip && *until_ms > 0);
                if !is_disabled(ip) {
                    self.disabled.retain(|(_, i, _)| i != ip);
                }
            }
            QueueAction::Mode(_) | QueueAction::Schedule { .. } => {}
        }
        if self.pauses.len().max(self.disabled.len()) > SWITCHES_MAX {
            return Err(format!("more than {SWITCHES_MAX} orders are kept; resume with a wildcard to begin anew"));
        }
        Ok(())
    }

    /// Forgets times that are over.
    pub fn forget_over(&mut self, now_unix_ms: i64) {
        self.disabled.retain(|(_, _, until_ms)| *until_ms == 0 || *until_ms > now_unix_ms);
    }

    /// Whether mail is paused that an order means when `means` says so.
    pub fn is_paused(&self, means: impl Fn(&QueuePattern) -> bool) -> bool {
        self.pauses.iter().rev().find(|(p, _)| means(p)).is_some_and(|(_, paused)| *paused)
    }

    /// Source addresses that orders speak of which mean a path, each with the time until it is disabled (Unix
    /// milliseconds; 0 where it is not).
    pub fn sources(&self, means: impl Fn(&QueuePattern) -> bool) -> Vec<(&str, i64)> {
        let mut all: Vec<(&str, i64)> = Vec::new();
        for (of, ip, until_ms) in self.disabled.iter().rev() {
            if !all.iter().any(|(known, _)| known == ip) && means(of) {
                all.push((ip, *until_ms));
            }
        }
        all
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn order(of: &str, action: QueueAction) -> QueueOrder {
        QueueOrder { of: QueuePattern::parse(of).unwrap(), action }
    }

    #[test]
    fn patterns_of_queues() {
        let p = |t: &str| QueuePattern::parse(t).unwrap();
        assert!(p("D.test").matches("d.test", "any"));
        assert!(p("*/v").matches("d.test", "V") && !p("*/v").matches("d.test", "w"));
        assert!(p("*.d.test/*").matches("a.d.test", "v") && !p("*.d.test").matches("d.test", "v"));
        assert!(p("[10.0.0.1]/v").matches("[10.0.0.1]", "v"));
        assert!(p("*/*").covers(&p("d.test/v")) && !p("d.test/v").covers(&p("d.test")));
        for wrong in ["", "/v", "d.test/", "a b", "d/v/w"] {
            assert!(QueuePattern::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_last_order_counts() {
        let mut s = Switches::default();
        let mut note = |of, paused| s.note(&order(of, QueueAction::Pause(paused))).map(|()| s.clone());
        let s = note("*/v", true).and_then(|_| note("d.test/v", false)).unwrap();
        let paused = |d, v| s.is_paused(|p| p.matches(d, v));
        assert!(paused("e.test", "v") && !paused("d.test", "v") && !paused("e.test", "w"));
        let mut s = s;
        s.note(&order("*", QueueAction::Pause(false))).unwrap();
        assert_eq!(s, Switches::default());
    }

    #[test]
    fn a_source_is_enabled_at_a_part_of_where_it_is_disabled() {
        let mut s = Switches::default();
        let ip = || "192.0.2.1".to_owned();
        let disable = |until_unix_ms| QueueAction::DisableSource { ip: ip(), until_unix_ms };
        s.note(&order("*/*", disable(500))).unwrap();
        s.note(&order("d.test/v", QueueAction::EnableSource { ip: ip() })).unwrap();
        let until = |s: &Switches, d: &str| s.sources(|p| p.matches(d, "v")).first().map(|(_, until)| *until);
        assert_eq!((until(&s, "d.test"), until(&s, "e.test")), (Some(0), Some(500)));
        s.note(&order("d.test", disable(900))).unwrap();
        assert_eq!((until(&s, "d.test"), until(&s, "e.test")), (Some(900), Some(500)));
        s.forget_over(600);
        assert_eq!((until(&s, "d.test"), until(&s, "e.test")), (Some(900), None));
        s.note(&order("*", QueueAction::EnableSource { ip: ip() })).unwrap();
        assert_eq!(s, Switches::default());
    }

    #[test]
    fn switches_and_notes_lie_in_spools_as_they_always_did() {
        let of = |text| QueuePattern::parse(text).unwrap();
        let switches = Switches {
            pauses: vec![(of("*.d.test/*"), true), (of("a.d.test/a-name-that-lies-out-of-line"), false)],
            disabled: vec![(of("*/v"), "192.0.2.1".into(), -2), (of("d.test"), "2001:db8::1".into(), 0)],
        };
        crate::assert_layout!(switches, 1: "\
            612d6e616d652d746861742d6c6965732d6f75742d6f662d6c696e652a2e642e746573742affffffffffffff01000000612e642e74657374
            9c000000c8ffffff000000003139322e302e322e31323030313a6462383a3a312affffffffffffff76ffffffffffffff89000000dcffffff
            feffffffffffffff642e74657374ffff2affffffffffffff8b000000c5ffffff000000000000000084ffffff02000000b8ffffff02000000");
        crate::assert_layout!(Given { unix_ms: -2, by: "an operator of this machine".into() }, 1: "\
            616e206f70657261746f72206f662074686973206d616368696e650000000000feffffffffffffff9b000000d8ffffff");
    }
}
