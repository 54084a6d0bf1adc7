"""HOST PORT USER PASSWORD MECHANISM SENDER RECIPIENT: one mail by STARTTLS and AUTH, by the standard library."""
import smtplib as smtp
import ssl
import sys

host, port, user, password, mechanism, sender, recipient = sys.argv[1:]
with smtp.SMTP(host, int(port), timeout=20) as s:
    s.ehlo()
    s.starttls(context=ssl._create_unverified_context())
    s.ehlo()
    s.user, s.password = user, password
    s.auth(mechanism, getattr(s, "auth_" + mechanism.lower().replace("-", "_")))
    s.sendmail(sender, [recipient], "Subject: from smtplib\r\n\r\nline\r\n.\r\n..dots\r\n")
