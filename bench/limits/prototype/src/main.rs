//! Ceiling prototype: what the data path alone can reach on a machine. NOT a VPN: no handshake, a fixed
//! key, no replay window, one peer, IPv4 outside. It exists to measure three data paths with the same crypto:
//!
//!   proto udp-naive DEV BIND PEER       one packet per read, seal, sendto (as most user-space VPNs do)
//!   proto udp-gso   DEV BIND PEER       TUN TSO/USO super-packets, UDP GSO out, UDP GRO in, super-packets back
//!   proto tls       DEV a|b RELAY CA    super-packets sealed end to end, WebSocket-like masked frames in TLS 1.3
//!   proto relay     BIND CERT KEY       the third process: ends TLS on both legs, unmasks, forwards
//!   proto aead                          seal speed of the Rust AEAD crates, one core
//!
//! PROTO_AES=1 in the environment seals with AES-256-GCM in place of ChaCha20-Poly1305, PROTO_NULL=1 not at all.
use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce, UnboundKey, AES_256_GCM, CHACHA20_POLY1305};
use rustls::pki_types::{pem::PemObject, CertificateDer, PrivateKeyDer, ServerName};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::Instant;

const VNET: usize = 10; // struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
const CTR: usize = 8;
const TAG: usize = 16;
const MAX: usize = 65536 + 256;

/// PROTO_NULL=1: no crypto at all, what the copies and system calls cost by themselves
static NULL: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
fn null() -> bool {
    NULL.load(std::sync::atomic::Ordering::Relaxed)
}

fn key() -> LessSafeKey {
    NULL.store(std::env::var_os("PROTO_NULL").is_some(), std::sync::atomic::Ordering::Relaxed);
    let aes = std::env::var_os("PROTO_AES").is_some();
    LessSafeKey::new(UnboundKey::new(if aes { &AES_256_GCM } else { &CHACHA20_POLY1305 }, &[7; 32]).unwrap())
}
fn nonce(ctr: u64) -> Nonce {
    let mut n = [0; 12];
    n[4..].copy_from_slice(&ctr.to_le_bytes());
    Nonce::assume_unique_for_key(n)
}
/// buf = [counter | plaintext | room for the tag]; the plaintext is sealed in place.
fn seal(k: &LessSafeKey, ctr: u64, buf: &mut [u8]) {
    let end = buf.len() - TAG;
    buf[..CTR].copy_from_slice(&ctr.to_le_bytes());
    if null() {
        return;
    }
    let tag = k.seal_in_place_separate_tag(nonce(ctr), Aad::empty(), &mut buf[CTR..end]).unwrap();
    buf[end..].copy_from_slice(tag.as_ref());
}
fn open<'a>(k: &LessSafeKey, buf: &'a mut [u8]) -> Option<&'a mut [u8]> {
    let ctr = u64::from_le_bytes(buf.get(..CTR)?.try_into().unwrap());
    if null() {
        let end = buf.len() - TAG;
        return Some(&mut buf[CTR..end]);
    }
    k.open_in_place(nonce(ctr), Aad::empty(), &mut buf[CTR..]).ok()
}

