//! Clients that hand over mail by SMTP, and know what they were told.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::time::{sleep, timeout};

use crate::dice::Dice;
use crate::pipe::End;
use crate::world::World;

/// How long a client waits for a reply.
const PATIENCE: Duration = Duration::from_secs(120);
/// Room for replies that come together.
const REPLY_BYTES: usize = 512;
/// Room for the header of a message, and for what ends its content.
const HEADER_BYTES: usize = 128;
/// Recipients of a message at most.
const RECIPIENTS_MAX: u64 = 6;

/// Why a client gives a connection up.
enum Gone {
    /// It ended.
    Connection,
    /// No reply came in time.
    Silence,
}

impl From<std::io::Error> for Gone {
    fn from(_: std::io::Error) -> Gone {
        Gone::Connection
    }
}

/// What the line of a message begins with that says which it is.
pub const SUBJECT: &str = "Subject: message ";

/// A number that is the same for the same content. Nobody tries to deceive it, and it is made of all content twice: so it takes eight
/// bytes in one step, none of which loses what those before left.
pub fn digest(content: &[u8]) -> u64 {
    let step = |h: u64, word: u64| (h ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
    let (words, rest) = content.as_chunks();
    let whole = words.iter().fold(content.len() as u64, |h, word| step(h, u64::from_le_bytes(*word)));
    rest.iter().fold(whole, |h, byte| step(h, u64::from(*byte)))
}

struct Client(BufReader<End>);

impl Client {
    fn new(end: End) -> Client {
        Client(BufReader::with_capacity(REPLY_BYTES, end))
    }

    /// The code of the next reply.
    async fn reply(&mut self) -> Result<u16, Gone> {
        loop {
            let mut line = String::new();
            let n = timeout(PATIENCE, self.0.read_line(&mut line)).await.map_err(|_| Gone::Silence)??;
            if n == 0 {
                return Err(Gone::Connection);
            }
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(line.get(..3).and_then(|c| c.parse().ok()).unwrap_or(0));
            }
        }
    }

    async fn say(&mut self, line: &str) -> Result<u16, Gone> {
        self.send(line.as_bytes()).await
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<u16, Gone> {
        self.0.get_mut().write_all(bytes).await?;
        self.reply().await
    }
}

/// A message as a client makes it up.
struct Message {
    number: u64,
    recipients: Vec<String>,
    /// As it is sent, up to the end of data.
    content: Vec<u8>,
    /// Of what a receiver has to have, from the subject on.
    digest: u64,
}

fn message(world: &World, dice: &Dice) -> Message {
    let number = world.next_message();
    let n = match dice.permille(700) {
        true => 1,
        false => dice.between(2, RECIPIENTS_MAX),
    };
    // Some domains have most of the mail.
    let domain = || dice.below(dice.between(1, world.plan.receivers.len() as u64));
    let recipients = (0..n).map(|r| format!("u{number}-{r}@d{}.test", domain())).collect();
    let vmta = ["a", "b", "pool"][dice.below(3) as usize];
    let body = match dice.permille(20) {
        true => dice.between(50_000, 400_000),
        false => dice.between(100, 4_000),
    };
    let line = b".a line of a message that begins with a dot, as some do in every archive of mail\r\n";
    let lines = (body / line.len() as u64) as usize;
    let room = HEADER_BYTES + lines * (line.len() + 1);
    let (mut received, mut content) = (Vec::with_capacity(room), Vec::with_capacity(room));
    received.extend_from_slice(format!("{SUBJECT}{number}\r\n\r\n").as_bytes());
    content.extend_from_slice(format!("x-virtual-mta: {vmta}\r\n").as_bytes());
    content.extend_from_slice(&received);
    for _ in 0..lines {
        received.extend_from_slice(line);
        content.push(b'.');
        content.extend_from_slice(line);
    }
    content.extend_from_slice(b".\r\n");
    Message { number, recipients, content, digest: digest(&received) }
}

/// Hands over mail until the world wants no more.
pub async fn inject(world: Rc<World>, dice: Dice, number: u16) {
    let mut port = 1024u16;
    while world.is_injected() {
        sleep(Duration::from_millis(dice.below(2 * world.plan.pause_ms + 1))).await;
        let Some(host) = world.any_host(&dice) else { return };
        port = port.checked_add(1).unwrap_or(1024);
        let from = SocketAddr::from(([10, 9, (number / 250) as u8, (number % 250) as u8 + 1], port));
        let Some((end, _)) = host.connect(&world, from) else { continue };
        // What was not answered is noted as such.
        let _ = converse(&world, &dice, Client::new(end)).await;
    }
}

async fn converse(world: &World, dice: &Dice, mut c: Client) -> Result<(), Gone> {
    if c.reply().await? != 220 || c.say("EHLO client.test\r\n").await? != 250 {
        return Ok(());
    }
    for _ in 0..dice.between(1, 10) {
        if !world.is_injected() {
            break;
        }
        let mut m = message(world, dice);
        if c.say("MAIL FROM:<s@sender.test>\r\n").await? != 250 {
            return Ok(());
        }
        let mut taken = Vec::new();
        for r in std::mem::take(&mut m.recipients) {
            if c.say(&format!("RCPT TO:<{r}>\r\n")).await? == 250 {
                taken.push(r);
            }
        }
        if taken.is_empty() || c.say("DATA\r\n").await? != 354 {
            return Ok(());
        }
        world.book.borrow_mut().begin(m.number, &taken, m.digest);
        match c.send(&m.content).await? {
            250 => world.book.borrow_mut().accepted(&taken),
            code => {
                world.book.borrow_mut().refused(&taken, code);
                world.note(|| format!("client: message {} was refused with {code}", m.number));
            }
        }
        sleep(Duration::from_millis(dice.below(world.plan.pause_ms + 1))).await;
    }
    let _ = c.say("QUIT\r\n").await;
    Ok(())
}
