//! What nodes want written: enrolments and keys, several in one transaction.

use super::Hub;
use crate::{now, os_rng};
use edgelink_control::ConnId;
use edgelink_model::records::EnrollError;
use edgelink_store::{NodeWrite, NodeWritten};
use std::rc::Rc;

/// Writes in one transaction: whoever else wants to write waits for so many.
const WRITES_AT_ONCE: usize = 128;

/// What a node wants written, and which connection waits for the outcome.
pub(super) struct Writing {
    pub(super) conn: Option<ConnId>,
    pub(super) write: NodeWrite,
}

impl Hub {
    pub(super) fn write(&self, writing: Writing) {
        self.writes.borrow_mut().push_back(writing);
        self.to_write.notify_one();
    }

    /// Enrolments and keys: while one transaction is written the next gathers, so that a crowd shares commits and a
    /// single node waits for nobody.
    pub(super) async fn run_writes(self: Rc<Self>) {
        loop {
            self.writing.set(false);
            self.written.notify_one();
            let batch: Vec<Writing> = {
                let mut writes = self.writes.borrow_mut();
                let len = writes.len().min(WRITES_AT_ONCE);
                writes.drain(..len).collect()
            };
            if batch.is_empty() {
                self.to_write.notified().await;
                continue;
            }
            if self.ended.get() || !self.is_active() {
                // Of connections that are being closed.
                continue;
            }
            self.writing.set(true);
            let (conns, writes): (Vec<_>, Vec<_>) = batch.into_iter().map(|w| (w.conn, w.write)).unzip();
            let outcomes = self.writer().write_nodes(&writes).await;
            // The core must know the changes before it hears of the outcomes.
            self.follow().await;
            for ((conn, write), outcome) in conns.into_iter().zip(&writes).zip(outcomes) {
                let enrolled = match outcome {
                    NodeWritten::Enrolled(record) => Ok(*record),
                    NodeWritten::Refused(error) => Err(error),
                    NodeWritten::KeySet => continue,
                    NodeWritten::Failed(error) => {
                        if let NodeWrite::SetKey { node, .. } = write {
                            // The node announces itself to its peers as well; the next rotation repairs the record.
                            tracing::warn!(%node, %error, "a node's key was not kept");
                        }
                        continue;
                    }
                };
                if matches!(enrolled, Err(EnrollError::Unavailable)) {
                    tracing::warn!("a node cannot enrol: the database does not answer");
                }
                if let Some(conn) = conn {
                    self.control.borrow_mut().handle_enrolled(conn, enrolled, now(), &mut os_rng());
                }
            }
            self.pump();
        }
    }
}
