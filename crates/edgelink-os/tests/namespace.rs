//! The TUN device and netlink against the real kernel, each test in namespaces of its own.
#![allow(clippy::disallowed_methods, reason = "tests of the operating system use its clock")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;
#[path = "common/seccomp.rs"]
mod seccomp;

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::{Command, Stdio},
    time::Duration,
};

use common::{in_namespace, tun_available};
use edgelink_os::{
    net::{NetError, Netlink, ROUTE_PROTOCOL, Route, TX_QUEUE_LEN, TX_QUEUE_LEN_PLAIN},
    privileges,
    tun::{GSO_MAX_SIZE, READ_BUFFER_LEN, Tun, TunConfig, TunError, VIRTIO_HEADER_LEN},
};
use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};

const MTU: u32 = 1400;
const DEADLINE: Duration = Duration::from_secs(20);

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// Runs `body` in a namespace on a small runtime, with a deadline.
fn inside<F: Future<Output = ()>>(test: &str, body: impl FnOnce() -> F) {
    in_namespace(test, || {
        if tun_available() {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { tokio::time::timeout(DEADLINE, body()).await.expect("in time") });
        }
    });
}

async fn tun_with(netlink: &Netlink, offload: bool, addresses: &[IpNet]) -> Tun {
    let tun = Tun::open(&TunConfig { offload, ..TunConfig::new("edgelink0", MTU) }).unwrap();
    netlink.configure_tun(&tun, addresses).await.unwrap();
    tun
}

async fn link(name: &str) -> LinkMessage {
    let (connection, handle, _) = rtnetlink::new_connection().unwrap();
    tokio::spawn(connection);
    handle.link().get().match_name(name).execute().try_next().await.unwrap().unwrap()
}

#[test]
fn the_interface_is_what_was_asked_for_and_goes_when_dropped() {
    inside("the_interface_is_what_was_asked_for_and_goes_when_dropped", || async {
        let netlink = Netlink::open().unwrap();
        for (offload, queue) in [(true, TX_QUEUE_LEN), (false, TX_QUEUE_LEN_PLAIN)] {
            let addresses = [net("10.9.0.1/24"), net("fd00:9::1/64")];
            let tun = tun_with(&netlink, offload, &addresses).await;
            assert_eq!(tun.offload(), offload);
            assert_eq!(tun.gso_max_size(), if offload { GSO_MAX_SIZE } else { MTU });
            assert_eq!(netlink.index("edgelink0").await.unwrap(), tun.index());
            assert_eq!(netlink.addresses(tun.index()).await.unwrap(), addresses);
            let attributes = link("edgelink0").await.attributes;
            assert!(attributes.contains(&LinkAttribute::Mtu(MTU)));
            assert!(attributes.contains(&LinkAttribute::TxQueueLen(queue)));
            assert_eq!(attributes.contains(&LinkAttribute::GsoMaxSize(GSO_MAX_SIZE)), offload);
            assert_eq!(attributes.contains(&LinkAttribute::GsoIpv4MaxSize(GSO_MAX_SIZE)), offload);
            drop(tun);
            assert!(matches!(netlink.index("edgelink0").await, Err(NetError::NoInterface(n)) if n == "edgelink0"));
        }
    });
}

#[test]
fn a_taken_name_is_refused_and_left_alone() {
    inside("a_taken_name_is_refused_and_left_alone", || async {
        let first = Tun::open(&TunConfig::new("edgelink0", MTU)).unwrap();
        for name in ["edgelink0", "lo"] {
            let error = Tun::open(&TunConfig::new(name, MTU)).unwrap_err();
            assert!(matches!(&error, TunError::NameInUse(n) if n == name), "{error}");
        }
        assert_eq!(Netlink::open().unwrap().index("edgelink0").await.unwrap(), first.index());
    });
}

