//! `sluice acct find` and `stats`, by these names and by PowerMTA's.

use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tests::engine::{Engine, binary};
use tests::receiver::Receiver;

use super::{send, table};

/// Runs a tool by PowerMTA's name for it, in `dir`.
fn tool(dir: &Path, name: &str, args: &[&str], input: &str) -> Output {
    let link = dir.join(name);
    if !link.exists() {
        symlink(std::path::absolute(binary()).unwrap(), &link).unwrap();
    }
    let mut command = Command::new(link);
    command.args(args).current_dir(dir).env("TZ", "UTC");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn texts(out: &Output) -> (String, String) {
    (String::from_utf8_lossy(&out.stdout).into_owned(), String::from_utf8_lossy(&out.stderr).into_owned())
}

const HEADER: &str = "type,timeLogged,timeQueued,orig,rcpt,dsnAction,dsnStatus,dsnDiag,dsnMta,bounceCat,dlvSourceIp,dlvEsmtpAvailable,dlvSize,vmta,jobId,queue,header_X-Id,vmtaPool";

/// Two files as PowerMTA and a newer server wrote them, with a line between that is no record.
fn files(dir: &Path) {
    let d = "d,2024-03-01 09:00:07+0000,2024-03-01 09:00:05+0000,n@s.test,a@Example.org,relayed,2.0.0 (success),smtp;250 ok,mx1.example.org (198.51.100.9),,192.0.2.1,\"PIPELINING,8BITMIME\",2048,v1,j7,example.org/v1,\"id,1\",poolA";
    let b = "b,2024-03-01 09:00:08+0000,2024-03-01 09:00:05+0000,n@s.test,x@example.com,failed,5.1.1 (bad destination mailbox address),\"smtp;550 5.1.1 <x@example.com> no, sorry\",mx.example.com (203.0.113.4),bad-mailbox,192.0.2.1,SIZE,,v1,j7,big.rollup/v1,,poolA";
    let t = "t,2024-03-01 09:00:09+0000,2024-03-01 09:00:05+0000,n@s.test,y@example.com,delayed,4.2.2 (mailbox full),smtp;452 4.2.2 over quota,mx.example.com (203.0.113.4),quota-issues,192.0.2.1,SIZE,,v1,j7,big.rollup/v1,,";
    std::fs::write(dir.join("one.csv"), format!("{HEADER}\r\n{d}\r\nd,torn\r\n{b}\r\n{t}\r\n")).unwrap();
    std::fs::write(
        dir.join("two.csv"),
        "type,timeLogged,timeQueued,rcpt,dsnStatus,dsnDiag,vmta,future\nb,1709283610,1709283600,z@example.com,5.1.1 (bad destination mailbox address),\"smtp;550 5.1.1 <z@example.com> no, sorry\",v2,new\n",
    )
    .unwrap();
}

#[test]
fn records_are_found_in_every_form() {
    let own = tempfile::tempdir().unwrap();
    let dir = own.path();
    files(dir);
    let find = |args: &[&str]| tool(dir, "acctfind", args, "");
    let (said, told) = texts(&find(&[
        "--bounced",
        "--dsnStatus",
        "m/^5\\./",
        "--to",
        "EXAMPLE.com",
        "--output",
        "csv[to,vmta,dsnDiag]",
        "one.csv",
    ]));
    assert_eq!(said, "to,vmta,dsnDiag\r\nx@example.com,v1,\"smtp;550 5.1.1 <x@example.com> no, sorry\"\r\n");
    assert!(told.contains("one.csv:3: the record has 2 fields, its header line 18"), "{told}");
    let (said, _) = texts(&find(&["--output", "tsv[from,header:x-id,dstIp]", "one.csv"]));
    assert!(said.is_empty(), "a column that no file has: {said}");
    let (said, _) = texts(&find(&[
        "--header:X-Id",
        "id,",
        "--no-header",
        "--output",
        "tsv[to,header:x-id,timeDelivered]",
        "one.csv",
    ]));
    assert_eq!(said, "a@Example.org\tid,1\t2024-03-01 09:00:07+0000\n");
    // All columns of all files, the unknown one too; numbers become dates where that is asked for.
    let (said, _) =
        texts(&find(&["--iso-times", "--bounced", "--output", "csv", "--sortBy", "rcpt", "two.csv", "one.csv"]));
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].starts_with("type,timeLogged,timeQueued,rcpt,dsnStatus,dsnDiag,vmta,future,orig,"), "{said}");
    assert!(lines[1].contains("x@example.com"), "{said}");
    assert!(lines[2].contains("b,2024-03-01 09:00:10+0000") && lines[2].contains(",v2,new,,"), "{said}");
    let (said, _) = texts(&find(&["--status", "--output", r"custom[{to}\t{dsnStatus}]", "one.csv"]));
    assert_eq!(said, "y@example.com\t4.2.2 (mailbox full)\n");
    let (said, _) = texts(&find(&["--match", "[rcpt,orig]a@", "one.csv"]));
    assert!(
        said.starts_with("type: d\ntimeLogged: 2024-03-01 09:00:07+0000\n") && said.ends_with("vmtaPool: poolA\n\n"),
        "{said}"
    );
    for (form, begins) in [("html[to]", "<!DOCTYPE html>"), ("xml[to]", "<?xml"), ("prettyxml[to]", "<?xml")] {
        assert!(texts(&find(&["--output", form, "one.csv"])).0.starts_with(begins));
    }
    // What is found is an accounting file itself, and so are several behind one another.
    let text =
        std::fs::read_to_string(dir.join("two.csv")).unwrap() + &std::fs::read_to_string(dir.join("one.csv")).unwrap();
    let (all, _) = texts(&tool(dir, "acctfind", &["--output", "csv", "-"], &text));
    let (counts, told) = texts(&tool(dir, "pmtastats", &["message-counts", "-"], &all));
    assert!(counts.contains("bounces              2") && counts.contains("total                3"), "{counts}{told}");
}

