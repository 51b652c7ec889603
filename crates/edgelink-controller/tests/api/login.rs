//! Who gets in, who does not, and what is remembered of it.

use crate::controller::PASSWORD;
use crate::{Controller, Db, on_both};
use serde_json::json;

on_both!(a_login_opens_everything_and_a_logout_closes_it);

fn a_login_opens_everything_and_a_logout_closes_it(db: Db) {
    let controller = Controller::start(db);
    let me = controller.get("/api/v1/auth/me").json();
    assert_eq!(me["admin"]["username"], "alice");
    assert!(me["admin"]["last_login"].is_string());
    let other = controller.login("alice", PASSWORD).json();
    assert_eq!(other["token_type"], "Bearer");

    assert_eq!(controller.act("/api/v1/auth/logout").status, 204);
    let said = controller.get("/api/v1/nodes").problem(401, 1003);
    assert_eq!(said, "token revoked; log in again: POST /api/v1/auth/login");
    let other = format!("Bearer {}", other["token"].as_str().unwrap());
    let answer = controller.send("GET", "/api/v1/nodes", &[("authorization", &other)], "");
    assert_eq!(answer.status, 200, "another session goes on: {}", answer.text);
}

on_both!(nothing_is_answered_without_a_good_token);

fn nothing_is_answered_without_a_good_token(db: Db) {
    let controller = Controller::start(db);
    let document = controller.send("GET", "/api/v1/openapi.json", &[], "").json();
    let mut asked = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        let concrete = path.replace("{id}", "1").replace("{rid}", "1");
        for (method, operation) in item.as_object().unwrap() {
            if operation.get("security").is_none() {
                continue;
            }
            let answer = controller.send(&method.to_uppercase(), &concrete, &[], "");
            answer.problem(401, 1001);
            assert!(answer.header("www-authenticate").unwrap().starts_with("Bearer"));
            asked += 1;
        }
    }
    assert!(asked > 30, "{asked}");

    // Every other kind of token, and what is no token at all.
    let node = controller.knock(1);
    controller.act(&format!("/api/v1/nodes/{}/authorize", node.id)).json();
    let server = controller.post("/api/v1/servers", json!({ "name": "r", "url": "wss://r.example.com" })).json();
    let key = controller.post("/api/v1/auth-keys", json!({ "network_id": 1 })).json();
    let mut forged = controller.token.clone();
    forged.replace_range(forged.len() - 4.., "AAAA");
    // {"alg":"none"} with the claims of a good token.
    let none = format!("eyJhbGciOiJub25lIn0.{}.", controller.token.split('.').nth(1).unwrap());
    for token in [server["token"].as_str().unwrap(), key["key"].as_str().unwrap(), &forged, &none, "x", "", "a.b.c"] {
        let answer = controller.send("GET", "/api/v1/nodes", &[("authorization", &format!("Bearer {token}"))], "");
        answer.problem(401, 1001);
    }
    for header in ["Basic YWxpY2U6eA==", "Bearer", &controller.token] {
        controller.send("GET", "/api/v1/nodes", &[("authorization", header)], "").problem(401, 1001);
    }
}

on_both!(logins_are_throttled_and_denied_ones_are_on_record);

fn logins_are_throttled_and_denied_ones_are_on_record(db: Db) {
    let controller = Controller::start(db);
    for _ in 0..5 {
        let said = controller.login("bob", "wrong password").problem(401, 1001);
        assert_eq!(said, "the name or the password is wrong");
    }
    let answer = controller.login("bob", "wrong password");
    answer.problem(429, 4003);
    let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=31).contains(&wait), "{wait}");
    let said = controller.login("alice", "wrong password").problem(401, 1001);
    assert_eq!(said, "the name or the password is wrong", "whether an account exists is not told");
    assert_eq!(controller.login("alice", PASSWORD).status, 200, "others are not held back");

    let denied = controller.get("/api/v1/audit?action=admin.login_denied").json();
    let denied = denied.as_array().unwrap();
    assert_eq!(denied.len(), 7);
    assert_eq!(denied[0]["actor_id"], "alice");
    assert_eq!(denied[0]["details"], "wrong password");
    assert_eq!(denied[0]["ip_address"], "127.0.0.1");
    assert_eq!((&denied[1]["details"], &denied[2]["details"]), (&json!("throttled"), &json!("unknown account")));
    let logins = controller.get("/api/v1/audit?action=admin.login&actor_id=alice").json();
    assert_eq!(logins.as_array().unwrap().len(), 2);
}

on_both!(an_administrator_who_is_changed_must_log_in_again);

fn an_administrator_who_is_changed_must_log_in_again(db: Db) {
    let controller = Controller::start(db);
    let bob = controller.post("/api/v1/admins", json!({ "username": "bob", "password": "bob's password" })).json();
    let path = format!("/api/v1/admins/{}", bob["id"]);
    let mut session = controller;
    let token = |session: &Controller, name: &str, password: &str| {
        session.login(name, password).json()["token"].as_str().unwrap().to_owned()
    };
    let alice = token(&session, "alice", PASSWORD);
    let bob_token = token(&session, "bob", "bob's password");

    // Not without his present password.
    session.token = bob_token.clone();
    session.put(&path, json!({ "password": "another password" })).problem(403, 1001);
    let wrong = json!({ "password": "another password", "current_password": "wrong password" });
    session.put(&path, wrong).problem(403, 1001);
    // `iat` has whole seconds: a token of this very second would survive.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let right = json!({ "password": "another password", "current_password": "bob's password" });
    session.put(&path, right).json();
    session.get("/api/v1/nodes").problem(401, 1003);
    session.login("bob", "bob's password").problem(401, 1001);
    session.token = token(&session, "bob", "another password");
    session.get("/api/v1/nodes").json();

    std::thread::sleep(std::time::Duration::from_millis(1100));
    let bobs = std::mem::replace(&mut session.token, alice);
    session.put(&path, json!({ "enabled": false })).json();
    let answer = session.send("GET", "/api/v1/nodes", &[("authorization", &format!("Bearer {bobs}"))], "");
    answer.problem(401, 1003);
    session.login("bob", "another password").problem(401, 1001);

    // Nobody may lock everybody out.
    let said = session.put("/api/v1/admins/1", json!({ "enabled": false })).problem(409, 2002);
    assert_eq!(said, "alice is the last administrator who can log in; make another one first");
    session.delete("/api/v1/admins/1").problem(409, 2002);
    session.delete(&path).json();
    session.get(&path).problem(404, 2002);
}
