//! The project's own commands: `cargo xtask setup | demo | test | tidy | bench | dist | conformance | fuzz`.

mod setup;
mod tidy;
mod suite;
mod demo;
mod conformance;
mod bench;
mod fuzz;
mod dist;
mod installed;
mod machine;

use std::process::ExitCode;

const USAGE: &str = "usage: cargo xtask COMMAND
  setup         install what building and testing need (Debian and Ubuntu packages)
  demo          build skep, make two hosts, run the walk-through, clean up
                --hosts N (2 to 9) --routed --ipv6 --image REF --keep --with-dockerd
  test          everything: tidy, formatting, clippy, build, unit-simulation-namespace, walk-throughs,
                installed-package, end-to-end; or only the steps that are named [STEP ...],
                which may be fresh-machine, too: the demo on a machine with nothing but Rust;
                and virtual-machine: stock Debian kernels with cgroup v2, hybrid, AppArmor, IPVS
  tidy          the checks that no compiler makes
  dist          a release: target/dist/skep-VERSION-ARCH.tar.gz and skep_VERSION_ARCH.deb
  bench         figures beside the Docker Engine, written to docs/benchmarks.md [engine|swarm|overlay|growth ...]
  conformance   docker-py's own integration tests against skep and against the Docker Engine
                [--engine skep|dockerd] [MODULE ...]
  fuzz          TARGET [libFuzzer's options]: a coverage-guided run without an end";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match words.first().map(String::as_str) {
        Some("setup") => setup::install(),
        Some("demo") => demo::main(&words[1..]),
        Some("test") => suite::main(&words[1..]),
        Some("dist") => dist::main(&words[1..]),
        Some("conformance") => conformance::main(&words[1..]),
        Some("bench") => bench::main(&words[1..]),
        Some("fuzz") => fuzz::main(&words[1..]),
        Some("tidy") => tidy::main(),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // As a shell shows a program that SIGINT ended.
        Err(_) if lab::interrupt::interrupted() => ExitCode::from(130),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