#[test]
fn without_the_capability_the_message_names_it() {
    inside("without_the_capability_the_message_names_it", || async {
        let tun = Tun::open(&TunConfig::new("edgelink1", MTU)).unwrap();
        let refused = std::thread::spawn(move || {
            privileges::drop_all().unwrap();
            assert!(!privileges::has_net_admin());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let tun_error = Tun::open(&TunConfig::new("edgelink0", MTU)).unwrap_err();
                let netlink = Netlink::open().unwrap();
                let net_error = netlink.configure_tun(&tun, &[]).await.unwrap_err();
                (tun_error.to_string(), net_error.to_string())
            })
        });
        let (tun_error, net_error) = refused.join().unwrap();
        assert!(tun_error.contains("CAP_NET_ADMIN"), "{tun_error}");
        assert!(net_error.contains("CAP_NET_ADMIN"), "{net_error}");
        std::thread::spawn(|| {
            privileges::drop_to_net_admin().unwrap();
            assert!(privileges::has_net_admin());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let netlink = Netlink::open().unwrap();
                let tun = tun_with(&netlink, true, &[net("10.9.0.1/24")]).await;
                netlink.set_routes(tun.index(), &[Route::new(net("10.10.0.0/16"))]).await.unwrap();
            });
        })
        .join()
        .expect("CAP_NET_ADMIN alone is enough");
    });
}

#[test]
fn without_the_device_node_the_message_tells() {
    inside("without_the_device_node_the_message_tells", || async {
        use nix::mount::{MsFlags, mount};
        mount(Some("none"), "/dev/net", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        match Tun::open(&TunConfig::new("edgelink0", MTU)) {
            Err(error) => {
                assert!(matches!(error, TunError::NoDevice(_)), "{error}");
                assert!(error.to_string().contains("modprobe tun"));
            }
            // Real root outside a user namespace: the node was made again.
            Ok(_) => assert!(std::path::Path::new("/dev/net/tun").exists()),
        }
    });
}

#[test]
fn addresses_are_made_exact() {
    inside("addresses_are_made_exact", || async {
        let netlink = Netlink::open().unwrap();
        // Primary, a secondary of the same network, and one to go.
        let tun = tun_with(&netlink, true, &[net("10.9.0.1/24"), net("10.9.0.2/24"), net("fd00:9::1/64")]).await;
        let steps: [&[IpNet]; 4] = [
            &[net("10.9.0.2/24"), net("fd00:9::2/64")],
            &[net("10.9.0.2/16"), net("fd00:9::2/64")],
            &[],
            &[net("10.9.0.7/32"), net("fd00:9::7/128")],
        ];
        for wanted in steps {
            netlink.set_addresses(tun.index(), wanted).await.unwrap();
            assert_eq!(netlink.addresses(tun.index()).await.unwrap(), wanted);
        }
        let error = netlink.set_addresses(9999, &[net("10.0.0.1/8")]).await.unwrap_err();
        assert!(error.to_string().contains("cannot add address 10.0.0.1/8"), "{error}");
        let flags = link("edgelink0").await;
        assert!(
            flags.attributes.iter().any(|a| format!("{a:?}").contains("AddrGenMode(None)")),
            "no link-local address"
        );
    });
}

#[test]
fn routes_are_made_exact_and_others_left_alone() {
    inside("routes_are_made_exact_and_others_left_alone", || async {
        let netlink = Netlink::open().unwrap();
        let tun = tun_with(&netlink, true, &[net("10.9.0.1/24"), net("fd00:9::1/64")]).await;
        let index = tun.index();
        ip("route add 10.66.0.0/16 dev edgelink0 proto static");
        let foreign = ip("-4 route show") + &ip("-6 route show");
        let steps: [&[&str]; 4] = [
            &["10.20.0.0/16", "192.0.2.7/32", "fd00:20::/64"],
            &["10.20.0.0/16", "10.20.1.0/24", "fd00:21::/64"],
            &["0.0.0.0/0", "::/0"],
            &[],
        ];
        for step in steps {
            let wanted: Vec<Route> = step.iter().map(|text| Route::new(net(text))).collect();
            netlink.set_routes(index, &wanted).await.unwrap();
            assert_eq!(netlink.routes(index).await.unwrap(), wanted);
            assert_eq!(count_own(&ip("-4 route show")) + count_own(&ip("-6 route show")), wanted.len());
        }
        assert_eq!(ip("-4 route show") + &ip("-6 route show"), foreign);
        // Host bits are no second route, and twice the same is no error.
        let sloppy = Route { destination: net("10.20.3.4/16"), metric: 50 };
        netlink.set_routes(index, &[sloppy, Route::new(net("10.20.0.0/16"))]).await.unwrap();
        assert_eq!(netlink.routes(index).await.unwrap(), [Route::new(net("10.20.0.0/16"))]);
        netlink.add_route(index, Route::new(net("10.20.0.0/16"))).await.unwrap();
        netlink.delete_route(index, Route::new(net("10.20.0.0/16"))).await.unwrap();
        netlink.delete_route(index, Route::new(net("10.20.0.0/16"))).await.unwrap();
        // A foreign route of the same destination and metric is a clash, and stays.
        ip("link set lo up");
        ip("route add 10.30.0.0/16 dev lo metric 50 proto static");
        let error = netlink.add_route(index, Route::new(net("10.30.0.0/16"))).await.unwrap_err();
        assert_eq!(error.errno(), Some(libc::EEXIST), "{error}");
        assert!(ip("route show 10.30.0.0/16").contains("dev lo proto static"));
    });
}

#[test]
fn a_killed_process_leaves_nothing_that_is_not_removed() {
    if std::env::var_os("EDGELINK_TEST_VICTIM").is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(async {
            let netlink = Netlink::open().unwrap();
            let tun = tun_with(&netlink, true, &[net("10.9.0.1/24")]).await;
            netlink.set_routes(tun.index(), &[Route::new(net("10.20.0.0/16"))]).await.unwrap();
            println!("victim ready");
            std::future::pending::<()>().await;
        });
    }
    inside("a_killed_process_leaves_nothing_that_is_not_removed", || async {
        let netlink = Netlink::open().unwrap();
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["a_killed_process_leaves_nothing_that_is_not_removed", "--exact", "--nocapture"])
            .env("EDGELINK_TEST_VICTIM", "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(victim.stdout.take().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line.contains("victim ready")));
        // Beside the living one's: a route of ours that leads nowhere any more, and one that is not ours.
        ip("link set lo up");
        ip(&format!("route add 10.40.0.0/16 dev lo proto {ROUTE_PROTOCOL}"));
        ip(&format!("route add blackhole fd00:40::/64 proto {ROUTE_PROTOCOL}"));
        ip("route add 10.50.0.0/16 dev lo proto static");
        assert_eq!(netlink.remove_leftovers().await.unwrap(), 2);
        assert!(ip("route show").contains("10.20.0.0/16 dev edgelink0"), "a living process keeps its routes");
        victim.kill().unwrap();
        victim.wait().unwrap();
        assert!(matches!(netlink.index("edgelink0").await, Err(NetError::NoInterface(_))));
        assert_eq!(count_own(&ip("-4 route show")) + count_own(&ip("-6 route show")), 0);
        assert!(ip("route show").contains("10.50.0.0/16 dev lo"));
        assert_eq!(netlink.remove_leftovers().await.unwrap(), 0);
    });
}

