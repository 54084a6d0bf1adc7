"""HOST PORT USER PASSWORD SENDER RECIPIENT: one mail by STARTTLS and AUTH; the library chooses the mechanism."""
import asyncio
import sys

import aiosmtplib

host, port, user, password, sender, recipient = sys.argv[1:]
asyncio.run(
    aiosmtplib.send(
        "Subject: from aiosmtplib\r\n\r\nline\r\n.\r\n..dots\r\n",
        sender=sender, recipients=[recipient], hostname=host, port=int(port),
        username=user, password=password, start_tls=True, validate_certs=False,
    )
)
