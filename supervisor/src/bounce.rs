//! `sluice bounce`: what kind of refusal a reply is, without a server.

use std::io::{BufRead, Write};
use std::path::Path;

use serde::Serialize;
use worker::classify::bounce_rules::{self, Rules};
use worker::classify::outcome::{Stage, status_of};

use crate::Failure;
use crate::config;

/// A reply and what it was found to be.
#[derive(Debug, Serialize)]
struct Found<'a> {
    category: &'a str,
    kind: &'a str,
    scope: &'a str,
    rule: &'a str,
    family: &'a str,
    /// The part of the reply, as rules look at it, that the rule matches.
    hit: String,
    reply: &'a str,
}

/// One of the program's rules.
#[derive(Debug, Serialize)]
struct Shown {
    rule: &'static str,
    family: &'static str,
    category: &'static str,
    scope: &'static str,
    kind: &'static str,
    expression: &'static str,
    example: &'static str,
}

/// Reads replies, one a line, and prints a category a line; as JSON an object a line. With a
/// configuration its `<bounce-category-patterns>` go first.
///
/// # Errors
/// What is wrong with the configuration, or with input and output.
pub fn classify(file: Option<&Path>, json: bool) -> Result<(), Failure> {
    let rules = match file {
        None => Rules::of(std::iter::empty()),
        Some(f) => Rules::of_snapshot(config::snapshot_of(f)?.get()),
    };
    let failed = |e: std::io::Error| Failure::Failed(format!("reading replies: {e}"));
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut input = std::io::stdin().lock();
    let mut line = Vec::new();
    while {
        line.clear();
        input.read_until(b'\n', &mut line).map_err(failed)? > 0
    } {
        let text = String::from_utf8_lossy(&line);
        let reply = text.trim();
        let found = rules.classify(reply, status_of(reply), Stage::Recipient);
        let written = if json {
            let shown = Found {
                category: found.category,
                kind: found.kind.map_or("", |k| k.name()),
                scope: found.scope.map_or("", |s| s.name()),
                rule: found.rule,
                family: found.family,
                hit: rules.hit(found.rule, reply),
                reply,
            };
            serde_json::to_writer(&mut out, &shown).map_err(std::io::Error::from).and_then(|()| out.write_all(b"\n"))
        } else {
            writeln!(out, "{}", found.category)
        };
        match written {
            // The reader closed the pipe, as `head` does.
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            other => other.map_err(|e| Failure::Failed(format!("writing: {e}")))?,
        }
    }
    out.flush().map_err(|e| Failure::Failed(format!("writing: {e}")))
}

/// The rules that come with the program, tab-separated or as JSON.
///
/// # Errors
/// When they cannot be written as JSON.
pub fn rules(json: bool) -> Result<String, Failure> {
    let all = bounce_rules::shipped().map(|r| Shown {
        rule: r.id,
        family: r.family,
        category: r.category,
        scope: r.scope.name(),
        kind: r.kind.name(),
        expression: r.expression,
        example: r.example,
    });
    if json {
        let text = serde_json::to_string_pretty(&all.collect::<Vec<_>>());
        return text.map(|t| t + "\n").map_err(|e| Failure::Failed(e.to_string()));
    }
    let line = |r: Shown| [r.rule, r.family, r.category, r.scope, r.kind, r.expression].join("\t") + "\n";
    Ok(all.map(line).collect())
}
