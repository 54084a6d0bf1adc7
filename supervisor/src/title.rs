//! What `ps`, `top` and `systemd-cgls` show of a process of the server.

use std::ffi::{CStr, CString};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// First word of the supervisor's command line.
const SUPERVISOR: &str = "sluice: supervisor";
/// Names for `top`, which the kernel cuts behind 15 bytes.
const SUPERVISOR_SHORT: &CStr = c"sluice:super";

/// First word of a worker's command line.
pub fn of_worker(shard: u8) -> String {
    format!("sluice: worker {shard}")
}

/// Names this process for `top`, as the worker of a shard.
pub fn name_worker(shard: u8) {
    if let Ok(name) = CString::new(format!("sluice:work {shard}")) {
        name_this(&name);
    }
}

/// Makes this process the supervisor by its name: its command line is given to a process at its start only, so that
/// the program starts itself anew in the same process, once. Where that fails it goes by its old name.
pub fn become_supervisor() {
    let mut words = std::env::args_os();
    if words.next().is_none_or(|name| name != SUPERVISOR) {
        let failed = Command::new("/proc/self/exe").arg0(SUPERVISOR).args(words).exec();
        tracing::debug!(error = %failed, "the supervisor keeps the name that it was started by");
    }
    name_this(SUPERVISOR_SHORT);
}

fn name_this(name: &CStr) {
    // A name is for people: without it all is as well.
    let _ = nix::sys::prctl::set_name(name);
}
