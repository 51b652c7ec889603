//! Messages over open WebSockets: limits, ownership, closing, and both directions at once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::{cell::Cell, future::poll_fn, rc::Rc, task::Poll, time::Duration};

use bytes::{Bytes, BytesMut};
use common::*;
use edgelink_net::{
    conn::Conn,
    ws::{self, CloseReason, Event, Incoming, MAX_MESSAGE, WebSocket, WsError},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::oneshot,
    task::spawn_local,
};

fn pattern(len: usize, seed: u8) -> Bytes {
    (0..len).map(|at| (at / 251 + at) as u8 ^ seed).collect::<Vec<_>>().into()
}

/// A server in memory and the raw bytes of its client's side.
fn raw_client(capacity: usize) -> (WebSocket, DuplexStream) {
    let (server, client) = duplex(capacity);
    (WebSocket::server(Conn::other(server), MAX_MESSAGE), client)
}

/// Both ends over TLS on the loopback interface.
async fn pair(max_message: usize) -> (WebSocket, WebSocket) {
    let ca = ca("ours", ALWAYS);
    let (give, take) = oneshot::channel();
    let give = Rc::new(Cell::new(Some(give)));
    let tls = issue(&ca, &["localhost"], ALWAYS).server();
    let address = serve_limited(Some(tls), max_message, move |socket| {
        let give = give.take().unwrap();
        async move { drop(give.send(socket)) }
    });
    let client = ws::dial(&wss(address, "localhost", trusting(&ca))).await.unwrap();
    (client, take.await.unwrap())
}

#[test]
fn every_length_round_trips_whole() {
    run(async {
        let ca = ca("ours", ALWAYS);
        let address = serve(Some(issue(&ca, &["localhost"], ALWAYS).server()), echo);
        let mut socket = ws::dial(&wss(address, "localhost", trusting(&ca))).await.unwrap();
        for len in [0, 1, 125, 126, 65_535, 65_536, 196_608, MAX_MESSAGE] {
            let message = pattern(len, 1);
            socket.send(message.clone()).await.unwrap();
            assert_eq!(socket.recv().await.unwrap(), Some(Incoming::Binary(message)), "{len}");
        }
        assert_eq!(socket.unsent(), 0);
    });
}

#[test]
fn a_message_is_one_frame() {
    run(async {
        let (server, mut raw) = duplex(2 * MAX_MESSAGE);
        let mut socket = WebSocket::server(Conn::other(server), MAX_MESSAGE);
        socket.send(pattern(MAX_MESSAGE, 2)).await.unwrap();
        let mut header = [0; 10];
        raw.read_exact(&mut header).await.unwrap();
        assert_eq!(header, [0x82, 127, 0, 0, 0, 0, 0, 0x10, 0, 0], "final, binary, unmasked, 1 MiB");
        let mut payload = vec![0; MAX_MESSAGE];
        raw.read_exact(&mut payload).await.unwrap();
        assert!(payload == pattern(MAX_MESSAGE, 2));
    });
}

/// What a data path needs: decrypting in place must not copy first, also while more is coming.
#[test]
fn long_messages_are_handed_out_unshared() {
    run(async {
        let (mut client, mut server) = pair(MAX_MESSAGE).await;
        let sent = pattern(192 * 1024, 3);
        for _ in 0..4 {
            client.feed(sent.clone()).unwrap();
        }
        let (flushed, received) = tokio::join!(client.flush(), async {
            let mut received = Vec::new();
            for _ in 0..4 {
                let Ok(Some(Incoming::Binary(message))) = server.recv().await else { panic!("no message") };
                let at = message.as_ptr();
                let message = message.try_into_mut().expect("the buffer is ours alone");
                assert_eq!(message.as_ptr(), at);
                received.push(message);
            }
            received
        });
        flushed.unwrap();
        assert!(received.iter().all(|message| message == &sent));
    });
}

#[test]
fn what_arrived_together_is_drained_without_waiting() {
    run(async {
        let (mut client, mut server) = pair(MAX_MESSAGE).await;
        for n in 0..100_u8 {
            client.feed(pattern(100, n)).unwrap();
        }
        client.flush().await.unwrap();
        let mut next = 0;
        let mut waits = 0;
        while next < 100 {
            let mut received = server.recv().await.unwrap();
            waits += 1;
            while let Some(Incoming::Binary(message)) = received {
                assert_eq!(message, pattern(100, next));
                next += 1;
                received = match server.try_recv() {
                    Poll::Ready(message) => message.unwrap(),
                    Poll::Pending => None,
                };
            }
        }
        assert!(waits <= 2, "{waits} waits for 100 messages of one write");
        assert!(server.try_recv().is_pending());
    });
}

