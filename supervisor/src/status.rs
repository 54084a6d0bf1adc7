//! The server's state for people and scripts, in PowerMTA's shape.

use std::time::SystemTime;

use ipc::operator::ShardRow;
use serde_json::{Value, json};

use crate::certificates::{self, Shown};
use crate::state::Supervisor;

fn local(t: SystemTime) -> String {
    worker::shown_time(t.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as i64)
}

fn resident_bytes(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    text.split_whitespace().nth(1).and_then(|p| p.parse::<u64>().ok()).unwrap_or(0) * 4096
}

/// `show shards`
pub fn shard_rows(sup: &Supervisor) -> Vec<ShardRow> {
    let slots = sup.slots.borrow();
    let row = |s: &crate::shards::Slot| ShardRow {
        shard: s.number,
        pid: s.pid(),
        cpu: s.cpu as u32,
        state: s.state_name().to_owned(),
        restarts: s.restarts,
        uptime_s: if s.process.is_none() { 0 } else { s.started.elapsed().as_secs() },
        rss_bytes: s.process.as_ref().map_or(0, |p| resident_bytes(p.pid)),
        recipients: s.heartbeat.recipients,
        connections_out: s.heartbeat.connections_out,
        connections_in: s.heartbeat.connections_in,
        handoffs: s.heartbeat.handoffs,
        syncs: s.heartbeat.syncs,
        delivered: s.heartbeat.delivered[0],
        log_bytes: s.heartbeat.log_bytes,
    };
    slots.iter().map(row).collect()
}

/// `status --json` and `GET /status`.
pub fn as_json(sup: &Supervisor) -> Value {
    let slots = sup.slots.borrow();
    let mut totals = sup.gone.get();
    slots.iter().for_each(|s| totals.add(&s.totals()));
    let (received, delivered) = (totals.received, totals.delivered);
    let sum = |f: &dyn Fn(&ipc::control::Heartbeat) -> u64| slots.iter().map(|s| f(&s.heartbeat)).sum::<u64>();
    let kb = |b: u64| (b as f64 / 102.4).round() / 10.0;
    let c = sup.compiled.borrow();
    let g = &c.snapshot.global;
    let state = if sup.stopping.get() { "stopping" } else { "running" };
    json!({ "data": {
        "mta": {
            "product": { "name": "Sluice", "version": env!("CARGO_PKG_VERSION") },
            "fullHostName": g.host_name,
            "hostId": g.host_id,
        },
        "status": {
            "timeNow": local(SystemTime::now()),
            "startupTime": local(sup.started),
            "shuttingDown": sup.stopping.get(),
            "traffic": { "total": {
                "out": { "rcp": delivered[0], "msg": delivered[1], "kb": kb(delivered[2]) },
                "in": { "rcp": received[0], "msg": received[1], "kb": kb(received[2]) },
                "bounced": totals.bounced,
                "deferred": totals.deferred,
                "outOfStep": totals.out_of_step,
            } },
            "panics": totals.panics,
            "dkim": { "keys": sup.dkim_keys.get().0, "unpublished": sup.dkim_keys.get().1 },
            "conn": {
                "smtpIn": {
                    "cur": sum(&|h| u64::from(h.connections_in)), "max": g.total_max_smtp_in,
                    "kb": sup.ledger.borrow().receiving(), "maxKb": g.total_max_smtp_in_size >> 10,
                },
                "smtpOut": { "cur": sum(&|h| u64::from(h.connections_out)), "max": g.total_max_smtp_out },
            },
            "queue": { "smtp": {
                "rcp": sum(&|h| h.recipients),
                "dom": sum(&|h| h.domains),
                "kb": kb(sum(&|h| h.queued_bytes)),
            } },
            "spool": {
                "totalRcp": sum(&|h| h.recipients),
                "maxRcp": g.spool_max_recipients,
                "refusals": slots.iter().filter_map(refusal).collect::<Vec<_>>(),
                "accountingBehind": slots.iter().filter_map(accounting_behind).collect::<Vec<_>>(),
            },
            "certificates": certificates::shown(&c, &sup.acme.borrow()).iter().map(Shown::as_json).collect::<Vec<_>>(),
            "shards": slots.iter().map(shard).collect::<Vec<_>>(),
            "status": state,
        } },
        "status": "success", "message": "",
    })
}

