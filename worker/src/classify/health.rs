//! Whether a reply speaks ill of the sender's address. What is said of a mailbox does not (it is full, unknown, gone, or has its own
//! rate), nor does greylisting: every address would have been told the same, and a sender that leaves by another address for it
//! only begins anew.

use super::bounce_rules::{Kind, Rules, Scope};
use super::outcome::Stage;
use super::outcome::{Outcome, Verdict};

/// Verdicts of one transaction that are looked at: receivers that mean the sender say so at once.
const LOOKED_AT: usize = 32;

/// Something in a transaction speaks ill of the address that it came from.
pub fn speak_ill<'v>(rules: &Rules, verdicts: impl Iterator<Item = &'v Verdict>) -> bool {
    let may = |v: &&Verdict| v.outcome == Outcome::Deferred || v.status.starts_with("5.7");
    let mut before = "";
    let (mut looked_at, mut ill) = (0, false);
    // Most receivers say the same to all.
    for v in verdicts.filter(may) {
        if looked_at > 0 && v.diagnostic == before {
            continue;
        }
        before = &v.diagnostic;
        looked_at += 1;
        // Also a 421 was an answer to a command of the mail's.
        ill = !v.remote || !(is_greylisting(rules, v) || is_of_mailbox(rules, v));
        if ill || looked_at == LOOKED_AT {
            break;
        }
    }
    ill
}

/// What keeps a session, or a path as a whole, from mail speaks ill of the address.
pub fn speaks_ill(rules: &Rules, v: &Verdict) -> bool {
    // What we found ourselves (no answer, a session that broke off) may well be an address that is blocked.
    !v.remote || !(is_greylisting(rules, v) || v.stage != Stage::Session && is_of_mailbox(rules, v))
}

/// The receiver wants the same message from the same address once more, whatever it was an answer to.
pub fn is_greylisting(rules: &Rules, v: &Verdict) -> bool {
    let c = rules.classify_by_program(&v.diagnostic, Stage::Recipient);
    c.scope == Some(Scope::Recipient) && c.kind == Some(Kind::Soft) && c.category == "other" && c.family != "code"
}

fn is_of_mailbox(rules: &Rules, v: &Verdict) -> bool {
    let of_operator = rules.classify(&v.diagnostic, &v.status, Stage::Recipient).category;
    let c = rules.classify_by_program(&v.diagnostic, Stage::Recipient);
    matches!(of_operator, "bad-mailbox" | "inactive-mailbox" | "quota-issues") || c.scope == Some(Scope::Recipient)
}

#[cfg(test)]
mod tests {
    use super::super::bounce_rules::shipped;
    use super::*;
    use crate::classify::outcome::Failure;

    fn verdict(reply: &str, stage: Stage) -> Verdict {
        let v = Failure::recalled(reply).verdict;
        let outcome = if reply.starts_with('5') { Outcome::Bounced } else { Outcome::Deferred };
        Verdict { outcome, stage, ..v }
    }

    fn rules() -> Rules {
        Rules::of(std::iter::empty())
    }

    /// As receivers say it.
    const OF_MAILBOXES: [&str; 22] = [
        "451 4.7.1 Greylisted, please try again in 300 seconds",
        "450 4.2.0 <u@d.test>: Recipient address rejected: Greylisted, see http://postgrey.example/help",
        "451 4.7.1 <u@d.test>: Recipient address rejected: Greylisting in effect, please come back later",
        "451 4.7.1 Greylisted for 5 minutes",
        "451 4.7.1 Graylisted: please resend later",
        "451 Internal resource temporarily unavailable - https://community.mimecast.com/docs/DOC-1369",
        "451 4.7.1 Sorry, the service is currently unavailable. Please come back later.",
        "450 4.1.1 <u@d.test>: Recipient address rejected: unverified address: Address verification in progress",
        "452 4.2.2 The recipient's inbox is out of storage space. p=OverQuotaTemp",
        "452 4.2.2 <u@d.test>: mailbox full",
        "450 4.2.2 Mailbox over quota",
        "451 Account u@d.test out of quota. Try later",
        "452 4.1.1 <u@d.test> mailbox is over its quota",
        "452 4.3.1 Insufficient system storage",
        "450 4.2.1 The user you are trying to contact is receiving mail too quickly",
        "450 4.2.1 The recipient has exceeded message rate limit. Try again later",
        "432 4.3.2 STOREDRV.Deliver; recipient thread limit exceeded",
        "450 4.1.1 <u@d.test>: Recipient address rejected: User unknown in local recipient table",
        "550 5.7.1 <u@d.test>: Recipient address rejected: Not in recipient list",
        "550 5.7.133 RESOLVER.RST.SenderNotAuthenticatedForGroup",
        "540 5.7.1 <u@d.test>: recipient address rejected: Inactive",
        "550 5.7.1 Policy rejection on the target address",
    ];

