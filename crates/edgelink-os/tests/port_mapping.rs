//! Port mappings from routers that answer well, badly, absurdly or not at all. Each router is a fake on a loopback address of
//! its own; the end-to-end tests ask a real `miniupnpd`.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use edgelink_os::port_mapping::{MapError, Mapping, Protocol, Router, map};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::num::NonZeroU16;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const PORT: NonZeroU16 = NonZeroU16::new(40_001).unwrap();
/// What a router answers to a request.
type Reply = fn(&[u8]) -> Vec<u8>;

const OUTSIDE: [u8; 4] = [203, 0, 113, 7];

fn router(last: u8) -> Router {
    Router { address: Ipv4Addr::new(127, 77, 0, last), local: Ipv4Addr::LOCALHOST }
}

/// Answers at port 5351 until the test ends; what it was asked.
fn answer(router: Router, reply: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + 'static) -> Arc<Mutex<Vec<Vec<u8>>>> {
    let socket = UdpSocket::bind((router.address, 5351)).unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    std::thread::spawn(move || {
        let mut buffer = [0; 1_500];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            log.lock().unwrap().push(buffer[..len].to_vec());
            if let Some(bytes) = reply(&buffer[..len]) {
                socket.send_to(&bytes, from).unwrap();
            }
        }
    });
    asked
}

/// A MAP response (RFC 6887, 11.1) to a request.
fn pcp(request: &[u8], result: u8, lifetime: u32, port: u16, address: [u8; 4]) -> Vec<u8> {
    assert_eq!((request[0], request[1], request.len()), (2, 1, 60));
    let mut out = vec![2, 0x81, 0, result];
    out.extend(lifetime.to_be_bytes());
    out.extend([0, 0, 0, 9]);
    out.extend([0; 12]);
    out.extend(&request[24..42]);
    out.extend(port.to_be_bytes());
    out.extend([0; 10]);
    out.extend([0xff, 0xff]);
    out.extend(address);
    out
}

/// A NAT-PMP router (RFC 6886), which knows no PCP.
fn nat_pmp(request: &[u8], lifetime: u32, port: u16, address: [u8; 4]) -> Option<Vec<u8>> {
    Some(match request {
        [2, ..] => vec![0, 0x81, 0, 1, 0, 0, 0, 9],
        [0, 0] => [[0, 0x80, 0, 0], [0, 0, 0, 9], address].concat(),
        [0, 1, ..] if request[8..12] == [0; 4] => [&[0, 0x81, 0, 0, 0, 0, 0, 9], &request[4..6], &[0; 6]].concat(),
        [0, 1, ..] => {
            [&[0, 0x81, 0, 0, 0, 0, 0, 9], &request[4..6], &port.to_be_bytes(), &lifetime.to_be_bytes()].concat()
        }
        _ => return None,
    })
}

fn block<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), future).await.expect("in time") })
}

fn obtained(router: Router) -> Result<Mapping, MapError> {
    block(map(router, PORT))
}

#[test]
fn pcp_maps_renews_and_removes() {
    let router = router(1);
    let asked = answer(router, |request| {
        let lifetime = u32::from_be_bytes(request[4..8].try_into().unwrap());
        Some(pcp(request, 0, lifetime.min(600), if lifetime == 0 { 0 } else { 40_002 }, OUTSIDE))
    });
    block(async {
        let mapping = map(router, PORT).await.unwrap();
        assert_eq!((mapping.protocol(), mapping.external().to_string().as_str()), (Protocol::Pcp, "203.0.113.7:40002"));
        assert_eq!((mapping.port(), mapping.router(), mapping.renew_after()), (PORT, router, Duration::from_secs(300)));
        let mapping = mapping.renew().await.unwrap();
        assert_eq!(mapping.external().port(), 40_002);
        mapping.remove().await;
    });
    let asked = asked.lock().unwrap();
    let lifetimes: Vec<u32> = asked.iter().map(|r| u32::from_be_bytes(r[4..8].try_into().unwrap())).collect();
    assert_eq!(lifetimes, [3_600, 600, 0]);
    // The same client, nonce, protocol and port each time: the router knows the mapping by them.
    assert!(asked.iter().all(|request| request[8..42] == asked[0][8..42]));
    assert_eq!(asked[0][8..24], Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets());
}

#[test]
fn nat_pmp_maps_renews_and_removes() {
    let router = router(2);
    let asked = answer(router, |request| nat_pmp(request, 60, 40_003, OUTSIDE));
    block(async {
        let mapping = map(router, PORT).await.unwrap();
        assert_eq!(mapping.protocol(), Protocol::NatPmp);
        assert_eq!(mapping.external().to_string(), "203.0.113.7:40003");
        assert_eq!(mapping.renew_after(), Duration::from_secs(30));
        let mapping = mapping.renew().await.unwrap();
        mapping.remove().await;
    });
    let asked = asked.lock().unwrap();
    let last = asked.last().unwrap();
    assert_eq!((&last[..2], &last[8..12]), (&[0, 1][..], &[0; 4][..]), "a mapping ends with lifetime 0");
}

