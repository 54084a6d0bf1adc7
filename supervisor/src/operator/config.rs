//! Commands about configurations: `config check`, `explain`, `diff`, `trace`, `profiles`, `directives`.

use std::path::{Path, PathBuf};

use ipc::operator::Request;

use super::client::{Target, act, read};
use super::output::{json, print, table};
use crate::Failure;
use crate::config::diagnostic::Diagnostic;
use crate::config::explain::{self as explained, Explained};
use crate::config::{self, Overrides, diff as changes};

/// `config check`
///
/// # Errors
/// [`Failure::Wrong`] when the file cannot be read or has errors.
pub fn check(file: &Path, data_dir: Option<PathBuf>, hide_pending: bool, all: bool, json: bool) -> Result<(), Failure> {
    let from = if file == Path::new("-") { Path::new("/dev/stdin") } else { file };
    let overrides = Overrides { data_dir, ..Overrides::default() };
    let checked = match config::compile(Some(from), &overrides) {
        Ok(mut c) => {
            c.look_at_folders();
            c
        }
        Err(e) if json => {
            let error = serde_json::json!({ "file": file, "line": 0, "column": 0, "code": "unreadable",
                "message": e.to_string(), "suggestion": "" });
            let v = serde_json::json!({ "errors": [error], "warnings": [] });
            print(format!("{v:#}\n").as_bytes())?;
            return Err(Failure::Wrong(String::new()));
        }
        Err(e) => return Err(Failure::Wrong(format!("cannot read {}: {e}", file.display()))),
    };
    let shown = checked.diagnostics.iter().filter(|d| !hide_pending || d.code != "pending");
    let (errors, warnings): (Vec<&Diagnostic>, Vec<&Diagnostic>) = shown.clone().partition(|d| d.is_error);
    let users = config::users_by_form(&checked.compiled.snapshot.smtp_users);
    if json {
        let list =
            |all: &[&Diagnostic]| -> Vec<serde_json::Value> { all.iter().map(|d| d.as_json(&checked.files)).collect() };
        let v = serde_json::json!({
            "errors": list(&errors), "warnings": list(&warnings),
            "more_errors": checked.left_out.errors, "more_warnings": checked.left_out.warnings,
            "smtp_users": users.iter().map(|(form, mechanisms, n)| serde_json::json!({
                "form": form, "mechanisms": mechanisms, "users": n,
            })).collect::<Vec<_>>(),
        });
        print(format!("{v:#}\n").as_bytes())?;
    } else {
        let shown: Vec<&Diagnostic> = shown.collect();
        let mut text = config::summary::as_text(&shown, &checked.files, all);
        let count = |shown: usize, more: usize, what: &str| {
            let first = if more > 0 { format!(" (the first {shown} are shown)") } else { String::new() };
            format!("{} {what}{}{first}", shown + more, if shown + more == 1 { "" } else { "s" })
        };
        for (form, mechanisms, n) in &users {
            let users = if *n == 1 { "smtp-user" } else { "smtp-users" };
            text.push_str(&format!("{n} {users} by {form}: {}\n", mechanisms.join(", ")));
        }
        let left_out = checked.left_out;
        let errors = count(errors.len(), left_out.errors, "error");
        let warnings = count(warnings.len(), left_out.warnings, "warning");
        text.push_str(&format!("{}: {errors}, {warnings}\n", file.display()));
        print(text.as_bytes())?;
    }
    if errors.is_empty() { Ok(()) } else { Err(Failure::Wrong(String::new())) }
}

/// `config profiles`: the names of all, or the text of one.
///
/// # Errors
/// [`Failure::Wrong`] when there is none of this name.
pub fn profiles(name: Option<&str>) -> Result<(), Failure> {
    use config::profiles::{ALL, text, title};
    match name {
        Some(n) => match text(n) {
            Some(t) => print(t.as_bytes()),
            None => {
                Err(Failure::Wrong(format!("there is no receiver profile {n}; `sluice config profiles` lists them")))
            }
        },
        None => {
            let rows = ALL.iter().map(|(n, t)| vec![(*n).to_owned(), title(t).to_owned()]);
            table(&["profile", "receiver"], rows.collect())
        }
    }
}

