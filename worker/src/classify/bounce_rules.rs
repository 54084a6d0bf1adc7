//! Classifies replies by rules: an operator's `<bounce-category-patterns>` first, then those
//! that come with the program (`bounce_rules.tsv`).

use std::sync::{LazyLock, OnceLock};

use aho_corasick::AhoCorasick;
use ipc::snapshot::ArchivedSnapshot;
use regex_automata::meta::Regex;
use regex_automata::util::syntax;

use super::reply_text::prepared;
use super::{expression, required_literals};

use super::outcome::Stage;

/// The rules that come with the program.
const RULES: &str = include_str!("bounce_rules.tsv");
/// Bytes that one expression may keep of what it has worked out.
const CACHE_BYTES: usize = 1 << 20;

/// What a refusal is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The mailbox.
    Recipient,
    /// This message.
    Message,
    /// This connection.
    Connection,
    /// Our address.
    Source,
    /// Our domain.
    SenderDomain,
    /// The receiver's domain.
    RcptDomain,
}

/// What to expect of another attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It will be refused as well.
    Hard,
    /// It may succeed.
    Soft,
    /// The refusal is about us: nothing is wrong with the recipient.
    Reputation,
    /// Our set-up is to be corrected.
    Config,
}

impl Scope {
    /// As the rules write it.
    pub fn name(self) -> &'static str {
        match self {
            Scope::Recipient => "recipient",
            Scope::Message => "message",
            Scope::Connection => "connection",
            Scope::Source => "source",
            Scope::SenderDomain => "sender-domain",
            Scope::RcptDomain => "rcpt-domain",
        }
    }

    fn parse(name: &str) -> Option<Scope> {
        let all = [
            Scope::Recipient,
            Scope::Message,
            Scope::Connection,
            Scope::Source,
            Scope::SenderDomain,
            Scope::RcptDomain,
        ];
        all.into_iter().find(|s| s.name() == name)
    }
}

impl Kind {
    /// As the rules write it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Hard => "hard",
            Kind::Soft => "soft",
            Kind::Reputation => "reputation",
            Kind::Config => "config",
        }
    }

    fn parse(name: &str) -> Option<Kind> {
        [Kind::Hard, Kind::Soft, Kind::Reputation, Kind::Config].into_iter().find(|k| k.name() == name)
    }
}

/// One of the program's rules.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// Its number.
    pub id: &'static str,
    /// Whose wording it is; `*` everybody's, `code` the reply's code decides.
    pub family: &'static str,
    /// In lower case.
    pub expression: &'static str,
    /// `bounceCat`
    pub category: &'static str,
    /// What the refusal is about.
    pub scope: Scope,
    /// What to expect.
    pub kind: Kind,
    /// A reply that it is proven to match.
    pub example: &'static str,
}

/// The rules that come with the program.
pub fn shipped() -> impl Iterator<Item = Rule> {
    let lines = RULES.lines().filter(|l| !l.starts_with('#')).skip(1);
    lines.filter_map(|l| {
        let mut f = l.split('\t');
        let (id, family, expression, category) = (f.next()?, f.next()?, f.next()?, f.next()?);
        let (scope, kind) = (Scope::parse(f.next()?)?, Kind::parse(f.next()?)?);
        let (_action, example) = (f.next()?, f.next()?);
        Some(Rule { id, family, expression, category, scope, kind, example })
    })
}

/// What a reply was found to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Class<'a> {
    /// `bounceCat`
    pub category: &'a str,
    /// What the refusal is about; `None` where an operator's rule decided.
    pub scope: Option<Scope>,
    /// What to expect; `None` where an operator's rule decided.
    pub kind: Option<Kind>,
    /// Number of the rule, or the place of an operator's; empty when none matched.
    pub rule: &'a str,
    /// Whose wording the rule is.
    pub family: &'a str,
}

/// A rule of `<bounce-category-patterns>`.
struct Own {
    expression: fancy_regex::Regex,
    category: String,
    place: String,
}

/// The rules of a configuration, and those of the program, ready to be matched.
pub struct Rules {
    own: Vec<Own>,
    shipped: &'static Shipped,
}

