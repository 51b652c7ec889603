//! How often may be tried to log in: per account and per address (DESIGN §3). No clock of its own.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Failures in a row that cost nothing, per account.
const ACCOUNT_BURST: u32 = 5;
/// One more attempt at an account after so long.
const ACCOUNT_REFILL: Duration = Duration::from_secs(30);
/// The same per address, from which several people may come.
const ADDRESS_BURST: u32 = 20;
const ADDRESS_REFILL: Duration = Duration::from_secs(6);
/// Refusals of one account or address are put on record this often, together.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);
/// Accounts and addresses that are remembered; beyond it those with the most attempts left are forgotten.
const MAX_ENTRIES: usize = 10_000;

/// Token buckets: every attempt takes one from its account's and its address's, a success gives both back.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    buckets: HashMap<Key, Bucket>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Account(String),
    Address(IpAddr),
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// When it will be full again.
    full_at: Instant,
    /// Refusals that nobody was told of, and when somebody was last.
    unreported: u32,
    reported: Option<Instant>,
}

/// An attempt that is not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    /// How long until there is one.
    pub(super) wait: Duration,
    /// How many refusals to put on record now; `None`: a later line will count this one. A flood of logins must not
    /// become a flood of rows.
    pub(super) report: Option<u32>,
}

impl Key {
    fn limits(&self) -> (u32, Duration) {
        match self {
            Self::Account(_) => (ACCOUNT_BURST, ACCOUNT_REFILL),
            Self::Address(_) => (ADDRESS_BURST, ADDRESS_REFILL),
        }
    }
}

impl Throttle {
    /// Takes an attempt, or says after how long there will be one.
    pub(super) fn attempt(&mut self, account: &str, address: Option<IpAddr>, now: Instant) -> Result<(), Refused> {
        let keys = keys(account, address);
        let worst = keys.iter().filter_map(|key| Some((self.wait(key, now)?, key))).max_by_key(|(wait, _)| *wait);
        if let Some((wait, key)) = worst {
            return Err(Refused { wait, report: self.report(key, now) });
        }
        for key in keys {
            let (_, refill) = key.limits();
            let bucket = self.buckets.entry(key).or_insert(Bucket { full_at: now, unreported: 0, reported: None });
            bucket.full_at = bucket.full_at.max(now) + refill;
        }
        self.forget(now);
        Ok(())
    }

    /// The attempt succeeded: it counts no more.
    pub(super) fn succeeded(&mut self, account: &str, address: Option<IpAddr>) {
        for key in keys(account, address) {
            let (_, refill) = key.limits();
            match (&key, self.buckets.get_mut(&key)) {
                // Whoever knows the password starts afresh.
                (Key::Account(_), Some(_)) => {
                    self.buckets.remove(&key);
                }
                (Key::Address(_), Some(bucket)) => {
                    bucket.full_at = bucket.full_at.checked_sub(refill).unwrap_or(bucket.full_at);
                }
                (_, None) => {}
            }
        }
    }

    /// How long until `key` has an attempt left; `None`: it has one now.
    fn wait(&self, key: &Key, now: Instant) -> Option<Duration> {
        let (burst, refill) = key.limits();
        let owed = self.buckets.get(key)?.full_at.saturating_duration_since(now);
        owed.checked_sub(refill * (burst - 1)).filter(|wait| !wait.is_zero())
    }

    fn report(&mut self, key: &Key, now: Instant) -> Option<u32> {
        let bucket = self.buckets.get_mut(key)?;
        bucket.unreported = bucket.unreported.saturating_add(1);
        let due = bucket.reported.is_none_or(|at| now.saturating_duration_since(at) >= REPORT_INTERVAL);
        due.then(|| {
            bucket.reported = Some(now);
            std::mem::take(&mut bucket.unreported)
        })
    }

