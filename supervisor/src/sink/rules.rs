//! How the test receiver misbehaves: rules by recipient, each a line.
//!
//! ```text
//! RECIPIENT       ACTION [REPLY|TIME]  [CONDITION]
//! later-*         defer
//! full.example    refuse "552 5.2.2 mailbox full"  at=content
//! *               drop  share=5%
//! ```

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use worker::deliver::deletion::matches;

use crate::config::value::duration;

/// Rules at most.
pub const RULES_MAX: usize = 1000;
/// Characters of a reply.
const REPLY_MAX: usize = 500;
/// How long a rule may let a client wait.
const SLOW_MAX: Duration = Duration::from_secs(600);
/// Senders and recipients that greylisting remembers.
const GREY_MAX: usize = 100_000;

/// What is answered where no reply is given.
const DEFER: &str = "450 4.2.1 Try again later";
const REFUSE: &str = "550 5.1.1 No such user here";
const GREYLIST: &str = "450 4.7.1 Greylisted, try again later";
const CLOSE: &str = "421 4.3.2 Closing the connection";

/// What a rule does.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Action {
    Accept,
    Defer(String),
    Refuse(String),
    Greylist(Duration),
    Slow(Duration),
    Drop,
    Close(String),
}

/// When a rule is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// RCPT
    Recipient,
    /// The end of the content.
    Content,
}

/// Which of the times that its recipients come a rule holds for; counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    Always,
    /// Tenths of a percent, evenly.
    Share(u64),
    Every(u64),
    Nth(u64),
    First(u64),
}

impl Condition {
    fn holds(self, n: u64) -> bool {
        match self {
            Condition::Always => true,
            // As often as the share has grown by a whole one.
            Condition::Share(thousandths) => n * thousandths / 1000 > (n - 1) * thousandths / 1000,
            Condition::Every(every) => n.is_multiple_of(every),
            Condition::Nth(nth) => n == nth,
            Condition::First(first) => n <= first,
        }
    }
}

#[derive(Debug)]
struct Rule {
    pattern: String,
    action: Action,
    stage: Stage,
    condition: Condition,
    /// As it was written.
    text: String,
    /// Times that its recipients came.
    seen: u64,
    /// Times that it held.
    hits: u64,
}

/// What becomes of a recipient or a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    /// This reply; then the connection ends or not.
    Reply {
        text: String,
        closes: bool,
    },
    /// The connection ends without a word.
    Drop,
}

/// All rules, and what they remember.
#[derive(Debug, Default)]
pub struct Rules {
    all: Vec<Rule>,
    grey: HashMap<String, Instant>,
    grey_order: VecDeque<String>,
}

impl Rules {
    /// Adds the rules of a text, a line each; `#` begins a comment.
    ///
    /// # Errors
    /// Number of the line, counted from 1, and a sentence.
    pub fn add(&mut self, text: &str) -> Result<(), (usize, String)> {
        for (n, line) in text.lines().enumerate() {
            let words = words(line).map_err(|e| (n + 1, e))?;
            if words.is_empty() {
                continue;
            }
            if self.all.len() == RULES_MAX {
                return Err((n + 1, format!("there are more than {RULES_MAX} rules")));
            }
            self.all.push(rule(&words, line).map_err(|e| (n + 1, e))?);
        }
        Ok(())
    }

    /// The rules as written, and how often each held.
    pub fn hits(&self) -> impl Iterator<Item = (&str, u64)> {
        self.all.iter().map(|r| (r.text.as_str(), r.hits))
    }

