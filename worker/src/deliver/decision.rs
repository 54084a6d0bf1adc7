//! What a transaction, and what rules say of its replies, do to the recipients, to the connection, and to what is known of the host.
//! It is decided of values alone; [`super::connection`] carries it out.

use super::session_fault::SessionFault;
use super::transaction::Sent;
use crate::classify::outcome::{Outcome, Verdict};
use crate::classify::reply_patterns::Route;
use crate::smtp::extension::Lesson;
use crate::smtp::flight::Standing;

/// What a decision goes by, beside what came of the transaction.
#[derive(Debug, Clone, Copy)]
pub(super) struct Circumstances<'a> {
    /// Places of the batch's recipients in the envelope.
    pub recipients: &'a [u16],
    /// The connection has carried another message.
    pub is_reused: bool,
    /// Recipients that were refused on the connection before.
    pub errors: u64,
    /// The end of the content was on its way, so the receiver may have it.
    pub content_sent: bool,
    /// The receiver has other hosts that are not left out.
    pub has_others: bool,
    /// `smtp-421-means-mx-unavailable`: a host that says 421 is left out for a while.
    pub leaves_out_at_421: bool,
    /// The mail needs TLS, which this session does not have.
    pub needs_tls: bool,
    /// What is known of the host.
    pub lesson: Lesson,
    /// What rules say is to become of the mail, by a reply since the last decision.
    pub route: Option<Route>,
}

/// What is to be done.
#[derive(Debug)]
pub(super) struct Decision {
    /// Recipients that the attempt decided on, and how; in the batch's order.
    pub verdicts: Vec<(u16, Verdict)>,
    /// Recipients that go back to their queue, and are tried again at once.
    pub again: Vec<u16>,
    /// Why the session is over, if it is.
    pub fault: Option<SessionFault>,
    /// What is known of the host now.
    pub lesson: Lesson,
    /// The host is left out for a while, and others of the receiver are asked.
    pub skips_host: bool,
    /// The host is left out for a reply that was about none of the recipients that go again: queue and path remember it as their last failure, and
    /// the mail does not wait.
    pub failed_here: bool,
    /// The recipients that wait in the queue end by this verdict, too.
    pub bounces_queue: Option<Verdict>,
    /// The path waits for its retry, for this reason.
    pub defers_path: Option<Verdict>,
    /// The connection may carry another message.
    pub goes_on: bool,
}

/// Decides. Recipients of which nothing was said have a new connection when the session ended for a reason of its own and each such end
/// brings the mail further: a used connection, a decision on others, something learned. Where it does not, the fault is their deferral.
pub(super) fn decide(sent: Sent, c: &Circumstances<'_>) -> Decision {
    let lesson = learned(&sent, c);
    let Sent { standings, fault, .. } = sent;
    let is_learned = lesson != c.lesson;
    let is_decided = standings.iter().any(|s| matches!(s, Standing::Decided(_)));
    let is_left_out = |f: &SessionFault| f.is_421() && c.leaves_out_at_421 && c.has_others;
    let brings_further = match &fault {
        None => true,
        Some(f) if is_left_out(f) => true,
        Some(SessionFault::OutOfStep { .. }) => c.is_reused || is_learned,
        Some(f) => f.is_closing() && (c.is_reused || is_decided || is_learned),
    };
    let (mut verdicts, mut again) = (Vec::with_capacity(standings.len()), Vec::new());
    for (r, standing) in c.recipients.iter().copied().zip(standings) {
        match (standing, &fault) {
            (Standing::Decided(v) | Standing::Closing(v), _) => verdicts.push((r, v)),
            // The receiver may have taken the message.
            (Standing::Accepted, Some(f)) if c.content_sent => verdicts.push((r, f.failure().verdict)),
            (_, Some(f)) if !brings_further => verdicts.push((r, f.failure().verdict)),
            _ => again.push(r),
        }
    }
    let mut d = Decision {
        failed_here: !again.is_empty() && fault.as_ref().is_some_and(is_left_out),
        skips_host: c.leaves_out_at_421 && fault.as_ref().is_some_and(SessionFault::is_421),
        goes_on: fault.is_none() && !c.needs_tls,
        bounces_queue: None,
        defers_path: None,
        verdicts,
        again,
        fault,
        lesson,
    };
    if let Some(route) = c.route {
        d.follow(route);
    }
    d
}

