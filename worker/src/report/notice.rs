//! Short mails to operators: a path went into backoff, a source address is not used any more.

use std::rc::Rc;

use bytes::Bytes;
use ipc::message::Envelope;

use super::Notice;
use crate::shard::Shard;

/// Queues the notices that the shard wants sent, as long as it lives.
pub async fn send_all(shard: Rc<Shard>) {
    loop {
        let notice = shard.notices.next().await;
        send(&shard, notice);
    }
}

/// Queues a notice for each of its addresses. One that cannot be stored is only logged: it must not hold
/// up what it tells of.
fn send(shard: &Rc<Shard>, Notice { to, subject, text }: Notice) {
    for address in to {
        let Ok(destination) = ipc::message::destination_of(&address) else { continue };
        let (envelope, body) = compose(shard, &address, destination, &subject, &text);
        let shard = Rc::clone(shard);
        crate::tasks::begin("notice", move || async move {
            if let Err(error) = crate::route::submit::submit(&shard, envelope, [Bytes::from(body), Bytes::new()]).await
            {
                tracing::warn!(to = address, %error, "a notice could not be queued");
            }
        });
    }
}

fn compose(shard: &Shard, to: &str, destination: String, subject: &str, text: &str) -> (Envelope, String) {
    let config = shard.config();
    let host = config.global.host_name.clone();
    let id = shard.next_message_id();
    let now = crate::clock::now_ms();
    let date = crate::rfc5322_date(crate::clock::wall_ms(now) / 1000);
    // What receivers say ends up here: one line, printable.
    let line = |t: &str| t.replace(|c: char| c.is_control(), " ");
    let body = format!(
        "From: Sluice <mailer-daemon@{host}>\r\nTo: <{to}>\r\nSubject: {}\r\nDate: {date}\r\nMessage-ID: <{id}@{host}>\r\n\
         Auto-Submitted: auto-generated\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\
         Content-Transfer-Encoding: 8bit\r\n\r\n{text}",
        line(subject)
    );
    let envelope = super::envelope(&config.global, id, now, to, destination, body.as_bytes());
    (super::to_aliases(&config, envelope), body)
}
