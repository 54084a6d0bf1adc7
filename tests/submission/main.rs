//! How mail comes in: who may, in which form, and what is refused.
#![allow(clippy::unwrap_used, missing_docs)]

mod auth;
mod certificates;
mod limits;
mod listeners;
mod memory;
mod protocol;
mod proxied;
mod rewriting;
mod selection;
mod sender_checks;
mod windows;
mod withheld;

use tests::engine::Engine;
use tests::receiver::Receiver;

/// A receiver and a server that delivers to it.
fn start(config: &str) -> (Receiver, Engine) {
    let r = Receiver::start();
    let engine = Engine::start(2, &format!("<domain *>\n {}\n retry-after 1s\n</domain>\n{config}", r.hosts()));
    (r, engine)
}
