//! The shim alone, for this room's own tests and measurements; the product calls it through `skep shim`.

fn main() -> std::process::ExitCode {
    let args: Vec<std::ffi::OsString> = std::env::args_os().skip(2).collect();
    std::process::ExitCode::from(runtime::shim::main(&args) as u8)
}
