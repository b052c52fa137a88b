//! Namespaces and resolver processes for tests, and what askers do.
#![allow(dead_code)]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use dns::Zone;
use netlink::socket::{Family, Socket};
use resolver::{Client, Ports, Sandbox};
use rustix::process::Signal;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace of this test, removed at its end.
pub struct Namespace(String);

impl Namespace {
    pub fn new(purpose: &str) -> Self {
        let name = format!("skep-dns-{purpose}-{}", std::process::id());
        ip(&["netns", "add", &name]);
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        Self(name)
    }

    /// As a container's is made: with room for filters.
    pub fn with_room(purpose: &str) -> Self {
        let name = format!("skep-dns-{purpose}-{}", std::process::id());
        ip(&["netns", "add", &name]);
        let namespace = Self(name);
        namespace.inside(|| {
            let mut socket = Socket::open(Family::Route).unwrap();
            socket.request(netlink::filter::room()).unwrap();
        });
        ip(&["-n", &namespace.0, "link", "set", "lo", "up"]);
        namespace
    }

    /// Leads port 53 to the resolver's own, as in a container.
    pub fn redirect(&self, ports: Ports) {
        let ports = netplan::ResolverPorts { udp: ports.udp, tcp: ports.tcp };
        let mut table = netplan::Table::default();
        table.chains.push(netplan::desired::sandbox::redirect_names(ports));
        self.inside(|| {
            let mut socket = Socket::open(Family::Netfilter).unwrap();
            socket.transaction(netlink::nft::replace(Some(&table))).unwrap();
        });
    }

    /// What a program says inside.
    pub fn says(&self, words: &[&str]) -> String {
        let mut all = vec!["netns", "exec", self.0.as_str()];
        all.extend(words);
        let output = Command::new("ip").args(all).output().unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn path(&self) -> PathBuf {
        Path::new("/var/run/netns").join(&self.0)
    }

    pub fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    let file = File::open(self.path()).unwrap();
                    move_into_link_name_space(
                        std::os::fd::AsFd::as_fd(&file),
                        Some(LinkNameSpaceType::Network),
                    )
                    .unwrap();
                    act()
                })
                .join()
                .unwrap()
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        ip(&["netns", "delete", &self.0]);
    }
}

pub fn ip(arguments: &[&str]) {
    assert!(Command::new("ip").args(arguments).status().unwrap().success(), "ip {arguments:?}");
}

pub fn program() -> PathBuf {
    let target = std::env::current_exe().unwrap();
    target.parent().unwrap().parent().unwrap().join("examples/process")
}

/// The process, ended with the test.
pub struct Process {
    pub root: tempfile::TempDir,
    pub client: Client,
}

impl Process {
    pub fn start() -> Self {
        let root = tempfile::tempdir().unwrap();
        let client = Client::new(&program(), root.path());
        client.ensure().unwrap();
        Self { root, client }
    }

    pub fn id(&self) -> Option<String> {
        let wanted = self.root.path().to_str().unwrap().to_owned();
        std::fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            let ours = line.split(|byte| *byte == 0).any(|word| word == wanted.as_bytes());
            // A dead process keeps its entry, without a command line, until it is waited for.
            ours.then(|| entry.file_name().into_string().unwrap())
        })
    }

    /// Until the process has written down something that it was told.
    pub fn until_written(&self, text: &str) {
        let state = self.root.path().join("resolver/state.json");
        while !std::fs::read_to_string(&state).unwrap_or_default().contains(text) {
            std::thread::yield_now();
        }
    }

    pub fn signal(&self, signal: Signal) {
        let Some(id) = self.id() else { return };
        let id = rustix::process::Pid::from_raw(id.parse().unwrap()).unwrap();
        rustix::process::kill_process(id, signal).unwrap();
    }

    pub fn kill(&self) {
        self.signal(Signal::KILL);
        while self.id().is_some() {
            std::thread::yield_now();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn question(name: &str, kind: u16) -> Vec<u8> {
    let mut bytes = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.extend_from_slice(&[0, 0, kind as u8, 0, 1]);
    bytes
}

pub fn ask(namespace: &Namespace, port: u16, packet: &[u8]) -> Vec<u8> {
    namespace.inside(|| {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket.send_to(packet, ("127.0.0.11", port)).unwrap();
        let mut buffer = vec![0; 4_096];
        let length = socket.recv(&mut buffer).unwrap();
        buffer.truncate(length);
        buffer
    })
}

pub fn ask_tcp(namespace: &Namespace, port: u16, packet: &[u8]) -> Vec<u8> {
    namespace.inside(|| {
        let mut stream = TcpStream::connect(("127.0.0.11", port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(&(packet.len() as u16).to_be_bytes()).unwrap();
        stream.write_all(packet).unwrap();
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut reply).unwrap();
        reply
    })
}

/// The last four bytes: the address of the last record of an A reply.
pub fn last_address(reply: &[u8]) -> IpAddr {
    let octets: [u8; 4] = reply[reply.len() - 4..].try_into().unwrap();
    IpAddr::from(octets)
}

pub fn zone(address: &str) -> Zone {
    let mut zone = Zone::new("front");
    zone.add("web", address.parse().unwrap());
    zone
}

pub fn sandbox(namespace: &Namespace) -> Sandbox {
    Sandbox { netns: namespace.path(), zones: vec!["net1".into()], ..Sandbox::default() }
}
