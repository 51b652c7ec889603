//! Every kind of token at every door, through the real sockets of a controller and its relay: each opens its own and no
//! other. The cores' own tests have the same table under every algorithm; this one sees that each path leads to the right
//! core with the right keys.

use crate::controller::{PATIENCE, block_on, knock};
use crate::{Controller, Db};
use bytes::Bytes;
use edgelink_auth::token::{AdminClaims, AuthClaims, Issuer, MeshClaims, RelayClaims, TokenKeys};
use edgelink_auth::{MachineKey, auth_key, challenge};
use edgelink_model::records::{EnrollRequest, NodeRecord};
use edgelink_model::{ErrorCode, ServerId};
use edgelink_net::tls::{self, ClientTls};
use edgelink_net::ws::{Dial, Incoming, WebSocket, dial};
use edgelink_wire::control::{self, ControlMessage, Reassembler, proto};
use edgelink_wire::{Flags, frames};
use serde_json::json;
use std::time::{Duration, Instant};

const HOST: &str = "127.0.0.1";

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Door {
    /// `/ws/control`, where a node shows what the controller gave it.
    Control,
    /// `/ws/control`, where an unknown machine shows what an administrator gave it.
    Enrolment,
    Server,
    Data,
    Mesh,
    Rest,
}

impl Door {
    pub(crate) const ALL: [Self; 6] = [Control, Enrolment, Server, Data, Mesh, Rest];
}

use Door::{Control, Data, Enrolment, Mesh, Rest, Server};

#[test]
fn every_kind_of_token_opens_its_own_door_and_no_other() {
    let controller = Controller::start(Db::Sqlite);
    let site = Site::new(&controller);
    for (kind, own, token) in site.one_of_each() {
        for door in Door::ALL {
            let refused = Err(ErrorCode::InvalidToken.as_u16());
            let mut outcome = try_door(&controller, &site.machine, door, &token);
            if door == own {
                // The node and the server were added a moment ago: the cores learn of them on their way.
                let begun = Instant::now();
                while outcome.is_err() && begun.elapsed() < PATIENCE {
                    std::thread::sleep(Duration::from_millis(50));
                    outcome = try_door(&controller, &site.machine, door, &token);
                }
                assert_eq!(outcome, Ok(()), "the {kind} at its own door, {door:?}");
            } else {
                assert_eq!(outcome, refused, "the {kind} at {door:?}");
            }
        }
    }
}

/// A node and a relay that the controller knows.
struct Site<'a> {
    controller: &'a Controller,
    machine: MachineKey,
    node: NodeRecord,
    /// The external relay, and its token.
    server: ServerId,
    server_token: String,
    /// The controller's own relay.
    builtin: ServerId,
}

impl<'a> Site<'a> {
    fn new(controller: &'a Controller) -> Self {
        let machine = MachineKey::from_seed([1; 32]);
        let request = EnrollRequest { machine_key_pub: machine.public().0, ..knock(1, None) };
        let node = controller.store(async |store| store.enroll(request).await.unwrap());
        controller.act(&format!("/api/v1/nodes/{}/authorize", node.id)).json();
        let server = controller.post("/api/v1/servers", json!({ "name": "r", "url": "wss://r.example.com" })).json();
        // A relay that is asked without a token says who it is.
        let builtin = block_on(async {
            let mut ws = connect(&controller.address, "/ws/mesh").await;
            match ask(&mut ws, proto::AuthRequest { protocol_version: 1, ..Default::default() }).await {
                ControlMessage::AuthResponse(response) => ServerId(response.server_id),
                other => panic!("{other:?}"),
            }
        });
        Self {
            controller,
            machine,
            node,
            server: ServerId(server["id"].as_u64().unwrap().try_into().unwrap()),
            server_token: server["token"].as_str().unwrap().to_owned(),
            builtin,
        }
    }

