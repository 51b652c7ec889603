//! Many synthetic nodes at one real relay: what a connection costs, how fast frames are forwarded, and what becomes of
//! the others when a thousand receivers stop reading.
//!
//! A real controller lets the nodes in; each then authenticates at a real `edgelink-server` with the relay_token that it
//! got. The measured process is the relay alone.

mod client;
mod flow;
mod neighbours;
mod report;
mod server;

use crate::RunArgs;
use crate::controller::Controller;
use crate::node;
use crate::shared::Shared;
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use client::{Client, Member, connect};
use flow::Flow;
use neighbours::Neighbours;
use server::Server;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc};

pub use neighbours::OneWay;
pub use report::{Forwarding, Report, Stalled};

/// Members of each network.
const NETWORK: usize = 200;
/// Pairs beside the load.
const NEIGHBOURS: usize = 10;
/// Frames with less progress than this are lost, not slow.
const LOST_AFTER: Duration = Duration::from_millis(500);
/// The relay ends connections that take nothing for 15 s.
const STALL_AT_MOST: u64 = 12;
/// Bytes of a frame to a receiver that does not read.
const FRAME: u64 = edgelink_wire::data::OVERHEAD as u64 + 1_400;
/// Messages that a sender has ready.
const AHEAD: usize = 8;
/// Bytes of frames in the messages of a node that has much to send.
const BATCH: usize = 16 << 10;

