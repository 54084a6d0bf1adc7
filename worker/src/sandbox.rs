//! What each process may do, held to by the kernel whatever becomes of the process: of a worker, once it has its
//! configuration, the files that it may touch (Landlock, `landlock(7)`) and the system calls that it may make
//! (`seccomp(2)`); of the supervisor the system calls that neither it nor a program that it starts may make.
//!
//! A worker reads what strangers send, so it is where a fault would be used. It keeps its own shard's spool and the
//! folders that its configuration names; other shards' spools, the configuration and the keys in it are out of its
//! reach, and so are programs, other processes and ports to listen at. `docs/security.md` has the whole picture.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use ipc::control::AccountingFile;
use ipc::rules::DomainKey;
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetStatus, Scope,
};
use seccompiler::{
    BackendError, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use crate::config::Config;
use crate::{Start, suppression};

/// The newest version of Landlock whose restrictions are asked for; an older kernel enforces what it knows.
const LANDLOCK: ABI = ABI::V6;
/// What every worker reads beside the folders of its own: name servers, root certificates, time zones, and what the
/// kernel says of this process.
const READ_BY_ALL: &[&str] = &[
    "/etc/resolv.conf",
    "/etc/localtime",
    "/etc/ssl/certs",
    "/etc/pki/tls/certs",
    "/etc/pki/ca-trust/extracted",
    "/usr/lib/ssl",
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
    "/usr/share/zoneinfo",
    "/proc/self",
    "/proc/uptime",
    "/proc/sys/kernel/random/boot_id",
    // How large caches may be, and how many threads are worth it.
    "/proc/stat",
    "/sys/devices/system/cpu",
    "/sys/fs/cgroup",
];
/// Variables that name root certificates (OpenSSL's).
const CERTIFICATE_VARIABLES: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];

/// Why a restriction could not be put in force.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The kernel refuses the rules of files.
    #[error("Landlock: {0}")]
    Files(#[from] landlock::RulesetError),
    /// The list of system calls cannot be made a filter.
    #[error("seccomp: {0}")]
    Filter(#[from] BackendError),
    /// The kernel refuses the filter.
    #[error("seccomp: {0}")]
    Calls(#[from] seccompiler::Error),
}

/// Files that a worker may touch. A parent stands for everything below.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grants {
    /// Read.
    read: BTreeSet<PathBuf>,
    /// Read, write to files that are there.
    append: BTreeSet<PathBuf>,
    /// Read, write, make, remove.
    write: BTreeSet<PathBuf>,
    /// The data folder.
    data: PathBuf,
}

impl Grants {
    /// What a configuration asks for, by a worker whose spool lies in `shard_folder`.
    /// What was written into the accounting folders before is read back.
    pub fn of(
        config: &Config,
        start: &Start,
        shard_folder: &Path,
        accounting: &[AccountingFile],
        accounting_before: &[String],
    ) -> Grants {
        let data = Path::new(&config.global.data_dir);
        let fixed = [shard_folder.to_owned(), start.run_dir.clone(), data.join("mta-sts")];
        let mut g = Grants { data: data.to_owned(), ..Grants::default() };
        g.read.extend(READ_BY_ALL.iter().map(PathBuf::from));
        // A file that others replace is looked for in its folder; that of /etc holds far more.
        let resolver = std::fs::canonicalize("/etc/resolv.conf").ok();
        g.read
            .extend(resolver.iter().filter_map(|p| p.parent()).filter(|p| *p != Path::new("/etc")).map(PathBuf::from));
        g.read.extend(CERTIFICATE_VARIABLES.iter().filter_map(std::env::var_os).map(PathBuf::from));
        g.read.extend(accounting_before.iter().map(PathBuf::from));
        g.append.insert(data.join(suppression::FOLDER));
        g.write.extend(fixed);
        g.write.extend(named_folders(config, accounting));
        g
    }

    /// What another configuration asks for by the same worker.
    pub fn next(&self, config: &Config, accounting: &[AccountingFile]) -> Grants {
        Grants { write: named_folders(config, accounting).collect(), ..Grants::default() }
    }

    /// A folder that `other` may write to and this may not.
    pub fn missing<'a>(&self, other: &'a Grants) -> Option<&'a Path> {
        other.write.iter().find(|p| !self.write.iter().any(|w| p.starts_with(w))).map(PathBuf::as_path)
    }
}

/// Folders outside of the data folder as well, that mail or rows are written to.
fn named_folders(config: &Config, accounting: &[AccountingFile]) -> impl Iterator<Item = PathBuf> {
    let destinations = config.snapshot.get().layers.texts(DomainKey::FileDestination as u16);
    let files = accounting.iter().filter_map(|f| Path::new(&f.path).parent());
    destinations.filter_map(fixed_folder).chain(files.map(PathBuf::from))
}