#[test]
fn small_messages_that_share_a_buffer_can_still_be_changed() {
    run(async {
        let (mut client, mut server) = pair(MAX_MESSAGE).await;
        client.feed(pattern(100, 1)).unwrap();
        client.feed(pattern(100, 2)).unwrap();
        client.flush().await.unwrap();
        let mut messages = Vec::new();
        while messages.len() < 2 {
            let Some(Incoming::Binary(message)) = server.recv().await.unwrap() else { panic!("no message") };
            messages.push(message);
        }
        let second = messages.pop().unwrap();
        let mut first = BytesMut::from(messages.pop().unwrap());
        first.fill(0);
        assert_eq!(second, pattern(100, 2));
    });
}

#[test]
fn text_is_reported_and_the_connection_lives() {
    run(async {
        let (mut socket, mut raw) = raw_client(1024);
        // Masked with zeros: text "hi", then binary "ok".
        raw.write_all(&[0x81, 0x82, 0, 0, 0, 0, b'h', b'i', 0x82, 0x82, 0, 0, 0, 0, b'o', b'k']).await.unwrap();
        assert_eq!(socket.recv().await.unwrap(), Some(Incoming::Text));
        assert_eq!(socket.recv().await.unwrap(), Some(Incoming::Binary("ok".into())));
    });
}

#[test]
fn websocket_pings_are_answered_by_reading() {
    run(async {
        let (mut socket, mut raw) = raw_client(1024);
        raw.write_all(&[0x89, 0x83, 1, 2, 3, 4, b'a' ^ 1, b'b' ^ 2, b'c' ^ 3]).await.unwrap();
        let mut pong = [0; 5];
        tokio::select! {
            _ = socket.recv() => panic!("a PING is no message"),
            read = raw.read_exact(&mut pong) => drop(read.unwrap()),
        }
        assert_eq!(&pong, b"\x8a\x03abc");
    });
}

/// A peer that asks without end and never reads must be made to wait, not be served from our memory.
#[tokio::test(start_paused = true)]
async fn a_flood_of_pings_is_bounded() {
    let (mut socket, mut raw) = raw_client(4096);
    let mut ping = vec![0x89, 0xfd, 0, 0, 0, 0];
    ping.extend([7; 125]);
    let mut written = 0_usize;
    let flood = async {
        while written < 64 << 20 {
            raw.write_all(&ping).await.unwrap();
            written += ping.len();
        }
    };
    // The clock is virtual: it moves when nothing else can.
    tokio::select! {
        _ = socket.recv() => panic!("no message was sent"),
        () = flood => panic!("all was swallowed"),
        () = tokio::time::sleep(Duration::from_secs(1)) => {}
    }
    // Two pipes of 4 KiB, 32 PONGs of 127 bytes, and one read buffer of 8 KiB.
    assert!(written < 32 << 10, "{written} bytes were swallowed");
    assert!(written > 4096);
}

#[test]
fn too_long_messages_are_refused_with_1009() {
    run(async {
        let (mut client, mut server) = pair(64 * 1024).await;
        let refusing = spawn_local(async move {
            let error = server.recv().await.unwrap_err();
            assert!(matches!(error, WsError::TooLarge { len: 65_537, max: 65_536 }), "{error:?}");
            assert_eq!(server.recv().await.unwrap(), None, "it is over");
            server.close(1009, "too long").await;
        });
        client.send(pattern(64 * 1024 + 1, 0)).await.unwrap();
        assert_eq!(client.recv().await.unwrap(), None);
        let reason = CloseReason { code: 1009, reason: "max length: 65536".into() };
        assert_eq!(client.close_reason(), Some(&reason));
        assert!(matches!(client.feed("more".into()), Err(WsError::Closed)));
        drop(client);
        refusing.await.unwrap();
    });
}

