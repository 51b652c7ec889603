//! A graceful end: nodes and other relays are told and move first, then the connections are closed.
//!
//! ERROR 4002 about no node, on a connection that is authenticated, says that this relay will end soon. What comes until
//! then is still forwarded, so that those who move lose nothing.

use crate::connection::{Connection, State};
use crate::event::ConnId;
use crate::relay::Relay;
use edgelink_model::{ErrorCode, Now};
use edgelink_wire::control::proto;

impl Relay {
    /// Tells everybody that this relay will end soon, and takes no further connections. Frames are still forwarded.
    ///
    /// Returns whether that can be of use: somebody is connected, and there is another relay to move to.
    pub fn drain(&mut self, now: Now) -> bool {
        self.draining = true;
        let told: Vec<ConnId> = self
            .connections
            .iter()
            .filter(|(_, connection)| matches!(connection.state, State::Open(_) | State::Mesh(_)))
            .map(|(slot, connection)| ConnId { serial: connection.serial, slot })
            .collect();
        let sentence = "this relay is about to end; take another one";
        for conn in told {
            self.send_error(conn, &proto::Error::new(ErrorCode::Unavailable, 0, sentence), now);
        }
        !self.nodes.is_empty() && !self.mesh.links.is_empty()
    }

    /// The relay at the other end of a link is about to end: other links are taken, if there are any.
    pub(crate) fn link_is_leaving(&mut self, conn: ConnId) {
        if let Some(link) = self.get_mut(conn).and_then(Connection::link_mut) {
            tracing::debug!(relay = %link.peer, "another relay is about to end");
            link.leaving = true;
        }
    }

    pub(crate) fn is_leaving(&self, link: ConnId) -> bool {
        self.get(link).and_then(Connection::link).is_some_and(|link| link.leaving)
    }
}
