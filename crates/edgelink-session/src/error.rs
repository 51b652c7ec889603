//! Why a statement, a frame to be sealed or a received frame is refused.

use edgelink_model::NodeId;
use edgelink_wire::WireError;

/// Why a statement is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// It is said in another network.
    #[error("the key statement belongs to another network")]
    OtherNetwork,
    /// Ours names another node or key than ours; or a peer's names us.
    #[error("the key statement names the wrong node or key")]
    OtherNode,
    /// Its sequence number is lower than one that we have accepted from the same machine.
    #[error("the key statement is older than the one in use")]
    LowerSeq,
    /// Another statement with the same sequence number is in use.
    #[error("two different key statements have the same sequence number; is the machine key in use twice?")]
    SeqConflict,
    /// The shared secret would be all zero.
    #[error("the node key is weak (all-zero shared secret)")]
    WeakKey,
    /// [`crate::SessionTable::set_local`] has not been called.
    #[error("there is no node key of ours yet")]
    NoLocalKey,
    /// The library refused; does not happen with intact memory.
    #[error("key derivation failed")]
    Derivation,
}

/// Why a frame is not sealed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// No statement of this peer is in use.
    #[error("no key of this peer is known")]
    UnknownPeer,
    /// [`crate::SessionTable::set_local`] has not been called.
    #[error("there is no node key of ours yet")]
    NoLocalKey,
    /// The counter has reached [`crate::COUNTER_LIMIT`]: a new node key is overdue.
    #[error("the session's counter is used up")]
    Exhausted,
    /// The buffer cannot be a sealed frame.
    #[error(transparent)]
    Frame(#[from] WireError),
    /// The library refused; does not happen with intact memory.
    #[error("sealing failed")]
    Crypto,
}

/// Why a received frame is dropped. Nothing has changed but, maybe, the frame's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Not a sealed frame, or with a length or counter that none can have.
    #[error("malformed frame")]
    Malformed,
    /// Its destination is another node.
    #[error("not for this node")]
    NotForUs,
    /// Its source is no peer of ours.
    #[error("from no peer of ours")]
    UnknownPeer {
        /// The source that it names.
        src: NodeId,
    },
    /// A peer's frame whose prefix names no session: one of the two statements is not known on this side.
    #[error("under an unknown key of a peer")]
    UnknownKey {
        /// The peer that it names; not proven.
        src: NodeId,
    },
    /// It was received before.
    #[error("replayed")]
    Replayed,
    /// It lies below the replay window.
    #[error("older than the replay window")]
    TooOld,
    /// The tag does not verify.
    #[error("the tag does not verify")]
    BadTag,
}
