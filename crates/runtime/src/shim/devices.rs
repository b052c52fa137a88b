//! Which devices a container may use on cgroup v2: a BPF program on its group, made from the rules of its OCI spec.
//!
//! v2 has no files for it as v1 does, and libcontainer leaves it out unless it is built with C libraries.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use serde_json::Value;

/// linux/bpf.h: commands, kinds, and the bits of `access_type`.
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;
const BLOCK: i32 = 1;
const CHAR: i32 = 2;
const ACCESS: [(char, i32); 3] = [('m', 1), ('r', 2), ('w', 4)];

/// One rule; what is `None` fits everything.
#[derive(Debug, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<i32>,
    major: Option<i32>,
    minor: Option<i32>,
    access: i32,
}

/// Puts the rules of an OCI spec on a group of cgroup v2. Nothing is allowed that no rule allows.
pub fn confine(group: &Path, spec: &Value) -> io::Result<()> {
    let rules = spec.pointer("/linux/resources/devices").and_then(Value::as_array);
    let rules: Vec<Rule> = rules.into_iter().flatten().map(rule).collect();
    attach(group, &program(&rules))
}

fn rule(value: &Value) -> Rule {
    let number = |key: &str| value[key].as_i64().and_then(|n| i32::try_from(n).ok());
    let given = value["access"].as_str().unwrap_or("rwm");
    Rule {
        allow: value["allow"] == true,
        kind: match value["type"].as_str() {
            Some("b") => Some(BLOCK),
            Some("c" | "u") => Some(CHAR),
            _ => None,
        },
        major: number("major").filter(|n| *n >= 0),
        minor: number("minor").filter(|n| *n >= 0),
        access: ACCESS.iter().filter(|(c, _)| given.contains(*c)).map(|(_, bit)| bit).sum(),
    }
}

/// One instruction: `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u8,
    /// Destination in the low half, source in the high one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: to | from << 4, offset, immediate }
}

/// Registers: 0 answer, 1 the question (`struct bpf_cgroup_dev_ctx`), then scratch; 2 kind, 3 access, 4 major, 5 minor.
fn program(rules: &[Rule]) -> Vec<Instruction> {
    const LOAD_WORD: u8 = 0x61;
    const AND: u8 = 0x54;
    const SHIFT_RIGHT: u8 = 0x74;
    let mut code = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(AND, 2, 0, 0, 0xffff),
        instruction(LOAD_WORD, 3, 1, 0, 0),
        instruction(SHIFT_RIGHT, 3, 0, 0, 16),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
    ];
    // The last rule that fits decides.
    for rule in rules.iter().rev() {
        code.extend(decide(rule));
    }
    code.extend(answer(false));
    code
}

fn answer(allowed: bool) -> [Instruction; 2] {
    const MOVE: u8 = 0xb7;
    const EXIT: u8 = 0x95;
    [instruction(MOVE, 0, 0, 0, i32::from(allowed)), instruction(EXIT, 0, 0, 0, 0)]
}

/// The rule's answer if it fits; what does not fit jumps behind it.
fn decide(rule: &Rule) -> Vec<Instruction> {
    const COPY: u8 = 0xbc;
    const AND: u8 = 0x54;
    const UNLESS_EQUAL: u8 = 0x56;
    const UNLESS_SAME: u8 = 0x5e;
    const IF_EQUAL: u8 = 0x16;
    let mut tests = Vec::new();
    if let Some(kind) = rule.kind {
        tests.push(instruction(UNLESS_EQUAL, 2, 0, 0, kind));
    }
    tests.push(instruction(COPY, 1, 3, 0, 0));
    tests.push(instruction(AND, 1, 0, 0, rule.access));
    // Allowed is what asks for no more than the rule gives; denied what asks for any of it.
    tests.push(match rule.allow {
        true => instruction(UNLESS_SAME, 1, 3, 0, 0),
        false => instruction(IF_EQUAL, 1, 0, 0, 0),
    });
    for (register, number) in [(4, rule.major), (5, rule.minor)] {
        if let Some(number) = number {
            tests.push(instruction(UNLESS_EQUAL, register, 0, 0, number));
        }
    }
    let length = tests.len() + answer(rule.allow).len();
    for (at, test) in tests.iter_mut().enumerate() {
        if matches!(test.code, UNLESS_EQUAL | UNLESS_SAME | IF_EQUAL) {
            test.offset = (length - at - 1) as i16;
        }
    }
    tests.extend(answer(rule.allow));
    tests
}

