//! A client that breaks the rules: WSS-Mesh by hand, on the protocol's own crates but without a node's core.

use std::{
    io,
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::Bytes;
use edgelink_auth::{KeyStatement, MachineKey, NodeKey, SignedStatement, challenge};
use edgelink_model::{NetworkId, NodeId, ServerId};
use edgelink_net::{
    tls::{self, ClientTls},
    ws::{Dial, Incoming, WebSocket, dial},
};
use edgelink_testbed::Host;
use edgelink_wire::{
    Flags, FrameType,
    control::{self, ControlMessage, Reassembler, proto},
    data::{self, DataHeader},
    frames,
    key_announce::KeyAnnounce,
};
use getrandom::SysRng;
use rand_core::UnwrapErr;
use tokio::{runtime::Runtime, time::timeout};

const PATIENCE: Duration = Duration::from_secs(10);

/// A port of the test process that leads to the controller, as if dialled from a host.
///
/// The test process is in none of the lab's namespaces; the sockets behind this door are.
#[derive(Debug)]
pub struct Door {
    runtime: Runtime,
    address: SocketAddr,
    pin: Option<String>,
}

impl Door {
    pub(crate) fn open(host: Host, to: SocketAddr, pin: Option<String>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        // Ends with the test process; a forgotten door costs nothing.
        thread::spawn(move || {
            for inner in listener.incoming().map_while(Result::ok) {
                match host.tcp_connect(to, PATIENCE) {
                    Ok(outer) => forward(inner, outer),
                    Err(error) => eprintln!("the door does not lead to {to}: {error}"),
                }
            }
        });
        Ok(Self { runtime, address, pin })
    }

    /// Opens a WebSocket to this path.
    ///
    /// # Errors
    ///
    /// As the dialler says.
    pub fn dial(&self, path: &str) -> Result<Channel<'_>> {
        let pin = self.pin.as_deref().map(str::parse).transpose()?;
        let scheme = if pin.is_some() { "wss" } else { "ws" };
        let tls = tls::client_config(&ClientTls { pin, ..ClientTls::default() })?;
        let how = Dial { allow_plain: true, ..Dial::new(format!("{scheme}://{}{path}", self.address), tls) };
        let ws = self.runtime.block_on(dial(&how))?;
        Ok(Channel { door: self, ws: Some(ws), reassembler: Reassembler::new() })
    }
}

/// Copies both ways, each until its sender ends. That an end breaks off is what tests look at, not an error here.
fn forward(one: TcpStream, other: TcpStream) {
    let copy = |from: &TcpStream, to: &TcpStream| -> io::Result<()> {
        let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
        thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
        Ok(())
    };
    if let Err(error) = copy(&one, &other).and_then(|()| copy(&other, &one)) {
        eprintln!("the door is stuck: {error}");
    }
}

/// What came in.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// A control message.
    Control(ControlMessage),
    /// Any other frame, whole.
    Frame(Vec<u8>),
    /// The other end has closed; its WebSocket close code.
    Closed(Option<u16>),
}

/// One WebSocket, with frames in and out.
#[derive(Debug)]
pub struct Channel<'a> {
    door: &'a Door,
    ws: Option<WebSocket>,
    reassembler: Reassembler,
}

