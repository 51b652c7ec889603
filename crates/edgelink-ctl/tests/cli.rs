//! The binary as a script sees it: exit code, stdout, stderr.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::panic,
    reason = "a test may fail, and reads the clock"
)]

use edgelink_model::records::{EnrollRequest, HostInfo};
use edgelink_model::{NodeId, UnixMillis};
use edgelink_store::{MariaDbUrl, NodeTouch, Store};
use edgelink_test_mariadb::{Database, Db, on_both};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

struct Place {
    dir: tempfile::TempDir,
    /// SQLite's file.
    db: PathBuf,
    mariadb: Option<Database>,
}

struct Run {
    code: i32,
    out: String,
    err: String,
}

impl Run {
    fn json(&self) -> Value {
        assert_eq!((self.code, self.err.as_str()), (0, ""), "{}", self.out);
        serde_json::from_str(&self.out).unwrap()
    }

    #[track_caller]
    fn is(&self, code: i32, out: &str, err: &str) {
        assert_eq!((self.code, self.out.as_str(), self.err.as_str()), (code, out, err));
    }
}

impl Place {
    /// A directory without a database.
    fn empty(db: Db) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mariadb = matches!(db, Db::MariaDb).then(Database::new);
        if let Some(mariadb) = &mariadb {
            let config = json!({ "database": { "type": "mariadb", "url": mariadb.url() } });
            fs::write(dir.path().join("controller.json"), config.to_string()).unwrap();
        }
        Self { db: dir.path().join("x.db"), dir, mariadb }
    }

    /// A directory with a database in which `machines` have knocked.
    fn with_nodes(db: Db, machines: u8) -> Self {
        let place = Self::empty(db);
        place.store(async |store| {
            for machine in 1..=machines {
                store.enroll(knock(machine)).await.unwrap();
            }
        });
        place
    }

    fn store<T>(&self, work: impl AsyncFnOnce(Store) -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let store = match &self.mariadb {
                None => Store::open(&self.db, true).await.unwrap(),
                Some(mariadb) => {
                    let url = MariaDbUrl::parse(&mariadb.url()).unwrap();
                    Store::open_mariadb(&url, Some(self.dir.path())).await.unwrap()
                }
            };
            let result = work(store.clone()).await;
            store.close().await.unwrap();
            result
        })
    }

    /// The database is given, by `--db` or `--config`.
    fn ctl(&self, args: &str) -> Run {
        let given = match &self.mariadb {
            None => ["--db", self.db.to_str().unwrap()],
            Some(_) => ["--config", "controller.json"],
        };
        self.bare(&[&given, &args.split_whitespace().collect::<Vec<_>>()[..]].concat(), &[])
    }

    /// Nothing is given.
    fn bare(&self, args: &[&str], env: &[(&str, &str)]) -> Run {
        let output = command(self.dir.path()).args(args).envs(env.iter().copied()).output().unwrap();
        Run {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edgelink-ctl"));
    // The default state directory is below this home, whoever runs the test.
    command
        .current_dir(dir)
        .env_clear()
        .env("HOME", dir)
        .env("STATE_DIRECTORY", dir.join("state"))
        .env("USER", "alice");
    command
}

fn knock(machine: u8) -> EnrollRequest {
    EnrollRequest {
        machine_key_pub: [machine; 32],
        auth_key_hash: None,
        host: HostInfo {
            hostname: format!("host-{machine}"),
            os: "linux".into(),
            arch: "x86_64".into(),
            version: "0.1.0".into(),
        },
        now_unix_ms: 1_700_000_000_500,
        require_authorization: true,
    }
}

fn now() -> UnixMillis {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64
}

/// Takes a timestamp out of an object, having looked at its form.
fn take_time(object: &mut Value, key: &str) -> String {
    let time = object.as_object_mut().unwrap().remove(key).unwrap();
    let time = time.as_str().unwrap().to_owned();
    assert_eq!(time.len(), "2023-11-14T22:13:20.500Z".len(), "{time}");
    assert!(time.starts_with("20") && time.ends_with('Z'), "{time}");
    time
}

on_both!(networks);

fn networks(db: Db) {
    let place = Place::with_nodes(db, 1);
    place.ctl("network create --name main --subnet 10.100.0.0/16").is(
        0,
        "",
        "network main (2) created with 10.100.0.0/16\n",
    );
    place.ctl("-q network create --name 网络 --subnet 10.100.0.0/16").is(0, "", "");
    place.ctl("network list").is(
        0,
        "ID  NAME     SUBNET         NODES  DESCRIPTION\n\
         1   default  10.0.1.0/24    1\n\
         2   main     10.100.0.0/16  0\n\
         3   网络     10.100.0.0/16  0\n",
        "",
    );
    let mut shown = place.ctl("network show main --json").json();
    assert_eq!(take_time(&mut shown, "created_at"), take_time(&mut shown, "updated_at"));
    assert!(shown["subnet6"].take().as_str().unwrap().starts_with("fd"));
    let want =
        json!({"id": 2, "name": "main", "subnet": "10.100.0.0/16", "subnet6": null, "description": "", "nodes": 0});
    assert_eq!(shown, want);
    let list = place.ctl("--json network list").json();
    assert_eq!(list.as_array().unwrap().iter().map(|n| &n["id"]).collect::<Vec<_>>(), [1, 2, 3]);
    let run = place.ctl("network show 2");
    let mut lines = run.out.lines();
    assert_eq!(lines.next(), Some("id:           2"));
    assert_eq!(lines.next(), Some("name:         main"));

    let created = place.ctl("network create --name lab --subnet 10.9.0.0/24 --description x --json").json();
    assert_eq!((&created["id"], &created["description"]), (&json!(4), &json!("x")));
    place.ctl("network delete main").is(0, "", "network main (2) deleted\n");
    assert_eq!(place.ctl("network delete 3 --json").json(), json!({"id": 3, "deleted": true}));
    place.ctl("network show main").is(1, "", "edgelink-ctl: there is no network main\n");
    place.ctl("network delete 1").is(
        1,
        "",
        "edgelink-ctl: network default cannot be deleted: nodes that join without an auth key go there\n",
    );
}

on_both!(bad_networks_are_refused_with_what_would_do);

fn bad_networks_are_refused_with_what_would_do(db: Db) {
    let place = Place::with_nodes(db, 0);
    for (args, code, message) in [
        ("--name a --subnet 10.0.0.1/16", 2, "the subnet 10.0.0.1/16 has host bits set; did you mean 10.0.0.0/16?"),
        ("--name a --subnet 10.0.0.0/31", 2, "is too small: it holds no two nodes; use a length of at most 30"),
        ("--name a --subnet nonsense", 2, "is not an IPv4 subnet; give an address and a length, such as 10.100.0.0/16"),
        ("--name 7 --subnet 10.0.0.0/16", 2, "the network name \"7\" would be mistaken for an id; add a letter"),
        ("--name a/b --subnet 10.0.0.0/16", 2, "may hold letters, digits, '.', '_' and '-' only"),
        ("--name default --subnet 10.0.0.0/16", 1, "there is already a network named default; choose another name"),
        ("--name a", 2, "--subnet"),
    ] {
        let run = place.ctl(&format!("network create {args}"));
        assert_eq!((run.code, run.out.as_str()), (code, ""), "{args}");
        assert!(run.err.contains(message), "{args}: {}", run.err);
    }
    assert_eq!(place.ctl("network list --json").json().as_array().unwrap().len(), 1);
}

on_both!(nodes);

fn nodes(db: Db) {
    let place = Place::with_nodes(db, 2);
    let seen = "2023-11-14T22:13:20.500Z";
    place.ctl("node list").is(
        0,
        &format!(
            "ID  NAME    NETWORK  ADDRESS  AUTHORIZED  ONLINE  LAST SEEN                 OS     VERSION\n\
             1   host-1  default  -        no          no      {seen}  linux  0.1.0\n\
             2   host-2  default  -        no          no      {seen}  linux  0.1.0\n"
        ),
        "2 not authorized; let one join with: edgelink-ctl node authorize ID\n",
    );
    place.ctl("node authorize 1").is(0, "", "node host-1 (1) may join as 10.0.1.1\n");
    place.ctl("node authorize 1").is(0, "", "node host-1 (1) may join as 10.0.1.1\n");
    let mut node = place.ctl("node authorize host-2 --json").json();
    assert!(take_time(&mut node, "created_at") <= take_time(&mut node, "updated_at"));
    assert!(node["virtual_ip6"].take().as_str().unwrap().starts_with("fd"));
    assert_eq!(
        node,
        json!({
            "id": 2, "network_id": 1, "name": "host-2", "machine_key_pub": "02".repeat(32), "node_key_pub": null,
            "node_key_updated_at": null, "virtual_ip": "10.0.1.2", "virtual_ip6": null, "hostname": "host-2",
            "os": "linux", "arch": "x86_64", "version": "0.1.0", "nat_type": null, "online": false, "last_seen": seen,
            "authorized": true
        })
    );
    place.ctl("node rename 2 web").is(0, "", "node host-2 (2) is now web\n");
    place.ctl("node rename 1 web").is(
        1,
        "",
        "edgelink-ctl: the network already has a node named web; choose another name\n",
    );
    place.ctl("node rename 1 77").is(
        2,
        "",
        "edgelink-ctl: the node name \"77\" would be mistaken for an id; add a letter\n",
    );
    let run = place.ctl("node show web --network default");
    assert_eq!(run.code, 0);
    assert!(run.out.contains(&format!("machine key:     {}\n", "02".repeat(32))), "{}", run.out);
    place.ctl("node deauthorize web").is(0, "", "node web (2) is barred, its tokens are revoked\n");
    assert_eq!(place.ctl("node show 2 --json").json()["authorized"], json!(false));
    assert_eq!(place.ctl("node show 2 --json").json()["virtual_ip"], json!("10.0.1.2"));
    place.ctl("-q node delete 2").is(0, "", "");
    assert_eq!(place.ctl("node delete host-1 --json").json(), json!({"id": 1, "deleted": true}));
    place.ctl("node list").is(0, "", "no nodes\n");
    assert_eq!(place.ctl("node list --json").json(), json!([]));
    place.ctl("node authorize 1").is(1, "", "edgelink-ctl: there is no node 1\n");
    place.ctl("node authorize nobody").is(1, "", "edgelink-ctl: there is no node nobody\n");
}

on_both!(node_list_filters);

fn node_list_filters(db: Db) {
    let place = Place::with_nodes(db, 2);
    place.store(async |store| {
        store.touch_nodes(&[NodeTouch { id: NodeId(2), online: true, last_seen: now() }]).await.unwrap();
    });
    place.ctl("-q network create --name lab --subnet 10.9.0.0/24");
    let ids = |args: &str| -> Vec<u64> {
        place.ctl(args).json().as_array().unwrap().iter().map(|n| n["id"].as_u64().unwrap()).collect()
    };
    assert_eq!(ids("node list --json"), [1, 2]);
    assert_eq!(ids("node list --online --json"), [2]);
    assert_eq!(ids("node list --network default --json"), [1, 2]);
    assert_eq!(ids("node list --network 2 --json"), [0u64; 0]);
    place.ctl("node list --network nowhere").is(1, "", "edgelink-ctl: there is no network nowhere\n");
}

on_both!(a_full_subnet_is_told);

fn a_full_subnet_is_told(db: Db) {
    let place = Place::empty(db);
    place.store(async |store| {
        for machine in 1..=255 {
            let request = EnrollRequest { require_authorization: machine == 255, ..knock(machine) };
            store.enroll(request).await.unwrap();
        }
    });
    place.ctl("node authorize 255").is(
        1,
        "",
        "edgelink-ctl: no free address is left in the network's subnet 10.0.1.0/24; delete unused nodes or enlarge the subnet\n",
    );
}

on_both!(auth_keys_open_their_network_and_are_kept_as_hashes_only);

fn auth_keys_open_their_network_and_are_kept_as_hashes_only(db: Db) {
    let place = Place::with_nodes(db, 0);
    let before = now();
    let mut key = place.ctl("token generate --type auth-key --network default --preauthorize --json").json();
    let text = key.as_object_mut().unwrap().remove("key").unwrap().as_str().unwrap().to_owned();
    assert!(text.starts_with("elk_") && text.len() == 44, "{text}");
    take_time(&mut key, "expires_at");
    assert_eq!(key, json!({"id": 1, "network_id": 1, "reusable": false, "preauthorized": true}));

    let run = place.ctl("token generate --type auth-key --network default --reusable --expires never");
    let other = run.out.trim().to_owned();
    assert!(run.out.ends_with('\n') && other.starts_with("elk_") && other != text);
    assert_eq!(
        (run.code, run.err.as_str()),
        (
            0,
            "opens network default for any number of machines, after node authorize, until it is deleted; it is not shown again\n"
        )
    );
    let quiet = place.ctl("-q token generate --type auth-key --network 1");
    assert_eq!((quiet.code, quiet.err.as_str()), (0, ""));

    place.store(async |store| {
        let records = store.auth_keys().await.unwrap();
        let until = records[0].expires_at.unwrap();
        assert!((before + 86_400_000..=now() + 86_400_000).contains(&until));
        assert_eq!(records[1].expires_at, None);
        let request =
            EnrollRequest { auth_key_hash: Some(edgelink_auth::auth_key::hash(&text)), now_unix_ms: now(), ..knock(1) };
        assert!(store.enroll(request).await.unwrap().authorized);
        let request = EnrollRequest {
            auth_key_hash: Some(edgelink_auth::auth_key::hash(&other)),
            now_unix_ms: now(),
            ..knock(2)
        };
        assert!(!store.enroll(request).await.unwrap().authorized);
    });
    for file in fs::read_dir(place.dir.path()).unwrap() {
        let bytes = fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(text.len()).any(|w| w == text.as_bytes()), "the key itself is on disk");
    }
    place.ctl("token generate --type auth-key --network nowhere").is(
        1,
        "",
        "edgelink-ctl: there is no network nowhere\n",
    );
    for (args, message) in [
        ("--network default", "--type"),
        ("--type auth-key", "--network"),
        ("--type nonsense --network default", "[possible values: auth-key]"),
        ("--type auth-key --network default --expires 24", "give a number and a unit, such as 90s, 15m, 24h or 7d"),
    ] {
        let run = place.ctl(&format!("token generate {args}"));
        assert_eq!((run.code, run.out.as_str()), (2, ""), "{args}");
        assert!(run.err.contains(message), "{args}: {}", run.err);
    }
}

