//! Compiles `proto/edgelink.proto` with a pure-Rust compiler, so that no `protoc` needs to be installed.

use std::error::Error;
use std::path::Path;

/// Messages that hold tokens or keys; their `Debug` is written by hand in `src/control/redact.rs`.
const SECRET: [&str; 4] = ["AuthRequest", "Tokens", "RelayKeys", "MeshToken"];

fn main() -> Result<(), Box<dyn Error>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    let file = directory.join("edgelink.proto");
    println!("cargo::rerun-if-changed={}", file.display());
    let descriptors = protox::compile([&file], [&directory])?;
    prost_build::Config::new()
        .skip_debug(SECRET.map(|name| format!(".edgelink.v1.{name}")))
        .compile_fds(descriptors)?;
    Ok(())
}
