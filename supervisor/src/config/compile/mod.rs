//! Statements to a snapshot; everything that is wrong is collected on the way.

mod accounting;
mod acme;
mod address_list;
mod aliases;
mod blocks;
mod finish;
mod global;
mod listener_lines;
mod listeners;
mod names;
mod pattern_list;
mod programs;
mod receivers;
mod references;
mod rewrite_lists;
mod rollup;
mod shadowed;
mod users;

pub use users::users_by_form;

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipc::layers::{LayersBuilder, Scope};
use ipc::rules::{Setting, Value};
use ipc::shard_map::Spread;
use ipc::snapshot::{Snapshot, SourceHost, VirtualMta, Written};

use super::acme::Acme;
use super::diagnostic::{Diagnostic, LeftOut, SECRETS};
use super::directives::{self, Directive, Status};
use super::files::{SourceFiles, Span};
use super::lint;
use super::macros::Macros;
use super::nearest::nearest;
use super::pattern::pattern_key;
use super::pem::{Form, PemFile};
use super::problem::Problem;
use super::source::{NotRead, Source};
use super::syntax::{Reader, Statement};
use super::types::{Parsed, Type};
use super::unknown;
use super::value;
use super::writable::{self, Folder};
use listener_lines::{Lines, Listeners};
use names::Names;

/// A configuration ready to be put in force.
#[derive(Debug)]
pub struct Compiled {
    /// What workers need.
    pub snapshot: Snapshot,
    /// `spread`, the pattern that counts first.
    pub spread: Vec<Spread>,
    /// `workers`; `None` for auto.
    pub workers: Option<u32>,
    /// `worker-cpus`
    pub worker_cpus: Vec<usize>,
    /// Parent of all default folders.
    pub data_dir: PathBuf,
    /// `http-mgmt-port`; 0 for none.
    pub http_port: u16,
    /// `run-as-user`
    pub run_as_user: String,
    /// `run-as-root`
    pub run_as_root: bool,
    /// `NETWORK:PORT` of listeners that stand for no address of this machine.
    pub listens_nowhere: Vec<String>,
    /// `<acme>`
    pub acme: Option<Arc<Acme>>,
    /// What the files in [`Snapshot::pem_files`] have to hold.
    pub pem_files: Vec<PemFile>,
}

/// A configuration and all that is wrong with it.
#[derive(Debug)]
pub struct Checked {
    /// Of no use when there are errors.
    pub compiled: Compiled,
    /// The first errors and the first warnings, by file and line.
    pub diagnostics: Vec<Diagnostic>,
    /// How many more there are.
    pub left_out: LeftOut,
    /// What each `include` stands for.
    pub included: Vec<(PathBuf, Vec<PathBuf>)>,
    /// Folders that it has the server write to, as far as the file says where they are.
    pub writes: Vec<Folder>,
    /// The files that they speak of.
    pub files: SourceFiles,
}

impl Checked {
    /// Adds what the server could not write to here.
    pub fn look_at_folders(&mut self) {
        self.diagnostics.extend(writable::unwritable(
            &self.compiled.run_as_user,
            self.compiled.run_as_root,
            &self.writes,
        ));
        self.diagnostics.sort_by_key(|d| d.at);
    }

    /// All errors as text; `None` when there are none.
    pub fn errors(&self) -> Option<String> {
        let of_each = self.diagnostics.iter().filter(|d| d.is_error).map(|d| d.render(&self.files));
        let more = self.left_out.errors;
        let all: Vec<String> = of_each.chain((more > 0).then(|| format!("and {more} more errors"))).collect();
        (!all.is_empty()).then(|| all.join("\n\n"))
    }

    /// The first error in a line, and how many there are besides; `None` when there are none. Nothing of the file is quoted.
    pub fn first_error(&self) -> Option<String> {
        let mut errors = self.diagnostics.iter().filter(|d| d.is_error);
        let first = errors.next()?;
        let more = errors.count() + self.left_out.errors;
        let more = if more > 0 { format!(" (and {more} more errors)") } else { String::new() };
        let place = format!("{}:{}", self.files.path(first.at.file).display(), first.at.line);
        Some(format!("{place}: {}{more}", first.message))
    }
}

/// Items of one list.
const ITEMS_MAX: usize = 100_000;
/// Sessions that clients may hold by default, however many descriptors there are: each takes
/// memory for what it sends.
const SESSIONS_DEFAULT_MAX: u64 = 20_000;

/// What the command line says beside the file.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--workers`
    pub workers: Option<u32>,
    /// `--data-dir`
    pub data_dir: Option<PathBuf>,
}

