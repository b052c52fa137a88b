//! The package on a stock Debian kernel, in a virtual machine: control groups of version 2 alone and hybrid,
//! AppArmor, systemd, and a swarm with a Docker Engine that has IPVS. None of that depends on this machine's kernel.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lab::command::{run, sh};
use lab::lab::{NEEDS, on_path};

use crate::{dist, installed, suite};

/// What stands in the machine beside the lab's own needs: a kernel, systemd, an oracle.
const PACKAGES: &[&str] = &[
    "apparmor",
    "ca-certificates",
    "conntrack",
    "dbus",
    "initramfs-tools",
    "iptables",
    "iputils-ping",
    "kmod",
    "linux-image-amd64",
    "openssl",
    "runc",
    "systemd-sysv",
    "udev",
];
/// Units of these packages that would only take time.
const UNWANTED: &[&str] = &["docker.service", "docker.socket", "containerd.service"];
/// The machine's own unit: the work, then the end.
const UNIT: &str = "[Unit]\nAfter=network.target apparmor.service\n[Service]\nType=oneshot\n\
    ExecStartPre=mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 host /host\n\
    ExecStart=/host/guest\nExecStopPost=systemctl poweroff --no-block\n\
    StandardOutput=file:/dev/console\nStandardError=file:/dev/console\nTasksMax=infinity\n\
    [Install]\nWantedBy=multi-user.target\n";
const SCRIPTS: &[(&str, &str)] = &[
    ("guest", include_str!("machine/guest.sh")),
    ("check.sh", include_str!("machine/check.sh")),
    ("units.sh", include_str!("machine/units.sh")),
    ("limits.sh", include_str!("machine/limits.sh")),
    ("mixed.sh", include_str!("machine/mixed.sh")),
];

/// How a machine is booted, and its steps: scripts, or modules of the end-to-end tests.
struct Mode {
    name: &'static str,
    kernel: &'static str,
    steps: &'static [&'static str],
}

const MODES: &[Mode] = &[
    Mode { name: "unified", kernel: "", steps: &["units", "limits", "mixed"] },
    Mode {
        name: "hybrid",
        kernel: "systemd.unified_cgroup_hierarchy=0",
        steps: &["units", "limits"],
    },
];

/// From the start of the machine to its end; much of it is emulation where there is no KVM.
const MACHINE_MAX: Duration = Duration::from_secs(90 * 60);
/// Until the kernel's first word; a KVM that cannot run this kernel says nothing for ever.
const FIRST_WORD_MAX: Duration = Duration::from_secs(30);
/// One module of the end-to-end tests.
const MODULE_SECONDS_MAX: &str = "2400";