on_both!(the_blacklist);

fn the_blacklist(db: Db) {
    let place = Place::with_nodes(db, 1);
    place.ctl("token blacklist").is(0, "", "nothing is revoked\n");
    place.ctl("token blacklist abc-1 --reason stolen").is(0, "", "token abc-1 is revoked\n");
    place.ctl("token blacklist --node host-1").is(
        0,
        "",
        "the tokens of node host-1 (1) are revoked; it may fetch new ones (to bar it: node deauthorize)\n",
    );
    let list = place.ctl("token blacklist --json").json();
    assert_eq!(list.as_array().unwrap().len(), 2);
    let one = list.as_array().unwrap().iter().find(|r| r["jti"] == "abc-1").unwrap();
    assert_eq!(
        (&one["node_id"], &one["issued_before"], &one["reason"]),
        (&json!(null), &json!(null), &json!("stolen"))
    );
    let node = list.as_array().unwrap().iter().find(|r| r["jti"] != "abc-1").unwrap();
    assert_eq!(node["node_id"], json!(1));
    assert!(node["issued_before"].as_str().unwrap().ends_with(".000Z"));
    assert_eq!(place.ctl("token blacklist abc-2 --json").json()["jti"], json!("abc-2"));
    let run = place.ctl("token blacklist abc --node 1");
    assert_eq!(run.code, 2);
    assert!(run.err.contains("cannot be used with"), "{}", run.err);
}

