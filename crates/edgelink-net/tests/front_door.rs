//! The server's listener, TLS and HTTP.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    future::pending,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
};

use common::*;
use edgelink_net::server::{self, BindError, HANDSHAKE_TIMEOUT, Listener, TlsAcceptError, Unauthenticated};
use http::{Request, Response};
use hyper::{body::Incoming, service::service_fn};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::spawn_local,
    time::Instant,
};

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

async fn ask(stream: &mut TcpStream, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

#[test]
fn a_port_in_use_says_what_to_do() {
    run(async {
        let first = Listener::bind(loopback()).unwrap();
        let error = Listener::bind(first.local_addr()).unwrap_err();
        assert!(matches!(error, BindError::InUse { .. }), "{error:?}");
        let port = first.local_addr().port();
        assert!(error.to_string().contains(&format!("ss -ltnp 'sport = :{port}'")), "{error}");
        // TEST-NET-1: nobody's address.
        let error = Listener::bind("192.0.2.1:0".parse().unwrap()).unwrap_err();
        assert!(matches!(error, BindError::NotOurs { .. }), "{error:?}");
    });
}

#[test]
fn privileged_ports_say_what_to_do() {
    let error = BindError::Permission { address: "0.0.0.0:443".parse().unwrap() }.to_string();
    assert!(error.contains("CAP_NET_BIND_SERVICE") && error.contains("ip_unprivileged_port_start=443"), "{error}");
}

#[test]
fn the_dual_stack_listener_shows_ipv4_as_ipv4() {
    run(async {
        let Ok(listener) = Listener::bind("[::]:0".parse().unwrap()) else {
            return; // A machine without IPv6.
        };
        let client = TcpStream::connect(("127.0.0.1", listener.local_addr().port())).await.unwrap();
        let (stream, peer) = listener.accept().await;
        assert_eq!(peer, client.local_addr().unwrap());
        assert!(stream.nodelay().unwrap());
    });
}

#[test]
fn a_request_without_upgrade_is_told_so() {
    run(async {
        let address = serve(None, echo);
        let mut stream = TcpStream::connect(address).await.unwrap();
        let answer = ask(&mut stream, "GET /ws/data HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 426 Upgrade Required\r\n"), "{answer}");
        assert!(answer.contains("sec-websocket-version: 13") && answer.contains("a proxy on the way"), "{answer}");
    });
}

