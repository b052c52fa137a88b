//! Volumes, bind mounts and tmpfs in all their forms.

use std::fs;

use anyhow::{Result, ensure};
use e2e::{answers, cases, hosts, refused};
use lab::command::run;
use lab::{Host, Lab};

#[test]
fn volumes_and_mounts() -> Result<()> {
    let lab = hosts(1)?;
    cases(
        &lab,
        &[
            ("the local driver mounts what its options name", the_local_drivers_options),
            ("bad volumes are refused", bad_volumes_are_refused),
            ("anonymous volumes go with their container", anonymous_volumes_go_when_asked),
            ("prune takes what is asked for", prune_takes_what_is_asked_for),
            ("a volume is filled once, and not with nocopy", a_volume_is_filled_once),
            ("volumes of another container", volumes_of_another_container),
            ("every form of --mount", every_form_of_mount),
            ("bind mounts propagate as asked", bind_mounts_propagate),
            ("bad mounts are refused", bad_mounts_are_refused),
            ("read-only means read-only", read_only_means_read_only),
        ],
    )
}

fn shell(host: &Host, options: &[&str], script: &str) -> Result<String> {
    host.docker(&[&["run", "--rm"], options, &["httpd", "sh", "-c", script]].concat())
}

fn the_local_drivers_options(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("volume create --opt type=tmpfs --opt device=tmpfs --opt o=size=1m,nosuid fast")?;
    answers(
        host,
        "volume inspect -f {{.Options.o}}/{{.Driver}}/{{.Scope}} fast",
        "size=1m,nosuid/local/local",
    )?;
    let shown =
        shell(host, &["-v", "fast:/fast"], "df -k /fast | tail -1; grep ' /fast ' /proc/mounts")?;
    ensure!(
        shown.contains("1024") && shown.contains("tmpfs") && shown.contains("nosuid"),
        "{shown}"
    );
    let folder = host.folder.join("bound");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("f"), "bound\n")?;
    let device = format!("device={}", folder.display());
    host.docker(&[
        "volume",
        "create",
        "--opt",
        "type=none",
        "--opt",
        "o=bind",
        "--opt",
        &device,
        "bound",
    ])?;
    answers(host, "run --rm -v bound:/b httpd cat /b/f", "bound")?;
    host.dk("volume create --opt type=none --opt o=bind --opt device=/no/such/place nowhere")?;
    refused(host, "run --rm -v nowhere:/n httpd true", "no such file or directory").or_else(
        |_| refused(host, "run --rm -v nowhere:/n httpd true", "No such file or directory"),
    )?;
    host.dk("volume create --label kind=test --label empty named")?;
    answers(host, "volume ls -q --filter label=kind=test", "named")?;
    // The same name again is the same volume.
    answers(host, "volume create named", "named")?;
    host.dk("volume rm fast bound nowhere named").map(drop)
}

fn bad_volumes_are_refused(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let before = host.dk("volume ls -q")?;
    refused(host, "volume create a", "volume name is too short")?;
    refused(host, "volume create bad/name", "includes invalid characters for a local volume name")?;
    refused(host, "volume create --opt colour=red x1", "invalid option: \"colour\"")
        .or_else(|_| refused(host, "volume create --opt colour=red x1", "invalid option"))?;
    refused(host, "volume create --opt type=tmpfs x1", "missing device in volume options")
        .or_else(|_| {
            refused(
                host,
                "volume create --opt type=tmpfs x1",
                "missing required option: \"device\"",
            )
        })?;
    refused(host, "volume create -d nodriver x1", "nodriver")?;
    refused(host, "volume inspect nothing", "no such volume")?;
    refused(host, "volume rm nothing", "no such volume")?;
    host.dk("volume rm -f nothing")?;
    answers(host, "volume ls -q", &before)
}

fn anonymous_volumes_go_when_asked(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let count = || -> Result<usize> { Ok(host.dk("volume ls -q")?.lines().count()) };
    let before = count()?;
    host.dk("run --rm -v /data httpd touch /data/f")?;
    ensure!(count()? == before, "--rm leaves the volume");
    host.dk("run --name kept -v /data -v named:/n httpd touch /data/f")?;
    host.dk("rm -v kept")?;
    ensure!(count()? == before + 1, "rm -v removes only what has no name");
    host.dk("run --name kept -v /data httpd true")?;
    host.dk("rm kept")?;
    ensure!(count()? == before + 2, "rm alone leaves the volume");
    // A create that fails takes back what it made.
    let output =
        host.try_docker(&["create", "-v", "/data", "--volumes-from", "nobody", "httpd"])?;
    ensure!(!output.status.success());
    let output = host.try_docker(&[
        "create",
        "-v",
        "/data",
        "--mount",
        "type=volume,dst=/v,volume-driver=nodriver",
        "httpd",
    ])?;
    ensure!(!output.status.success());
    ensure!(count()? == before + 2, "a failed create left a volume");
    host.dk("volume rm named")?;
    host.dk("volume prune -f")?;
    ensure!(count()? == before);
    Ok(())
}