impl Channel<'_> {
    /// Sends one binary message, whatever it holds.
    ///
    /// # Errors
    ///
    /// When the connection is gone.
    pub fn send(&mut self, message: impl Into<Vec<u8>>) -> Result<()> {
        let ws = self.ws.as_mut().context("closed")?;
        Ok(self.door.runtime.block_on(ws.send(Bytes::from(message.into())))?)
    }

    /// Sends a control message.
    ///
    /// # Errors
    ///
    /// As [`Self::send`].
    pub fn say(&mut self, message: ControlMessage) -> Result<()> {
        self.send(control::encode(&message, Flags::default())?)
    }

    /// The next frames to arrive, until `wanted` picks one.
    ///
    /// # Errors
    ///
    /// When it does not come within 10 s; what came instead is in the error.
    pub fn wait<T>(&mut self, what: &str, mut wanted: impl FnMut(&Answer) -> Option<T>) -> Result<T> {
        let mut seen = Vec::new();
        loop {
            for answer in self.receive().with_context(|| format!("{what}; before it came {seen:?}"))? {
                if let Some(found) = wanted(&answer) {
                    return Ok(found);
                }
                let ended = matches!(answer, Answer::Closed(_));
                seen.push(answer);
                ensure!(!ended, "{what}: closed before; came {seen:?}");
            }
        }
    }

    /// Waits for an ERROR.
    ///
    /// # Errors
    ///
    /// As [`Self::wait`].
    pub fn wait_error(&mut self) -> Result<proto::Error> {
        self.wait("an ERROR", |answer| match answer {
            Answer::Control(ControlMessage::Error(error)) => Some(error.clone()),
            _ => None,
        })
    }

    /// Waits until the other end closes, and returns the close code.
    ///
    /// # Errors
    ///
    /// As [`Self::wait`].
    pub fn wait_closed(&mut self) -> Result<Option<u16>> {
        self.wait("the end", |answer| match answer {
            Answer::Closed(code) => Some(*code),
            _ => None,
        })
    }

    /// Sends a PING and waits for its PONG: everything sent before has then been handled. Returns what came before.
    ///
    /// # Errors
    ///
    /// As [`Self::wait`].
    pub fn round_trip(&mut self, seq: u32) -> Result<Vec<Answer>> {
        let ping = edgelink_wire::ping::Ping { sent_us: 0, seq };
        self.send(ping.encode(FrameType::Ping))?;
        let pong = ping.encode(FrameType::Pong);
        let mut before = Vec::new();
        self.wait("PONG", |answer| match answer {
            Answer::Frame(frame) if *frame == pong => Some(()),
            other => {
                before.push(other.clone());
                None
            }
        })?;
        Ok(before)
    }

    fn receive(&mut self) -> Result<Vec<Answer>> {
        let ws = self.ws.as_mut().context("closed")?;
        let message = self.door.runtime.block_on(async { timeout(PATIENCE, ws.recv()).await });
        let message = match message.map_err(|_| anyhow!("nothing came within {PATIENCE:?}"))? {
            Ok(Some(Incoming::Binary(message))) => message,
            Ok(Some(Incoming::Text)) => bail!("a text message came"),
            Ok(None) => return Ok(vec![Answer::Closed(ws.close_reason().map(|reason| reason.code))]),
            Err(error) => return Err(error.into()),
        };
        let mut answers = Vec::new();
        for frame in frames(&message) {
            let frame = frame?;
            let control = !matches!(
                frame.frame_type(),
                None | Some(FrameType::Ping | FrameType::Pong | FrameType::Data | FrameType::KeyAnnounce)
                    | Some(FrameType::P2pPing | FrameType::P2pPong)
            );
            if !control {
                answers.push(Answer::Frame(frame.raw.to_vec()));
            } else if let Some(received) = self.reassembler.push(&frame)? {
                answers.push(Answer::Control(received.message));
            }
        }
        Ok(answers)
    }
}

/// A machine that can enrol, and what the controller gave it.
pub struct Rogue {
    /// Its identity.
    pub machine: MachineKey,
    /// Its session key.
    pub node_key: NodeKey,
    /// Its id.
    pub node: NodeId,
    /// Its network.
    pub network: NetworkId,
    /// Its tokens.
    pub tokens: proto::Tokens,
    /// Its first configuration.
    pub config: proto::Config,
}

impl std::fmt::Debug for Rogue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rogue").field("node", &self.node).field("network", &self.network).finish_non_exhaustive()
    }
}

/// The first AUTH_REQUEST of a machine.
#[must_use]
pub fn hello(machine: &MachineKey, token: &str) -> ControlMessage {
    ControlMessage::AuthRequest(proto::AuthRequest {
        protocol_version: 1,
        machine_pub: machine.public().0.to_vec(),
        token: token.to_owned(),
        host_info: Some(proto::HostInfo { hostname: "rogue".to_owned(), ..Default::default() }),
        ..Default::default()
    })
}

/// A fresh machine key.
#[must_use]
pub fn machine() -> MachineKey {
    MachineKey::generate(&mut UnwrapErr(SysRng))
}