on_both!(servers);

fn servers(db: Db) {
    let place = Place::with_nodes(db, 0);
    place.ctl("server list").is(
        0,
        "ID  NAME     TYPE     CAPABILITIES  ENABLED  STATUS      URL  REGION\n\
         1   builtin  builtin  relay,stun    yes      never seen  -\n",
        "",
    );
    let mut server = place.ctl("server show builtin --json").json();
    take_time(&mut server, "created_at");
    assert_eq!(
        server,
        json!({
            "id": 1, "name": "builtin", "type": "builtin", "url": null, "region": "", "capabilities": ["relay", "stun"],
            "stun_ip": null, "stun_ip2": null, "stun_port": 3478, "enabled": true, "online": false,
            "last_heartbeat": null
        })
    );
    place.ctl("server show 9").is(1, "", "edgelink-ctl: there is no server 9\n");
}

on_both!(a_server_is_added_with_a_configuration_to_paste);

fn a_server_is_added_with_a_configuration_to_paste(db: Db) {
    let place = Place::with_nodes(db, 0);
    let url = "wss://r1.example.com:8443/ws/data";
    let added = place
        .ctl(&format!("server add --name r1 --url {url} --region asia --controller wss://c.example.com --json"))
        .json();
    assert_eq!(added["id"], json!(2));
    let token = added["token"].as_str().unwrap();
    let claims = edgelink_auth::token::ServerClaims::peek(token).unwrap();
    assert_eq!((claims.server_id.0, claims.server_name.as_str(), claims.region.as_str()), (2, "r1", "asia"));
    assert_eq!((claims.capabilities, claims.exp - claims.iat), (vec!["relay".to_owned()], 365 * 24 * 3600));
    assert_eq!(
        added["config"],
        json!({
            "controller": { "url": "wss://c.example.com/ws/server", "token": token },
            "relay": {
                "enabled": true, "listen": "0.0.0.0:8443", "ws_data": "/ws/data", "public_url": url,
                "tls": { "cert": "/etc/edgelink/cert.pem", "key": "/etc/edgelink/key.pem" }
            },
            "stun": { "enabled": false }
        })
    );
    // What is printed is what the server reads.
    let file = place.dir.path().join("server.json");
    std::fs::write(&file, added["config"].to_string()).unwrap();
    let config: edgelink_config::ServerConfig =
        edgelink_config::load(Some(&file), &edgelink_config::Env::new(Vec::<(String, String)>::new())).unwrap();
    edgelink_config::Config::validate(&config).unwrap();

    let plain =
        place.ctl("server add --name r2 --url ws://r2.example.com --capabilities relay,stun --stun-ip 203.0.113.9");
    assert_eq!(plain.code, 0, "{}", plain.err);
    let config: serde_json::Value = serde_json::from_str(&plain.out).unwrap();
    assert_eq!((&config["relay"]["tls"], &config["relay"]["listen"]), (&json!(null), &json!("0.0.0.0:80")));
    assert_eq!(config["stun"]["external_ip"], json!("203.0.113.9"));
    assert!(plain.err.contains("controller.url"), "{}", plain.err);

    let again = place.ctl("server token r1 --json").json();
    assert_ne!(again["token"], added["token"], "another token for the same server");
    assert_eq!(place.ctl("server disable r1 --json").json()["enabled"], json!(false));
    assert_eq!(place.ctl("server enable r1 --json").json()["enabled"], json!(true));
    place.ctl("server remove r1").is(0, "", "server r1 (2) removed\n");
    place.ctl("server token r1").is(1, "", "edgelink-ctl: there is no server r1\n");
    place.ctl("server remove builtin").is(
        1,
        "",
        "edgelink-ctl: the built-in server cannot be deleted; disable it in the controller's configuration (`builtin_relay.enabled`)\n",
    );
    let refused = [
        ("server add --name r1", "a relay needs a URL"),
        ("server add --name r3 --url https://x", "wss://"),
        ("server add --name r3 --capabilities stun", "--stun-ip"),
        ("server add --name r3 --url wss://x --capabilities vpn", "relay"),
        ("server add --name r2 --url wss://x", "already a server named r2"),
    ];
    for (command, why) in refused {
        let run = place.ctl(command);
        assert!(run.code != 0 && run.err.contains(why), "{command}: {}", run.err);
    }
}

