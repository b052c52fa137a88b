//! libFuzzer around the target whose name this binary bears.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let target = fuzz::target(env!("CARGO_BIN_NAME")).expect("a binary for each target");
    (target.run)(data);
});