fn check(r: libc::c_int, what: &str) -> libc::c_int {
    if r < 0 {
        panic!("{what}: {}", io::Error::last_os_error())
    }
    r
}
fn tun(name: &str, vnet: bool) -> RawFd {
    unsafe {
        let flags = if vnet { libc::O_NONBLOCK } else { 0 };
        let fd = check(libc::open(c"/dev/net/tun".as_ptr(), libc::O_RDWR | flags), "open tun");
        let mut ifr = [0u8; 40];
        ifr[..name.len()].copy_from_slice(name.as_bytes());
        let f = (libc::IFF_TUN | libc::IFF_NO_PI | if vnet { libc::IFF_VNET_HDR } else { 0 }) as u16;
        ifr[16..18].copy_from_slice(&f.to_le_bytes());
        check(libc::ioctl(fd, 0x400454ca, ifr.as_ptr()), "TUNSETIFF");
        if vnet {
            check(libc::ioctl(fd, 0x400454d0, 1 | 2 | 4 | 0x20 | 0x40), "TUNSETOFFLOAD");
            // CSUM TSO4 TSO6 USO4 USO6
        }
        fd
    }
}
fn wait_readable(fd: RawFd) {
    let mut p = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    unsafe { libc::poll(&mut p, 1, -1) };
}
fn read(fd: RawFd, b: &mut [u8]) -> Option<usize> {
    let n = unsafe { libc::read(fd, b.as_mut_ptr().cast(), b.len()) };
    (n > 0).then_some(n as usize)
}
fn write(fd: RawFd, b: &[u8]) {
    unsafe { libc::write(fd, b.as_ptr().cast(), b.len()) };
}
fn udp(bind: &str, peer: &str) -> UdpSocket {
    let s = UdpSocket::bind(bind).unwrap();
    s.connect(peer).unwrap();
    let v: libc::c_int = 8 << 20;
    for o in [libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE] {
        unsafe { libc::setsockopt(s.as_raw_fd(), libc::SOL_SOCKET, o, (&v as *const i32).cast(), 4) };
    }
    s
}

fn udp_naive(dev: &str, bind: &str, peer: &str) {
    let (fd, s) = (tun(dev, false), udp(bind, peer));
    let rx = s.try_clone().unwrap();
    std::thread::spawn(move || {
        let (k, mut b) = (key(), vec![0; MAX]);
        while let Ok(n) =
            rx.recv(&mut b).or_else(|e| if e.kind() == io::ErrorKind::ConnectionRefused { Ok(0) } else { Err(e) })
        {
            if let Some(p) = open(&k, &mut b[..n]) {
                write(fd, p)
            }
        }
    });
    let (k, mut b) = (key(), vec![0; MAX]);
    for ctr in 0.. {
        let n = read(fd, &mut b[CTR..2048]).unwrap();
        let end = CTR + n + TAG;
        seal(&k, ctr, &mut b[..end]);
        let _ = s.send(&b[..end]);
    }
}

fn u16_at(b: &[u8], o: usize) -> usize {
    u16::from_le_bytes([b[o], b[o + 1]]) as usize
}

/// Length of the IP + TCP/UDP headers of a packet, with the vnet header telling where the L4 one starts.
fn headers_len(vnet: &[u8], pkt: &[u8]) -> usize {
    let l4 = u16_at(vnet, 6);
    if vnet[1] & 7 == 5 {
        l4 + 8
    } else {
        l4 + (pkt[l4 + 12] >> 4) as usize * 4
    } // 5: UDP_L4
}

/// Datagrams of one size gathered for one sendmsg(UDP_SEGMENT).
struct GsoBatch {
    buf: Vec<u8>,
    seg: usize,
    n: usize,
}
impl GsoBatch {
    fn flush(&mut self, s: &UdpSocket) {
        if self.n == 0 {
            return;
        }
        unsafe {
            let mut iov = libc::iovec { iov_base: self.buf.as_mut_ptr().cast(), iov_len: self.buf.len() };
            let mut c = [0u64; 4];
            let mut m: libc::msghdr = std::mem::zeroed();
            m.msg_iov = &mut iov;
            m.msg_iovlen = 1;
            if self.n > 1 {
                m.msg_control = c.as_mut_ptr().cast();
                m.msg_controllen = libc::CMSG_SPACE(2) as _;
                let h = libc::CMSG_FIRSTHDR(&m);
                (*h).cmsg_level = libc::SOL_UDP;
                (*h).cmsg_type = libc::UDP_SEGMENT;
                (*h).cmsg_len = libc::CMSG_LEN(2) as _;
                *libc::CMSG_DATA(h).cast::<u16>() = self.seg as u16;
            }
            libc::sendmsg(s.as_raw_fd(), &m, 0);
        }
        self.buf.clear();
        self.n = 0;
    }
    /// Room for a datagram of `len` at the end of the batch; sends what cannot share a sendmsg with it.
    fn slot(&mut self, s: &UdpSocket, len: usize) -> &mut [u8] {
        if self.n > 0
            && (len > self.seg || self.n == 64 || self.buf.len() + len > 65000 || self.buf.len() % self.seg != 0)
        {
            self.flush(s)
        }
        if self.n == 0 {
            self.seg = len
        }
        self.n += 1;
        let at = self.buf.len();
        self.buf.resize(at + len, 0);
        &mut self.buf[at..]
    }
}

