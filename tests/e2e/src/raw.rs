//! A client that breaks the rules: WSS-Mesh by hand, on the protocol's own crates but without a node's core.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
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
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    runtime::Runtime,
    time::timeout,
};

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
    /// A local port that leads to `to` from `host`; with `pin` the server speaks TLS.
    ///
    /// # Errors
    ///
    /// When it cannot be opened.
    pub fn open(host: Host, to: SocketAddr, pin: Option<String>) -> Result<Self> {
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

    /// Upgrades by hand, sends these bytes of WebSocket frames and returns all that comes until the other end closes, HTTP
    /// header included: for what [`Channel`] cannot send.
    ///
    /// # Errors
    ///
    /// When the connection cannot be made or goes on for more than 10 s.
    pub fn exchange(&self, path: &str, frames: &[u8]) -> Result<Vec<u8>> {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: wss-mesh.1\r\n\r\n"
        );
        let exchange = async {
            let mut stream = self.stream().await?;
            stream.write_all(request.as_bytes()).await?;
            stream.write_all(frames).await?;
            stream.flush().await?;
            let mut answer = Vec::new();
            // Until the end of the connection or of the WebSocket: its close frame with code 1008.
            while !answer.ends_with(&[0x88, 2, 0x03, 0xf0]) && stream.read_buf(&mut answer).await? > 0 {}
            anyhow::Ok(answer)
        };
        let answer = self.runtime.block_on(async { timeout(PATIENCE, exchange).await });
        answer.map_err(|_| anyhow!("the connection lives on"))?
    }

    /// GETs a path and returns the body.
    ///
    /// # Errors
    ///
    /// When the answer is not 200.
    pub fn get(&self, path: &str) -> Result<String> {
        let exchange = async {
            let mut stream = self.stream().await?;
            let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            anyhow::Ok(answer)
        };
        let answer = self.runtime.block_on(async { timeout(PATIENCE, exchange).await });
        let answer = answer.map_err(|_| anyhow!("no answer"))??;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP header")?;
        ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
        Ok(body.to_owned())
    }

    async fn stream(&self) -> Result<Box<dyn Stream>> {
        let stream = tokio::net::TcpStream::connect(self.address).await?;
        let Some(pin) = self.pin.as_deref() else { return Ok(Box::new(stream)) };
        let tls = tls::client_config(&ClientTls { pin: Some(pin.parse()?), ..ClientTls::default() })?;
        let name = rustls_pki_types::ServerName::from(IpAddr::V4(Ipv4Addr::LOCALHOST));
        Ok(Box::new(tokio_rustls::TlsConnector::from(tls).connect(name, stream).await?))
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

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
    Control(Box<ControlMessage>),
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
            Answer::Control(message) => match &**message {
                ControlMessage::Error(error) => Some(error.clone()),
                _ => None,
            },
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

    /// Waits until the connection is over, in whatever way, and takes no interest in what comes before.
    ///
    /// # Errors
    ///
    /// When it goes on for more than 10 s.
    pub fn wait_end(&mut self) -> Result<()> {
        let ws = self.ws.as_mut().context("closed")?;
        let end = async { while let Ok(Some(_)) = ws.recv().await {} };
        let end = self.door.runtime.block_on(async { timeout(PATIENCE, end).await });
        end.map_err(|_| anyhow!("the connection lives on"))
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
                answers.push(Answer::Control(Box::new(received.message)));
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

fn auth_response(channel: &mut Channel<'_>) -> Result<proto::AuthResponse> {
    channel.wait("AUTH_RESPONSE", |answer| match answer {
        Answer::Control(message) => match &**message {
            ControlMessage::AuthResponse(response) => Some(response.clone()),
            _ => None,
        },
        _ => None,
    })
}

fn challenge_of(channel: &mut Channel<'_>) -> Result<([u8; 32], u32)> {
    let response = auth_response(channel)?;
    let challenge = response.challenge.as_slice().try_into().context("no challenge")?;
    Ok((challenge, response.server_id))
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
        let response = auth_response(&mut channel)?;
        let identity = response.identity.context("no identity")?;
        let (node, network) = (NodeId(identity.node_id), NetworkId(identity.network_id));
        let node_key = NodeKey::generate(&mut UnwrapErr(SysRng));
        let tokens = response.tokens.context("no tokens")?;
        let mut rogue = Self { machine, node_key, node, network, tokens, config: proto::Config::default() };
        let signed = rogue.statement(&rogue.node_key, response.server_time_ms)?;
        let announce = KeyAnnounce {
            src: node,
            dst: NodeId::CONTROLLER,
            statement: *signed.bytes(),
            signature: *signed.signature(),
        };
        channel.send(announce.encode())?;
        rogue.config = channel.wait("CONFIG", |answer| match answer {
            Answer::Control(message) => match &**message {
                ControlMessage::Config(config) => Some(config.clone()),
                _ => None,
            },
            _ => None,
        })?;
        Ok((rogue, channel))
    }

    /// A statement of ours for this session key.
    ///
    /// # Errors
    ///
    /// Never in practice.
    pub fn statement(&self, key: &NodeKey, now_ms: u64) -> Result<SignedStatement> {
        let statement = KeyStatement {
            network_id: self.network,
            node_id: self.node,
            machine_pub: self.machine.public(),
            node_pub: key.public(),
            seq: now_ms,
            not_before: now_ms / 1000,
            not_after: now_ms / 1000 + 86_400,
            capabilities: 0,
        };
        Ok(SignedStatement::sign(statement, &self.machine)?)
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
        auth_response(&mut channel)?;
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
