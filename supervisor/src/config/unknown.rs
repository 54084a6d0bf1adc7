//! Names that the table of directives does not have, and those that were probably meant.

use super::diagnostic::{Diagnostic, Diagnostics, public_name};
use super::directives;
use super::files::Span;
use super::nearest::nearest;

/// Says that a block, or the top level (`global`), knows no statement of the `name` that stands `at` a place, and what may be meant.
pub fn name(diagnostics: &mut Diagnostics, block: &'static str, name: &str, at: Span) {
    if diagnostics.counts_only(at, true) {
        return;
    }
    let place = if block == "global" { "at top level".to_owned() } else { format!("in <{block}>") };
    let elsewhere: Vec<String> = directives::all()
        .iter()
        .filter(|d| d.name == name)
        .flat_map(|d| d.blocks.iter())
        .map(|b| if *b == "global" { "top level".into() } else { format!("<{b}>") })
        .collect();
    if !elsewhere.is_empty() {
        let message = format!("{} is not valid {place}", name);
        let help = format!("valid in: {}", elsewhere.join(", "));
        return diagnostics.push(Diagnostic::error(at, "wrong-block", message, help));
    }
    let is_block = name.starts_with('<');
    let what = if is_block { "unknown block" } else { "unknown directive" };
    let here = directives::all().iter().filter(|d| d.blocks.contains(&block)).map(|d| d.name);
    let anywhere = directives::all().iter().map(|d| d.name).filter(|n| n.starts_with('<') == is_block);
    let near = nearest(name, here).or_else(|| nearest(name, anywhere));
    let help = match (near, invented(name)) {
        (_, Some(real)) => format!("there is no such directive in PowerMTA either; {real}"),
        (Some(n), None) => format!("did you mean {n}?"),
        (None, None) => "`sluice config directives` lists them all".to_owned(),
    };
    let shown = public_name(name);
    diagnostics.push(Diagnostic::error(at, "unknown-directive", format!("{what} {shown} {place}"), help));
}

/// Names that articles invent, and what does what they promise.
fn invented(name: &str) -> Option<&'static str> {
    Some(match name {
        "rotate-period" | "rotate-interval" => "move-interval says how often files are finished",
        "bounce-log" | "<bounce-log>" => {
            "<acct-file> with records b writes bounces, <bounce-processor> reads those that arrive as mail"
        }
        "smtp-pipeline-depth" => "commands are pipelined wherever a receiver offers it",
        "resolve-to" => "smtp-hosts names the hosts to deliver to",
        "require-rdns" => "check-iprev-inbound looks up clients' names",
        "job-class" => "recipient-priority in <pattern-list> sets priorities",
        "<smtp-source>" => "<source> holds the rules for clients",
        "<fbl>" => "<feedback-loop-processor> takes complaints",
        "dkim-sign-policy" => "dkim-sign, dkim-identity and domain-key say what is signed",
        "header" => "the header line is always written",
        _ => return None,
    })
}
