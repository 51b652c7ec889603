//! The laboratory by hand: NATs and links.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use edgelink_testbed::{
    Direction, Host, Impairment, Lab, NatKind, Queue, Tool,
    measure::{self, Stream},
    port,
    probe::{Inside, Observer, look, punch},
    topology::{Internet, Site, SitePlan},
};

use crate::units;

pub(crate) const EXAMPLES: &str = "\
NATs: none, full-cone, restricted-cone, port-restricted, early-claims (a port-restricted one that lets strangers claim its
ports), address-dependent, symmetric, one-to-one, udp-blocked.

Hosts: left-1 (10.1.0.2), right-1 (10.2.0.2), public (203.0.113.10 and .41). Routers' public addresses: 203.0.113.101, .102.

Examples:
  edgelink-testbed nat --left symmetric --right full-cone
  edgelink-testbed nat --left port-restricted --delay 40ms --loss 1% -- ping -c 3 203.0.113.10
  edgelink-testbed nat --right symmetric --right-carrier port-restricted --host right -- bash";
pub(crate) const LINK_EXAMPLES: &str = "\
Examples:
  edgelink-testbed measure-link --delay 40ms --jitter 5ms
  edgelink-testbed measure-link --rate 100mbit --queue 20ms --loss 0.1%";

/// Longer than anybody stays in a shell.
const LONG: Duration = Duration::from_secs(7 * 24 * 3600);

/// What links do in each direction.
#[derive(Debug, Args)]
pub(crate) struct LinkArguments {
    /// One-way delay, e.g. 40ms.
    #[arg(long, value_parser = units::time, default_value = "0ms")]
    delay: Duration,
    /// How much the delay varies up and down, at most itself.
    #[arg(long, value_parser = units::time, default_value = "0ms")]
    jitter: Duration,
    /// The part of the packets that is lost, e.g. 1%.
    #[arg(long, value_parser = units::share, default_value = "0%")]
    loss: f64,
    /// The part that comes twice.
    #[arg(long, value_parser = units::share, default_value = "0%")]
    duplicate: f64,
    /// The part that is held back while later ones pass.
    #[arg(long, value_parser = units::share, default_value = "0%")]
    reorder: f64,
    /// By how much it is held back.
    #[arg(long, value_name = "TIME", value_parser = units::time, default_value = "5ms")]
    reorder_by: Duration,
    /// Bits per second, e.g. 100mbit.
    #[arg(long, value_parser = units::rate)]
    rate: Option<u64>,
    /// How much may wait for the rate, as a time.
    #[arg(long, value_name = "TIME", value_parser = units::time, default_value = "50ms")]
    queue: Duration,
}

