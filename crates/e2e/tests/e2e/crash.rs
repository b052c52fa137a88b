//! `kill -9` at every step of an operation, of the daemon or of the shim whose step it is: nothing is left behind that
//! nobody knows, everything that was acknowledged is there, and a container without a shim is told as ended.
//!
//! Every kind of step is tried once; `E2E_LONG=1` tries every single step.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::hosts_of_skep;
use lab::Host;
use lab::command::output;
use lab::host::wait_until;

const REGISTRY: &str = "127.0.0.1:5000";
/// How long a crash, or the clearing up after one, may take on a busy machine.
pub(crate) const SETTLE_MAX: Duration = Duration::from_secs(30);

/// One thing that a user does, which may be cut short anywhere.
pub(crate) struct Operation {
    pub name: &'static str,
    /// What has to be there before; runs undisturbed.
    pub before: fn(&Host) -> Result<()>,
    /// The docker command; `TAR` is a file with the image of the registry.
    pub command: &'static str,
    /// Must hold once the command has succeeded, whatever happened to the daemon then.
    pub acknowledged: fn(&Host) -> Result<()>,
}

pub(crate) const OPERATIONS: [Operation; 11] = [
    Operation {
        name: "create",
        before: |_| Ok(()),
        command: "create --name victim -v /www -v fast:/fast -p 8081:80 httpd",
        acknowledged: |host| host.dk("inspect victim").map(drop),
    },
    Operation {
        name: "start",
        before: |host| host.dk("create --name victim -v fast:/fast -p 8081:80 httpd").map(drop),
        command: "start victim",
        acknowledged: |host| is(host, "inspect -f {{.State.Running}} victim", "true"),
    },
    Operation {
        name: "stop",
        before: |host| {
            host.docker(&[
                "run",
                "-d",
                "--name",
                "victim",
                "-v",
                "fast:/fast",
                "-p",
                "8081:80",
                "httpd",
                "sh",
                "-c",
                "trap 'exit 7' TERM; touch /tmp/trapped; while true; do sleep 0.1; done",
            ])?;
            // Before that the kernel keeps the signal from the first process of a container.
            wait_until(SETTLE_MAX, || Ok(host.dk("exec victim test -e /tmp/trapped").is_ok()))
        },
        command: "stop victim",
        acknowledged: |host| {
            is(host, "inspect -f {{.State.Status}}/{{.State.ExitCode}} victim", "exited/7")
        },
    },
    Operation {
        name: "remove",
        before: |host| {
            host.dk("run -d --name victim -v /www -v fast:/fast -p 8081:80 httpd").map(drop)
        },
        command: "rm -f -v victim",
        acknowledged: |host| is(host, "ps -aq --filter name=victim", ""),
    },
    Operation {
        name: "connect",
        before: |host| host.dk("run -d --name victim httpd").map(drop),
        command: "network connect side victim",
        acknowledged: |host| is_on(host, &["bridge", "side"]),
    },
    Operation {
        name: "disconnect",
        before: |host| {
            host.dk("run -d --name victim httpd")?;
            host.dk("network connect side victim").map(drop)
        },
        command: "network disconnect side victim",
        acknowledged: |host| is_on(host, &["bridge"]),
    },
    Operation {
        name: "pull",
        before: |_| Ok(()),
        command: "pull 127.0.0.1:5000/app:1",
        acknowledged: |host| host.dk("image inspect 127.0.0.1:5000/app:1").map(drop),
    },
    Operation {
        name: "rmi",
        before: |host| host.dk("pull -q 127.0.0.1:5000/app:1").map(drop),
        command: "rmi 127.0.0.1:5000/app:1",
        acknowledged: |host| is(host, "images -q 127.0.0.1:5000/app", ""),
    },
    Operation {
        name: "load",
        before: |_| Ok(()),
        command: "load -q -i TAR",
        acknowledged: |host| {
            is(host, "run --rm 127.0.0.1:5000/app:1 cat /tmp/one /tmp/two", "one\ntwo")
        },
    },
    Operation {
        name: "import",
        before: |_| Ok(()),
        command: "import TAR 127.0.0.1:5000/app:1",
        acknowledged: |host| host.dk("image inspect 127.0.0.1:5000/app:1").map(drop),
    },
    Operation {
        name: "commit",
        before: |host| {
            let line = "echo three > /tmp/three; sleep 1000";
            host.docker(&["run", "-d", "--name", "victim", "httpd", "sh", "-c", line])?;
            wait_until(SETTLE_MAX, || Ok(host.dk("exec victim cat /tmp/three").is_ok()))
        },
        command: "commit victim 127.0.0.1:5000/app:1",
        acknowledged: |host| {
            is(host, "run --pull=never --rm 127.0.0.1:5000/app:1 cat /tmp/three", "three")
        },
    },
];

