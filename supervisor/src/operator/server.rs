//! Answers operators.

use std::path::Path;
use std::rc::Rc;

use ipc::control::{Rows, RowsOf};
use ipc::frame::{archive, unarchive};
use ipc::operator::{ANSWER, Answer, REQUEST, Request};
use ipc::stream::FrameStream;
use tokio::net::UnixListener;

use crate::listen;
use crate::run::Supervisor;

/// Serves the control socket.
pub async fn serve(sup: Rc<Supervisor>, listener: UnixListener) {
    listen::serve_each(listener, |io| serve_one(Rc::clone(&sup), FrameStream::new(io))).await;
}

async fn serve_one(sup: Rc<Supervisor>, mut stream: FrameStream) {
    loop {
        let (answer, more) = match stream.next().await {
            Ok(Some((f, _))) if f.header.kind == REQUEST => match unarchive::<Request>(REQUEST, &f.archive) {
                Ok(r) => (answer(&sup, r).await, true),
                Err(e) => (Answer::Wrong(e.to_string()), true),
            },
            Ok(Some((f, _))) => (Answer::Wrong(format!("frame of unknown kind {}", f.header.kind)), true),
            Ok(None) => return,
            // A client's rubbish is its own matter: it is told and left.
            Err(e) => (Answer::Wrong(e.to_string()), false),
        };
        if stream.send(ANSWER, &archive(&answer), &[], &[]).await.is_err() || !more {
            return;
        }
    }
}

async fn answer(sup: &Rc<Supervisor>, request: Request) -> Answer {
    match request {
        Request::Status => Answer::Status(crate::status::as_json(sup).to_string()),
        Request::Shards => Answer::Shards(crate::status::shard_rows(sup)),
        Request::Queues => {
            let mut all = Vec::new();
            for rows in sup.ask_workers(RowsOf::Queues).await {
                if let Rows::Queues(q) = rows {
                    all.extend(q);
                }
            }
            all.sort_by(|a, b| b.recipients.cmp(&a.recipients).then_with(|| a.queue.cmp(&b.queue)));
            Answer::Queues(all)
        }
        Request::Paths => {
            let mut all = Vec::new();
            for rows in sup.ask_workers(RowsOf::Paths).await {
                if let Rows::Paths(p) = rows {
                    all.extend(p);
                }
            }
            all.sort_by(|a, b| a.path.cmp(&b.path));
            Answer::Paths(all)
        }
        Request::ShardRestart { shard, wait } => said(sup.restart_shard(shard, wait).await),
        Request::Scale { workers, wait } => said(sup.scale(workers, wait).await),
        Request::Reload { wait, dry_run } => match sup.reload(wait, dry_run).await {
            Ok(t) => Answer::Done(t),
            Err(t) => Answer::Wrong(t),
        },
        Request::Explain { destination, via, only } => match sup.explain(&destination, &via, &only) {
            Ok(t) => Answer::Status(t),
            Err(t) => Answer::Wrong(t),
        },
        Request::Diff { file, json } => match sup.diff(Path::new(&file), json) {
            Ok(t) => Answer::Done(t),
            Err(t) => Answer::Wrong(t),
        },
        Request::Stop => {
            sup.stop.notify_one();
            Answer::Done("stopping".into())
        }
        Request::RotateAccounting => said(sup.rotate_now().await.map(|()| "Accounting file rotated.".into())),
        Request::InjectSocket => match sup.serving_socket() {
            Some(p) => Answer::Socket(p),
            None => Answer::Failed("no worker serves".into()),
        },
    }
}

fn said(r: Result<String, String>) -> Answer {
    r.map_or_else(Answer::Failed, Answer::Done)
}
