//! Networks of namespaces for end-to-end tests, the demonstration and benchmarks: hosts, routers, switches, the
//! processes in them, and what passes on their wires.
//!
//! ```no_run
//! use std::time::Duration;
//! use edgelink_testbed::{Lab, port};
//!
//! # fn main() -> anyhow::Result<()> {
//! let lab = Lab::new()?;
//! let (a, b) = (lab.host("a")?, lab.host("b")?);
//! lab.link(port(&a, "eth0", "10.0.0.1/24"), port(&b, "eth0", "10.0.0.2/24"))?;
//! let server = b.command("iperf3").args(["-s", "-1", "--forceflush"]).spawn_logged()?;
//! server.wait_line("Server listening", Duration::from_secs(5))?;
//! let report = a.command("iperf3").args(["-c", "10.0.0.2", "-t", "1"]).run()?;
//! # Ok(())
//! # }
//! ```
//!
//! **Nothing is left behind.** Namespaces are held by descriptors, not by names; every process lives in one PID
//! namespace whose first process ends, and takes all others with it, as soon as the [`Lab`] is dropped or the process
//! that made it dies, however it dies. That first process also removes [`Lab::dir`].
//!
//! **Root is not needed** where the kernel lets users make user namespaces. Root gets plain namespaces
//! (`EDGELINK_TESTBED_USERNS=1` makes it take the users' way).
//!
//! `EDGELINK_TESTBED_ECHO=1` shows every line that a process in a lab prints; `EDGELINK_TESTBED_KEEP=1` keeps
//! [`Lab::dir`].
#![allow(clippy::disallowed_methods, reason = "the testbed works on the real clock")]

mod capture;
mod command;
mod conntrack;
mod firewall;
mod forwarder;
mod impairment;
mod inspect;
mod lab;
mod link;
pub mod measure;
mod namespace;
mod nat;
mod pipe;
pub mod probe;
mod process;
mod router;
pub mod tools;
pub mod topology;
pub mod wait;

pub use capture::{Capture, Captured, IpPacket, Packet};
pub use command::{HostCommand, Output};
pub use firewall::Firewall;
pub use impairment::{Impairment, ImpairmentError, Queue};
pub use lab::{Host, Lab, LabOptions, Port, Switch, port};
pub use link::{Direction, Link};
pub use namespace::{Isolation, support};
pub use nat::{Behaviour, Nat, NatError, NatKind};
pub use pipe::Counters;
pub use process::{Line, Process, Stream};
pub use router::{PortMappings, Router};
pub use tools::Tool;
