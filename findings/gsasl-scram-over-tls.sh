#!/usr/bin/env bash
# Does the command line client of GNU SASL authenticate by SCRAM-SHA-256 over TLS?
#
# gsasl 2.2.0 speaks SMTP with STARTTLS to a server of thirty lines that offers SCRAM-SHA-256 and not SCRAM-SHA-256-PLUS: it binds no channels.
# Seen, on Debian 12 with Python 3:
#   as it comes      behind AUTH SCRAM-SHA-256 the client answers the server's empty question with an empty line and leaves with
#                    "mechanism error: Error authenticating user"; it never said who it is
#   with --no-cb     it sends its first message, n,…
# Once the connection has TLS, the client hands the library what channels are bound by. With that, the library makes no message for the mechanism
# that does not bind, though RFC 5802 §6 has one for just this case: the client would bind, and believes that the server does not ("y").
# The error names neither channel binding nor the option that helps, and looks like a wrong password at a server that logs little.
# Needs apt of Debian 12, python3 and openssl. Fails when the release does otherwise.
set -euo pipefail
at=$(mktemp -d)
trap 'rm -rf "$at"' EXIT
cd "$at"
apt-get download -qq gsasl=2.2.0-1+deb12u2 libgsasl18=2.2.0-1+deb12u2 libgssglue1 libidn12 libntlm0 >/dev/null
for deb in *.deb; do dpkg -x "$deb" unpacked; done
openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=here \
    -addext subjectAltName=IP:127.0.0.1 2>/dev/null
cat >server.py <<'P'
import socket, ssl
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
tls.load_cert_chain("cert.pem", "key.pem")
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
c, _ = server.accept()
c.sendall(b"220 here\r\n")
lines = c.makefile("rb")
while line := lines.readline():
    words = line.split()
    if words[:1] == [b"EHLO"]:
        starttls = b"" if isinstance(c, ssl.SSLSocket) else b"250-STARTTLS\r\n"
        c.sendall(b"250-here\r\n" + starttls + b"250 AUTH SCRAM-SHA-256\r\n")
    elif words[:1] == [b"STARTTLS"]:
        c.sendall(b"220 go on\r\n")
        c = tls.wrap_socket(c, server_side=True)
        lines = c.makefile("rb")
    elif words[:1] == [b"AUTH"]:
        c.sendall(b"334 \r\n")
        print(repr(lines.readline().strip().decode()), flush=True)
        break
P
# What the client says when it is asked.
said() {
    python3 server.py >server.out 2>/dev/null &
    until [ -s server.out ]; do sleep 0.1; done
    LD_LIBRARY_PATH=$(echo unpacked/usr/lib/*-linux-gnu) timeout 10 unpacked/usr/bin/gsasl --smtp --connect "127.0.0.1:$(head -1 server.out)" \
        --starttls --x509-ca-file=cert.pem --mechanism SCRAM-SHA-256 --authentication-id user --password secret "$@" \
        </dev/null >client.out 2>&1 || true
    wait
    sed -n 2p server.out
    rm server.out
}
bound=$(said)
grep -q "Error authenticating user" client.out && named=yes || named=no
unbound=$(said --no-cb)
echo "with channel binding: $bound; without: ${unbound:0:12}…"
[ "$bound" = "''" ] && [ "$named" = yes ] && [[ $(tr -d "'" <<<"$unbound" | base64 -d 2>/dev/null) == n,*n=user,r=* ]]
