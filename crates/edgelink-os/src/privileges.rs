//! Least privilege (DESIGN §7): the client keeps `CAP_NET_ADMIN` alone, servers nothing.
//!
//! Linux keeps capabilities per thread: call these from the main thread *before* a runtime or any other thread starts,
//! and after everything that needs more (a port below 1024, say) is done. Threads inherit the result.

use caps::{CapSet, Capability, CapsHashSet, errors::CapsError};

/// The kernel refused to take a privilege away.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// A capability set could not be changed.
    #[error("cannot drop capabilities: {0}")]
    Capabilities(#[from] CapsError),
    /// `PR_SET_NO_NEW_PRIVS` failed.
    #[error("cannot set no-new-privileges: {0}")]
    NoNewPrivs(#[from] nix::Error),
}

/// Keeps `CAP_NET_ADMIN` (if it is held at all) and gives up every other capability for good; implies
/// [`no_new_privs`].
///
/// # Errors
///
/// When the kernel refuses; nothing can be assumed then.
pub fn drop_to_net_admin() -> Result<(), PrivilegeError> {
    keep(&[Capability::CAP_NET_ADMIN])
}

/// Gives up every capability for good; implies [`no_new_privs`].
///
/// # Errors
///
/// As [`drop_to_net_admin`].
pub fn drop_all() -> Result<(), PrivilegeError> {
    keep(&[])
}

/// From now on no `execve` of this thread or its descendants grants privileges (set-uid and file capabilities are
/// ignored).
///
/// # Errors
///
/// On kernels before 3.5 only.
pub fn no_new_privs() -> Result<(), PrivilegeError> {
    Ok(nix::sys::prctl::set_no_new_privs()?)
}

/// Whether this thread holds `CAP_NET_ADMIN` now.
#[must_use]
pub fn has_net_admin() -> bool {
    caps::has_cap(None, CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap_or(false)
}

fn keep(wanted: &[Capability]) -> Result<(), PrivilegeError> {
    no_new_privs()?;
    let held = caps::read(None, CapSet::Permitted)?;
    let keep: CapsHashSet = wanted.iter().copied().filter(|cap| held.contains(cap)).collect();
    // The bounding set can be narrowed only while CAP_SETPCAP is held: without it (file capabilities, systemd) there
    // is nothing to narrow, since no_new_privs already bars regaining anything by execve.
    if held.contains(&Capability::CAP_SETPCAP) {
        for cap in caps::runtime::thread_all_supported().difference(&keep) {
            caps::drop(None, CapSet::Bounding, *cap)?;
        }
    }
    if caps::runtime::ambient_set_supported().is_ok() {
        caps::clear(None, CapSet::Ambient)?;
    }
    caps::set(None, CapSet::Effective, &keep)?;
    caps::set(None, CapSet::Permitted, &keep)?;
    caps::clear(None, CapSet::Inheritable)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs on a thread of its own, which is all that capabilities belong to.
    fn status_after(drop: fn() -> Result<(), PrivilegeError>) -> (u64, Vec<String>) {
        let before = caps::read(None, CapSet::Permitted).unwrap();
        std::thread::spawn(move || {
            drop().unwrap();
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let wanted = ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:", "NoNewPrivs:"];
            let lines = wanted
                .iter()
                .filter(|key| **key != "CapBnd:" || before.contains(&Capability::CAP_SETPCAP))
                .map(|key| {
                    let line = status.lines().find(|line| line.starts_with(key)).unwrap();
                    format!("{key}{}", line[key.len()..].trim().trim_start_matches('0'))
                })
                .collect();
            let net_admin = u64::from(before.contains(&Capability::CAP_NET_ADMIN)) << Capability::CAP_NET_ADMIN.index();
            (net_admin, lines)
        })
        .join()
        .unwrap()
    }

    #[test]
    fn only_net_admin_is_left() {
        let (net_admin, lines) = status_after(drop_to_net_admin);
        let kept = if net_admin == 0 { String::new() } else { format!("{net_admin:x}") };
        for line in lines {
            let (key, value) = line.split_once(':').unwrap();
            let expected = match key {
                "CapPrm" | "CapEff" | "CapBnd" => kept.as_str(),
                "NoNewPrivs" => "1",
                _ => "",
            };
            assert_eq!(value, expected, "{key}");
        }
    }

    #[test]
    fn nothing_is_left() {
        let (_, lines) = status_after(drop_all);
        for line in lines {
            let (key, value) = line.split_once(':').unwrap();
            assert_eq!(value, if key == "NoNewPrivs" { "1" } else { "" }, "{key}");
        }
    }
}