/// The folder below which all messages of a `file-destination` are written: its part before the first macro.
fn fixed_folder(destination: &str) -> Option<PathBuf> {
    let (fixed, has_macro) = match destination.split_once('$') {
        Some((fixed, _)) => (fixed, true),
        None => (destination, false),
    };
    let path = Path::new(fixed);
    // A folder for files of their own, or a file; one that is not there yet may become either.
    let is_folder = fixed.ends_with('/') || !has_macro && path.is_dir();
    let folder = if is_folder { Some(path) } else { path.parent() };
    let below_root = |f: &&Path| f.parent().is_some_and(|p| !p.as_os_str().is_empty());
    let made = (!has_macro).then_some(path);
    // Everything there is cannot be meant.
    folder.filter(below_root).or(made.filter(below_root)).map(PathBuf::from)
}

/// How much of the sandbox is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InForce {
    /// Files and system calls.
    Whole,
    /// The kernel knows Landlock in part: some uses of files are not restricted.
    FilesInPart,
    /// The kernel has no Landlock: system calls alone are restricted.
    CallsOnly,
}

/// Restricts this process and all threads that it starts from now on. To be called before it has a second thread.
///
/// # Errors
/// [`SandboxError`]; what was put in force before stays so.
pub fn enter(grants: &Grants) -> Result<InForce, SandboxError> {
    let files = restrict_files(grants)?;
    restrict_calls(allowed_calls()?)?;
    Ok(match files {
        RulesetStatus::FullyEnforced => InForce::Whole,
        RulesetStatus::PartiallyEnforced => InForce::FilesInPart,
        RulesetStatus::NotEnforced => InForce::CallsOnly,
    })
}

/// Restricts the supervisor, and with it all processes that it starts, to what mail can have to do with: no look into other
/// processes, no change of the system, no kinds of sockets but those of the internet, of this machine and of its network
/// settings. Files are not restricted: a configuration may name any, and programs that mail is delivered to are of
/// somebody else. None of them gets further rights by a set-user-ID file (`PR_SET_NO_NEW_PRIVS`), nor
/// runs one for another instruction set.
///
/// # Errors
/// [`SandboxError`]; what was put in force before stays so.
pub fn enter_supervisor() -> Result<(), SandboxError> {
    restrict_calls(denied_calls()?)
}

/// Puts a list of system calls in force, whose rules of `clone` hold for `clone3` as well.
fn restrict_calls(list: List) -> Result<(), SandboxError> {
    let arch = std::env::consts::ARCH.try_into()?;
    for list in [without_clone3()?, list] {
        seccompiler::apply_filter_all_threads(&filter_for(list, arch)?)?;
    }
    Ok(())
}

fn restrict_files(grants: &Grants) -> Result<RulesetStatus, SandboxError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let append = read | AccessFs::WriteFile;
    let made = AccessFs::MakeReg | AccessFs::MakeDir | AccessFs::MakeSock | AccessFs::RemoveFile | AccessFs::RemoveDir;
    let write = append | made | AccessFs::Truncate | AccessFs::Refer;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?
        // A connection from an address of this machine is bound to it without a port.
        .add_rule(NetPort::new(0, AccessNet::BindTcp))?;
    for path in &grants.read {
        // What this system does not have is not needed.
        if let Ok(fd) = PathFd::new(path) {
            rules = beneath(rules, path, fd, read)?;
        }
    }
    for (paths, access) in [(&grants.append, append), (&grants.write, write)] {
        for path in paths {
            match openable(path, &grants.data) {
                Ok((path, fd)) => rules = beneath(rules, path, fd, access)?,
                // What is to be written there fails too, and says so then.
                Err(error) => {
                    tracing::warn!(path = %path.display(), error, "a folder that mail goes to is out of reach")
                }
            }
        }
    }
    Ok(rules.restrict_self()?.ruleset)
}

/// The folder, made where it is missing. Where that fails in the data folder, its disk may be full and have room
/// later: then what is to be its parent.
fn openable<'a>(path: &'a Path, data: &Path) -> Result<(&'a Path, PathFd), String> {
    let open = |p: &'a Path| PathFd::new(p).map(|fd| (p, fd)).map_err(|e| e.to_string());
    match std::fs::create_dir_all(path) {
        Ok(()) => open(path),
        Err(e) => {
            let parent = path.ancestors().take_while(|p| p.starts_with(data)).find(|p| p.is_dir());
            parent.map_or(Err(e.to_string()), open)
        }
    }
}