pub(crate) fn is(host: &Host, line: &str, expected: &str) -> Result<()> {
    let answer = host.dk(line)?;
    ensure!(answer == expected, "docker {line}: {answer:?} rather than {expected:?}");
    Ok(())
}

/// The networks of the victim, which its next start finds again.
fn is_on(host: &Host, networks: &[&str]) -> Result<()> {
    let format = "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}";
    let seen = || host.docker(&["inspect", "-f", format, "victim"]);
    let now = seen()?;
    host.dk("restart -t 0 victim")?;
    for (when, seen) in [("now", now), ("after its next start", seen()?)] {
        let on: Vec<&str> = seen.split_whitespace().collect();
        ensure!(on == networks, "{when} on {on:?} rather than {networks:?}");
    }
    Ok(())
}

#[test]
fn a_crash_anywhere_leaves_nothing_behind_and_loses_nothing() -> Result<()> {
    let lab = hosts_of_skep(1)?;
    let host = lab.host(1);
    let rig = Rig::make(host)?;
    let mut failed = Vec::new();
    let (mut tried, mut of_shims) = (0, 0);
    // One operation alone: CRASH=commit
    let only = std::env::var("CRASH").ok();
    let chosen = |operation: &&Operation| only.as_ref().is_none_or(|name| name == operation.name);
    for operation in OPERATIONS.iter().filter(chosen) {
        let steps = rig.steps(operation).context(operation.name)?;
        for step in steps {
            tried += 1;
            of_shims += usize::from(of_shim(&step));
            let done = rig.crash(operation, &step);
            if let Err(error) = done.with_context(|| format!("{} at {step}", operation.name)) {
                eprintln!("FAILED {error:#}");
                failed.push(format!("{error:#}"));
                rig.start_again()?;
                rig.clear()?;
            }
        }
    }
    ensure!(
        tried >= 40 && of_shims >= 10 || only.is_some(),
        "only {tried} steps were found, {of_shims} of them shims': have the steps lost their names?"
    );
    if failed.is_empty() {
        return lab.down();
    }
    bail!("{} of {tried} crashes:\n{}\n{}", failed.len(), failed.join("\n"), host.log_tail(30))
}

/// A step that a shim passes, which is then what ends.
fn of_shim(step: &str) -> bool {
    step.starts_with("shim: ")
}

/// The host with something that must survive everything, and the files that arm the crashes.
pub(crate) struct Rig<'a> {
    pub host: &'a Host,
    steps: String,
    tar: String,
    /// What there is while only the survivor is there.
    quiet: BTreeMap<&'static str, BTreeSet<String>>,
    survivor: String,
}

