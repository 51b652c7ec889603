//! Forgetting a host's connection tracking, without the `conntrack` program.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::{
    socket::{MsgFlags, recv, send, setsockopt, sockopt},
    time::{TimeVal, TimeValLike},
};

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE`.
const DELETE: u16 = 1 << 8 | 2;
/// `struct nlmsghdr` and `struct nfgenmsg`.
const LEN: u32 = 16 + 4;

/// Deletes every entry of the network namespace that this netlink socket (`NETLINK_NETFILTER`) is of.
pub(crate) fn flush(socket: &OwnedFd) -> io::Result<()> {
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    let mut request = Vec::new();
    request.extend(LEN.to_ne_bytes());
    request.extend(DELETE.to_ne_bytes());
    request.extend(flags.to_ne_bytes());
    // Sequence number, port (the kernel fills it in); family (all), version and resource. No attribute: all entries.
    request.extend(1_u32.to_ne_bytes());
    request.extend([0; 8]);
    let fd = socket.as_raw_fd();
    setsockopt(socket, sockopt::ReceiveTimeout, &TimeVal::seconds(10))?;
    send(fd, &request, MsgFlags::empty())?;
    let mut answer = [0; 256];
    let len = recv(fd, &mut answer, MsgFlags::empty())?;
    let word = |at: usize| answer.get(at..at + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
    // The answer is an error message with the number 0, or a negative errno.
    match word(16).map(i32::from_ne_bytes).filter(|_| len >= 20) {
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(errno.saturating_neg())),
        None => Err(io::Error::other("the kernel's answer is too short")),
    }
}
