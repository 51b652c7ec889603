//! Who is at the other end of a Unix socket, and may they give orders (DESIGN §7: the local socket checks the uid).

use std::{ffi::CString, io, os::fd::AsFd};

use nix::{
    sys::socket::{getsockopt, sockopt},
    unistd::{Gid, Group, Uid, User, geteuid, getgrouplist},
};

/// The peer of a connected Unix stream socket, as the kernel recorded it at `connect`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerCred {
    /// Process id (0 when it lives outside our PID namespace).
    pub pid: i32,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
}

impl PeerCred {
    /// Asks the kernel (`SO_PEERCRED`); works on `std`'s and tokio's `UnixStream` alike.
    ///
    /// # Errors
    ///
    /// When `socket` is not a connected Unix socket.
    pub fn of(socket: &impl AsFd) -> io::Result<Self> {
        let cred = getsockopt(socket, sockopt::PeerCredentials)?;
        // The kernel answers (0, -1, -1) for sockets without a peer and for other families.
        if cred.uid() == u32::MAX {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "no peer credentials"));
        }
        Ok(Self { pid: cred.pid(), uid: cred.uid(), gid: cred.gid() })
    }

    /// Whether this peer may give orders to our daemon: root, our own user, or a member of `group`.
    #[must_use]
    pub fn may_control(&self, group: Option<u32>) -> bool {
        if self.uid == 0 || self.uid == geteuid().as_raw() {
            return true;
        }
        group.is_some_and(|group| self.gid == group || self.is_member(group))
    }

    /// The user's name, or `uid 1234` when he has none here.
    #[must_use]
    pub fn user(&self) -> String {
        let user = User::from_uid(Uid::from_raw(self.uid)).ok().flatten();
        user.map_or_else(|| format!("uid {}", self.uid), |user| user.name)
    }

    /// Membership by the user database, since the kernel records only the effective group.
    fn is_member(&self, group: u32) -> bool {
        let Ok(Some(user)) = User::from_uid(Uid::from_raw(self.uid)) else { return false };
        let Ok(name) = CString::new(user.name) else { return false };
        getgrouplist(&name, user.gid).is_ok_and(|groups| groups.contains(&Gid::from_raw(group)))
    }
}

/// The id of a group, `None` when it does not exist.
#[must_use]
pub fn group_id(name: &str) -> Option<u32> {
    Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_peer_of_a_pair_is_ourselves() {
        let (a, _b) = UnixStream::pair().unwrap();
        let cred = PeerCred::of(&a).unwrap();
        assert_eq!(cred.uid, geteuid().as_raw());
        assert_eq!(cred.gid, nix::unistd::getegid().as_raw());
        assert_eq!(cred.pid, i32::try_from(std::process::id()).unwrap());
        assert!(cred.may_control(None));
    }

    #[test]
    fn a_stranger_may_not_unless_in_the_group() {
        let stranger = PeerCred { pid: 1, uid: 4_000_000, gid: 4_000_001 };
        assert!(!stranger.may_control(None));
        assert!(!stranger.may_control(Some(0)));
        assert!(stranger.may_control(Some(4_000_001)), "its effective group");
        assert!(PeerCred { uid: 0, ..stranger }.may_control(None));
        assert_eq!(stranger.user(), "uid 4000000");
        assert_eq!(PeerCred { uid: 0, ..stranger }.user(), "root");
    }

    #[test]
    fn membership_comes_from_the_database() {
        assert_eq!(group_id("root"), Some(0));
        assert_eq!(group_id("no-such-group-here"), None);
        // uid 1 (daemon) exists on every Unix and is in its own primary group and not in root's.
        let daemon = PeerCred { pid: 1, uid: 1, gid: 4_000_001 };
        if let Some(primary) = User::from_uid(Uid::from_raw(1)).unwrap().map(|user| user.gid.as_raw()) {
            assert!(daemon.may_control(Some(primary)));
        }
        assert!(!daemon.may_control(Some(0)));
    }

    #[test]
    fn a_socket_without_a_peer_has_no_credentials() {
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(PeerCred::of(&udp).is_err());
    }
}