impl<'a> Rig<'a> {
    pub fn make(host: &'a Host) -> Result<Self> {
        lab::registry::start(host, 5000, &[])?;
        for (number, text) in ["one", "two"].iter().enumerate() {
            let line = format!("echo {text} > /tmp/{text}");
            let from = if number == 0 { "httpd".to_owned() } else { format!("{REGISTRY}/app:1") };
            host.docker(&["run", "--name", "layer", &from, "sh", "-c", &line])?;
            host.dk(&format!("commit layer {REGISTRY}/app:1"))?;
            host.dk("rm layer")?;
        }
        host.dk(&format!("push -q {REGISTRY}/app:1"))?;
        let tar = host.folder.join("app.tar").display().to_string();
        host.dk(&format!("save -o {tar} {REGISTRY}/app:1"))?;
        host.dk(&format!("rmi {REGISTRY}/app:1"))?;
        host.dk("image prune -f")?;
        host.dk("volume create --opt type=tmpfs --opt device=tmpfs fast")?;
        host.dk("network create side")?;
        let survivor =
            host.dk("run -d --name survivor -v kept:/kept -v fast:/fast -p 8080:80 httpd")?;
        host.docker(&["exec", "survivor", "sh", "-c", "echo kept > /kept/f; echo fast > /fast/f"])?;
        let steps = host.folder.join("steps");
        fs::create_dir_all(&steps)?;
        let mut rig =
            Rig { host, steps: steps.display().to_string(), tar, quiet: BTreeMap::new(), survivor };
        host.stop()?;
        rig.start_again()?;
        // A volume with a device is the same one for whoever comes after a restart.
        is(host, "run --rm -v fast:/fast httpd cat /fast/f", "fast")?;
        rig.quiet = rig.seen()?;
        Ok(rig)
    }

    fn start_again(&self) -> Result<()> {
        self.arm("")?;
        if self.host.answers() {
            return Ok(());
        }
        self.host.start_with(&[], &[("SKEP_STEPS", &self.steps)])
    }

    fn arm(&self, crash: &str) -> Result<()> {
        fs::write(format!("{}/crash", self.steps), crash)?;
        fs::write(format!("{}/passed", self.steps), "")?;
        Ok(())
    }

    /// Does the operation undisturbed and tells the steps that it passed.
    fn steps(&self, operation: &Operation) -> Result<Vec<String>> {
        (operation.before)(self.host)?;
        self.arm("")?;
        self.host.docker(&self.words(operation))?;
        let passed = fs::read_to_string(format!("{}/passed", self.steps))?;
        (operation.acknowledged)(self.host)?;
        self.clear()?;
        self.compare()?;
        let long = std::env::var_os("E2E_LONG").is_some();
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        let mut steps = Vec::new();
        // The resolver's steps are tried in `crash_resolver`.
        for name in passed.lines().filter(|name| !name.starts_with("resolver: ")) {
            let count = counts.entry(name).or_default();
            *count += 1;
            if *count == 1 || long {
                steps.push(format!("{name}#{count}"));
            }
        }
        Ok(steps)
    }

    fn crash(&self, operation: &Operation, step: &str) -> Result<()> {
        (operation.before)(self.host)?;
        let pid = self.host.daemon_pid()?;
        self.arm(step)?;
        let words = self.words(operation);
        let acknowledged = self.host.try_docker(&words)?.status.success();
        if of_shim(step) {
            self.without_shim(step)?;
        } else {
            self.without_daemon(operation, acknowledged, &pid)?;
        }
        // What is left must belong to what is shown.
        wait_until(SETTLE_MAX, || Ok(self.unexplained()?.is_empty()))
            .with_context(|| format!("left behind: {:?}", self.unexplained()))?;
        self.survivor_is_well()?;
        // The user tries again, or goes on.
        if !acknowledged {
            let again = self.host.try_docker(&words)?;
            let said = String::from_utf8_lossy(&again.stderr).into_owned();
            let fine = [
                "already in use by container",
                "No such container",
                "No such image",
                "already exists in network side",
                "is not connected to network side",
            ];
            ensure!(
                again.status.success() || fine.iter().any(|text| said.contains(text)),
                "the second try: {said}"
            );
            (operation.acknowledged)(self.host).context("after the second try")?;
        }
        self.clear()?;
        self.compare()
    }

