//! One synthetic node.

use crate::shared::Shared;
use anyhow::{Context as _, Result, anyhow, bail};
use edgelink_auth::{KeyStatement, MachineKey, NodeKey, SignedStatement, challenge};
use edgelink_model::{NetworkId, NodeId};
use edgelink_net::ws::{Incoming, WebSocket, dial};
use edgelink_wire::control::{self, ControlMessage, Reassembler, Received, proto};
use edgelink_wire::key_announce::KeyAnnounce;
use edgelink_wire::ping::Ping;
use edgelink_wire::{Flags, FrameType, frames};
use getrandom::SysRng;
use rand_core::UnwrapErr;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

/// As real nodes do.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// ERROR 1006: wait for an administrator.
const NOT_AUTHORIZED: u32 = 1006;

/// What a node is, beyond one connection.
pub(crate) struct Identity {
    network: usize,
    machine: MachineKey,
    auth_key: RefCell<Option<String>>,
    auth_token: RefCell<String>,
    seq: Cell<u64>,
    /// Subnets of 256 addresses that it serves.
    serves: Vec<[u8; 4]>,
}

impl Identity {
    pub(crate) fn new(network: usize, auth_key: Option<String>) -> Self {
        let machine = MachineKey::generate(&mut UnwrapErr(SysRng));
        Self {
            network,
            machine,
            auth_key: RefCell::new(auth_key),
            auth_token: RefCell::default(),
            seq: Cell::new(0),
            serves: Vec::new(),
        }
    }

    /// The same, as a gateway of these subnets.
    pub(crate) fn serving(self, serves: Vec<[u8; 4]>) -> Self {
        Self { serves, ..self }
    }
}

/// Connects and stays until told to leave; an error ends the whole measurement.
pub(crate) fn spawn(shared: Rc<Shared>, identity: Rc<Identity>) {
    tokio::task::spawn_local(async move {
        if let Err(error) = live(&shared, &identity).await {
            shared.fail(error.context(format!("a node of network {}", identity.network)));
        }
    });
}

/// Lets one node in and leaves: its machine key, id and relay_token.
pub(crate) async fn enrol(shared: &Rc<Shared>, network: usize, key: String) -> Result<(MachineKey, u32, String)> {
    let identity = Identity::new(network, Some(key));
    let turns = Rc::clone(&shared.turns);
    let mut turn = Some(turns.acquire().await?);
    let mut node = Node::new(shared, &identity, dial(&shared.dial).await?);
    let admitted = node.authenticate(&mut turn).await?;
    node.ws.close(1000, "").await;
    let node = admitted.identity.context("AUTH_RESPONSE without ids")?.node_id;
    let relay_token = admitted.tokens.context("AUTH_RESPONSE without tokens")?.relay_token;
    Ok((identity.machine, node, relay_token))
}

async fn live(shared: &Rc<Shared>, identity: &Identity) -> Result<()> {
    let leave = shared.leave.notified();
    let turn = Rc::clone(&shared.turns);
    let turn = turn.acquire().await?;
    let ws = dial(&shared.dial).await?;
    shared.count_connection(true);
    let mut node = Node::new(shared, identity, ws);
    let outcome = tokio::select! {
        outcome = node.serve(turn) => outcome,
        () = leave => Ok(()),
    };
    node.ws.close(1000, "").await;
    shared.count_connection(false);
    outcome
}

struct Node<'a> {
    shared: &'a Rc<Shared>,
    identity: &'a Identity,
    ws: WebSocket,
    reassembler: Reassembler,
    acks: u64,
    /// Every member that it knows of, and whether with a key.
    peers: HashMap<u32, bool>,
    complete: bool,
}

impl<'a> Node<'a> {
    fn new(shared: &'a Rc<Shared>, identity: &'a Identity, ws: WebSocket) -> Self {
        Self { shared, identity, ws, reassembler: Reassembler::new(), acks: 0, peers: HashMap::new(), complete: false }
    }

    async fn serve(&mut self, turn: tokio::sync::SemaphorePermit<'_>) -> Result<()> {
        let mut turn = Some(turn);
        let admitted = self.authenticate(&mut turn).await?;
        let me = admitted.identity.context("AUTH_RESPONSE without ids")?;
        self.shared.admitted(me.node_id, self.identity.network)?;
        *self.identity.auth_token.borrow_mut() = admitted.tokens.context("AUTH_RESPONSE without tokens")?.auth_token;
        // It has served.
        *self.identity.auth_key.borrow_mut() = None;
        let announce = self.announce(&me, admitted.server_time_ms / 1000)?;
        self.ws.send(announce.into()).await?;
        if !self.identity.serves.is_empty() {
            let route = |subnet: &[u8; 4]| proto::Route {
                cidr: Some(proto::Prefix { address: subnet.to_vec(), length: 24 }),
                priority: 100,
                weight: 100,
                ..Default::default()
            };
            let routes = self.identity.serves.iter().map(route).collect();
            let routes = Some(proto::RouteList { routes });
            self.say(proto::ConfigUpdate { routes, ..Default::default() }).await?;
        }
        drop(turn);

        let mut ping = tokio::time::interval(PING_INTERVAL);
        ping.reset();
        let mut sequence = 0;
        loop {
            tokio::select! {
                received = self.hear() => self.take(received?).await?,
                _ = ping.tick() => {
                    sequence += 1;
                    let ping = Ping { sent_us: 1, seq: sequence }.encode(FrameType::Ping);
                    self.ws.send(ping.to_vec().into()).await?;
                }
            }
        }
    }