    /// Answers how long the client waits for the reply, and the reply. The first rule whose pattern and condition hold decides; a slow one
    /// adds its time and the next ones are asked.
    pub fn decide(&mut self, stage: Stage, from: &str, recipients: &[String], now: Instant) -> (Duration, Verdict) {
        let mut wait = Duration::ZERO;
        let (grey, order) = (&mut self.grey, &mut self.grey_order);
        for r in self.all.iter_mut().filter(|r| r.stage == stage) {
            let Some(recipient) = recipients.iter().find(|to| matches(&r.pattern, to)) else { continue };
            r.seen += 1;
            if !r.condition.holds(r.seen) {
                continue;
            }
            let verdict = match &r.action {
                Action::Accept => Verdict::Accept,
                Action::Defer(text) | Action::Refuse(text) => Verdict::Reply { text: text.clone(), closes: false },
                Action::Close(text) => Verdict::Reply { text: text.clone(), closes: true },
                Action::Drop => Verdict::Drop,
                Action::Slow(time) => {
                    r.hits += 1;
                    wait = (wait + *time).min(SLOW_MAX);
                    continue;
                }
                Action::Greylist(time) => {
                    if has_waited(grey, order, &format!("{from} {recipient}").to_lowercase(), *time, now) {
                        continue;
                    }
                    Verdict::Reply { text: GREYLIST.into(), closes: false }
                }
            };
            r.hits += 1;
            return (wait, verdict);
        }
        (wait, Verdict::Accept)
    }
}

/// Whether a sender came to a recipient for the first time so long ago. The oldest are forgotten when there are too many.
fn has_waited(
    grey: &mut HashMap<String, Instant>,
    order: &mut VecDeque<String>,
    pair: &str,
    time: Duration,
    now: Instant,
) -> bool {
    if let Some(first) = grey.get(pair) {
        return now.duration_since(*first) >= time;
    }
    if order.len() == GREY_MAX
        && let Some(oldest) = order.pop_front()
    {
        grey.remove(&oldest);
    }
    order.push_back(pair.to_owned());
    grey.insert(pair.to_owned(), now);
    false
}

/// Words between blanks; quotes hold blanks together.
fn words(line: &str) -> Result<Vec<String>, String> {
    let (mut all, mut word, mut quoted, mut in_word) = (Vec::new(), String::new(), false, false);
    for c in line.chars() {
        match c {
            '"' => (quoted, in_word) = (!quoted, true),
            '#' if !quoted && !in_word => break,
            c if c.is_whitespace() && !quoted => {
                if std::mem::take(&mut in_word) {
                    all.push(std::mem::take(&mut word));
                }
            }
            c => {
                word.push(c);
                in_word = true;
            }
        }
    }
    if quoted {
        return Err("a quote is not closed".into());
    }
    if in_word {
        all.push(word);
    }
    Ok(all)
}

fn rule(words: &[String], line: &str) -> Result<Rule, String> {
    let [pattern, action, rest @ ..] = words else {
        return Err(format!("expected RECIPIENT ACTION, found only `{}`", words.join(" ")));
    };
    let (mut stage, mut condition, mut argument) = (Stage::Recipient, Condition::Always, None);
    for word in rest {
        let option = word.split_once('=').filter(|(name, _)| name.bytes().all(|b| b.is_ascii_lowercase()));
        match option {
            Some(("at", "rcpt")) => stage = Stage::Recipient,
            Some(("at", "content")) => stage = Stage::Content,
            Some(("at", other)) => return Err(format!("expected at=rcpt or at=content, found `{other}`")),
            Some((name @ ("share" | "every" | "nth" | "first"), value)) => {
                if condition != Condition::Always {
                    return Err("a rule has one of share=, every=, nth= and first=".into());
                }
                condition = condition_of(name, value)?;
            }
            Some((name, _)) => {
                return Err(format!("expected at=, share=, every=, nth= or first=, found `{name}=`"));
            }
            None if argument.is_none() => argument = Some(word.as_str()),
            None => return Err(format!("`{word}` is one word too many; a reply stands in quotes")),
        }
    }
    let action = action_of(action, argument)?;
    // A domain alone means every address there.
    let pattern = match pattern.contains(['@', '*']) {
        true => pattern.to_lowercase(),
        false => format!("*@{}", pattern.to_lowercase()),
    };
    Ok(Rule { pattern, action, stage, condition, text: line.trim().to_owned(), seen: 0, hits: 0 })
}