/// Datagram: counter | sealed( vnet header | index of the segment, "last" in the top bit | headers | payload slice ).
/// Headers travel unchanged and checksums stay partial (the AEAD vouches for the bytes); the receiver joins
/// consecutive segments into one super-packet again, so neither side segments TCP or sums bytes.
fn udp_gso(dev: &str, bind: &str, peer: &str) {
    let (fd, s) = (tun(dev, true), udp(bind, peer));
    let rx = s.try_clone().unwrap();
    std::thread::spawn(move || gso_rx(fd, rx));
    let (k, mut b, mut ctr) = (key(), vec![0; MAX], 0u64);
    let mut batch = GsoBatch { buf: Vec::with_capacity(MAX), seg: 0, n: 0 };
    loop {
        let Some(n) = read(fd, &mut b) else {
            batch.flush(&s);
            wait_readable(fd);
            continue;
        };
        let (vnet, pkt) = b[..n].split_at(VNET);
        let (hl, size) = match vnet[1] & 7 {
            0 => (0, pkt.len()),
            _ => (headers_len(vnet, pkt), u16_at(vnet, 4)),
        };
        let (hdr, payload) = pkt.split_at(hl);
        let count = payload.len().div_ceil(size);
        for (i, part) in payload.chunks(size).enumerate() {
            let d = batch.slot(&s, CTR + VNET + 2 + hl + part.len() + TAG);
            let h = CTR + VNET + 2;
            d[CTR..CTR + VNET].copy_from_slice(vnet);
            d[CTR + VNET..h].copy_from_slice(&((i as u16) | ((i + 1 == count) as u16) << 15).to_le_bytes());
            d[h..h + hl].copy_from_slice(hdr);
            d[h + hl..h + hl + part.len()].copy_from_slice(part);
            seal(&k, ctr, d);
            ctr += 1;
        }
    }
}