fn prune_takes_what_is_asked_for(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("volume create --label keep=yes one")?;
    host.dk("volume create two")?;
    host.dk("create --name user -v used:/u httpd")?;
    let anonymous = host.dk("volume create")?;
    let all = |filter: &str| host.dk(&format!("volume prune -f {filter}"));
    // Since API 1.42 only volumes without a name go unless asked; the Docker Engine here has 1.41.
    if host.engine == lab::Engine::Skep {
        let said = all("")?;
        ensure!(said.contains(&anonymous) && !said.contains("two"), "{said}");
        let said = all("-a --filter label!=keep")?;
        ensure!(said.contains("two") && !said.contains("one"), "{said}");
        let said = all("-a --filter label=keep=yes")?;
        ensure!(said.contains("one") && said.contains("Total reclaimed space: 0B"), "{said}");
    } else {
        all("--filter label!=keep")?;
        all("--filter label=keep=yes")?;
    }
    answers(host, "volume ls -q", "used")?;
    refused(host, "volume rm used", "volume is in use - [")?;
    host.dk("rm user")?;
    host.dk("volume rm used").map(drop)
}

fn a_volume_is_filled_once(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let page = "run --rm -v pages:/www httpd cat /www/index.html";
    answers(host, page, lab::image::IT_WORKS)?;
    shell(host, &["-v", "pages:/www"], "echo mine > /www/index.html")?;
    answers(host, page, "mine")?;
    // Owner and mode of the image's directory too.
    let modes = shell(host, &["-v", "other:/tmp"], "stat -c %a /tmp")?;
    ensure!(modes == "1777", "{modes}");
    answers(host, "run --rm -v empty:/www:nocopy httpd ls /www", "")?;
    answers(
        host,
        "run --rm --mount type=volume,src=bare,dst=/www,volume-nocopy httpd ls /www",
        "",
    )?;
    host.dk("volume rm pages other empty bare").map(drop)
}

fn volumes_of_another_container(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let folder = host.folder.join("from");
    fs::create_dir_all(&folder)?;
    let bind = format!("{}:/bound:ro", folder.display());
    host.docker(&[
        "create",
        "--name",
        "source",
        "-v",
        "shared:/shared",
        "-v",
        &bind,
        "-v",
        "/anon",
        "httpd",
    ])?;
    shell(host, &["--volumes-from", "source"], "echo there > /shared/f && echo x > /anon/f")?;
    let said = shell(
        host,
        &["--volumes-from", "source:ro"],
        "cat /shared/f; touch /shared/g || echo refused",
    )?;
    ensure!(said.starts_with("there") && said.contains("refused"), "{said}");
    let output = host.try_docker(&[
        "run",
        "--rm",
        "--volumes-from",
        "source",
        "httpd",
        "touch",
        "/bound/f",
    ])?;
    ensure!(!output.status.success(), "a read-only bind mount became writable");
    refused(host, "create --volumes-from nobody httpd", "nobody")?;
    refused(host, "create --volumes-from source:maybe httpd", "maybe")?;
    host.dk("rm -v source")?;
    host.dk("volume rm shared").map(drop)
}

fn every_form_of_mount(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let folder = host.folder.join("mounted");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("f"), "host\n")?;
    let bind = format!("type=bind,source={},target=/b,readonly", folder.display());
    let said = shell(host, &["--mount", &bind], "cat /b/f; touch /b/g || echo refused")?;
    ensure!(said.starts_with("host") && said.contains("refused"), "{said}");
    let volume = "type=volume,source=labelled,target=/v,volume-label=a=b";
    shell(host, &["--mount", volume], "echo in > /v/f")?;
    answers(host, "volume ls -q --filter label=a=b", "labelled")?;
    let driver = "type=volume,source=small,target=/v,volume-driver=local,volume-opt=type=tmpfs,volume-opt=device=tmpfs,\"volume-opt=o=size=1m\"";
    let said = shell(host, &["--mount", driver], "df -k /v | tail -1")?;
    ensure!(said.contains("1024"), "{said}");
    let tmpfs = "type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1770";
    let said = shell(host, &["--mount", tmpfs], "stat -c %a /t; df -k /t | tail -1")?;
    ensure!(said.starts_with("1770") && said.contains("1024"), "{said}");
    let said =
        shell(host, &["--tmpfs", "/t:size=1m,mode=700"], "stat -c %a /t; df -k /t | tail -1")?;
    ensure!(said.starts_with("700") && said.contains("1024"), "{said}");
    let anonymous = "type=volume,target=/v";
    shell(host, &["--mount", anonymous], "touch /v/f")?;
    host.dk("create --name shown -v labelled:/v:ro --mount type=tmpfs,target=/t httpd")?;
    let format = "{{range .Mounts}}{{.Type}}:{{.Name}}:{{.Destination}}:{{.RW}} {{end}}";
    let shown = host.docker(&["inspect", "-f", format, "shown"])?;
    ensure!(
        shown.contains("volume:labelled:/v:false") && shown.contains("tmpfs::/t:true"),
        "{shown}"
    );
    host.dk("rm shown")?;
    host.dk("volume rm labelled small").map(drop)
}