#[test]
fn fragments_count_together() {
    run(async {
        let (server, mut raw) = duplex(1024);
        let mut socket = WebSocket::server(Conn::other(server), 6);
        // "abcd" + "ef" is just enough.
        raw.write_all(&[0x02, 0x84, 0, 0, 0, 0, b'a', b'b', b'c', b'd', 0x80, 0x82, 0, 0, 0, 0, b'e', b'f'])
            .await
            .unwrap();
        assert_eq!(socket.recv().await.unwrap(), Some(Incoming::Binary("abcdef".into())));
        raw.write_all(&[0x02, 0x84, 0, 0, 0, 0, b'a', b'b', b'c', b'd', 0x80, 0x83, 0, 0, 0, 0, b'e', b'f', b'g'])
            .await
            .unwrap();
        assert!(matches!(socket.recv().await, Err(WsError::TooLarge { len: 7, max: 6 })));
        let mut close = [0; 4];
        raw.read_exact(&mut close).await.unwrap();
        assert_eq!((close[0], u16::from_be_bytes([close[2], close[3]])), (0x88, 1009));
    });
}

#[test]
fn the_limit_can_grow_after_authentication() {
    run(async {
        let (mut client, mut server) = pair(4096).await;
        server.set_max_message(MAX_MESSAGE);
        let message = pattern(MAX_MESSAGE, 9);
        let (sent, received) = tokio::join!(client.send(message.clone()), server.recv());
        sent.unwrap();
        assert_eq!(received.unwrap(), Some(Incoming::Binary(message)));
    });
}

#[test]
fn garbage_is_refused_with_1002() {
    run(async {
        for garbage in [&b"\xff\xff"[..], b"\x82\x01x", b"\x83\x80\0\0\0\0", b"\x80\x80\0\0\0\0", b"\x09\x80\0\0\0\0"] {
            let (mut socket, mut raw) = raw_client(1024);
            raw.write_all(garbage).await.unwrap();
            assert!(matches!(socket.recv().await, Err(WsError::Protocol(_))), "{garbage:?}");
            let mut close = [0; 4];
            raw.read_exact(&mut close).await.unwrap();
            assert_eq!((close[0], u16::from_be_bytes([close[2], close[3]])), (0x88, 1002));
        }
    });
}

#[test]
fn no_cut_of_a_message_is_taken_for_one() {
    run(async {
        let whole = [0x82, 0x83, 1, 2, 3, 4, b'a' ^ 1, b'b' ^ 2, b'c' ^ 3];
        for len in 0..whole.len() {
            let (mut socket, mut raw) = raw_client(1024);
            raw.write_all(&whole[..len]).await.unwrap();
            drop(raw);
            match socket.recv().await {
                Ok(None) => assert!(len == 0),
                Ok(Some(message)) => panic!("{message:?} after {len} bytes"),
                Err(error) => assert!(matches!(error, WsError::Io(_)), "{error:?}"),
            }
        }
    });
}

#[test]
fn closing_tells_why() {
    run(async {
        let (mut client, mut server) = pair(MAX_MESSAGE).await;
        let closing = spawn_local(async move {
            server.feed("last words".into()).unwrap();
            server.close(4001, &"ü".repeat(100)).await;
        });
        assert_eq!(client.recv().await.unwrap(), Some(Incoming::Binary("last words".into())));
        assert_eq!(client.recv().await.unwrap(), None);
        let reason = client.close_reason().unwrap().clone();
        assert_eq!((reason.code, reason.reason), (4001, "ü".repeat(61)), "cut at a character");
        drop(client);
        closing.await.unwrap();
    });
}

#[test]
fn a_vanished_peer_ends_the_stream() {
    run(async {
        let (client, mut server) = pair(MAX_MESSAGE).await;
        drop(client);
        assert_eq!(server.recv().await.unwrap(), None);
        assert_eq!(server.close_reason(), None);
    });
}

/// Far more than all buffers hold, from both ends at once, each end one task.
#[test]
fn both_ends_writing_at_once_do_not_deadlock() {
    async fn pump(mut socket: WebSocket, message: Bytes, expected: Bytes) -> WebSocket {
        let (mut sent, mut received) = (0, 0);
        while sent < 40 || received < 40 {
            match socket.next(sent < 40).await.unwrap() {
                Event::Writable => {
                    socket.feed(message.clone()).unwrap();
                    sent += 1;
                }
                Event::Message(message) => {
                    assert!(message == Incoming::Binary(expected.clone()));
                    received += 1;
                }
                Event::Closed => panic!("closed"),
            }
        }
        socket.flush().await.unwrap();
        socket
    }
    run(async {
        let (client, server) = pair(MAX_MESSAGE).await;
        let (a, b) = (pattern(MAX_MESSAGE, 0), pattern(MAX_MESSAGE, 100));
        tokio::join!(pump(client, a.clone(), b.clone()), pump(server, b, a));
    });
}

