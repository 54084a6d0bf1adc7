//! The management port: a status page and `/status`.

use std::rc::Rc;

use axum::Router;
use axum::http::header;
use axum::response::{Html, IntoResponse};
use axum::routing::get;
use tokio::sync::{mpsc, oneshot};

use crate::run::Supervisor;

type Ask = mpsc::Sender<oneshot::Sender<serde_json::Value>>;

/// Serves the management port on 127.0.0.1 until the process ends.
///
/// # Errors
/// A sentence when the port cannot be bound.
pub async fn serve(sup: Rc<Supervisor>, port: u16) -> Result<(), String> {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port))
        .await
        .map_err(|e| format!("cannot listen on 127.0.0.1:{port} (http-mgmt-port): {e}"))?;
    let (tx, mut rx) = mpsc::channel::<oneshot::Sender<serde_json::Value>>(16);
    // The supervisor's state stays on its own thread; handlers ask for a copy.
    tokio::task::spawn_local(async move {
        while let Some(reply) = rx.recv().await {
            // The browser may have gone.
            let _ = reply.send(crate::status::as_json(&sup));
        }
    });
    let page = {
        let tx = tx.clone();
        move || {
            let tx = tx.clone();
            async move { Html(page(&ask(&tx).await)) }
        }
    };
    let status = move || {
        let tx = tx.clone();
        async move { ([(header::CONTENT_TYPE, "application/json")], ask(&tx).await.to_string()).into_response() }
    };
    let app = Router::new().route("/", get(page)).route("/status", get(status));
    tokio::task::spawn_local(async move {
        if let Err(e) = axum::serve(listener, app).await {
            tracing::error!(error = %e, "management port failed");
        }
    });
    Ok(())
}

async fn ask(tx: &Ask) -> serde_json::Value {
    let (reply, answer) = oneshot::channel();
    if tx.send(reply).await.is_err() {
        return serde_json::Value::Null;
    }
    answer.await.unwrap_or(serde_json::Value::Null)
}

fn page(v: &serde_json::Value) -> String {
    let text = crate::status::as_text(v).replace('&', "&amp;").replace('<', "&lt;");
    let shards = v["data"]["status"]["shards"].as_array().cloned().unwrap_or_default();
    let rows: String = shards
        .iter()
        .map(|s| {
            format!(
                "<tr><td>{}</td><td>{}</td><td>{}</td></tr>",
                s["shard"],
                s["pid"],
                s["state"].as_str().unwrap_or_default()
            )
        })
        .collect();
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta http-equiv=\"refresh\" content=\"5\"><title>Sluice</title>\
         <style>body{{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:50rem;color:#222}}pre{{background:#f4f4f4;padding:1rem;overflow:auto}}\
         td,th{{text-align:left;padding:.2rem 1.5rem .2rem 0}}</style></head><body><h1>Sluice</h1><pre>{text}</pre>\
         <table><tr><th>shard</th><th>pid</th><th>state</th></tr>{rows}</table><p><a href=\"/status\">/status</a></p></body></html>"
    )
}