#[test]
fn absurd_answers_give_no_endpoint() {
    // By PCP and NAT-PMP alike: port 0, a lease of nothing, addresses that are none on the Internet.
    let cases: [(u8, u16, u32, [u8; 4], &str); 7] = [
        (10, 0, 600, OUTSIDE, "port of"),
        (11, 40_002, 0, OUTSIDE, "lease of 0 s"),
        (12, 40_002, 600, [192, 168, 1, 1], "192.168.1.1 is not public"),
        (13, 40_002, 600, [100, 64, 0, 1], "100.64.0.1 is not public"),
        (14, 40_002, 600, [127, 0, 0, 1], "127.0.0.1 is not public"),
        (15, 40_002, 600, [224, 0, 0, 1], "224.0.0.1 is not public"),
        (16, 40_002, 600, [0, 0, 0, 0], "0.0.0.0 is not public"),
    ];
    // Each waits for what the router does not speak: all at once.
    std::thread::scope(|scope| {
        for (last, port, lifetime, address, expected) in cases {
            scope.spawn(move || {
                let router = router(last);
                answer(router, move |request| (request[0] == 2).then(|| pcp(request, 0, lifetime, port, address)));
                let error = obtained(router).unwrap_err().to_string();
                assert!(error.contains(expected), "PCP {last}: {error}");
            });
            scope.spawn(move || {
                let router = router(last + 50);
                answer(router, move |request| nat_pmp(request, lifetime, port, address));
                let error = obtained(router).unwrap_err().to_string();
                assert!(error.contains(expected), "NAT-PMP {last}: {error}");
            });
        }
    });
}

#[test]
fn foreign_short_and_garbled_answers_are_refused() {
    let answers: [Reply; 7] = [
        |_| Vec::new(),
        |_| vec![2],
        |_| vec![0xff; 1_100],
        |request| pcp(request, 0, 600, 40_002, OUTSIDE)[..40].to_vec(),
        |request| {
            let mut answer = pcp(request, 0, 600, 40_002, OUTSIDE);
            answer[24] ^= 1;
            answer
        },
        |request| pcp(request, 2, 600, 40_002, OUTSIDE),
        |request| pcp(request, 99, 600, 40_002, OUTSIDE),
    ];
    let asked: Vec<_> = (30..).zip(answers).collect();
    let errors: Vec<String> = std::thread::scope(|scope| {
        let ask = |(last, reply): (u8, Reply)| {
            scope.spawn(move || {
                let router = router(last);
                answer(router, move |request| (request[0] == 2).then(|| reply(request)));
                obtained(router).unwrap_err().to_string()
            })
        };
        let asking: Vec<_> = asked.into_iter().map(ask).collect();
        asking.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(errors[4].contains("nonce") && errors[5].contains("Not authorized"), "{errors:?}");
}

#[test]
fn a_router_that_speaks_nothing_is_said_to_be_silent() {
    // Refused at once on a closed port; in time from one that swallows everything.
    assert!(matches!(obtained(router(40)), Err(MapError::Silent)));
    let asked = answer(router(41), |_| None);
    assert!(matches!(obtained(router(41)), Err(MapError::Silent)));
    let asked = asked.lock().unwrap();
    assert_eq!(asked.iter().filter(|request| request[0] == 2).count(), 3);
    assert_eq!(asked.iter().filter(|request| request[0] == 0).count(), 3);
}

/// A UPnP router at these addresses: SSDP answers with a location, HTTP with a description and what `soap` says.
fn upnp(router: Router, location: SocketAddr, soap: impl Fn(&str, &str) -> String + Send + 'static) {
    let ssdp = UdpSocket::bind((router.address, 1900)).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 1_500];
        while let Ok((_, from)) = ssdp.recv_from(&mut buffer) {
            let answer = format!(
                "HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\nLOCATION: http://{location}/desc.xml\r\n\r\n"
            );
            ssdp.send_to(answer.as_bytes(), from).unwrap();
        }
    });
    let listener = TcpListener::bind(location).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            serve(stream.unwrap(), &soap);
        }
    });
}

