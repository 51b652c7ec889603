//! The Debian package and the systemd units.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use edgelink_e2e::binary;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {out}{err}");
    out.into_owned()
}

fn is_there(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok()
}

#[test]
fn the_debian_package_holds_programs_units_and_configurations_that_they_understand() {
    if !is_there("dpkg-deb") {
        eprintln!("NOT TESTED: dpkg-deb is missing");
        return;
    }
    let out = std::env::temp_dir().join(format!("edgelink-deb-{}", std::process::id()));
    let bin = binary("edgelink").unwrap().parent().unwrap().to_owned();
    let build =
        output(Command::new(repository().join("scripts/deb")).arg(&out).arg("none").env("EDGELINK_BIN_DIR", &bin));
    let file = build.lines().last().unwrap();
    let list = output(Command::new("dpkg-deb").args(["-c", file]));
    for path in [
        "./usr/bin/edgelink\n",
        "./usr/bin/edgelink-controller\n",
        "./usr/bin/edgelink-server\n",
        "./usr/bin/edgelink-ctl\n",
        "./lib/systemd/system/edgelink.service\n",
        "./lib/systemd/system/edgelink-controller.service\n",
        "./lib/systemd/system/edgelink-server.service\n",
        "./usr/lib/sysctl.d/60-edgelink.conf\n",
        "./etc/edgelink/client.json\n",
        "./usr/share/doc/edgelink/install.md\n",
    ] {
        assert!(format!("{list}\n").contains(path), "{path} is missing:\n{list}");
    }
    assert!(list.lines().all(|line| line.contains(" root/root ")), "{list}");
    let conffiles = output(Command::new("dpkg-deb").args(["-I", file, "conffiles"]));
    assert_eq!(conffiles.lines().count(), 3, "{conffiles}");

    let root = out.join("root");
    output(Command::new("dpkg-deb").args(["-x", file, root.to_str().unwrap()]));
    // The programs run as installed, and the shipped units name them.
    output(Command::new(root.join("usr/bin/edgelink")).arg("--version"));
    let units = root.join("lib/systemd/system");
    for unit in std::fs::read_dir(&units).unwrap() {
        let text = std::fs::read_to_string(unit.unwrap().path()).unwrap();
        assert!(text.contains("Type=notify") && text.contains("NoNewPrivileges=yes"), "{text}");
        let start = text.lines().find_map(|line| line.strip_prefix("ExecStart=/")).unwrap();
        assert!(root.join(start.split_whitespace().next().unwrap()).is_file(), "{start}");
        let config = start.split_whitespace().last().unwrap();
        assert!(root.join(config.trim_start_matches('/')).is_file(), "{start}");
    }
    if is_there("systemd-analyze") {
        // systemd-analyze looks for it below the root that it is given; procps brings it.
        std::fs::create_dir_all(root.join("bin")).unwrap();
        std::fs::copy("/bin/kill", root.join("bin/kill")).unwrap();
        for unit in ["edgelink", "edgelink-controller", "edgelink-server"] {
            let verify = Command::new("systemd-analyze")
                .args(["verify", "--recursive-errors=no", "--man=no"])
                .arg(format!("--root={}", root.display()))
                .arg(format!("{unit}.service"))
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&verify.stderr);
            // The extracted tree has no other programs, so `kill` is not in it.
            let ours = said.lines().filter(|line| line.contains("edgelink") && !line.contains("/bin/kill "));
            let ours: Vec<&str> = ours.collect();
            assert!(ours.is_empty(), "{said}");
        }
    } else {
        eprintln!("NOT TESTED: systemd-analyze is missing");
    }
    std::fs::remove_dir_all(&out).unwrap();
}
