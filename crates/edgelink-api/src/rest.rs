//! REST objects; field names are the column names of specification §9.2 (DESIGN §8). `edgelink-ctl --json` prints the same.
//!
//! Moments are RFC 3339 in UTC with milliseconds ([`Timestamp`]), keys are lower-case hex; what is not known is `null`.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A virtual network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Row id.
    pub id: u32,
    /// Unique name.
    pub name: String,
    /// IPv4 prefix, such as `10.100.0.0/16`.
    pub subnet: String,
    /// IPv6 ULA prefix.
    pub subnet6: Option<String>,
    /// Free text.
    pub description: String,
    /// How many nodes it has, authorized or not.
    pub nodes: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Row id.
    pub id: u32,
    /// The network that it belongs to.
    pub network_id: u32,
    /// Name, unique in its network.
    pub name: String,
    /// Ed25519 public key.
    pub machine_key_pub: String,
    /// X25519 public key.
    pub node_key_pub: Option<String>,
    /// When that was announced.
    pub node_key_updated_at: Option<Timestamp>,
    /// Overlay address; `null` until the node is authorized.
    pub virtual_ip: Option<String>,
    /// Overlay IPv6 address.
    pub virtual_ip6: Option<String>,
    /// What the node says of its host.
    pub hostname: String,
    /// Such as `linux`.
    pub os: String,
    /// Such as `x86_64`.
    pub arch: String,
    /// EdgeLink version.
    pub version: String,
    /// One of the names of specification §6.1.
    pub nat_type: Option<String>,
    /// Connected to the controller.
    pub online: bool,
    /// When it was last connected.
    pub last_seen: Option<Timestamp>,
    /// May it join?
    pub authorized: bool,
    /// When it first knocked.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

/// A subnet behind a gateway node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRoute {
    /// Row id.
    pub id: u32,
    /// The gateway.
    pub node_id: u32,
    /// Destination prefix.
    pub cidr: String,
    /// 0–65535, higher wins.
    pub priority: u16,
    /// 1–65535, share among equal priorities.
    pub weight: u16,
    /// Approved?
    pub enabled: bool,
}

/// A relay and/or STUN server. Its token is never shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// Row id.
    pub id: u32,
    /// Unique name.
    pub name: String,
    /// `builtin` or `external`.
    #[serde(rename = "type")]
    pub kind: String,
    /// WSS URL; `null` for the built-in relay: it is at the controller's own origin.
    pub url: Option<String>,
    /// Free text such as `asia`.
    pub region: String,
    /// `relay`, `stun`.
    pub capabilities: Vec<String>,
    /// First STUN address.
    pub stun_ip: Option<String>,
    /// Second STUN address.
    pub stun_ip2: Option<String>,
    /// STUN port.
    pub stun_port: u16,
    /// May nodes use it?
    pub enabled: bool,
    /// Last sign of life.
    pub last_heartbeat: Option<Timestamp>,
    /// When it was added.
    pub created_at: Timestamp,
}

/// A revoked token, or all tokens of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// The token's id, or a synthetic one when `issued_before` is present.
    pub jti: String,
    /// The node whose tokens are void.
    pub node_id: Option<u32>,
    /// Tokens of the node issued before this are void.
    pub issued_before: Option<Timestamp>,
    /// Why.
    pub reason: String,
    /// When it may be forgotten.
    pub expires_at: Timestamp,
    /// When it was revoked.
    pub created_at: Timestamp,
}

/// A new pre-auth key; the only time that it is shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewAuthKey {
    /// What a node gives to join.
    pub key: String,
    /// Row id.
    pub id: u32,
    /// The network that it opens.
    pub network_id: u32,
    /// Any number of machines, or one.
    pub reusable: bool,
    /// Its nodes need no administrator.
    pub preauthorized: bool,
    /// When it ends; `null`: never.
    pub expires_at: Option<Timestamp>,
}

impl fmt::Debug for NewAuthKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewAuthKey").field("id", &self.id).field("network_id", &self.network_id).finish_non_exhaustive()
    }
}

/// The answer to a deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleted {
    /// The id that the row had.
    pub id: u32,
    /// Always true.
    pub deleted: bool,
}

/// What there is, in numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overview {
    /// EdgeLink's version.
    pub version: String,
    /// Newest change of the database; the configuration version of nodes follows it.
    pub config_version: u64,
    /// Networks.
    pub networks: u64,
    /// Nodes.
    pub nodes: NodeCounts,
    /// Relay and STUN servers.
    pub servers: ServerCounts,
    /// Revocations that have not expired.
    pub revocations: u64,
}

/// Part of [`Overview`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeCounts {
    /// All.
    pub total: u64,
    /// May join.
    pub authorized: u64,
    /// Wait for authorization, or lost it.
    pub unauthorized: u64,
    /// Connected.
    pub online: u64,
}

/// Part of [`Overview`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerCounts {
    /// All.
    pub total: u64,
    /// May be used.
    pub enabled: u64,
}

/// A moment as RFC 3339 in UTC with milliseconds, such as `2023-11-14T22:13:20.500Z`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(String);

impl Timestamp {
    /// From Unix milliseconds.
    pub fn from_unix_ms(ms: u64) -> Self {
        let (seconds, millis) = (ms / 1000, ms % 1000);
        let (days, second) = (seconds / 86_400, seconds % 86_400);
        let (year, month, day) = civil(days);
        let (h, m, s) = (second / 3600, second / 60 % 60, second % 60);
        Self(format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{millis:03}Z"))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Year, month and day of the proleptic Gregorian calendar, `days` after 1970-01-01.
fn civil(days: u64) -> (u64, u64, u64) {
    // Count from 0000-03-01, so that the leap day ends a year and 400 years are a whole cycle.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_rfc_3339() {
        // date -u -d @N +%FT%T
        for (seconds, want) in [
            (0, "1970-01-01T00:00:00"),
            (68_169_599, "1972-02-28T23:59:59"),
            (68_169_600, "1972-02-29T00:00:00"),
            (951_782_400, "2000-02-29T00:00:00"),
            (1_700_000_000, "2023-11-14T22:13:20"),
            (4_107_542_400, "2100-03-01T00:00:00"),
            (4_107_542_399, "2100-02-28T23:59:59"),
            (253_402_300_799, "9999-12-31T23:59:59"),
        ] {
            assert_eq!(Timestamp::from_unix_ms(seconds * 1000 + 7).as_str(), format!("{want}.007Z"));
        }
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for days in 0..400 * 366 {
            assert_eq!(civil(days), (year, month, day), "{days}");
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = match month {
                2 if leap => 29,
                2 => 28,
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            day += 1;
            if day > length {
                (month, day) = (month + 1, 1);
            }
            if month > 12 {
                (year, month) = (year + 1, 1);
            }
        }
    }

    #[test]
    fn a_new_key_does_not_show_itself() {
        let key = NewAuthKey {
            key: "elk_secret".into(),
            id: 1,
            network_id: 2,
            reusable: false,
            preauthorized: true,
            expires_at: None,
        };
        assert!(!format!("{key:?}").contains("elk_secret"));
    }
}