fn serve(stream: TcpStream, soap: &impl Fn(&str, &str) -> String) {
    let mut reader = BufReader::new(stream);
    let (mut first, mut action, mut length) = (String::new(), String::new(), 0);
    reader.read_line(&mut first).unwrap();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let Some((key, value)) = line.trim().split_once(": ") else { break };
        match key.to_ascii_lowercase().as_str() {
            "soapaction" => action = value.trim_matches('"').rsplit('#').next().unwrap_or_default().to_owned(),
            "content-length" => length = value.parse().unwrap(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let action_of = |name: &str, arguments: &[&str]| {
        let argument = |name: &&str| format!("<argument><name>{name}</name><direction>in</direction></argument>");
        let arguments: String = arguments.iter().map(argument).collect();
        format!("<action><name>{name}</name><argumentList>{arguments}</argumentList></action>")
    };
    let service = "urn:schemas-upnp-org:service:WANIPConnection:1";
    let answer = match first.split(' ').nth(1).unwrap_or_default() {
        "/desc.xml" => format!(
            "<root><device><deviceList><device><deviceList><device><serviceList><service><serviceType>{service}</serviceType>\
             <controlURL>/ctl</controlURL><SCPDURL>/scpd.xml</SCPDURL></service></serviceList></device></deviceList>\
             </device></deviceList></device></root>"
        ),
        "/scpd.xml" => {
            let add = [
                "NewRemoteHost",
                "NewExternalPort",
                "NewProtocol",
                "NewInternalPort",
                "NewInternalClient",
                "NewEnabled",
                "NewPortMappingDescription",
                "NewLeaseDuration",
            ];
            format!(
                "<scpd><actionList>{}{}</actionList></scpd>",
                action_of("AddPortMapping", &add),
                action_of("DeletePortMapping", &add[..3])
            )
        }
        _ => {
            let inner = soap(&action, &String::from_utf8_lossy(&body));
            format!(
                "<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\"><s:Body>{inner}</s:Body></s:Envelope>"
            )
        }
    };
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", answer.len());
    let _ = reader.get_mut().write_all((head + &answer).as_bytes());
}

fn soap_answer(action: &str, inner: &str) -> String {
    format!(
        "<u:{action}Response xmlns:u=\"urn:schemas-upnp-org:service:WANIPConnection:1\">{inner}</u:{action}Response>"
    )
}

fn soap_fault(code: u16) -> String {
    format!(
        "<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail><UPnPError>\
         <errorCode>{code}</errorCode><errorDescription>no</errorDescription></UPnPError></detail></s:Fault>"
    )
}

#[test]
fn upnp_maps_renews_and_removes_and_takes_permanent_leases() {
    let router = router(60);
    let log = Arc::new(Mutex::new(Vec::new()));
    let asked = Arc::clone(&log);
    upnp(router, SocketAddr::new(router.address.into(), 5_431), move |action, body| {
        asked.lock().unwrap().push(action.to_owned());
        match action {
            "AddPortMapping" if !body.contains("<NewLeaseDuration>0<") => soap_fault(725),
            "GetExternalIPAddress" => soap_answer(action, "<NewExternalIPAddress>203.0.113.9</NewExternalIPAddress>"),
            _ => soap_answer(action, ""),
        }
    });
    block(async {
        let mapping = map(router, PORT).await.unwrap();
        assert_eq!(
            (mapping.protocol(), mapping.external().to_string().as_str()),
            (Protocol::Upnp, "203.0.113.9:40001")
        );
        assert_eq!(mapping.renew_after(), Duration::from_secs(600));
        mapping.renew().await.unwrap().remove().await;
    });
    let asked = log.lock().unwrap();
    let once = ["AddPortMapping", "AddPortMapping", "GetExternalIPAddress"];
    assert_eq!(*asked, [&once[..], &once[..], &["DeletePortMapping"]].concat());
}

#[test]
fn upnp_that_lies_gives_no_endpoint() {
    let private = router(61);
    upnp(private, SocketAddr::new(private.address.into(), 5_432), |action, _| match action {
        "GetExternalIPAddress" => soap_answer(action, "<NewExternalIPAddress>10.0.0.1</NewExternalIPAddress>"),
        _ => soap_answer(action, ""),
    });
    let error = obtained(private).unwrap_err();
    assert!(matches!(error, MapError::NotPublic(address) if address == Ipv4Addr::new(10, 0, 0, 1)), "{error}");

    let garbled = router(62);
    upnp(garbled, SocketAddr::new(garbled.address.into(), 5_433), |_, _| format!("\u{1b}[31m{}", "x".repeat(100_000)));
    let error = obtained(garbled).unwrap_err();
    assert!(matches!(error, MapError::Refused { protocol: Protocol::Upnp, .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.len() < 250 && !text.contains('\u{1b}'), "{text}");

    // A location elsewhere is not followed: it could be any service in the network.
    let elsewhere = router(63);
    let third = Ipv4Addr::new(127, 77, 1, 63);
    let visited = Arc::new(Mutex::new(0));
    let count = Arc::clone(&visited);
    upnp(elsewhere, SocketAddr::new(third.into(), 5_434), move |action, _| {
        *count.lock().unwrap() += 1;
        soap_answer(action, "<NewExternalIPAddress>203.0.113.9</NewExternalIPAddress>")
    });
    let error = obtained(elsewhere).unwrap_err();
    assert!(matches!(error, MapError::Silent), "{error:?}");
    assert_eq!(*visited.lock().unwrap(), 0);
}