/// Makes a mount below a shared directory of the host, in its mount namespace.
fn bind_mounts_propagate(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let folder = host.folder.join("shared");
    let at = folder.display().to_string();
    fs::create_dir_all(folder.join("sub"))?;
    host.exec(&["mount", "-t", "tmpfs", "shared", &at])?;
    host.exec(&["mount", "--make-rshared", &at])?;
    host.exec(&["mkdir", &format!("{at}/sub"), &format!("{at}/inner")])?;
    let done = propagate(host, &at);
    host.exec(&["umount", "-R", &at])?;
    done
}

fn propagate(host: &Host, at: &str) -> Result<()> {
    for (mode, sees) in [
        ("rprivate", false),
        ("private", false),
        ("rslave", true),
        ("slave", true),
        ("rshared", true),
        ("shared", true),
    ] {
        let option = format!("{at}:/s:{mode}");
        host.docker(&["run", "-d", "--name", "looker", "-v", &option, "httpd"])?;
        host.exec(&["mount", "-t", "tmpfs", "late", &format!("{at}/sub")])?;
        host.exec(&["touch", &format!("{at}/sub/late")])?;
        let seen = host.dk("exec looker ls /s/sub")? == "late";
        let shown =
            host.docker(&["inspect", "-f", "{{(index .Mounts 0).Propagation}}", "looker"])?;
        host.dk("rm -f looker")?;
        host.exec(&["umount", &format!("{at}/sub")])?;
        ensure!(seen == sees, "{mode}: a later mount was {}seen", if seen { "" } else { "not " });
        ensure!(shown == mode, "inspect shows {shown} for {mode}");
    }
    // What a container mounts reaches the host only where it is shared.
    for (mode, reaches) in [("rslave", false), ("rshared", true)] {
        let option = format!("{at}:/s:{mode}");
        host.docker(&[
            "run",
            "-d",
            "--name",
            "maker",
            "--cap-add",
            "SYS_ADMIN",
            "--security-opt",
            "seccomp=unconfined",
            "-v",
            &option,
            "httpd",
        ])?;
        host.dk("exec maker mount -t tmpfs made /s/inner")?;
        host.dk("exec maker touch /s/inner/made")?;
        let seen = host.exec(&["ls", &format!("{at}/inner")])? == "made";
        host.dk("exec maker umount /s/inner")?;
        host.dk("rm -f maker")?;
        ensure!(seen == reaches, "{mode}: the container's mount");
    }
    refused(host, &format!("create -v {at}:/s:rsometimes httpd"), "invalid mode")
}

fn bad_mounts_are_refused(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let before = (host.dk("ps -aq")?, host.dk("volume ls -q")?);
    for (line, expected) in [
        (
            "--mount type=bind,src=/no/such/place,dst=/s",
            "bind source path does not exist: /no/such/place",
        ),
        ("--mount type=bind,src=/tmp,dst=/", "destination can't be '/'"),
        ("--mount type=tmpfs,src=/x,dst=/s", "ource"),
        ("-v /tmp:relative", "relative"),
        ("-v /tmp:/s:fast", "invalid mode"),
        ("-v /tmp:/s -v data:/s", "Duplicate mount point: /s"),
        ("-v a?b:/s", "includes invalid characters for a local volume name"),
        ("--tmpfs relative", "relative"),
    ] {
        refused(host, &format!("create {line} httpd"), expected)?;
    }
    ensure!(before == (host.dk("ps -aq")?, host.dk("volume ls -q")?), "something was made");
    Ok(())
}

fn read_only_means_read_only(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let output = host.try_docker(&["run", "--rm", "-v", "ro:/r:ro", "httpd", "touch", "/r/f"])?;
    ensure!(!output.status.success(), "a read-only volume was written to");
    let said =
        shell(host, &["--read-only", "-v", "ro:/r", "--tmpfs", "/t"], "touch /r/f /t/f && ls /r")?;
    ensure!(said == "f", "{said}");
    // -v makes a missing directory on the host, --mount does not.
    let missing = host.folder.join("made-by-v");
    host.dk(&format!("run --rm -v {}:/m httpd ls /m", missing.display()))?;
    ensure!(missing.is_dir());
    run(std::process::Command::new("rmdir").arg(&missing))?;
    host.dk("volume rm ro").map(drop)
}
