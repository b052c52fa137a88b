//! Bytes with known meaning, every message there and back, and bytes that mean nothing.

use proptest::prelude::*;

use super::packet::{compress, decompress, with_checksum};
use super::stream::State;
use super::*;

fn bytes(hex: &str) -> Vec<u8> {
    let digits: String = hex.split_whitespace().collect();
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
        .collect()
}

fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

#[test]
fn an_alive_is_written_as_go_writes_it() {
    let alive = Message::Alive(Alive {
        incarnation: 1,
        node: "0123456789ab".into(),
        address: at("10.99.0.1:7946"),
        meta: Vec::new(),
        vsn: VSN,
    });
    let expected = bytes(
        "04 86 a4 41646472 a4 0a630001 ab 496e6361726e6174696f6e 01 a4 4d657461 a0
         a4 4e6f6465 ac 303132333435363738396162 a4 506f7274 cd 1f0a a3 56736e a6 010502000000",
    );
    assert_eq!(alive.encode(), expected);
    assert_eq!(Message::decode(&expected), Ok(alive));
}

#[test]
fn nil_wider_numbers_and_unknown_fields_are_read() {
    // Node, SeqNo as u64, a nil payload, and an array that this version does not know.
    let ack =
        bytes("02 83 a5 5365714e6f cf 0000000000000007 a7 5061796c6f6164 c0 a1 58 93 01 a1 61 c3");
    assert_eq!(Message::decode(&ack), Ok(Message::Ack { seq: 7, payload: Vec::new() }));
    let str8 = bytes("0b 81 d9 05 5365714e6f 2a");
    assert_eq!(Message::decode(&str8), Ok(Message::Nack { seq: 42 }));
}

fn every_message() -> Vec<Message> {
    let source = Source { address: Some(at("10.0.0.1:7946")), node: "aaaaaaaaaaaa".into() };
    let accusation = Accusation { incarnation: 70_000, node: "b".repeat(40), from: "c".into() };
    vec![
        Message::Ping(Ping { seq: u32::MAX, node: "n".into(), source: source.clone() }),
        Message::IndirectPing {
            seq: 200,
            target: at("[fd00::1]:7946"),
            node: "n".into(),
            nack: true,
            source,
        },
        Message::Ack { seq: 1, payload: vec![0xff; 300] },
        Message::Nack { seq: 1 },
        Message::Suspect(accusation.clone()),
        Message::Dead(accusation),
        Message::Alive(Alive {
            incarnation: 3,
            node: "n".into(),
            address: at("10.0.0.2:7946"),
            meta: vec![0, 255],
            vsn: VSN,
        }),
        Message::User(vec![1, 2, 3]),
    ]
}

#[test]
fn every_message_survives_every_wrapping() {
    let messages = every_message();
    let body = compound(&messages.iter().map(Message::encode).collect::<Vec<_>>());
    for wrapped in [body.clone(), with_checksum(&body), with_checksum(&compress(&body))] {
        assert_eq!(unpack(&wrapped), (messages.clone(), 0));
    }
    let mut flipped = with_checksum(&body);
    flipped[20] ^= 1;
    assert_eq!(unpack(&flipped), (Vec::new(), 1));
}

#[test]
fn one_bad_part_does_not_spoil_the_others() {
    let body = compound(&[Message::Nack { seq: 1 }.encode(), vec![99, 1], vec![]]);
    assert_eq!(unpack(&body), (vec![Message::Nack { seq: 1 }], 2));
}

#[test]
fn go_s_lzw_is_read() {
    // "TOBEORNOTTOBEORTOBEORNOT" by Go's lzw.NewWriter(&buffer, lzw.LSB, 8).
    let text = b"TOBEORNOTTOBEORTOBEORNOT".repeat(200);
    let packed = compress(&text);
    assert!(packed.len() < text.len() / 4);
    assert_eq!(decompress(&packed, text.len()), Ok(text.clone()));
    assert_eq!(decompress(&packed, text.len() - 1), Err(Malformed));
    assert_eq!(decompress(&packed[..packed.len() / 2], text.len()), Err(Malformed));
}

#[test]
fn a_seal_opens_with_its_key_alone_and_vouches_for_the_header() {
    let (ours, theirs) = (Cipher::new(&[1; 16]).unwrap(), Cipher::new(&[2; 16]).unwrap());
    let sealed = seal_packet(&ours, [9; 12], b"plain");
    assert_eq!(sealed.len(), 5 + seal::OVERHEAD_BYTES);
    assert_eq!(open_packet(&[theirs.clone(), ours.clone()], &sealed), Ok(b"plain".to_vec()));
    assert_eq!(open_packet(std::slice::from_ref(&theirs), &sealed), Err(Malformed));
    for bit in 0..sealed.len() * 8 {
        let mut flipped = sealed.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(open_packet(std::slice::from_ref(&ours), &flipped), Err(Malformed));
    }
    let frame = seal_frame(&ours, [9; 12], b"plain");
    assert_eq!(&frame[..5], &[10, 0, 0, 0, 34]);
    assert_eq!(open_frame(std::slice::from_ref(&ours), &frame), Ok(b"plain".to_vec()));
    let mut longer = frame.clone();
    longer[4] += 1;
    longer.push(0);
    assert_eq!(open_frame(&[ours], &longer), Err(Malformed));
}

#[test]
fn streams_there_and_back() {
    let nodes: Vec<NodeState> = (0..100u16)
        .map(|number| NodeState {
            name: format!("{number:012x}"),
            address: at(&format!("10.0.0.{number}:7946")),
            meta: Vec::new(),
            incarnation: u32::from(number),
            state: [State::Alive, State::Suspect, State::Dead, State::Left]
                [usize::from(number % 4)],
            vsn: VSN.to_vec(),
        })
        .collect();
    for message in [
        StreamMessage::PushPull { join: true, nodes, user: vec![7; 1_000] },
        StreamMessage::PushPull { join: false, nodes: Vec::new(), user: Vec::new() },
        StreamMessage::User(vec![1; 70_000]),
        StreamMessage::Ack { seq: 5 },
        StreamMessage::Error("no".into()),
    ] {
        assert_eq!(StreamMessage::decode(&message.encode()), Ok(message));
    }
}

proptest! {
    #[test]
    fn no_bytes_cause_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), first in 0u8..14) {
        let _ = unpack(&bytes);
        let _ = StreamMessage::decode(&bytes);
        let framed = [&[first][..], &bytes].concat();
        let _ = unpack(&framed);
        let _ = StreamMessage::decode(&framed);
        let _ = decompress(&framed, 1 << 20);
        let _ = open_frame(&[Cipher::new(&[0; 16]).unwrap()], &framed);
    }

    #[test]
    fn lzw_gives_back_what_it_took(bytes in proptest::collection::vec(0u8..4, 0..2_000)) {
        prop_assert_eq!(decompress(&compress(&bytes), bytes.len()), Ok(bytes));
    }
}
