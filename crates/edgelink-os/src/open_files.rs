//! How many files, and so connections, this process may have open.

/// Raises the soft limit to the hard one: the usual 1,024 is there for programs that use `select`, and a controller or
/// relay has one socket per node. Returns the limit that holds now; `None` when it cannot be read.
pub fn raise_limit() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live, properly typed value, which the call fills in.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return None;
    }
    let wanted = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
    // SAFETY: as above; it is only read.
    if limit.rlim_cur < limit.rlim_max && unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &wanted) } == 0 {
        limit = wanted;
    }
    Some(limit.rlim_cur)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let first = super::raise_limit();
        assert!(first.is_some_and(|limit| limit > 0));
        assert_eq!(super::raise_limit(), first, "there is nothing left to raise");
    }
}
