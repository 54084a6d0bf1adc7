//! Programs that a configuration names: mail and accounting rows are given to them. The supervisor starts them, for a
//! worker cannot (see [`crate::sandbox`]): it asks for those that mail is delivered to, and the supervisor has its own
//! look at whether the configuration says so.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use ipc::control::{ProgramEnd, ToSupervisor};
use ipc::descriptors::sealed_memfd;
use ipc::dice::HashMap;
use ipc::limits::PROGRAMS_PER_SHARD_MAX;
use tokio::process::{Child, Command};
use tokio::sync::{Notify, Semaphore, oneshot};

use crate::rights;

/// Where programs are found, and their other programs.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The folders where a program is looked for whose name has no slash.
pub fn folders() -> impl Iterator<Item = &'static Path> {
    PATH.split(':').map(Path::new)
}

/// What a program finds in its environment: nothing of what the server was started with, such as the socket by which
/// it speaks to systemd, but the time zone.
pub fn environment() -> impl Iterator<Item = (&'static str, OsString)> {
    let zone = std::env::var_os("TZ").map(|zone| ("TZ", zone));
    [("PATH", PATH.into()), ("LANG", "C.UTF-8".into())].into_iter().chain(zone)
}

/// Starts a program on other CPUs than those that workers are pinned to, as far as there are others.
///
/// # Errors
/// As `fork(2)` and `execve(2)`.
pub async fn start(mut command: Command, cpus_of_workers: Vec<usize>) -> io::Result<Child> {
    command.env_clear().envs(environment());
    // It has the CPUs of the thread that starts it.
    let started = tokio::task::spawn_blocking(move || {
        rights::leave_cpus_of_workers(&cpus_of_workers);
        command.spawn()
    });
    started.await.map_err(io::Error::other)?
}

/// Words of a command: blanks separate them outside of quotes.
pub fn words(command: &str) -> Vec<String> {
    let (mut all, mut word, mut quote, mut any) = (Vec::new(), String::new(), None, false);
    let mut chars = command.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', q) if q != Some('\'') => word.extend(chars.next()),
            (c, Some(q)) if c == q => quote = None,
            ('"' | '\'', None) => (quote, any) = (Some(c), true),
            (c, None) if c.is_whitespace() => {
                if any || !word.is_empty() {
                    all.push(std::mem::take(&mut word));
                }
                any = false;
            }
            (c, _) => word.push(c),
        }
    }
    if any || !word.is_empty() {
        all.push(word);
    }
    all
}

/// What the words of a command become: first words, then macros, so that what an address holds is never more than one of
/// them. `replaced` puts values in a word, and leads to no other folder where its second argument says so: no value
/// chooses the program.
///
/// # Errors
/// A value that would become an option; behind `--` programs expect none.
pub fn with_values(command: &str, replaced: impl Fn(&str, bool) -> String) -> Result<Vec<String>, String> {
    let written = words(command);
    let value = |(i, word): (usize, &String)| {
        let value = replaced(word, i == 0);
        match becomes_option(&written, i, &value) {
            true => Err(format!("the command would take {value:?} for an option")),
            false => Ok(value),
        }
    };
    written.iter().enumerate().map(value).collect()
}

fn becomes_option(written: &[String], i: usize, value: &str) -> bool {
    let is_operand = written.iter().take(i + 1).any(|w| w == "--");
    value.starts_with('-') && !written[i].starts_with('-') && !is_operand
}

/// Whether [`with_values`] can have made `given` of a command: there are as many words, none has become an option, those
/// without macros are as written, the others so before the first and behind the last macro; and of the program that holds
/// for each part of its path, of which none leads up.
pub fn are_of(command: &str, given: &[String]) -> bool {
    let written = words(command);
    let word = |(i, value): (usize, &String)| {
        let of = &written[i];
        let fits = match i {
            0 => {
                let (parts, found) = (of.split('/'), value.split('/'));
                parts.clone().count() == found.clone().count() && parts.zip(found).all(|(of, v)| is_part(of, v))
            }
            _ => may_be(of, value),
        };
        fits && !becomes_option(&written, i, value)
    };
    given.len() == written.len() && given.iter().enumerate().all(word)
}

