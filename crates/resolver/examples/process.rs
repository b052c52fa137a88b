//! The resolver process by itself, for this crate's tests: `process resolver --exec-root <folder>`.

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, _, _, exec_root] = arguments.as_slice() else {
        eprintln!("usage: process resolver --exec-root <folder>");
        std::process::exit(2);
    };
    let caches = std::sync::Arc::new(netlink::names::KernelCaches::default());
    if let Err(error) = resolver::run(std::path::Path::new(exec_root), caches) {
        eprintln!("{error}");
        std::process::exit(1);
    }
}