#[test]
fn the_default_route_names_the_address() {
    inside("the_default_route_names_the_address", || async {
        let netlink = Netlink::open().unwrap();
        assert_eq!(netlink.default_route_address().await.unwrap(), None);
        assert_eq!(netlink.connected_networks(None).await.unwrap(), []);
        let tun = tun_with(&netlink, true, &[net("10.9.0.1/24"), net("fd00:9::1/64")]).await;
        assert_eq!(netlink.connected_networks(Some(tun.index())).await.unwrap(), []);
        assert_eq!(netlink.connected_networks(None).await.unwrap(), [net("10.9.0.0/24"), net("fd00:9::/64")]);
        ip("-6 route add default dev edgelink0");
        let v6: IpAddr = Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 1).into();
        assert_eq!(netlink.default_route_address().await.unwrap(), Some(v6));
        ip("route add default dev edgelink0 metric 10");
        assert_eq!(netlink.default_route_address().await.unwrap(), Some(Ipv4Addr::new(10, 9, 0, 1).into()));
        ip("address add 10.8.0.1/24 dev lo");
        ip("link set lo up");
        ip("route add default dev lo src 10.8.0.1 metric 5");
        assert_eq!(netlink.default_route_address().await.unwrap(), Some(Ipv4Addr::new(10, 8, 0, 1).into()));
    });
}

