//! Pairs of clients at an iroh-relay server: one sends messages to the other, as many as a window allows.
//!
//!     iroh-relay-drive URL CA.pem SECONDS PAIRS BYTES WINDOW
//!
//! prints `{"messages": …, "seconds": …}`: what arrived, and in what time. Both ends are in this process, so the window
//! needs no acknowledgements through the relay.
use anyhow::{Context, Result, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use iroh_base::{RelayUrl, SecretKey};
use iroh_relay::client::{Client, ClientBuilder};
use iroh_relay::protos::relay::{ClientToRelayMsg, Datagrams, RelayToClientMsg};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// What the two ends of a pair know of each other.
#[derive(Default)]
struct Pair {
    received: AtomicU64,
    progress: Notify,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, ca, seconds, pairs, bytes, window] = &arguments[..] else {
        bail!("usage: iroh-relay-drive URL CA.pem SECONDS PAIRS BYTES WINDOW");
    };
    let (url, time): (RelayUrl, _) = (url.parse()?, Duration::from_secs(seconds.parse()?));
    let (pairs, bytes, window): (u32, usize, u64) = (pairs.parse()?, bytes.parse()?, window.parse()?);
    let tls = tls(ca)?;
    let stop = Arc::new(AtomicBool::new(false));
    let all: Arc<Vec<Pair>> = Arc::new((0..pairs).map(|_| Pair::default()).collect());
    let mut tasks = JoinSet::new();
    for n in 0..pairs {
        let (from, to) = (key(2 * n), key(2 * n + 1));
        let receiver = connect(&url, &to, &tls).await?;
        let sender = connect(&url, &from, &tls).await?;
        let (receiving, sending, stop) = (Arc::clone(&all), Arc::clone(&all), Arc::clone(&stop));
        tasks.spawn(async move { receive(receiver, &receiving[n as usize]).await });
        tasks.spawn(async move {
            let datagrams = Datagrams { ecn: None, segment_size: None, contents: vec![0x5a; bytes].into() };
            let message = ClientToRelayMsg::Datagrams { dst_endpoint_id: to.public(), datagrams };
            send(sender, &message, window, &sending[n as usize], &stop).await
        });
    }
    let begin = Instant::now();
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        Some(ended) = tasks.join_next() => ended?.context("a client ended early")?,
    }
    let (seconds, messages) =
        (begin.elapsed().as_secs_f64(), all.iter().map(|pair| pair.received.load(Relaxed)).sum::<u64>());
    stop.store(true, Relaxed);
    ensure!(messages > 0, "nothing was forwarded");
    println!("{{\"messages\": {messages}, \"seconds\": {seconds:.3}}}");
    Ok(())
}

fn tls(ca: &str) -> Result<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca)? {
        roots.add(certificate?)?;
    }
    Ok(rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

fn key(n: u32) -> SecretKey {
    let mut bytes = [7; 32];
    bytes[..4].copy_from_slice(&n.to_le_bytes());
    SecretKey::from_bytes(&bytes)
}

async fn connect(url: &RelayUrl, key: &SecretKey, tls: &rustls::ClientConfig) -> Result<Client> {
    // The URL holds an address: no name server is ever asked.
    let resolver = iroh_dns::dns::DnsResolver::with_nameserver("127.0.0.1:53".parse()?);
    let builder = ClientBuilder::new(url.clone(), key.clone(), resolver).tls_client_config(tls.clone());
    Ok(builder.connect().await?)
}

async fn receive(mut client: Client, pair: &Pair) -> Result<()> {
    loop {
        match client.next().await {
            Some(Ok(RelayToClientMsg::Datagrams { .. })) => {
                pair.received.fetch_add(1, Relaxed);
                pair.progress.notify_one();
            }
            Some(Ok(_)) => {}
            other => bail!("the receiver's connection is gone: {other:?}"),
        }
    }
}

async fn send(
    mut client: Client,
    message: &ClientToRelayMsg,
    window: u64,
    pair: &Pair,
    stop: &AtomicBool,
) -> Result<()> {
    let mut sent = 0;
    while !stop.load(Relaxed) {
        let before = sent;
        while sent < pair.received.load(Relaxed) + window {
            client.feed(message.clone()).await?;
            sent += 1;
        }
        if sent > before {
            client.flush().await?;
        }
        if tokio::time::timeout(Duration::from_secs(1), pair.progress.notified()).await.is_err() {
            let received = pair.received.load(Relaxed);
            // Whoever has just connected may not be known yet.
            ensure!(received == 0, "messages were lost: {received} of {sent} arrived");
            sent = 0;
        }
    }
    Ok(())
}
