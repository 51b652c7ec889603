//! `ctl --url`: the same commands over REST as on the database, with the same answers, and exit codes that say why not.

use crate::controller::PASSWORD;
use crate::{Controller, Db, on_both};
use serde_json::Value;
use std::process::{Command, Output, Stdio};

struct Place<'a> {
    controller: &'a Controller,
    home: tempfile::TempDir,
}

impl Place<'_> {
    fn run(&self, args: &[&str], env: &[(&str, &str)]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_edgelink-controller"))
            .arg("ctl")
            .args(args)
            .env_clear()
            .env("HOME", self.home.path())
            .env("USER", "tester")
            .envs(env.iter().copied())
            .current_dir(self.home.path())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn url(&self) -> String {
        format!("http://{}", self.controller.address)
    }

    /// Over REST, by the token that `login` has kept.
    fn rest(&self, command: &str) -> Value {
        self.answer(&["--url", &self.url()], command)
    }

    fn database(&self, command: &str) -> Value {
        let [flag, place] = self.controller.database_arguments();
        self.answer(&[&flag, &place], command)
    }

    fn answer(&self, place: &[&str], command: &str) -> Value {
        let words: Vec<&str> = command.split_whitespace().collect();
        let output = self.run(&[place, &["--json"], &words].concat(), &[]);
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    #[track_caller]
    fn fails(&self, args: &[&str], env: &[(&str, &str)], code: i32, want: &str) {
        let output = self.run(args, env);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(code), &b""[..]), "{said}");
        assert!(said.contains(want), "{said}");
    }

    fn login(&self) {
        let env = [("EDGELINK_PASSWORD", PASSWORD)];
        let output = self.run(&["--url", &self.url(), "login", "--username", "alice"], &env);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

on_both!(the_same_commands_give_the_same_answers);

fn the_same_commands_give_the_same_answers(db: Db) {
    let controller = Controller::start(db);
    let place = Place { controller: &controller, home: tempfile::tempdir().unwrap() };
    place.login();

    // Each is done over REST, and the database shows what has become of it.
    let network = place.rest("network create --name lab --subnet 10.9.0.0/24 --description x");
    assert_eq!(network, place.database("network show lab"));
    assert_eq!(place.rest("network update lab --subnet 10.9.0.0/23")["subnet"], "10.9.0.0/23");
    let key = place.rest("token generate --type auth-key --network lab --reusable --expires 1h");
    for machine in 1..=3 {
        controller.knock_with(machine, key["key"].as_str());
    }
    let node = place.rest("node authorize host1");
    assert_eq!(node["virtual_ip"], "10.9.0.1");
    assert_eq!(place.rest("node rename host1 web")["name"], "web");
    place.rest("node authorize 2");
    assert_eq!(place.rest("node deauthorize host2 --network lab")["authorized"], false);
    place.rest("node delete host3 --network lab");
    let route = place.rest("route add --cidr 192.168.7.0/24 --node web --priority 7 --disabled");
    assert_eq!(route["enabled"], false);
    let id = route["id"].to_string();
    assert_eq!(place.rest(&format!("route enable {id}"))["enabled"], true);
    assert_eq!(place.rest(&format!("route update {id} --weight 9"))["weight"], 9);
    let server = place.rest("server add --name r1 --url wss://r1.example.com --controller wss://c.example.com");
    assert_eq!(server["config"]["controller"]["token"], server["token"]);
    place.rest("server disable r1");
    assert!(place.rest("server token r1")["token"].is_string());
    place.rest("token blacklist --node web --reason lost");
    place.rest("token blacklist 0123456789");

    assert_eq!(place.rest("config set tokens.auth_expire_hours 12")["setting"], "12");
    assert_eq!(place.database("config set node_key_rotate_hours 6")["key"], "security.node_key_rotate_hours");

    for command in [
        "config show tokens.auth_expire_hours",
        "config show",
        "network list",
        "node list",
        "node list --network lab",
        "node show web",
        "route list",
        "route list --network lab --node web",
        "server list",
        "server show r1",
        "token list",
        "token list --network lab",
        "token blacklist",
        "admin list",
        "admin show alice",
        "audit --limit 200",
        "audit --action node.authorize --target node --actor alice",
        "status",
    ] {
        assert_eq!(place.rest(command), place.database(command), "{command}");
    }
    let audit = place.rest("audit --target route:1 --limit 1");
    assert_eq!(audit[0]["action"], "route.update");
    assert_eq!(place.rest("latency")["paths"], serde_json::json!([]));
    assert_eq!(place.database("latency")["paths"], Value::Null);

    assert_eq!(place.rest("config unset tokens.auth_expire_hours")["setting"], Value::Null);
    place.rest(&format!("route delete {id}"));
    place.rest("server delete r1");
    place.rest(&format!("token revoke {}", key["id"]));
    // Tables as well.
    let list = place.run(&["--url", &place.url(), "-q", "network", "list"], &[]);
    let table = String::from_utf8(list.stdout).unwrap();
    assert!(table.starts_with("ID  NAME     SUBNET"), "{table}");
    assert!(list.stderr.is_empty());
}

on_both!(refusals_have_their_exit_codes);

fn refusals_have_their_exit_codes(db: Db) {
    let controller = Controller::start(db);
    let place = Place { controller: &controller, home: tempfile::tempdir().unwrap() };
    let url = place.url();
    place.fails(&["--url", &url, "node", "list"], &[], 4, "log in with: edgelink-ctl --url");
    place.fails(&["--url", &url, "node", "list"], &[("EDGELINK_TOKEN", "nonsense")], 4, "invalid token");
    let wrong = [("EDGELINK_PASSWORD", "wrong password")];
    place.fails(&["--url", &url, "login", "--username", "alice"], &wrong, 4, "the name or the password is wrong");
    place.fails(&["login"], &[], 2, "say where");
    let token = [("EDGELINK_TOKEN", controller.token.as_str())];
    place.fails(&["--url", "http://127.0.0.1:1", "node", "list"], &token, 3, "cannot connect to 127.0.0.1:1");
    place.fails(&["--url", "nonsense:", "node", "list"], &token, 2, "--url");
    place.fails(&["--url", &url, "--db", "x", "node", "list"], &token, 2, "either --url or --db");
    place.fails(&["--url", &url, "node", "show", "nobody"], &token, 1, "there is no node nobody");
    place.fails(&["--url", &url, "node", "show", "99"], &token, 1, "there is no node 99");
    place.fails(&["--url", &url, "node", "rename", "99", "x"], &token, 1, "there is no node 99");
    place.fails(&["--url", &url, "network", "delete", "default"], &token, 1, "cannot be deleted");
    place.fails(&["--url", &url, "network", "create", "--name", "a b", "--subnet", "10.0.0.0/8"], &token, 2, "letters");
    place.fails(&["--url", &url, "config", "set", "colour", "blue"], &token, 2, "colour");
    place.fails(&["--url", &url, "config", "show", "colour"], &token, 2, "there is no setting colour");
    place.fails(&["--url", &url, "db", "check"], &token, 2, "on the database only");
    let other = format!("http://{}/healthz", controller.address);
    assert!(
        place.run(&["--url", &other, "network", "list"], &token).status.success(),
        "a path in the URL does no harm"
    );
}

on_both!(a_login_is_kept_for_us_alone_and_ends_at_logout);

fn a_login_is_kept_for_us_alone_and_ends_at_logout(db: Db) {
    use std::os::unix::fs::PermissionsExt as _;
    let controller = Controller::start(db);
    let place = Place { controller: &controller, home: tempfile::tempdir().unwrap() };
    place.login();
    let file = place.home.path().join(".config/edgelink/ctl.json");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    // Without a database here the login is meant.
    let output = place.run(&["--json", "network", "list"], &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    place.fails(&["network", "list"], &[], 2, "others may read it; run: chmod 600");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let kept: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert!(place.run(&["logout"], &[]).status.success());
    assert!(!file.exists());
    let token = [("EDGELINK_TOKEN", kept["token"].as_str().unwrap())];
    place.fails(&["--url", &place.url(), "network", "list"], &token, 4, "token revoked");
}

on_both!(the_first_administrator_and_generated_files);

fn the_first_administrator_and_generated_files(db: Db) {
    let controller = Controller::start(db);
    let place = Place { controller: &controller, home: tempfile::tempdir().unwrap() };
    let [flag, at] = controller.database_arguments();
    let made = place.database("admin create --username carol");
    let password = made["password"].as_str().unwrap();
    assert_eq!(controller.login("carol", password).status, 200, "a password that was made opens");
    let env = [("EDGELINK_PASSWORD", "my own password")];
    let output = place.run(&[&flag, &at, "--json", "admin", "create", "--username", "dave"], &env);
    let dave: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((dave["username"].as_str(), dave.get("password")), (Some("dave"), None));
    assert_eq!(controller.login("dave", "my own password").status, 200);
    place.fails(&[&flag, &at, "admin", "create", "--username", "eve"], &[("EDGELINK_PASSWORD", "x")], 2, "too short");
    place.database("admin disable dave");
    controller.login("dave", "my own password").problem(401, 1001);

    for (shell, want) in
        [("bash", "complete -F"), ("zsh", "#compdef edgelink-ctl"), ("fish", "complete -c edgelink-ctl")]
    {
        let output = place.run(&["completions", shell], &[]);
        assert!(String::from_utf8(output.stdout).unwrap().contains(want), "{shell}");
    }
    assert!(place.run(&["man", "pages"], &[]).status.success());
    let page = std::fs::read_to_string(place.home.path().join("pages/edgelink-ctl-network-create.1")).unwrap();
    assert!(page.contains("Make a network"), "{page}");
}

#[test]
fn at_the_socket_the_user_counts() {
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::process::CommandExt as _;
    let mut controller = Controller::start(Db::Sqlite);
    let path = controller.dir.path().join("controller.sock");
    let socket = path.to_str().unwrap().to_owned();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let place = Place { controller: &controller, home: tempfile::tempdir().unwrap() };
    let local = |command: &str| place.answer(&["--socket", &socket], command);

    let network = local("network create --name lab --subnet 10.9.0.0/24");
    assert_eq!(network, place.database("network show lab"));
    controller.knock(1);
    assert_eq!(local("node authorize host1")["authorized"], true);
    for command in ["network list", "node list", "node show host1", "admin list", "config show", "audit", "status"] {
        assert_eq!(local(command), place.database(command), "{command}");
    }
    assert_eq!(local("latency")["paths"], serde_json::json!([]), "only a running controller knows");
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().unwrap().name;
    let line = &place.database("audit --action network.create --limit 1")[0];
    assert_eq!((&line["actor_type"], &line["actor_id"]), (&"cli".into(), &user.into()), "{line}");

    // A password is changed without knowing another.
    let new = [("EDGELINK_PASSWORD", "another horse")];
    let changed = place.run(&["--socket", &socket, "admin", "passwd", "alice"], &new);
    assert!(changed.status.success(), "{}", String::from_utf8_lossy(&changed.stderr));
    assert_eq!(controller.login("alice", "another horse").status, 200);

    // The configuration says where the socket is; what is in the environment for all commands is outranked.
    let state = controller.dir.path().to_str().unwrap();
    let env = [("EDGELINK_STATE_DIR", state), ("EDGELINK_URL", "https://elsewhere.invalid")];
    let found = place.run(&["network", "list", "--json", "--socket"], &env);
    assert_eq!(serde_json::from_slice::<Value>(&found.stdout).unwrap(), place.database("network list"));

    place.fails(&["--socket", "/absent/s", "network", "list"], &[], 3, "is the controller running");
    place.fails(&["--socket", &socket, "--db", "x", "network", "list"], &[], 2, "either --socket or --db");
    place.fails(&["--socket", &socket, "--url", "https://c", "network", "list"], &[], 2, "either --socket or --url");
    place.fails(&["--socket", &socket, "login"], &[], 2, "your user counts");
    place.fails(&["--socket", &socket, "logout"], &[], 2, "your user counts");
    place.fails(&["--socket", &socket, "db", "check"], &[], 2, "on the database only");
    place.fails(&["--socket", &socket, "node", "show", "nobody"], &[], 1, "there is no node nobody");

    // Whom even the file's mode would let in; an administrator's token makes no difference. Only root can ask as
    // somebody else; for others a test beside the code has the decision.
    if nix::unistd::geteuid().is_root() {
        let mode = |path: &std::path::Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        mode(controller.dir.path(), 0o755);
        mode(&path, 0o666);
        let ask = "import socket, sys\n\
                   s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n\
                   s.sendall(b'GET /api/v1/networks HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n'\n\
                   b'Authorization: Bearer ' + sys.argv[2].encode() + b'\\r\\n\\r\\n')\n\
                   print(s.makefile().read())";
        let mut stranger = Command::new("/usr/bin/python3");
        let login = controller.login("alice", "another horse").json();
        stranger.args(["-c", ask, &socket, login["token"].as_str().unwrap()]).current_dir("/");
        let answer = stranger.uid(65_534).gid(65_534).output().unwrap();
        let said = String::from_utf8_lossy(&answer.stdout);
        assert!(said.starts_with("HTTP/1.1 403"), "{said} {}", String::from_utf8_lossy(&answer.stderr));
        assert!(said.contains("only root and the user that the controller runs as"), "{said}");
        assert!(controller.log().contains("refused at the local socket"));
        mode(&path, 0o600);
    }

    drop(place);
    controller.end();
    assert!(!path.exists());
}
