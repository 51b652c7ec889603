//! Every step between a URL and an open WebSocket, and what goes wrong there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::{cell::RefCell, io, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use common::*;
use edgelink_net::{
    tcp,
    ws::{self, AddressFilter, Dial, DialError, Incoming, Origins},
};
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::spawn_local,
};

/// Answers one request with fixed bytes and closes; gives back what it was asked.
async fn answering(answer: &'static str) -> (SocketAddr, Rc<RefCell<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Rc::new(RefCell::new(String::new()));
    let heard = Rc::clone(&asked);
    spawn_local(async move {
        let mut stream = BufReader::new(listener.accept().await.unwrap().0);
        *heard.borrow_mut() = head(&mut stream).await;
        stream.write_all(answer.as_bytes()).await.unwrap();
    });
    (address, asked)
}

async fn head(stream: &mut BufReader<TcpStream>) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(stream.read_line(&mut head).await.unwrap(), 0);
    }
    head
}

async fn closed_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

async fn error_of(dial: &Dial) -> DialError {
    ws::dial(dial).await.expect_err("must not connect")
}

#[test]
fn urls_are_checked_before_anything_is_dialled() {
    run(async {
        let dial = |url: &str| Dial::new(url, any_client());
        assert!(matches!(error_of(&dial("ws://localhost/")).await, DialError::PlainRefused));
        for (url, word) in [
            ("https://localhost/", "wss://"),
            ("localhost:443", "wss://"),
            ("wss:///x", "URL"),
            ("wss://user@localhost/", "user name"),
            ("wss://user:secret@localhost/", "user name"),
            ("wss://localhost:99999/", "URL"),
            ("wss://localhost:0/", "65535"),
            ("wss://a b/", "URL"),
            ("wss://under..score/", "DNS name"),
        ] {
            let error = error_of(&dial(url)).await;
            assert!(matches!(error, DialError::Url { .. }), "{url}: {error:?}");
            assert!(error.to_string().contains(word), "{url}: {error}");
            assert!(!error.to_string().contains("secret"));
        }
    });
}

#[test]
fn no_server_is_told_from_no_name() {
    run(async {
        let address = closed_port().await;
        let error = error_of(&plain(address)).await;
        assert!(matches!(error, DialError::Connect { .. }), "{error:?}");
        assert!(error.to_string().contains("refused the connection; is the server running"), "{error}");

        // No resolver sends a label of 64 bytes to the network.
        let url = format!("ws://{}.example/", "a".repeat(64));
        let error = error_of(&Dial { allow_plain: true, ..Dial::new(url, any_client()) }).await;
        assert!(matches!(error, DialError::Resolve { .. }), "{error:?}");
        assert!(error.to_string().contains("DNS"), "{error}");
    });
}

#[test]
fn a_silent_server_runs_into_the_timeout() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let after = Duration::from_millis(100);
        let address = listener.local_addr().unwrap();
        let error = error_of(&Dial { connect_timeout: after, ..plain(address) }).await;
        assert_eq!(error.to_string(), format!("{address}: no answer within 0.1 s while the WebSocket upgrade"));
        let error = error_of(&Dial { connect_timeout: after, ..wss(address, "localhost", any_client()) }).await;
        assert!(matches!(error, DialError::Timeout { step: "the TLS handshake", .. }), "{error:?}");
    });
}

#[test]
fn dead_ipv6_does_not_hide_living_ipv4() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let alive = listener.local_addr().unwrap();
        let dead = SocketAddr::new("::1".parse().unwrap(), alive.port());
        let stream = tcp::connect(&[dead, alive]).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), alive);
        assert!(stream.nodelay().unwrap());

        drop(listener);
        let errors = tcp::connect(&[dead, alive]).await.unwrap_err();
        assert_eq!(errors.0.iter().map(|(address, _)| *address).collect::<Vec<_>>(), [dead, alive]);
        assert!(errors.0.iter().any(|(_, error)| error.kind() == io::ErrorKind::ConnectionRefused));
    });
}