/// A shard, and how long one piece of work held its loop since it was started.
fn shard(s: &crate::shards::Slot) -> Value {
    let h = &s.heartbeat.holds;
    json!({
        "shard": s.number, "pid": s.pid(), "state": s.state_name(),
        "loop": { "holds": h.count, "longestCpuMs": h.cpu_ms, "longestMs": h.ms, "longestBy": h.by },
        "panics": s.heartbeat.panics,
    })
}

fn since(unix_ms: i64) -> String {
    worker::shown_time(unix_ms.max(0))
}

/// Why a shard refuses new mail, and whether it delivers.
fn refusal(s: &crate::shards::Slot) -> Option<Value> {
    let (since_ms, why) = s.heartbeat.refusal.as_ref()?;
    Some(json!({ "shard": s.number, "since": since(*since_ms), "why": why, "deliveryStopped": s.heartbeat.held }))
}

/// Why rows of a shard wait for accounting files.
fn accounting_behind(s: &crate::shards::Slot) -> Option<Value> {
    let (since_ms, why) = s.heartbeat.accounting_behind.as_ref()?;
    Some(json!({ "shard": s.number, "since": since(*since_ms), "why": why }))
}

/// `status` for a terminal.
pub fn as_text(v: &Value) -> String {
    let s = &v["data"]["status"];
    let n = |p: &str| s.pointer(p).map(ToString::to_string).unwrap_or_default();
    let host = v["data"]["mta"]["fullHostName"].as_str().unwrap_or_default();
    let text = |p: &str| s.pointer(p).and_then(Value::as_str).unwrap_or_default().to_owned();
    let refused = |r: &Value| {
        let stopped = if r["deliveryStopped"] == true { "; nothing is delivered either" } else { "" };
        let text = |k: &str| r[k].as_str().unwrap_or_default().to_owned();
        format!("  Refused  new mail of shard {} since {}: {}{stopped}\n", r["shard"], text("since"), text("why"))
    };
    let refusals = s.pointer("/spool/refusals").and_then(Value::as_array);
    let mut refusals: String = refusals.into_iter().flatten().map(refused).collect();
    let behind = |r: &Value| {
        let text = |k: &str| r[k].as_str().unwrap_or_default().to_owned();
        let (since, why) = (text("since"), text("why"));
        format!("  Waiting  rows of shard {} for accounting files since {since}: {why}\n", r["shard"])
    };
    let waiting = s.pointer("/spool/accountingBehind").and_then(Value::as_array);
    refusals.extend(waiting.into_iter().flatten().map(behind));
    let ending = s["certificates"].as_array().into_iter().flatten().filter_map(|c| c["warning"].as_str());
    refusals.extend(ending.map(|w| format!("  TLS      certificate {w}\n")));
    if let Some(panics) = s["panics"].as_u64().filter(|n| *n > 0) {
        refusals +=
            &format!("  Errors   panics of this program: {panics}, each told of in its log (\"ended by a panic\")\n");
    }
    format!(
        "Sluice {} on {host}, {}\n\n  Traffic        rcpts        msgs      kbytes\n  Inbound  {:>11} {:>11} {:>11}\n  Outbound {:>11} {:>11} {:>11}\n\n  Connections  active     maximum\n  Inbound  {:>10} {:>11}\n  Outbound {:>10} {:>11}\n\n  Queued   {:>10} recipients in {} domains, {} kbytes\n  Status   {}, started {}\n{refusals}",
        v["data"]["mta"]["product"]["version"].as_str().unwrap_or_default(),
        text("/timeNow"),
        n("/traffic/total/in/rcp"),
        n("/traffic/total/in/msg"),
        n("/traffic/total/in/kb"),
        n("/traffic/total/out/rcp"),
        n("/traffic/total/out/msg"),
        n("/traffic/total/out/kb"),
        n("/conn/smtpIn/cur"),
        n("/conn/smtpIn/max"),
        n("/conn/smtpOut/cur"),
        n("/conn/smtpOut/max"),
        n("/queue/smtp/rcp"),
        n("/queue/smtp/dom"),
        n("/queue/smtp/kb"),
        text("/status"),
        text("/startupTime"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_are_shown_where_there_are_any() {
        let of = |panics: u64| as_text(&json!({ "data": { "status": { "panics": panics } } }));
        assert!(!of(0).contains("panics"));
        assert!(of(3).contains("panics of this program: 3, "), "{}", of(3));
    }
}
