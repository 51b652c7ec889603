//! Node keys rotate every ten seconds under traffic, and nobody notices (specification §3.3).
#![allow(clippy::disallowed_methods, reason = "the tests work on the real clock")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::{
    io::{Read, Write},
    thread,
    time::{Duration, Instant},
};

use edgelink_e2e::{Net, NetOptions, Pinger, SOON, bytes};
use serde_json::{Value, json};

/// The least period that can be set.
const PERIOD: Duration = Duration::from_secs(10);

#[test]
fn keys_rotate_under_traffic_and_nothing_is_lost() {
    let controller = json!({ "security": { "node_key_rotate_hours": 10.0 / 3600.0 } });
    let options = NetOptions { controller: Some(controller), ..NetOptions::default() };
    let Some(net) = Net::start_with(&["a", "b"], options).unwrap() else { return };
    let (a, b) = (&net.nodes[0], &net.nodes[1]);
    let (at_a, at_b) = (a.overlay().unwrap(), b.overlay().unwrap());
    let keys = || -> Vec<String> {
        let nodes = net.ctl_json(&["node", "list"]).unwrap();
        let key = |node: &Value| node["node_key_pub"].as_str().unwrap().to_owned();
        nodes.as_array().unwrap().iter().map(key).collect()
    };

    // A stream of bytes and pings both ways for two periods: both ends rotate, most likely at different times.
    let first = keys();
    let pingers = [Pinger::start(a, at_b).unwrap(), Pinger::start(b, at_a).unwrap()];
    let listener = b.host.tcp_listener(net.at(1, 7000).unwrap()).unwrap();
    let block = bytes(32 << 10, 11);
    let expected = block.clone();
    let receiver = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut buffer = vec![0; 32 << 10];
        let mut blocks = 0_u32;
        while stream.read_exact(&mut buffer).is_ok() {
            assert!(buffer == expected, "block {blocks}");
            blocks += 1;
        }
        blocks
    });
    let mut stream = a.host.tcp_connect(net.at(1, 7000).unwrap(), SOON).unwrap();
    stream.set_write_timeout(Some(SOON)).unwrap();
    let send_for = |stream: &mut std::net::TcpStream, time: Duration| {
        let until = Instant::now() + time;
        let mut sent = 0_u32;
        while Instant::now() < until {
            stream.write_all(&block).unwrap();
            sent += 1;
            thread::sleep(Duration::from_millis(20));
        }
        sent
    };
    let mut sent = send_for(&mut stream, PERIOD + Duration::from_secs(1));
    let second = keys();
    assert!(first.iter().zip(&second).all(|(before, after)| before != after), "both keys have changed");

    sent += send_for(&mut stream, PERIOD + Duration::from_secs(1));
    drop(stream);
    let received = receiver.join().unwrap();
    assert_eq!(received, sent, "every block, whole and in order");
    for pinger in pingers {
        pinger.stop_without_loss().unwrap();
    }
    assert!(second.iter().zip(&keys()).all(|(before, after)| before != after), "and again");
}
