//! The images of a lab, made on the spot from the machine's static busybox; nothing is downloaded.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::command::sh;

/// What the document's `httpd` answers.
pub const IT_WORKS: &str = "<html><body><h1>It works!</h1></body></html>";

/// The command of the `httpd` image, in Dockerfile form.
pub const HTTPD_COMMAND: &str = r#"CMD ["httpd","-f","-p","80","-h","/www"]"#;

/// Writes `httpd.tar`, a root file system with busybox, a page and a script that tells who asked.
pub fn httpd(folder: &Path) -> Result<PathBuf> {
    let root = folder.join("httpd-root");
    for name in ["bin", "www/cgi-bin", "etc", "tmp", "proc", "sys", "dev"] {
        fs::create_dir_all(root.join(name))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    fs::copy(busybox()?, root.join("bin/busybox"))?;
    // `httpd` and all others; a link of its own name would hide the program.
    for applet in sh("busybox --list")?.lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/:/bin/sh\nwww:x:33:33:www:/www:/bin/sh\n",
    )?;
    fs::write(root.join("etc/group"), "root:x:0:\nwww:x:33:\n")?;
    fs::write(root.join("www/index.html"), format!("{IT_WORKS}\n"))?;
    let script = root.join("www/cgi-bin/addr");
    fs::write(
        &script,
        "#!/bin/sh\necho 'Content-Type: text/plain'\necho\necho \"$REMOTE_ADDR $(hostname)\"\n",
    )?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let tar = folder.join("httpd.tar");
    sh(&format!("tar --owner=0 --group=0 -C {} -cf {} .", root.display(), tar.display()))?;
    Ok(tar)
}

/// Writes `NAME.tar`: the `httpd` image with one more program, and the libraries that it needs.
pub fn with_program(folder: &Path, program: &Path) -> Result<PathBuf> {
    let name = program.file_name().context("a program has a name")?.to_string_lossy();
    let (root, tar) = (folder.join(format!("{name}-root")), folder.join(format!("{name}.tar")));
    sh(&format!("cp -a {} {}", folder.join("httpd-root").display(), root.display()))?;
    fs::copy(program, root.join("bin").join(&*name))
        .with_context(|| format!("{} is not built: cargo build --bins", program.display()))?;
    let needed = sh(&format!("ldd {}", program.display()))?;
    for library in needed.split_whitespace().filter(|word| word.starts_with('/')) {
        let inside = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(inside.parent().unwrap_or(&root))?;
        fs::copy(library, inside)?;
    }
    sh(&format!("tar --owner=0 --group=0 -C {} -cf {} .", root.display(), tar.display()))?;
    Ok(tar)
}

/// The machine's busybox, which needs no libraries.
pub fn busybox() -> Result<&'static Path> {
    ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .map(Path::new)
        .find(|path| path.exists())
        .context("busybox is missing: install the package busybox-static")
}
