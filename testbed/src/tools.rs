//! The programs that the testbed needs from outside, and where they come from.

use std::{
    env,
    fs::OpenOptions,
    io::ErrorKind,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};

/// A program and the Debian package that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    /// `ip`, for links, addresses and routes.
    Ip,
    /// `ethtool`, for links that treat each packet by itself.
    Ethtool,
    /// `nft`, for routers that filter or translate.
    Nft,
    /// `ping`.
    Ping,
    /// `iperf3`.
    Iperf3,
    /// coturn's server, which lets clients discover how their NAT behaves.
    Turnserver,
    /// coturn's client for that.
    NatDiscovery,
    /// miniupnpd, by which routers map ports on request.
    Miniupnpd,
}

impl Tool {
    /// Every tool that labs and the demonstration need; coturn is for the testbed's own tests, ethtool for bad links.
    pub const ALL: [Self; 4] = [Self::Ip, Self::Nft, Self::Ping, Self::Iperf3];

    /// The program's name.
    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Ethtool => "ethtool",
            Self::Nft => "nft",
            Self::Ping => "ping",
            Self::Iperf3 => "iperf3",
            Self::Turnserver => "turnserver",
            Self::NatDiscovery => "turnutils_natdiscovery",
            Self::Miniupnpd => "miniupnpd",
        }
    }

    /// The Debian package.
    #[must_use]
    pub fn package(self) -> &'static str {
        match self {
            Self::Ip => "iproute2",
            Self::Ethtool => "ethtool",
            Self::Nft => "nftables",
            Self::Ping => "iputils-ping",
            Self::Iperf3 => "iperf3",
            Self::Turnserver | Self::NatDiscovery => "coturn",
            Self::Miniupnpd => "miniupnpd-nftables",
        }
    }
}

/// Checks that every tool is installed.
///
/// # Errors
///
/// Names every missing program and the one command that installs them.
pub fn require(tools: &[Tool]) -> Result<()> {
    require_in(tools, &search_path())
}

/// Checks that TUN interfaces can be made, which EdgeLink's client does.
///
/// # Errors
///
/// Says what to do.
pub fn require_tun() -> Result<()> {
    match OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            bail!("/dev/net/tun: {e}; run as root, or once: chmod 666 /dev/net/tun")
        }
        Err(e) => bail!("/dev/net/tun: {e}; run: modprobe tun (in a container: --device /dev/net/tun)"),
    }
}

/// Finds a program on `PATH` or in the system directories, which an ordinary user's `PATH` often lacks.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    find_in(program, &search_path())
}

/// `PATH` with the system directories added.
pub(crate) fn search_path() -> Vec<PathBuf> {
    let mut path: Vec<PathBuf> = env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default();
    for dir in ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from) {
        if !path.contains(&dir) {
            path.push(dir);
        }
    }
    path
}

fn require_in(tools: &[Tool], path: &[PathBuf]) -> Result<()> {
    let missing: Vec<Tool> = tools.iter().copied().filter(|tool| find_in(tool.program(), path).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let programs: Vec<_> = missing.iter().map(|tool| tool.program()).collect();
    let mut packages: Vec<_> = missing.iter().map(|tool| tool.package()).collect();
    packages.dedup();
    bail!("missing: {}; run: apt-get install {}", programs.join(", "), packages.join(" "));
}

fn find_in(program: &str, path: &[PathBuf]) -> Option<PathBuf> {
    let executable = |file: &Path| file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    path.iter().map(|dir| dir.join(program)).find(|file| executable(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_its_package() {
        let error = require_in(&[Tool::Ip, Tool::Nft, Tool::Ping], &[PathBuf::from("/nowhere")]).unwrap_err();
        assert_eq!(error.to_string(), "missing: ip, nft, ping; run: apt-get install iproute2 nftables iputils-ping");
        let error = require_in(&[Tool::Turnserver, Tool::NatDiscovery], &[]).unwrap_err().to_string();
        assert_eq!(error, "missing: turnserver, turnutils_natdiscovery; run: apt-get install coturn");
        assert!(require_in(&[], &[]).is_ok());
        assert!(find("sh").is_some());
        assert!(find("no-such-program-here").is_none());
    }
}
