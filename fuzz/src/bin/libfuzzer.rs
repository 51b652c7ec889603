//! The targets under LLVM's libFuzzer; built by `scripts/fuzz`. `EDGELINK_FUZZ_TARGET` names the target, the arguments
//! are libFuzzer's own.
#![no_main]
#![allow(clippy::expect_used, reason = "a fuzzer fails by panicking")]

use edgelink_fuzz::Target;
use std::sync::LazyLock;

static TARGET: LazyLock<&'static Target> = LazyLock::new(|| {
    let name = std::env::var("EDGELINK_FUZZ_TARGET").expect("EDGELINK_FUZZ_TARGET names a target");
    Target::named(&name).expect("EDGELINK_FUZZ_TARGET names a target")
});

libfuzzer_sys::fuzz_target!(|input: &[u8]| TARGET.check(input));