on_both!(status);

fn status(db: Db) {
    let place = Place::with_nodes(db, 2);
    place.ctl("-q node authorize 1");
    let shown = match &place.mariadb {
        None => place.db.display().to_string(),
        // Whatever may be shown of the URL.
        Some(mariadb) => MariaDbUrl::parse(&mariadb.url()).unwrap().to_string(),
    };
    assert!(!shown.contains(edgelink_test_mariadb::PASSWORD) && !shown.contains("s3cret"), "{shown}");
    place.ctl("status").is(
        0,
        &format!(
            "database:        {shown}\n\
             config version:  3\n\
             networks:        1\n\
             nodes:           2 (0 online, 1 authorized, 1 not authorized)\n\
             servers:         1 (0 online, 1 enabled)\n\
             revocations:     0\n"
        ),
        "",
    );
    assert_eq!(
        place.ctl("status --json").json(),
        json!({
            "version": env!("CARGO_PKG_VERSION"), "config_version": 3, "networks": 1,
            "nodes": {"total": 2, "authorized": 1, "unauthorized": 1, "online": 0},
            "servers": {"total": 1, "enabled": 1, "online": 0}, "revocations": 0
        })
    );
}

#[test]
fn the_database_is_found_or_the_message_says_how() {
    let place = Place::with_nodes(Db::Sqlite, 0);
    let dir = place.dir.path();
    let state = dir.join("state");
    place.bare(&["status"], &[]).is(
        2,
        "",
        &format!(
            "edgelink-ctl: no database found: there is neither edgelink.db here nor {}; give --db PATH or --config FILE\n",
            state.join("mesh.db").display()
        ),
    );
    let found = |run: Run| {
        assert_eq!((run.code, run.err.as_str()), (0, ""));
        run.out.lines().next().unwrap().strip_prefix("database:        ").unwrap().to_owned()
    };
    // The controller's own.
    fs::create_dir(&state).unwrap();
    fs::copy(&place.db, state.join("mesh.db")).unwrap();
    assert_eq!(found(place.bare(&["status"], &[])), state.join("mesh.db").to_str().unwrap());
    // The specification's default goes first.
    fs::copy(&place.db, dir.join("edgelink.db")).unwrap();
    assert_eq!(found(place.bare(&["status"], &[])), "edgelink.db");
    // A configuration goes before both.
    let config = dir.join("controller.json");
    fs::write(&config, json!({"database": {"path": place.db}}).to_string()).unwrap();
    let config = config.to_str().unwrap();
    assert_eq!(found(place.bare(&["--config", config, "status"], &[])), place.db.to_str().unwrap());
    assert_eq!(found(place.bare(&["status"], &[("EDGELINK_CONFIG", config)])), place.db.to_str().unwrap());
    // And --db before everything.
    assert_eq!(found(place.bare(&["--config", config, "--db", "edgelink.db", "status"], &[])), "edgelink.db");
}