#[test]
fn addresses_can_be_refused() {
    run(async {
        let address = serve(None, echo);
        let mut dial = plain(address);
        dial.address_filter = Some(Arc::new(|ip| !ip.is_loopback()));
        let error = error_of(&dial).await;
        assert!(matches!(&error, DialError::AddressRefused { address, .. } if address.is_loopback()), "{error:?}");
        dial.address_filter = Some(Arc::new(|ip| ip.is_loopback()));
        round_trip(&dial).await.unwrap();
    });
}

#[test]
fn the_request_is_plain_rfc_6455() {
    run(async {
        let (address, asked) = answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        let mut dial = plain(address);
        dial.url = format!("ws://{address}/ws/data?x=1");
        dial.headers.insert("x-token", HeaderValue::from_static("t"));
        dial.headers.insert("user-agent", HeaderValue::from_static("browser"));
        assert!(matches!(error_of(&dial).await, DialError::Http { status: http::StatusCode::OK, .. }));
        let asked = asked.borrow().clone();
        let key = asked.lines().find_map(|line| line.strip_prefix("sec-websocket-key: ")).unwrap();
        assert_eq!(key.len(), 24);
        let mut lines: Vec<_> = asked.replace(key, "KEY").lines().map(str::to_owned).collect();
        assert_eq!(lines.remove(0), "GET /ws/data?x=1 HTTP/1.1");
        lines.sort_unstable();
        assert_eq!(
            lines,
            [
                "",
                "connection: Upgrade",
                &format!("host: {address}"),
                "sec-websocket-key: KEY",
                "sec-websocket-protocol: wss-mesh.1",
                "sec-websocket-version: 13",
                "upgrade: websocket",
                "user-agent: browser",
                "x-token: t",
            ]
        );

        dial.headers.insert("sec-websocket-key", HeaderValue::from_static("x"));
        assert!(matches!(error_of(&dial).await, DialError::ReservedHeader { .. }));
    });
}

#[test]
fn many_headers_pass() {
    run(async {
        let address = serve(None, echo);
        let mut headers = HeaderMap::new();
        for n in 0..128 {
            let name: HeaderName = format!("x-cdn-{n}").parse().unwrap();
            headers.insert(name, HeaderValue::from_static("some words of a content delivery network"));
        }
        round_trip(&Dial { headers, ..plain(address) }).await.unwrap();
    });
}

#[test]
fn answers_other_than_101_are_explained() {
    run(async {
        for (answer, words) in [
            (
                "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
                "HTTP 503 Service Unavailable (the proxy or CDN",
            ),
            (
                "HTTP/1.1 521 \r\ncontent-type: text/html\r\n\r\n<html>",
                "HTTP 521 <unknown status code> (the proxy or CDN",
            ),
            ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", "wrong path"),
            (
                "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: 12\r\n\r\nno \x1b[31mred\nx",
                "HTTP 400 Bad Request: no [31mred (",
            ),
            (
                "HTTP/1.1 302 Found\r\nlocation: https://login.example/\r\ncontent-length: 0\r\n\r\n",
                "to https://login.example/; redirects are not followed",
            ),
            ("SSH-2.0-OpenSSH_9.6\r\n", "not HTTP"),
            ("", "broke off during the WebSocket upgrade"),
        ] {
            let (address, _) = answering(answer).await;
            let error = error_of(&plain(address)).await.to_string();
            assert!(error.contains(words), "{answer:?}: {error}");
        }
    });
}

#[test]
fn a_101_must_be_for_this_request() {
    run(async {
        const HEAD: &str = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n";
        for rest in
            ["\r\n", "sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nsec-websocket-protocol: wss-mesh.1\r\n\r\n"]
        {
            let (address, _) = answering(String::leak(format!("{HEAD}{rest}"))).await;
            let error = error_of(&plain(address)).await;
            assert!(matches!(error, DialError::NotWebSocket { .. }), "{error:?}");
        }
    });
}

