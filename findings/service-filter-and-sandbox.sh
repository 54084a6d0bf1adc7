#!/usr/bin/env bash
# What a daemon must know that puts itself into a sandbox (Landlock, seccomp) and runs under systemd: does the set of system
# calls that units are told to begin with let it?
#
# systemd.exec(5) calls @system-service "a reasonable set of system calls used by common system services", and a service that is
# stricter with itself looks like one. Read from the tables in Debian's libsystemd-shared, amd64. Seen:
#   252.39-1~deb12u2   @system-service has neither landlock_* nor seccomp; there is no group that has
#   257.13-1~deb13u1   likewise; there is a group @sandbox with just these, and @system-service does not include it
# In both it has userfaultfd, kcmp and personality. So under SystemCallFilter=@system-service such a service is killed by SIGSYS when it
# calls landlock_create_ruleset, or goes on without its sandbox where SystemCallErrorNumber= is set. The calls have to be named one by one
# (Debian 12 passes over @sandbox with a warning):
#   SystemCallFilter=landlock_create_ruleset landlock_add_rule landlock_restrict_self seccomp
# Needs curl, dpkg-deb and python3; runs nothing of what it unpacks. Fails when a release says otherwise.
set -euo pipefail
at=$(mktemp -d)
trap 'rm -rf "$at"' EXIT
cd "$at"
cat >sets.py <<'PY'
"""Says what the sets of a libsystemd-shared have: their members stand in it behind each other, with zeroes between."""
import sys
lib = open(sys.argv[1], "rb").read()
begins = lib.index(b"@aio\0@basic-io\0@chown\0")
members = lib[begins:lib.index(b"\0\0", begins)].decode().split("\0")
of_sandbox = [m for m in members if m in ("@sandbox", "seccomp") or m.startswith("landlock_")]
whole = b"landlock_add_rule\0landlock_create_ruleset\0landlock_restrict_self\0seccomp\0"
has_group = b"\0@sandbox\0" in lib and whole in lib
others = [m for m in ("kcmp", "personality", "userfaultfd") if m in members]
print(f"of a sandbox: {' '.join(of_sandbox) or 'none'}; group @sandbox: {'yes' if has_group else 'no'}; and {' '.join(others)}")
PY
failed=0
expect() {
    curl -sfLO "https://deb.debian.org/debian/pool/main/s/systemd/libsystemd-shared_$1_amd64.deb" || {
        echo "$1: not in the archive any more; see which version is, and what that says"
        exit 1
    }
    dpkg-deb -x "libsystemd-shared_$1_amd64.deb" "$1"
    local said
    said=$(python3 sets.py "$1"/usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-*.so)
    echo "@system-service of $1: $said"
    [ "$said" = "$2" ] || { echo "  expected: $2"; failed=1; }
}
expect 252.39-1~deb12u2 "of a sandbox: none; group @sandbox: no; and kcmp personality userfaultfd"
expect 257.13-1~deb13u1 "of a sandbox: none; group @sandbox: yes; and kcmp personality userfaultfd"
exit $failed
