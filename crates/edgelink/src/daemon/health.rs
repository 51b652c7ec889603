//! Whether a gateway's own side of its subnets lives (`gateway_mode.health_target`): other gateways take over when it
//! does not.

use super::tunnel::Tunnel;
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::TcpStream;

/// Time between two looks, and for each answer.
const INTERVAL: Duration = Duration::from_secs(1);
/// So many looks in a row without an answer mean that it is dead, so that one lost packet means nothing. With the time
/// that others need to hear of it, that is below 5 s.
const MISSES: u32 = 2;
/// So many answers in a row mean that it lives again.
const ANSWERS: u32 = 3;

/// Looks at the target for as long as the tunnel lives.
pub(super) async fn watch(tunnel: Rc<Tunnel>, target: SocketAddr, subnets: Vec<IpNet>) {
    let (mut misses, mut answers, mut dead) = (0, 0, false);
    let mut interval = tokio::time::interval(INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        if answers_at(target).await {
            (misses, answers) = (0, answers + 1);
        } else {
            (misses, answers) = (misses + 1, 0);
        }
        let now_dead = if dead { answers < ANSWERS } else { misses >= MISSES };
        if now_dead != dead {
            dead = now_dead;
            if dead {
                tracing::warn!(%target, "the health target does not answer; other gateways take over");
            } else {
                tracing::info!(%target, "the health target answers again");
            }
            let list: BTreeSet<IpNet> = if dead { subnets.iter().copied().collect() } else { BTreeSet::new() };
            tunnel.feed(|node, _| node.set_dead_routes(list));
        }
    }
}

/// A refusal is an answer: the host lives.
async fn answers_at(target: SocketAddr) -> bool {
    match tokio::time::timeout(INTERVAL, TcpStream::connect(target)).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => error.kind() == ErrorKind::ConnectionRefused,
        Err(_) => false,
    }
}