fn beneath(
    rules: RulesetCreated,
    path: &Path,
    fd: PathFd,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, SandboxError> {
    // What is only for folders means nothing for a file.
    let access = if path.is_dir() { access } else { access & AccessFs::from_file(LANDLOCK) };
    Ok(rules.add_rule(PathBeneath::new(fd, access))?)
}

/// Rules by system call; without any it is allowed whatever its arguments are.
type Calls = BTreeMap<i64, Vec<SeccompRule>>;

/// A list of system calls, and what happens to those that are in it and to those that are not.
struct List {
    calls: Calls,
    listed: SeccompAction,
    others: SeccompAction,
}

fn filter_for(list: List, arch: seccompiler::TargetArch) -> Result<seccompiler::BpfProgram, BackendError> {
    SeccompFilter::new(list.calls, list.others, list.listed, arch)?.try_into()
}

/// The flags of `clone3` lie in memory that a filter cannot read: a system that does not have it uses `clone`.
fn without_clone3() -> Result<List, BackendError> {
    let calls = Calls::from([(libc::SYS_clone3, Vec::new())]);
    Ok(List { calls, listed: SeccompAction::Errno(libc::ENOSYS as u32), others: SeccompAction::Allow })
}

/// What tokio, rustls, sled and this program need: files, sockets, threads, time, memory. Nothing starts a program,
/// makes a process, looks into one or changes who this one is; memory that is written to is never executed.
fn allowed_calls() -> Result<List, BackendError> {
    let mut calls: Calls = ALWAYS.iter().chain(OLD).map(|n| (*n, Vec::new())).collect();
    let when = |argument: u8, op: SeccompCmpOp, value: u64| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value)
    };
    let equals = |argument, value: i64| when(argument, SeccompCmpOp::Eq, value as u64);
    let masked = |argument, mask: i64, value: i64| when(argument, SeccompCmpOp::MaskedEq(mask as u64), value as u64);
    let mut sockets = Vec::new();
    for family in [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6] {
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
            // The rest of the bits says how the descriptor behaves.
            sockets.push(SeccompRule::new(vec![equals(0, family.into())?, masked(1, 0xf, kind.into())?])?);
        }
    }
    let not_executable = || -> Result<Vec<SeccompRule>, BackendError> {
        Ok(vec![SeccompRule::new(vec![masked(2, libc::PROT_EXEC.into(), 0)?])?])
    };
    let one_of = |argument, values: &[i64]| -> Result<Vec<SeccompRule>, BackendError> {
        values.iter().map(|v| SeccompRule::new(vec![equals(argument, *v)?])).collect()
    };
    let requests = [libc::FIONBIO, libc::FIONREAD, libc::FIOCLEX, libc::TCGETS].map(|r| r as i64);
    calls.extend([
        (libc::SYS_socket, sockets),
        (libc::SYS_mmap, not_executable()?),
        (libc::SYS_mprotect, not_executable()?),
        (libc::SYS_ioctl, one_of(1, &requests)?),
        (libc::SYS_prctl, one_of(0, &[libc::PR_SET_NAME.into(), libc::PR_SET_VMA.into()])?),
        // The filter before has its word on it.
        (libc::SYS_clone3, Vec::new()),
        // Threads, not processes.
        (
            libc::SYS_clone,
            vec![SeccompRule::new(vec![masked(0, libc::CLONE_THREAD.into(), libc::CLONE_THREAD.into())?])?],
        ),
    ]);
    Ok(List { calls, listed: SeccompAction::Allow, others: SeccompAction::Errno(libc::EPERM as u32) })
}

/// What the supervisor and programs must not; systemd's unit has a longer list beside it.
fn denied_calls() -> Result<List, BackendError> {
    let mut calls: Calls = NEVER.iter().chain(NEVER_OLD).map(|n| (*n, Vec::new())).collect();
    let when = |op: SeccompCmpOp, value: i64| SeccompCondition::new(0, SeccompCmpArgLen::Dword, op, value as u64);
    let (inet, inet6, netlink) = (libc::AF_INET.into(), libc::AF_INET6.into(), libc::AF_NETLINK.into());
    let other_families = vec![
        SeccompRule::new(vec![when(SeccompCmpOp::Gt, inet)?, when(SeccompCmpOp::Lt, inet6)?])?,
        SeccompRule::new(vec![when(SeccompCmpOp::Gt, inet6)?, when(SeccompCmpOp::Ne, netlink)?])?,
    ];
    let namespaces = [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWCGROUP,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
    ];
    let of_its_own = |flag: libc::c_int| {
        let flag = i64::from(flag);
        SeccompRule::new(vec![when(SeccompCmpOp::MaskedEq(flag as u64), flag)?])
    };
    let namespaces = namespaces.into_iter().map(of_its_own).collect::<Result<Vec<_>, _>>()?;
    calls.extend([(libc::SYS_socket, other_families), (libc::SYS_clone, namespaces)]);
    Ok(List { calls, listed: SeccompAction::Errno(libc::EPERM as u32), others: SeccompAction::Allow })
}

