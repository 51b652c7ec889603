//! The TUN device, with the kernel's segmentation and checksum offloads where it grants them.
//!
//! Reads and writes carry a 10-byte virtio header before the IP packet, always: with offloads it is the kernel's own
//! (`IFF_VNET_HDR`, little-endian), without it is zero, so that the code above has one path. With offloads a read
//! may return a super-packet of up to [`GSO_MAX_SIZE`] bytes, and a write may hand one to the kernel: of TCP, and since
//! Linux 6.2 of UDP datagrams that a program sent by one call (`UDP_SEGMENT`).

use std::{
    io::{self, ErrorKind},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use tun_rs::{AsyncDevice, DeviceBuilder};

/// Length of the virtio header that begins every packet read and written.
pub const VIRTIO_HEADER_LEN: usize = 10;

/// Largest super-packet that the kernel is told to send: header, packet, nonce and tag then fit the 16-bit length of a
/// frame (DESIGN §6).
pub const GSO_MAX_SIZE: u32 = 65_489;

/// A buffer of this size takes whatever [`Tun::try_read`] returns.
pub const READ_BUFFER_LEN: usize = VIRTIO_HEADER_LEN + 65_536;

/// How the device is opened. Addresses, MTU and the rest are set by [`crate::net::Netlink::configure_tun`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunConfig {
    /// Interface name, 1 to 15 bytes.
    pub name: String,
    /// MTU in bytes, at least 1280 (IPv6) to carry both families.
    pub mtu: u32,
    /// Ask for offloads; `false` gives a plain device.
    pub offload: bool,
    /// Ask for UDP super-packets too; `false` gives what a kernel before 6.2 has. Means nothing without `offload`.
    pub udp_offload: bool,
}

impl TunConfig {
    /// A device with offloads, if the kernel grants them.
    #[must_use]
    pub fn new(name: impl Into<String>, mtu: u32) -> Self {
        Self { name: name.into(), mtu, offload: true, udp_offload: true }
    }
}

/// Why there is no TUN device. The text tells what to do.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The name cannot be an interface's.
    #[error("\"{0}\" is no interface name: 1 to 15 characters without '/', ':', '%' or spaces")]
    BadName(String),
    /// An interface of this name exists.
    #[error(
        "interface {0} exists already: stop the program that owns it, remove it (ip link del {0}) or choose another name \
         (tun.name in the configuration)"
    )]
    NameInUse(String),
    /// There is no `/dev/net/tun`.
    #[error(
        "/dev/net/tun is missing: load the module (modprobe tun); in a container pass the device in \
         (--device /dev/net/tun)"
    )]
    NoDevice(#[source] io::Error),
    /// We may not create interfaces.
    #[error(
        "not allowed to create the TUN interface: run as root or grant CAP_NET_ADMIN \
         (setcap cap_net_admin+ep /path/to/edgelink; in a container --cap-add NET_ADMIN)"
    )]
    NoPermission(#[source] io::Error),
    /// Anything else.
    #[error("cannot open TUN interface {name}: {source}")]
    Io {
        /// The interface.
        name: String,
        /// The system's reason.
        source: io::Error,
    },
}

/// An open TUN interface; it vanishes, with its addresses and routes, when this is dropped or the process dies.
pub struct Tun {
    device: AsyncDevice,
    name: String,
    index: u32,
    mtu: u32,
    offload: Offload,
}

/// What the kernel does for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Offload {
    None,
    Tcp,
    TcpAndUdp,
}

impl Tun {
    /// Creates the interface, down and without addresses. Must be called inside a tokio runtime with I/O enabled.
    ///
    /// # Errors
    ///
    /// See [`TunError`]. A refusal of the offloads is none: the device is then plain.
    pub fn open(config: &TunConfig) -> Result<Self, TunError> {
        let name = config.name.as_str();
        check_name(name)?;
        // Attaching to somebody else's persistent TUN would succeed and then share its packets.
        if nix::net::if_::if_nametoindex(name).is_ok() {
            return Err(TunError::NameInUse(name.to_owned()));
        }
        let (device, offload) = if config.offload { open_best(name, config.udp_offload) } else { open_plain(name) }
            .map_err(|source| explain(name, source))?;
        let index = device.if_index().map_err(|source| explain(name, source))?;
        Ok(Self { device, name: name.to_owned(), index, mtu: config.mtu, offload })
    }

    /// Waits until a packet may be read. Ends with `Ok` too when the interface was deleted: the next
    /// [`Self::try_read`] then tells.
    ///
    /// # Errors
    ///
    /// When the runtime shuts down.
    pub async fn readable(&self) -> io::Result<()> {
        self.device.readable().await
    }

