#!/usr/bin/env bash
# What does a task pay that lets other tasks of tokio's current-thread runtime have their turn?
#
# A task of a LocalSet gives way a thousand times while nothing else is ready: by tokio::task::yield_now(), and by waking its own waker and
# answering Pending once, which is what yield_now() is said to do ("the current task will be re-added as a pending task at the back of the
# pending queue"). Seen, with tokio 1.54.1 on Linux, counted by strace:
#   yield_now()      about 1,000 calls of epoll_wait, each with a timeout of 0
#   its own waker    hardly any
# yield_now() puts the waker aside, and the runtime wakes it only behind a look at the I/O driver: a task that yields again and again asks
# the kernel each time, also when thousands of sockets are quiet. That is meant, so that input is not starved by tasks that yield; but a
# task that only waits for its neighbours, such as one that gathers what they leave for one write, pays a system call for each look.
# Waking itself, it comes behind every task that is ready, and input is looked at each time the runtime's event_interval is over.
# Needs cargo and strace. Fails when a release does otherwise.
set -euo pipefail
at=$(mktemp -d)
trap 'rm -rf "$at"' EXIT
cd "$at"
mkdir src
cat >Cargo.toml <<'T'
[package]
name = "yields"
version = "0.0.0"
edition = "2021"

[dependencies]
tokio = { version = "=1.54.1", features = ["rt", "net", "time"] }
T
cat >src/main.rs <<'R'
use std::future::poll_fn;
use std::task::Poll;

async fn after_those_ready() {
    let mut has_waited = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut has_waited, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

fn main() {
    let yields = std::env::args().nth(1).as_deref() == Some("yield_now");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        tokio::task::spawn_local(async move {
            for _ in 0..1000 {
                if yields { tokio::task::yield_now().await } else { after_those_ready().await }
            }
        })
        .await
        .unwrap()
    });
}
R
cargo build -q --release
asked() { strace -f -qq -e trace=epoll_wait,epoll_pwait,epoll_pwait2 -o calls target/release/yields "$1" && wc -l <calls; }
yields=$(asked yield_now) wakes=$(asked waker)
echo "tokio 1.54.1: a task that gives way 1,000 times asks the kernel $yields times by yield_now(), $wakes times by its own waker"
if [ "$yields" -lt 900 ] || [ "$wakes" -gt 100 ]; then
    echo "  expected: about 1,000, and hardly any"
    exit 1
fi