fn condition_of(name: &str, value: &str) -> Result<Condition, String> {
    if name == "share" {
        let percent: Option<f64> = value.strip_suffix('%').and_then(|v| v.parse().ok());
        let fits = percent.filter(|p| (0.1..=100.0).contains(p));
        let fits = fits.ok_or_else(|| format!("expected share=0.1% to share=100%, found `{value}`"))?;
        return Ok(Condition::Share((fits * 10.0).round() as u64));
    }
    let n: u64 = value
        .parse()
        .ok()
        .filter(|n| *n > 0)
        .ok_or_else(|| format!("expected {name}= with a number above 0, found `{value}`"))?;
    Ok(match name {
        "every" => Condition::Every(n),
        "nth" => Condition::Nth(n),
        _ => Condition::First(n),
    })
}

fn action_of(name: &str, argument: Option<&str>) -> Result<Action, String> {
    let time = |default: Option<&str>| -> Result<Duration, String> {
        let text = argument.or(default).ok_or_else(|| format!("expected a time behind {name}, such as 5s"))?;
        // Clients tell milliseconds; durations of configurations do not.
        let ms = match text.strip_suffix("ms").and_then(|n| n.parse().ok()) {
            Some(ms) => ms,
            None => duration(text).map_err(|p| p.message)?,
        };
        Ok(Duration::from_millis(ms))
    };
    let text = |default: &str, classes: &str| reply(argument.unwrap_or(default), classes);
    let takes_none = |action: Action| match argument {
        None => Ok(action),
        Some(word) => Err(format!("{name} takes no reply and no time, found `{word}`")),
    };
    match name {
        "accept" => takes_none(Action::Accept),
        "drop" => takes_none(Action::Drop),
        "defer" => Ok(Action::Defer(text(DEFER, "4")?)),
        "refuse" => Ok(Action::Refuse(text(REFUSE, "5")?)),
        "close" => Ok(Action::Close(text(CLOSE, "45")?)),
        "greylist" => Ok(Action::Greylist(time(Some("1m"))?)),
        "slow" => {
            let time = time(None)?;
            if time > SLOW_MAX {
                return Err(format!("slow is at most {}m", SLOW_MAX.as_secs() / 60));
            }
            Ok(Action::Slow(time))
        }
        other => Err(format!(
            "expected accept, defer, refuse, greylist, slow, drop or close behind the recipient, found `{other}`"
        )),
    }
}

