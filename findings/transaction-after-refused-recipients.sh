#!/usr/bin/env bash
# What a pipelining client must know: is MAIL still in force after all recipients were refused and DATA was, too?
#
#   MAIL FROM:<a@a.test>, RCPT TO:<b@b.test> -> 550, DATA -> 503, MAIL FROM:<c@c.test> -> ?
#
# RFC 5321 4.1.4 leaves the transaction open. Seen, Node 20, packages of npm and PyPI:
#   smtp-server 3.21.6   503 Error: nested MAIL command          the first sender stays
#   Haraka      3.3.4    250 sender <c@c.test> OK                a new transaction, without a word
#   aiosmtpd    1.4.6    503 Error: nested MAIL command          the first sender stays
# So only RSET makes the same of all of them. Needs node, npm, python3, pip. Fails when one of them answers otherwise.
set -euo pipefail
at=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$at"' EXIT
cd "$at"
cat >package.json <<'JSON'
{ "private": true, "dependencies": { "smtp-server": "3.21.6", "Haraka": "3.3.4" },
  "overrides": { "encoding-japanese": "^2.2.0", "libqp": "^2.1.1" } }
JSON
npm install --omit=optional --no-audit --no-fund --silent >/dev/null
python3 -m pip install --quiet --root-user-action=ignore --target python aiosmtpd==1.4.6

cat >smtp-server.js <<'JS'
const { SMTPServer } = require('smtp-server');
const no = Object.assign(new Error('no such user'), { responseCode: 550 });
new SMTPServer({ authOptional: true, disabledCommands: ['AUTH', 'STARTTLS'], disableReverseLookup: true, onRcptTo: (to, session, done) => done(no) })
    .listen(18251, '127.0.0.1');
JS
node smtp-server.js >log.smtp-server 2>&1 &

mkdir -p haraka/config haraka/plugins
cp node_modules/Haraka/config/connection.ini haraka/config/
echo haraka.test >haraka/config/me
echo refuse >haraka/config/plugins
printf 'listen=127.0.0.1:18252\nnodes=0\n' >haraka/config/smtp.ini
cat >haraka/plugins/refuse.js <<'JS'
exports.hook_mail = (next) => next(OK);
exports.hook_rcpt = (next) => next(DENY, 'no such user');
JS
node node_modules/Haraka/bin/haraka -c "$at/haraka" >log.haraka 2>&1 &

cat >aio.py <<'PY'
import sys, time
sys.path.insert(0, "python")
from aiosmtpd.controller import Controller
class Refuse:
    async def handle_RCPT(self, server, session, envelope, address, options):
        return "550 no such user"
Controller(Refuse(), hostname="127.0.0.1", port=18253).start()
time.sleep(600)
PY
python3 aio.py >log.aiosmtpd 2>&1 &

cat >ask.py <<'PY'
import socket, sys, time
for _ in range(100):
    try:
        s = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 10)
        break
    except OSError:
        time.sleep(0.2)
lines = s.makefile("rb")
def reply():
    while (line := lines.readline())[3:4] == b"-":
        pass
    return line.decode().strip()
reply()
for command in ("EHLO a.test", "MAIL FROM:<a@a.test>", "RCPT TO:<b@b.test>", "DATA", "MAIL FROM:<c@c.test>"):
    s.sendall(command.encode() + b"\r\n")
    last = reply()
print(last)
PY
failed=0
check() { # NAME PORT EXPECTED
    local got
    got=$(python3 ask.py "$2")
    printf '%-12s %s\n' "$1" "$got"
    [[ $got == "$3"* ]] || { echo "$1 has changed: expected $3"; failed=1; }
}
check smtp-server 18251 "503 Error: nested MAIL command"
check Haraka 18252 "250 "
check aiosmtpd 18253 "503 Error: nested MAIL command"
exit $failed
