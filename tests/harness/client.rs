//! A plain SMTP client that reports what it was told.

use std::io::{BufRead, BufReader, Error, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A session.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    lines: BufReader<TcpStream>,
}

impl Client {
    /// Connects and reads the greeting.
    ///
    /// # Errors
    /// The socket's, or a greeting other than 220.
    pub fn connect(to: SocketAddr) -> std::io::Result<Client> {
        let stream = TcpStream::connect(to)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut c = Client { lines: BufReader::new(stream.try_clone()?), stream };
        c.expect(220)?;
        c.command("EHLO client.test")?;
        Ok(c)
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// The socket's.
    pub fn raw(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The next reply: code and text.
    ///
    /// # Errors
    /// The socket's, or its end.
    pub fn reply(&mut self) -> std::io::Result<(u16, String)> {
        let mut all = String::new();
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line)? == 0 {
                return Err(Error::other("closed"));
            }
            let code = line.get(..3).and_then(|c| c.parse().ok()).unwrap_or(0);
            all.push_str(&line);
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok((code, all));
            }
        }
    }

    fn expect(&mut self, code: u16) -> std::io::Result<()> {
        let (got, text) = self.reply()?;
        if got == code { Ok(()) } else { Err(Error::other(text)) }
    }

    /// A command and its reply.
    ///
    /// # Errors
    /// The socket's.
    pub fn command(&mut self, line: &str) -> std::io::Result<(u16, String)> {
        self.raw(format!("{line}\r\n").as_bytes())?;
        self.reply()
    }

    /// Sends a message; the reply to its content, or the first refusal.
    ///
    /// # Errors
    /// The socket's.
    pub fn send(&mut self, from: &str, to: &[&str], content: &str) -> std::io::Result<(u16, String)> {
        let mail = self.command(&format!("MAIL FROM:<{from}>"))?;
        if mail.0 != 250 {
            return Ok(mail);
        }
        for r in to {
            let rcpt = self.command(&format!("RCPT TO:<{r}>"))?;
            if rcpt.0 != 250 {
                return Ok(rcpt);
            }
        }
        let data = self.command("DATA")?;
        if data.0 != 354 {
            return Ok(data);
        }
        self.raw(content.as_bytes())?;
        self.command("\r\n.")
    }
}