    const OF_SENDERS: [&str; 14] = [
        "421 4.7.28 Our system has detected an unusual rate of unsolicited mail originating from your IP address",
        "451 4.7.650 The mail server [192.0.2.1] has been temporarily rate limited due to IP reputation",
        "421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred due to unexpected volume or user complaints",
        "421 4.7.0 Error: too many connections from 192.0.2.1",
        "452 4.7.1 Error: too much mail from 192.0.2.1",
        "452 4.2.1 your sending quota exceeded: too many messages per hour",
        "452 Too many recipients received this hour",
        "450 4.7.1 rate limited, slow down",
        "550 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org",
        "550 5.7.606 Access denied, banned sending IP [192.0.2.1]",
        "451 4.7.1 reputation",
        "421 RP-001 the rate of mail exceeded what is allowed",
        "451 4.3.0 Temporary server error. Please try again later",
        "421 4.7.0 you are too fast for us",
    ];

    #[test]
    fn mailboxes_quotas_and_greylisting_say_nothing_of_the_sender() {
        let rules = rules();
        for stage in [Stage::Recipient, Stage::Message, Stage::Transaction] {
            for reply in OF_MAILBOXES {
                assert!(!speaks_ill(&rules, &verdict(reply, stage)), "{stage:?} {reply}");
            }
            for reply in OF_SENDERS {
                assert!(speaks_ill(&rules, &verdict(reply, stage)), "{stage:?} {reply}");
            }
        }
        // A greeting is about no mailbox, but it may greylist.
        assert!(!speaks_ill(&rules, &verdict(OF_MAILBOXES[0], Stage::Session)));
        for reply in ["452 4.3.1 Insufficient system storage", "550 5.1.1 user unknown", "450 not now"] {
            assert!(speaks_ill(&rules, &verdict(reply, Stage::Session)), "{reply}");
        }
    }

    #[test]
    fn no_rule_about_a_mailbox_counts_and_none_about_the_source_is_left_out() {
        let rules = rules();
        for r in shipped() {
            let ill = speaks_ill(&rules, &verdict(r.example, Stage::Recipient));
            // Examples without a code are what others than receivers say.
            let is_reply = r.example.get(..3).is_some_and(|c| c.parse::<u16>().is_ok());
            let expected = !is_reply || r.scope != Scope::Recipient && r.category != "quota-issues";
            assert_eq!(ill, expected, "{}: {}", r.id, r.example);
        }
    }

    #[test]
    fn an_operator_may_say_what_is_a_mailbox_and_one_that_speaks_ill_is_enough() {
        let own =
            [("zu viel Post", "quota-issues", "a.conf:1".to_owned()), ("greylist", "other", "a.conf:2".to_owned())];
        let rules = Rules::of(own.iter().map(|(e, c, p)| (*e, *c, p.clone())));
        assert!(!speaks_ill(&rules, &verdict("451 4.3.0 zu viel Post", Stage::Recipient)));
        assert!(!speaks_ill(&rules, &verdict("451 4.7.1 Greylisted", Stage::Recipient)));
        let (full, slow) =
            (verdict("452 4.2.2 full", Stage::Recipient), verdict("450 4.7.1 slow down", Stage::Recipient));
        assert!(!speak_ill(&rules, [&full, &full].into_iter()));
        assert!(speak_ill(&rules, [&full, &full, &slow].into_iter()));
        let gone = verdict("550 5.1.1 no such user", Stage::Recipient);
        assert!(!speak_ill(&rules, [&gone].into_iter()));
    }
}