#[test]
fn headers_are_bounded() {
    run(async {
        let address = serve(None, echo);
        for (count, status) in [(250, "426"), (300, "431")] {
            let mut request = String::from("GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n");
            for n in 0..count {
                request.push_str(&format!("x-{n}: y\r\n"));
            }
            request.push_str("\r\n");
            let answer = ask(&mut TcpStream::connect(address).await.unwrap(), &request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{count}: {answer}");
        }
    });
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_loses_its_place_after_ten_seconds() {
    let identity = issue(&ca("ours", ALWAYS), &["localhost"], ALWAYS);
    let listener = TcpListener::bind(loopback()).await.unwrap();
    let _silent = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let stream = listener.accept().await.unwrap().0;
    let start = Instant::now();
    let error = server::tls_accept(stream, identity.server()).await.unwrap_err();
    assert!(matches!(error, TlsAcceptError::Timeout), "{error:?}");
    assert!(start.elapsed() >= HANDSHAKE_TIMEOUT && start.elapsed() < HANDSHAKE_TIMEOUT * 2);
}

#[test]
fn tls_garbage_ends_one_connection_only() {
    run(async {
        let ca = ca("ours", ALWAYS);
        let address = serve(Some(issue(&ca, &["localhost"], ALWAYS).server()), echo);
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        // An alert or a reset, but never an answer.
        let _ = stream.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP"));
        round_trip(&wss(address, "localhost", trusting(&ca))).await.unwrap();
    });
}

#[test]
fn unauthenticated_connections_are_limited_per_address() {
    run(async {
        let unauthenticated = Unauthenticated::new(2);
        let listener = Listener::bind(loopback()).unwrap();
        let address = listener.local_addr();
        let service = move |peer: server::Peer| {
            let entered = Rc::new(unauthenticated.enter(peer.remote.ip())?);
            Some(service_fn(move |_: Request<Incoming>| {
                let _held_by_the_service = &entered;
                async { Ok::<_, Infallible>(Response::new(String::from("hello"))) }
            }))
        };
        spawn_local(server::serve(listener, || None, service, pending()));
        let request = "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let mut held = Vec::new();
        for _ in 0..2 {
            held.push(TcpStream::connect(address).await.unwrap());
        }
        let mut third = TcpStream::connect(address).await.unwrap();
        let mut nothing = Vec::new();
        assert_eq!(third.read_to_end(&mut nothing).await.unwrap_or(0), 0, "closed without a word");
        // Those that were first are served, and their end makes room.
        for mut stream in held {
            assert!(ask(&mut stream, request).await.ends_with("hello"));
        }
        let mut fourth = TcpStream::connect(address).await.unwrap();
        assert!(ask(&mut fourth, request).await.ends_with("hello"));
    });
}

#[test]
fn a_new_certificate_needs_no_restart() {
    run(async {
        let ca = ca("ours", ALWAYS);
        let (old, new) = (issue(&ca, &["localhost"], ALWAYS), issue(&ca, &["localhost"], ALWAYS));
        let current = Rc::new(RefCell::new(old.server()));
        let listener = Listener::bind(loopback()).unwrap();
        let address = listener.local_addr();
        let tls = {
            let current = Rc::clone(&current);
            move || Some(Arc::clone(&current.borrow()))
        };
        let service =
            |_| Some(service_fn(|_: Request<Incoming>| async { Ok::<_, Infallible>(Response::new(String::new())) }));
        spawn_local(server::serve(listener, tls, service, pending()));
        let is_pinned = async |pin| {
            let error = edgelink_net::ws::dial(&wss(address, "localhost", pinned(pin))).await.unwrap_err();
            // The server speaks no WebSocket; getting as far as HTTP shows that the pin was right.
            matches!(error, edgelink_net::ws::DialError::Http { .. })
        };
        assert!(is_pinned(old.pin).await && !is_pinned(new.pin).await);
        *current.borrow_mut() = new.server();
        assert!(!is_pinned(old.pin).await && is_pinned(new.pin).await);
    });
}

#[test]
fn shutdown_lets_requests_end_and_closes_idle_connections() {
    run(async {
        let listener = Listener::bind(loopback()).unwrap();
        let address = listener.local_addr();
        let (stop, stopped) = oneshot::channel::<()>();
        let (arrived, arrives) = oneshot::channel();
        let (go, gone) = oneshot::channel::<()>();
        let parts = Rc::new(Cell::new(Some((arrived, gone))));
        let service = move |_| {
            let parts = Rc::clone(&parts);
            Some(service_fn(move |_: Request<Incoming>| {
                let parts = parts.take();
                async move {
                    if let Some((arrived, gone)) = parts {
                        arrived.send(()).unwrap();
                        gone.await.unwrap();
                    }
                    Ok::<_, Infallible>(Response::new(String::from("done")))
                }
            }))
        };
        let serving = spawn_local(server::serve(listener, || None, service, async { drop(stopped.await) }));
        let mut idle = TcpStream::connect(address).await.unwrap();
        let mut busy = TcpStream::connect(address).await.unwrap();
        let asking = spawn_local(async move { ask(&mut busy, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await });
        arrives.await.unwrap();
        stop.send(()).unwrap();
        let mut nothing = Vec::new();
        assert_eq!(idle.read_to_end(&mut nothing).await.unwrap_or(0), 0);
        go.send(()).unwrap();
        assert!(asking.await.unwrap().ends_with("done"), "the running request got its answer");
        serving.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
    });
}