/// The rules of the program. No configuration changes them: they are made ready once, with the first refusal.
struct Shipped {
    rules: Vec<Rule>,
    /// Compiled when a reply first holds what they need.
    expressions: Vec<OnceLock<Option<Regex>>>,
    literals: Option<AhoCorasick>,
    /// The rule of each literal.
    rule_of: Vec<usize>,
    /// Rules that need none.
    always: Vec<usize>,
}

static SHIPPED: LazyLock<Shipped> = LazyLock::new(Shipped::new);

impl Shipped {
    fn new() -> Shipped {
        let rules: Vec<Rule> = shipped().collect();
        let (mut literals, mut rule_of, mut always) = (Vec::new(), Vec::new(), Vec::new());
        for (i, r) in rules.iter().enumerate() {
            // A test proves that all are expressions; one that is none matches nothing.
            let hir = syntax::parse_with(r.expression, &syntax()).ok();
            match hir.and_then(|h| required_literals::of(&h)) {
                Some(all) => {
                    rule_of.extend(std::iter::repeat_n(i, all.len()));
                    literals.extend(all);
                }
                None => always.push(i),
            }
        }
        let expressions = rules.iter().map(|_| OnceLock::new()).collect();
        // Without them every rule is tried, which costs time and nothing else.
        let literals = AhoCorasick::new(literals).ok();
        if literals.is_none() {
            always = (0..rules.len()).collect();
        }
        Shipped { rules, expressions, literals, rule_of, always }
    }

    fn expression(&self, i: usize) -> Option<&Regex> {
        self.expressions[i].get_or_init(|| compile(self.rules[i].expression)).as_ref()
    }
}

/// As all expressions of the program's rules are read: bytes, in lower case.
fn syntax() -> syntax::Config {
    syntax::Config::new().unicode(false).utf8(false)
}

fn compile(expression: &str) -> Option<Regex> {
    let config = Regex::config().hybrid_cache_capacity(CACHE_BYTES).utf8_empty(false);
    Regex::builder().configure(config).syntax(syntax()).build(expression).ok()
}

impl std::fmt::Debug for Rules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rules").field("own", &self.own.len()).field("shipped", &self.shipped.rules.len()).finish()
    }
}

impl Rules {
    /// Those of a configuration.
    pub fn of_snapshot(snapshot: &ArchivedSnapshot) -> Rules {
        let own = snapshot.bounce_patterns.iter().map(|p| {
            let file = snapshot.files.get(usize::from(p.file.to_native())).map_or("", |f| f.as_str());
            (p.expression.as_str(), p.category.as_str(), format!("{file}:{}", p.line))
        });
        Rules::of(own)
    }

