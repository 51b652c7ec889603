//! A controller process and a small HTTP client.

use edgelink_auth::password;
use edgelink_model::records::{EnrollRequest, HostInfo, NodeRecord};
use edgelink_store::{MariaDbUrl, Store};
use edgelink_test_mariadb::{Database, Db};
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Generous: the machine may be busy with other tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const PASSWORD: &str = "correct horse";

pub(crate) struct Controller {
    child: Child,
    pub(crate) address: String,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) token: String,
    mariadb: Option<Database>,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) text: String,
}

impl Controller {
    /// Starts one that has the administrator `alice`, and logs in.
    pub(crate) fn start(db: Db) -> Self {
        let mut this = Self::start_with(db, "");
        this.token = this.login("alice", PASSWORD).json()["token"].as_str().unwrap().to_owned();
        this
    }

    /// Starts one without logging in. `more`: keys to add to its configuration, such as `"a": 1,`.
    pub(crate) fn start_with(db: Db, more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mariadb = (db == Db::MariaDb).then(Database::new);
        // The bin makes the schema; an administrator can be there before its first start.
        block_on(async {
            let store = open(&dir, mariadb.as_ref()).await;
            store.create_admin("alice", password::hash(PASSWORD, [1; 16]).unwrap()).await.unwrap();
            store.close().await.unwrap();
        });
        let config = dir.path().join("controller.json");
        let database = mariadb
            .as_ref()
            .map(|mariadb| format!(r#""database": {{ "type": "mariadb", "url": "{}" }},"#, mariadb.url()));
        let database = database.unwrap_or_default();
        let text = format!(
            r#"{{ {more} {database} "listen": {{ "http": "127.0.0.1:0" }}, "tls": null, "builtin_stun": {{ "enabled": false }} }}"#
        );
        std::fs::write(&config, text).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_edgelink-controller"))
            .arg("--config")
            .arg(&config)
            .arg("--state-dir")
            .arg(dir.path())
            .env_clear()
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(dir.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let Some((_, address)) = ready.trim().split_once(" on ") else {
            let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
            panic!("not ready: {ready:?}\n{log}");
        };
        Self { child, address: address.to_owned(), dir, token: String::new(), mariadb }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// Ends it as an operator does, and waits.
    pub(crate) fn end(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }

    /// How `edgelink-ctl` is told of the database.
    pub(crate) fn database_arguments(&self) -> [String; 2] {
        let (flag, file) = if self.mariadb.is_some() { ("--config", "controller.json") } else { ("--db", "mesh.db") };
        [flag.to_owned(), self.dir.path().join(file).to_str().unwrap().to_owned()]
    }

    /// Works on the database beside the controller, as `edgelink-ctl --db` does.
    pub(crate) fn store<T>(&self, work: impl AsyncFnOnce(Store) -> T) -> T {
        block_on(async {
            let store = open(&self.dir, self.mariadb.as_ref()).await;
            let result = work(store.clone()).await;
            store.close().await.unwrap();
            result
        })
    }

    /// A machine knocks.
    pub(crate) fn knock(&self, machine: u8) -> NodeRecord {
        self.knock_with(machine, None)
    }

    pub(crate) fn knock_with(&self, machine: u8, auth_key: Option<&str>) -> NodeRecord {
        self.store(async |store| store.enroll(knock(machine, auth_key)).await.unwrap())
    }

    pub(crate) fn login(&self, username: &str, password: &str) -> Answer {
        let body = serde_json::json!({ "username": username, "password": password });
        self.send("POST", "/api/v1/auth/login", &[("content-type", "application/json")], &body.to_string())
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.with_token("GET", path, None)
    }

    pub(crate) fn delete(&self, path: &str) -> Answer {
        self.with_token("DELETE", path, None)
    }

    pub(crate) fn post(&self, path: &str, body: Value) -> Answer {
        self.with_token("POST", path, Some(body))
    }

    /// POST without a body.
    pub(crate) fn act(&self, path: &str) -> Answer {
        self.with_token("POST", path, None)
    }

    pub(crate) fn put(&self, path: &str, body: Value) -> Answer {
        self.with_token("PUT", path, Some(body))
    }

    pub(crate) fn put_if(&self, path: &str, etag: &str, body: Value) -> Answer {
        let headers = [
            ("authorization", &*format!("Bearer {}", self.token)),
            ("content-type", "application/json"),
            ("if-match", etag),
        ];
        self.send("PUT", path, &headers, &body.to_string())
    }

    fn with_token(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        let bearer = format!("Bearer {}", self.token);
        let mut headers = vec![("authorization", bearer.as_str())];
        if body.is_some() {
            headers.push(("content-type", "application/json"));
        }
        self.send(method, path, &headers, &body.map(|body| body.to_string()).unwrap_or_default())
    }

    /// One request on a connection of its own.
    pub(crate) fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut stream = self.connect();
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.address);
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        stream.write_all(format!("{head}\r\n{body}").as_bytes()).unwrap();
        Answer::read(stream)
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Answer {
    /// Reads until the other side closes. A reset after the answer (the rest of a large request was not read) is fine.
    pub(crate) fn read(mut stream: TcpStream) -> Self {
        let mut bytes = Vec::new();
        let mut buffer = [0; 16 * 1024];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => bytes.extend_from_slice(&buffer[..n]),
                Err(e) if !bytes.is_empty() && e.kind() == std::io::ErrorKind::ConnectionReset => break,
                Err(e) => panic!("{e}"),
            }
        }
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP: {text:?}"));
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines.filter_map(|line| line.split_once(": ")).map(|(k, v)| (k.to_lowercase(), v.to_owned()));
        let this = Self { status, headers: headers.collect(), text: body.to_owned() };
        match this.header("transfer-encoding") {
            Some("chunked") => Self { text: unchunk(body), ..this },
            _ => this,
        }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    /// The body of a success.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        assert!((200..300).contains(&self.status), "{} {}", self.status, self.text);
        assert_eq!(self.header("content-type"), Some("application/json"));
        serde_json::from_str(&self.text).unwrap()
    }

    /// Checks that this is an error with this status and code, and returns what it says.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16, code: u16) -> String {
        assert_eq!(self.status, status, "{}", self.text);
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        let problem: Value = serde_json::from_str(&self.text).unwrap();
        assert_eq!((&problem["status"], &problem["code"]), (&status.into(), &code.into()), "{problem}");
        assert!(problem["type"].as_str().unwrap().starts_with("urn:edgelink:problem:"), "{problem}");
        assert!(!problem["title"].as_str().unwrap().is_empty());
        problem["detail"].as_str().unwrap().to_owned()
    }
}

fn unchunk(mut body: &str) -> String {
    let mut out = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        if size == 0 {
            break;
        }
        out.push_str(&rest[..size]);
        body = &rest[size + 2..];
    }
    out
}

async fn open(dir: &tempfile::TempDir, mariadb: Option<&Database>) -> Store {
    let store = match mariadb {
        None => Store::open(dir.path().join("mesh.db"), true).await,
        Some(mariadb) => Store::open_mariadb(&MariaDbUrl::parse(&mariadb.url()).unwrap(), Some(dir.path())).await,
    };
    store.unwrap()
}

/// What a machine says when it knocks.
pub(crate) fn knock(machine: u8, auth_key: Option<&str>) -> EnrollRequest {
    EnrollRequest {
        machine_key_pub: [machine; 32],
        auth_key_hash: auth_key.map(edgelink_auth::auth_key::hash),
        host: HostInfo { hostname: format!("host{machine}"), ..HostInfo::default() },
        now_unix_ms: 1_700_000_000_000,
        require_authorization: true,
    }
}

pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}
