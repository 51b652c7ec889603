//! A kernel that has less than this one.

use std::io;

/// From here on the kernel refuses TUNSETOFFLOAD with any of these flags, as one that does not know them: to this thread, those
/// that it makes, and what it becomes by `exec`.
///
/// # Errors
///
/// When the kernel takes no filter.
pub(crate) fn refuse_offloads(flags: u32) -> io::Result<()> {
    const TUNSETOFFLOAD: u32 = 0x4004_54d0;
    let load = |at: u32| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, at);
    let jump = |test: u32, value: u32, yes: u8, no: u8| statement(libc::BPF_JMP | test | libc::BPF_K, yes, no, value);
    let give = |what: u32| statement(libc::BPF_RET | libc::BPF_K, 0, 0, what);
    // `struct seccomp_data`: nr u32, arch u32, instruction pointer u64, args [u64; 6]; on little-endian machines.
    let mut program = [
        load(0),
        jump(libc::BPF_JEQ, libc::SYS_ioctl as u32, 0, 5),
        load(16 + 8),
        jump(libc::BPF_JEQ, TUNSETOFFLOAD, 0, 3),
        load(16 + 16),
        jump(libc::BPF_JSET, flags, 0, 1),
        give(libc::SECCOMP_RET_ERRNO | libc::EINVAL.unsigned_abs()),
        give(libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the kernel only reads the program, which lives until the call returns.
    let refused = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            | libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
    };
    if refused == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn statement(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}