impl Decision {
    /// Does to the mail what a rule says.
    fn follow(&mut self, route: Route) {
        let is_delivered = |v: &Verdict| v.outcome == Outcome::Delivered;
        match route {
            // The mail stays, whatever the reply was, and goes to the next host.
            Route::SkipMx => {
                self.again.extend(self.verdicts.iter().filter(|(_, v)| !is_delivered(v)).map(|(r, _)| *r));
                self.again.sort_unstable();
                self.verdicts.retain(|(_, v)| is_delivered(v));
                (self.skips_host, self.goes_on) = (true, false);
            }
            Route::BounceQueue => {
                for (_, v) in self.verdicts.iter_mut().filter(|(_, v)| v.outcome == Outcome::Deferred) {
                    v.outcome = Outcome::Bounced;
                }
                let bounced = self.verdicts.iter().find(|(_, v)| v.outcome == Outcome::Bounced);
                self.bounces_queue = bounced.map(|(_, v)| v.clone());
            }
            Route::DeferQueue => {
                let last = self.verdicts.iter().rev().find(|(_, v)| !is_delivered(v));
                let verdict = last.map_or_else(|| Verdict::own("4.4.0", "deferred by a rule"), |(_, v)| v.clone());
                (self.defers_path, self.goes_on) = (Some(verdict), false);
            }
            // It made an end of the recipient when the reply came.
            Route::BounceRcpt => {}
        }
    }
}

