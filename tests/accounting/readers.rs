//! Programs that others wrote read the files: Miller, csvkit and Python's csv agree cell by cell with
//! what the same rows say as JSON lines.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tests::engine::Engine;
use tests::eventually;
use tests::receiver::Receiver;

use super::{send, texts};

const WAIT: Duration = Duration::from_secs(20);

type Row = BTreeMap<String, String>;

/// Reads CSV with a header row as Python does.
const PYTHON: &str =
    "import csv,json,sys\nprint(json.dumps(list(csv.DictReader(open(sys.argv[1], newline=''), strict=True))))";

/// Rows that a program prints as a JSON list; `None` where it is not installed.
fn read_by(program: &str, args: &[&str]) -> Option<Vec<Row>> {
    let out = Command::new(program).args(args).env("PATH", "/usr/bin:/bin").output().ok()?;
    assert!(out.status.success(), "{program}: {}", String::from_utf8_lossy(&out.stderr));
    let rows: Vec<BTreeMap<String, Value>> = serde_json::from_slice(&out.stdout).unwrap();
    let text = |v: Value| match v {
        Value::Null => String::new(),
        Value::String(s) => s,
        other => other.to_string(),
    };
    Some(rows.into_iter().map(|r| r.into_iter().map(|(k, v)| (k, text(v))).collect()).collect())
}

#[test]
fn readers_of_csv_agree_on_every_cell() {
    let r = Receiver::start();
    let fields = " records d,b,t,tq\n record-fields d *,header_Subject,userString\n record-fields b *,header_Subject\n user-string \"a, b\"\n";
    let engine = Engine::start(
        1,
        &format!(
            "<domain *>\n {}\n</domain>\n<acct-file csv/x.csv>\n{fields}</acct-file>\n<acct-file json/x.json>\n{fields} format json\n</acct-file>",
            r.hosts()
        ),
    );
    let subjects =
        ["plain", "commas, and \"quotes\"", "\"", "tab\there", "Grüße; 你好", " spaces  around ", "=1+1", ""];
    for s in subjects {
        send(
            &engine,
            &["\"a, b\"@d.test", "bad-1@d.test", "later-1@d.test", "u@xn--bcher-kva.test"],
            &format!("Subject: {s}\r\n"),
        );
    }
    let written = || texts(&engine.path().join("json")).concat().lines().count();
    eventually("all rows are there", WAIT, || written() == subjects.len() * 4);
    let json: Vec<BTreeMap<String, Value>> =
        texts(&engine.path().join("json")).concat().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let folder = engine.path().join("csv");
    eventually("as many rows of CSV", WAIT, || texts(&folder).concat().lines().count() == json.len() + 1);
    let file = std::fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    let file = file.to_str().unwrap();
    let readers: [(&str, &[&str]); 3] = [
        ("/usr/bin/python3", &["-c", PYTHON, file]),
        ("mlr", &["-S", "--icsv", "--ojson", "--jvstack", "cat", file]),
        ("csvjson", &["--no-inference", "--snifflimit", "0", file]),
    ];
    for (program, args) in readers {
        let Some(rows) = read_by(program, args) else { continue };
        assert_eq!(rows.len(), json.len(), "{program}");
        for (row, of_json) in rows.iter().zip(&json) {
            for (name, cell) in row {
                let expected = match of_json.get(name) {
                    None | Some(Value::Null) => String::new(),
                    Some(Value::String(s)) => s.clone(),
                    Some(other) => other.to_string(),
                };
                assert_eq!(*cell, expected, "{program}: {name} of {row:?}");
            }
            assert!(of_json.keys().all(|k| row.contains_key(k)), "{program}: {row:?} has less than {of_json:?}");
        }
    }
}
