//! Bad links: cables with a forwarder in their middle.
//!
//! ```text
//! host a                    the link's own namespace               host b
//!   eth0 ── veth ── end0 ══ forwarder (thread of this process) ══ end1 ── veth ── eth0
//! ```

use std::{fmt, sync::Mutex};

use anyhow::{Context, Result};

use crate::{
    Host, Impairment, Lab, Port, Tool,
    forwarder::Forwarder,
    lab::cable,
    pipe::{Counters, Pipe},
    tools,
};

/// The interfaces in the link's own namespace.
const ENDS: [&str; 2] = ["end0", "end1"];

/// A direction of a [`Link`], as the order of the ends in [`Lab::impaired_link`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the first end to the second.
    Forth,
    /// From the second end to the first.
    Back,
}

/// A cable that delays, loses, duplicates, reorders and limits as asked, each direction by itself; it can be changed while
/// packets pass. Nothing passes any more when it is dropped.
///
/// Frames up to 64 KiB (GSO) stay whole, so that TCP reaches gigabits, as long as all frames are treated alike: nothing but a
/// delay. With loss, duplication, reordering, jitter or a rate, the sending interface hands over single segments (its
/// kernel cuts, as for a network card that cannot), so that each is treated by itself.
#[must_use = "a link ends when it is dropped"]
pub struct Link {
    name: String,
    forwarder: Forwarder,
    middle: Host,
    ends: [(Host, String); 2],
    /// What is in place; held while it is being changed.
    present: Mutex<[Impairment; 2]>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Link").field(&self.name).finish()
    }
}

impl Lab {
    /// Joins two hosts with a bad cable, the same in both directions; [`Link::set`] tells directions apart.
    ///
    /// # Errors
    ///
    /// As [`Lab::link`], or when the impairment cannot be.
    pub fn impaired_link(&self, one: Port<'_>, other: Port<'_>, impairment: &Impairment) -> Result<Link> {
        let ends = [one.end(), other.end()];
        let link = Link::between(self, ends, impairment)?;
        one.configure()?;
        other.configure()?;
        Ok(link)
    }
}

impl Link {
    /// Makes both interfaces and the forwarder between them.
    pub(crate) fn between(lab: &Lab, ends: [(Host, String); 2], impairment: &Impairment) -> Result<Self> {
        impairment.check()?;
        let name = ends.each_ref().map(|(host, interface)| format!("{}/{interface}", host.name())).join(" to ");
        let middle = lab.host("link")?;
        // Nothing of its own on the wire.
        middle.sysctl("net.ipv6.conf.all.disable_ipv6", "1")?;
        for ((host, interface), end) in ends.iter().zip(ENDS) {
            cable(host, interface, &middle, end)?;
        }
        let sockets = ENDS.map(|end| middle.packet_socket().map(|socket| (socket, end)));
        let [one, other] = sockets;
        let seed = lab.next_seed();
        let pipes = [0, 1].map(|n| Pipe::new(Impairment::none(), seed.wrapping_mul(2).wrapping_add(n)));
        let forwarder = Forwarder::start([one?, other?], pipes).with_context(|| name.clone())?;
        let link = Self { name, forwarder, middle, ends, present: Mutex::new([Impairment::none(); 2]) };
        link.set_both(impairment)?;
        Ok(link)
    }

    /// Treats frames in both directions like this from now on; those on their way arrive as they were to.
    ///
    /// # Errors
    ///
    /// When the impairment cannot be.
    pub fn set_both(&self, impairment: &Impairment) -> Result<()> {
        self.set(Direction::Forth, impairment)?;
        self.set(Direction::Back, impairment)
    }

    /// Treats frames in one direction like this from now on; those on their way arrive as they were to.
    ///
    /// # Errors
    ///
    /// When the impairment cannot be.
    pub fn set(&self, direction: Direction, impairment: &Impairment) -> Result<()> {
        impairment.check().with_context(|| self.name.clone())?;
        let end = direction.entrance();
        let mut present = self.present.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let before = present.get_mut(end).context("a link has two ends")?;
        // Before the first frame is treated by itself, senders stop making super-frames; and the other way round.
        let (segments, had) = (impairment.needs_segments(), before.needs_segments());
        if segments && !had {
            self.hand_over_whole(end, false)?;
        }
        self.forwarder.pipe(end, |pipe| pipe.set(*impairment));
        if had && !segments {
            self.hand_over_whole(end, true)?;
        }
        *before = *impairment;
        Ok(())
    }

    /// Makes this direction's dice fall as this seed has it from now on. Without it they follow the lab's.
    pub fn seed(&self, direction: Direction, seed: u64) {
        self.forwarder.pipe(direction.entrance(), |pipe| pipe.seed(seed));
    }

    /// Pulls (`false`) or plugs (`true`) the cable: both ends lose their carrier, and what is on its way is lost.
    ///
    /// # Errors
    ///
    /// As `ip` says.
    pub fn plug(&self, plugged: bool) -> Result<()> {
        ENDS.iter().try_for_each(|end| self.middle.set_link(end, plugged))
    }

    /// What one direction has done so far.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell what it dropped.
    pub fn counters(&self, direction: Direction) -> Result<Counters> {
        self.forwarder.counters(direction.entrance())
    }

    /// Whether this end hands over frames that the kernel has not cut.
    ///
    /// Not by `gso_max_segs 1`: sockets would cut by themselves, and each segment would fill 2.3 KB of their buffers, so
    /// that they hold little more than half of what they hold on a real link.
    fn hand_over_whole(&self, end: usize, whole: bool) -> Result<()> {
        tools::require(&[Tool::Ethtool])?;
        let on = if whole { "on" } else { "off" };
        let (host, interface) = self.ends.get(end).context("a link has two ends")?;
        let features = ["tso", on, "tx-udp-segmentation", on];
        host.command("ethtool").args(["-K", interface]).args(features).run().map(drop)
    }
}

impl Direction {
    /// The number of the end where frames come in.
    fn entrance(self) -> usize {
        match self {
            Self::Forth => 0,
            Self::Back => 1,
        }
    }
}
