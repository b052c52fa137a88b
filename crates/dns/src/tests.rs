//! Tables of questions and answers, and bytes that mean nothing.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use proptest::prelude::*;

use crate::message::parse;
use crate::*;

fn names(upstream: bool) -> Names {
    let mut web = Zone::new("Front");
    web.add("web", "10.0.1.5".parse().unwrap());
    for task in ["10.0.1.6", "10.0.1.7"] {
        web.add("tasks.web", task.parse().unwrap());
    }
    web.add("web.1.abc", "10.0.1.6".parse().unwrap());
    web.point("10.0.1.6".parse().unwrap(), "web.1.abc");
    web.add("six", "fd00::6".parse().unwrap());
    web.point("fd00::6".parse().unwrap(), "six");
    let mut back = Zone::new("back");
    back.add("web", "10.0.2.9".parse().unwrap());
    back.add("db", "10.0.2.5".parse().unwrap());
    back.add("db", "fd00::5".parse().unwrap());
    let mut own = Zone::default();
    own.add("link", "10.0.1.99".parse().unwrap());
    let server = Upstream { address: "192.0.2.53:53".parse().unwrap(), from_host: false };
    Names {
        own,
        zones: vec![Arc::new(web), Arc::new(back)],
        upstreams: if upstream { vec![server] } else { Vec::new() },
    }
}

fn packet(name: &str, kind: u16) -> Vec<u8> {
    let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.push(label.len() as u8);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&[0, 1]);
    bytes
}

fn kind(word: &str) -> u16 {
    match word {
        "A" => 1,
        "PTR" => 12,
        "MX" => 15,
        "TXT" => 16,
        "AAAA" => 28,
        "SRV" => 33,
        "ANY" => 255,
        other => panic!("unknown type {other}"),
    }
}

fn check(asked: &str, expected: &str) {
    let (word, name) = asked.split_once(' ').unwrap();
    let query = parse(&packet(name, kind(word))).unwrap();
    assert_eq!(format!("{:?}", answer(&names(true), &query.question)), expected, "{asked}");
}

#[test]
fn known_names_have_their_addresses() {
    check("A web", "Addresses([10.0.1.5])");
    check("A WEB.", "Addresses([10.0.1.5])");
    check("A tasks.web", "Addresses([10.0.1.6, 10.0.1.7])");
    check("A web.1.abc", "Addresses([10.0.1.6])");
    check("A db", "Addresses([10.0.2.5])");
    check("AAAA db", "Addresses([fd00::5])");
    check("ANY db", "Addresses([10.0.2.5, fd00::5])");
    check("A link", "Addresses([10.0.1.99])");
}

#[test]
fn a_network_s_name_picks_the_network() {
    check("A web.front", "Addresses([10.0.1.5])");
    check("A web.Back", "Addresses([10.0.2.9])");
    check("A tasks.web.front", "Addresses([10.0.1.6, 10.0.1.7])");
    check("A db.front", "Forward");
}

#[test]
fn a_known_name_without_the_record_is_never_forwarded() {
    check("AAAA web", "Addresses([])");
    check("A six", "Addresses([])");
    check("MX web", "Addresses([])");
    check("SRV web", "Addresses([])");
    check("TXT tasks.web", "Addresses([])");
    check("PTR web", "Addresses([])");
}

