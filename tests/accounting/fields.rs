//! Which columns a file has and what stands in them.

use std::time::Duration;

use tests::engine::Engine;
use tests::eventually;
use tests::receiver::Receiver;

use super::{cell, send, table, texts};

#[test]
fn columns_are_those_asked_for_and_cells_of_other_types_stay_empty() {
    let r = Receiver::start();
    let engine = Engine::start(
        2,
        &format!(
            "<domain *>\n {}\n</domain>\n<acct-file x/x.csv>\n records delivery, b\n user-string n1\n \
             record-fields d timelogged,orig,rcpt,dlvSourceIp,header_X-Customer\n record-fields b timeLogged,orig,rcpt,bounceCat,userString\n</acct-file>\n\
             <acct-file most/most.csv>\n records d\n record-fields d *,!orcpt,totalSecondsQueued,header_x-id\n iso-times no\n</acct-file>\n",
            r.hosts()
        ),
    );
    send(&engine, &["u@d.test", "bad-1@d.test"], "X-Customer: Anna,\r\n \"AG\"\r\nX-ID: 7\r\n");
    let rows = table(&engine.path().join("x"), 2);
    let names: Vec<&str> = rows[0].iter().map(|(n, _)| n.as_str()).collect();
    assert_eq!(
        names,
        ["type", "timeLogged", "orig", "rcpt", "dlvSourceIp", "header_X-Customer", "bounceCat", "userString"]
    );
    let of = |kind: &str| rows.iter().find(|r| cell(r, "type") == kind).unwrap();
    assert_eq!(cell(of("d"), "header_X-Customer"), "Anna, \"AG\"");
    assert_eq!((cell(of("d"), "bounceCat"), cell(of("d"), "userString")), ("", ""));
    assert_eq!((cell(of("b"), "header_X-Customer"), cell(of("b"), "userString")), ("", "n1"));
    assert!(!cell(of("b"), "bounceCat").is_empty() && cell(of("b"), "dlvSourceIp").is_empty());
    let most = &table(&engine.path().join("most"), 1)[0];
    let names: Vec<&str> = most.iter().map(|(n, _)| n.as_str()).collect();
    assert_eq!(names[..5], ["type", "timeLogged", "timeQueued", "totalSecondsQueued", "orig"]);
    assert_eq!(names.last(), Some(&"header_x-id"));
    assert!(!names.contains(&"orcpt") && cell(most, "timeLogged").parse::<u64>().is_ok_and(|t| t > 1_700_000_000));
    assert_eq!((cell(most, "header_x-id"), cell(most, "totalSecondsQueued").len()), ("7", 1));
}

#[test]
fn receipts_show_headers_pools_and_connections() {
    let r = Receiver::start();
    let mut engine = Engine::start(
        1,
        &format!(
            "<virtual-mta v1>\n</virtual-mta>\n<virtual-mta-pool p1>\n virtual-mta v1\n</virtual-mta-pool>\n<domain *>\n {}\n</domain>\n\
             <acct-file x/x.csv>\n records r\n record-fields r *,vmtaPool,header_X-Id,messageId,shard\n map-header-to-field r header_X-Real rcpt\n</acct-file>",
            r.hosts()
        ),
    );
    send(&engine, &["u@d.test"], "X-Virtual-MTA: p1\r\nX-Id: a\r\n");
    send(&engine, &["u@d.test"], "X-Id: b\r\nX-Real: real@e.test\r\n");
    let check = |rows: &[Vec<(String, String)>]| {
        assert_eq!(
            (cell(&rows[0], "vmta"), cell(&rows[0], "vmtaPool"), cell(&rows[0], "rcpt")),
            ("p1", "p1", "u@d.test")
        );
        assert_eq!(
            (cell(&rows[1], "vmta"), cell(&rows[1], "vmtaPool"), cell(&rows[1], "rcpt")),
            ("{default}", "", "real@e.test")
        );
        assert_eq!(
            (cell(&rows[0], "header_X-Id"), cell(&rows[0], "rcvSourceIp"), cell(&rows[0], "shard")),
            ("a", "127.0.0.1", "0")
        );
        assert_eq!(cell(&rows[0], "messageId").len(), 26);
    };
    let names = "type,timeLogged,orig,rcpt,orcpt,srcType,srcMta,rcvSourceIp,rcvDestinationIp,vmta,jobId,envId,vmtaPool,header_X-Id,messageId,shard\r\n";
    check(&table(&engine.path().join("x"), 2));
    assert!(texts(&engine.path().join("x"))[0].starts_with(names));
    // What a kill makes the log give again is recognised, headers included.
    engine.kill_all();
    engine.start_again();
    send(&engine, &["u@d.test"], "X-Id: c\r\n");
    check(&table(&engine.path().join("x"), 3));
}