/// Whether a word with its macros replaced can be this value.
fn may_be(word: &str, value: &str) -> bool {
    let Some((before, _)) = word.split_once('$') else { return value == word };
    let behind = word.rsplit_once('$').map_or("", |(_, b)| b.trim_start_matches(|c: char| c.is_ascii_alphanumeric()));
    let rest = value.strip_prefix(before).and_then(|v| v.strip_suffix(behind));
    rest.is_some() && value.len() >= before.len() + behind.len()
}

fn is_part(word: &str, value: &str) -> bool {
    let leads_on = !word.contains('$') || !matches!(value, "" | "." | "..");
    leads_on && may_be(word, value)
}

/// What a program is to be given, for the supervisor.
pub type Order = (ToSupervisor, OwnedFd);

/// Programs that the supervisor runs for a worker.
#[derive(Debug)]
pub struct Programs {
    places: Semaphore,
    last: Cell<u64>,
    /// Not sent yet, by number.
    waiting: RefCell<VecDeque<(u64, Order)>>,
    more: Notify,
    /// Started, by number, with the channel on which its end is told.
    running: RefCell<HashMap<u64, oneshot::Sender<Option<ProgramEnd>>>>,
}

impl Default for Programs {
    fn default() -> Programs {
        Programs {
            places: Semaphore::new(PROGRAMS_PER_SHARD_MAX),
            last: Cell::default(),
            waiting: RefCell::default(),
            more: Notify::default(),
            running: RefCell::default(),
        }
    }
}

/// One that is waited for.
struct Awaited<'a> {
    programs: &'a Programs,
    number: u64,
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        self.programs.running.borrow_mut().remove(&self.number);
        self.programs.waiting.borrow_mut().retain(|(n, _)| *n != self.number);
    }
}

impl Programs {
    /// Has a program run that is given what `content` answers, and waits for its end. At most [`PROGRAMS_PER_SHARD_MAX`] run
    /// at once, others wait for their turn. `None`: it was not begun, for the server stops.
    pub async fn run(
        &self,
        command: &str,
        words: Vec<String>,
        content: impl FnOnce() -> Vec<u8>,
    ) -> Option<ProgramEnd> {
        // Closed at a stop.
        let _place = self.places.acquire().await.ok()?;
        let content = match sealed_memfd("sluice-mail", &content()) {
            Ok(fd) => fd,
            Err(e) => return Some(ProgramEnd::Unknown(format!("its mail cannot be held for it: {e}"))),
        };
        let number = self.last.get() + 1;
        self.last.set(number);
        let (ended, end) = oneshot::channel();
        self.running.borrow_mut().insert(number, ended);
        let _awaited = Awaited { programs: self, number };
        let order = ToSupervisor::RunProgram { number, command: command.to_owned(), words };
        self.waiting.borrow_mut().push_back((number, (order, content)));
        self.more.notify_one();
        end.await.unwrap_or_else(|_| Some(ProgramEnd::Unknown("the supervisor ended while it ran".to_owned())))
    }

    /// None is begun any more.
    pub fn stop(&self) {
        self.places.close();
        for (number, _) in self.waiting.take() {
            self.tell(number, None);
        }
    }

    /// The next order for the supervisor, when there is one.
    pub async fn next(&self) -> Order {
        loop {
            if let Some((_, order)) = self.waiting.borrow_mut().pop_front() {
                return order;
            }
            self.more.notified().await;
        }
    }

    /// One has ended.
    pub fn ended(&self, number: u64, how: ProgramEnd) {
        self.tell(number, Some(how));
    }

    fn tell(&self, number: u64, end: Option<ProgramEnd>) {
        if let Some(waits) = self.running.borrow_mut().remove(&number) {
            // The delivery that waited for the program may have been cut off.
            let _ = waits.send(end);
        }
    }