#[test]
fn pointers_name_the_task_and_its_network() {
    check("PTR 6.1.0.10.in-addr.arpa", r#"Pointers(["web.1.abc.front"])"#);
    check("PTR 6.1.0.10.IN-ADDR.ARPA", r#"Pointers(["web.1.abc.front"])"#);
    let six = format!("PTR 6.{}d.f.ip6.arpa", "0.".repeat(27) + "0.0.");
    check(&six, r#"Pointers(["six.front"])"#);
    check("A 6.1.0.10.in-addr.arpa", "Addresses([])");
    check("PTR 7.1.0.10.in-addr.arpa", "Forward");
    check("PTR 1.0.10.in-addr.arpa", "Forward");
    check("PTR 6.1.0.10.9.in-addr.arpa", "Forward");
}

#[test]
fn the_rest_goes_to_the_servers_or_nowhere() {
    check("A example.org", "Forward");
    check("A front", "Forward");
    check("A .", "Forward");
    let query = parse(&packet("example.org", 1)).unwrap();
    assert_eq!(answer(&names(false), &query.question), Answer::Refuse);
}

#[test]
fn a_reply_repeats_the_question_as_it_was_spelt() {
    let asked = packet("wEb", 1);
    let query = parse(&asked).unwrap();
    let reply = query.reply_addresses(&[Ipv4Addr::new(10, 0, 1, 5).into()], Carrier::Udp).bytes;
    assert_eq!(&reply[..2], &[0x12, 0x34]);
    assert_eq!(&reply[2..12], &[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    assert_eq!(&reply[12..asked.len()], &asked[12..]);
    assert_eq!(&reply[asked.len()..], &[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 3, 0, 4, 10, 0, 1, 5]);
}

#[test]
fn what_does_not_fit_is_cut_and_said() {
    let many: Vec<IpAddr> = (0..1_000u32).map(|n| Ipv4Addr::from(0x0a00_0000 + n).into()).collect();
    let asked = packet("tasks.web", 1);
    let query = parse(&asked).unwrap();
    let small = query.reply_addresses(&many, Carrier::Udp).bytes;
    assert!(small.len() <= 512 && small.len() > 496);
    assert_eq!(small[2] & 2, 2);
    assert_eq!(usize::from(small[7]), (512 - asked.len()) / 16);
    let whole = query.reply_addresses(&many, Carrier::Tcp).bytes;
    assert_eq!(whole[2] & 2, 0);
    assert_eq!(u16::from_be_bytes([whole[6], whole[7]]), 1_000);

    let mut with_edns = asked.clone();
    with_edns[11] = 1;
    with_edns.extend_from_slice(&[0, 0, 41, 0x10, 0, 0, 0, 0, 0, 0, 0]);
    let query = parse(&with_edns).unwrap();
    let reply = query.reply_addresses(&many, Carrier::Udp).bytes;
    assert!(reply.len() <= 4_096 && reply.len() > 4_080 - 16);
    assert_eq!(reply[11], 1);
    assert_eq!(&reply[reply.len() - 11..reply.len() - 8], &[0, 0, 41]);
}

#[test]
fn what_is_no_question_is_refused_or_dropped() {
    assert_eq!(parse(&[0; 11]), Err(Reject::Drop));
    let mut reply = packet("web", 1);
    reply[2] |= 0x80;
    assert_eq!(parse(&reply), Err(Reject::Drop));
    let mut update = packet("web", 1);
    update[2] |= 5 << 3;
    assert_eq!(parse(&update), Err(Reject::Reply { id: 0x1234, code: Code::NotImplemented }));
    let mut two = packet("web", 1);
    two[5] = 2;
    assert_eq!(parse(&two), Err(Reject::Reply { id: 0x1234, code: Code::FormatError }));
    let mut pointing = packet("", 1);
    pointing[12] = 0xc0;
    assert_eq!(parse(&pointing), Err(Reject::Reply { id: 0x1234, code: Code::FormatError }));
    let long = format!("{0}.{0}.{0}.{0}", "a".repeat(63));
    assert!(parse(&packet(&long, 1)).is_err());
    let dotted = [&packet("", 1)[..12], &[3, b'a', b'.', b'b', 0, 0, 1, 0, 1]].concat();
    assert_eq!(parse(&dotted).unwrap().question.name, "a\\046b");
}

proptest! {
    #[test]
    fn no_bytes_cause_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), records in 0u8..4) {
        let _ = parse(&bytes);
        let mut question = packet("web", 1);
        question[11] = records;
        question.extend_from_slice(&bytes);
        if let Ok(query) = parse(&question) {
            let _ = answer(&names(true), &query.question);
            let reply = query.reply_addresses(&[IpAddr::V4(Ipv4Addr::LOCALHOST)], Carrier::Udp).bytes;
            prop_assert!(reply.len() <= 4_096);
        }
    }
}

/// Order by chance, as far as these numbers go.
fn next(numbers: &mut impl Iterator<Item = usize>) -> impl FnMut(usize) -> usize {
    move |bound| numbers.next().unwrap() % bound
}

#[test]
fn a_reply_that_was_kept_serves_the_next_that_asks_the_same() {
    let addresses: Vec<IpAddr> =
        ["10.0.1.6", "10.0.1.7", "10.0.1.8"].map(|text| text.parse().unwrap()).to_vec();
    let mut asked = packet("tasks.web", 1);
    asked[11] = 1;
    asked.extend_from_slice(&[0, 0, 41, 0x10, 0, 0, 0, 0, 0, 0, 0]);
    let fresh = parse(&asked).unwrap().reply_addresses(&addresses, Carrier::Udp);
    let mut kept = Prebuilt::default();
    kept.keep(&asked, fresh.clone());
    asked[..2].copy_from_slice(&[0xab, 0xcd]);
    let reply = kept.get(&asked).unwrap();
    assert_eq!((&reply.bytes[..2], &reply.bytes[2..]), (&[0xab, 0xcd][..], &fresh.bytes[2..]));
    // The last goes to the front, the first to the middle; what stands around them stays.
    reply.shuffle(next(&mut [0, 0].into_iter()));
    let swapped = [addresses[1], addresses[2], addresses[0]];
    let other = parse(&asked).unwrap().reply_addresses(&swapped, Carrier::Udp);
    assert_eq!(kept.get(&asked).unwrap(), &other);
    assert_eq!(kept.get(&packet("web", 1)), None);
    assert_eq!(kept.get(&[1]), None);
    kept.clear();
    assert_eq!(kept.get(&asked), None);
}

#[test]
fn what_was_cut_or_is_long_is_not_kept_and_records_of_two_sizes_keep_their_order() {
    let many: Vec<IpAddr> = (0..99u32).map(|n| Ipv4Addr::from(0x0a00_0000 + n).into()).collect();
    let mut kept = Prebuilt::default();
    let asked = packet("tasks.web", 1);
    kept.keep(&asked, parse(&asked).unwrap().reply_addresses(&many, Carrier::Udp));
    assert_eq!(kept.get(&asked), None);
    let mut long = asked.clone();
    long.resize(400, 0);
    kept.keep(&long, parse(&asked).unwrap().reply_addresses(&many[..1], Carrier::Udp));
    assert_eq!(kept.get(&long), None);
    let both = packet("db", 255);
    let mixed = ["10.0.2.5", "fd00::5"].map(|text| text.parse().unwrap());
    let mut reply = parse(&both).unwrap().reply_addresses(&mixed, Carrier::Udp);
    let before = reply.clone();
    reply.shuffle(|_| panic!("there is nothing to choose"));
    assert_eq!(reply, before);
}

#[test]
fn the_table_of_kept_replies_stays_small() {
    let mut kept = Prebuilt::default();
    for number in 0..10_000 {
        let asked = packet(&format!("name{number}"), 1);
        kept.keep(&asked, parse(&asked).unwrap().reply_addresses(&[], Carrier::Udp));
        assert!(kept.get(&asked).is_some());
    }
    assert!(kept.len() <= 2_048);
}
