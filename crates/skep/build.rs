//! How the binary is linked: at a fixed address, see docs/decisions/0600-runtime-small-shim.md.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-link-arg-bins=-no-pie");
}
