//! A slow link stays interactive while it is full (DESIGN §6).
#![expect(clippy::disallowed_methods, reason = "the tests work on the real clock")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    io::{Read, Write},
    net::{IpAddr, Shutdown, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use edgelink_e2e::{Net, NetOptions, Node, SOON};
use edgelink_testbed::{Impairment, Queue};

const RATE: u64 = 20_000_000;
/// One way.
const DELAY: Duration = Duration::from_millis(10);
/// What waits before the link itself, which is nobody's to shorten but the congestion control's.
const LINK_QUEUE: Duration = Duration::from_millis(20);
const BULK: Duration = Duration::from_secs(5);
/// How much longer a round trip may take while the link is full: the link's own queue, what is handed to the kernel at once
/// (2 ms) and may be unsent there (3 ms), and what an overflow of that queue holds up.
const ADDED: Duration = Duration::from_millis(30);
/// The same for one that does not go over that link.
const ADDED_ELSEWHERE: Duration = Duration::from_millis(5);
/// A busy machine adds milliseconds of its own, and never takes any away: one of so many measurements has to be within the
/// bounds. Without bounds by the delivery rate half a megabyte goes before each ping, which is 200 ms here.
const ATTEMPTS: u32 = 5;

/// The median round trip of so many pings, a tenth of a second apart.
fn ping(from: &Node, to: IpAddr, count: u32) -> Duration {
    let (count, to) = (count.to_string(), to.to_string());
    let printed = from.host.command("ping").args(["-n", "-c", &count, "-i", "0.1", "-W", "5", &to]).output().unwrap();
    let times = printed.stdout.lines().filter_map(|line| line.split("time=").nth(1)?.split(' ').next()?.parse().ok());
    let mut times: Vec<f64> = times.collect();
    times.sort_by(f64::total_cmp);
    let median = times.get(times.len() / 2).unwrap_or_else(|| panic!("no answer: {}", printed.stdout));
    Duration::from_secs_f64(median / 1000.0)
}

/// Sends as fast as TCP does for a while; returns how many bits per second arrived.
fn bulk(from: &Node, to: &Node, address: SocketAddr) -> f64 {
    let listener = to.host.tcp_listener(address).unwrap();
    let mut stream = from.host.tcp_connect(address, SOON).unwrap();
    let receiver = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let (mut buffer, mut bytes, begin) = (vec![0; 1 << 16], 0, Instant::now());
        // What arrives after the time is over still has to be read, and does not count.
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            bytes += if begin.elapsed() <= BULK { n } else { 0 };
        }
        bytes as f64 * 8.0 / BULK.as_secs_f64()
    });
    stream.set_write_timeout(Some(SOON)).unwrap();
    let (begin, chunk) = (Instant::now(), [7; 1 << 16]);
    while begin.elapsed() < BULK {
        stream.write_all(&chunk).unwrap();
    }
    stream.shutdown(Shutdown::Write).unwrap();
    receiver.join().unwrap()
}

#[test]
fn a_full_slow_link_adds_little_to_pings_and_nothing_to_those_that_go_elsewhere() {
    let slow = Impairment::none().rate(RATE).delay(DELAY).queue(Queue::Time(LINK_QUEUE));
    let options = NetOptions { links: vec![None, Some(slow), None], ..NetOptions::default() };
    let Some(net) = Net::start_with(&["fast", "slow", "other"], options).unwrap() else { return };
    let [fast, slow, other] = &net.nodes[..] else { unreachable!() };
    let (at_fast, at_slow, at_other) = (fast.overlay().unwrap(), slow.overlay().unwrap(), other.overlay().unwrap());
    for (from, to) in [(fast, at_slow), (fast, at_other), (slow, at_fast)] {
        from.wait_ping(to, SOON).unwrap();
    }
    let idle = ping(fast, at_slow, 10);
    let idle_elsewhere = ping(fast, at_other, 10);
    assert!(idle >= 2 * DELAY, "{idle:?}");

    // Towards the slow node, the queue is the relay's; away from it, its own.
    for (from, to, target, index) in [(fast, slow, at_slow, 1), (slow, fast, at_fast, 0)] {
        let address = net.at(index, 7_000).unwrap();
        let fits = (1..=ATTEMPTS).any(|attempt| {
            let (rate, loaded, elsewhere) = thread::scope(|scope| {
                let transfer = scope.spawn(|| bulk(from, to, address));
                let elsewhere = scope.spawn(|| ping(fast, at_other, 40));
                let loaded = ping(from, target, 40);
                (transfer.join().unwrap(), loaded, elsewhere.join().unwrap())
            });
            eprintln!(
                "{} to {}, attempt {attempt}: {:.1} Mbit/s; ping {idle:?} idle, {loaded:?} beside it; \
                 elsewhere {idle_elsewhere:?}, {elsewhere:?}",
                from.host.name(),
                to.host.name(),
                rate / 1e6
            );
            // The link is full meanwhile: half of it would show that something is thrown away, or held back.
            assert!(rate >= 0.5 * RATE as f64, "{rate:.0} bit/s of {RATE}");
            loaded <= idle + ADDED && elsewhere <= idle_elsewhere + ADDED_ELSEWHERE
        });
        assert!(fits, "not once within {ADDED:?} and {ADDED_ELSEWHERE:?}");
    }
    net.check_alive().unwrap();
}
