//! Room for filters in new namespaces, on the real kernel.

mod support;

use netplan::{Sandbox, SandboxId, View};
use support::{Host, stdout};

#[test]
fn a_container_s_loopback_has_room_for_filters_and_the_host_s_has_none() {
    let host = Host::new("room");
    let mut view = View::default();
    let bare = Sandbox { links: vec![], resolver: None, published: vec![], ingress: vec![] };
    view.sandboxes.insert(SandboxId("one".into()), bare);
    host.apply(&view);
    let room = stdout(&host.exec_in("one", "tc qdisc show dev lo"));
    assert!(room.contains("clsact"), "{room}");
    let room = stdout(&host.exec("tc qdisc show dev lo"));
    assert!(!room.contains("clsact"), "the host's own is left alone: {room}");
}

#[test]
fn only_a_kernel_without_room_for_filters_is_not_asked_again() {
    let refused = |errno| netlink::filter::is_unknown(&std::io::Error::from_raw_os_error(errno));
    assert!(refused(libc::ENOENT) && refused(libc::EOPNOTSUPP));
    for passing in [libc::ENOMEM, libc::ENOBUFS, libc::EAGAIN, libc::EEXIST] {
        assert!(!refused(passing), "{passing}");
    }
}