/// Compiles a file, or the built-in configuration, for an operator's command.
///
/// # Errors
/// When the file cannot be read.
pub fn compile(file: Option<&Path>, overrides: &Overrides) -> Result<Checked, NotRead> {
    compile_from(Source::Command, file, overrides)
}

/// The same of files that come from there.
///
/// # Errors
/// When the file cannot be read.
pub fn compile_from(source: Source, file: Option<&Path>, overrides: &Overrides) -> Result<Checked, NotRead> {
    let mut reader = Reader::from(source);
    reader.names_unknown = true;
    let statements = match file {
        Some(f) => reader.file(f)?,
        None => reader.text(Path::new("(built-in)"), super::builtin::TEXT),
    };
    Ok(compile_read(reader, &statements, overrides))
}

/// Compiles text as if it stood in a file of this name.
pub fn compile_text(name: &Path, text: &str) -> Checked {
    let mut reader = Reader::default();
    reader.names_unknown = true;
    let statements = reader.text(name, text);
    compile_read(reader, &statements, &Overrides::default())
}

fn compile_read(reader: Reader, statements: &[Statement], overrides: &Overrides) -> Checked {
    // Of what was not read to its end nothing is said but that.
    let statements = if reader.gave_up.is_some() { &[] } else { statements };
    let mut c = Compiler {
        reader,
        macros: Macros::default(),
        names: Names::of(statements),
        snapshot: Snapshot::default(),
        layers: LayersBuilder::default(),
        domains: Vec::new(),
        pending: BTreeMap::new(),
        without_effect: BTreeMap::new(),
        profiles: None,
        pool_domains: HashMap::new(),
        members: Vec::new(),
        out: Global::default(),
        listeners: Listeners::default(),
        of_listeners: Lines::default(),
        issuers_at: None,
        acme: None,
        acme_at: None,
        pem_files: HashSet::new(),
        pem_places: HashMap::new(),
        programs: HashSet::new(),
        blocks: HashMap::new(),
        reserved_in: Vec::new(),
        users: HashMap::new(),
        auth: users::SaidOfAuth::default(),
        lines: Vec::new(),
        local_addresses: None,
        lasting_addresses: None,
        profile_lists: HashMap::new(),
        in_place_of_profiles: Vec::new(),
    };
    let descriptors = lint::descriptors();
    c.snapshot.global.total_max_smtp_out = (descriptors / 2).min(ipc::limits::LEDGER_SLOTS as u64);
    c.snapshot.global.total_max_smtp_in = (descriptors / 4).min(SESSIONS_DEFAULT_MAX);
    c.snapshot.vmtas.push(VirtualMta { name: "{default}".into(), ..Default::default() });
    c.snapshot.vmta_by_name.insert("{default}".into(), 0);
    c.defined_again();
    c.define_macros(statements);
    c.statements(statements);
    c.finish(statements, overrides)
}

