//! Group commit: what several nodes want written at the same time, in one transaction.
//!
//! A commit costs a wait for the disk and a dozen statements, whatever is in it; a crowd that joins would wait for
//! one per node. Each write keeps an outcome of its own: one that is refused leaves nothing behind and does not hurt the
//! others, and nobody is told of anything before it is committed.

use crate::enroll::{Failure, Seen};
use crate::error::{StoreError, answered};
use crate::nodes;
use crate::store::Store;
use edgelink_model::NodeId;
use edgelink_model::records::{EnrollError, EnrollRequest, NodeKeyRecord, NodeRecord};
use std::sync::Arc;

/// What a node wants written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeWrite {
    /// See [`Store::enroll`].
    Enroll(EnrollRequest),
    /// See [`Store::set_node_key`].
    SetKey {
        /// Whose.
        node: NodeId,
        /// Verified by the caller.
        key: NodeKeyRecord,
    },
}

/// What became of a [`NodeWrite`].
#[derive(Clone, Debug)]
pub enum NodeWritten {
    /// The machine's record.
    Enrolled(Box<NodeRecord>),
    /// Why it has none.
    Refused(EnrollError),
    /// The key is kept, or had been before.
    KeySet,
    /// The key is refused, or the database failed; nothing was written.
    Failed(Arc<StoreError>),
}

impl Store {
    /// Writes for several nodes in one transaction. The outcomes are in the order of `writes`, each as if the write had
    /// been made alone after those before it.
    ///
    /// When the database complains about one of them, all are tried again one by one; when it does not answer, all
    /// have failed.
    pub async fn write_nodes(&self, writes: &[NodeWrite]) -> Vec<NodeWritten> {
        match self.try_write_nodes(writes).await {
            Ok(outcomes) => outcomes,
            Err(error) if writes.len() > 1 && answered(&error) => {
                tracing::debug!(%error, writes = writes.len(), "writes of several nodes are made one by one");
                let mut outcomes = Vec::with_capacity(writes.len());
                for write in writes {
                    let alone = self.try_write_nodes(std::slice::from_ref(write)).await;
                    outcomes.extend(alone.unwrap_or_else(|error| failed(std::slice::from_ref(write), error)));
                }
                outcomes
            }
            Err(error) => failed(writes, error),
        }
    }

    async fn try_write_nodes(&self, writes: &[NodeWrite]) -> Result<Vec<NodeWritten>, StoreError> {
        let mut writer = self.write().await?;
        let mut seen = Seen::default();
        let mut outcomes = Vec::with_capacity(writes.len());
        for write in writes {
            outcomes.push(match write {
                NodeWrite::Enroll(request) => match self.enroll_in(&mut writer, &mut seen, request).await {
                    Ok(record) => NodeWritten::Enrolled(Box::new(record)),
                    Err(Failure::Refused(error)) => NodeWritten::Refused(error),
                    Err(Failure::Store(error)) => return Err(error),
                },
                NodeWrite::SetKey { node, key } => match nodes::set_key_in(&mut writer, *node, key).await {
                    Ok(()) => NodeWritten::KeySet,
                    Err(
                        error @ (StoreError::NotFound { .. } | StoreError::Invalid(_) | StoreError::StaleKey { .. }),
                    ) => NodeWritten::Failed(Arc::new(error)),
                    Err(error) => return Err(error),
                },
            });
        }
        writer.commit().await?;
        Ok(outcomes)
    }
}

fn failed(writes: &[NodeWrite], error: StoreError) -> Vec<NodeWritten> {
    tracing::error!(%error, writes = writes.len(), "writes of nodes failed");
    let error = Arc::new(error);
    let outcome = |write: &NodeWrite| match write {
        NodeWrite::Enroll(_) => NodeWritten::Refused(EnrollError::Unavailable),
        NodeWrite::SetKey { .. } => NodeWritten::Failed(Arc::clone(&error)),
    };
    writes.iter().map(outcome).collect()
}
