#!/usr/bin/env bash
# How long does each mail of Nodemailer wait for nothing but an acknowledgement?
#
# Nodemailer 7.0.13 sends twenty mails of 3 KB over one connection to an SMTP server of forty lines that answers at once, both on this machine.
# Seen, with Node.js 20 on Linux:
#   as it comes                  the last piece of the content, CR LF . CR LF in a write of its own, comes about 41 ms behind the others
#   with setNoDelay(true)        less than 5 ms behind them
# Nodemailer leaves Nagle's algorithm on: the small last piece stays in the client until what was sent before is acknowledged. The server's
# kernel delays that acknowledgement, because in a conversation of questions and answers a reply mostly goes along with it; here the reply
# comes only behind the piece that waits. Twenty-odd mails a second are the most that one connection carries, whatever the server does with
# them, and nothing in either program's logs says why. A server can end it: TCP_QUICKACK, set again for each message while content has
# begun and not ended, for the kernel forgets it with the next reply.
# Needs node and npm. Fails when a release does otherwise.
set -euo pipefail
at=$(mktemp -d)
trap 'rm -rf "$at"' EXIT
cd "$at"
npm init -y >/dev/null
npm install --silent --no-audit --no-fund nodemailer@7.0.13
cat >mails.js <<'J'
const net = require('net');
const nodemailer = require('nodemailer');
const MAILS = 20;

// When the pieces of each message's content came, milliseconds.
const arrivals = [];
const server = net.createServer((client) => {
    let inContent = false, text = '';
    client.write('220 here\r\n');
    client.on('data', (piece) => {
        text += piece;
        if (inContent) {
            arrivals[arrivals.length - 1].push(Number(process.hrtime.bigint()) / 1e6);
            if (!text.endsWith('\r\n.\r\n')) return;
            inContent = false;
            text = '';
            return client.write('250 taken\r\n');
        }
        let end;
        while ((end = text.indexOf('\r\n')) >= 0) {
            const command = text.slice(0, end);
            text = text.slice(end + 2);
            inContent = /^DATA/i.test(command);
            if (inContent) arrivals.push([]);
            client.write(inContent ? '354 go on\r\n' : '250 ok\r\n');
        }
    });
    client.on('error', () => {});
});

if (process.argv[2] === 'at once') {
    const connect = net.Socket.prototype.connect;
    net.Socket.prototype.connect = function (...args) {
        this.setNoDelay(true);
        return connect.apply(this, args);
    };
}

server.listen(0, '127.0.0.1', async () => {
    const { port } = server.address();
    const transport = nodemailer.createTransport({ host: '127.0.0.1', port, ignoreTLS: true, pool: true, maxConnections: 1 });
    for (let n = 0; n < MAILS; n++) {
        await transport.sendMail({ from: 'a@a.test', to: 'b@b.test', subject: `mail ${n}`, text: 'x'.repeat(3000) });
    }
    const waits = arrivals.map((pieces) => pieces[pieces.length - 1] - pieces[0]).sort((a, b) => a - b);
    console.log(waits[MAILS / 2].toFixed(1));
    transport.close();
    server.close();
});
J
as_it_comes=$(node mails.js)
at_once=$(node mails.js 'at once')
echo "from the first piece of content to the last, median of 20 mails: as it comes $as_it_comes ms, with setNoDelay $at_once ms"
awk -v a="$as_it_comes" -v b="$at_once" 'BEGIN { exit !(a > 30 && a < 100 && b < 5) }' || {
    echo "seen otherwise: expected more than 30 ms as it comes, and less than 5 with setNoDelay" >&2
    exit 1
}
