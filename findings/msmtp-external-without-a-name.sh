#!/usr/bin/env bash
# What does msmtp do when a server asks it something behind AUTH EXTERNAL?
#
# msmtp 1.8.23 sends a mail by TLS with `auth external` and an empty `user`: the server knows who it is by the certificate, and no name is to be
# acted for. The server is one of thirty lines, and asks its empty question, 334, as RFC 4954 §4 says for a client that did not answer it beforehand.
# Seen, on Debian 12 with Python 3:
#   it sends "AUTH EXTERNAL" with nothing behind it, and behind the server's 334 it says MAIL: the server reads that as the answer
# An empty answer has to be written as "=" together with AUTH, or as an empty line behind 334. msmtp does neither, and takes any reply that
# refuses nothing for the end of the exchange. The mail then fails at MAIL, with whatever the server says of an answer that is no base64. With a name in
# `user` the answer goes along with AUTH, and all is well.
# Needs apt of Debian 12, python3 and openssl. Fails when the release does otherwise.
set -euo pipefail
at=$(mktemp -d)
trap 'rm -rf "$at"' EXIT
cd "$at"
apt-get download -qq msmtp=1.8.23-1 libgsasl18 libgssglue1 libidn12 libntlm0 libsecret-1-0 >/dev/null
for deb in *.deb; do dpkg -x "$deb" unpacked; done
openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=here 2>/dev/null
cat >server.py <<'P'
import socket, ssl
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
tls.load_cert_chain("cert.pem", "key.pem")
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
c = tls.wrap_socket(server.accept()[0], server_side=True)
c.sendall(b"220 here\r\n")
lines = c.makefile("rb")
while line := lines.readline():
    if line.startswith(b"EHLO"):
        c.sendall(b"250-here\r\n250 AUTH EXTERNAL\r\n")
    elif line.startswith(b"AUTH"):
        print(repr(line.decode()), flush=True)
        c.sendall(b"334 \r\n")
        print(repr(lines.readline().decode()), flush=True)
        c.sendall(b"501 5.5.2 no base64\r\n")
    elif line.startswith(b"QUIT"):
        break
    else:
        c.sendall(b"503 5.5.1 authenticate first\r\n")
P
python3 server.py >server.out 2>/dev/null &
until [ -s server.out ]; do sleep 0.1; done
printf 'Subject: x\n\nx\n' | LD_LIBRARY_PATH=$(echo unpacked/usr/lib/*-linux-gnu) timeout 10 unpacked/usr/bin/msmtp --file=/dev/null \
    --host=127.0.0.1 --port="$(head -1 server.out)" --tls=on --tls-starttls=off --tls-certcheck=off --tls-cert-file=cert.pem --tls-key-file=key.pem \
    --auth=external --user= --from=sender@example.com someone@example.com 2>client.out || true
wait
sed -n '2,3p' server.out
[ "$(sed -n 2p server.out)" = "'AUTH EXTERNAL\\r\\n'" ] && sed -n 3p server.out | grep -q "^'MAIL FROM:<sender@example.com>"