/// A reply of one of these classes.
fn reply(text: &str, classes: &str) -> Result<String, String> {
    let (code, rest) = text.split_at_checked(3).unwrap_or((text, ""));
    let is_code = code.len() == 3 && code.bytes().all(|b| b.is_ascii_digit()) && classes.contains(&code[..1]);
    let fits = text.len() <= REPLY_MAX
        && text.bytes().all(|b| (b' '..=b'~').contains(&b))
        && (rest.is_empty() || rest.starts_with(' '));
    if !is_code || !fits {
        let class = classes.chars().map(|c| format!("{c}xx")).collect::<Vec<_>>().join(" or ");
        return Err(format!(
            "expected a reply such as \"{classes1}50 text\" with a code of {class}, found `{text}`",
            classes1 = &classes[..1]
        ));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Rules {
        let mut r = Rules::default();
        r.add(text).unwrap();
        r
    }

    fn at_rcpt(r: &mut Rules, to: &str) -> String {
        match r.decide(Stage::Recipient, "s@s.test", &[to.to_owned()], Instant::now()) {
            (wait, Verdict::Accept) if wait.is_zero() => "taken".into(),
            (wait, Verdict::Accept) => format!("taken after {}", wait.as_secs()),
            (_, Verdict::Reply { text, closes }) => format!("{text}{}", if closes { " and closes" } else { "" }),
            (_, Verdict::Drop) => "dropped".into(),
        }
    }

    #[test]
    fn the_first_rule_that_holds_decides() {
        let mut r = rules(
            "# a comment\n\nvip@a.test accept # the one\na.test refuse\nlater-*@* defer \"451 4.7.1 not now\"\n*@b.test slow 2s\n*@b.test slow 1000ms\ncut-* drop\nend-* close\n",
        );
        assert_eq!(at_rcpt(&mut r, "VIP@a.test"), "taken");
        assert_eq!(at_rcpt(&mut r, "u@A.test"), REFUSE);
        assert_eq!(at_rcpt(&mut r, "u@x.a.test"), "taken");
        assert_eq!(at_rcpt(&mut r, "later-1@b.test"), "451 4.7.1 not now");
        assert_eq!(at_rcpt(&mut r, "u@b.test"), "taken after 3");
        assert_eq!(at_rcpt(&mut r, "cut-1@c.test"), "dropped");
        assert_eq!(at_rcpt(&mut r, "end-1@c.test"), format!("{CLOSE} and closes"));
        let hits: Vec<u64> = r.hits().map(|(_, n)| n).collect();
        assert_eq!(hits, [1, 1, 1, 1, 1, 1, 1]);
    }

    #[test]
    fn conditions_count_the_recipients_of_their_rule() {
        let held = |condition: &str| {
            let mut r = rules(&format!("a.test defer {condition}"));
            assert_eq!(at_rcpt(&mut r, "u@b.test"), "taken", "others do not count");
            (1..=10).filter(|_| at_rcpt(&mut r, "u@a.test") != "taken").count()
        };
        assert_eq!(
            ["share=30%", "share=5%", "every=4", "nth=3", "first=7", "share=100%"].map(held),
            [3, 0, 2, 1, 7, 10]
        );
    }

    #[test]
    fn greylisting_lets_whoever_comes_again_in_and_forgets_the_oldest() {
        let mut r = rules("a.test greylist 60s");
        let at = |r: &mut Rules, to: &str, seconds: u64, begin: Instant| {
            r.decide(Stage::Recipient, "s@s.test", &[to.to_owned()], begin + Duration::from_secs(seconds)).1
                == Verdict::Accept
        };
        let begin = Instant::now();
        assert_eq!([0, 59, 60, 61].map(|s| at(&mut r, "u@a.test", s, begin)), [false, false, true, true]);
        for n in 0..GREY_MAX {
            at(&mut r, &format!("{n}@a.test"), 0, begin);
        }
        assert_eq!((r.grey.len(), r.grey_order.len()), (GREY_MAX, GREY_MAX));
        assert!(!at(&mut r, "u@a.test", 99, begin));
    }

    #[test]
    fn the_content_has_rules_of_its_own() {
        let mut r = rules("a.test refuse at=content");
        assert_eq!(at_rcpt(&mut r, "u@a.test"), "taken");
        let to = ["u@b.test".to_owned(), "u@a.test".to_owned()];
        assert_ne!(r.decide(Stage::Content, "", &to, Instant::now()).1, Verdict::Accept);
        assert_eq!(r.decide(Stage::Content, "", &to[..1], Instant::now()).1, Verdict::Accept);
    }

    #[test]
    fn wrong_rules_are_named_with_their_line() {
        for (line, what) in [
            ("a.test", "expected RECIPIENT ACTION"),
            ("a.test bounce", "`bounce`"),
            ("a.test defer \"550 no\"", "4xx"),
            ("a.test refuse 450", "5xx"),
            ("a.test refuse \"550-no\"", "5xx"),
            ("a.test refuse \"550 no", "not closed"),
            ("a.test refuse 550 no", "one word too many"),
            ("a.test slow", "expected a time"),
            ("a.test slow 1h", "at most 10m"),
            ("a.test slow soon", "soon"),
            ("a.test drop 5s", "takes no reply"),
            ("a.test drop share=0%", "share=0.1%"),
            ("a.test drop share=5", "share=0.1%"),
            ("a.test drop every=0", "above 0"),
            ("a.test drop every=2 first=1", "one of"),
            ("a.test drop at=helo", "at=content"),
            ("a.test drop when=now", "`when=`"),
        ] {
            let (n, why) = Rules::default().add(&format!("x.test accept\n{line}\n")).unwrap_err();
            assert!(n == 2 && why.contains(what), "{line}: {n}: {why}");
        }
    }
}