#[test]
fn json_lines_have_the_same_names_and_say_how_long_each_stage_took() {
    let r = Receiver::start();
    r.script(|s| s.delay = Duration::from_millis(300));
    let engine = Engine::start(
        1,
        &format!(
            "<domain *>\n {}\n retry-recipients-after 1s\n</domain>\n<acct-file x/x.jsonl>\n records d,t,tq,r\n format json\n \
             record-fields d *,messageId,shard,attempt,msQueued,msConnect,msTransaction,dlvTlsProtocol,header_X-Q\n record-fields t rcpt,attempt\n</acct-file>",
            r.hosts()
        ),
    );
    send(&engine, &["u@d.test"], "X-Q: \"a\\b\"\r\n");
    eventually("it arrives", Duration::from_secs(10), || r.unique() == 1);
    r.script(|s| s.rcpt_reply = Some(("450 4.2.0 later", None)));
    send(&engine, &["v@d.test"], "");
    eventually("it is deferred", Duration::from_secs(10), || {
        r.with(|s| s.commands.iter().any(|c| c.contains("v@d.test")))
    });
    r.script(|s| s.rcpt_reply = None);
    let mut rows: Vec<serde_json::Value> = Vec::new();
    let folder = engine.path().join("x");
    eventually("both are delivered", Duration::from_secs(20), || {
        let text = texts(&folder).concat();
        rows = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        rows.iter().filter(|r| r["type"] == "d").count() == 2
    });
    let of = |kind: &str, rcpt: &str| rows.iter().find(|r| r["type"] == kind && r["rcpt"] == rcpt).unwrap();
    let first = of("d", "u@d.test");
    assert_eq!((&first["attempt"], &first["shard"], &first["header_X-Q"]), (&1.into(), &0.into(), &"\"a\\b\"".into()));
    assert!(first["msTransaction"].as_u64().is_some_and(|ms| (300..5000).contains(&ms)), "{first}");
    assert!(first["msConnect"].is_u64() && first["msQueued"].is_u64() && first["dlvSize"].is_u64(), "{first}");
    assert_eq!(first["messageId"], of("r", "u@d.test").get("messageId").cloned().unwrap_or(first["messageId"].clone()));
    assert_eq!(of("t", "v@d.test"), &serde_json::json!({"type": "t", "rcpt": "v@d.test", "attempt": 1}));
    let second = of("d", "v@d.test");
    assert!(second["attempt"].as_u64() >= Some(2) && second["msQueued"].as_u64() >= Some(900), "{second}");
}

#[test]
fn attempts_are_counted_across_restarts() {
    let r = Receiver::start();
    r.script(|s| s.rcpt_reply = Some(("450 4.2.0 later", None)));
    let mut engine = Engine::start(
        2,
        &format!(
            "<domain *>\n {}\n retry-recipients-after 1s\n</domain>\n<acct-file x/x.csv>\n records t,d\n record-fields t attempt\n record-fields d attempt\n</acct-file>",
            r.hosts()
        ),
    );
    send(&engine, &["u@d.test"], "");
    let attempts = |engine: &Engine| -> Vec<u64> {
        let text = texts(&engine.path().join("x")).concat();
        text.lines().skip(1).map(|l| l.split(',').nth(1).unwrap().parse().unwrap()).collect()
    };
    eventually("it was tried twice", Duration::from_secs(10), || attempts(&engine).len() >= 2);
    engine.kill_all();
    engine.start_again();
    eventually("it was tried again", Duration::from_secs(10), || attempts(&engine).len() >= 4);
    assert!(engine.sluice(&["scale", "1"]).status.success());
    let so_far = attempts(&engine).len();
    eventually("and after its queue moved", Duration::from_secs(15), || attempts(&engine).len() >= so_far + 2);
    let all = attempts(&engine);
    let expected: Vec<u64> = (1..=all.len() as u64).collect();
    // The kill may have come between a reply and its record.
    let near = all.iter().zip(&expected).all(|(a, e)| a.abs_diff(*e) <= 1) && all.windows(2).all(|w| w[0] <= w[1]);
    assert!(near, "{all:?}");
}

