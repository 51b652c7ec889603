//! Which tokens are void before their time (specification §4.3, DESIGN §3).

use edgelink_model::NodeId;
use edgelink_model::records::{RevocationRecord, RevocationTarget};
use std::collections::HashMap;

/// Revocations by token and by node. Entries are forgotten once every token that they could name has expired.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revocations {
    by_jti: HashMap<String, Entry<()>>,
    by_node: HashMap<NodeId, Entry<u64>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry<T> {
    id: String,
    what: T,
    expires_at: u64,
}

impl Revocations {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one. What two records say of the same token or node adds up: the later moment and the later expiry hold.
    pub fn insert(&mut self, record: &RevocationRecord) {
        let (id, expires_at) = (record.id.clone(), record.expires_at);
        match &record.target {
            RevocationTarget::Jti(jti) => {
                let entry = self.by_jti.entry(jti.clone()).or_insert(Entry { id, what: (), expires_at });
                entry.expires_at = entry.expires_at.max(expires_at);
            }
            RevocationTarget::Node { node_id, issued_before } => {
                let entry = self.by_node.entry(*node_id).or_insert(Entry { id, what: *issued_before, expires_at });
                entry.what = entry.what.max(*issued_before);
                entry.expires_at = entry.expires_at.max(expires_at);
            }
        }
    }

    /// Whether the token `jti` of `node`, issued at `iat` (Unix seconds), is void.
    pub fn is_revoked(&self, jti: &str, node: NodeId, iat: u64) -> bool {
        self.is_jti_revoked(jti) || self.by_node.get(&node).is_some_and(|entry| iat < entry.what)
    }

    /// Whether the token `jti` is void by name: for tokens that belong to no node.
    pub fn is_jti_revoked(&self, jti: &str) -> bool {
        self.by_jti.contains_key(jti)
    }

    /// Tokens of `node` issued before this moment (Unix seconds) are void; 0 when none are.
    pub fn issued_before(&self, node: NodeId) -> u64 {
        self.by_node.get(&node).map_or(0, |entry| entry.what)
    }

    /// Forgets entries whose `expires_at` lies before `now_unix` (seconds); the clock leeway and a relay's grace are
    /// the maker's to include in `expires_at`.
    pub fn expire(&mut self, now_unix: u64) {
        self.by_jti.retain(|_, entry| entry.expires_at >= now_unix);
        self.by_node.retain(|_, entry| entry.expires_at >= now_unix);
    }

    /// All entries, in no order, for keeping across restarts.
    pub fn iter(&self) -> impl Iterator<Item = RevocationRecord> + '_ {
        let tokens = self.by_jti.iter().map(|(jti, entry)| RevocationRecord {
            id: entry.id.clone(),
            target: RevocationTarget::Jti(jti.clone()),
            expires_at: entry.expires_at,
        });
        let nodes = self.by_node.iter().map(|(node_id, entry)| RevocationRecord {
            id: entry.id.clone(),
            target: RevocationTarget::Node { node_id: *node_id, issued_before: entry.what },
            expires_at: entry.expires_at,
        });
        tokens.chain(nodes)
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.by_jti.len() + self.by_node.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<'a> FromIterator<&'a RevocationRecord> for Revocations {
    fn from_iter<I: IntoIterator<Item = &'a RevocationRecord>>(records: I) -> Self {
        let mut this = Self::new();
        records.into_iter().for_each(|record| this.insert(record));
        this
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(jti: &str, expires_at: u64) -> RevocationRecord {
        RevocationRecord { id: jti.to_owned(), target: RevocationTarget::Jti(jti.to_owned()), expires_at }
    }

    fn node(node_id: u32, issued_before: u64, expires_at: u64) -> RevocationRecord {
        let target = RevocationTarget::Node { node_id: NodeId(node_id), issued_before };
        RevocationRecord { id: format!("node-{node_id}"), target, expires_at }
    }

    #[test]
    fn by_token_and_by_node() {
        let revocations: Revocations = [token("a", 50), node(7, 100, 200)].iter().collect();
        assert!(revocations.is_revoked("a", NodeId(1), 1_000));
        assert!(!revocations.is_revoked("b", NodeId(1), 1_000));
        assert!(revocations.is_revoked("b", NodeId(7), 99));
        assert!(!revocations.is_revoked("b", NodeId(7), 100));
        assert!(!revocations.is_revoked("b", NodeId(8), 99));
    }

    #[test]
    fn a_second_record_never_weakens_the_first() {
        let mut revocations: Revocations =
            [node(7, 100, 200), node(7, 50, 300), token("a", 60), token("a", 40)].iter().collect();
        assert!(revocations.is_revoked("x", NodeId(7), 99));
        revocations.expire(60);
        assert_eq!(revocations.len(), 2);
        revocations.expire(61);
        assert!(!revocations.is_jti_revoked("a"));
        revocations.expire(300);
        assert!(revocations.is_revoked("x", NodeId(7), 99));
        revocations.expire(301);
        assert!(revocations.is_empty());
    }

    #[test]
    fn survives_being_written_and_read() {
        let revocations: Revocations = [token("a", 50), node(7, 100, 200)].iter().collect();
        let records: Vec<_> = revocations.iter().collect();
        assert_eq!(records.iter().collect::<Revocations>(), revocations);
    }
}
