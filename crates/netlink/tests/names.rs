//! A cache of replies on the real kernel, filled and emptied while it is asked.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use dns::kernel::{Cache, Caches, Kept};
use netlink::names::{ENTRIES_MAX, KernelCaches};
use netlink::socket::{Family, Socket};
use netlink::{filter, namespace};

const ASKED: u32 = 300_000;

/// A thread in a namespace of its own that ends with it, whose loopback device has room and is up.
fn in_a_new_namespace(act: impl FnOnce() + Send) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("netns");
    let made = namespace::create(&path, || {
        Socket::open(Family::Route)?.request(filter::room())?;
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status()?;
        assert!(up.success());
        act();
        Ok(())
    });
    let _ = namespace::remove(&path);
    made.unwrap();
}

/// A message of one byte, repeated: a question and its reply have the same.
fn message(byte: u8, length: usize) -> Vec<u8> {
    vec![byte; length]
}

/// The kernel gives the memory of a removed entry to the next one at once, also while a processor reads it.
#[test]
fn no_question_gets_another_s_reply_while_entries_come_and_go() {
    in_a_new_namespace(|| {
        let caches = KernelCaches::default();
        let server = UdpSocket::bind("127.0.0.11:0").unwrap();
        caches.sign(server.as_fd()).unwrap();
        let port = server.local_addr().unwrap().port();
        let cache = caches.attach(port).unwrap();
        let asker = UdpSocket::bind("127.0.0.1:0").unwrap();
        asker.set_nonblocking(true).unwrap();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| fill_and_empty(&*cache, &over));
            let answered = ask(&asker, port);
            over.store(true, Ordering::SeqCst);
            let (answered, wrong) = answered;
            assert_eq!(wrong, 0, "of {answered} replies");
            assert!(answered > 100, "{answered} replies: nothing was tried");
            assert_eq!(caches.answered(), answered);
        });
    });
}

/// Keeping and forgetting costs more than the process's own answer.
#[test]
fn more_names_than_there_is_room_for_do_not_push_each_other_out() {
    in_a_new_namespace(|| {
        let caches = KernelCaches::default();
        let server = UdpSocket::bind("127.0.0.11:0").unwrap();
        caches.sign(server.as_fd()).unwrap();
        let cache = caches.attach(server.local_addr().unwrap().port()).unwrap();
        let question = |number: usize| [&number.to_be_bytes()[..], &message(1, 40)].concat();
        let keep = |number: usize| cache.keep(&question(number), &message(1, 60));
        for number in 0..ENTRIES_MAX {
            assert_eq!(keep(number), Kept::Now, "{number}");
        }
        for number in ENTRIES_MAX..2 * ENTRIES_MAX {
            assert_eq!(keep(number), Kept::Not, "{number}");
        }
        assert_eq!(keep(0), Kept::Before);
        cache.clear().unwrap();
        assert_eq!(keep(0), Kept::Now, "new names have all the room");
    });
}

fn fill_and_empty(cache: &dyn Cache, over: &AtomicBool) {
    let mut byte = 0u8;
    while !over.load(Ordering::SeqCst) {
        byte = (byte + 1) % 2;
        let kept = cache.keep(&message(byte, 40), &message(byte, 60 + usize::from(byte) * 80));
        assert_eq!(kept, Kept::Now);
        cache.clear().unwrap();
    }
}

/// How many questions were answered, and how many of them with anything but their own reply.
fn ask(asker: &UdpSocket, port: u16) -> (u64, u64) {
    let (mut answered, mut wrong) = (0, 0);
    for number in 0..ASKED {
        let byte = (number / 2 % 2) as u8;
        asker.send_to(&message(byte, 40), ("127.0.0.11", port)).unwrap();
        let mut reply = [0; 512];
        // What the kernel answers is there when the question has been sent.
        match asker.recv(&mut reply) {
            Ok(length) => {
                answered += 1;
                let right = reply[..length] == message(byte, 60 + usize::from(byte) * 80);
                wrong += u64::from(!right);
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    (answered, wrong)
}

#[test]
fn a_cache_says_nothing_for_a_socket_that_was_silenced() {
    in_a_new_namespace(|| {
        let caches = KernelCaches::default();
        let server = UdpSocket::bind("127.0.0.11:0").unwrap();
        caches.sign(server.as_fd()).unwrap();
        let port = server.local_addr().unwrap().port();
        let cache = caches.attach(port).unwrap();
        assert_eq!(cache.keep(&message(0, 40), &message(0, 60)), Kept::Now);
        let asker = UdpSocket::bind("127.0.0.1:0").unwrap();
        asker.set_nonblocking(true).unwrap();
        let is_answered = || {
            asker.send_to(&message(0, 40), ("127.0.0.11", port)).unwrap();
            asker.recv(&mut [0; 512]).is_ok()
        };
        assert!(is_answered());
        caches.silence(server.as_fd()).unwrap();
        assert!(!is_answered());
    });
}

/// Pages of a pipe become the packet: nothing of the question lies where the kernel keeps headers.
#[test]
fn a_question_in_pages_of_its_own_is_answered_like_any_other() {
    in_a_new_namespace(|| {
        let caches = KernelCaches::default();
        let server = UdpSocket::bind("127.0.0.11:0").unwrap();
        caches.sign(server.as_fd()).unwrap();
        let port = server.local_addr().unwrap().port();
        let cache = caches.attach(port).unwrap();
        let mut table = netplan::Table::default();
        let ports = netplan::ResolverPorts { udp: port, tcp: port };
        table.chains.push(netplan::desired::sandbox::redirect_names(ports));
        let mut firewall = Socket::open(Family::Netfilter).unwrap();
        firewall.transaction(netlink::nft::replace(Some(&table))).unwrap();
        let asker = UdpSocket::bind("127.0.0.1:0").unwrap();
        asker.set_nonblocking(true).unwrap();
        asker.connect("127.0.0.11:53").unwrap();
        for (byte, length) in [(0, 170), (1, 12)] {
            let (question, reply) = (message(byte, 40), message(byte, length));
            assert_eq!(cache.keep(&question, &reply), Kept::Now);
            let (out, into) = rustix::pipe::pipe().unwrap();
            rustix::io::write(&into, &question).unwrap();
            let flags = rustix::pipe::SpliceFlags::empty();
            assert_eq!(rustix::pipe::splice(&out, None, &asker, None, 40, flags), Ok(40));
            let mut got = [0xff; 512];
            let length = asker.recv(&mut got).unwrap();
            assert_eq!(got[..length], reply);
        }
    });
}