#[test]
fn failures_of_a_queue_are_its_own_type_of_record() {
    let engine = Engine::start(
        1,
        "<virtual-mta v1>\n smtp-source-host 127.0.0.1 v1.test\n</virtual-mta>\n<domain quiet.test>\n smtp-hosts [127.0.0.77]:9\n disable-acct-records tq\n</domain>\n\
         <domain *>\n smtp-hosts [127.0.0.77]:9\n retry-after 1h\n</domain>\n<acct-file x/x.csv>\n records t,tq\n</acct-file>\n<acct-file y/y.csv>\n records transient-queue\n</acct-file>",
    );
    send(&engine, &["u@d.test"], "X-Virtual-MTA: v1\r\n");
    send(&engine, &["u@quiet.test"], "");
    let row = table(&engine.path().join("y"), 1).remove(0);
    assert!(
        texts(&engine.path().join("y"))[0].starts_with(
            "type,timeLogged,dsnStatus,dsnDiag,dsnMta,dlvType,dlvSourceIp,dlvDestinationIp,vmta,queue\r\n"
        )
    );
    assert_eq!((cell(&row, "type"), cell(&row, "queue"), cell(&row, "vmta")), ("tq", "d.test/v1", "v1"));
    assert_eq!(
        (cell(&row, "dlvSourceIp"), cell(&row, "dlvDestinationIp"), cell(&row, "dlvType")),
        ("127.0.0.1", "127.0.0.77", "smtp")
    );
    assert!(
        cell(&row, "dsnStatus").starts_with("4.4.1 (") && cell(&row, "dsnDiag").contains("ECONNREFUSED"),
        "{row:?}"
    );
    let both = table(&engine.path().join("x"), 1).remove(0);
    assert_eq!((cell(&both, "type"), cell(&both, "rcpt"), cell(&both, "queue")), ("tq", "", "d.test/v1"));
}

#[test]
fn filters_and_privacy_are_each_files_own() {
    let r = Receiver::start();
    let engine = Engine::start(
        1,
        &format!(
            "<domain *>\n {}\n</domain>\n<acct-file a/a.csv>\n records d,b,r\n queue-filter !keep.test/*,*.test/*\n</acct-file>\n\
             <acct-file b/b.csv>\n records d,b\n queue-filter keep.test\n privacy-policy hmac-sha256 Jefe\n</acct-file>\n\
             <acct-file c/c.csv>\n records d,b\n privacy-policy redact\n</acct-file>",
            r.hosts()
        ),
    );
    r.script(|s| s.rcpt_reply = Some(("550 5.1.1 <bad-Ann@keep.test> unknown", None)));
    send(&engine, &["bad-Ann@keep.test"], "");
    let hashed = table(&engine.path().join("b"), 1).remove(0);
    let digest =
        String::from_utf8(engine.sluice(&["digest", "--hmac-sha256", "--key=Jefe", "bad-ann"]).stdout).unwrap();
    let digest = digest.trim().strip_prefix("Result: ").unwrap().to_owned();
    assert_eq!(digest.len(), 64);
    assert_eq!(cell(&hashed, "rcpt"), format!("{digest}@keep.test"));
    assert_eq!(cell(&hashed, "dsnDiag"), format!("smtp;550 5.1.1 <{digest}@keep.test> unknown"));
    let redacted = table(&engine.path().join("c"), 1).remove(0);
    assert_eq!((cell(&redacted, "rcpt"), cell(&redacted, "orig")), ("...@keep.test", ""));
    r.script(|s| s.rcpt_reply = None);
    send(&engine, &["u@other.test"], "");
    table(&engine.path().join("c"), 2);
    // Receipts are of no queue: they pass the filter.
    let rows = table(&engine.path().join("a"), 3);
    let kinds: Vec<(&str, &str)> = rows.iter().map(|r| (cell(r, "type"), cell(r, "rcpt"))).collect();
    assert!(kinds.contains(&("d", "u@other.test")) && kinds.contains(&("r", "bad-Ann@keep.test")), "{kinds:?}");
    assert!(!kinds.iter().any(|(k, _)| *k == "b"));
}

#[test]
fn a_file_that_ends_in_json_is_json() {
    let r = Receiver::start();
    let engine = Engine::start(
        1,
        &format!(
            "<domain *>\n {}\n</domain>\n<acct-file x/x.JSON>\n records d\n record-fields d rcpt,queue\n</acct-file>\n\
             <acct-file y/y.json>\n records d\n record-fields d rcpt\n format csv\n</acct-file>",
            r.hosts()
        ),
    );
    send(&engine, &["u@d.test"], "");
    let rows = |folder: &str| texts(&engine.path().join(folder)).concat();
    eventually("rows are there", Duration::from_secs(10), || {
        rows("x").ends_with('\n') && rows("y").lines().count() == 2
    });
    let row: serde_json::Value = serde_json::from_str(rows("x").trim()).unwrap();
    assert_eq!(row, serde_json::json!({"type": "d", "rcpt": "u@d.test", "queue": "d.test/{default}"}));
    assert_eq!(rows("y"), "type,rcpt\r\nd,u@d.test\r\n");
}