#[test]
fn the_first_packet_read_is_the_first_one_sent() {
    inside("the_first_packet_read_is_the_first_one_sent", || async {
        let netlink = Netlink::open().unwrap();
        for offload in [true, false] {
            let tun = tun_with(&netlink, offload, &[net("10.9.0.1/24"), net("fd00:9::1/64")]).await;
            let mut buf = vec![0xaa; READ_BUFFER_LEN];
            assert_eq!(tun.try_read(&mut buf).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            for (from, to) in [("10.9.0.1:0", "10.9.0.2:7"), ("[fd00:9::1]:0", "[fd00:9::2]:7")] {
                let socket = UdpSocket::bind(from).unwrap();
                socket.send_to(b"marker", to).unwrap();
                let len = read(&tun, &mut buf).await;
                assert!(buf[..len].ends_with(b"marker"), "no router solicitation, MLD or DAD came first");
                let to: SocketAddr = to.parse().unwrap();
                assert_eq!(buf[VIRTIO_HEADER_LEN] >> 4, if to.is_ipv4() { 4 } else { 6 });
                let overhead = VIRTIO_HEADER_LEN + if to.is_ipv4() { 28 } else { 48 };
                assert_eq!(len, overhead + 6);
                // Offloads leave the checksum to us; a plain device has it done and a zero header.
                assert_eq!(buf[0], u8::from(offload));
                assert!(buf[1..6].iter().all(|b| *b == 0), "no segmentation for UDP");
            }
            assert_eq!(tun.try_read(&mut [0; VIRTIO_HEADER_LEN]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
            assert_eq!(tun.try_write(&[0; VIRTIO_HEADER_LEN]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    });
}

#[test]
fn tcp_passes_in_super_packets_with_offloads() {
    inside("tcp_passes_in_super_packets_with_offloads", || reflect_tcp(true));
}

#[test]
fn tcp_passes_in_mtu_sized_packets_without() {
    inside("tcp_passes_in_mtu_sized_packets_without", || reflect_tcp(false));
}

/// A program that hands the kernel many datagrams by one call is read by one call; where the kernel does not know that, or
/// does not want to, one by one.
#[test]
fn datagrams_sent_by_one_call_are_read_by_one() {
    inside("datagrams_sent_by_one_call_are_read_by_one", || async {
        let netlink = Netlink::open().unwrap();
        let addresses = [net("10.9.0.1/24"), net("fd00:9::1/64")];
        let tun = tun_with(&netlink, true, &addresses).await;
        let whole = tun.udp_offload();
        if !whole {
            eprintln!("NOT TESTED: this kernel has no USO");
        }
        check_datagrams(&tun, whole).await;
        drop(tun);
        let tun = Tun::open(&TunConfig { udp_offload: false, ..TunConfig::new("edgelink0", MTU) }).unwrap();
        netlink.configure_tun(&tun, &addresses).await.unwrap();
        assert!(tun.offload() && !tun.udp_offload());
        check_datagrams(&tun, false).await;
    });
}

#[test]
fn a_kernel_without_udp_super_packets_still_has_tcps() {
    inside("a_kernel_without_udp_super_packets_still_has_tcps", || async {
        seccomp::refuse_offloads(libc::TUN_F_USO4 | libc::TUN_F_USO6).unwrap();
        let netlink = Netlink::open().unwrap();
        let tun = tun_with(&netlink, true, &[net("10.9.0.1/24"), net("fd00:9::1/64")]).await;
        assert!(tun.offload() && !tun.udp_offload());
        check_datagrams(&tun, false).await;
        drop(tun);
        reflect_tcp(true).await;
    });
}

#[test]
fn a_kernel_without_offloads_gives_a_plain_device() {
    inside("a_kernel_without_offloads_gives_a_plain_device", || async {
        seccomp::refuse_offloads(!0).unwrap();
        let netlink = Netlink::open().unwrap();
        let tun = tun_with(&netlink, true, &[net("10.9.0.1/24"), net("fd00:9::1/64")]).await;
        assert!(!tun.offload() && !tun.udp_offload());
        assert_eq!(tun.gso_max_size(), MTU);
        check_datagrams(&tun, false).await;
    });
}

#[test]
fn a_plain_device_refuses_what_it_cannot_do() {
    inside("a_plain_device_refuses_what_it_cannot_do", || async {
        let netlink = Netlink::open().unwrap();
        let tun = tun_with(&netlink, false, &[net("10.9.0.1/24")]).await;
        let mut packet = vec![0; VIRTIO_HEADER_LEN + 20];
        packet[VIRTIO_HEADER_LEN] = 0x45;
        assert_eq!(tun.try_write(&packet).unwrap(), packet.len());
        for (at, value) in [(0, 1), (1, 1), (1, 4)] {
            let mut asking = packet.clone();
            asking[at] = value;
            assert_eq!(tun.try_write(&asking).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    });
}

#[test]
fn a_deleted_interface_ends_the_reader() {
    inside("a_deleted_interface_ends_the_reader", || async {
        let netlink = Netlink::open().unwrap();
        let tun = tun_with(&netlink, true, &[net("10.9.0.1/24")]).await;
        ip("link del edgelink0");
        tun.readable().await.unwrap();
        let error = tun.try_read(&mut vec![0; READ_BUFFER_LEN]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADFD));
    });
}

/// Sends what leaves the TUN back into it with source and destination exchanged (which leaves every checksum right),
/// so that the kernel talks TCP to itself through the device.
async fn reflect_tcp(offload: bool) {
    const AMOUNT: usize = 4 << 20;
    let netlink = Netlink::open().unwrap();
    let tun = tun_with(&netlink, offload, &[net("10.9.0.1/24"), net("fd00:9::1/64")]).await;
    for (here, there) in [("10.9.0.1", "10.9.0.2"), ("fd00:9::1", "fd00:9::2")] {
        let listener = TcpListener::bind((here, 0)).unwrap();
        let target = SocketAddr::new(there.parse().unwrap(), listener.local_addr().unwrap().port());
        let sent: Vec<u8> = (0..AMOUNT).map(|i| ((i * 31) >> 3) as u8).collect();
        let expected = sent.clone();
        let sender = std::thread::spawn(move || TcpStream::connect(target).unwrap().write_all(&sent).unwrap());
        let mut receiver = tokio::task::spawn_blocking(move || {
            let mut received = Vec::with_capacity(AMOUNT);
            listener.accept().unwrap().0.read_to_end(&mut received).unwrap();
            received
        });
        let mut buf = vec![0; READ_BUFFER_LEN];
        let mut largest = 0;
        let received = loop {
            tokio::select! {
                received = &mut receiver => break received.unwrap(),
                readable = tun.readable() => readable.unwrap(),
            }
            while let Ok(len) = tun.try_read(&mut buf) {
                largest = largest.max(len - VIRTIO_HEADER_LEN);
                exchange_addresses(&mut buf[VIRTIO_HEADER_LEN..len]);
                assert_eq!(tun.try_write(&buf[..len]).unwrap(), len);
            }
        };
        sender.join().unwrap();
        assert!(received == expected, "every byte arrived once and in order");
        if offload {
            assert!(largest > 4 * MTU as usize, "super-packets were seen (largest: {largest})");
            assert!(largest <= GSO_MAX_SIZE as usize, "none beyond the limit (largest: {largest})");
        } else {
            assert_eq!(largest, MTU as usize);
        }
    }
}

/// 40 datagrams of 1,000 bytes and one of 10 by one call: read as one super-packet, or one by one.
async fn check_datagrams(tun: &Tun, whole: bool) {
    const SIZE: u16 = 1_000;
    let payload: Vec<u8> = (0..40 * u32::from(SIZE) + 10).map(|n| (n / 7) as u8).collect();
    for (from, to, head) in [("10.9.0.1:0", "10.9.0.2:7", 28), ("[fd00:9::1]:0", "[fd00:9::2]:7", 48)] {
        let socket = UdpSocket::bind(from).unwrap();
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::UdpGsoSegment, &i32::from(SIZE)).unwrap();
        assert_eq!(socket.send_to(&payload, to).unwrap(), payload.len());
        let mut buf = vec![0; READ_BUFFER_LEN];
        let (mut seen, mut reads) = (Vec::new(), 0);
        while seen.len() < payload.len() {
            let len = read(tun, &mut buf).await;
            reads += 1;
            assert_eq!(buf[1], if whole { 5 } else { 0 }, "the type of UDP super-packets, or none");
            assert_eq!(u16::from_le_bytes([buf[4], buf[5]]), if whole { SIZE } else { 0 });
            seen.extend_from_slice(&buf[VIRTIO_HEADER_LEN + head..len]);
        }
        assert!(seen == payload, "every byte, in order");
        assert_eq!(reads, if whole { 1 } else { 41 });
    }
}

fn exchange_addresses(packet: &mut [u8]) {
    let (start, len) = if packet[0] >> 4 == 4 { (12, 4) } else { (8, 16) };
    let (source, destination) = packet[start..start + 2 * len].split_at_mut(len);
    source.swap_with_slice(destination);
}

async fn read(tun: &Tun, buf: &mut [u8]) -> usize {
    loop {
        tun.readable().await.unwrap();
        match tun.try_read(buf) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            other => return other.unwrap(),
        }
    }
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn count_own(routes: &str) -> usize {
    routes.lines().filter(|line| line.contains(&format!("proto {ROUTE_PROTOCOL}"))).count()
}
