//! Tasks of a shard. All begin here, under a name: a panic in one ends that task and nothing else, is counted, and is told of in one line of
//! the log that names the task and the place in the program. What the task had in hand goes back as its values are dropped.
//!
//! Tasks that serve one thing and end with it are begun once ([`begin`]); what a shard cannot be without begins anew after a panic ([`keep`]).
//! A task that holds a message runs what it does with it inside [`caught`], and decides behind a panic what becomes of the message.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::Poll;
use std::time::Duration;

use tokio::task::AbortHandle;

use crate::log_limit;

const _: () = assert!(cfg!(panic = "unwind"), "a panic is to end one task, not the shard with all of them");

/// Pause before what panicked is done once more. What panics once may do so each time.
pub const AFTER_PANIC: Duration = if cfg!(test) { Duration::from_millis(50) } else { Duration::from_secs(10) };
/// Pause before a task that a shard cannot be without begins anew.
const KEPT_AFTER: Duration = Duration::from_secs(1);

/// Panics of this process.
static PANICS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// What runs now is contained, and whoever contains it tells of a panic.
    static IS_CONTAINED: Cell<bool> = const { Cell::new(false) };
    /// Where the last panic was that nobody has told of yet.
    static PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// A panic that was contained.
#[derive(Debug, Default)]
pub struct Panicked {
    /// File, line and column.
    pub place: String,
    /// What it said.
    pub why: String,
}

/// Panics of this process since it was started.
pub fn panics() -> u64 {
    PANICS.load(Relaxed)
}

/// Lets the tasks that are ready have their turn first. [`tokio::task::yield_now`] also asks the system what has come meanwhile, which costs a
/// system call.
pub async fn after_those_ready() {
    let mut has_waited = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut has_waited, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Has panics of this process told of in its log.
pub fn tell_of_panics() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let backtrace = std::backtrace::Backtrace::capture();
        if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
            tracing::error!(place, "{backtrace}");
        }
        if IS_CONTAINED.get() {
            PLACE.replace(place);
            return;
        }
        // Of the process itself, or of a thread that does something aside.
        PANICS.fetch_add(1, Relaxed);
        let thread = std::thread::current();
        let (thread, why) = (thread.name().unwrap_or_default(), said(info.payload()));
        match tracing::dispatcher::has_been_set() {
            true => tracing::error!(thread, place, why, "a panic"),
            false => eprintln!("a panic of thread {thread} at {place}: {why}"),
        }
    }));
}

fn said(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or_default().to_owned()
}

/// Does something at once; a panic in it is counted. What it borrows is as it was left.
///
/// # Errors
/// The panic, which is still to be told of.
pub fn contained<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    let outside = IS_CONTAINED.replace(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    IS_CONTAINED.set(outside);
    done.map_err(|payload| {
        PANICS.fetch_add(1, Relaxed);
        Panicked { place: PLACE.take(), why: said(&*payload) }
    })
}

/// Does something to its end, or until it panics, as [`contained`].
///
/// # Errors
/// The panic, which is still to be told of.
pub async fn caught<T>(mut work: Pin<&mut impl Future<Output = T>>) -> Result<T, Panicked> {
    std::future::poll_fn(|cx| match contained(|| work.as_mut().poll(cx)) {
        Ok(polled) => polled.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}

impl Panicked {
    /// Tells of it: what a stranger can lead to again and again only as often as the log is to hold.
    pub fn tell(&self, task: &'static str) {
        if log_limit::allows_line("a task ended by a panic", task) {
            tracing::error!(task, place = self.place, why = self.why, "a task ended by a panic");
        }
    }
}

/// Begins a task. The future is made in it, so that it lies there once.
#[expect(clippy::disallowed_methods, reason = "this is where tasks begin")]
pub fn begin<F: Future>(task: &'static str, work: impl FnOnce() -> F + 'static) -> AbortHandle {
    let contained = async move {
        let ended = caught(pin!(work())).await;
        ended.err().iter().for_each(|panic| panic.tell(task));
    };
    tokio::task::spawn_local(contained).abort_handle()
}

/// Begins a task that a shard cannot be without: it begins anew, a while after a panic, until it ends by itself.
#[expect(clippy::disallowed_methods, reason = "this is where tasks begin")]
pub fn keep<S: 'static, F: Future>(of: &Rc<S>, task: &'static str, work: impl Fn(Rc<S>) -> F + 'static) -> AbortHandle {
    let of = Rc::clone(of);
    let kept = async move {
        loop {
            // What it held is dropped before the pause.
            let ended = caught(pin!(work(Rc::clone(&of)))).await;
            let Err(panic) = ended else { return };
            panic.tell(task);
            tokio::time::sleep(KEPT_AFTER).await;
        }
    };
    tokio::task::spawn_local(kept).abort_handle()
}

#[cfg(test)]
thread_local! {
    /// Where the next panic is to happen.
    pub(crate) static PANICS_AT: Cell<&'static str> = const { Cell::new("") };
}

/// A place that tests let panic once.
#[inline]
pub(crate) fn may_panic(_place: &'static str) {
    #[cfg(test)]
    if PANICS_AT.get() == _place {
        PANICS_AT.set("");
        panic!("on purpose");
    }
}

/// Does something when it is dropped, also by a panic.
#[derive(Debug)]
pub struct AtEnd<F: FnMut()>(pub F);

impl<F: FnMut()> Drop for AtEnd<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::task::LocalSet;
    use tokio::time::timeout;

    use super::*;

    async fn within<T>(what: impl Future<Output = T>) -> T {
        timeout(Duration::from_secs(30), what).await.unwrap()
    }

    #[tokio::test]
    async fn a_panic_is_counted_and_what_the_task_held_is_dropped() {
        let held = Rc::new(());
        let before = panics();
        let local = LocalSet::new();
        let of_task = Rc::clone(&held);
        local
            .run_until(async {
                let task = begin("test", move || async move {
                    let _held = of_task;
                    tokio::task::yield_now().await;
                    panic!("on purpose");
                });
                within(async {
                    while !task.is_finished() {
                        tokio::task::yield_now().await;
                    }
                })
                .await;
            })
            .await;
        assert_eq!(Rc::strong_count(&held), 1);
        assert!(panics() > before);
    }

    #[tokio::test]
    async fn what_is_kept_begins_anew() {
        let times = Rc::new(Cell::new(0));
        let local = LocalSet::new();
        local
            .run_until(async {
                let task = keep(&times, "test", |times| async move {
                    times.set(times.get() + 1);
                    assert!(times.get() > 1, "on purpose");
                });
                within(async {
                    while !task.is_finished() {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                })
                .await;
            })
            .await;
        assert_eq!(times.get(), 2);
    }

    #[tokio::test]
    async fn a_panic_says_what_it_said() {
        let panicked = caught(pin!(async { panic!("{} on purpose", 1) })).await;
        let why: Result<(), String> = panicked.map_err(|p| p.why);
        assert_eq!(why, Err("1 on purpose".to_owned()));
        assert!(!IS_CONTAINED.get());
    }

    #[test]
    fn a_task_takes_no_more_memory_than_what_it_does() {
        async fn work(some: [u8; 4096]) -> usize {
            tokio::task::yield_now().await;
            some.len()
        }
        let size = |f: &dyn Fn() -> usize| f();
        let alone = size(&|| size_of_val(&work([0; 4096])));
        let begun = size(&|| {
            let work = || work([0; 4096]);
            size_of_val(&async move { caught(pin!(work())).await.map_err(|p| p.tell("test")) })
        });
        assert!(begun <= alone + 256, "{begun} bytes for {alone}");
    }
}
