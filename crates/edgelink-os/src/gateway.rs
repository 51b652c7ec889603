//! Gateway mode: forwarding, source translation and MSS clamping, all of it undone at the end (DESIGN §7).
//!
//! The firewall's part lives in a table of its own (ADR 0012), which is replaced and removed whole: no rule of anybody
//! else is read or touched. What cannot vanish with the table is written down before it is changed ([`Sysctls`]), so
//! that the next start can undo what a killed process left.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// Our tables are called this and the interface's name.
const TABLE_PREFIX: &str = "edgelink_";
/// Where kernel settings are.
const PROC_NET: &str = "/proc/sys/net";

/// Why a gateway does not work, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// There is no `nft`.
    #[error("gateway_mode needs the program `nft`: install the package nftables ({0})")]
    NoNft(#[source] io::Error),
    /// `nft` said no.
    #[error("the firewall refuses the gateway's rules: {0}")]
    Nft(String),
    /// The name would be read as something else.
    #[error("the interface name {0:?} cannot be used in firewall rules")]
    Name(String),
    /// A kernel setting is read-only here, as in containers.
    #[error("cannot turn forwarding on ({path}: {source}); do it outside: sysctl -w {key}=1", path = path.display())]
    Forwarding {
        /// The file.
        path: PathBuf,
        /// The setting's name.
        key: String,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// What the firewall does for the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The tunnel's interface.
    pub tun: String,
    /// Packets from the tunnel into these networks get the gateway's address as source; empty: none do.
    pub snat: Vec<IpNet>,
}

impl Rules {
    /// Puts the rules in force, replacing former ones of the same interface in one transaction.
    ///
    /// # Errors
    /// [`GatewayError`]; what was before stays.
    pub async fn apply(&self) -> Result<(), GatewayError> {
        nft(&self.script()?).await.map(drop)
    }

    fn script(&self) -> Result<String, GatewayError> {
        let table = table_name(&self.tun)?;
        let tun = &self.tun;
        let mut script = format!(
            "table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n\
             comment \"EdgeLink gateway; made and removed by edgelink\"\n\
             chain forward {{\ntype filter hook forward priority mangle; policy accept;\n"
        );
        // The tunnel's MTU is less than the LAN's, and not every path lets the ICMP through that says so.
        for direction in ["iifname", "oifname"] {
            let _ = writeln!(
                script,
                "{direction} \"{tun}\" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu"
            );
        }
        script.push_str("}\n");
        if !self.snat.is_empty() {
            script.push_str("chain postrouting {\ntype nat hook postrouting priority srcnat; policy accept;\n");
            for (family, v4) in [("ip", true), ("ip6", false)] {
                let nets: Vec<String> = self
                    .snat
                    .iter()
                    .filter(|net| matches!(net, IpNet::V4(_)) == v4)
                    .map(|net| net.trunc().to_string())
                    .collect();
                if !nets.is_empty() {
                    let _ = writeln!(
                        script,
                        "iifname \"{tun}\" oifname != \"{tun}\" {family} daddr {{ {} }} masquerade",
                        without_covered(&nets).join(", ")
                    );
                }
            }
            script.push_str("}\n");
        }
        script.push_str("}\n");
        Ok(script)
    }
}

/// nft refuses sets whose intervals overlap.
fn without_covered(nets: &[String]) -> Vec<String> {
    let parsed: Vec<IpNet> = nets.iter().filter_map(|net| net.parse().ok()).collect();
    IpNet::aggregate(&parsed).iter().map(ToString::to_string).collect()
}

/// Removes the rules of an interface; there being none is no error.
///
/// # Errors
/// [`GatewayError`].
pub async fn remove(tun: &str) -> Result<(), GatewayError> {
    let table = table_name(tun)?;
    nft(&format!("table inet {table}\ndelete table inet {table}\n")).await.map(drop)
}

/// Removes tables of ours whose interface is gone, as a killed process leaves them. Returns how many.
///
/// # Errors
/// [`GatewayError`]; a host without `nft` has none.
pub async fn remove_leftovers() -> Result<usize, GatewayError> {
    let tables = match nft_list().await {
        Err(GatewayError::NoNft(_)) => return Ok(0),
        other => other?,
    };
    let living: BTreeSet<String> = nix::net::if_::if_nameindex()
        .map(|all| all.iter().map(|i| i.name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    let mut removed = 0;
    for table in tables.lines().filter_map(|line| line.strip_prefix("table inet ")) {
        let Some(tun) = table.strip_prefix(TABLE_PREFIX) else { continue };
        if !living.iter().any(|name| table_part(name) == tun) {
            nft(&format!("delete table inet {table}\n")).await?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Foreign firewall chains through which forwarded packets must pass and that drop by default: our accepting table does
/// not overrule them. `table chain` each.
pub async fn dropping_chains() -> Vec<String> {
    let Ok(text) = run_nft(&["list", "chains"], None).await else { return Vec::new() };
    let mut found = Vec::new();
    let (mut table, mut chain) = (String::new(), String::new());
    for line in text.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("table ") {
            table = rest.trim_end_matches('{').trim().to_owned();
        } else if let Some(rest) = line.strip_prefix("chain ") {
            chain = rest.trim_end_matches('{').trim().to_owned();
        } else if line.contains("hook forward") && line.contains("policy drop") {
            found.push(format!("{table} {chain}"));
        }
    }
    found
}

fn table_name(tun: &str) -> Result<String, GatewayError> {
    let plain = |c: char| c.is_ascii_graphic() && c != '"' && c != '\\';
    if tun.is_empty() || !tun.chars().all(plain) {
        return Err(GatewayError::Name(tun.to_owned()));
    }
    Ok(format!("{TABLE_PREFIX}{}", table_part(tun)))
}

fn table_part(tun: &str) -> String {
    tun.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

async fn nft(script: &str) -> Result<String, GatewayError> {
    run_nft(&["-f", "-"], Some(script)).await
}

async fn nft_list() -> Result<String, GatewayError> {
    run_nft(&["list", "tables"], None).await
}

async fn run_nft(arguments: &[&str], input: Option<&str>) -> Result<String, GatewayError> {
    let mut command = Command::new("nft");
    // Daemons do not always have the directories of administration programs on their PATH.
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    let mut child = command
        .args(arguments)
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(GatewayError::NoNft)?;
    if let (Some(script), Some(mut stdin)) = (input, child.stdin.take()) {
        // It may have ended before it read everything; its own words tell why.
        let _ = stdin.write_all(script.as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(GatewayError::NoNft)?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        return Err(GatewayError::Nft(words.lines().next().unwrap_or("no reason given").to_owned()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Kernel settings that were changed, with what they were: kept in a file until they are put back.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Sysctls {
    /// Path below `/proc/sys/net` → former value.
    changed: BTreeMap<String, String>,
    /// Which of them each tunnel needs: several gateways may need the same.
    #[serde(skip)]
    needed: BTreeMap<String, BTreeSet<String>>,
    #[serde(skip)]
    file: PathBuf,
}

impl Sysctls {
    /// Takes over what a former process changed and could not put back.
    pub fn open(file: &Path) -> Self {
        let kept = std::fs::read_to_string(file).ok().and_then(|text| serde_json::from_str::<Self>(&text).ok());
        Self { file: file.to_owned(), ..kept.unwrap_or_default() }
    }

    /// Lets packets pass between the tunnel and these interfaces.
    ///
    /// # Errors
    /// [`GatewayError::Forwarding`] where settings are read-only and forwarding is off.
    pub fn forward(&mut self, tun: &str, lans: &BTreeSet<String>, v4: bool, v6: bool) -> Result<(), GatewayError> {
        if v4 {
            for interface in lans.iter().map(String::as_str).chain([tun]) {
                self.set(tun, &format!("ipv4/conf/{interface}/forwarding"), "1")?;
            }
        }
        const V6: &str = "ipv6/conf/all/forwarding";
        if v6 && (self.changed.contains_key(V6) || self.get(V6).as_deref() != Some("1")) {
            // A router listens to no other routers unless it is told to.
            for interface in lans {
                let key = format!("ipv6/conf/{interface}/accept_ra");
                if self.changed.contains_key(&key) || self.get(&key).as_deref() == Some("1") {
                    self.set(tun, &key, "2")?;
                }
            }
            self.set(tun, V6, "1")?;
        }
        Ok(())
    }

    /// Puts everything back.
    pub fn restore(&mut self) {
        self.needed.clear();
        self.put_back_unneeded();
    }

    /// A tunnel forwards no longer: puts back what no other one needs.
    pub fn release(&mut self, tun: &str) {
        self.needed.remove(tun);
        self.put_back_unneeded();
    }

    fn put_back_unneeded(&mut self) {
        let needed: BTreeSet<&String> = self.needed.values().flatten().collect();
        let gone: Vec<String> = self.changed.keys().filter(|key| !needed.contains(key)).cloned().collect();
        if gone.is_empty() {
            return;
        }
        for key in gone {
            let Some(value) = self.changed.remove(&key) else { continue };
            // The tunnel's own settings went with it.
            if let Err(error) = std::fs::write(Path::new(PROC_NET).join(&key), &value) {
                tracing::debug!(key, %error, "a kernel setting was not put back");
            }
        }
        if self.changed.is_empty() {
            let _ = std::fs::remove_file(&self.file);
        } else {
            self.write_down();
        }
    }

    fn write_down(&self) {
        if let Ok(text) = serde_json::to_string(self)
            && let Err(error) = crate::files::write_private(&self.file, text.as_bytes())
        {
            tracing::warn!(%error, "former kernel settings are not on disk; a crash would leave the new ones");
        }
    }

    fn get(&self, key: &str) -> Option<String> {
        std::fs::read_to_string(Path::new(PROC_NET).join(key)).ok().map(|value| value.trim().to_owned())
    }

    fn set(&mut self, tun: &str, key: &str, value: &str) -> Result<(), GatewayError> {
        self.needed.entry(tun.to_owned()).or_default().insert(key.to_owned());
        let former = self.get(key);
        if former.as_deref() == Some(value) {
            return Ok(());
        }
        if let Some(former) = former {
            // First to disk, then to the kernel.
            self.changed.entry(key.to_owned()).or_insert(former);
            self.write_down();
        }
        let path = Path::new(PROC_NET).join(key);
        std::fs::write(&path, value).map_err(|source| GatewayError::Forwarding {
            path,
            key: format!("net.{}", key.replace('/', ".")),
            source,
        })
    }
}

/// The interfaces behind which these networks are: those with an address in them, and for the others the one with the
/// default route.
pub fn lan_interfaces(nets: &[IpNet], tun: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let entries: Vec<(String, IpNet)> = nix::ifaddrs::getifaddrs()
        .into_iter()
        .flatten()
        .filter(|entry| entry.interface_name != tun && entry.interface_name != "lo")
        .filter_map(|entry| {
            let of = |s: nix::sys::socket::SockaddrStorage| {
                let v4 = s.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
                v4.or_else(|| s.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
            };
            let net = IpNet::with_netmask(of(entry.address?)?, of(entry.netmask?)?).ok()?;
            Some((entry.interface_name, net.trunc()))
        })
        .collect();
    for net in nets {
        let mut direct = entries.iter().filter(|(_, own)| own.contains(net) || net.contains(own)).peekable();
        if net.prefix_len() == 0 || direct.peek().is_none() {
            found.extend(default_interface());
        }
        found.extend(direct.map(|(name, _)| name.clone()));
    }
    found
}

fn default_interface() -> Option<String> {
    let table = std::fs::read_to_string("/proc/net/route").ok()?;
    let mut lines = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    lines.find_map(|columns| match columns.as_slice() {
        [interface, "00000000", ..] => Some((*interface).to_owned()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_are_one_table_that_replaces_itself() {
        let rules = Rules {
            tun: "wss-mesh0".to_owned(),
            snat: ["192.168.1.0/24", "192.168.0.0/16", "10.9.0.0/16", "2001:db8::/32"]
                .map(|n| n.parse().unwrap())
                .to_vec(),
        };
        let script = rules.script().unwrap();
        assert!(
            script.starts_with("table inet edgelink_wss_mesh0\ndelete table inet edgelink_wss_mesh0\n"),
            "{script}"
        );
        // What is covered by another prefix is not listed twice.
        assert!(script.contains("ip daddr { 10.9.0.0/16, 192.168.0.0/16 } masquerade"), "{script}");
        assert!(script.contains("ip6 daddr { 2001:db8::/32 } masquerade"), "{script}");
        assert!(!Rules { snat: Vec::new(), ..rules }.script().unwrap().contains("masquerade"));
    }

    #[test]
    fn names_that_would_be_read_as_rules_are_refused() {
        for bad in ["", "a\"; flush ruleset", "a b", "x\\"] {
            assert!(matches!(table_name(bad), Err(GatewayError::Name(_))), "{bad}");
        }
    }

    #[test]
    fn what_was_changed_is_on_disk_before_it_is_changed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("gateway.json");
        let mut first = Sysctls::open(&file);
        first.changed.insert("ipv4/conf/nothing/forwarding".to_owned(), "0".to_owned());
        std::fs::write(&file, serde_json::to_string(&first).unwrap()).unwrap();
        let mut next = Sysctls::open(&file);
        assert_eq!(next.changed, first.changed);
        next.restore();
        assert!(next.changed.is_empty() && !file.exists());
    }
}
