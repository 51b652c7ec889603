//! `db backup`, `db check`, and the commands on a MariaDB that the configuration names.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

use edgelink_store::{MariaDbUrl, Store};
use edgelink_test_mariadb::{Database, PASSWORD};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A database and how `edgelink-ctl` is told of it.
struct Place {
    dir: tempfile::TempDir,
    mariadb: Option<Database>,
    arguments: Vec<String>,
}

impl Place {
    async fn sqlite() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.db");
        Store::open(&file, true).await.unwrap().close().await.unwrap();
        Self { arguments: vec!["--db".into(), file.display().to_string()], dir, mariadb: None }
    }

    async fn mariadb() -> Self {
        let (dir, mariadb) = (tempfile::tempdir().unwrap(), Database::new());
        let url = MariaDbUrl::parse(&mariadb.url()).unwrap();
        Store::open_mariadb(&url, Some(dir.path())).await.unwrap().close().await.unwrap();
        let config = configuration(dir.path(), &mariadb.url());
        Self { arguments: vec!["--config".into(), config.display().to_string()], dir, mariadb: Some(mariadb) }
    }

    /// Exit code, stdout and stderr.
    fn ctl(&self, line: &str) -> (i32, String, String) {
        let given: Vec<&str> = self.arguments.iter().map(String::as_str).chain(line.split_whitespace()).collect();
        ctl(self.dir.path(), &given)
    }

    fn json(&self, line: &str) -> Value {
        let (code, out, err) = self.ctl(&format!("--json {line}"));
        assert_eq!((code, err.as_str()), (0, ""), "{out}");
        serde_json::from_str(&out).unwrap()
    }
}

fn configuration(dir: &Path, url: &str) -> PathBuf {
    let file = dir.join("controller.json");
    fs::write(&file, json!({ "database": { "type": "mariadb", "url": url } }).to_string()).unwrap();
    file
}

fn ctl(dir: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edgelink-ctl"));
    command.current_dir(dir).env_clear().env("HOME", dir).env("USER", "alice").args(arguments);
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(output.stdout), text(output.stderr));
    for shown in [&out, &err] {
        assert!(!shown.contains(PASSWORD) && !shown.contains("s3cret"), "a password is shown: {shown}");
    }
    (output.status.code().unwrap(), out, err)
}

macro_rules! on_both {
    ($name:ident) => {
        mod $name {
            #[tokio::test]
            async fn sqlite() {
                super::$name(super::Place::sqlite().await).await;
            }

            #[tokio::test]
            async fn mariadb() {
                super::$name(super::Place::mariadb().await).await;
            }
        }
    };
}

on_both!(an_administrators_day);

async fn an_administrators_day(place: Place) {
    assert_eq!(place.json("network create --name lab --subnet 10.9.0.0/24")["name"], "lab");
    let (code, _, err) = place.ctl("network create --name lab --subnet 10.9.0.0/24");
    assert_eq!((code, err.as_str()), (1, "edgelink-ctl: there is already a network named lab; choose another name\n"));
    assert!(place.json("token generate --type auth-key --network lab")["key"].is_string());
    let added = place.json("server add --name r1 --url wss://r1.example.com/ws/data");
    assert!(added["token"].is_string() && added["id"] == 2, "{added}");
    assert_eq!(place.json("server list").as_array().unwrap().len(), 2);
    assert_eq!(place.json("token blacklist jti-1")["jti"], "jti-1");
    place.json("network delete lab");
    assert_eq!(place.json("network list").as_array().unwrap().len(), 1);
    let status = place.json("status");
    assert_eq!(status["servers"]["total"], 2);
}

on_both!(a_backup_is_private_whole_and_never_overwrites);

