//! What a node tells about the machine it runs on.

/// The host name as the kernel has it, without its domain; `"localhost"` when it is empty or not UTF-8.
#[must_use]
pub fn hostname() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    match name.split('.').next() {
        Some(first) if !first.is_empty() => first.to_owned(),
        _ => "localhost".to_owned(),
    }
}

/// The operating system, e.g. `"linux"`.
#[must_use]
pub fn os() -> &'static str {
    std::env::consts::OS
}

/// The processor architecture, e.g. `"x86_64"`.
#[must_use]
pub fn arch() -> &'static str {
    std::env::consts::ARCH
}

/// Whether the processor has instructions for AES and carry-less multiplication, without which AES-256-GCM is slower
/// than ChaCha20-Poly1305.
#[must_use]
pub fn has_aes_gcm() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = std::is_x86_feature_detected!("aes")
        && std::is_x86_feature_detected!("pclmulqdq")
        && std::is_x86_feature_detected!("ssse3");
    #[cfg(target_arch = "aarch64")]
    let has = std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let has = false;
    has
}

/// The kernel's release, e.g. `"6.12.1"`; empty when the system does not say.
#[must_use]
pub fn kernel_release() -> String {
    nix::sys::utsname::uname().ok().and_then(|name| name.release().to_str().map(str::to_owned)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_named() {
        let from_kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        assert_eq!(Some(hostname().as_str()), from_kernel.trim().split('.').next());
        assert_eq!(kernel_release(), std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap().trim());
        assert_eq!(os(), "linux");
        assert!(!arch().is_empty());
    }
}