    /// The daemon has ended itself and starts again.
    fn without_daemon(&self, operation: &Operation, acknowledged: bool, pid: &str) -> Result<()> {
        wait_until(SETTLE_MAX, || Ok(self.host.exec(&["kill", "-0", pid]).is_err()))
            .context("the daemon did not come to this step")?;
        self.start_again().context("the next start")?;
        if acknowledged {
            (operation.acknowledged)(self.host).context("acknowledged and lost")?;
        }
        Ok(())
    }

    /// A shim has ended itself; the daemon goes on, and its container is gone as with the Docker Engine.
    fn without_shim(&self, step: &str) -> Result<()> {
        let (name, number) = step.rsplit_once('#').context("a step has a number")?;
        let passed = || fs::read_to_string(format!("{}/passed", self.steps));
        let times =
            || -> Result<usize> { Ok(passed()?.lines().filter(|line| *line == name).count()) };
        wait_until(SETTLE_MAX, || Ok(times()? >= number.parse()?))
            .context("no shim came to this step")?;
        self.arm("")?;
        let running = || self.host.dk("ps -q --filter name=victim");
        wait_until(SETTLE_MAX, || Ok(running()?.is_empty()))
            .context("a container without a shim is told as running")?;
        let shown = self.host.dk("ps -a --filter name=victim --format {{.Status}}")?;
        let told = ["Created", "Exited (7)", "Exited (128)", "Exited (137)"];
        ensure!(
            shown.is_empty() || told.iter().any(|text| shown.starts_with(text)),
            "victim: {shown}"
        );
        Ok(())
    }