    /// A good one of each kind, by the controller itself or with its keys, and the door that it is for.
    fn one_of_each(&self) -> [(&'static str, Door, String); 6] {
        let keys = self.controller.store(async |store| store.setting(edgelink_store::TOKEN_KEYS).await);
        let issuer = Issuer::new(&TokenKeys::deserialise(&keys.unwrap().unwrap()).unwrap());
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let (iat, exp) = (now, now + 3600);
        let (id, network, machine) = (self.node.id, self.node.network_id, self.machine.public());
        let auth = AuthClaims::new(id, &machine, network, None, iat, exp, "jti-auth".to_owned());
        let relay = RelayClaims::new(id, &machine, network, vec![self.builtin], iat, exp, "jti-relay".to_owned());
        let admin = AdminClaims { admin_id: 1, username: "alice".to_owned(), iat, exp, jti: "jti-admin".to_owned() };
        let mesh = MeshClaims { server_id: self.server, iat, exp, jti: "jti-mesh".to_owned() };
        let key = json!({ "network_id": network, "reusable": true, "preauthorized": true });
        let key = self.controller.post("/api/v1/auth-keys", key).json();
        [
            ("auth_token", Control, issuer.auth(&auth).unwrap()),
            ("auth key", Enrolment, key["key"].as_str().unwrap().to_owned()),
            ("server_token", Server, self.server_token.clone()),
            ("relay_token", Data, issuer.relay(&relay).unwrap()),
            ("mesh token", Mesh, issuer.mesh(&mesh, self.builtin).unwrap()),
            ("admin token", Rest, issuer.admin(&admin).unwrap()),
        ]
    }
}

/// Whether this token opens this door, everything else about the request being right, or the error. Whoever is refused at
/// a WebSocket is disconnected too.
pub(crate) fn try_door(controller: &Controller, machine: &MachineKey, door: Door, token: &str) -> Result<(), u16> {
    let (address, token) = (&controller.address, token.to_owned());
    let first = |path, request: proto::AuthRequest| {
        block_on(async {
            let mut ws = connect(address, path).await;
            let answer = ask(&mut ws, request).await;
            outcome(&mut ws, answer).await
        })
    };
    match door {
        Control => block_on(async {
            let (mut ws, answer) = dialogue(address, machine, proto::AuthRequest { token, ..Default::default() }).await;
            outcome(&mut ws, answer).await
        }),
        Enrolment => block_on(async {
            // Another one each time: a machine that is known needs no key.
            let stranger = MachineKey::from_seed(*auth_key::hash(&token).as_bytes().first_chunk().unwrap());
            let proof = proto::AuthRequest { auth_key: token, ..Default::default() };
            let (mut ws, answer) = dialogue(address, &stranger, proof).await;
            outcome(&mut ws, answer).await
        }),
        Server => first("/ws/server", proto::AuthRequest { protocol_version: 1, token, ..Default::default() }),
        Mesh => first("/ws/mesh", proto::AuthRequest { protocol_version: 1, token, ..Default::default() }),
        Data => first("/ws/data", proto::AuthRequest { token, ..hello(machine) }),
        Rest => {
            let bearer = format!("Bearer {token}");
            let answer = controller.send("GET", "/api/v1/nodes", &[("authorization", &bearer)], "");
            if answer.status == 200 {
                return Ok(());
            }
            answer.problem(401, ErrorCode::InvalidToken.as_u16());
            Err(ErrorCode::InvalidToken.as_u16())
        }
    }
}

/// What `/ws/control` answers to the signed `proof`.
pub(crate) fn prove(address: &str, machine: &MachineKey, proof: proto::AuthRequest) -> ControlMessage {
    block_on(async { dialogue(address, machine, proof).await.1 })
}

/// The dialogue on `/ws/control`: hello, challenge, and `proof` with the signature.
async fn dialogue(address: &str, machine: &MachineKey, proof: proto::AuthRequest) -> (WebSocket, ControlMessage) {
    let mut ws = connect(address, "/ws/control").await;
    let challenge = match ask(&mut ws, hello(machine)).await {
        ControlMessage::AuthResponse(response) => response.challenge.try_into().unwrap(),
        other => panic!("{other:?}"),
    };
    let signed = challenge::control_message(HOST, &challenge, &machine.public());
    let signature = machine.sign(&signed).to_vec();
    let answer = ask(&mut ws, proto::AuthRequest { signature, host: HOST.to_owned(), ..proof }).await;
    (ws, answer)
}

fn hello(machine: &MachineKey) -> proto::AuthRequest {
    proto::AuthRequest { protocol_version: 1, machine_pub: machine.public().0.to_vec(), ..Default::default() }
}

async fn connect(address: &str, path: &str) -> WebSocket {
    let tls = tls::client_config(&ClientTls::default()).unwrap();
    dial(&Dial { allow_plain: true, ..Dial::new(format!("ws://{address}{path}"), tls) }).await.unwrap()
}

/// Sends this and waits for the first message.
async fn ask(ws: &mut WebSocket, request: proto::AuthRequest) -> ControlMessage {
    let request = control::encode(&ControlMessage::AuthRequest(request), Flags::NONE).unwrap();
    ws.send(Bytes::from(request)).await.unwrap();
    let mut reassembler = Reassembler::new();
    loop {
        let Incoming::Binary(message) = receive(ws).await.expect("an answer before the end") else { panic!("text") };
        for frame in frames(&message) {
            if let Some(received) = reassembler.push(&frame.unwrap()).unwrap() {
                return received.message;
            }
        }
    }
}

async fn outcome(ws: &mut WebSocket, answer: ControlMessage) -> Result<(), u16> {
    match answer {
        ControlMessage::AuthResponse(_) => Ok(()),
        ControlMessage::Error(error) => {
            assert!(receive(ws).await.is_none(), "a refused connection goes on");
            Err(error.code.try_into().unwrap())
        }
        other => panic!("{other:?}"),
    }
}

async fn receive(ws: &mut WebSocket) -> Option<Incoming> {
    tokio::time::timeout(PATIENCE, ws.recv()).await.expect("silence").ok().flatten()
}