#[test]
fn files_that_are_none_are_named_and_the_others_are_read() {
    let own = tempfile::tempdir().unwrap();
    let dir = own.path();
    files(dir);
    std::fs::write(dir.join("x.gz"), [0x1f, 0x8b, 8, 0]).unwrap();
    std::fs::write(dir.join("none.csv"), "d,2024-03-01 09:00:07+0000,a@b\n").unwrap();
    let out =
        tool(dir, "acctfind", &["--output", "tsv[to]", "--no-header", "gone.csv", "x.gz", "none.csv", "one.csv"], "");
    let (said, told) = texts(&out);
    assert_eq!((said.as_str(), out.status.code()), ("a@Example.org\nx@example.com\n", Some(1)), "{told}");
    assert!(told.contains("gone.csv: No such file") && told.contains("x.gz: the file is compressed"), "{told}");
    assert!(told.contains("none.csv: no accounting file"), "{told}");
    let out = tool(dir, "acctfind", &["--tooo", "x", "one.csv"], "");
    assert_eq!(out.status.code(), Some(2));
    assert!(texts(&out).1.contains("no column tooo"));
    assert_eq!(tool(dir, "pmtastats", &["one.csv"], "").status.code(), Some(2), "no statistic");
    assert!(texts(&tool(dir, "pmtastats", &["--help"], "")).0.contains("vmta-time-breakdown"));
    assert!(texts(&tool(dir, "acctfind", &["--help"], "")).0.contains("--sortBy"));
    // Their manual pages are those of the commands.
    assert!(tool(dir, "pmta", &["man", "--dir", "."], "").status.success());
    let page = std::fs::read_to_string(dir.join("acctfind.1")).unwrap();
    let of = page.trim().strip_prefix(".so man1/").unwrap();
    assert!(std::fs::read_to_string(dir.join(of)).unwrap().contains("sortBy"));
    assert_eq!(tool(dir, "pmta", &[], "").status.code(), Some(2), "no server is started by that name");
}

#[test]
fn statistics_count_what_the_files_say() {
    let own = tempfile::tempdir().unwrap();
    let dir = own.path();
    files(dir);
    let stats = |args: &[&str]| {
        let all = [args, &["one.csv", "two.csv"]].concat();
        let (said, told) = texts(&tool(dir, "pmtastats", &all, ""));
        assert!(said.contains("received           2024-03-01 09:00:00"), "{said}{told}");
        said.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
    };
    let has = |all: &[String], line: &str| assert!(all.iter().any(|l| l == line), "{line}: {all:#?}");
    let all = stats(&["--all"]);
    has(&all, "delivered/bounced 2024-03-01 09:00:07 2024-03-01 09:00:10");
    has(&all, "deliveries 1 2.0 kb");
    has(&all, "total 3 2.0 kb");
    has(&all, "example.com 2 2 n/a n/a 66.7%");
    has(&all, "example.org 1 0 0:00:02 0:00:02 33.3%");
    has(&all, "2 2 0");
    has(&all, "1 50.0% bad-mailbox");
    // Replies are alike once the recipient is out of them.
    has(&all, "2 100.0% 5.1.1 (bad destination mailbox address); 550 5.1.1 <<RCPT_USER>@<example.com>> no, sorry");
    has(&all, "one minute 3 3 2024-03-01 09:00:07");
    has(&all, "v1 192.0.2.1 2 1 1 50.0%");
    has(&all, "09:00 - 09:59 2 1 1 50.0%");
    has(&all, "0 - 5 seconds *********************** 1 100.0%");
    let some = stats(&["bounce-categories", "--bounceCat", "bad-mailbox", "--byDomain", "1"]);
    has(&some, "Bounce Category Detail (bad-mailbox)");
    has(&some, "example.com 1 100.0%");
    let split = stats(&["--toDomain", "example", "--byVmta", "message-counts"]);
    has(&split, "vmta: v1");
    has(&split, "vmta: v2");
    has(&split, "total 1 0.0 kb");
    let html = texts(&tool(dir, "pmtastats", &["--output", "html", "--all", "one.csv"], "")).0;
    assert!(html.contains("&lt;&lt;RCPT_USER&gt;@&lt;example.com&gt;&gt;") && html.ends_with("</html>\n"), "{html}");
}

#[test]
fn files_of_the_server_are_read_as_csv_and_json() {
    let r = Receiver::start();
    let engine = Engine::start(
        2,
        &format!(
            "<domain *>\n {}\n</domain>\n<acct-file j/j.json>\n format json\n records d,b\n</acct-file>",
            r.hosts()
        ),
    );
    send(&engine, &["one@d.test", "bad-two@d.test"], "x-job: spring\r\n");
    table(&engine.path().join("acct"), 2);
    let in_folder = |name: &str| {
        let files = std::fs::read_dir(engine.path().join(name)).unwrap().flatten();
        files.map(|f| f.path().display().to_string()).next().unwrap()
    };
    for file in [in_folder("acct"), in_folder("j")] {
        let args = ["acct", "find", "--jobId", "spring", "--bounced", "--output", "csv[type,to,bounceCat]", &file];
        assert_eq!(engine.run(&args), "type,to,bounceCat\r\nb,bad-two@d.test,bad-mailbox\r\n");
        let said = engine.run(&["acct", "stats", "--jobId", "spring", "vmta-summary", &file]);
        assert!(said.contains("Total"), "{said}");
        assert!(
            said.lines().any(|l| l.starts_with("   Total") && l.ends_with("2          1        1     50.0%")),
            "{said}"
        );
    }
}