/// `config directives`
///
/// # Errors
/// When standard output fails.
pub fn directives(json: bool) -> Result<(), Failure> {
    let all = config::directives::all();
    if json {
        let mut list = Vec::with_capacity(all.len());
        for d in all {
            let mut v = serde_json::to_value(d).map_err(|e| Failure::Failed(e.to_string()))?;
            v["example"] = config::manual::example(d).into();
            v["see_also"] = config::manual::see_also(d).into();
            list.push(v);
        }
        return print(format!("{:#}\n", serde_json::Value::from(list)).as_bytes());
    }
    let rows = all.iter().map(|d| {
        let status = format!("{:?}", d.status).to_lowercase();
        vec![d.name.to_owned(), d.blocks.join(","), status, d.unit.to_owned(), d.default.to_owned()]
    });
    table(&["directive", "blocks", "status", "value", "default"], rows.collect())
}

/// `config explain`: by the running server, or of a file.
///
/// # Errors
/// [`Failure`]
pub fn explain(target: &Target, config: Option<&Path>, request: Request, as_json: bool) -> Result<(), Failure> {
    let all: Vec<Explained> = match (config, &request) {
        (Some(file), Request::Explain { destination, via, only, lookup }) => {
            let snapshot = config::snapshot_of(file)?;
            config::explained(snapshot, destination, via, only, *lookup).map_err(Failure::Wrong)?
        }
        (Some(file), Request::ExplainSource { who, only }) => {
            let snapshot = config::snapshot_of(file)?;
            explained::explain_source(snapshot.get(), who, only).map_err(Failure::Wrong)?
        }
        _ => read(target, &request)?,
    };
    if as_json {
        return json(&all);
    }
    let is_of_one = match &request {
        Request::Explain { only, .. } | Request::ExplainSource { only, .. } => !only.is_empty(),
        _ => false,
    };
    if is_of_one {
        return print(all.iter().map(chain).collect::<String>().as_bytes());
    }
    let cells = all.iter().map(|e| {
        let over: Vec<String> = e.overrides.iter().map(|o| format!("{} ({})", o.value, o.origin.layer)).collect();
        let name = if e.pending { format!("{} (pending)", e.name) } else { e.name.clone() };
        vec![name, e.value.clone(), e.origin.to_string(), over.join(", ")]
    });
    table(&["directive", "value", "from", "overrides"], cells.collect())?;
    let members = all.iter().filter(|e| !e.members.is_empty());
    print(members.map(|e| format!("\n{}{}", e.name, of_members(e))).collect::<String>().as_bytes())
}

/// Says what would become of a message by a configuration file.
///
/// # Errors
/// [`Failure::Wrong`] when the file has errors, or what was asked is no message.
pub fn trace(file: &Path, asked: &config::trace::Asked, as_json: bool) -> Result<(), Failure> {
    let trace = config::trace::trace(config::snapshot_of(file)?, asked).map_err(Failure::Wrong)?;
    if as_json {
        return json(&trace);
    }
    print(config::trace::text(&trace).as_bytes())
}

/// A value with all that it overrode.
fn chain(e: &Explained) -> String {
    let mut text = format!("{} {}\n  {}\n", e.name, e.value, e.origin);
    for o in &e.overrides {
        text.push_str(&format!("  overrides {} from {}\n", o.value, o.origin));
    }
    if e.pending {
        text.push_str("  not in force yet: checked and stored\n");
    }
    if !e.members.is_empty() {
        text.push_str(&format!(" {}", of_members(e)));
    }
    text
}

/// What is in force for members of the pool instead, a line for those that say the same.
fn of_members(e: &Explained) -> String {
    let mut alike: Vec<(&explained::Said, Vec<&str>)> = Vec::new();
    for m in &e.members {
        match alike.iter_mut().find(|(said, _)| **said == m.said) {
            Some((_, names)) => names.push(&m.virtual_mta),
            None => alike.push((&m.said, vec![&m.virtual_mta])),
        }
    }
    let lines = alike.into_iter().map(|(said, names)| {
        let who = if names.len() > 3 { format!("{} members", names.len()) } else { names.join(", ") };
        format!(" is {} for {who}: {}\n", said.value, said.origin)
    });
    lines.collect()
}

/// `config diff`: a file against another, or against what is in force.
///
/// # Errors
/// [`Failure`]
pub fn diff(target: &Target, new: &Path, old: Option<&Path>, as_json: bool) -> Result<(), Failure> {
    let Some(old) = old else {
        // Read here, with the rights of whoever asks.
        return act(target, Request::Diff { files: config::given_files(new)?, json: as_json });
    };
    let (old, new) = (config::snapshot_of(old)?, config::snapshot_of(new)?);
    let all = changes::diff(old.get(), new.get());
    if as_json {
        return json(&all);
    }
    print(format!("{}\n", changes::as_text(&all)).as_bytes())
}