    /// Proves the machine key, and waits until the controller lets it in.
    async fn authenticate<T>(&mut self, turn: &mut Option<T>) -> Result<proto::AuthResponse> {
        let public = self.identity.machine.public();
        self.say(proto::AuthRequest {
            protocol_version: 1,
            machine_pub: public.0.to_vec(),
            host_info: Some(proto::HostInfo {
                hostname: "load".to_owned(),
                os: "linux".to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        })
        .await?;
        let ControlMessage::AuthResponse(response) = self.hear().await?.message else { bail!("no challenge") };
        let nonce: [u8; 32] = response.challenge.as_slice().try_into().context("the challenge is malformed")?;
        let signed = challenge::control_message(&self.shared.host, &nonce, &public);
        let token = self.identity.auth_token.borrow().clone();
        let auth_key = self.identity.auth_key.borrow().clone().unwrap_or_default();
        self.say(proto::AuthRequest {
            signature: self.identity.machine.sign(&signed).to_vec(),
            host: self.shared.host.clone(),
            token,
            auth_key,
            ..Default::default()
        })
        .await?;
        loop {
            match self.hear().await?.message {
                ControlMessage::AuthResponse(response) => return Ok(response),
                ControlMessage::Error(error) if error.code == NOT_AUTHORIZED => {
                    *turn = None;
                    // "node 17 waits for authorization; …"
                    let id = error.message.split_whitespace().nth(1).and_then(|id| id.parse().ok());
                    self.shared.waits(id.context("ERROR 1006 names no node")?);
                }
                other => bail!("the controller refuses: {other:?}"),
            }
        }
    }

    fn announce(&self, me: &proto::NodeIdentity, now: u64) -> Result<Vec<u8>> {
        self.identity.seq.set(self.identity.seq.get() + 1);
        let statement = KeyStatement {
            network_id: NetworkId(me.network_id),
            node_id: NodeId(me.node_id),
            machine_pub: self.identity.machine.public(),
            node_pub: NodeKey::generate(&mut UnwrapErr(SysRng)).public(),
            seq: self.identity.seq.get(),
            not_before: now,
            not_after: now + 90_000,
            capabilities: 1,
        };
        let signed = SignedStatement::sign(statement, &self.identity.machine)?;
        let (statement, signature) = (*signed.bytes(), *signed.signature());
        Ok(KeyAnnounce { src: NodeId(me.node_id), dst: NodeId(0), statement, signature }.encode().to_vec())
    }

    /// A message after the admission: learnt, acknowledged.
    async fn take(&mut self, received: Received) -> Result<()> {
        let ty = received.ty;
        let (version, heard) = match received.message {
            ControlMessage::Config(config) => {
                self.peers.clear();
                let heard = self.learn(&config.peers)?;
                (config.version, heard)
            }
            ControlMessage::ConfigUpdate(update) => {
                let heard = self.learn(&update.peers)?;
                update.removed_peers.iter().for_each(|peer| _ = self.peers.remove(peer));
                (update.version, heard)
            }
            ControlMessage::Error(error) => bail!("ERROR {}: {}", error.code, error.message),
            other => bail!("unexpected: {other:?}"),
        };
        self.shared.message(self.identity.network);
        if received.ack_requested {
            self.acks += 1;
            let ack = proto::Ack {
                acked_type: (ty as u8).into(),
                count: self.acks,
                config_version: version,
                ..Default::default()
            };
            self.say(ack).await?;
        }
        if heard {
            self.shared.heard();
        }
        let all = self.shared.size.borrow().get(self.identity.network).copied().unwrap_or_default();
        if !self.complete && self.peers.values().filter(|has_key| **has_key).count() >= all {
            self.complete = true;
            self.shared.knows_all();
        }
        Ok(())
    }

    /// Whether the watched node is among them for the first time.
    fn learn(&mut self, peers: &[proto::Peer]) -> Result<bool> {
        let mut heard = false;
        for peer in peers {
            self.shared.check(peer.node_id, self.identity.network)?;
            let new = self.peers.insert(peer.node_id, !peer.statement.is_empty()).is_none();
            heard |= new && self.shared.is_watched(peer.node_id);
        }
        Ok(heard)
    }

    async fn say(&mut self, message: impl Into<ControlMessage>) -> Result<()> {
        let frames = control::encode(&message.into(), Flags::default())?;
        Ok(self.ws.send(frames.into()).await?)
    }

    /// The next control message.
    async fn hear(&mut self) -> Result<Received> {
        loop {
            let message = match self.ws.recv().await? {
                Some(Incoming::Binary(message)) => message,
                Some(Incoming::Text) => bail!("a text message"),
                None => return Err(anyhow!("the controller hung up")),
            };
            let mut out = None;
            for frame in frames(&message) {
                let frame = frame?;
                if frame.frame_type() == Some(FrameType::Pong) {
                    continue;
                }
                if let Some(received) = self.reassembler.push(&frame)? {
                    anyhow::ensure!(out.replace(received).is_none(), "two control messages in one WebSocket message");
                }
            }
            if let Some(received) = out {
                return Ok(received);
            }
        }
    }
}