#[test]
fn what_is_wrong_with_the_database_has_its_exit_code() {
    let place = Place::empty(Db::Sqlite);
    let shown = place.db.display();
    place.ctl("status").is(
        3,
        "",
        &format!(
            "edgelink-ctl: there is no database at {shown}; start the controller once to make it, or check the path\n"
        ),
    );
    assert!(!place.db.exists());
    fs::write(&place.db, "no database at all, ".repeat(60)).unwrap();
    place.ctl("status").is(
        1,
        "",
        &format!(
            "edgelink-ctl: {shown} is not an SQLite database; give the controller's database, or move the file away\n"
        ),
    );
    let run = place.bare(&["--config", "nowhere.json", "status"], &[]);
    assert_eq!((run.code, run.out.as_str()), (2, ""));
    assert!(run.err.starts_with("edgelink-ctl: cannot read the configuration nowhere.json: "), "{}", run.err);
    fs::write(place.dir.path().join("bad.json"), "{\"databse\": {}}").unwrap();
    let run = place.bare(&["--config", "bad.json", "status"], &[]);
    assert_eq!(run.code, 2);
    assert!(run.err.contains("databse") && run.err.contains("did you mean `database`"), "{}", run.err);
}

#[test]
fn without_permission_it_is_4() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let place = Place::with_nodes(Db::Sqlite, 0);
    let program = place.dir.path().join("edgelink-ctl");
    fs::copy(env!("CARGO_BIN_EXE_edgelink-ctl"), &program).unwrap();
    let mut ctl = Command::new(&program);
    ctl.env_clear().arg("--db").arg(&place.db).arg("status");
    if nix::unistd::geteuid().is_root() {
        // Root may do anything, so someone else asks.
        mode(place.dir.path(), 0o755);
        ctl.uid(65_534).gid(65_534);
    } else {
        mode(&place.db, 0o000);
    }
    let output = ctl.output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(4), &b""[..]), "{err}");
    assert_eq!(
        err,
        format!(
            "edgelink-ctl: cannot open the database {}: permission denied, or its directory is read-only; run as the \
             controller's user, or as root\n",
            place.db.display()
        )
    );
}

