//! Pairs of nodes beside the load, on a thread of their own: one sends the other a frame every 10 ms, and each is timed.

use super::client::{Member, connect};
use super::flow::frame;
use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use edgelink_net::ws::{Dial, Event, Incoming, WebSocket};
use edgelink_wire::ping::Ping;
use edgelink_wire::{FrameType, data, frames};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::task::{JoinSet, LocalSet};

const INTERVAL: Duration = Duration::from_millis(10);
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PAYLOAD: usize = 64;

/// What the pairs have measured so far.
pub(crate) struct Neighbours {
    log: Arc<Mutex<Log>>,
    leave: oneshot::Sender<()>,
    thread: thread::JoinHandle<Result<()>>,
}

#[derive(Default)]
struct Log {
    sent: Vec<Instant>,
    /// When it was sent, and how long it took.
    received: Vec<(Instant, Duration)>,
}

/// One-way times of the frames that were sent in a period.
#[derive(Clone, Copy, Debug, Default)]
pub struct OneWay {
    /// Frames sent.
    pub sent: usize,
    /// Of them received.
    pub received: usize,
    /// Half of them took at most so long …
    pub p50: Duration,
    /// … and 99 of 100.
    pub p99: Duration,
    /// The slowest.
    pub max: Duration,
}

impl Neighbours {
    /// Connects the pairs and begins.
    pub(crate) async fn start(dial: Dial, server: u32, pairs: Vec<(Member, Member)>) -> Result<Self> {
        let log = Arc::new(Mutex::new(Log::default()));
        let (leave, left) = oneshot::channel();
        let (ready, is_ready) = oneshot::channel();
        let theirs = Arc::clone(&log);
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            LocalSet::new().block_on(&runtime, run(dial, server, pairs, theirs, ready, left))
        });
        if is_ready.await.is_err() {
            return match thread.join() {
                Ok(Err(error)) => Err(error),
                _ => bail!("the neighbours' thread has ended"),
            };
        }
        Ok(Self { log, leave, thread })
    }

    /// What was sent between two moments, of which the later should lie some time back.
    pub(crate) fn between(&self, begin: Instant, end: Instant) -> OneWay {
        let log = lock(&self.log);
        let within = |at: &Instant| (begin..end).contains(at);
        let mut times: Vec<Duration> =
            log.received.iter().filter(|(at, _)| within(at)).map(|(_, time)| *time).collect();
        times.sort_unstable();
        let at = |hundredths: usize| times.get((times.len() * hundredths / 100).min(times.len().saturating_sub(1)));
        OneWay {
            sent: log.sent.iter().filter(|at| within(at)).count(),
            received: times.len(),
            p50: at(50).copied().unwrap_or_default(),
            p99: at(99).copied().unwrap_or_default(),
            max: times.last().copied().unwrap_or_default(),
        }
    }

    pub(crate) fn stop(self) -> Result<()> {
        // It may have ended on its own, and says why.
        let _ = self.leave.send(());
        self.thread.join().map_err(|_| anyhow::anyhow!("the neighbours' thread panicked"))?
    }
}

async fn run(
    dial: Dial,
    server: u32,
    pairs: Vec<(Member, Member)>,
    log: Arc<Mutex<Log>>,
    ready: oneshot::Sender<()>,
    left: oneshot::Receiver<()>,
) -> Result<()> {
    let origin = Instant::now();
    let mut tasks = JoinSet::new();
    for (from, to) in pairs {
        let sender = connect(&dial, server, &from).await.context("a neighbour")?;
        let receiver = connect(&dial, server, &to).await.context("a neighbour")?;
        tasks.spawn_local(receive(receiver, from.node, origin, Arc::clone(&log)));
        tasks.spawn_local(send(sender, from.node, to.node, origin, Arc::clone(&log)));
    }
    let _ = ready.send(());
    tokio::select! {
        _ = left => Ok(()),
        Some(ended) = tasks.join_next() => ended?,
    }
}

async fn send(mut ws: WebSocket, from: u32, to: u32, origin: Instant, log: Arc<Mutex<Log>>) -> Result<()> {
    let mut raw = frame(from, to, PAYLOAD);
    let mut tick = tokio::time::interval(INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {
                let now = Instant::now();
                let since = u64::try_from(now.duration_since(origin).as_nanos())?;
                if let Some(place) = raw.get_mut(data::PLAINTEXT_OFFSET..data::PLAINTEXT_OFFSET + 8) {
                    place.copy_from_slice(&since.to_be_bytes());
                }
                ws.feed(Bytes::copy_from_slice(&raw))?;
                lock(&log).sent.push(now);
            }
            event = ws.next(false) => match event? {
                Event::Message(_) | Event::Writable => {}
                Event::Closed => bail!("the relay closed a neighbour's connection"),
            },
        }
    }
}

async fn receive(mut ws: WebSocket, from: u32, origin: Instant, log: Arc<Mutex<Log>>) -> Result<()> {
    let mut ping = tokio::time::interval(PING_INTERVAL);
    loop {
        tokio::select! {
            _ = ping.tick() => {
                ws.feed(Bytes::copy_from_slice(&Ping { sent_us: 1, seq: 1 }.encode(FrameType::Ping)))?;
            }
            event = ws.next(false) => match event? {
                Event::Message(Incoming::Binary(message)) => {
                    for frame in frames(&message) {
                        let frame = frame?;
                        if frame.frame_type() != Some(FrameType::Data) {
                            continue;
                        }
                        let src = data::parse(frame.raw)?.src.0;
                        anyhow::ensure!(src == from, "a neighbour got a frame from node {src}");
                        let since = frame.raw.get(data::PLAINTEXT_OFFSET..).and_then(|rest| rest.first_chunk());
                        let since = u64::from_be_bytes(*since.context("a short frame")?);
                        let sent = origin + Duration::from_nanos(since);
                        lock(&log).received.push((sent, sent.elapsed()));
                    }
                }
                Event::Message(Incoming::Text) | Event::Writable => {}
                Event::Closed => bail!("the relay closed a neighbour's connection"),
            },
        }
    }
}

fn lock(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}