/// Load a relay with synthetic nodes and measure it.
#[derive(Clone, Debug, Args)]
pub struct RelayArgs {
    /// Idle connections.
    #[arg(long, default_value_t = 10_000)]
    pub connections: usize,
    /// Receivers that stop reading; 0 leaves this part out.
    #[arg(long, default_value_t = 1_000)]
    pub stalled: usize,
    /// Pairs of nodes that send at the same time.
    #[arg(long, default_value_t = 1_000)]
    pub senders: usize,
    /// Bytes of plaintext in each frame; may be repeated.
    #[arg(long, default_values_t = [64, 1_400], value_parser = payload)]
    pub payload: Vec<usize>,
    /// How long each rate is measured, in seconds.
    #[arg(long, default_value_t = 5)]
    pub seconds: u64,
    /// How long receivers do not read, in seconds.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=STALL_AT_MOST))]
    pub stall: u64,
    /// What is sent to them meanwhile, in MiB a second; more than a core forwards delays everybody, whoever reads.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u64).range(1..))]
    pub rate: u64,
    /// Connections that authenticate at the same time; the relay takes 20 of one address.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=18))]
    pub concurrency: u16,
    /// How it is run.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Starts a controller and a relay, loads the relay, measures, ends both.
///
/// # Errors
/// When one does not start, refuses a node, closes a connection, or changes or misdirects a frame.
pub fn run(args: &RelayArgs) -> Result<Report> {
    crate::on_one_thread(measure(args))
}

async fn measure(args: &RelayArgs) -> Result<Report> {
    let crowd = args.connections.next_multiple_of(2);
    ensure!(crowd >= 2 * args.senders, "--senders needs two connections each");
    ensure!(args.senders > 0, "at least one sender is needed");
    // Of each network one reads on, to send to the others.
    ensure!(args.stalled <= crowd - crowd.div_ceil(NETWORK), "--stalled leaves nobody to send");
    let limit = Duration::from_secs(args.run.timeout);
    let controller =
        Controller::start(args.run.bin_dir.as_deref(), r#", "builtin_relay": {"enabled": false}"#, limit).await?;
    let server = Server::start(&controller, args.run.bin_dir.as_deref(), limit).await?;

    let total = crowd + 2 * NEIGHBOURS;
    eprintln!("{total} nodes are enrolled");
    let mut members = enrol(&controller, total, args.concurrency, limit).await?;
    let dial = server.dial()?;
    first_connection(&dial, server.id, members.first().context("no members")?, limit).await?;

    eprintln!("{crowd} of them connect to the relay");
    let empty = server.usage()?;
    let mut crowd = Crowd::new(args.concurrency);
    let begin = Instant::now();
    let mut pairs = members.split_off(crowd_len(&members)).into_iter();
    for member in members {
        crowd.join(&dial, server.id, member);
    }
    crowd.until(limit, |crowd| crowd.clients.iter().all(|client| client.pongs.get() > 0)).await?;
    let connected = (begin.elapsed(), server.usage()?);
    let idle_begin = Instant::now();
    crowd.watch(Duration::from_secs(args.seconds)).await?;
    let idle = server.usage()?;
    let idle_time = idle_begin.elapsed();

    let mut forwarding = Vec::new();
    for (senders, payload, per_message) in cases(args.senders, &args.payload) {
        eprintln!("{senders} × {payload} bytes, {per_message} a message");
        forwarding.push(crowd.forward(&server, senders, payload, per_message, args.seconds).await?);
    }

    let mut neighbours = Vec::new();
    while let (Some(from), Some(to)) = (pairs.next(), pairs.next()) {
        neighbours.push((from, to));
    }
    let stalled = if args.stalled > 0 {
        let neighbours = Neighbours::start(dial, server.id, neighbours).await?;
        eprintln!("{} receivers stop reading", args.stalled);
        let stalled = crowd.stall(&server, &neighbours, args).await?;
        neighbours.stop()?;
        Some(stalled)
    } else {
        None
    };

    crowd.leave.notify_waiters();
    server.stop().await?;
    controller.stop().await?;
    Ok(Report {
        connections: crowd.clients.len(),
        connect: connected.0,
        connect_cpu: connected.1.cpu - empty.cpu,
        rss_empty: empty.rss,
        rss_idle: idle.rss,
        idle: idle_time,
        idle_cpu: idle.cpu - connected.1.cpu,
        forwarding,
        stalled,
    })
}

/// A payload of which a message holds at least one.
fn payload(text: &str) -> Result<usize, String> {
    let most = BATCH - edgelink_wire::data::OVERHEAD;
    text.parse()
        .ok()
        .filter(|bytes| (1..=most).contains(bytes))
        .ok_or_else(|| format!("a payload has 1 to {most} bytes"))
}

/// What is left of `members` beside the neighbours.
fn crowd_len(members: &[Member]) -> usize {
    members.len() - 2 * NEIGHBOURS
}

/// (senders, bytes of plaintext, frames per message): alone with much to send, alone with one packet at a time, and all
/// together with one packet at a time and with much.
fn cases(senders: usize, payloads: &[usize]) -> Vec<(usize, usize, u64)> {
    let batch = |payload: usize| (BATCH / (edgelink_wire::data::OVERHEAD + payload)) as u64;
    payloads
        .iter()
        .flat_map(|&payload| {
            [(1, payload, 1), (1, payload, batch(payload)), (senders, payload, 1), (senders, payload, batch(payload))]
        })
        .collect()
}

/// Nodes let in by the controller, network after network.
async fn enrol(controller: &Controller, total: usize, concurrency: u16, limit: Duration) -> Result<Vec<Member>> {
    let networks = total.div_ceil(NETWORK);
    let shared = Rc::new(Shared::new(controller, networks, NETWORK, concurrency.into())?);
    let (tell, mut told) = mpsc::unbounded_channel();
    for network in 0..networks {
        let key = controller.add_network(network, NETWORK).await?;
        for place in network * NETWORK..total.min((network + 1) * NETWORK) {
            let (shared, key, tell) = (Rc::clone(&shared), key.clone(), tell.clone());
            tokio::task::spawn_local(async move {
                let enrolled = node::enrol(&shared, network, key).await;
                // The other end is gone only after an error.
                let _ = tell.send((place, enrolled));
            });
        }
    }
    let mut members: Vec<Option<Member>> = (0..total).map(|_| None).collect();
    let collect = async {
        for _ in 0..total {
            let (place, enrolled) = told.recv().await.context("the nodes are gone")?;
            let (machine, node, relay_token) = enrolled.context("a node is not let in")?;
            if let Some(member) = members.get_mut(place) {
                *member = Some(Member { machine, node, relay_token });
            }
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(limit, collect).await.context("not all nodes were let in in time")??;
    Ok(members.into_iter().flatten().collect())
}

/// The relay takes nobody before the controller has told it which key to trust.
async fn first_connection(dial: &edgelink_net::ws::Dial, server: u32, member: &Member, limit: Duration) -> Result<()> {
    let until = Instant::now() + limit.min(Duration::from_secs(20));
    loop {
        match connect(dial, server, member).await {
            Ok(ws) => {
                ws.close(1000, "").await;
                return Ok(());
            }
            Err(error) if Instant::now() >= until => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Everybody at the relay but the neighbours.
struct Crowd {
    clients: Vec<Rc<Client>>,
    turns: Rc<tokio::sync::Semaphore>,
    leave: Rc<Notify>,
    tell: mpsc::UnboundedSender<anyhow::Error>,
    errors: mpsc::UnboundedReceiver<anyhow::Error>,
}

impl Crowd {
    fn new(concurrency: u16) -> Self {
        let (tell, errors) = mpsc::unbounded_channel();
        let turns = Rc::new(tokio::sync::Semaphore::new(concurrency.into()));
        Self { clients: Vec::new(), turns, leave: Rc::default(), tell, errors }
    }

    fn join(&mut self, dial: &edgelink_net::ws::Dial, server: u32, member: Member) {
        let client = Client::new(member.node);
        self.clients.push(Rc::clone(&client));
        let (dial, turns) = (dial.clone(), Rc::clone(&self.turns));
        let (leave, tell) = (Rc::clone(&self.leave), self.tell.clone());
        tokio::task::spawn_local(async move {
            let live = async {
                let turn = turns.acquire().await?;
                let ws = connect(&dial, server, &member).await?;
                drop((turn, dial, member));
                client.live(ws, &leave).await
            };
            if let Err(error) = live.await {
                let _ = tell.send(error);
            }
        });
    }

    /// Looks at `done` every 10 ms; an error of any client ends it.
    async fn until(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) -> Result<()> {
        let end = Instant::now() + limit;
        while !done(self) {
            ensure!(Instant::now() < end, "not within {limit:?}");
            self.watch(Duration::from_millis(10)).await?;
        }
        Ok(())
    }

    /// Waits; an error of any client ends it.
    async fn watch(&mut self, time: Duration) -> Result<()> {
        tokio::select! {
            () = tokio::time::sleep(time) => Ok(()),
            Some(error) = self.errors.recv() => Err(error),
        }
    }

    /// Pairs send for some seconds as fast as frames arrive.
    async fn forward(
        &mut self,
        server: &Server,
        senders: usize,
        payload: usize,
        per_message: u64,
        seconds: u64,
    ) -> Result<Forwarding> {
        let flows: Vec<Rc<Flow>> = self
            .clients
            .chunks_exact(2)
            .take(senders)
            .filter_map(|pair| match pair {
                [from, to] => Some(Flow::new(from, to, payload, per_message, if senders == 1 { 4 } else { 1 })),
                _ => None,
            })
            .collect();
        let (begin, before) = (Instant::now(), server.usage()?);
        flows.iter().for_each(|flow| flow.run(true));
        while begin.elapsed() < Duration::from_secs(seconds) {
            self.watch(Duration::from_millis(50)).await?;
            flows.iter().for_each(|flow| flow.give_up(Instant::now() - LOST_AFTER));
        }
        let (time, after) = (begin.elapsed(), server.usage()?);
        let received = flows.iter().map(|flow| flow.received.get()).sum();
        flows.iter().for_each(|flow| flow.run(false));
        let end = Instant::now() + 20 * LOST_AFTER;
        while flows.iter().any(|flow| flow.under_way() > 0) && Instant::now() < end {
            self.watch(Duration::from_millis(10)).await?;
            flows.iter().for_each(|flow| flow.give_up(Instant::now() - LOST_AFTER));
        }
        let (sent, lost) = flows.iter().fold((0, 0), |(s, l), f| (s + f.sent.get(), l + f.lost.get()));
        ensure!(received > 0, "nothing was forwarded");
        Ok(Forwarding { senders, payload, per_message, time, received, sent, lost, cpu: after.cpu - before.cpu })
    }

    /// In every network one node sends to those that do not read, as much as it can.
    async fn stall(&mut self, server: &Server, neighbours: &Neighbours, args: &RelayArgs) -> Result<Stalled> {
        let per_message = BATCH as u64 / FRAME;
        let mut flows: Vec<(Rc<Client>, Rc<Client>, Rc<Flow>)> = Vec::new();
        for place in 1..NETWORK {
            for network in self.clients.chunks(NETWORK) {
                if let (Some(from), Some(to)) = (network.first(), network.get(place))
                    && flows.len() < args.stalled
                {
                    flows.push((Rc::clone(from), Rc::clone(to), Flow::new(from, to, 1_400, per_message, 0)));
                }
            }
        }
        let before = server.usage()?;
        let quiet = Instant::now();
        self.watch(Duration::from_secs(args.stall.min(5))).await?;
        flows.iter().for_each(|(_, to, _)| to.stall(true));
        let begin = Instant::now();
        let end = begin + Duration::from_secs(args.stall);
        let (mut peak, mut queued, mut next) = (before.rss, 0, 0);
        let mut looked = begin;
        let (message, mut pushed) = (per_message * FRAME, 0);
        while Instant::now() < end {
            let due = begin.elapsed().as_secs_f64() * (args.rate << 20) as f64;
            for (from, _, flow) in flows.iter().cycle().skip(next).take(flows.len()) {
                // Each network's next ones, so that all get their share.
                if pushed as f64 >= due {
                    break;
                }
                next = (next + 1) % flows.len();
                // What the sender's own connection takes, and a little ahead.
                if from.outbox.borrow().len() < AHEAD {
                    flow.push();
                    pushed += message;
                }
            }
            self.watch(Duration::from_millis(1)).await?;
            peak = peak.max(server.usage()?.rss);
            if looked.elapsed() >= Duration::from_millis(500) {
                looked = Instant::now();
                queued = queued.max(server.metric("edgelink_relay_queued_bytes").await?);
            }
        }
        let stop = Instant::now();
        flows.iter().for_each(|(from, ..)| from.outbox.borrow_mut().clear());
        flows.iter().for_each(|(_, to, _)| to.stall(false));
        // Whoever reads again gets what is left, and is served as before.
        let limit = Duration::from_secs(args.run.timeout);
        let served = self.until(limit, |_| flows.iter().all(|(.., flow)| flow.received.get() > 0)).await;
        served.context("a receiver that did not read gets nothing of what waited for it")?;
        self.watch(Duration::from_secs(2)).await?;
        let received_before: Vec<u64> = flows.iter().map(|(.., flow)| flow.received.get()).collect();
        for (from, _, flow) in &flows {
            flow.push();
            self.until(limit, |_| from.outbox.borrow().is_empty()).await?;
        }
        self.until(limit, |_| {
            flows.iter().zip(&received_before).all(|((.., flow), before)| flow.received.get() >= before + per_message)
        })
        .await
        .context("a receiver that reads again is not served")?;
        let after = server.usage()?;
        Ok(Stalled {
            receivers: flows.len(),
            sent_bytes: flows.iter().map(|(.., f)| f.sent.get()).sum::<u64>() * FRAME,
            rss_before: before.rss,
            rss_peak: peak,
            rss_after: after.rss,
            queued_peak: queued,
            undisturbed: neighbours.between(quiet, begin),
            beside: neighbours.between(begin, stop),
        })
    }
}