/// Settings of the server that the snapshot does not hold.
#[derive(Default)]
struct Global {
    workers: Option<u32>,
    worker_cpus: Vec<usize>,
    data_dir: Option<PathBuf>,
    http_port: Option<u16>,
    run_as_user: String,
    run_as_root: bool,
    source_hosts: Vec<SourceHost>,
    /// Of spools that say nothing themselves, bytes.
    min_free_space: u64,
    host_names: Vec<String>,
    /// `smtp-ip`
    smtp_ip: Option<std::net::IpAddr>,
    /// `smtp-port`
    smtp_port: Option<u16>,
    /// Where those two stand.
    old_listener: Vec<(&'static str, Span)>,
    /// Listeners that stand for no address of this machine.
    no_address: Vec<String>,
    /// `dummy-smtp-ip`; `None` for 127.0.0.1.
    dummy_ip: Option<std::net::IpAddr>,
    /// `dummy-smtp-port`; 0 for none.
    dummy_port: u16,
    /// Folders that are written to, relative to that of `data-dir` or not.
    writes: Vec<Folder>,
    /// `alias` lines.
    aliases: Vec<super::aliases::Line>,
}

struct Compiler<'s> {
    reader: Reader,
    macros: Macros,
    names: Names,
    snapshot: Snapshot,
    layers: LayersBuilder,
    /// `<domain>` blocks in the order of the file.
    domains: Vec<(Scope, &'s Statement)>,
    /// Directives that are not in force yet: where first, and how often.
    pending: BTreeMap<(&'static str, Status), (&'static Directive, Span, usize)>,
    /// Directives that have no effect here, and why: where first, and how often.
    without_effect: BTreeMap<(String, &'static str), (Span, usize)>,
    /// Receiver profiles in force; `None` for all.
    profiles: Option<Vec<String>>,
    /// Pools that speak for domains: they have `<domain>` blocks or use a profile.
    pool_domains: HashMap<u32, Span>,
    /// Members of pools: pool, name, weight, place.
    members: Vec<(u32, String, u32, Span)>,
    out: Global,
    listeners: Listeners,
    /// What listeners do that do not say otherwise.
    of_listeners: Lines,
    /// The first `tls-ca-file` of a listener, or of all.
    issuers_at: Option<Span>,
    /// `<acme>`, and where it stands.
    acme: Option<Arc<Acme>>,
    acme_at: Option<Span>,
    /// Files in PEM that were read.
    pem_files: HashSet<PemFile>,
    /// Their places in the snapshot.
    pem_places: HashMap<String, usize>,
    /// Programs that were looked for.
    programs: HashSet<String>,
    /// Blocks at top level, by kind.
    blocks: HashMap<&'static str, usize>,
    /// What `<source-group>`s reserve, and where.
    reserved_in: Vec<(u64, Span)>,
    /// `<smtp-user>`s by name, as names are compared.
    users: HashMap<String, Span>,
    /// What sources say of AUTH.
    auth: users::SaidOfAuth,
    /// Lines of the block being checked, as written.
    lines: Vec<Setting>,
    /// `smtp-pattern-list`s of receivers' profiles, by domain.
    profile_lists: HashMap<String, String>,
    /// Lines that name another list for such a domain: place, domain and the profile's list.
    in_place_of_profiles: Vec<((u16, u32), String, String)>,
    /// Addresses of this machine, once they were asked for.
    local_addresses: Option<Vec<std::net::IpAddr>>,
    /// Those of them that a network stands for.
    lasting_addresses: Option<Vec<std::net::IpAddr>>,
}

/// What tells one secret from another.
fn mark_of(secret: &str) -> String {
    let mut h = DefaultHasher::new();
    secret.hash(&mut h);
    format!("{:016x}", h.finish())
}

/// A value that was accepted, with the row of its directive.
struct Accepted {
    row: usize,
    value: Value,
}

impl Accepted {
    fn directive(&self) -> &'static Directive {
        &directives::all()[self.row]
    }

    /// The setting by the directive's row.
    fn as_written(&self, s: &Statement) -> Setting {
        let value = match &self.value {
            // Of a line that begins with an expression that is part of what it says.
            Value::Text(t) if s.name.starts_with('/') => Value::Text(format!("{} {t}", s.name).trim_end().to_owned()),
            // Whoever asks is told whether a secret is another one, and workers need not have those that are not for them.
            Value::Text(t) if SECRETS.contains(&&*s.name) => Value::Text(mark_of(t)),
            v => v.clone(),
        };
        Setting { key: self.row as u16, file: s.at.file, line: s.at.line, value }
    }

    /// The value, if it means something beside what is shown.
    fn in_force(self) -> Option<Value> {
        self.directive().status.reaches_workers().then_some(self.value)
    }
}

impl<'s> Compiler<'s> {
    fn error(&mut self, at: Span, code: &'static str, message: impl Into<String>, help: impl Into<String>) {
        self.reader.diagnostics.push(Diagnostic::error(at, code, message, help));
    }

    fn warning(&mut self, at: Span, code: &'static str, message: impl Into<String>, help: impl Into<String>) {
        self.reader.diagnostics.push(Diagnostic::warning(at, code, message, help));
    }

    /// Notes a folder that is written to from the start.
    fn writes_to(&mut self, s: &Statement, path: impl Into<PathBuf>) {
        let named = format!("{} {}", s.name.trim_matches(['<', '>']), &*s.value);
        self.out.writes.push(Folder { at: s.value_at(), named, path: path.into(), at_start: true });
    }

    fn problem(&mut self, s: &Statement, p: Problem) {
        let d = self.diagnosis(s, p);
        self.reader.diagnostics.push(d);
    }

    /// What is wrong with a value, and where in it.
    fn diagnosis(&self, s: &Statement, p: Problem) -> Diagnostic {
        // What is wrong with a key is said without the key.
        if SECRETS.contains(&&*s.name) && !s.value.is_empty() && p.code != "bad-key" {
            let help = "the value is not repeated here; one that holds blanks stands in quotes";
            return Diagnostic::error(s.at, p.code, format!("{}: the value is not valid", s.name), help);
        }
        let at = match p.part {
            Some((start, len)) => {
                let chars = |range: std::ops::Range<usize>| s.value.get(range).map_or(0, |t| t.chars().count());
                let part = s.value_at().part(chars(0..start) + usize::from(s.quoted), chars(start..start + len).max(1));
                // A part on a later line of the value cannot be marked on its first.
                let columns = self.reader.files.line(part).chars().count();
                if usize::from(part.column) + usize::from(part.width) <= columns + 1 { part } else { s.value_at() }
            }
            None => s.value_at(),
        };
        Diagnostic::error(at, p.code, format!("{}: {}", s.name, p.message), p.help)
    }

