// LIBRARY HOST PORT USER PASSWORD MECHANISM SENDER RECIPIENT: one mail by STARTTLS and AUTH.
const [library, host, port, user, pass, method, from, to] = process.argv.slice(2);
const transport = require(library).createTransport({
    host, port: Number(port), requireTLS: true, tls: { rejectUnauthorized: false },
    auth: { user, pass }, authMethod: method,
});
transport.sendMail({ from, to, subject: 'from Nodemailer', text: 'line\n.\n..dots\n' }).then(
    () => transport.close(),
    (e) => { console.error(e); process.exit(1); },
);
