#!/usr/bin/env bash
# What a server behind a proxy must know of ppp 2.3.0 (crates.io), which reads headers of the PROXY protocol: what does it make of the
# header that a proxy sends in its own name?
#
# Version 2 has the command LOCAL for connections that a proxy makes for itself, health checks above all. The specification has a
# receiver accept them, take the addresses of the connection, and pass over the protocol block, the family in it included. Seen:
#   LOCAL, family 0x00, nothing behind it         read as LOCAL
#   LOCAL, family 0x11 (TCP over IPv4), 12 bytes  read as LOCAL
#   LOCAL, family 0x11, nothing behind it         Err: not enough bytes for the addresses of that family
#   LOCAL, family 0x41, nothing behind it         Err: an unknown family
# So it judges what it is to pass over. A server that would answer every check looks at the command, the low half of the 13th
# byte, before it has the rest read.
# Needs cargo. Fails when ppp does otherwise.
set -euo pipefail
at=$(mktemp -d)
trap 'rm -rf "$at"' EXIT
cd "$at"
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "local"
version = "0.1.0"
edition = "2024"

[dependencies]
ppp = "=2.3.0"
TOML
cat >src/main.rs <<'RUST'
use ppp::v2::Header;

fn main() {
    for (family, length) in [(0x00, 0u16), (0x11, 12), (0x11, 0), (0x41, 0)] {
        let mut header = b"\r\n\r\n\0\r\nQUIT\n\x20".to_vec();
        header.push(family);
        header.extend_from_slice(&length.to_be_bytes());
        header.resize(header.len() + usize::from(length), 0);
        let seen = match Header::try_from(header.as_slice()) {
            Ok(h) => format!("{:?}", h.command),
            Err(e) => format!("{e:?}"),
        };
        println!("{family:#04x} {length}: {seen}");
    }
}
RUST
cargo run --quiet >seen
cat seen
diff - seen <<'EOF'
0x00 0: Local
0x11 12: Local
0x11 0: InvalidAddresses(0, 12)
0x41 0: AddressFamily(64)
EOF