async fn a_backup_is_private_whole_and_never_overwrites(place: Place) {
    place.json("network create --name lab --subnet 10.9.0.0/24");
    let copy = place.dir.path().join("copy");
    let told = place.json("db backup copy");
    assert_eq!(told["file"], "copy");
    let meta = fs::metadata(&copy).unwrap();
    assert_eq!((told["bytes"].as_u64(), meta.permissions().mode() & 0o777), (Some(meta.len()), 0o600));
    let (code, _, err) = place.ctl("db backup copy");
    assert!(code == 1 && err.contains("File exists"), "{err}");
    assert_eq!(fs::metadata(&copy).unwrap().len(), meta.len());
    let (code, out, err) = place.ctl("db backup copy2");
    assert!((code, out.as_str()) == (0, "") && err.contains("copy2: ") && err.contains("restore it"), "{err}");

    // Restored elsewhere, it says the same.
    let restored = match &place.mariadb {
        None => vec!["--db".to_owned(), copy.display().to_string()],
        Some(_) => {
            let elsewhere = Database::new();
            elsewhere.sql(&format!("SOURCE {}", copy.display()));
            let config = configuration(place.dir.path(), &elsewhere.url());
            // The database lives as long as the test.
            std::mem::forget(elsewhere);
            vec!["--config".to_owned(), config.display().to_string()]
        }
    };
    let there: Vec<&str> = restored.iter().map(String::as_str).chain(["--json", "network", "list"]).collect();
    let (code, out, err) = ctl(place.dir.path(), &there);
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap(), place.json("network list"));
}

on_both!(a_sound_database_is_called_so_and_an_unsound_one_is_not);

async fn a_sound_database_is_called_so_and_an_unsound_one_is_not(place: Place) {
    place.json("network create --name lab --subnet 10.9.0.0/24");
    let report = place.json("db check");
    let names = ["integrity", "foreign_keys", "change_log", "records"];
    assert_eq!((report["ok"].as_bool(), report["config_version"].as_u64()), (Some(true), Some(1)));
    assert_eq!(report["schema"][0], "m0001_initial");
    for (check, name) in report["checks"].as_array().unwrap().iter().zip(names) {
        assert_eq!(check, &json!({ "name": name, "ok": true, "problems": [] }));
    }
    let (code, out, _) = place.ctl("db check");
    assert!(code == 0 && out.contains("references:"), "{out}");

    // A reference into nothing, a change that nobody was told of, and a row that no EdgeLink wrote.
    let harm = "INSERT INTO node_routes (node_id, cidr, created_at) VALUES (77, '10.0.0.0/8', 0); \
         DELETE FROM change_log WHERE id = 1; UPDATE networks SET subnet = 'nonsense' WHERE id = 1;";
    match &place.mariadb {
        Some(mariadb) => drop(mariadb.sql(&format!("SET foreign_key_checks = 0; {harm}"))),
        None => {
            let file = place.dir.path().join("x.db");
            let python =
                "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.executescript(sys.argv[2]); c.commit()";
            let harmed = Command::new("python3").args(["-c", python]).arg(file).arg(harm).status().unwrap();
            assert!(harmed.success());
        }
    }
    let (code, out, err) = place.ctl("--json db check");
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, report["ok"].as_bool()), (1, Some(false)), "{out} {err}");
    for (check, word) in
        report["checks"].as_array().unwrap().iter().skip(1).zip(["node_routes", "change log", "nonsense"])
    {
        let problems = check["problems"].as_array().unwrap();
        assert!(check["ok"] == false && problems[0].as_str().unwrap().contains(word), "{check}");
    }
    assert!(err.contains("the database is not sound"), "{err}");
}

#[tokio::test]
async fn a_damaged_file_is_said_to_be_damaged() {
    let place = Place::sqlite().await;
    let file = place.dir.path().join("x.db");
    let mut bytes = fs::read(&file).unwrap();
    // The header stays: the pages behind it are nonsense.
    bytes.iter_mut().skip(100).for_each(|byte| *byte = 0xa5);
    fs::write(&file, bytes).unwrap();
    for line in ["db check", "network list"] {
        let (code, _, err) = place.ctl(line);
        assert!(code == 3 && err.contains("it is damaged; restore a backup"), "{code} {err}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_mariadb_is_told_without_its_password() {
    let dir = tempfile::tempdir().unwrap();
    for (url, code, word) in [
        ("mysql://edgelink:s3cret@127.0.0.1:1/edgelink", 3, "is the server running"),
        ("mysql://edgelink:s3cret@127.0.0.1:1", 2, "`database.url`: the database URL names no database"),
        ("postgres://edgelink:s3cret@127.0.0.1/edgelink", 2, "must begin with mysql://"),
    ] {
        let config = configuration(dir.path(), url);
        let (found, _, err) = ctl(dir.path(), &["--config", config.to_str().unwrap(), "status"]);
        assert!(found == code && err.contains(word), "{found} {err}");
    }
}
