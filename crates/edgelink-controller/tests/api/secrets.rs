//! No secret of an installation in any log line, at debug level, nor in any answer but the one that issues it.

use crate::controller::PASSWORD;
use crate::doors::{Door, prove, try_door};
use crate::{Answer, Controller, Db, on_both};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use edgelink_auth::MachineKey;
use edgelink_wire::control::{ControlMessage, proto};
use serde_json::{Value, json};

const JWT_SECRET: &str = "the+secret/of-this-installation0123456789";

/// What must be nowhere: what it is, and every way to write it.
#[derive(Default)]
struct Secrets(Vec<(String, Vec<String>)>);

impl Secrets {
    fn text(&mut self, what: &str, secret: &str) {
        assert!(secret.len() >= 8, "{what}: {secret:?} is too short to be looked for");
        self.0.push((what.to_owned(), vec![secret.to_owned()]));
    }

    /// A token: a part of it gives it away too. The header is everybody's.
    fn token(&mut self, what: &str, token: &str) {
        let parts: Vec<String> = token.split('.').skip(1).map(str::to_owned).collect();
        assert!(parts.len() == 2 && parts.iter().all(|part| part.len() >= 40), "{what} is no token: {token}");
        self.0.push((what.to_owned(), parts));
    }

    fn bytes(&mut self, what: &str, bytes: &[u8]) {
        assert!(bytes.len() >= 32, "{what}");
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let list = format!("{bytes:?}");
        let list = list.trim_matches(['[', ']']).to_owned();
        let base64 = [STANDARD.encode(bytes), URL_SAFE_NO_PAD.encode(bytes)];
        let upper = hex.to_uppercase();
        self.0.push((what.to_owned(), [&base64[..], &[hex, upper, list]].concat()));
    }

    #[track_caller]
    fn check(&self, place: &str, text: &str) {
        for (what, forms) in &self.0 {
            for form in forms {
                let Some((before, _)) = text.split_once(form.as_str()) else { continue };
                let line = text.lines().nth(before.lines().count().saturating_sub(1)).unwrap_or_default();
                panic!("{what} is in {place}: {line}");
            }
        }
    }
}

on_both!(no_secret_is_in_any_log_line_or_answer);

