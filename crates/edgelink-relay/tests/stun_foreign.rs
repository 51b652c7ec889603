//! The STUN server against coturn's clients, on loopback addresses. They come with Debian's package coturn.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "a real server on real sockets needs the clock")]

use edgelink_relay::stun::{Addresses, Responder, Socket, StunConfig, StunStats, Which};
use rand_chacha::ChaCha12Rng;
use rand_core::SeedableRng;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const FIRST: Ipv4Addr = Ipv4Addr::LOCALHOST;
const SECOND: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// The responder on two addresses with two ports each, one thread per socket.
struct Server {
    ports: [u16; 2],
    responder: Arc<Mutex<Responder>>,
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    fn start(two: bool) -> Self {
        let (sockets, ports) = bind();
        let other_ip = two.then_some(IpAddr::from(SECOND));
        let config = StunConfig::new(Addresses { ip: FIRST.into(), other_ip, ports });
        let responder = Arc::new(Mutex::new(Responder::new(config, &mut ChaCha12Rng::seed_from_u64(1))));
        let (ended, sockets) = (Arc::new(AtomicBool::new(false)), Arc::new(sockets));
        let threads = (0..4)
            .map(|index| {
                let (responder, ended, sockets) = (responder.clone(), ended.clone(), sockets.clone());
                std::thread::spawn(move || serve(index, &responder, &ended, &sockets))
            })
            .collect();
        Self { ports, responder, ended, threads }
    }

    fn stats(&self) -> StunStats {
        self.responder.lock().unwrap().stats()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

/// The four sockets by index: first address with both ports, then second. The ports are the same on both.
fn bind() -> ([UdpSocket; 4], [u16; 2]) {
    for _ in 0..100 {
        let (a, b) = (UdpSocket::bind((FIRST, 0)).unwrap(), UdpSocket::bind((FIRST, 0)).unwrap());
        let ports = [&a, &b].map(|socket| socket.local_addr().unwrap().port());
        if let (Ok(c), Ok(d)) = (UdpSocket::bind((SECOND, ports[0])), UdpSocket::bind((SECOND, ports[1]))) {
            let sockets = [a, b, c, d];
            for socket in &sockets {
                socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            }
            return (sockets, ports);
        }
    }
    panic!("no two ports are free on both addresses");
}

fn serve(index: usize, responder: &Mutex<Responder>, ended: &AtomicBool, sockets: &[UdpSocket; 4]) {
    let which = |second| if second { Which::Second } else { Which::First };
    let local = Socket { ip: which(index / 2 == 1), port: which(index % 2 == 1) };
    let mut buffer = [0; 1_500];
    while !ended.load(Ordering::Relaxed) {
        // The timeout is there to look at `ended` again.
        let Ok((len, source)) = sockets[index].recv_from(&mut buffer) else { continue };
        let answer = responder.lock().unwrap().answer(local, source, &buffer[..len], Instant::now());
        if let Some(answer) = answer {
            let from =
                usize::from(answer.from.ip == Which::Second) * 2 + usize::from(answer.from.port == Which::Second);
            sockets[from].send_to(answer.datagram(), source).unwrap();
        }
    }
}

/// What a client of coturn says.
fn client(program: &str, arguments: &[&str]) -> String {
    let output = Command::new("timeout").arg("20").arg(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{program} ({}; it is in Debian's package coturn): {text}", output.status);
    text
}

/// The addresses behind `label` in what was said.
fn named(said: &str, label: &str) -> Vec<SocketAddr> {
    said.lines().filter_map(|line| line.split_once(label)?.1.trim_start_matches([':', ' ']).parse().ok()).collect()
}

/// With one address: to a server that has two, this client goes on to ask with RESPONSE-PORT, and waits forever when it
/// is refused, as it is here.
#[test]
fn coturns_stunclient_learns_its_address() {
    let server = Server::start(false);
    for port in server.ports {
        let said = client("turnutils_stunclient", &["-p", &port.to_string(), "127.0.0.1"]);
        let mapped = named(&said, "UDP reflexive addr");
        assert!(!mapped.is_empty() && mapped.iter().all(|mapped| mapped.ip() == FIRST), "{said}");
    }
    assert_eq!(server.stats(), StunStats { answered: 2, ..StunStats::default() });
}

#[test]
fn coturns_natdiscovery_finds_no_nat_on_the_loopback() {
    let server = Server::start(true);
    let port = server.ports[0].to_string();
    let said = client("turnutils_natdiscovery", &["-m", "-f", "-p", &port, "-L", "127.0.0.1", "127.0.0.1"]);
    // Mapping: to the first address, to the second. Filtering: plain, and from the other address and port.
    assert_eq!(said.matches("No ALG: Mapped == XOR-Mapped").count(), 4, "{said}");
    assert!(said.contains("Endpoint Independent Mapping") && said.contains("Endpoint Independent Filtering"), "{said}");
    let (mapped, own) = (named(&said, "UDP reflexive addr"), named(&said, "Local addr"));
    assert_eq!((mapped.len(), &mapped), (4, &own), "{said}");
    let [first, second] = server.ports;
    assert_eq!(named(&said, "Response origin").last(), Some(&SocketAddr::from((SECOND, second))), "{said}");
    assert!(named(&said, "Response origin").contains(&SocketAddr::from((SECOND, first))), "{said}");
    assert_eq!(server.stats(), StunStats { answered: 4, ..StunStats::default() });
}
