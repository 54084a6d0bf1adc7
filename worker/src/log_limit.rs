//! Log lines that others can cause as often as they like: of each cause and whom it is about the first few of a minute are written, then
//! they are counted, and the number is told when the minute is over. One process serves one shard, so the counts are the thread's.

use std::cell::RefCell;
use std::time::Duration;

use ipc::dice::HashMap;
use tokio::time::Instant;

/// Lines of one cause about one client or path in a minute.
const LINES: u32 = 5;
/// The same about all clients together.
const LINES_OF_ALL: u32 = 300;
/// When what was left out is told.
const EVERY: Duration = Duration::from_secs(60);
/// Clients and paths that are told apart; what is said of further ones is counted together.
const SUBJECTS_MAX: usize = 4096;
/// The name under which further clients and paths are counted.
const OTHERS: &str = "others";

/// Lines about one client or path.
#[derive(Debug)]
struct Lines {
    since: Instant,
    written: u32,
    left_out: u64,
}

type Known = HashMap<(&'static str, String), Lines>;

thread_local! {
    static KNOWN: RefCell<Known> = RefCell::default();
    /// Of clients, who may be any number: they take no room from what is said of paths.
    static CLIENTS: RefCell<Known> = RefCell::default();
}

/// The name under which lines are counted that are about any client.
const ALL_CLIENTS: &str = "all clients";

fn allows(known: &mut Known, cause: &'static str, of: &str, most: u32, now: Instant) -> bool {
    let key = (cause, of.to_owned());
    let full = known.len() >= SUBJECTS_MAX && !known.contains_key(&key);
    let key = if full { (cause, OTHERS.to_owned()) } else { key };
    let lines = known.entry(key).or_insert(Lines { since: now, written: 0, left_out: 0 });
    let is_written = lines.written < most;
    lines.written += u32::from(is_written);
    lines.left_out += u64::from(!is_written);
    is_written
}

/// Whether a line may be written now about a path, or whatever else there are only so many of as the configuration and the mail name.
pub fn allows_line(cause: &'static str, of: &str) -> bool {
    KNOWN.with_borrow_mut(|k| allows(k, cause, of, LINES, Instant::now()))
}

/// The same about a client, of whom there may be any number.
pub fn allows_line_of_client(cause: &'static str, client: &str) -> bool {
    CLIENTS.with_borrow_mut(|k| {
        let now = Instant::now();
        allows(k, cause, client, LINES, now) && allows(k, cause, ALL_CLIENTS, LINES_OF_ALL, now)
    })
}

/// What is over by a time, with the number of lines that were not written.
fn take_over(known: &mut Known, is_over: impl Fn(&Lines) -> bool) -> Vec<(&'static str, String, u64)> {
    let over = known.extract_if(|_, l| is_over(l)).filter(|(_, l)| l.left_out > 0);
    over.map(|((cause, of), l)| (cause, of, l.left_out)).collect()
}

fn tell(all: Vec<(&'static str, String, u64)>) {
    for (cause, of, left_out) in all {
        tracing::info!(of, left_out, "left out of the log: more lines like \"{cause}\"");
    }
}

/// The same of clients, a line for each cause: the one with the most, how many others, and the number of all.
fn take_over_clients(known: &mut Known, is_over: impl Fn(&Lines) -> bool) -> Vec<(&'static str, String, u64)> {
    let mut by_cause: HashMap<&'static str, Vec<(u64, String)>> = HashMap::default();
    for (cause, of, left_out) in take_over(known, is_over) {
        by_cause.entry(cause).or_default().push((left_out, of));
    }
    let told = |(cause, mut all): (&'static str, Vec<(u64, String)>)| {
        let left_out = all.iter().map(|(n, _)| n).sum();
        let clients = all.iter().filter(|(_, of)| of != ALL_CLIENTS).count();
        all.sort_unstable_by(|a, b| (a.1 == ALL_CLIENTS).cmp(&(b.1 == ALL_CLIENTS)).then(b.0.cmp(&a.0)));
        let first = all.into_iter().next().map(|(_, of)| of).unwrap_or_default();
        let of = if clients > 1 { format!("{first} and {} others", clients - 1) } else { first };
        (cause, of, left_out)
    };
    by_cause.into_iter().map(told).collect()
}

/// Tells what was left out in the last minute; called every second.
pub fn sweep() {
    let now = Instant::now();
    let is_over = |l: &Lines| now.duration_since(l.since) >= EVERY;
    tell(KNOWN.with_borrow_mut(|k| take_over(k, is_over)));
    tell(CLIENTS.with_borrow_mut(|k| take_over_clients(k, is_over)));
}

/// Tells what was left out so far, before a stop.
pub fn tell_all() {
    tell(KNOWN.with_borrow_mut(|k| take_over(k, |_| true)));
    tell(CLIENTS.with_borrow_mut(|k| take_over_clients(k, |_| true)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_few_are_written_and_the_rest_is_counted_for_each() {
        let (mut known, now) = (Known::new(), Instant::now());
        let mut written = |of: &str, n: u32| (0..n).filter(|_| allows(&mut known, "refused", of, 5, now)).count();
        assert_eq!([written("a", 3), written("a", 1000), written("b", 1)], [3, 2, 1]);
        let over = take_over(&mut known, |l| now.duration_since(l.since) >= EVERY);
        assert!(over.is_empty());
        let over = take_over(&mut known, |_| true);
        assert_eq!(over, [("refused", "a".to_owned(), 998)]);
        assert!(known.is_empty() && allows(&mut known, "refused", "a", 5, now), "the next minute begins anew");
    }

    #[test]
    fn of_all_clients_there_is_one_line_that_names_the_worst() {
        let (mut known, now) = (Known::new(), Instant::now());
        for (client, lines) in [("a", 7), ("b", 100), ("c", 6)] {
            for _ in 0..lines {
                let _ = allows(&mut known, "refused", client, 5, now);
            }
        }
        assert_eq!(take_over_clients(&mut known, |_| true), [("refused", "b and 2 others".to_owned(), 98)]);
        for _ in 0..9 {
            let _ = allows(&mut known, "refused", ALL_CLIENTS, 5, now);
        }
        assert_eq!(take_over_clients(&mut known, |_| true), [("refused", ALL_CLIENTS.to_owned(), 4)]);
    }

    #[test]
    fn any_number_of_clients_takes_bounded_memory_and_lines() {
        let (mut known, now) = (Known::new(), Instant::now());
        let written = (0..100_000).filter(|n| allows(&mut known, "refused", &n.to_string(), 5, now)).count();
        assert!(known.len() <= SUBJECTS_MAX + 1 && written <= SUBJECTS_MAX + 5, "{} {written}", known.len());
        let over = take_over(&mut known, |_| true);
        assert_eq!(over, [("refused", OTHERS.to_owned(), 100_000 - written as u64)]);
    }
}