impl LinkArguments {
    fn impairment(&self) -> Result<Impairment> {
        let mut all = Impairment::none()
            .delay(self.delay)
            .jitter(self.jitter)
            .loss(self.loss)
            .duplicate(self.duplicate)
            .reorder(self.reorder, self.reorder_by)
            .queue(Queue::Time(self.queue));
        if let Some(rate) = self.rate {
            all = all.rate(rate);
        }
        all.check()?;
        Ok(all)
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Where {
    Left,
    Right,
    Public,
}

/// `edgelink-testbed nat`
#[derive(Debug, Args)]
pub(crate) struct NatArguments {
    /// The NAT of the left host.
    #[arg(long, value_name = "NAT", default_value = "port-restricted")]
    left: NatKind,
    /// The NAT of the right host.
    #[arg(long, value_name = "NAT", default_value = "port-restricted")]
    right: NatKind,
    /// A carrier's NAT outside the left one.
    #[arg(long, value_name = "NAT")]
    left_carrier: Option<NatKind>,
    /// A carrier's NAT outside the right one.
    #[arg(long, value_name = "NAT")]
    right_carrier: Option<NatKind>,
    #[command(flatten)]
    link: LinkArguments,
    /// Where the command runs.
    #[arg(long, value_enum, default_value = "left")]
    host: Where,
    /// The command and its arguments, e.g. a shell; without it, what the NATs do is shown.
    #[arg(last = true)]
    command: Vec<String>,
}

pub(crate) fn nat(arguments: &NatArguments) -> Result<ExitCode> {
    let link = arguments.link.impairment()?;
    let lab = Lab::new()?;
    let internet = Internet::new(&lab)?;
    let (public, addresses) = internet.server("public", 2)?;
    let site = |name: &str, nat, carrier: Option<NatKind>| {
        let plan = SitePlan::behind(nat).link(link);
        internet.site(name, &carrier.into_iter().fold(plan, SitePlan::carrier))
    };
    let left = site("left", arguments.left, arguments.left_carrier)?;
    let right = site("right", arguments.right, arguments.right_carrier)?;
    let Some((program, rest)) = arguments.command.split_first() else {
        let addresses = addresses.try_into().map_err(|_| anyhow::anyhow!("two addresses were asked for"))?;
        return describe(&left, &right, &Observer::new(&public, addresses)?);
    };
    let host: &Host = match arguments.host {
        Where::Left => left.hosts.first().context("left has no host")?,
        Where::Right => right.hosts.first().context("right has no host")?,
        Where::Public => &public,
    };
    let status = host.command(program).args(rest).keyboard().timeout(LONG).show()?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

fn describe(left: &Site, right: &Site, observer: &Observer) -> Result<ExitCode> {
    let (one, other) = (left.inside().context("left has no host")?, right.inside().context("right has no host")?);
    for (name, inside) in [("left", one), ("right", other)] {
        match look(inside, observer)? {
            Some(seen) => println!("{name:<6} {seen}"),
            None => println!("{name:<6} UDP does not get through"),
        }
    }
    let reached = punch(one, other, observer, Duration::ZERO)?;
    println!("punch  the two hosts {}", if reached { "reach each other" } else { "do not reach each other" });
    Ok(ExitCode::SUCCESS)
}

/// `edgelink-testbed measure-link`
#[derive(Debug, Args)]
pub(crate) struct MeasureArguments {
    #[command(flatten)]
    link: LinkArguments,
    /// How long each measurement takes.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// TCP's congestion control, e.g. cubic or bbr; the system's default otherwise.
    #[arg(long, value_name = "NAME")]
    congestion: Option<String>,
}

pub(crate) fn measure_link(arguments: &MeasureArguments) -> Result<ExitCode> {
    let impairment = arguments.link.impairment()?;
    let lab = Lab::with_tools(&[Tool::Ping, Tool::Iperf3])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let link = lab.impaired_link(port(&a, "eth0", "10.0.0.1/24"), port(&b, "eth0", "10.0.0.2/24"), &impairment)?;
    for host in [&a, &b] {
        // Windows for 1 Gbit/s at half a second there and back, so that it is the link that is measured.
        for key in ["tcp_rmem", "tcp_wmem"] {
            host.sysctl(&format!("net.ipv4.{key}"), "4096 131072 67108864")?;
        }
    }
    let (at_a, at_b) =
        (Inside { host: &a, address: [10, 0, 0, 1].into() }, Inside { host: &b, address: [10, 0, 0, 2].into() });

    // Neighbours find each other first.
    measure::round_trips(&a, at_b.address, 3, Duration::from_millis(10))?;
    let (count, gap) = (arguments.seconds.saturating_mul(20), Duration::from_millis(50));
    let [least, mean, greatest, deviation] = measure::round_trips(&a, at_b.address, count, gap)?;
    println!(
        "ping      {} least, {} mean, {} greatest, {} deviation",
        ms(least),
        ms(mean),
        ms(greatest),
        ms(deviation)
    );

    // A quarter of the rate, so that it is the link that is measured and not its queue.
    let size = 200;
    let frame_bits = (size as u64 + 42) * 8;
    let gap =
        Duration::from_micros(100).max(arguments.link.rate.map_or(Duration::ZERO, |rate| {
            Duration::from_nanos(frame_bits.saturating_mul(4_000_000_000) / rate.max(1))
        }));
    let packets = (Duration::from_secs(arguments.seconds.into()).as_nanos() / gap.as_nanos().max(1)).max(1);
    let stream = Stream { packets: u64::try_from(packets)?, gap, size };
    let arrived = stream.send(at_a, at_b)?;
    let [low, half, most, all] = [0.0, 0.5, 0.99, 1.0].map(|part| ms(arrived.quantile(part)));
    println!("one way   {low} least, {half} median, {most} 99 %, {all} greatest");
    let (_, deviation) = arrived.mean_and_deviation();
    println!("jitter    {} standard deviation", ms(deviation));
    println!(
        "packets   {} of {} lost ({:.3} %), {} duplicates, {} late",
        arrived.sent - arrived.received,
        arrived.sent,
        arrived.loss() * 100.0,
        arrived.duplicates,
        arrived.late
    );

    let speed = measure::throughput(&a, at_b, arguments.seconds, arguments.congestion.as_deref())?;
    let (whole, settled) = (speed.whole / 1e6, speed.settled / 1e6);
    println!("TCP       {whole:.1} Mbit/s, one connection; {settled:.1} without the first quarter of the time");
    let counters = link.counters(Direction::Forth)?;
    let beyond = counters.overruns + counters.overflowed;
    if beyond > 0 {
        println!("beware    {beyond} frames were dropped since this machine was too slow for such a link");
    }
    Ok(ExitCode::SUCCESS)
}

fn ms(time: Duration) -> String {
    format!("{:.3} ms", time.as_secs_f64() * 1000.0)
}