/// The parts of `union bpf_attr` that loading uses; what follows is zero.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    licence: u64,
    rest: [u64; 8],
}

#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

fn attach(group: &Path, program: &[Instruction]) -> io::Result<()> {
    let load = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        licence: c"Apache-2.0".as_ptr() as u64,
        rest: [0; 8],
    };
    let loaded = bpf(BPF_PROG_LOAD, &load)?;
    // SAFETY: a descriptor that the kernel has just made, owned by nobody else.
    let loaded = unsafe { OwnedFd::from_raw_fd(loaded) };
    let group = File::open(group)?;
    let attach = Attach {
        target: group.as_raw_fd() as u32,
        program: loaded.as_raw_fd() as u32,
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    // The group holds the program from here on.
    bpf(BPF_PROG_ATTACH, &attach).map(drop)
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_int> {
    // SAFETY: the attributes are as large as said, and what they point to lives through the call; the kernel reads only.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>())
    };
    match result {
        -1 => Err(io::Error::last_os_error()),
        answer => Ok(answer as libc::c_int),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use serde_json::json;

    use super::*;

    /// A group of cgroup v2 on a mount of its own: v2 is there even where v1 has the controllers.
    struct Group {
        folder: tempfile::TempDir,
    }

    impl Group {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let mut mount = Command::new("mount");
            mount.args(["-t", "cgroup2", "none"]).arg(folder.path());
            let done = mount.status().is_ok_and(|status| status.success());
            assert!(done, "cgroup2 cannot be mounted: run as root");
            let group = Self { folder };
            std::fs::create_dir(group.path()).unwrap();
            group
        }

        fn path(&self) -> std::path::PathBuf {
            // The hierarchy is one, however often it is mounted: a name of this mount's own.
            let name = self.folder.path().file_name().unwrap_or_default().to_string_lossy();
            self.folder.path().join(format!("skep-devices-{name}"))
        }

        /// What a shell in the group can do.
        fn can(&self, line: &str) -> bool {
            let inside = format!("echo $$ > {}/cgroup.procs && {line}", self.path().display());
            let output = Command::new("sh").args(["-c", &inside]).output().unwrap();
            output.status.success()
        }
    }

    impl Drop for Group {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir(self.path());
            let _ = Command::new("umount").arg(self.folder.path()).status();
        }
    }

    #[test]
    fn a_group_uses_the_devices_of_its_rules_and_no_others() {
        let group = Group::new();
        let nodes = tempfile::tempdir().unwrap();
        let node = nodes.path().join("full").display().to_string();
        let make = format!("rm -f {node}; mknod {node} c 1 7");
        let block = format!("rm -f {node}; mknod {node} b 7 0");
        assert!(group.can("head -c1 /dev/zero") && group.can(&make), "before there are rules");
        let spec = json!({ "linux": { "resources": { "devices": [
            { "allow": false, "access": "rwm" },
            { "allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm" },
            { "allow": true, "type": "c", "major": 1, "minor": 7, "access": "r" },
            { "allow": true, "type": "c", "access": "m" },
        ] } } });
        confine(&group.path(), &spec).unwrap();
        assert!(group.can("cat /dev/null && echo x > /dev/null"), "a device with all rights");
        assert!(group.can(&make), "nodes of characters may be made");
        assert!(group.can(&format!("head -c1 {node}")), "reading is allowed");
        assert!(!group.can(&format!(": > {node}")), "writing is not");
        assert!(!group.can("head -c1 /dev/zero"), "a device of no rule");
        assert!(!group.can(&block), "nodes of blocks may not be made");
    }

    #[test]
    fn the_last_rule_that_fits_decides() {
        let group = Group::new();
        let spec = json!({ "linux": { "resources": { "devices": [
            { "allow": true, "access": "rwm" },
            { "allow": false, "type": "c", "major": 1, "minor": 5, "access": "w" },
        ] } } });
        confine(&group.path(), &spec).unwrap();
        assert!(group.can("head -c1 /dev/zero"), "only writing is denied");
        assert!(!group.can("echo x > /dev/zero"), "the later rule");
    }
}
