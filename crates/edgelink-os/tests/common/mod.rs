//! Runs a test inside fresh user, network and mount namespaces, by executing the test binary again.

use std::{
    io::{self, Write},
    os::unix::process::CommandExt,
    process::{Command, Stdio},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    unistd::{getegid, geteuid},
};

const INSIDE: &str = "EDGELINK_TEST_INSIDE";

/// Runs `body` inside; `test` is the test's own name. Says plainly when the kernel forbids it.
pub(crate) fn in_namespace(test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        return body();
    }
    let with_user_namespace = run(test, true);
    let result = match with_user_namespace {
        Err(e) if geteuid().is_root() && e.kind() == io::ErrorKind::PermissionDenied => run(test, false),
        other => other,
    };
    match result {
        Ok(output) => {
            std::io::stderr().write_all(&output.stdout).unwrap();
            std::io::stderr().write_all(&output.stderr).unwrap();
            assert!(output.status.success(), "{test} failed inside its namespace: {}", output.status);
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(text.contains("1 passed"), "{test} did not run inside its namespace");
        }
        Err(e) => eprintln!("NOT TESTED: {test}: the kernel forbids user namespaces here ({e})"),
    }
}

/// Whether a TUN can be had at all; says plainly when not.
pub(crate) fn tun_available() -> bool {
    match std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => true,
        Err(e) => {
            eprintln!("NOT TESTED: /dev/net/tun cannot be opened here ({e})");
            false
        }
    }
}

fn run(test: &str, user_namespace: bool) -> io::Result<std::process::Output> {
    let (uid, gid) = (geteuid(), getegid());
    let mut command = Command::new(std::env::current_exe()?);
    command.args([test, "--exact", "--nocapture"]).env(INSIDE, "1").stdin(Stdio::null());
    let (uid_map, gid_map) = (format!("0 {uid} 1"), format!("0 {gid} 1"));
    // SAFETY: between fork and exec only system calls are made, on memory prepared before the fork.
    unsafe {
        command.pre_exec(move || {
            let mut flags = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
            flags.set(CloneFlags::CLONE_NEWUSER, user_namespace);
            unshare(flags)?;
            if user_namespace {
                std::fs::write("/proc/self/setgroups", "deny")?;
                std::fs::write("/proc/self/uid_map", &uid_map)?;
                std::fs::write("/proc/self/gid_map", &gid_map)?;
            }
            Ok(())
        });
    }
    command.output()
}