    /// The supervisor is gone, and what it was told with it: nobody will say how those ended.
    pub fn supervisor_gone(&self) {
        let waiting = self.waiting.borrow();
        self.running.borrow_mut().retain(|n, _| waiting.iter().any(|(w, _)| w == n));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn commands_are_split_before_macros_are_replaced() {
        assert_eq!(words("/bin/a -x \"$to b\" '' c\\ d"), ["/bin/a", "-x", "$to b", "", "c d"]);
    }

    #[test]
    fn no_address_becomes_an_option() {
        let given = |command: &str, from: &str, to: &str| {
            let made = with_values(command, |word, _| word.replace("$from", from).replace("$to", to));
            assert!(made.as_ref().is_ok_and(|w| are_of(command, w)) || made.is_err(), "{made:?}");
            made.map(|a| a.join(" "))
        };
        assert_eq!(given("/p -f $from -- $to", "a@b", "-x@d").as_deref(), Ok("/p -f a@b -- -x@d"));
        assert_eq!(given("/p --to=$to -f$from", "-a@b", "-x@d").as_deref(), Ok("/p --to=-x@d -f-a@b"));
        assert!(given("/p $to", "a@b", "-x@d").is_err_and(|e| e.contains("\"-x@d\" for an option")));
        assert!(given("/p -f $from", "-oQ/tmp@b", "x@d").is_err());
        // Nor do words that are left of a macro without a value.
        assert!(given("/p $from-v", "", "x@d").is_err());
    }

    #[test]
    fn only_what_a_command_says_is_run() {
        let fits = |command: &str, words: &[&str]| {
            are_of(command, &words.iter().map(|w| (*w).to_owned()).collect::<Vec<String>>())
        };
        assert!(fits("/p -f $from -- $to", &["/p", "-f", "a@b", "--", "-x@d"]));
        assert!(fits("'/a b/$user' ''", &["/a b/c", ""]));
        assert!(fits("/p/x-$user-$domain.sh a$$b", &["/p/x-a-d.test.sh", "a$b"]));
        for (command, words) in [
            ("/p $to", &["/q", "a@b"] as &[&str]),
            ("/p $to", &["/p", "-x"]),
            ("/p $to", &["/p", "a@b", "c"]),
            ("/p -f$to", &["/p", "-ea@b"]),
            ("/p/$user", &["/p/../bin/sh"]),
            ("/p/$user", &["/p/.."]),
            ("/p/$domain/x", &["/p/../sh"]),
            ("/p/$user-x", &["/p/sh"]),
            ("/p/x-$user.sh", &["/p/x-.shell"]),
            ("/p $user@d", &["/p", "a@e"]),
            ("/p", &[]),
        ] {
            assert!(!fits(command, words), "{command} {words:?}");
        }
    }

    proptest! {
        /// Whatever an address holds: what a worker makes of a command is what the supervisor expects of it.
        #[test]
        fn what_a_command_becomes_is_of_it(value in "[-a-z./$ \"']{0,8}", other in "[-a-z.]{0,4}") {
            let replaced = |word: &str, for_path: bool| {
                let value = if for_path { format!("_{}", value.replace('/', "_")) } else { value.clone() };
                word.replace("$to", &value).replace("$user", &other)
            };
            for command in ["/p $to -- x$user", "/p/x$to.sh --a=$user$to", "$to-$user '$to x'", "/a/$to/b$user \\$to"] {
                if let Ok(words) = with_values(command, replaced) {
                    prop_assert!(are_of(command, &words), "{} {:?}", command, words);
                }
            }
        }
    }

    #[tokio::test]
    async fn ends_reach_who_waits_for_them() {
        let programs = Programs::default();
        let words = || vec!["/p".to_owned()];
        let order = async {
            let numbers: [u64; 2] = [programs.next().await, programs.next().await].map(|(o, _)| match o {
                ToSupervisor::RunProgram { number, .. } => number,
                _ => 0,
            });
            programs.ended(numbers[1], ProgramEnd::Code(7));
            programs.supervisor_gone();
        };
        let run = || programs.run("/p", words(), || b"mail".to_vec());
        let both = async { tokio::join!(run(), run()) };
        let ((a, b), ()) = tokio::join!(both, order);
        assert!(matches!(a, Some(ProgramEnd::Unknown(_))) && b == Some(ProgramEnd::Code(7)));
        let gone = tokio::time::timeout(std::time::Duration::ZERO, run()).await;
        assert!(gone.is_err() && programs.waiting.borrow().is_empty() && programs.running.borrow().is_empty());
        let (c, ()) = tokio::join!(run(), async { programs.stop() });
        assert_eq!((c, run().await), (None, None), "a stop begins none");
    }
}
