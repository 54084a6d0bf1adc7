//! What domains publish of who may send for them (SPF): each line of the input is a text of some name, or names and addresses of it.
#![no_main]

use std::cell::Cell;
use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use tokio::runtime::{Builder, Runtime};
use worker::spf::names::Unanswered;
use worker::spf::{Asked, Names, check};

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().build().expect("a runtime");
}

struct Zone<'a> {
    lines: Vec<&'a [u8]>,
    questions: Cell<usize>,
}

impl<'a> Zone<'a> {
    /// The line of a name: which, its letters say.
    fn line(&self, name: &str) -> Result<&'a [u8], Unanswered> {
        assert!(name.len() <= 253 && !name.is_empty(), "{name:?} is no name");
        self.questions.set(self.questions.get() + 1);
        let sum = name.bytes().fold(0usize, |sum, b| sum.wrapping_mul(31).wrapping_add(b.into()));
        let line = self.lines.get(sum % self.lines.len().max(1)).copied().unwrap_or_default();
        if line.first() == Some(&b'?') { Err(Unanswered("no answer".into())) } else { Ok(line) }
    }

    fn words(&self, name: &str) -> Result<Vec<String>, Unanswered> {
        let text = String::from_utf8_lossy(self.line(name)?).into_owned();
        Ok(text.split_whitespace().map(str::to_owned).filter(|w| w.len() <= 253).collect())
    }
}

impl Names for Zone<'_> {
    async fn texts(&self, name: &str) -> Result<Vec<Vec<u8>>, Unanswered> {
        Ok(vec![self.line(name)?.to_vec()])
    }

    async fn addresses(&self, name: &str, v6: bool) -> Result<Vec<IpAddr>, Unanswered> {
        let all = self.words(name)?.into_iter().filter_map(|w| w.parse::<IpAddr>().ok());
        Ok(all.filter(|ip| ip.is_ipv6() == v6).collect())
    }

    async fn mail_hosts(&self, name: &str) -> Result<Vec<String>, Unanswered> {
        self.words(name)
    }

    async fn names_of(&self, ip: IpAddr) -> Result<Vec<String>, Unanswered> {
        self.words(&ip.to_string())
    }
}

fuzz_target!(|input: &[u8]| {
    let zone = Zone { lines: input.split(|b| *b == b'\n').collect(), questions: Cell::new(0) };
    for ip in [IpAddr::from([192, 0, 2, 1]), IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1])] {
        let asked = Asked { ip, hello: "h.test", sender: "a.b@d.test", voids_max: 2 };
        let checked = RUNTIME.with(|r| r.block_on(check(&zone, &asked)));
        assert!(checked.domain == "d.test" && checked.trace.iter().map(String::len).sum::<usize>() < 16_000);
    }
    // Ten terms that ask DNS, ten hosts or names of each, and the records themselves.
    assert!(zone.questions.get() <= 2 * 300, "{} questions", zone.questions.get());
});
