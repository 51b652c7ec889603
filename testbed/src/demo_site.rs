//! The demonstration's second act: a site behind two gateways, one of which is killed while a download runs.

use std::{
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use edgelink_testbed::{Host, Lab, Switch, port};

/// The site's network.
pub(crate) const CIDR: &str = "192.168.77.0/24";
const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 77, 10));
const PORT: u16 = 8080;
/// What is downloaded, and how much of it goes before the gateway dies.
const SIZE: u64 = 24 << 20;
const KILL_AT: u64 = SIZE / 3;
/// Bytes per second that the server sends, so that there is time to watch.
const RATE: u64 = 6 << 20;
/// Nothing has come for this long: the connection is given up and the download goes on where it was.
const STALL: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(60);

/// The LAN behind the gateways.
pub(crate) struct Site {
    server: Host,
    _lan: Switch,
}

/// How the download went.
pub(crate) struct Download {
    /// From the first byte to the last.
    pub(crate) took: Duration,
    /// Longest time without a byte.
    pub(crate) longest_gap: Duration,
    /// How often it was begun anew where it had stopped.
    pub(crate) resumed: u32,
    /// The gateways that the server saw, in their order.
    pub(crate) gateways: Vec<String>,
}

impl Site {
    /// A server that knows nothing of the mesh, in one LAN with the gateways.
    pub(crate) fn new(lab: &Lab, gateways: &[&Host]) -> Result<Self> {
        let lan = lab.switch("lan")?;
        let server = lab.host("files")?;
        lan.plug(port(&server, "eth0", &format!("{SERVER}/24")))?;
        for (n, gateway) in (1..).zip(gateways) {
            lan.plug(port(gateway, "eth1", &format!("192.168.77.{n}/24")))?;
        }
        Ok(Self { server, _lan: lan })
    }

    /// What a gateway's configuration file says.
    pub(crate) fn gateway(priority: u32) -> String {
        format!(
            r#"{{ "advertise_routes": [{{ "cidr": "{CIDR}", "priority": {priority} }}], "gateway_mode": {{ "enabled": true }} }}"#
        )
    }

    /// Serves [`SIZE`] bytes to whoever asks, from the offset that the first line names; the answer begins with the peer's
    /// address on a line.
    pub(crate) fn serve(&self) -> Result<()> {
        let listener: TcpListener = self.server.tcp_listener(SocketAddr::new(SERVER, PORT))?;
        thread::spawn(move || {
            for stream in listener.incoming().map_while(std::result::Result::ok) {
                thread::spawn(move || drop(answer(stream)));
            }
        });
        Ok(())
    }

    /// Downloads everything to `client`, and calls `kill` on the way.
    pub(crate) fn download(&self, client: &Host, kill: impl FnOnce() -> Result<()>) -> Result<Download> {
        let began = Instant::now();
        let mut kill = Some(kill);
        let mut done = Download { took: Duration::ZERO, longest_gap: Duration::ZERO, resumed: 0, gateways: Vec::new() };
        let (mut at, mut last) = (0, Instant::now());
        let mut buffer = vec![0; 64 << 10];
        while at < SIZE {
            ensure!(began.elapsed() < PATIENCE, "the download stands at {at} of {SIZE} bytes");
            let Ok(stream) = client.tcp_connect(SocketAddr::new(SERVER, PORT), STALL) else {
                done.resumed += 1;
                continue;
            };
            stream.set_read_timeout(Some(STALL))?;
            (&stream).write_all(format!("{at}\n").as_bytes())?;
            let mut stream = BufReader::new(stream);
            let mut gateway = String::new();
            if stream.read_line(&mut gateway).is_err() {
                done.resumed += 1;
                continue;
            }
            done.gateways.push(gateway.trim().to_owned());
            loop {
                match stream.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(n) => {
                        let bytes = buffer.get(..n).unwrap_or_default();
                        if let Some(wrong) = (at..).zip(bytes).find(|(at, byte)| content(*at) != **byte) {
                            bail!("byte {} is wrong", wrong.0);
                        }
                        at += n as u64;
                        done.longest_gap = done.longest_gap.max(last.elapsed());
                        last = Instant::now();
                        if at >= KILL_AT
                            && let Some(kill) = kill.take()
                        {
                            kill()?;
                        }
                    }
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                    Err(error) => return Err(error).context("download"),
                }
            }
            done.resumed += u32::from(at < SIZE);
        }
        done.took = began.elapsed();
        Ok(done)
    }
}

/// The file: its bytes follow from where they are.
fn content(at: u64) -> u8 {
    (at ^ (at >> 8) ^ (at >> 16)) as u8
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut line = String::new();
    BufReader::new(stream.try_clone()?).read_line(&mut line)?;
    let mut at: u64 = line.trim().parse().unwrap_or(0);
    stream.write_all(format!("{}\n", stream.peer_addr()?.ip()).as_bytes())?;
    while at < SIZE {
        let end = SIZE.min(at + (64 << 10));
        let bytes: Vec<u8> = (at..end).map(content).collect();
        stream.write_all(&bytes)?;
        thread::sleep(Duration::from_micros((end - at) * 1_000_000 / RATE));
        at = end;
    }
    Ok(())
}