    /// Reads one packet: its virtio header and the IP packet (or super-packet). Returns the length of both.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when none is waiting (await [`Self::readable`]); `InvalidInput` when `buf` is not longer than a
    /// header; `EBADFD` when the interface was deleted. A packet longer than `buf` is cut: give
    /// [`READ_BUFFER_LEN`] bytes.
    pub fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        let Some((header, packet)) = buf.split_at_mut_checked(VIRTIO_HEADER_LEN).filter(|(_, p)| !p.is_empty()) else {
            return Err(ErrorKind::InvalidInput.into());
        };
        if self.offload() {
            return self.device.try_recv(buf);
        }
        header.fill(0);
        Ok(VIRTIO_HEADER_LEN + self.device.try_recv(packet)?)
    }

    /// Writes one packet that begins with its virtio header, which a plain device drops. Never waits; the kernel takes
    /// or drops the packet at once.
    ///
    /// # Errors
    ///
    /// `InvalidInput` when `buf` is not longer than a header or the kernel finds the header wrong; on a plain device
    /// also when the header asks for segmentation or a checksum, which the caller must then have done;
    /// `EIO` while the interface is down.
    pub fn try_write(&self, buf: &[u8]) -> io::Result<usize> {
        let Some((header, packet)) = buf.split_at_checked(VIRTIO_HEADER_LEN).filter(|(_, p)| !p.is_empty()) else {
            return Err(ErrorKind::InvalidInput.into());
        };
        // Straight to the descriptor: tokio's readiness for writing is unknown until its first turn, and a TUN never
        // makes a writer wait.
        if self.offload() {
            return Ok(nix::unistd::write(self.device.as_fd(), buf)?);
        }
        // Byte 0 bit 0 is NEEDS_CSUM, byte 1 the GSO type.
        if header.first().is_some_and(|flags| flags & 1 != 0) || header.get(1).is_some_and(|gso| *gso != 0) {
            return Err(io::Error::new(ErrorKind::InvalidInput, "this TUN has no offloads"));
        }
        Ok(VIRTIO_HEADER_LEN + nix::unistd::write(self.device.as_fd(), packet)?)
    }

    /// [`Self::try_write`] for a virtio header and a packet that do not lie side by side.
    ///
    /// # Errors
    ///
    /// As [`Self::try_write`].
    pub fn try_write_parts(&self, header: &[u8], packet: &[u8]) -> io::Result<usize> {
        if header.len() != VIRTIO_HEADER_LEN || packet.is_empty() {
            return Err(ErrorKind::InvalidInput.into());
        }
        if self.offload() {
            let parts = [io::IoSlice::new(header), io::IoSlice::new(packet)];
            return Ok(nix::sys::uio::writev(self.device.as_fd(), &parts)?);
        }
        // Byte 0 bit 0 is NEEDS_CSUM, byte 1 the GSO type.
        if header.first().is_some_and(|flags| flags & 1 != 0) || header.get(1).is_some_and(|gso| *gso != 0) {
            return Err(io::Error::new(ErrorKind::InvalidInput, "this TUN has no offloads"));
        }
        Ok(VIRTIO_HEADER_LEN + nix::unistd::write(self.device.as_fd(), packet)?)
    }

    /// Whether the kernel segments and checksums for us, so that TCP super-packets pass in both directions.
    #[must_use]
    pub fn offload(&self) -> bool {
        self.offload != Offload::None
    }

    /// Whether UDP super-packets pass as well.
    #[must_use]
    pub fn udp_offload(&self) -> bool {
        self.offload == Offload::TcpAndUdp
    }

    /// Largest packet that a read can return, without the virtio header: [`GSO_MAX_SIZE`], or the MTU of a plain
    /// device.
    #[must_use]
    pub fn gso_max_size(&self) -> u32 {
        if self.offload() { GSO_MAX_SIZE } else { self.mtu }
    }

    /// The interface's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The interface's index.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The MTU asked for, in bytes.
    #[must_use]
    pub fn mtu(&self) -> u32 {
        self.mtu
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

impl std::fmt::Debug for Tun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tun")
            .field("name", &self.name)
            .field("index", &self.index)
            .field("offload", &self.offload)
            .finish()
    }
}

fn check_name(name: &str) -> Result<(), TunError> {
    let bad = |byte: u8| byte <= b' ' || byte >= 0x7f || matches!(byte, b'/' | b':' | b'%');
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name == "." || name == ".." || name.bytes().any(bad) {
        return Err(TunError::BadName(name.to_owned()));
    }
    Ok(())
}