#[test]
fn another_subprotocol_is_refused_by_the_server_and_by_the_client() {
    run(async {
        let address = serve(None, echo);
        let error = error_of(&Dial { subprotocol: "wss-mesh.2".into(), ..plain(address) }).await.to_string();
        assert!(error.contains("HTTP 400 Bad Request: Sec-WebSocket-Protocol must offer wss-mesh.1"), "{error}");

        // A server that accepts anything and chooses nothing, or something else.
        for (chosen, words) in [(None, "it chose nothing"), (Some("chat"), "it chose chat")] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            spawn_local(async move {
                let stream = listener.accept().await.unwrap().0;
                let mut builder = tokio_websockets::ServerBuilder::new();
                if let Some(chosen) = chosen {
                    let name = http::header::SEC_WEBSOCKET_PROTOCOL;
                    builder = builder.add_header(name, HeaderValue::from_static(chosen)).unwrap();
                }
                builder.accept(stream).await.unwrap();
            });
            let error = error_of(&plain(address)).await;
            assert!(matches!(error, DialError::Subprotocol { .. }), "{error:?}");
            assert!(error.to_string().contains(words), "{error}");
        }
    });
}

/// A CONNECT proxy for one connection: answers with `status` and, on 200, forwards to `server`.
async fn proxy(status: &'static str, server: SocketAddr) -> (SocketAddr, Rc<RefCell<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Rc::new(RefCell::new(String::new()));
    let heard = Rc::clone(&asked);
    spawn_local(async move {
        let mut client = BufReader::new(listener.accept().await.unwrap().0);
        *heard.borrow_mut() = head(&mut client).await;
        client.write_all(format!("HTTP/1.1 {status}\r\nvia: test\r\n\r\n").as_bytes()).await.unwrap();
        if status.starts_with("200") {
            let mut server = TcpStream::connect(server).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        }
    });
    (address, asked)
}

#[test]
fn through_a_proxy() {
    run(async {
        let ca = ca("ours", ALWAYS);
        let server = serve(Some(issue(&ca, &["hidden.example"], ALWAYS).server()), echo);
        let (address, asked) = proxy("200 Connection established", server).await;
        // Only the proxy knows this name.
        let mut dial = Dial::new("wss://hidden.example/ws/data", trusting(&ca));
        dial.proxy = Some(format!("http://Aladdin:open%20sesame@{address}"));
        let socket = round_trip(&dial).await.unwrap();
        assert_eq!(socket.peer_addr(), Some(address));
        assert_eq!(
            *asked.borrow(),
            format!(
                "CONNECT hidden.example:443 HTTP/1.1\r\nHost: hidden.example:443\r\nUser-Agent: EdgeLink/{}\r\n\
                 Proxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n\r\n",
                env!("CARGO_PKG_VERSION")
            )
        );
        assert!(!format!("{dial:?}").contains("sesame"));
    });
}

#[test]
fn a_proxys_refusals_are_explained() {
    run(async {
        let nowhere = closed_port().await;
        for (status, words) in [
            ("407 Proxy Authentication Required", "wants a user name and a password"),
            ("403 Forbidden", "refuses to connect to hidden.example:443: HTTP 403"),
            ("502 Bad Gateway", "HTTP 502"),
        ] {
            let (address, _) = proxy(status, nowhere).await;
            let mut dial = Dial::new("wss://hidden.example/", any_client());
            dial.proxy = Some(format!("http://user:secret@{address}"));
            let error = error_of(&dial).await.to_string();
            assert!(error.contains(words) && !error.contains("secret"), "{error}");
        }

        let mut dial = Dial::new("wss://hidden.example/", any_client());
        dial.proxy = Some(format!("http://{nowhere}"));
        let error = error_of(&dial).await;
        assert!(matches!(error, DialError::ProxyUnreachable { .. }), "{error:?}");
        dial.proxy = Some("socks5://127.0.0.1:1080".into());
        assert!(matches!(error_of(&dial).await, DialError::ProxyUrl { .. }));

        let (address, _) = answering("").await;
        dial.proxy = Some(address.to_string());
        let error = error_of(&dial).await;
        assert!(matches!(error, DialError::ProxyIo { .. }), "{error:?}");

        let (address, _) = answering("SSH-2.0-OpenSSH_9.6\r\n\r\n").await;
        dial.proxy = Some(address.to_string());
        let error = error_of(&dial).await;
        assert!(matches!(error, DialError::ProxyProtocol { .. }), "{error:?}");
    });
}