#[test]
fn usage_errors_are_2_and_help_is_0() {
    let place = Place::with_nodes(Db::Sqlite, 0);
    for args in ["", "nonsense", "network", "network create", "node authorize", "node list --nonsense", "status extra"]
    {
        let run = place.ctl(args);
        assert_eq!((run.code, run.out.as_str()), (2, ""), "{args}");
        assert!(run.err.contains("Usage: edgelink-ctl"), "{args}: {}", run.err);
    }
    for args in ["--help", "-h", "node --help", "--version"] {
        let run = place.ctl(args);
        assert_eq!((run.code, run.err.as_str()), (0, ""), "{args}");
        assert!(run.out.contains("edgelink-ctl"), "{args}: {}", run.out);
    }
}

on_both!(a_change_is_seen_by_a_process_that_has_the_database_open);

fn a_change_is_seen_by_a_process_that_has_the_database_open(db: Db) {
    let place = Place::with_nodes(db, 1);
    place.store(async |store| {
        let before = store.snapshot().await.unwrap().version;
        place.ctl("node authorize 1").is(0, "", "node host-1 (1) may join as 10.0.1.1\n");
        let edgelink_store::Changes::Some { version, changes } = store.changes_after(before).await.unwrap() else {
            panic!("resync")
        };
        assert_eq!((version, changes.len()), (before + 1, 1));
        let log = store.audit_log(1).await.unwrap();
        assert_eq!((log[0].actor_type.as_str(), log[0].actor_id.as_deref()), ("cli", Some("alice")));
    });
}

#[test]
fn a_closed_pipe_is_no_error() {
    let place = Place::with_nodes(Db::Sqlite, 60);
    let mut child = command(place.dir.path())
        .args(["--db", place.db.to_str().unwrap(), "--json", "node", "list"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap().as_str()), (Some(0), ""));
}
