//! What receivers answer: `smtp::reply`, and what `classify` makes of it.
#![no_main]

use fuzz::{expand, pieces};
use libfuzzer_sys::{Corpus, fuzz_target};
use worker::classify::bounce_category;
use worker::classify::bounce_rules::Rules;
use worker::classify::outcome::{Outcome, Verdict};
use worker::smtp::reply::{Extensions, REPLY_BYTES_MAX, Reply, ReplyError, parse};

thread_local! {
    static RULES: Rules = Rules::of(std::iter::empty());
}

/// Takes replies out of `buf` until more is needed, as a session does.
fn drain(buf: &mut Vec<u8>, replies: &mut Vec<Reply>) -> Result<(), ReplyError> {
    while let Some((reply, n)) = parse(buf)? {
        assert!((4..=buf.len()).contains(&n), "took {n} of {} bytes", buf.len());
        assert!(n <= REPLY_BYTES_MAX, "a reply of {n} bytes");
        buf.drain(..n);
        replies.push(reply);
    }
    Ok(())
}

fn check(reply: &Reply) {
    assert!((200..=599).contains(&reply.code), "code {}", reply.code);
    assert!(!reply.lines.is_empty());
    // An invalid byte is replaced by three.
    assert!(reply.lines.iter().map(String::len).sum::<usize>() <= 3 * REPLY_BYTES_MAX);
    let text = reply.text();
    assert!(text.chars().count() <= 1000, "{} characters", text.chars().count());
    assert!(text.starts_with(&reply.code.to_string()) && !text.contains(char::is_control), "{text:?}");

    let status = reply.enhanced_status();
    let parts: Vec<u16> = status.split('.').map(|p| p.parse().expect("a number")).collect();
    assert!(parts.len() == 3 && parts[0] == reply.code / 100 && parts[1..].iter().all(|p| *p < 1000), "{status}");

    let verdict = Verdict::of_reply(reply);
    assert_eq!(verdict.outcome == Outcome::Delivered, reply.is_positive());
    assert_eq!(verdict.outcome == Outcome::Bounced, reply.is_permanent());
    assert!(verdict.remote && verdict.status == status && verdict.diagnostic == text);
    let found = RULES.with(|rules| bounce_category::of(rules, &verdict).to_owned());
    assert!(!found.is_empty() && !bounce_category::words(&status, true).is_empty());

    let extensions = Extensions::of(reply);
    assert!(!extensions.names.contains(char::is_whitespace), "{:?}", extensions.names);
}

fuzz_target!(|input: &[u8]| -> Corpus {
    let Some((seed, script)) = input.split_first() else { return Corpus::Reject };
    let all = expand(script, 4 * REPLY_BYTES_MAX);

    let (mut whole, mut rest) = (Vec::new(), all.clone());
    let ended = drain(&mut rest, &mut whole);
    whole.iter().for_each(check);
    if let Err(e) = &ended {
        assert!(e.to_string().len() < 1000, "{} bytes of error", e.to_string().len());
    } else {
        assert!(rest.len() <= REPLY_BYTES_MAX, "{} bytes wait for the end of one reply", rest.len());
    }

    let (mut split, mut buf) = (Vec::new(), Vec::new());
    let longest = if all.len() > 4096 { 2048 } else { 40 };
    let split_ended = pieces(&all, *seed, longest).try_for_each(|piece| {
        buf.extend_from_slice(piece);
        drain(&mut buf, &mut split)
    });
    assert_eq!((split, split_ended), (whole, ended), "pieces make a difference");
    Corpus::Keep
});
