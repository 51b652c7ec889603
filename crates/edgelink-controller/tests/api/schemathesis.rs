//! schemathesis, an independent reader of our OpenAPI document, asks every operation for good and bad things and checks
//! the answers: statuses, media types, headers and bodies as described, bad data refused, good data accepted, no 5xx,
//! nothing without a token, nothing after its deletion. Bounded, with a fixed seed.
//!
//! `EDGELINK_PYTHON` names a Python with the package `schemathesis` (`make test` makes one); without the variable `python3`
//! is tried, and a Python without the package is no failure.

use crate::{Controller, Db, on_both};
use edgelink_store::NewRoute;
use std::process::{Command, Stdio};

/// Of each operation, per phase.
fn examples(db: Db) -> &'static str {
    match db {
        Db::Sqlite => "4",
        // What the databases do differently shows in the first.
        Db::MariaDb => "1",
    }
}

on_both!(schemathesis_finds_nothing);

fn schemathesis_finds_nothing(db: Db) {
    let named = std::env::var("EDGELINK_PYTHON").ok();
    let python = named.clone().unwrap_or_else(|| "python3".to_owned());
    let has = Command::new(&python)
        .args(["-c", "import schemathesis"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    assert!(has || named.is_none(), "EDGELINK_PYTHON has no package `schemathesis`");
    if !has {
        eprintln!("NOT TESTED: python3 has no package `schemathesis`; `make test` provides one");
        return;
    }

    let c = Controller::start(db);
    // Something to work on: nodes with routes, and administrators before the one who asks, since a small id is often asked for.
    c.store(async |store| {
        for machine in 1..=20 {
            let node = store.enroll(crate::controller::knock(machine, None)).await.unwrap();
            store.authorize_node(node.id).await.unwrap();
            let cidr = format!("192.168.{machine}.0/24").parse().unwrap();
            let route = NewRoute { node_id: node.id, cidr, priority: 100, weight: 100, enabled: machine % 2 == 0 };
            store.add_route(route).await.unwrap();
        }
        let hash = store.credentials("alice").await.unwrap().unwrap().password_hash;
        for n in 1..=20 {
            store.create_admin(&format!("other{n}"), hash.clone()).await.unwrap();
        }
    });
    let token = c.login("other20", crate::controller::PASSWORD).json()["token"].as_str().unwrap().to_owned();

    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/api/schemathesis.toml");
    let (url, bearer) = (format!("http://{}/api/v1/openapi.json", c.address), format!("Authorization: Bearer {token}"));
    let output = Command::new(&python)
        .args(["-m", "schemathesis.cli", "--config-file", config, "run", &url, "-H", &bearer])
        .args(["--checks", "all", "--max-examples", examples(db), "--seed", "1", "--workers", "1", "--no-color"])
        // Its own token would be void; `login.rs` tests it.
        .args(["--exclude-path", "/api/v1/auth/logout"])
        .args(["--request-timeout", "60", "--continue-on-failure"])
        .current_dir(c.dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(!c.log().contains("ERROR"), "{}", c.log());
    // That it has really asked is told by the audit log.
    for action in ["network.create", "auth_key.create", "server.token", "node.delete", "route.add", "admin.create"] {
        let done = c.store(async |store| {
            let filter = edgelink_store::AuditFilter { action: Some(action.into()), ..Default::default() };
            store.list_audit(&filter, edgelink_store::Page::default()).await.unwrap().total
        });
        assert!(done > 0, "{action} never succeeded:\n{said}");
    }
}