/// A super-packet in the making on the receiving side.
struct Join {
    buf: Vec<u8>,
    hl: usize,
    next: usize,
}
impl Join {
    fn flush(&mut self, fd: RawFd) {
        if self.buf.is_empty() {
            return;
        }
        let p = &mut self.buf[VNET..];
        let len = p.len() as u16;
        if p[0] >> 4 == 4 {
            p[2..4].copy_from_slice(&len.to_be_bytes());
            p[10..12].fill(0);
            let mut sum: u32 = p[..20].chunks(2).map(|c| u16::from_be_bytes([c[0], c[1]]) as u32).sum();
            while sum >> 16 != 0 {
                sum = (sum & 0xffff) + (sum >> 16)
            }
            p[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        } else {
            p[4..6].copy_from_slice(&(len - 40).to_be_bytes());
        }
        write(fd, &self.buf);
        self.buf.clear();
    }
}

fn gso_rx(fd: RawFd, s: UdpSocket) {
    let one: libc::c_int = 1;
    unsafe {
        check(libc::setsockopt(s.as_raw_fd(), libc::SOL_UDP, libc::UDP_GRO, (&one as *const i32).cast(), 4), "UDP_GRO")
    };
    let (k, mut b) = (key(), vec![0u8; MAX]);
    let mut j = Join { buf: Vec::with_capacity(MAX), hl: 0, next: 0 };
    loop {
        let (n, seg) = unsafe {
            let mut iov = libc::iovec { iov_base: b.as_mut_ptr().cast(), iov_len: b.len() };
            let mut c = [0u64; 8];
            let mut m: libc::msghdr = std::mem::zeroed();
            m.msg_iov = &mut iov;
            m.msg_iovlen = 1;
            m.msg_control = c.as_mut_ptr().cast();
            m.msg_controllen = 64;
            let n = libc::recvmsg(s.as_raw_fd(), &mut m, 0);
            if n <= 0 {
                continue;
            }
            let h = libc::CMSG_FIRSTHDR(&m);
            let seg = if !h.is_null() && (*h).cmsg_type == libc::UDP_GRO {
                *libc::CMSG_DATA(h).cast::<i32>() as usize
            } else {
                n as usize
            };
            (n as usize, seg)
        };
        for d in b[..n].chunks_mut(seg) {
            let Some(p) = open(&k, d) else { continue };
            let (vnet, rest) = p.split_at_mut(VNET);
            let vnet = &*vnet;
            let (i, last) = (u16_at(rest, 0) & 0x7fff, rest[1] & 0x80 != 0);
            let pkt = &mut rest[2..];
            if vnet[1] & 7 == 0 {
                j.flush(fd);
                j.buf.extend_from_slice(vnet);
                j.buf.extend_from_slice(pkt);
                write(fd, &j.buf);
                j.buf.clear();
                continue;
            }
            if !j.buf.is_empty() && i == j.next && i > 0 {
                j.buf.extend_from_slice(&pkt[j.hl..]);
            } else {
                j.flush(fd);
                j.hl = headers_len(vnet, pkt);
                if i > 0 && vnet[1] & 7 != 5 {
                    // a tail whose head went in an earlier write: advance the TCP sequence
                    let o = u16_at(vnet, 6) + 4;
                    let seq = u32::from_be_bytes(pkt[o..o + 4].try_into().unwrap())
                        .wrapping_add((i * u16_at(vnet, 4)) as u32);
                    pkt[o..o + 4].copy_from_slice(&seq.to_be_bytes());
                }
                j.buf.extend_from_slice(vnet);
                j.buf.extend_from_slice(pkt);
            }
            j.next = i + 1;
            if last {
                j.flush(fd)
            }
        }
        j.flush(fd); // keep no bytes back waiting for the next batch
    }
}

// --- TLS relay path

/// One TLS connection, read by one thread and written by another; the lock is never held over a system call.
struct Tls {
    conn: Mutex<rustls::Connection>,
    sock: TcpStream,
}
impl Tls {
    fn new(mut conn: rustls::Connection, sock: TcpStream) -> io::Result<Arc<Self>> {
        sock.set_nodelay(true)?;
        while conn.is_handshaking() {
            conn.complete_io(&mut &sock)?;
        }
        conn.set_buffer_limit(None);
        Ok(Arc::new(Tls { conn: conn.into(), sock }))
    }
    fn send(&self, data: &[u8], wire: &mut Vec<u8>) -> io::Result<()> {
        wire.clear();
        {
            let mut c = self.conn.lock().unwrap();
            c.writer().write_all(data)?;
            while c.wants_write() {
                c.write_tls(wire)?;
            }
        }
        (&self.sock).write_all(wire)
    }
    /// Appends the plaintext that one read from the socket yields.
    fn recv(&self, wire: &mut [u8], plain: &mut Vec<u8>) -> io::Result<()> {
        let had = plain.len();
        Self::take(&mut self.conn.lock().unwrap(), plain)?; // what came along with the end of the handshake
        if plain.len() > had {
            return Ok(());
        }
        let n = (&self.sock).read(wire)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut left = &wire[..n];
        let mut c = self.conn.lock().unwrap();
        while !left.is_empty() {
            c.read_tls(&mut left)?;
            Self::take(&mut c, plain)?;
        }
        Ok(())
    }
    fn take(c: &mut rustls::Connection, plain: &mut Vec<u8>) -> io::Result<()> {
        let (at, more) = (plain.len(), c.process_new_packets().map_err(io::Error::other)?.plaintext_bytes_to_read());
        plain.resize(at + more, 0);
        c.reader().read_exact(&mut plain[at..])
    }
}
fn xor(mask: [u8; 4], b: &mut [u8]) {
    let m = u64::from_ne_bytes([mask, mask].concat().try_into().unwrap());
    let mut it = b.chunks_exact_mut(8);
    for c in &mut it {
        let v = u64::from_ne_bytes(c.try_into().unwrap()) ^ m;
        c.copy_from_slice(&v.to_ne_bytes())
    }
    for (i, x) in it.into_remainder().iter_mut().enumerate() {
        *x ^= mask[i & 3]
    }
}
/// Frame: length u32 | mask 4 | body. Calls f for each whole frame; leaves the rest in `b`.
fn frames(b: &mut Vec<u8>, mut f: impl FnMut(&mut [u8], [u8; 4])) {
    let mut at = 0;
    while b.len() - at >= 8 {
        let n = u32::from_le_bytes(b[at..at + 4].try_into().unwrap()) as usize;
        if b.len() - at < 8 + n {
            break;
        }
        let mask = b[at + 4..at + 8].try_into().unwrap();
        f(&mut b[at + 8..at + 8 + n], mask);
        at += 8 + n;
    }
    b.drain(..at);
}
fn tls_end(dev: &str, role: &str, relay: &str, ca: &str) {
    let mut roots = rustls::RootCertStore::empty();
    for c in CertificateDer::pem_file_iter(ca).unwrap() {
        roots.add(c.unwrap()).unwrap()
    }
    let cfg = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let conn = rustls::ClientConnection::new(Arc::new(cfg), ServerName::try_from("relay.test").unwrap()).unwrap();
    let t = Tls::new(conn.into(), TcpStream::connect(relay).unwrap()).unwrap();
    let (mut wire, mut out) = (Vec::new(), Vec::new());
    t.send(role.as_bytes(), &mut wire).unwrap();
    let fd = tun(dev, true);
    let rx = t.clone();
    std::thread::spawn(move || {
        let (k, mut wire, mut plain) = (key(), vec![0; 256 << 10], Vec::new());
        while rx.recv(&mut wire, &mut plain).is_ok() {
            frames(&mut plain, |f, _| {
                if let Some(p) = open(&k, f) {
                    write(fd, p)
                }
            });
        }
        std::process::exit(1)
    });
    let (k, mut ctr, mut b) = (key(), 0u64, vec![0; MAX]);
    loop {
        match read(fd, &mut b) {
            Some(n) => {
                let (at, body) = (out.len(), CTR + n + TAG);
                let mask = (ctr as u32).wrapping_mul(0x9e3779b1).to_ne_bytes();
                out.resize(at + 8 + body, 0);
                out[at..at + 4].copy_from_slice(&(body as u32).to_le_bytes());
                out[at + 4..at + 8].copy_from_slice(&mask);
                out[at + 8 + CTR..at + 8 + CTR + n].copy_from_slice(&b[..n]);
                seal(&k, ctr, &mut out[at + 8..]);
                xor(mask, &mut out[at + 8..]);
                ctr += 1;
                if out.len() < 192 << 10 {
                    continue;
                }
            }
            None if out.is_empty() => {
                wait_readable(fd);
                continue;
            }
            None => {}
        }
        t.send(&out, &mut wire).unwrap();
        out.clear();
    }
}
fn relay(bind: &str, cert: &str, key: &str) {
    let certs = CertificateDer::pem_file_iter(cert).unwrap().map(Result::unwrap).collect();
    let cfg = Arc::new(
        rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(certs, PrivateKeyDer::from_pem_file(key).unwrap())
            .unwrap(),
    );
    let l = TcpListener::bind(bind).unwrap();
    let mut ends: [Option<Arc<Tls>>; 2] = [None, None];
    while ends.iter().any(Option::is_none) {
        let s = l.accept().unwrap().0;
        let Ok(t) = Tls::new(rustls::ServerConnection::new(cfg.clone()).unwrap().into(), s) else { continue };
        let mut hello = Vec::new();
        while hello.is_empty() {
            t.recv(&mut vec![0; 4096], &mut hello).unwrap()
        }
        ends[(hello[0] == b'b') as usize] = Some(t);
    }
    let [a, b] = ends.map(Option::unwrap);
    let pump = |from: Arc<Tls>, to: Arc<Tls>| {
        std::thread::spawn(move || {
            let (mut rbuf, mut plain, mut out, mut wire) = (vec![0; 256 << 10], Vec::new(), Vec::new(), Vec::new());
            while from.recv(&mut rbuf, &mut plain).is_ok() {
                frames(&mut plain, |f, mask| {
                    xor(mask, f);
                    out.extend_from_slice(&(f.len() as u32).to_le_bytes());
                    out.extend_from_slice(&[0; 4]);
                    out.extend_from_slice(f);
                });
                if !out.is_empty() && to.send(&out, &mut wire).is_err() {
                    break;
                }
                out.clear();
            }
            std::process::exit(1)
        })
    };
    pump(a.clone(), b.clone());
    pump(b, a).join().unwrap();
}

// --- AEAD speed

fn aead() {
    use chacha20poly1305::{aead::AeadInPlace, KeyInit};
    fn time(name: &str, len: usize, mut f: impl FnMut(&mut [u8], [u8; 12])) {
        let (mut b, mut n, t) = (vec![0u8; len], 0u64, Instant::now());
        let mut nn = [0; 12];
        while n % 256 != 0 || t.elapsed().as_millis() < 500 {
            nn[..8].copy_from_slice(&n.to_le_bytes());
            f(&mut b, nn);
            n += 1;
        }
        let s = t.elapsed().as_secs_f64();
        println!("{name:34} {len:6} B {:8.0} MB/s {:7.0} ns/op", n as f64 * len as f64 / s / 1e6, s * 1e9 / n as f64);
    }
    for len in [64, 1420, 16384, 65000] {
        for (n, alg) in [("aws-lc-rs chacha20-poly1305", &CHACHA20_POLY1305), ("aws-lc-rs aes-256-gcm", &AES_256_GCM)] {
            let k = LessSafeKey::new(UnboundKey::new(alg, &[7; 32]).unwrap());
            time(n, len, |b, nn| {
                let _ = k.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nn), Aad::empty(), b).unwrap();
            });
        }
        use ring::aead as r;
        for (n, alg) in [("ring chacha20-poly1305", &r::CHACHA20_POLY1305), ("ring aes-256-gcm", &r::AES_256_GCM)] {
            let k = r::LessSafeKey::new(r::UnboundKey::new(alg, &[7; 32]).unwrap());
            time(n, len, |b, nn| {
                let _ = k.seal_in_place_separate_tag(r::Nonce::assume_unique_for_key(nn), r::Aad::empty(), b).unwrap();
            });
        }
        let k = chacha20poly1305::ChaCha20Poly1305::new(&[7; 32].into());
        time("RustCrypto chacha20poly1305", len, |b, nn| {
            k.encrypt_in_place_detached(&nn.into(), b"", b).unwrap();
        });
    }
    let (src, mut dst, t) = (vec![1u8; 64 << 20], vec![0u8; 64 << 20], Instant::now());
    for _ in 0..20 {
        dst.copy_from_slice(std::hint::black_box(&src));
        std::hint::black_box(&mut dst);
    }
    println!("memcpy, 64 MiB blocks {:.1} GB/s", 20.0 * 67.108864e6 / t.elapsed().as_secs_f64() / 1e9);
    let (src, mut dst, t) = (vec![1u8; 64 << 10], vec![0u8; 64 << 10], Instant::now());
    for _ in 0..100000 {
        dst.copy_from_slice(std::hint::black_box(&src));
        std::hint::black_box(&mut dst);
    }
    println!("memcpy, 64 KiB blocks (in cache) {:.1} GB/s", 1e5 * 65536.0 / t.elapsed().as_secs_f64() / 1e9);
}

fn main() {
    let a: Vec<String> = std::env::args().skip(1).collect();
    let a: Vec<&str> = a.iter().map(|s| s.as_str()).collect();
    match a[..] {
        ["udp-naive", dev, bind, peer] => udp_naive(dev, bind, peer),
        ["udp-gso", dev, bind, peer] => udp_gso(dev, bind, peer),
        ["tls", dev, role, relay, ca] => tls_end(dev, role, relay, ca),
        ["relay", bind, cert, key] => relay(bind, cert, key),
        ["aead"] => aead(),
        _ => {
            eprintln!("see the head of src/main.rs");
            std::process::exit(2)
        }
    }
}
