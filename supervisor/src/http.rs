//! The management port: a status page and `/status`.

use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

use crate::listen::{self, Place, Places};
use crate::state::Supervisor;

/// Connections that may be open at once.
const CONNECTIONS_MAX: usize = 64;
/// How long a client may take for a request.
const REQUEST_WAIT: Duration = Duration::from_secs(10);
/// How long it may stay, whatever it asks; then the answer that is on its way is its last.
const CONNECTION_WAIT: Duration = Duration::from_secs(60);
/// How long it may take to take that.
const LAST_WAIT: Duration = Duration::from_secs(5);
/// Bytes of a request that are held, its header above all.
const REQUEST_BYTES_MAX: usize = 16 << 10;

/// Serves the management port on 127.0.0.1 until the process ends.
///
/// # Errors
/// A sentence when the port cannot be bound.
pub async fn serve(sup: Rc<Supervisor>, port: u16) -> Result<(), String> {
    let listener = TcpListener::bind(("127.0.0.1", port))
        .await
        .map_err(|e| format!("cannot listen on 127.0.0.1:{port} (http-mgmt-port): {e}"))?;
    tokio::task::spawn_local(async move {
        let accept = async || listener.accept().await.map(|(io, _)| io);
        let serve = |io, place| serve_one(Rc::clone(&sup), io, place);
        listen::serve_each(accept, Places::new(CONNECTIONS_MAX), serve).await;
    });
    Ok(())
}

async fn serve_one(sup: Rc<Supervisor>, io: TcpStream, place: Rc<Place>) {
    let answers = service_fn(|request: Request<Incoming>| {
        // The connection has just spoken, so others give way before it.
        place.is_silent();
        let answer = answer(&sup, request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(answer) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_WAIT)
        .max_buf_size(REQUEST_BYTES_MAX)
        .serve_connection(TokioIo::new(io), answers);
    let mut connection = std::pin::pin!(connection);
    // What a client breaks is its own matter.
    tokio::select! {
        _ = connection.as_mut() => {}
        () = tokio::time::sleep(CONNECTION_WAIT) => {
            connection.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(LAST_WAIT, connection).await;
        }
    }
}

fn answer(sup: &Supervisor, method: &Method, path: &str) -> Response<Full<Bytes>> {
    let with = |status: StatusCode, kind: &'static str, text: String| {
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        response
    };
    let plain = "text/plain; charset=utf-8";
    match (method, path) {
        (&Method::GET | &Method::HEAD, "/") => {
            with(StatusCode::OK, "text/html; charset=utf-8", page(&crate::status::as_json(sup)))
        }
        (&Method::GET | &Method::HEAD, "/status") => {
            with(StatusCode::OK, "application/json", crate::status::as_json(sup).to_string())
        }
        (_, "/" | "/status") => {
            let mut response = with(StatusCode::METHOD_NOT_ALLOWED, plain, "GET only\n".into());
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            response
        }
        _ => with(StatusCode::NOT_FOUND, plain, "there are / and /status\n".into()),
    }
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
