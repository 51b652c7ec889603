//! Telling systemd that a service is ready (`Type=notify`, sd_notify(3)): one datagram, no library.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Says that the service serves now. Does nothing where nobody asked (no `NOTIFY_SOCKET`).
pub fn ready() {
    tell("READY=1");
}

/// Says that the service is ending.
pub fn stopping() {
    tell("STOPPING=1");
}

fn tell(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&socket, state) {
        tracing::debug!(%error, "the service manager was not told");
    }
}

fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        // An abstract name is written with @ for its leading zero byte.
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manager_hears_one_datagram_by_path_or_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("@edgelink-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name.trim_start_matches('@')).unwrap();
        let by_name = UnixDatagram::bind_addr(&address).unwrap();
        for (manager, socket) in [(by_path, path.as_os_str()), (by_name, OsStr::new(&name))] {
            send(socket, "READY=1").unwrap();
            let mut buffer = [0; 32];
            let len = manager.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..len], b"READY=1");
        }
        assert!(send(OsStr::new("/nonexistent/socket"), "READY=1").is_err());
    }
}
