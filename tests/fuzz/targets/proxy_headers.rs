//! What a proxy sends before it lets the client speak.
#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use tokio::runtime::{Builder, Runtime};
use worker::accept::proxied::{Fault, ends};

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
}

fuzz_target!(|input: &[u8]| {
    let peer = IpAddr::from([192, 0, 2, 1]);
    let proxies = [ipc::network::parse("192.0.2.0/24").expect("a network")];
    let mut rest = input;
    let found = RUNTIME.with(|r| r.block_on(ends(&mut rest, peer, &proxies)));
    let read = input.len() - rest.len();
    assert!(read <= 4096, "{read} bytes of a header");
    match found {
        // What follows is left to the client, whatever it is.
        Ok(_) => {
            let mut alone = &input[..read];
            let again = RUNTIME.with(|r| r.block_on(ends(&mut alone, peer, &proxies)));
            assert!(again.is_ok() && alone.is_empty());
            assert!(input.starts_with(b"PROXY ") || input.starts_with(b"\r\n\r\n\0\r\nQUIT\n"));
        }
        Err(e) => assert!(!matches!(e, Fault::NoProxy | Fault::Late)),
    }
});