#[test]
fn halves_in_two_tasks_do_not_deadlock_either() {
    run(async {
        let (client, server) = pair(MAX_MESSAGE).await;
        let mut tasks = Vec::new();
        for (socket, seed) in [(client, 0), (server, 100)] {
            let (mut receiver, mut sender) = socket.split();
            let sending = spawn_local(async move {
                for n in 0..40 {
                    sender.feed(pattern(300_000, seed + n)).unwrap();
                    sender.ready().await.unwrap();
                }
                sender.flush().await.unwrap();
                assert_eq!(sender.unsent(), 0);
                sender
            });
            tasks.push(spawn_local(async move {
                for n in 0..40 {
                    let message = receiver.recv().await.unwrap();
                    assert!(message == Some(Incoming::Binary(pattern(300_000, (seed ^ 100) + n))));
                }
                receiver.unsplit(sending.await.unwrap()).unwrap()
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
    });
}

/// The same in a runtime of several threads, where a lost wake-up would show.
#[test]
fn halves_work_across_threads() {
    let (left, right) = duplex(8192);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let left = WebSocket::client(Conn::other(left), MAX_MESSAGE);
        let right = WebSocket::server(Conn::other(right), MAX_MESSAGE);
        let tasks: Vec<_> = [left, right]
            .into_iter()
            .flat_map(|socket| {
                let (mut receiver, mut sender) = socket.split();
                let sending = tokio::spawn(async move {
                    for n in 0..2000_u32 {
                        sender.send(pattern(1 + n as usize * 7 % 20_000, n as u8)).await.unwrap();
                    }
                });
                let receiving = tokio::spawn(async move {
                    for n in 0..2000_u32 {
                        let expected = pattern(1 + n as usize * 7 % 20_000, n as u8);
                        assert!(receiver.recv().await.unwrap() == Some(Incoming::Binary(expected)), "{n}");
                    }
                });
                [sending, receiving]
            })
            .collect();
        for task in tasks {
            tokio::time::timeout(Duration::from_secs(30), task).await.expect("a lost wake-up").unwrap();
        }
    });
}

/// Dropping the futures between polls loses and doubles nothing.
#[test]
fn receiving_and_flushing_are_cancel_safe() {
    run(async {
        let (mut client, mut server) = pair(MAX_MESSAGE).await;
        let sending = spawn_local(async move {
            for n in 0..50 {
                client.feed(pattern(50_000, n)).unwrap();
                // Poll once and drop, until it happens to be done.
                while client.unsent() > 0 {
                    tokio::select! { biased; flushed = client.flush() => flushed.unwrap(), () = tokio::task::yield_now() => {} }
                }
            }
            client
        });
        for n in 0..50 {
            let message = loop {
                tokio::select! {
                    biased;
                    message = server.recv() => break message.unwrap(),
                    () = tokio::task::yield_now() => {}
                }
            };
            assert!(message == Some(Incoming::Binary(pattern(50_000, n))), "{n}");
        }
        sending.await.unwrap();
    });
}

/// With everything out, a task that has more to say is told so even though nothing comes in.
#[test]
fn next_reports_writable_and_takes_turns() {
    run(async {
        let (mut client, mut server) = pair(MAX_MESSAGE).await;
        assert_eq!(server.next(true).await.unwrap(), Event::Writable);
        client.feed("a".into()).unwrap();
        client.feed("b".into()).unwrap();
        client.flush().await.unwrap();
        let a = server.next(false).await.unwrap();
        assert_eq!(a, Event::Message(Incoming::Binary("a".into())));
        assert_eq!(server.next(true).await.unwrap(), Event::Writable, "after a message it is the writer's turn");
        assert_eq!(server.next(true).await.unwrap(), Event::Message(Incoming::Binary("b".into())));
        let quiet = poll_fn(|cx| Poll::Ready(server.poll_next(cx, false).is_pending())).await;
        assert!(quiet, "nothing to read and no wish to write");
        drop(client);
        assert_eq!(server.next(false).await.unwrap(), Event::Closed);
        assert_eq!(server.next(true).await.unwrap(), Event::Closed, "a closed socket is never writable");
    });
}