    fn define_macros(&mut self, statements: &[Statement]) {
        let fits = |s: &&Statement| value::items(&s.value).nth(ITEMS_MAX).is_none();
        let macros: Vec<&Statement> = statements.iter().filter(|s| &*s.name == "domain-macro").filter(fits).collect();
        macros.iter().for_each(|s| self.macros.define(&s.value));
        for s in macros {
            let name = s.value.split_whitespace().next().unwrap_or_default();
            if let Some(path) = self.macros.find_loop(name) {
                // Each loop is named once, by its first member in the alphabet.
                if path.split(" -> ").min() == Some(name) {
                    self.error(s.value_at(), "macro-loop", format!("the macros form a loop: {path}"), "");
                }
            }
        }
    }

    fn statements(&mut self, statements: &'s [Statement]) {
        self.repeated("global", statements);
        let mut top = Vec::new();
        for s in statements {
            if s.name.starts_with('<') {
                self.block(s);
                self.write(s.name.trim_matches(['<', '>']), &s.value);
                continue;
            }
            if let Some(v) = self.check("global", s).and_then(Accepted::in_force) {
                self.global(s, v);
            }
            top.append(&mut self.lines);
        }
        self.lines = top;
        self.write("", "");
    }

    /// Keeps the lines that were just checked.
    fn write(&mut self, block: &str, name: &str) {
        let settings = std::mem::take(&mut self.lines);
        if !is_of_paths(block) {
            self.snapshot.written.push(Written { block: block.into(), name: name.into(), settings });
        }
    }

    /// Checks a statement against the table.
    fn check(&mut self, block: &'static str, s: &Statement) -> Option<Accepted> {
        let Some(row) = directives::row_of(&s.name, block) else {
            self.unknown(block, s);
            return None;
        };
        let d = &directives::all()[row];
        match d.status {
            Status::Ignored => {
                self.ignored(d, s);
                return None;
            }
            Status::Accepted => return None,
            Status::Pending | Status::Withheld | Status::Supported => {}
        }
        let parsed = match (s.value.is_empty(), s.quoted) {
            _ if value::items(&s.value).nth(ITEMS_MAX).is_some() => {
                Err(Problem::other(format!("a list of more than {ITEMS_MAX} items")))
            }
            (true, false) => Err(Problem::other("argument missing").help(format!("form: {} {}", d.name, d.unit))),
            // "" clears what is inherited.
            (true, true) => match empty(d.kind) {
                Some(v) => Ok(v.into()),
                // Without a value of its own the list is the one that holds where none is given.
                None if d.kind == Type::Durations => d.kind.parse(d.default),
                None => d.kind.parse(&s.value),
            },
            // What stands in quotes is one argument.
            (false, true) if matches!(d.kind, Type::Word | Type::Path) => Ok(Value::Text(s.value.to_string()).into()),
            _ => d.kind.parse(&s.value),
        };
        // A file that another user's configuration names is not opened with the rights of this process.
        let opens = self.reader.source.opens_named_files();
        let parsed = parsed.and_then(|p| if opens { d.kind.named_file(&s.value).map(|()| p) } else { Ok(p) });
        match parsed {
            Ok(Parsed { value, refs }) => {
                if d.status != Status::Supported && !d.says_what_happens(&value) {
                    self.pend(d, s);
                }
                self.zero(block, s);
                for (kind, name) in refs {
                    self.reference(kind, &name, s, block);
                }
                let accepted = Accepted { row, value };
                if !is_of_paths(block) {
                    self.lines.push(accepted.as_written(s));
                }
                Some(accepted)
            }
            Err(p) => {
                // What a list-file names can be done without; what a file names cannot.
                let is_error = p.code != "missing-file" || d.kind != Type::ListFile;
                let wrong = Diagnostic { is_error, ..self.diagnosis(s, p) };
                self.reader.diagnostics.push(wrong);
                None
            }
        }
    }