/// A proxy must get nothing of ours but the CONNECT.
#[test]
fn an_oversized_proxy_answer_ends() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        spawn_local(async move {
            let mut stream = BufReader::new(listener.accept().await.unwrap().0);
            head(&mut stream).await;
            while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            assert_eq!(rest, []);
        });
        let mut dial = Dial::new("wss://hidden.example/", any_client());
        dial.proxy = Some(address.to_string());
        assert!(matches!(error_of(&dial).await, DialError::ProxyProtocol { .. }));
    });
}

/// Answers every request as a controller that stands by does.
fn standby(active: &str) -> std::net::SocketAddr {
    let text = "4002: this controller stands by\n";
    raw(format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\nedgelink-active: {active}\r\ncontent-length: {}\r\n\r\n{text}",
        text.len()
    ))
}

/// Accepts, reads a little, answers this, closes.
fn raw(answer: String) -> std::net::SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    address
}

fn closed() -> std::net::SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn origin(address: std::net::SocketAddr) -> String {
    format!("ws://{address}")
}

#[test]
fn whichever_of_several_takes_the_websocket_is_the_one() {
    run(async {
        let serving = serve(None, echo);
        let how = Dial { connect_timeout: Duration::from_secs(20), ..plain(serving) };

        // The configured one is dead: the next that it was told of.
        let origins = Origins::new(origin(closed()), None);
        let error = origins.dial(&how, "/ws").await.err().unwrap();
        assert!(matches!(error, DialError::Connect { .. }), "{error}");
        origins.tell(&[origin(closed()), origin(serving)]);
        assert_eq!(origins.dial(&how, "/ws").await.unwrap().1, origin(serving));

        // It stands by and names the other; of what it names nothing but an origin is taken.
        let origins = Origins::new(origin(standby(&origin(serving))), None);
        let (mut ws, at) = origins.dial(&how, "/ws").await.unwrap();
        ws.send("ping".into()).await.unwrap();
        assert_eq!((ws.recv().await.unwrap(), at), (Some(Incoming::Binary("ping".into())), origin(serving)));
        for bad in ["/ws", "http://127.0.0.1", "ws://user@127.0.0.1:1"] {
            let error = Origins::new(origin(standby(bad)), None).dial(&how, "/ws").await.err().unwrap();
            assert!(error.to_string().contains("stands by"), "{error}");
        }
        // Two that point at each other end it.
        let (a, b) = (standby("ws://127.0.0.1:9"), closed());
        let origins = Origins::new(origin(standby(&origin(a))), None);
        origins.tell(&[origin(b)]);
        assert!(origins.dial(&how, "/ws").await.is_err());

        // It accepts and is silent: the next is dialled beside it.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let origins = Origins::new(origin(silent.local_addr().unwrap()), None);
        origins.tell(&[origin(serving)]);
        assert_eq!(origins.dial(&how, "/ws").await.unwrap().1, origin(serving));
        origins.remember(&origin(serving));
        drop(silent);

        // Addresses that were told are filtered; the configured one is not.
        let no: AddressFilter = Arc::new(|_| false);
        let origins = Origins::new(origin(closed()), Some(no.clone()));
        origins.tell(&[origin(serving)]);
        let error = origins.dial(&how, "/ws").await.err().unwrap();
        assert!(matches!(error, DialError::Connect { .. }), "{error}");
        assert!(Origins::new(origin(serving), Some(no)).dial(&how, "/ws").await.is_ok());
    });
}