fn no_secret_is_in_any_log_line_or_answer(db: Db) {
    let config = format!(r#""log": "debug", "jwt": {{ "algorithm": "HS256", "secret": "{JWT_SECRET}" }},"#);
    let mut c = Controller::start_with(db, &config);
    let mut secrets = Secrets::default();
    let mut answers: Vec<(String, String)> = Vec::new();
    let mut keep = |what: &str, answer: &Answer| answers.push((what.to_owned(), answer.text.clone()));

    // What was there before.
    secrets.text("jwt.secret", JWT_SECRET);
    secrets.bytes("jwt.secret", JWT_SECRET.as_bytes());
    secrets.text("the administrator's password", PASSWORD);
    secrets.text("a password's hash", "$argon2id");
    secrets.text("MariaDB's password", edgelink_test_mariadb::PASSWORD);
    secrets.text("MariaDB's password in its URL", "s3cret%2F");
    let keys = c.store(async |store| store.setting(edgelink_store::TOKEN_KEYS).await.unwrap().unwrap());
    let keys: Value = serde_json::from_str(&keys).unwrap();
    for (name, key) in keys.as_object().unwrap().iter().filter(|(_, key)| key.is_string()) {
        secrets.bytes(name, &STANDARD.decode(key.as_str().unwrap()).unwrap());
    }
    assert!(secrets.0.len() >= 6 + 4, "the installation's keys are read");

    // What is issued: by this answer and by no other.
    let issue = |answer: Answer, field: &str| answer.json()[field].as_str().unwrap().to_owned();
    c.token = issue(c.login("alice", PASSWORD), "token");
    secrets.token("the administrator's token", &c.token);
    let key =
        issue(c.post("/api/v1/auth-keys", json!({ "network_id": 1, "reusable": true, "preauthorized": true })), "key");
    secrets.text("the auth key", &key);
    let server = c.post("/api/v1/servers", json!({ "name": "r", "url": "wss://r.example.com" }));
    let id = server.json()["id"].clone();
    let first = issue(server, "token");
    let second = issue(c.act(&format!("/api/v1/servers/{id}/token")), "token");
    secrets.token("the server_token", &first);
    secrets.token("the second server_token", &second);
    let machine = MachineKey::from_seed([7; 32]);
    let tokens = match prove(&c.address, &machine, proto::AuthRequest { auth_key: key.clone(), ..Default::default() }) {
        ControlMessage::AuthResponse(response) => response.tokens.unwrap(),
        other => panic!("{other:?}"),
    };
    secrets.token("the auth_token", &tokens.auth_token);
    secrets.token("the relay_token", &tokens.relay_token);

    // Each at every door: let in at one, refused at the others, which all leave their lines.
    let bearers = [&*c.token, &key, &first, &second, &tokens.auth_token, &tokens.relay_token];
    for token in bearers {
        for door in Door::ALL {
            let _ = try_door(&c, &machine, door, token);
        }
        for header in ["Bearer ", "Basic ", ""] {
            let header = format!("{header}{token}");
            keep("refused", &c.send("GET", "/api/v1/nodes/77", &[("authorization", &header)], ""));
        }
        keep("a token in the query", &c.get(&format!("/api/v1/nodes?token={token}")));
    }

    // People's mistakes: what they typed is not said back where it may be a password.
    let typed = "Tr0ub4dor&3-typed-by-mistake";
    secrets.text("what was typed as a password", typed);
    keep("a wrong password", &c.login("alice", typed));
    keep("an unknown user", &c.login("mallory", typed));
    for body in [
        json!({ "username": "bob", "pasword": typed }),
        json!({ "username": "bob", "password": [typed] }),
        json!({ "username": "bob", "password": { "is": typed } }),
        json!({ "username": "bob", "password": typed.repeat(100) }),
        json!({ "username": "alice", "password": typed }),
        json!({ "username": "bob", "password": typed }),
    ] {
        keep("POST admins", &c.post("/api/v1/admins", body.clone()));
        keep(
            "POST login",
            &c.send("POST", "/api/v1/auth/login", &[("content-type", "application/json")], &body.to_string()),
        );
    }
    keep("PUT admins", &c.put("/api/v1/admins/1", json!({ "password": typed, "enabled": "yes" })));

    // Everything that can be read.
    let document = c.send("GET", "/api/v1/openapi.json", &[], "").json();
    let mut read = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        // The document itself is the same everywhere, and its example of a password is ours.
        if item.get("get").is_some() && !path.ends_with("/openapi.json") {
            let path = path.replace("{id}", "1").replace("{rid}", "1");
            let answer = c.get(&path);
            read += usize::from(answer.status == 200);
            keep(&path, &answer);
        }
    }
    assert!(read >= 14, "{read} were answered");
    keep(&format!("servers/{id}"), &c.get(&format!("/api/v1/servers/{id}")));
    for path in ["/metrics", "/health", "/"] {
        keep(path, &c.send("GET", path, &[], ""));
    }

    for (what, text) in &answers {
        secrets.check(&format!("the answer to {what}"), text);
    }
    let log = c.log();
    secrets.check("the log", &log);
    // Nor any token of which we do not know: all begin so.
    assert!(!log.contains("eyJ"), "a token is in the log: {}", log.lines().find(|line| line.contains("eyJ")).unwrap());
    // The controls: debug lines are there, of what was refused too, and a public thing is found where it belongs.
    for word in ["DEBUG", "control connection refused", "authentication failed"] {
        assert!(log.contains(word), "{word:?} is not in the log");
    }
    let found = |secret: &str| answers.iter().any(|(_, text)| text.contains(secret));
    let public: String = machine.public().to_string();
    assert!(found(&public), "the node's public key is in an answer");
}