    pub fn words<'b>(&'b self, operation: &Operation) -> Vec<&'b str> {
        let word = |word: &'static str| if word == "TAR" { self.tar.as_str() } else { word };
        operation.command.split(' ').map(word).collect()
    }

    /// Only the survivor again.
    pub fn clear(&self) -> Result<()> {
        self.host.try_docker(&["rm", "-f", "-v", "victim"])?;
        self.host.try_docker(&["rmi", "-f", &format!("{REGISTRY}/app:1")])?;
        // A second try of an import takes the name from what the first one made.
        self.host.dk("image prune -f")?;
        let others = self.host.dk("ps -aq --no-trunc")?;
        ensure!(others == self.survivor, "containers are left: {others}");
        Ok(())
    }

    pub fn compare(&self) -> Result<()> {
        let mut found = self.seen()?;
        let end = std::time::Instant::now() + SETTLE_MAX;
        while found != self.quiet && std::time::Instant::now() < end {
            std::thread::sleep(Duration::from_millis(100));
            found = self.seen()?;
        }
        for (kind, things) in &found {
            let before = &self.quiet[kind];
            ensure!(
                things == before,
                "{kind}: too many {:?}, missing {:?}",
                things.difference(before).collect::<Vec<_>>(),
                before.difference(things).collect::<Vec<_>>()
            );
        }
        Ok(())
    }

    /// What is there beyond the quiet state and is not the visible victim's or image's.
    pub fn unexplained(&self) -> Result<Vec<String>> {
        let victim = self.host.dk("ps -aq --no-trunc --filter name=victim")?;
        let running = self.host.dk("ps -q --no-trunc --filter name=victim")?;
        let volumes = self.host.dk("volume ls -q --filter dangling=false")?;
        let image = !self.host.dk(&format!("images -q {REGISTRY}/app"))?.is_empty();
        let mut left = Vec::new();
        for (kind, things) in self.seen()? {
            // Some names have the short id only.
            let of_victim = |thing: &String, id: &str| id.len() >= 12 && thing.contains(&id[..12]);
            for thing in things.difference(&self.quiet[kind]) {
                let explained = match kind {
                    "containers" | "root file systems" => of_victim(thing, &victim),
                    "volumes" => volumes.lines().any(|name| name == thing),
                    "links" | "namespaces" | "mounts" | "shims" | "cgroups" | "bundles" => {
                        of_victim(thing, &running) || kind == "links" && !running.is_empty()
                    }
                    "layers" | "images" | "blobs" => image,
                    _ => false,
                };
                if !explained {
                    left.push(format!("{kind}: {thing}"));
                }
            }
        }
        Ok(left)
    }

    pub fn survivor_is_well(&self) -> Result<()> {
        let host = self.host;
        is(host, "exec survivor cat /kept/f", "kept")?;
        is(host, "exec survivor cat /fast/f", "fast")?;
        let page = host.sh(&format!("curl -sS --max-time 5 http://{}:8080/", host.address))?;
        ensure!(page == lab::image::IT_WORKS, "the survivor's port: {page}");
        Ok(())
    }

    /// Everything on the host that an operation makes, by kind.
    pub fn seen(&self) -> Result<BTreeMap<&'static str, BTreeSet<String>>> {
        let host = self.host;
        let below = |path: &str| -> BTreeSet<String> {
            let entries = fs::read_dir(host.folder.join(path)).into_iter().flatten().flatten();
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        };
        let folder = host.folder.display().to_string();
        let table = host.exec(&["cat", "/proc/self/mountinfo"])?;
        let points = table.lines().filter_map(|line| line.split(' ').nth(4));
        let mounts = points.filter(|point| point.starts_with(&folder)).map(str::to_owned);
        let links = host.sh("ip -o link")?;
        let veths = links.split_whitespace().filter(|word| word.starts_with("veth")).count();
        let shims = host.exec(&["ps", "-eo", "args"])?;
        let shims = shims.lines().filter(|line| line.contains(" shim ")).map(str::to_owned);
        Ok(BTreeMap::from([
            ("containers", below("data/containers")),
            ("root file systems", below("data/image/rootfs")),
            ("volumes", below("data/volumes")),
            ("layers", below("data/image/layers")),
            ("images", below("data/image/images")),
            ("blobs", below("data/image/distribution")),
            ("downloads", below("data/image/download")),
            ("bundles", below("exec/containers")),
            ("namespaces", below("exec/netns")),
            ("mounts", mounts.collect()),
            ("links", (0..veths).map(|number| format!("veth {number}")).collect()),
            ("shims", shims.collect()),
            ("cgroups", self.cgroups()?),
        ]))
    }

    /// Control groups of this host's containers: those that have a shim's or a record's id.
    fn cgroups(&self) -> Result<BTreeSet<String>> {
        // Groups of other hosts come and go meanwhile, which find calls an error.
        let found = output(std::process::Command::new("find").args([
            "/sys/fs/cgroup",
            "-maxdepth",
            "4",
            "-type",
            "d",
            "-path",
            "*docker/*",
        ]))?;
        let found = String::from_utf8_lossy(&found.stdout).into_owned();
        let ids = self.ids()?;
        let names = found.lines().filter_map(|path| path.rsplit('/').next());
        Ok(names.filter(|name| ids.contains(*name)).map(str::to_owned).collect())
    }

    /// Every container id that has been seen on this host: other hosts share its control groups.
    fn ids(&self) -> Result<BTreeSet<String>> {
        let file = self.host.folder.join("ids");
        let mut ids: BTreeSet<String> =
            fs::read_to_string(&file).unwrap_or_default().lines().map(str::to_owned).collect();
        for folder in ["data/containers", "exec/containers"] {
            for entry in fs::read_dir(self.host.folder.join(folder)).into_iter().flatten().flatten()
            {
                ids.insert(entry.file_name().to_string_lossy().into_owned());
            }
        }
        fs::write(&file, ids.iter().map(|id| format!("{id}\n")).collect::<String>())?;
        Ok(ids)
    }
}