    fn forget(&mut self, now: Instant) {
        if self.buckets.len() <= MAX_ENTRIES {
            return;
        }
        self.buckets.retain(|_, bucket| bucket.full_at > now);
        while self.buckets.len() > MAX_ENTRIES {
            let fullest = self.buckets.iter().min_by_key(|(_, bucket)| bucket.full_at).map(|(key, _)| key.clone());
            let Some(key) = fullest else { break };
            self.buckets.remove(&key);
        }
    }
}

fn keys(account: &str, address: Option<IpAddr>) -> Vec<Key> {
    // Of an IPv6 customer, who has a /64, the network counts.
    let address = address.map(|ip| match ip.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & !u128::from(u64::MAX)).into()),
        v4 => v4,
    });
    // Accounts as a case-insensitive collation compares them.
    let account = Key::Account(account.to_lowercase());
    std::iter::once(account).chain(address.map(Key::Address)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(n: u8) -> Option<IpAddr> {
        Some(IpAddr::from([192, 0, 2, n]))
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as origin")]
    fn an_account_has_five_attempts_and_then_one_each_half_minute() {
        let (mut throttle, start) = (Throttle::default(), Instant::now());
        for n in 0..ACCOUNT_BURST {
            assert_eq!(throttle.attempt("alice", ip(n as u8), start), Ok(()));
        }
        assert_eq!(wait(throttle.attempt("ALICE", ip(9), start)), Some(ACCOUNT_REFILL));
        assert_eq!(throttle.attempt("bob", ip(9), start), Ok(()), "others are not held back");
        let later = start + ACCOUNT_REFILL;
        assert_eq!(
            wait(throttle.attempt("alice", None, later - Duration::from_millis(1))),
            Some(Duration::from_millis(1))
        );
        assert_eq!(throttle.attempt("alice", None, later), Ok(()));
        assert_eq!(wait(throttle.attempt("alice", None, later)), Some(ACCOUNT_REFILL));
    }

    fn wait(attempt: Result<(), Refused>) -> Option<Duration> {
        attempt.err().map(|refused| refused.wait)
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as origin")]
    fn a_flood_is_reported_together() {
        let (mut throttle, start) = (Throttle::default(), Instant::now());
        for _ in 0..ACCOUNT_BURST {
            throttle.attempt("alice", None, start).unwrap();
        }
        let mut refuse =
            |seconds: u64| throttle.attempt("alice", None, start + Duration::from_secs(seconds)).unwrap_err().report;
        assert_eq!(refuse(0), Some(1));
        assert_eq!((refuse(1), refuse(2), refuse(9)), (None, None, None));
        assert_eq!(refuse(10), Some(4));
        assert_eq!(refuse(11), None);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as origin")]
    fn an_address_has_twenty() {
        let (mut throttle, start) = (Throttle::default(), Instant::now());
        for n in 0..ADDRESS_BURST {
            assert_eq!(throttle.attempt(&format!("user{n}"), ip(1), start), Ok(()));
        }
        assert_eq!(wait(throttle.attempt("alice", ip(1), start)), Some(ADDRESS_REFILL));
        assert_eq!(throttle.attempt("alice", ip(2), start), Ok(()));
        assert_eq!(throttle.attempt("alice", None, start), Ok(()), "an unknown address has no bucket");
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as origin")]
    fn success_counts_for_nothing() {
        let (mut throttle, start) = (Throttle::default(), Instant::now());
        for _ in 0..100 {
            assert_eq!(throttle.attempt("alice", ip(1), start), Ok(()));
            throttle.succeeded("alice", ip(1));
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as origin")]
    fn made_up_accounts_do_not_fill_the_memory_nor_free_a_throttled_one() {
        let (mut throttle, start) = (Throttle::default(), Instant::now());
        for _ in 0..ACCOUNT_BURST {
            throttle.attempt("alice", None, start).unwrap();
        }
        for n in 0..MAX_ENTRIES + 100 {
            throttle.attempt(&format!("user{n}"), None, start).unwrap();
        }
        assert!(throttle.buckets.len() <= MAX_ENTRIES);
        assert!(throttle.attempt("alice", None, start).is_err());
    }
}