/// Boots each mode; `VM_MODE` names one alone, `VM_STEPS` other steps (`VM_STEPS="limits containers::"`),
/// `VM_DEBIAN` another release, whose systemd may know version 2 of control groups only.
pub fn main() -> Result<()> {
    lab::interrupt::listen()?;
    if !on_path("qemu-system-x86_64") {
        bail!("qemu is missing: apt install --no-install-recommends qemu-system-x86");
    }
    let built = suite::target_folder()?;
    let target = built.parent().context("no target folder")?;
    let machine = Machine::make(target, &variable("VM_DEBIAN").unwrap_or("bookworm".into()))?;
    suite::cargo(&["test", "--package", "e2e", "--test", "e2e", "--no-run"])?;
    let one = variable("VM_MODE");
    let wanted = |mode: &&Mode| one.as_deref().is_none_or(|name| name == mode.name);
    let modes: Vec<&Mode> = MODES.iter().filter(wanted).collect();
    if modes.is_empty() {
        bail!("VM_MODE is no mode: unified or hybrid");
    }
    let mut failed = Vec::new();
    for mode in modes {
        failed.extend(machine.try_mode(mode, &built, target)?);
    }
    if !failed.is_empty() {
        bail!("in the virtual machine: {}", failed.join("; "));
    }
    Ok(())
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// A root with a kernel, and a disk made of it.
struct Machine {
    root: PathBuf,
    disk: PathBuf,
}

impl Machine {
    /// Made once for each release.
    fn make(target: &Path, release: &str) -> Result<Machine> {
        let machine = Machine {
            root: target.join(format!("machine-{release}")),
            disk: target.join(format!("machine-{release}.ext4")),
        };
        if machine.disk.exists() {
            return Ok(machine);
        }
        if !machine.root.join("opt/made").exists() {
            machine.install(release)?;
            fs::write(machine.root.join("opt/made"), "")?;
        }
        machine.furnish()?;
        machine.write_disk()?;
        Ok(machine)
    }

    fn install(&self, release: &str) -> Result<()> {
        let mut packages: Vec<&str> =
            NEEDS.iter().map(|need| need.1).chain(PACKAGES.iter().copied()).collect();
        if release != "bookworm" {
            // Since Debian 13 the command is a package of its own.
            packages.push("docker-cli");
        }
        packages.sort_unstable();
        packages.dedup();
        installed::debootstrap(&self.root, release, &packages)
    }

    fn furnish(&self) -> Result<()> {
        let at = |path: &str| self.root.join(path);
        let units = at("etc/systemd/system");
        for name in UNWANTED {
            symlink_over(Path::new("/dev/null"), &units.join(name))?;
        }
        fs::create_dir_all(at("host"))?;
        fs::create_dir_all(units.join("multi-user.target.wants"))?;
        fs::write(units.join("machine.service"), UNIT)?;
        let wanted = units.join("multi-user.target.wants/machine.service");
        symlink_over(Path::new("../machine.service"), &wanted)?;
        fs::write(at("etc/fstab"), "/dev/vda / ext4 defaults 0 0\n")?;
        fs::write(at("etc/hostname"), "machine\n")?;
        // Only what the boot needs, unpacked quickly.
        let tools = at("etc/initramfs-tools");
        fs::write(tools.join("conf.d/machine"), "MODULES=list\nCOMPRESS=gzip\n")?;
        fs::write(tools.join("modules"), "virtio_pci\nvirtio_blk\next4\n9p\n9pnet_virtio\n")?;
        run(Command::new("chroot").arg(&self.root).args(["update-initramfs", "-u"])).map(drop)
    }

    fn write_disk(&self) -> Result<()> {
        let draft = self.disk.with_extension("draft");
        fs::File::create(&draft)?.set_len(8 << 30)?;
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-d"]).arg(&self.root).arg(&draft))?;
        Ok(fs::rename(&draft, &self.disk)?)
    }

    /// What failed, by mode and step.
    fn try_mode(&self, mode: &Mode, built: &Path, target: &Path) -> Result<Vec<String>> {
        let folder = target.join("machine").join(mode.name);
        let asked = variable("VM_STEPS");
        let steps: Vec<&str> = match &asked {
            Some(asked) => asked.split_whitespace().collect(),
            None => mode.steps.to_vec(),
        };
        bring(&folder, built, target, &steps)?;
        let start = Instant::now();
        self.boot(mode, &folder)?;
        println!("{}: {:.0} s", mode.name, start.elapsed().as_secs_f64());
        let mut failed = Vec::new();
        for step in steps {
            let name = step.trim_end_matches("::");
            let out = folder.join("out");
            let status = fs::read_to_string(out.join(format!("{name}.status")));
            let said = fs::read_to_string(out.join(format!("{name}.log"))).unwrap_or_default();
            println!("-- {} {name}\n{}", mode.name, said.trim());
            if status.is_ok_and(|status| status.trim() == "0") {
                continue;
            }
            failed.push(format!("{} {name} (see {})", mode.name, out.display()));
        }
        Ok(failed)
    }

    /// From the first instruction to the end of the machine.
    fn boot(&self, mode: &Mode, folder: &Path) -> Result<()> {
        if Path::new("/dev/kvm").exists() {
            let mut machine = self.start("kvm", mode, folder)?;
            if first_word(&mut machine, folder)? {
                return end(machine, folder);
            }
            machine.kill().ok();
            machine.wait()?;
        }
        println!(
            "{}: no KVM here that runs this kernel: emulated, some twenty times slower",
            mode.name
        );
        end(self.start("tcg,thread=multi", mode, folder)?, folder)
    }

    fn boot_file(&self, prefix: &str) -> Result<PathBuf> {
        let folder = self.root.join("boot");
        let files = fs::read_dir(&folder)?.flatten().map(|entry| entry.path());
        let mut named = files.filter(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        });
        named.next().with_context(|| format!("no {prefix}* in {}", folder.display()))
    }

    /// Two processors, 3 GiB, no network; what is written to the disk is forgotten.
    fn start(&self, accelerator: &str, mode: &Mode, folder: &Path) -> Result<Child> {
        let (kernel, initrd) = (self.boot_file("vmlinuz-")?, self.boot_file("initrd.img-")?);
        let console = folder.join("console");
        let disk = format!("file={},format=raw,if=virtio,snapshot=on", self.disk.display());
        let share = format!("local,id=host,path={},security_model=none", folder.display());
        let line =
            format!("console=ttyS0 root=/dev/vda rw panic=-1 quiet no_timer_check {}", mode.kernel);
        fs::write(&console, "")?;
        let log = fs::File::create(folder.join("qemu.log"))?;
        Command::new("qemu-system-x86_64")
            .args(["-accel", accelerator, "-cpu", "max", "-smp", "2", "-m", "3072", "-nic", "none"])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-serial", &format!("file:{}", console.display())])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(initrd)
            .args(["-append", &line])
            .args(["-drive", &disk, "-fsdev", &share])
            .args(["-device", "virtio-9p-pci,fsdev=host,mount_tag=host"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("qemu-system-x86_64")
    }
}

/// What the machine sees as /host.
fn bring(folder: &Path, built: &Path, target: &Path, steps: &[&str]) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    for made in ["bin/deps", "out"] {
        fs::create_dir_all(folder.join(made))?;
    }
    let binary = std::env::var_os("SKEP_BIN").map_or(built.join("skep"), PathBuf::from);
    let release = dist::pack(&binary, &target.join("dist-test"))?;
    fs::copy(&release.package, folder.join("skep.deb"))?;
    let tests = sh(&format!("ls -t {}/deps", built.display()))?;
    let is_tests = |name: &&str| name.starts_with("e2e-") && !name.contains('.');
    let tests = tests.lines().find(is_tests).context("the end-to-end tests are not built")?;
    let programs = [
        (binary, "bin/skep"),
        (built.join("lab"), "bin/lab"),
        (built.join("load"), "bin/load"),
        (built.join("deps").join(tests), "bin/deps/e2e"),
    ];
    for (from, to) in programs {
        // Nobody reads their symbols there, and every byte costs the emulation.
        run(Command::new("strip").arg("-o").arg(folder.join(to)).arg(&from))?;
    }
    for (name, text) in SCRIPTS {
        fs::write(folder.join(name), text)?;
    }
    fs::set_permissions(folder.join("guest"), fs::Permissions::from_mode(0o755))?;
    fs::write(folder.join("limit"), MODULE_SECONDS_MAX)?;
    Ok(fs::write(folder.join("steps"), steps.join("\n"))?)
}

/// Has the kernel spoken in time? False also when the machine has ended before.
fn first_word(machine: &mut Child, folder: &Path) -> Result<bool> {
    let start = Instant::now();
    while start.elapsed() < FIRST_WORD_MAX {
        lab::interrupt::check()?;
        if fs::metadata(folder.join("console"))?.len() > 0 {
            return Ok(true);
        }
        if machine.try_wait()?.is_some() {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(false)
}

/// Waits for the machine's own end.
fn end(mut machine: Child, folder: &Path) -> Result<()> {
    let start = Instant::now();
    let outcome = loop {
        if let Err(error) = lab::interrupt::check() {
            break Err(error);
        }
        match machine.try_wait()? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => break Err(anyhow::anyhow!("qemu: {status}")),
            None if start.elapsed() > MACHINE_MAX => {
                break Err(anyhow::anyhow!("not done after {} s", MACHINE_MAX.as_secs()));
            }
            None => std::thread::sleep(Duration::from_secs(1)),
        }
    };
    machine.kill().ok();
    machine.wait()?;
    let tail = |name: &str| sh(&format!("tail -n 15 {}", folder.join(name).display()));
    outcome.with_context(|| {
        let said = tail("console").unwrap_or_default();
        format!("the virtual machine: {said}\n{}", tail("qemu.log").unwrap_or_default())
    })
}

fn symlink_over(to: &Path, at: &Path) -> Result<()> {
    if at.symlink_metadata().is_ok() {
        fs::remove_file(at)?;
    }
    symlink(to, at).with_context(|| at.display().to_string())
}
