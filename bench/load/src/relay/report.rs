//! The figures, for people and for programs.

use super::OneWay;
use serde_json::json;
use std::time::Duration;

/// What was measured. CPU time is the relay's, user and system, in seconds; memory its resident set, in bytes.
#[derive(Clone, Debug)]
pub struct Report {
    /// Connections, all of them authenticated.
    pub connections: usize,
    /// From the first dial until all were authenticated and had a PONG.
    pub connect: Duration,
    /// CPU time for that.
    pub connect_cpu: f64,
    /// Before the first of them.
    pub rss_empty: u64,
    /// With all of them, some seconds later.
    pub rss_idle: u64,
    /// How long they were left alone …
    pub idle: Duration,
    /// … and the CPU time for that.
    pub idle_cpu: f64,
    /// Rates.
    pub forwarding: Vec<Forwarding>,
    /// Receivers that do not read, if there were any.
    pub stalled: Option<Stalled>,
}

/// One rate.
#[derive(Clone, Debug)]
pub struct Forwarding {
    /// Pairs of nodes at the same time.
    pub senders: usize,
    /// Bytes of plaintext in each frame.
    pub payload: usize,
    /// Frames in each message from the sender.
    pub per_message: u64,
    /// How long it was measured.
    pub time: Duration,
    /// Frames that arrived in that time.
    pub received: u64,
    /// Frames sent, all in all.
    pub sent: u64,
    /// Of them lost.
    pub lost: u64,
    /// CPU time.
    pub cpu: f64,
}

/// What receivers that do not read cost.
#[derive(Clone, Debug)]
pub struct Stalled {
    /// How many.
    pub receivers: usize,
    /// Bytes of frames sent to them.
    pub sent_bytes: u64,
    /// Resident set before.
    pub rss_before: u64,
    /// The greatest meanwhile.
    pub rss_peak: u64,
    /// When they read again.
    pub rss_after: u64,
    /// The greatest `edgelink_relay_queued_bytes` that was seen.
    pub queued_peak: u64,
    /// Others, before …
    pub undisturbed: OneWay,
    /// … and meanwhile.
    pub beside: OneWay,
}

impl Forwarding {
    /// Frames a second.
    pub fn rate(&self) -> f64 {
        self.received as f64 / self.time.as_secs_f64()
    }

    /// Bytes of plaintext.
    fn bytes(&self) -> f64 {
        self.received as f64 * self.payload as f64
    }

    /// CPU seconds per GiB of plaintext.
    pub fn cpu_per_gib(&self) -> f64 {
        self.cpu * f64::from(1 << 30) / self.bytes()
    }

    /// CPU time per frame, µs.
    pub fn cpu_per_frame(&self) -> f64 {
        self.cpu * 1e6 / self.received as f64
    }
}

impl Report {
    /// Bytes per connection, beyond the empty relay.
    pub fn rss_per_connection(&self) -> u64 {
        self.rss_idle.saturating_sub(self.rss_empty) / self.connections as u64
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        let one_way = |of: &OneWay| json!({"sent": of.sent, "received": of.received, "p50_ms": ms(of.p50), "p99_ms": ms(of.p99), "max_ms": ms(of.max)});
        let forwarding = |of: &Forwarding| {
            json!({
                "senders": of.senders, "payload": of.payload, "per_message": of.per_message, "frames_per_s": of.rate(),
                "cpu_s_per_gib": of.cpu_per_gib(), "cpu_us_per_frame": of.cpu_per_frame(), "sent": of.sent, "lost": of.lost,
            })
        };
        let stalled = |of: &Stalled| {
            json!({
                "receivers": of.receivers, "sent_bytes": of.sent_bytes,
                "rss_before": of.rss_before, "rss_peak": of.rss_peak,
                "rss_after": of.rss_after, "queued_peak": of.queued_peak,
                "undisturbed": one_way(&of.undisturbed), "beside": one_way(&of.beside),
            })
        };
        json!({
            "connections": self.connections,
            "connect_s": self.connect.as_secs_f64(), "connect_cpu_s": self.connect_cpu,
            "rss_empty": self.rss_empty, "rss_idle": self.rss_idle, "rss_per_connection": self.rss_per_connection(),
            "idle_s": self.idle.as_secs_f64(), "idle_cpu_s": self.idle_cpu,
            "forwarding": self.forwarding.iter().map(forwarding).collect::<Vec<_>>(),
            "stalled": self.stalled.as_ref().map(stalled),
        })
    }

    pub(crate) fn text(&self) -> String {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let one_way = |of: &OneWay| {
            format!(
                "{} of {} frames, one way p50 {:.2} ms, p99 {:.2} ms, max {:.1} ms",
                of.received,
                of.sent,
                ms(of.p50),
                ms(of.p99),
                ms(of.max)
            )
        };
        let mut out = format!(
            "{} connections in {:.1} s, {:.2} ms of CPU each; idle {:.1} % of a core\n\
             memory: {:.1} MiB empty, {:.1} MiB with all, {:.1} KiB per connection\n",
            self.connections,
            self.connect.as_secs_f64(),
            self.connect_cpu * 1e3 / self.connections as f64,
            self.idle_cpu * 100.0 / self.idle.as_secs_f64(),
            mib(self.rss_empty),
            mib(self.rss_idle),
            self.rss_per_connection() as f64 / 1024.0,
        );
        for of in &self.forwarding {
            out += &format!(
                "{} senders, {} bytes, {} a message: {:.0} frames a second, {:.2} µs of CPU each, {:.2} CPU s per GiB; {} of {} lost\n",
                of.senders,
                of.payload,
                of.per_message,
                of.rate(),
                of.cpu_per_frame(),
                of.cpu_per_gib(),
                of.lost,
                of.sent,
            );
        }
        let Some(stalled) = &self.stalled else { return out };
        out + &format!(
            "{} receivers do not read, {:.0} MiB sent to them: memory {:.0} MiB before, {:.0} at most, {:.0} after; queued {:.0} at most\n\
             others before: {}\nothers beside: {}",
            stalled.receivers,
            mib(stalled.sent_bytes),
            mib(stalled.rss_before),
            mib(stalled.rss_peak),
            mib(stalled.rss_after),
            mib(stalled.queued_peak),
            one_way(&stalled.undisturbed),
            one_way(&stalled.beside),
        )
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
