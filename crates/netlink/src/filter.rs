//! Traffic control, as far as one program at the entrance of the loopback device needs it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::message::{Message, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};

const RTM_NEWQDISC: u16 = 36;
const RTM_NEWTFILTER: u16 = 44;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
/// The program's result is the verdict itself.
const DIRECT_ACTION: u32 = 1;

/// The queueing discipline that only holds filters.
const CLSACT_HANDLE: u32 = 0xffff_0000;
const CLSACT_PARENT: u32 = 0xffff_fff1;
const INGRESS: u32 = 0xffff_fff2;
/// The loopback device is the first of every namespace.
const LOOPBACK: i32 = 1;

/// Ours among the filters of this priority: it is found, replaced and removed by these alone.
const HANDLE: u32 = u32::from_be_bytes(*b"skep");
const PRIORITY: u32 = 53;
const ETH_P_IP: u16 = 0x0800;

/// Room for filters of the loopback device in a namespace that nobody uses yet. Made while the device
/// is down: on one that is up, every packet on its way would be lost, and the host's whole network
/// configuration would wait for the kernel's readers.
pub fn room() -> Message {
    let mut message = Message::new(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL).body(&header(
        CLSACT_HANDLE,
        CLSACT_PARENT,
        0,
    ));
    message.put_str(TCA_KIND, "clsact");
    message
}

/// Whether a kernel that refuses [`room`] so will never make any: it has no `clsact`, or no traffic control at all.
pub fn is_unknown(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EOPNOTSUPP))
}

/// Makes the program the filter of the loopback device, in place of one that is there already.
pub fn attach(program: BorrowedFd<'_>) -> Message {
    let mut message = Message::new(RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_REPLACE)
        .body(&header(HANDLE, INGRESS, PRIORITY));
    message.put_str(TCA_KIND, "bpf");
    message.begin(TCA_OPTIONS);
    message.put_u32(TCA_BPF_FD, program.as_raw_fd() as u32);
    message.put_str(TCA_BPF_NAME, "skep-names");
    message.put_u32(TCA_BPF_FLAGS, DIRECT_ACTION);
    message.end();
    message
}

/// `struct tcmsg`.
fn header(handle: u32, parent: u32, priority: u32) -> [u8; 20] {
    let protocol = u32::from(ETH_P_IP.to_be());
    let info = if priority == 0 { 0 } else { priority << 16 | protocol };
    let mut header = [0; 20];
    header[4..8].copy_from_slice(&LOOPBACK.to_ne_bytes());
    header[8..12].copy_from_slice(&handle.to_ne_bytes());
    header[12..16].copy_from_slice(&parent.to_ne_bytes());
    header[16..20].copy_from_slice(&info.to_ne_bytes());
    header
}
