//! Waiting for what has no event of its own: looked at often, until a deadline.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

const PACE: Duration = Duration::from_millis(5);

/// Calls `look` every 5 ms until it returns something, at most for `timeout`.
///
/// # Errors
///
/// When the time is over; `what` names what was waited for.
pub fn until<T>(what: &str, timeout: Duration, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        let now = Instant::now();
        if now >= deadline {
            bail!("{what}: not within {timeout:?}");
        }
        std::thread::sleep(PACE.min(deadline - now));
    }
}

/// Waits until `path` exists.
///
/// # Errors
///
/// When the time is over.
pub fn file(path: impl AsRef<Path>, timeout: Duration) -> Result<()> {
    let path = path.as_ref();
    until(&format!("file {}", path.display()), timeout, || path.exists().then_some(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_when_found_and_at_the_deadline() {
        let mut looks = 0;
        let found = until("the third look", Duration::from_secs(5), || {
            looks += 1;
            (looks == 3).then_some(looks)
        });
        assert_eq!(found.unwrap(), 3);
        let began = Instant::now();
        let error = until::<()>("pigs that fly", Duration::from_millis(20), || None).unwrap_err();
        assert_eq!(error.to_string(), "pigs that fly: not within 20ms");
        assert!(began.elapsed() >= Duration::from_millis(20));
        assert!(file("/proc/self/status", Duration::ZERO).is_ok());
        assert!(file("/no/such/file", Duration::ZERO).is_err());
    }
}