fn open_best(name: &str, udp: bool) -> io::Result<(AsyncDevice, Offload)> {
    let opened = builder(name, true).build_async().and_then(|device| {
        let offload = negotiate(udp, |flags| set_offloads(&device, flags))?;
        Ok((device, offload))
    });
    match opened {
        // Old or cut-down kernels refuse IFF_VNET_HDR or TUNSETOFFLOAD.
        Err(error) if is_refusal(&error) => {
            tracing::info!(%error, "the kernel refuses TUN offloads: going on without");
            open_plain(name)
        }
        other => other,
    }
}

fn open_plain(name: &str) -> io::Result<(AsyncDevice, Offload)> {
    Ok((builder(name, false).build_async()?, Offload::None))
}

/// The most that the kernel, asked by `set`, grants. The mask is the device's: what it had before is gone.
fn negotiate(udp: bool, mut set: impl FnMut(u32) -> io::Result<()>) -> io::Result<Offload> {
    let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    if udp {
        match set(tcp | libc::TUN_F_USO4 | libc::TUN_F_USO6) {
            // Before Linux 6.2.
            Err(error) if is_refusal(&error) => tracing::debug!(%error, "the kernel knows no UDP super-packets"),
            other => return other.map(|()| Offload::TcpAndUdp),
        }
    }
    set(tcp).map(|()| Offload::Tcp)
}

fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOTTY | libc::EOPNOTSUPP))
}

fn builder(name: &str, offload: bool) -> DeviceBuilder {
    // Left down: it is configured first, so that it never sends a packet of its own.
    DeviceBuilder::new().name(name).enable(false).with(|linux| {
        linux.offload(offload);
    })
}

fn set_offloads(device: &AsyncDevice, flags: u32) -> io::Result<()> {
    nix::ioctl_write_int!(tun_set_offload, b'T', 208);
    nix::ioctl_write_ptr!(tun_set_vnet_le, b'T', 220, libc::c_int);
    let fd = device.as_fd().as_raw_fd();
    // SAFETY: the descriptor is a live TUN's for the whole call, and both requests only read their argument.
    unsafe {
        tun_set_offload(fd, flags.into())?;
        // Virtio headers are little-endian on the wire; on little-endian machines that is the default.
        if cfg!(target_endian = "big") {
            tun_set_vnet_le(fd, &1)?;
        }
    }
    Ok(())
}

fn explain(name: &str, source: io::Error) -> TunError {
    match source.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => TunError::NameInUse(name.to_owned()),
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TunError::NoDevice(source),
        Some(libc::EPERM | libc::EACCES) => TunError::NoPermission(source),
        _ => TunError::Io { name: name.to_owned(), source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["edgelink0", "a", "fifteen-letters"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "sixteen-letters-", "a/b", "a b", "tun%d", "a:1", "tún", "a\n"] {
            assert!(matches!(check_name(bad), Err(TunError::BadName(name)) if name == bad), "{bad}");
        }
    }

    #[test]
    fn the_most_that_is_granted_is_taken() {
        const UDP: u32 = libc::TUN_F_USO4 | libc::TUN_F_USO6;
        let kernel = |known: u32, errno: i32| {
            move |flags: u32| if flags & !known == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
        };
        let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
        for errno in [libc::EINVAL, libc::ENOTTY, libc::EOPNOTSUPP] {
            assert_eq!(negotiate(true, kernel(tcp | UDP, errno)).unwrap(), Offload::TcpAndUdp);
            assert_eq!(negotiate(false, kernel(tcp | UDP, errno)).unwrap(), Offload::Tcp);
            assert_eq!(negotiate(true, kernel(tcp, errno)).unwrap(), Offload::Tcp);
            assert!(is_refusal(&negotiate(true, kernel(libc::TUN_F_CSUM, errno)).unwrap_err()), "plain then");
        }
        let failed = negotiate(true, kernel(tcp, libc::EIO)).unwrap_err();
        assert_eq!(failed.raw_os_error(), Some(libc::EIO), "no refusal but a fault");
        let mut asked = Vec::new();
        negotiate(true, |flags| {
            asked.push(flags);
            kernel(tcp, libc::EINVAL)(flags)
        })
        .unwrap();
        assert_eq!(asked, [tcp | UDP, tcp]);
    }

    #[test]
    fn refusals_tell_what_to_do() {
        let cases = [
            (libc::EBUSY, "ip link del edgelink0"),
            (libc::ENOENT, "modprobe tun"),
            (libc::ENODEV, "modprobe tun"),
            (libc::EPERM, "CAP_NET_ADMIN"),
            (libc::EACCES, "CAP_NET_ADMIN"),
            (libc::ENOMEM, "cannot open TUN interface edgelink0"),
        ];
        for (errno, hint) in cases {
            let text = explain("edgelink0", io::Error::from_raw_os_error(errno)).to_string();
            assert!(text.contains(hint), "{text}");
        }
    }
}
