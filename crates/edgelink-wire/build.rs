//! Compiles `proto/edgelink.proto` with a pure-Rust compiler, so that no `protoc` needs to be installed.

use std::env;
use std::error::Error;
use std::path::PathBuf;

/// Messages that hold tokens or keys; their `Debug` is written by hand in `src/control/redact.rs`.
const SECRET: [&str; 4] = ["AuthRequest", "Tokens", "RelayKeys", "MeshToken"];

fn main() -> Result<(), Box<dyn Error>> {
    // As cargo says at run time: a target directory may be shared by several work trees.
    let directory = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    let file = directory.join("edgelink.proto");
    println!("cargo::rerun-if-changed={}", file.display());
    let descriptors = protox::compile([&file], [&directory])?;
    prost_build::Config::new()
        .skip_debug(SECRET.map(|name| format!(".edgelink.v1.{name}")))
        .compile_fds(descriptors)?;
    Ok(())
}
