//! `edgelink-less-kernel FLAGS PROGRAM [ARGUMENT…]` becomes the program, to which the kernel refuses these `TUN_F_…` flags (a
//! number, hexadecimal), as one would that does not know them.

use std::{os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context, Result, bail};

#[path = "../../../../crates/edgelink-os/tests/common/seccomp.rs"]
mod seccomp;

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let flags = arguments.next().context("which TUN_F_ flags?")?;
    let flags = u32::from_str_radix(flags.to_str().unwrap_or_default(), 16).context("no hexadecimal number")?;
    let program = arguments.next().context("which program?")?;
    seccomp::refuse_offloads(flags).context("the kernel takes no filter")?;
    bail!("{}: {}", program.display(), Command::new(&program).args(arguments).exec())
}
