//! A plain SMTP client that reports what it was told.

use std::io::{Error, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use crate::tls;

/// How long a reply is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

trait Io: Read + Write + Send {}
impl<T: Read + Write + Send> Io for T {}

/// A session.
pub struct Client {
    tcp: TcpStream,
    io: Box<dyn Io>,
    input: Vec<u8>,
}

impl Client {
    /// Connects, reads the greeting and says EHLO.
    ///
    /// # Errors
    /// The socket's, or a greeting other than 220.
    pub fn connect(to: SocketAddr) -> std::io::Result<Client> {
        let mut c = Self::dial(to)?;
        c.expect(220)?;
        c.command("EHLO client.test")?;
        Ok(c)
    }

    /// Connects, and no more.
    ///
    /// # Errors
    /// The socket's.
    pub fn dial(to: SocketAddr) -> std::io::Result<Client> {
        Self::over(TcpStream::connect(to)?)
    }

    /// The same from one of the addresses of 127.0.0.0/8.
    ///
    /// # Errors
    /// The socket's.
    pub fn dial_from(from: IpAddr, to: SocketAddr) -> std::io::Result<Client> {
        let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(from, 0).into())?;
        socket.connect(&to.into())?;
        Self::over(socket.into())
    }

    /// The same with room for a few replies only, so that the server's writes wait for a client that reads none.
    ///
    /// # Errors
    /// The socket's.
    pub fn dial_with_little_room(to: SocketAddr) -> std::io::Result<Client> {
        let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None)?;
        socket.set_recv_buffer_size(4096)?;
        socket.connect(&to.into())?;
        Self::over(socket.into())
    }

    fn over(tcp: TcpStream) -> std::io::Result<Client> {
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        Ok(Client { io: Box::new(tcp.try_clone()?), tcp, input: Vec::new() })
    }

    /// Says STARTTLS, trusting the run's certificate, and EHLO again; its reply.
    ///
    /// # Errors
    /// The socket's, or a refusal.
    pub fn start_tls(&mut self) -> std::io::Result<(u16, String)> {
        self.raw(b"STARTTLS\r\n")?;
        self.expect(220)?;
        self.under_tls(tls::client())?;
        self.command("EHLO client.test")
    }

    /// Begins TLS at once, on a connection that nothing was read from; the greeting is still to come.
    ///
    /// # Errors
    /// The socket's.
    pub fn under_tls(&mut self, config: Arc<rustls::ClientConfig>) -> std::io::Result<()> {
        let name = tls::NAME.try_into().map_err(Error::other)?;
        let connection = rustls::ClientConnection::new(config, name).map_err(Error::other)?;
        self.io = Box::new(rustls::StreamOwned::new(connection, self.tcp.try_clone()?));
        Ok(())
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// The socket's.
    pub fn raw(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.io.write_all(bytes)?;
        self.io.flush()
    }

    /// The next reply: code and text.
    ///
    /// # Errors
    /// The socket's, or its end.
    pub fn reply(&mut self) -> std::io::Result<(u16, String)> {
        let mut all = String::new();
        loop {
            while !self.input.contains(&b'\n') {
                let mut block = [0; 4096];
                match self.io.read(&mut block)? {
                    0 => return Err(Error::other("closed")),
                    n => self.input.extend_from_slice(&block[..n]),
                }
            }
            let end = self.input.iter().position(|b| *b == b'\n').unwrap_or(0);
            let line: Vec<u8> = self.input.drain(..=end).collect();
            let text = String::from_utf8_lossy(&line);
            let code = text.get(..3).and_then(|c| c.parse().ok()).unwrap_or(0);
            all.push_str(&text);
            if line.get(3) != Some(&b'-') {
                return Ok((code, all));
            }
        }
    }

    /// The next reply, if it comes within a time.
    pub fn reply_within(&mut self, limit: Duration) -> Option<(u16, String)> {
        self.tcp.set_read_timeout(Some(limit)).ok()?;
        let reply = self.reply().ok();
        self.tcp.set_read_timeout(Some(PATIENCE)).ok()?;
        reply
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
        self.send_content(content)
    }

    /// DATA and the content behind MAIL and RCPT.
    ///
    /// # Errors
    /// The socket's.
    pub fn send_content(&mut self, content: &str) -> std::io::Result<(u16, String)> {
        let data = self.command("DATA")?;
        if data.0 != 354 {
            return Ok(data);
        }
        self.raw(content.as_bytes())?;
        self.command("\r\n.")
    }
}
