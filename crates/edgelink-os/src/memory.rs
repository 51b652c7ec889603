//! The C library's allocator, told how this program allocates.

/// Keeps large freed buffers for the next message instead of giving them back to the kernel at once.
///
/// Messages of the data path are 64 to 192 KiB, just where glibc begins to `mmap` each block and to trim the heap at each
/// free: every message would then fault its pages in anew. Up to `keep` bytes of free heap are kept. Call it first
/// thing in `main`. Without effect where the C library is not glibc.
pub fn keep_freed_buffers(keep: usize) {
    #[cfg(target_env = "gnu")]
    {
        /// Larger blocks than any message are still mapped on their own.
        const MMAP_THRESHOLD: libc::c_int = 4 << 20;
        let keep = libc::c_int::try_from(keep).unwrap_or(libc::c_int::MAX);
        // SAFETY: mallopt only sets parameters of the allocator; it may be called at any time.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD);
            libc::mallopt(libc::M_TRIM_THRESHOLD, keep);
        }
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = keep;
}
