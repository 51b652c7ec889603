//! A program under test: started, measured from outside, ended in an orderly way.

use anyhow::{Context as _, Result, bail, ensure};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// What a process has used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// CPU seconds, user and system.
    pub cpu: f64,
    /// Resident set, bytes.
    pub rss: u64,
}

impl Usage {
    /// Clock ticks per second in `/proc` (`USER_HZ`), which Linux fixes for user space.
    const TICKS: f64 = 100.0;

    /// What a process has used, from `/proc`.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the measured process has ended")?;
        // The name in parentheses may hold spaces.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |field: usize| fields.get(field).and_then(|text| text.parse::<f64>().ok());
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
        let (Some(user), Some(system), Some(rss)) = (ticks(11), ticks(12), rss) else {
            bail!("/proc/{pid} is not as expected");
        };
        let kib: u64 = rss;
        Ok(Self { cpu: (user + system) / Self::TICKS, rss: kib * 1024 })
    }
}

/// Where the programs are: `given`, or beside this one.
pub(crate) fn bin_dir(given: Option<&Path>) -> Result<PathBuf> {
    match given {
        Some(dir) => Ok(dir.to_owned()),
        None => Ok(std::env::current_exe()?.parent().context("this program is nowhere")?.to_owned()),
    }
}

/// A running program that has said `ready …`.
pub(crate) struct Process {
    child: Child,
    pub(crate) pid: u32,
    /// The last word of what it said.
    address: String,
}

impl Process {
    pub(crate) async fn start(program: &Path, args: &[&Path], limit: Duration) -> Result<Self> {
        let name = program.display();
        let mut child = Command::new(program)
            .args(args)
            .env("EDGELINK_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let pid = child.id().with_context(|| format!("{name} ended at once"))?;
        let mut lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
        let ready = async {
            while let Some(line) = lines.next_line().await? {
                if let Some(rest) = line.strip_prefix("ready ") {
                    return Ok(rest.rsplit(' ').next().unwrap_or_default().to_owned());
                }
            }
            bail!("{name} ended before it was ready")
        };
        let address = tokio::time::timeout(limit, ready).await.with_context(|| format!("{name} is not ready"))??;
        Ok(Self { child, pid, address })
    }

    /// Where a server listens.
    pub(crate) fn address(&self) -> Result<SocketAddr> {
        self.address.parse().with_context(|| format!("{:?} is no address", self.address))
    }

    pub(crate) fn usage(&self) -> Result<Usage> {
        Usage::of(self.pid)
    }

    /// SIGKILL.
    #[cfg(test)]
    pub(crate) async fn kill(&mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }

    pub(crate) async fn stop(mut self) -> Result<()> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.pid)?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        let status = self.child.wait().await?;
        ensure!(status.success(), "the measured process ended with {status}");
        Ok(())
    }
}