    /// Warns of a limit of 0. It means no limit, as with PowerMTA, except for `max-smtp-out` of a queue; some operators write it to send nothing.
    fn zero(&mut self, block: &'static str, s: &Statement) {
        let sends_none = matches!(&*s.name, "max-smtp-out" | "backoff-max-smtp-out") && !block.starts_with("virtual");
        let is_limit = s.name.ends_with("-rate")
            || s.name.ends_with("max-smtp-out")
            || s.name.ends_with("max-msg-per-hour")
            || &*s.name == "max-smtp-out-per-source-ip";
        let has_none = is_limit && !sends_none;
        if is_of_paths(block) && has_none && s.value.split_whitespace().next_back() == Some("0") {
            let help = "write unlimited if that is meant; max-smtp-out 0 in a <domain> sends nothing, and `sluice pause` holds mail back";
            self.warning(s.value_at(), "zero", format!("{} 0 is no limit", s.name), help);
        }
    }

    /// Counts a line that has no effect here, and notes the first. One that says no to what is not done anyway is right.
    fn ignored(&mut self, d: &'static Directive, s: &Statement) {
        let says_no = ["no", "false"].iter().any(|no| s.value.eq_ignore_ascii_case(no));
        if says_no && !s.is_block {
            return;
        }
        let (first, count) = self.without_effect.entry((s.name.to_string(), d.reason)).or_insert((s.at, 0));
        *first = (*first).min(s.at);
        *count += 1;
    }

    /// Counts a line that is not in force yet, and notes the first.
    fn pend(&mut self, d: &'static Directive, s: &Statement) {
        let (_, first, count) = self.pending.entry((d.name, d.status)).or_insert((d, s.at, 0));
        *first = (*first).min(s.at);
        *count += 1;
    }

    fn unknown(&mut self, block: &'static str, s: &Statement) {
        unknown::name(&mut self.reader.diagnostics, block, &s.name, s.at);
    }

    /// Settings of the statements inside a block, in their order.
    fn settings(&mut self, block: &'static str, inside: &[Statement]) -> Vec<Setting> {
        let mut all = Vec::with_capacity(inside.len());
        for s in inside {
            let Some(a) = self.check(block, s) else { continue };
            let (file, line) = (s.at.file, s.at.line);
            match &*s.name {
                "use-profile" => all.extend(self.used_profile(s)),
                name => {
                    self.snapshot.has_queue_to |= name == "queue-to";
                    match (name, &a.value) {
                        ("smtp-tls-ca-file", Value::Text(path)) => {
                            self.pem_file(s, path, Form::Roots, "");
                        }
                        ("smtp-client-certificate", Value::Text(_)) => {
                            self.certificate(s);
                        }
                        ("command", Value::Text(command)) => self.program(s, command),
                        ("file-destination", Value::Text(path)) => {
                            let folder = writable::fixed_folder(path);
                            let named = s.name.to_string();
                            let at = s.value_at();
                            self.out.writes.extend(folder.map(|path| Folder { at, named, path, at_start: false }));
                        }
                        _ => {}
                    }
                    self.dkim_values(s);
                    all.push(Setting { key: directives::domain_key(a.row), file, line, value: a.value });
                }
            }
        }
        all
    }

    /// Values of DKIM's directives that do not mean what they say.
    fn dkim_values(&mut self, s: &Statement) {
        let value = s.value.to_ascii_lowercase();
        if matches!(&*s.name, "dkim-algorithm" | "second-dkim-algorithm") && value == "rsa-sha1" {
            let message = "rsa-sha1 is not allowed any more (RFC 8301): mail is signed by rsa-sha256";
            self.warning(s.value_at(), "obsolete", message, "write rsa-sha256");
        }
    }

    /// What puts a profile in its place; nothing when it is not defined, which was said.
    fn used_profile(&self, s: &Statement) -> Option<Setting> {
        let wanted = s.value.to_lowercase();
        let n = self.names.profiles.get(&wanted)?;
        let (file, line) = (s.at.file, s.at.line);
        Some(Setting { key: ipc::layers::USE_PROFILE, file, line, value: Value::Number(*n as u64) })
    }
}

/// Whether the lines of a block are those of paths, virtual MTAs or pools.
fn is_of_paths(block: &str) -> bool {
    matches!(block, "domain" | "profile" | "virtual-mta" | "virtual-mta-pool")
}

/// What an empty value in quotes means for a type; `None` where it means nothing.
fn empty(kind: Type) -> Option<Value> {
    match kind {
        Type::List | Type::FieldNames | Type::Emails | Type::Refs(_) | Type::Cpus => Some(Value::TextList(Vec::new())),
        Type::Flag
        | Type::Number(_)
        | Type::Connections
        | Type::Size(_)
        | Type::Duration(_)
        | Type::Durations
        | Type::Grace
        | Type::Rate
        | Type::DataRate
        | Type::Enum(_) => None,
        _ => Some(Value::Text(String::new())),
    }
}
