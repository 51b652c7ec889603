//! A ping that goes on while something else happens.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context, Result, bail};
use edgelink_testbed::{Process, wait};
use nix::sys::signal::Signal;

use crate::{Node, SOON};

/// Pings ten times a second until stopped.
#[derive(Debug)]
pub struct Pinger(Process);

/// What a [`Pinger`] saw.
#[derive(Debug, Clone, PartialEq)]
pub struct Pings {
    /// The sequence numbers answered, from 1.
    pub answered: Vec<u64>,
    /// When each answer came, in seconds since the Unix epoch.
    pub at: Vec<f64>,
    /// How many were sent.
    pub sent: u64,
}

impl Pinger {
    /// Starts it and waits for the first answer.
    ///
    /// # Errors
    ///
    /// When none comes.
    pub fn start(from: &Node, to: IpAddr) -> Result<Self> {
        let target = to.to_string();
        // One-line answers with their time; unanswered ones are told too (-O).
        let ping = from.host.command("ping").args(["-n", "-D", "-O", "-i", "0.1", target.as_str()]).spawn_logged()?;
        ping.wait_line("bytes from", SOON)?;
        Ok(Self(ping))
    }

    /// Waits until `count` more answers have come, each at most a second after the one before.
    ///
    /// # Errors
    ///
    /// When they do not come.
    pub fn wait_answers(&self, count: usize) -> Result<()> {
        for _ in 0..count {
            let mark = self.0.mark();
            self.0.wait_line_after(mark, "bytes from", SOON)?;
        }
        Ok(())
    }

    /// Waits for the first answer after now.
    ///
    /// # Errors
    ///
    /// When none comes in time.
    pub fn wait_answer(&self, timeout: Duration) -> Result<()> {
        self.0.wait_line_after(self.0.mark(), "bytes from", timeout).map(drop)
    }

    /// Waits until pings go unanswered.
    ///
    /// # Errors
    ///
    /// When every one is answered.
    pub fn wait_silence(&self, timeout: Duration) -> Result<()> {
        self.0.wait_line_after(self.0.mark(), "no answer yet", timeout).map(drop)
    }

    /// Stops it.
    ///
    /// # Errors
    ///
    /// When `ping` does not tell its sum.
    pub fn stop(self) -> Result<Pings> {
        self.0.signal(Signal::SIGINT)?;
        self.0.wait(SOON)?;
        let sum = wait::until("ping's sum", SOON, || {
            self.0.lines().into_iter().map(|line| line.text).find(|text| text.contains("packets transmitted"))
        })?;
        let sent = sum.split_whitespace().next().and_then(|n| n.parse().ok()).with_context(|| sum.clone())?;
        let (mut answered, mut at) = (Vec::new(), Vec::new());
        for line in self.0.lines().iter().filter(|line| line.text.contains("bytes from")) {
            let seq = line.text.split("icmp_seq=").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
            let time = line.text.strip_prefix('[').and_then(|rest| rest.split(']').next()?.parse().ok());
            answered.push(seq.with_context(|| line.text.clone())?);
            at.push(time.with_context(|| line.text.clone())?);
        }
        Ok(Pings { answered, at, sent })
    }

    /// Stops it; fails when a ping was lost or came twice. The last may still have been on its way.
    ///
    /// # Errors
    ///
    /// Says which.
    pub fn stop_without_loss(self) -> Result<u64> {
        let pings = self.stop()?;
        let count = pings.answered.len() as u64;
        if !pings.answered.iter().copied().eq(1..=count) || pings.sent > count + 1 {
            bail!("pings were lost: {} sent, answered {:?}", pings.sent, pings.answered);
        }
        Ok(count)
    }
}