fn challenge_of(channel: &mut Channel<'_>) -> Result<([u8; 32], u32)> {
    channel.wait("a challenge", |answer| match answer {
        Answer::Control(ControlMessage::AuthResponse(response)) => {
            Some((response.challenge.as_slice().try_into().ok()?, response.server_id))
        }
        _ => None,
    })
}

impl Rogue {
    /// Enrols with an auth key as a new machine, announces a node key and takes the first CONFIG. The channel stays open
    /// as long as it is kept.
    ///
    /// # Errors
    ///
    /// When any of it is refused.
    pub fn enrol<'a>(door: &'a Door, auth_key: &str) -> Result<(Self, Channel<'a>)> {
        let machine = machine();
        let mut channel = door.dial("/ws/control")?;
        channel.say(hello(&machine, ""))?;
        let (challenge, _) = challenge_of(&mut channel)?;
        let host = "127.0.0.1";
        let message = challenge::control_message(host, &challenge, &machine.public());
        channel.say(ControlMessage::AuthRequest(proto::AuthRequest {
            signature: machine.sign(&message).to_vec(),
            host: host.to_owned(),
            auth_key: auth_key.to_owned(),
            ..Default::default()
        }))?;
        let response = channel.wait("AUTH_RESPONSE", |answer| match answer {
            Answer::Control(ControlMessage::AuthResponse(response)) => Some(response.clone()),
            _ => None,
        })?;
        let identity = response.identity.context("no identity")?;
        let (node, network) = (NodeId(identity.node_id), NetworkId(identity.network_id));
        let node_key = NodeKey::generate(&mut UnwrapErr(SysRng));
        let now = response.server_time_ms;
        let statement = KeyStatement {
            network_id: network,
            node_id: node,
            machine_pub: machine.public(),
            node_pub: node_key.public(),
            seq: now,
            not_before: now / 1000,
            not_after: now / 1000 + 86_400,
            capabilities: 0,
        };
        let signed = SignedStatement::sign(statement, &machine)?;
        let announce = KeyAnnounce {
            src: node,
            dst: NodeId::CONTROLLER,
            statement: *signed.bytes(),
            signature: *signed.signature(),
        };
        channel.send(announce.encode())?;
        let config = channel.wait("CONFIG", |answer| match answer {
            Answer::Control(ControlMessage::Config(config)) => Some(config.clone()),
            _ => None,
        })?;
        let tokens = response.tokens.context("no tokens")?;
        Ok((Self { machine, node_key, node, network, tokens, config }, channel))
    }

    /// Opens `/ws/data` and authenticates with its relay_token.
    ///
    /// # Errors
    ///
    /// When that is refused.
    pub fn relay<'a>(&self, door: &'a Door) -> Result<Channel<'a>> {
        let mut channel = door.dial("/ws/data")?;
        channel.say(hello(&self.machine, &self.tokens.relay_token))?;
        let (challenge, server) = challenge_of(&mut channel)?;
        let message = challenge::relay_message(ServerId(server), &self.tokens.relay_token, &challenge);
        channel.say(ControlMessage::AuthRequest(proto::AuthRequest {
            signature: self.machine.sign(&message).to_vec(),
            ..Default::default()
        }))?;
        channel.wait("the relay's consent", |answer| match answer {
            Answer::Control(ControlMessage::AuthResponse(_)) => Some(()),
            _ => None,
        })?;
        Ok(channel)
    }
}

/// A DATA frame that carries this, in clear: nobody can open it, which is not the relay's business.
///
/// # Errors
///
/// When it is too long.
pub fn data_frame(src: NodeId, dst: NodeId, body: &[u8]) -> Result<Vec<u8>> {
    let mut frame = vec![0; data::OVERHEAD + body.len()];
    let room = frame.get_mut(data::PLAINTEXT_OFFSET..).and_then(|rest| rest.get_mut(..body.len()));
    room.context("no room")?.copy_from_slice(body);
    let clear = DataHeader { src, dst, nonce: crate::random()? };
    data::write_header(&mut frame, FrameType::Data, Flags::default(), &clear)?;
    Ok(frame)
}