/// Denied with any arguments.
const NEVER: &[i64] = &[
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_perf_event_open,
    // The kernel, and what large parts of it are reached by.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_syslog,
    libc::SYS_bpf,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_personality,
    // Files: what is mounted where, quotas, files by number.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    // Namespaces.
    libc::SYS_unshare,
    libc::SYS_setns,
    // The machine's clock and name.
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_vhangup,
];

/// The same of calls that only older machines have.
#[cfg(target_arch = "x86_64")]
const NEVER_OLD: &[i64] = &[libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_modify_ldt, libc::SYS_uselib];
#[cfg(not(target_arch = "x86_64"))]
const NEVER_OLD: &[i64] = &[];

/// Allowed with any arguments.
const ALWAYS: &[i64] = &[
    // Descriptors.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_lseek,
    libc::SYS_pipe2,
    libc::SYS_eventfd2,
    libc::SYS_memfd_create,
    libc::SYS_splice,
    libc::SYS_sendfile,
    libc::SYS_copy_file_range,
    // Files.
    libc::SYS_openat,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_readlinkat,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_flock,
    libc::SYS_utimensat,
    libc::SYS_umask,
    // Sockets; which may be made is said above.
    libc::SYS_socketpair,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_connect,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    // Waiting, time.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_restart_syscall,
    // Memory.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_msync,
    libc::SYS_membarrier,
    // Threads.
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_getcpu,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Signals: to this process alone, as Landlock has it where it can.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    // What this process and this machine are.
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getrusage,
    libc::SYS_getrandom,
    libc::SYS_prlimit64,
    libc::SYS_sysinfo,
    libc::SYS_uname,
];