    /// Compiles them; of an operator's: expression, category, place. One that does not compile
    /// was refused with the configuration.
    pub fn of<'a>(own: impl Iterator<Item = (&'a str, &'a str, String)>) -> Rules {
        let own = own.filter_map(|(e, category, place)| {
            Some(Own { expression: expression::compile(e).ok()?, category: category.to_owned(), place })
        });
        Rules { own: own.collect(), shipped: &SHIPPED }
    }

    /// The part of a reply, as rules look at it, that a rule of the program matches.
    pub fn hit(&self, rule: &str, reply: &str) -> String {
        let text = prepared(reply);
        let at = self.shipped.rules.iter().position(|r| r.id == rule);
        let e = at.and_then(|i| self.shipped.expression(i));
        e.and_then(|e| e.find(&text)).and_then(|m| text.get(m.range())).unwrap_or_default().trim().to_owned()
    }

    /// Whether rule `i` of the program matches what was prepared.
    fn hits(&self, i: usize, text: &str) -> bool {
        self.shipped.expression(i).is_some_and(|e| e.is_match(text))
    }

    /// The category of a reply (`550 5.1.1 no such user`), with its status.
    pub fn classify<'a>(&'a self, reply: &str, status: &str, stage: Stage) -> Class<'a> {
        let diagnostic = format!("{status};smtp;{reply}");
        for o in &self.own {
            // An expression that runs away matches nothing.
            if [reply, &diagnostic].iter().any(|t| o.expression.is_match(t).unwrap_or(false)) {
                return Class { category: &o.category, scope: None, kind: None, rule: &o.place, family: "" };
            }
        }
        self.classify_by_program(reply, stage)
    }

    /// The same by the program's rules alone: what a refusal is about operators' rules do not say.
    pub fn classify_by_program(&self, reply: &str, stage: Stage) -> Class<'_> {
        let text = prepared(reply);
        let shipped = self.shipped;
        let held = shipped.literals.iter().flat_map(|l| l.find_overlapping_iter(&text));
        let held = held.map(|m| shipped.rule_of[m.pattern().as_usize()]);
        let mut candidates: Vec<usize> = held.chain(shipped.always.iter().copied()).collect();
        candidates.sort_unstable();
        candidates.dedup();
        let of_none = matches!(stage, Stage::Session | Stage::Transaction);
        let fits = |r: &Rule| !of_none || r.scope != Scope::Recipient;
        let first = candidates.into_iter().find(|i| fits(&shipped.rules[*i]) && self.hits(*i, &text));
        match first {
            Some(i) => {
                let r = &shipped.rules[i];
                Class { category: r.category, scope: Some(r.scope), kind: Some(r.kind), rule: r.id, family: r.family }
            }
            None => Class { category: "other", scope: None, kind: None, rule: "", family: "" },
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        Rules::of(std::iter::empty())
    }

    #[test]
    fn every_rule_is_the_first_that_its_example_hits() {
        let rules = rules();
        assert_eq!(rules.shipped.rules.len(), RULES.lines().count() - 3);
        let broken: Vec<&str> =
            rules.shipped.rules.iter().filter(|r| compile(r.expression).is_none()).map(|r| r.id).collect();
        assert!(broken.is_empty(), "{broken:?}");
        let wrong: Vec<String> = rules
            .shipped
            .rules
            .iter()
            .map(|r| (r, rules.classify(r.example, "", Stage::Recipient)))
            .filter(|(r, c)| r.id != c.rule)
            .map(|(r, c)| format!("{}: {:?} hits {}", r.id, r.example, c.rule))
            .collect();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn what_other_classifiers_get_wrong() {
        let rules = rules();
        for (reply, category) in [
            ("550 5.7.1 Service unavailable; Client host [192.0.2.1] blocked", "spam-related"),
            (
                "550 5.2.1 The user you are trying to contact is receiving mail at a rate that prevents",
                "policy-related",
            ),
            ("552 5.2.2 over quota https://support.google.com/mail/?p=OverQuotaPerm", "quota-issues"),
            ("550 5.4.1 Recipient address rejected: Access denied. [x.prod.outlook.com]", "bad-mailbox"),
            ("550 5.1.0 <s@example.com> sender rejected AUP#I-1310", "spam-related"),
            ("554 5.7.1 <u@example.com>: Recipient address rejected: ERS-QIL.", "spam-related"),
            (
                "550-Requested action not taken: mailbox unavailable 550 Reject due to policy restrictions",
                "policy-related",
            ),
            ("451 4.7.1 <u@example.com>: Recipient address rejected: Greylisted", "other"),
            ("452 4.2.1 your sending quota exceeded: too many messages per hour", "policy-related"),
            ("552 5.3.4 message size limit exceeded", "content-related"),
            ("550 5.7.26 Your email has been blocked because the sender is unauthenticated", "authentication-failure"),
            ("550 5.1.1 <spam@full.example>: user unknown", "bad-mailbox"),
            ("550 Local CT IP Reputation - (reject)", "spam-related"),
        ] {
            assert_eq!(rules.classify(reply, "", Stage::Recipient).category, category, "{reply}");
        }
    }

    #[test]
    fn no_refusal_over_reputation_is_held_against_the_mailbox() {
        let rules = rules();
        for r in rules.shipped.rules.iter().filter(|r| r.kind == Kind::Reputation || r.kind == Kind::Config) {
            assert!(
                !matches!(r.category, "bad-mailbox" | "inactive-mailbox") && r.scope != Scope::Recipient,
                "{}",
                r.id
            );
        }
        // Words of reputation beside any code that stands for a mailbox.
        for code in ["550", "550 5.1.1", "553 5.1.0", "550 5.2.1", "554 5.2.0", "551"] {
            for text in ["your IP has a poor reputation", "listed at zen.spamhaus.org", "too many spams from 192.0.2.1"]
            {
                let found = rules.classify(&format!("{code} {text}"), "", Stage::Recipient);
                assert!(!matches!(found.category, "bad-mailbox" | "inactive-mailbox"), "{code} {text}: {found:?}");
            }
        }
    }
}
