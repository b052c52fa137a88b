//! Questions to the embedded resolver.

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use dns::{Answer, Carrier, Code, Names, Zone};

/// RFC 1035 section 2.3.4; with EDNS at most what the asker said.
const UDP_BYTES_MAX: usize = 4_096;
const TCP_BYTES_MAX: usize = 65_535;

static NAMES: LazyLock<Names> = LazyLock::new(|| {
    let mut zone = Zone::new("net");
    for n in 0..200u8 {
        zone.add("many", IpAddr::from([10, 0, 0, n]));
    }
    zone.add("web", IpAddr::from([10, 0, 1, 2]));
    zone.add("web", IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 2]));
    zone.point(IpAddr::from([10, 0, 1, 2]), "web.1");
    Names { own: Zone::default(), zones: vec![Arc::new(zone)], upstreams: Vec::new() }
});

/// A packet of either carrier: whatever is replied repeats the question's id and fits.
pub fn message(data: &[u8]) {
    let query = match dns::message::parse(data) {
        Ok(query) => query,
        Err(reject) => {
            if let Some(reply) = reject.reply() {
                check(data, &reply, UDP_BYTES_MAX);
            }
            return;
        }
    };
    for (carrier, most) in [(Carrier::Udp, UDP_BYTES_MAX), (Carrier::Tcp, TCP_BYTES_MAX)] {
        let reply = match dns::answer(&NAMES, &query.question) {
            Answer::Addresses(addresses) => query.reply_addresses(&addresses, carrier).bytes,
            Answer::Pointers(names) => query.reply_pointers(&names, carrier).bytes,
            Answer::Forward | Answer::Refuse => query.reply(Code::Refused),
        };
        check(data, &reply, most);
    }
}

fn check(asked: &[u8], reply: &[u8], most: usize) {
    assert!(reply.len() >= 12 && reply.len() <= most, "a reply of {} bytes", reply.len());
    assert_eq!(reply[..2], asked[..2], "the id is the question's");
    assert!(reply[2] & 0x80 != 0, "a reply says that it is one");
    assert_eq!(dns::message::parse(reply), Err(dns::Reject::Drop), "a reply asks nothing");
}
