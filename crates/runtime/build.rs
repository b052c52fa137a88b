//! Compiles the `--init` program: a freestanding static binary that runs in any root file system.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=init/main.rs");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("init");
    let target = std::env::var("TARGET").expect("cargo sets TARGET");
    let status = Command::new(std::env::var_os("RUSTC").expect("cargo sets RUSTC"))
        .args(["--edition=2024", "--crate-type=bin", "--crate-name=skep_init", "--target", &target])
        .args(["-Copt-level=s", "-Cpanic=abort", "-Crelocation-model=static", "-Cstrip=symbols"])
        .args(["-Clink-args=-nostartfiles -nostdlib -static -no-pie -Wl,--build-id=none -Wl,-z,noexecstack"])
        .arg("-o")
        .arg(&out)
        .arg("init/main.rs")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status()
        .expect("rustc runs");
    assert!(status.success(), "the init program does not compile");
}
