//! The resolver as the daemon starts it: this program's own process.

use std::path::Path;
use std::time::{Duration, Instant};

use dns::Zone;
use resolver::Client;
use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(30);

/// Ends the process that serves a root.
struct Ended<'a>(&'a Path);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        for pid in serving(self.0) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

fn serving(root: &Path) -> Vec<Pid> {
    let ours = |line: &[u8]| line.split(|byte| *byte == 0).any(|word| word == path(root));
    let pid = |entry: std::fs::DirEntry| {
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        Pid::from_raw(entry.file_name().to_str()?.parse().ok()?).filter(|_| ours(&line))
    };
    std::fs::read_dir("/proc").unwrap().flatten().filter_map(pid).collect()
}

fn path(root: &Path) -> &[u8] {
    root.as_os_str().as_encoded_bytes()
}

#[test]
fn a_log_without_room_costs_lines_and_not_the_process() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("resolver");
    std::fs::create_dir(&folder).unwrap();
    std::os::unix::fs::symlink("/dev/full", folder.join("log")).unwrap();
    // Nor can the state be written at first, of which it wants to say something.
    let (draft, state) = (folder.join("state.new"), folder.join("state.json"));
    std::fs::create_dir(&draft).unwrap();
    let client = Client::new(Path::new(env!("CARGO_BIN_EXE_skep")), root.path());
    let _ended = Ended(root.path());
    client.set_zone("a", &Zone::new("a")).unwrap();
    let begun = Instant::now();
    // Each change is an attempt: when the first has failed is not seen from outside.
    for number in 0.. {
        if number == 100 {
            std::fs::remove_dir(&draft).unwrap();
        }
        client.set_zone("b", &Zone::new(format!("b{number}"))).unwrap();
        if number > 100 && std::fs::read_to_string(&state).is_ok_and(|text| text.contains("b1")) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "nothing is written any more");
        std::thread::sleep(Duration::from_millis(5));
    }
}