/// Calls that only older machines have; their C library still uses some.
#[cfg(target_arch = "x86_64")]
const OLD: &[i64] = &[
    libc::SYS_access,
    libc::SYS_arch_prctl,
    libc::SYS_chmod,
    libc::SYS_dup2,
    libc::SYS_epoll_wait,
    libc::SYS_getdents,
    libc::SYS_getrlimit,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_open,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_rmdir,
    libc::SYS_select,
    libc::SYS_stat,
    libc::SYS_time,
    libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[i64] = &[];

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_destinations_end_before_the_first_macro() {
        let folder = |p| fixed_folder(p).map(|f| f.display().to_string());
        assert_eq!(folder("/var/mail/$to"), Some("/var/mail/".into()));
        assert_eq!(folder("/var/mail/$to/new"), Some("/var/mail/".into()));
        assert_eq!(folder("/var/mail/x-$to"), Some("/var/mail".into()));
        assert_eq!(folder("/var/mail/all.mbox"), Some("/var/mail".into()));
        assert_eq!(folder("/mail"), Some("/mail".into()));
        assert_eq!(folder("/usr/share"), Some("/usr/share".into()), "it is there");
        assert_eq!(folder("/$to"), None, "not everything there is");
        assert_eq!(folder(""), None);
    }

    #[test]
    fn a_parent_covers_what_lies_below() {
        let grants = |paths: &[&str]| Grants { write: paths.iter().map(PathBuf::from).collect(), ..Grants::default() };
        let held = grants(&["/data/acct", "/mail"]);
        assert_eq!(held.missing(&grants(&["/data/acct", "/mail/in"])), None);
        assert_eq!(held.missing(&grants(&["/data/acct2"])), Some(Path::new("/data/acct2")));
        assert_eq!(held.missing(&grants(&["/"])), Some(Path::new("/")));
    }

    #[test]
    fn the_filter_can_be_made() {
        let arch = std::env::consts::ARCH.try_into().unwrap();
        for list in [without_clone3().unwrap(), allowed_calls().unwrap(), denied_calls().unwrap()] {
            assert!(!filter_for(list, arch).unwrap().is_empty());
        }
    }

    /// Run by the test below in a process of its own, which nothing else has to live in.
    #[test]
    #[ignore = "puts the process that it runs in into the sandbox"]
    fn inside() {
        use std::io::ErrorKind::PermissionDenied;
        use std::net::{TcpListener, TcpStream};
        use std::os::fd::AsRawFd;

        use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, socket};

        let folder = PathBuf::from(std::env::var_os("SANDBOX_FOLDER").expect("the test below sets it"));
        let (own, shared, other) = (folder.join("own"), folder.join("shared"), folder.join("other"));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let before = std::fs::File::open(other.join("mail")).unwrap();
        let grants = Grants {
            read: BTreeSet::from(["/proc/self".into(), "/not/there".into()]),
            append: BTreeSet::from([shared.clone()]),
            write: BTreeSet::from([own.clone(), own.join("made/anew")]),
            data: folder.clone(),
        };
        let in_force = enter(&grants).unwrap();
        println!("in force: {in_force:?}");

        // What a worker does.
        std::fs::write(own.join("made/anew/a"), "x").unwrap();
        std::fs::rename(own.join("made/anew/a"), own.join("b")).unwrap();
        std::fs::remove_file(own.join("b")).unwrap();
        std::fs::OpenOptions::new().append(true).open(shared.join("list")).unwrap();
        assert!(before.metadata().is_ok(), "what is open stays open");
        TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let socket_of = |family, kind| socket(family, kind, SockFlag::empty(), None);
        let stream = socket_of(AddressFamily::Inet, SockType::Stream).unwrap();
        bind(stream.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 2, 0)).unwrap();
        std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        std::os::unix::net::UnixListener::bind(own.join("socket")).unwrap();
        assert!(!crate::connect::own_addresses::all().is_empty());
        std::thread::spawn(|| std::fs::read("/proc/self/schedstat").map(drop)).join().unwrap().unwrap();

        // What it does not.
        assert!(std::process::Command::new("/bin/true").spawn().is_err(), "no programs");
        assert!(socket_of(AddressFamily::Inet, SockType::Raw).is_err(), "no raw sockets");
        let others = nix::sys::signal::kill(nix::unistd::getppid(), None);
        assert!(others.is_err(), "no signals to others");
        if in_force == InForce::CallsOnly {
            return;
        }
        let refused = |r: std::io::Result<()>| r.is_err_and(|e| e.kind() == PermissionDenied);
        assert!(refused(std::fs::File::open(other.join("mail")).map(drop)), "other mail");
        assert!(refused(std::fs::File::open("/etc/passwd").map(drop)));
        assert!(refused(std::fs::read_dir("/").map(drop)));
        assert!(refused(std::fs::write(shared.join("new"), "x")), "only what is there is added to");
        assert!(refused(std::fs::write("/tmp/sluice-sandbox", "x")));
        if in_force == InForce::Whole {
            assert!(refused(TcpListener::bind("127.0.0.1:2526").map(drop)), "no ports to listen at");
        }
    }

    /// Run by the test below in a process of its own.
    #[test]
    #[ignore = "puts the process that it runs in into the sandbox"]
    fn inside_supervisor() {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

        enter_supervisor().unwrap();
        // What the supervisor and programs do.
        assert!(std::process::Command::new("/bin/true").status().unwrap().success());
        std::thread::spawn(|| ()).join().unwrap();
        std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let socket_of = |family, kind| socket(family, kind, SockFlag::empty(), None);
        socket_of(AddressFamily::Netlink, SockType::Raw).unwrap();
        socket_of(AddressFamily::Unix, SockType::Datagram).unwrap();

        // What they do not, also as root.
        use nix::errno::Errno;
        use nix::sched::{CloneFlags, unshare};
        assert_eq!(unshare(CloneFlags::CLONE_NEWUSER), Err(Errno::EPERM));
        assert_eq!(nix::unistd::chroot("/"), Err(Errno::EPERM));
        assert_eq!(socket_of(AddressFamily::Packet, SockType::Raw).map(drop), Err(Errno::EPERM));
        assert_eq!(socket_of(AddressFamily::Vsock, SockType::Stream).map(drop), Err(Errno::EPERM));
    }

    /// Runs one of the tests above in a process of its own.
    fn alone(test: &str, folder: &Path) {
        let run = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("sandbox::tests::{test}"), "--ignored", "--nocapture"])
            .env("SANDBOX_FOLDER", folder)
            .output()
            .unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
        assert!(run.status.success() && said.contains("1 passed"), "{said}");
    }

    #[test]
    fn the_supervisor_starts_programs_and_changes_no_system() {
        alone("inside_supervisor", Path::new("/"));
    }

    #[test]
    fn a_worker_does_what_it_must_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        for (name, file) in [("own", "mail"), ("shared", "list"), ("other", "mail")] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
            std::fs::write(folder.path().join(name).join(file), "x").unwrap();
        }
        alone("inside", folder.path());
    }
}
