//! Every writer tells the followers, in its transaction; those that need not are named here, with the reason.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Functions that write what no node must know.
const SILENT: [(&str, &str); 20] = [
    ("create_admin", "administrators are the REST API's business; it reads them at each request"),
    ("update_admin", "as above"),
    ("delete_admin", "as above"),
    ("admin_logged_in", "as above"),
    ("create_auth_key", "auth keys are read when a node knocks"),
    ("delete_auth_key", "as above"),
    ("prune_changes", "it shortens the log itself"),
    ("prune_revocations", "followers forget expired revocations by themselves"),
    ("touch_nodes", "presence is no change: heartbeats must not move the configuration's version"),
    ("touch_servers", "as above"),
    ("reset_presence", "as above"),
    ("write_latencies", "hot state: it lives in the controller's memory"),
    ("touch_connections", "as above"),
    ("set_endpoints", "as above"),
    ("set_setting", "settings that controllers follow are read by them, not by nodes"),
    ("setting_or_insert_with", "as above"),
    ("set_network_route_approval", "read when a node announces a route"),
    ("audit", "the audit log has no followers"),
    ("take_lease", "the lease is between controllers"),
    ("announce_controller", "the active controller reads them now and then, and tells nodes by itself"),
];

/// What puts a word into the change log, directly or in a helper that takes the writer.
const TELLS: [&str; 3] = ["writer.log(", "save(&mut writer", "(&mut writer"];

/// The functions that begin a write transaction, and whether they tell the followers.
fn writers() -> Vec<(String, bool)> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    for entry in fs::read_dir(sources).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if !name.ends_with(".rs") || name.ends_with("_tests.rs") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for function in text.split("async fn ").skip(1) {
            let body = function.split("\n    }\n").next().unwrap();
            if body.contains("self.write().await") {
                let name = function.split(['(', '<']).next().unwrap().to_owned();
                found.push((name, TELLS.iter().any(|word| body.contains(word))));
            }
        }
        // A write outside the queue of writers would have no place in the order of changes.
        let aside = [".exec(&self.db)", ".exec_without_returning(&self.db)", ".exec_with_returning(&self.db)"];
        assert!(
            name == "lease.rs" || !aside.iter().any(|word| text.contains(word)),
            "{name} writes beside `Store::write`"
        );
    }
    found
}

#[test]
fn every_writer_appends_to_the_change_log_or_says_why_not() {
    let writers = writers();
    assert!(writers.len() > 20 && writers.iter().any(|(name, _)| name == "try_enroll"), "{writers:?}");
    let silent: BTreeSet<&str> = SILENT.iter().map(|(name, _)| *name).collect();
    for (name, tells) in &writers {
        assert_ne!(*tells, silent.contains(name.as_str()), "{name}: does it tell the followers, or must it not?");
    }
    for name in silent {
        assert!(writers.iter().any(|(writer, _)| writer == name), "{name} does not exist any more");
    }
}

#[test]
fn helpers_that_take_the_writer_tell_the_followers() {
    let read = |name: &str| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(name)).unwrap();
    for (file, helper, word) in [
        ("nodes.rs", "async fn save(", "writer.log(&Subject::Node"),
        ("nodes.rs", "async fn set_key_in(", "save(writer"),
        ("revocations.rs", "async fn insert(", "writer.log(&Subject::Revocation"),
        ("revocations.rs", "async fn node_wide(", "insert(writer"),
        ("enroll.rs", "async fn new_machine(", "writer.log(&Subject::Node"),
        ("enroll.rs", "async fn known_machine(", "nodes::save(writer"),
    ] {
        let text = read(file);
        let body = text.split(helper).nth(1).unwrap().split("\n}\n").next().unwrap();
        assert!(body.contains(word), "{helper} in {file}");
    }
}