/// What is known of the host behind the transaction.
fn learned(sent: &Sent, c: &Circumstances<'_>) -> Lesson {
    let mut lesson = c.lesson;
    if let Some(n) = sent.too_many_after {
        lesson.recipients_max = n;
    }
    // The receiver closed in place of an answer, and not just between two messages.
    let standings = &sent.standings;
    let is_answered = standings.iter().any(|s| *s != Standing::Unasked);
    let closed = |f: &SessionFault| f.is_421() || is_answered && f.is_closing();
    if standings.contains(&Standing::Unasked) && !c.content_sent && sent.fault.as_ref().is_some_and(closed) {
        let is_refused = |s: &&Standing| matches!(s, Standing::Decided(v) if v.outcome != Outcome::Delivered);
        let refusals = standings.iter().filter(is_refused).count() as u64 + c.errors;
        let accepted = standings.iter().filter(|s| **s == Standing::Accepted).count();
        match (u16::try_from(refusals), u16::try_from(accepted)) {
            (Err(_), _) | (Ok(0), Err(_) | Ok(0)) => {}
            (Ok(0), Ok(n)) => lesson.recipients_max = n,
            (Ok(n), _) => lesson.refusals_max = n,
        }
    }
    // The next connection does without the extension that was used here.
    if let Some(SessionFault::OutOfStep { concerned: Some(extension), .. }) = &sent.fault {
        lesson.leave_out(*extension);
    }
    lesson
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::classify::outcome::Stage;
    use crate::smtp::extension::Extension;
    use crate::smtp::reply::Reply;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn reply(code: u16) -> Reply {
        Reply { code, lines: vec!["x".into()] }
    }

    fn decided(code: u16) -> Standing {
        Standing::Decided(Verdict::of_reply(&reply(code)).at(Stage::Recipient))
    }

    fn closed() -> Option<SessionFault> {
        Some(SessionFault::Closed { host: "mx".into(), ip: HERE })
    }

    fn said_421() -> Option<SessionFault> {
        Some(SessionFault::Refused { reply: reply(421), host: "mx".into(), ip: HERE })
    }

    fn sent(standings: Vec<Standing>, fault: Option<SessionFault>) -> Sent {
        Sent { standings, too_many_after: None, fault }
    }

    const FIRST: Circumstances<'static> = Circumstances {
        recipients: &[0, 1, 2],
        is_reused: false,
        errors: 0,
        content_sent: false,
        has_others: false,
        leaves_out_at_421: false,
        needs_tls: false,
        lesson: Lesson {
            without_pipelining: false,
            without_chunking: false,
            without_parameters: false,
            recipients_max: 0,
            refusals_max: 0,
        },
        route: None,
    };

    fn outcomes(d: &Decision) -> Vec<(u16, Outcome)> {
        d.verdicts.iter().map(|(r, v)| (*r, v.outcome.clone())).collect()
    }

    #[test]
    fn what_nothing_was_said_of_goes_again_as_long_as_that_brings_it_further() {
        use Standing::Unasked;
        // A connection that closed between two messages.
        let d = decide(sent(vec![Unasked; 3], closed()), &Circumstances { is_reused: true, ..FIRST });
        assert_eq!((d.again, d.verdicts.len(), d.lesson), (vec![0, 1, 2], 0, FIRST.lesson));
        // One that was opened for this mail.
        let d = decide(sent(vec![Unasked; 3], closed()), &FIRST);
        assert_eq!((outcomes(&d), d.goes_on), ((0..3).map(|r| (r, Outcome::Deferred)).collect(), false));
        // Another recipient was decided on.
        let d = decide(sent(vec![decided(550), Unasked, Unasked], closed()), &FIRST);
        assert_eq!((outcomes(&d), &d.again), (vec![(0, Outcome::Bounced)], &vec![1, 2]));
        assert_eq!(d.lesson.refusals_max, 1);
    }

    #[test]
    fn content_that_the_receiver_may_have_is_not_sent_again_at_once() {
        let c = Circumstances { content_sent: true, is_reused: true, ..FIRST };
        let d = decide(sent(vec![Standing::Accepted, Standing::Accepted, decided(550)], closed()), &c);
        assert_eq!(outcomes(&d), [(0, Outcome::Deferred), (1, Outcome::Deferred), (2, Outcome::Bounced)]);
        assert!(d.again.is_empty() && d.lesson == FIRST.lesson);
    }

    #[test]
    fn a_host_that_closes_behind_recipients_takes_so_many() {
        use Standing::{Accepted, Unasked};
        let d = decide(sent(vec![Accepted, Accepted, Unasked], said_421()), &FIRST);
        assert_eq!((d.lesson.recipients_max, d.again), (2, vec![0, 1, 2]));
        // It says the same a second time: nothing is learned, and the mail waits.
        let c = Circumstances { lesson: d.lesson, ..FIRST };
        let d = decide(sent(vec![Accepted, Accepted, Unasked], said_421()), &c);
        assert_eq!((d.again.len(), d.verdicts.len()), (0, 3));
        // One more than it takes is a matter of this transaction alone.
        let told = Sent { too_many_after: Some(2), ..sent(vec![decided(250), decided(250), Standing::Surplus], None) };
        let d = decide(told, &FIRST);
        assert_eq!((d.lesson.recipients_max, d.again, d.goes_on), (2, vec![2], true));
    }

    #[test]
    fn an_extension_that_a_host_does_not_keep_is_left_out_once() {
        let fault = |concerned| {
            let (host, ip) = ("mx".into(), HERE);
            Some(SessionFault::OutOfStep { command: "BDAT", reply: reply(503), concerned, host, ip })
        };
        let d = decide(sent(vec![Standing::Unasked; 3], fault(Some(Extension::Chunking))), &FIRST);
        assert!(d.lesson.without_chunking && d.again.len() == 3 && !d.goes_on);
        let c = Circumstances { lesson: d.lesson, ..FIRST };
        let d = decide(sent(vec![Standing::Unasked; 3], fault(Some(Extension::Chunking))), &c);
        assert!(d.again.is_empty() && outcomes(&d).iter().all(|(_, o)| *o == Outcome::Deferred));
    }

    #[test]
    fn a_host_that_is_left_out_at_421_hands_its_mail_to_others() {
        let c = Circumstances { leaves_out_at_421: true, has_others: true, ..FIRST };
        let d = decide(sent(vec![Standing::Unasked; 3], said_421()), &c);
        assert!(d.skips_host && d.failed_here && d.again.len() == 3);
        // Where there are none, the mail waits.
        let d = decide(sent(vec![Standing::Unasked; 3], said_421()), &Circumstances { has_others: false, ..c });
        assert!(d.skips_host && !d.failed_here && d.verdicts.len() == 3);
    }

    #[test]
    fn rules_say_what_becomes_of_mail() {
        let standings = || vec![decided(250), decided(451), decided(550)];
        let by = |route| decide(sent(standings(), None), &Circumstances { route: Some(route), ..FIRST });
        let d = by(Route::SkipMx);
        assert_eq!((outcomes(&d), &d.again), (vec![(0, Outcome::Delivered)], &vec![1, 2]));
        assert!(d.skips_host && !d.goes_on);
        let d = by(Route::BounceQueue);
        assert_eq!(outcomes(&d), [(0, Outcome::Delivered), (1, Outcome::Bounced), (2, Outcome::Bounced)]);
        assert!(d.bounces_queue.is_some_and(|v| v.code == 451) && d.goes_on);
        let d = by(Route::DeferQueue);
        assert!(d.defers_path.is_some_and(|v| v.code == 550) && !d.goes_on && d.verdicts.len() == 3);
        let d = by(Route::BounceRcpt);
        assert!(d.bounces_queue.is_none() && d.goes_on && d.again.is_empty());
    }
}
