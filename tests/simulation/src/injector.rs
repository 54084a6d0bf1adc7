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
/// Milliseconds between two messages of a client, on average.
const PAUSE_MS: u64 = 1000;
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

struct Client {
    read: BufReader<tokio::io::ReadHalf<End>>,
    write: tokio::io::WriteHalf<End>,
}

impl Client {
    fn new(end: End) -> Client {
        let (read, write) = tokio::io::split(end);
        Client { read: BufReader::new(read), write }
    }

    /// The code of the next reply.
    async fn reply(&mut self) -> Result<u16, Gone> {
        loop {
            let mut line = String::new();
            let n = timeout(PATIENCE, self.read.read_line(&mut line)).await.map_err(|_| Gone::Silence)??;
            if n == 0 {
                return Err(Gone::Connection);
            }
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(line.get(..3).and_then(|c| c.parse().ok()).unwrap_or(0));
            }
        }
    }

    async fn say(&mut self, line: &str) -> Result<u16, Gone> {
        self.write.write_all(line.as_bytes()).await?;
        self.reply().await
    }
}

/// A message as a client makes it up.
struct Message {
    number: u64,
    recipients: Vec<String>,
    content: Vec<u8>,
}

fn message(world: &World, dice: &Dice) -> Message {
    let number = world.next_message();
    let n = match dice.permille(700) {
        true => 1,
        false => dice.between(2, RECIPIENTS_MAX),
    };
    // Some domains have most of the mail.
    let domain = || dice.below(dice.between(1, world.plan.domains as u64));
    let recipients = (0..n).map(|r| format!("u{number}-{r}@d{}.test", domain())).collect();
    let vmta = ["a", "b", "pool"][dice.below(3) as usize];
    let body = match dice.permille(20) {
        true => dice.between(50_000, 400_000),
        false => dice.between(100, 4_000),
    };
    let mut content = format!("x-virtual-mta: {vmta}\r\nSubject: message {number}\r\n\r\n").into_bytes();
    let line = b"..a line of a message that begins with a dot, as some do in every archive of mail\r\n";
    (0..body / line.len() as u64).for_each(|_| content.extend_from_slice(line));
    content.extend_from_slice(format!("end of message {number}\r\n.\r\n").as_bytes());
    Message { number, recipients, content }
}

/// Hands over mail until the world wants no more.
pub async fn inject(world: Rc<World>, dice: Dice, number: u16) {
    let mut port = 1024u16;
    while world.is_injected() {
        sleep(Duration::from_millis(dice.below(2 * PAUSE_MS + 1))).await;
        let Some(host) = dice.pick(&world.hosts) else { return };
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
        world.book.borrow_mut().begin(m.number, &taken);
        match c.say(&String::from_utf8_lossy(&m.content)).await? {
            250 => world.book.borrow_mut().accepted(&taken),
            code => {
                world.book.borrow_mut().refused(&taken, code);
                world.note(|| format!("client: message {} was refused with {code}", m.number));
            }
        }
        sleep(Duration::from_millis(dice.below(PAUSE_MS + 1))).await;
    }
    let _ = c.say("QUIT\r\n").await;
    Ok(())
}
