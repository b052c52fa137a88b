//! The program that answers questions in the kernel: it turns a question round into its reply.
//!
//! It runs where packets come in from the loopback device, after those who watch (`tcpdump`) have
//! seen the question, and sends the reply out by the same device, where they see it as well. The
//! asker's own system call carries both ways: the reply waits in its socket when `sendto` returns.
//!
//! Whatever is not exactly a question that the resolver answered goes on to the resolver untouched.

use super::assembler::*;
use super::{MESSAGE_BYTES_MIN, QUESTION_BYTES_MAX, REPLY_BYTES_MAX, VALUE_HEADER};

/// The maps that the program uses, by their file descriptors.
#[derive(Clone, Copy, Debug)]
pub struct Maps {
    /// From [`super::key`] to [`super::value`].
    pub entries: i32,
    /// One number: the generation of the names that are in use.
    pub generation: i32,
    /// One number for each processor: questions answered.
    pub answered: i32,
}

/// Fields of the kernel's `struct __sk_buff`.
const SKB_LENGTH: i16 = 0;
const SKB_PROTOCOL: i16 = 16;

/// A field of the kernel's `struct bpf_sock`.
const SOCKET_PRIORITY: i16 = 20;

/// Helpers by their numbers in the kernel's interface.
const MAP_LOOKUP: i32 = 1;
const STORE_BYTES: i32 = 9;
const REDIRECT: i32 = 23;
const LOAD_BYTES: i32 = 26;
const CHANGE_TAIL: i32 = 38;
const LOOK_UP_UDP_SOCKET: i32 = 85;
const RELEASE_SOCKET: i32 = 86;

/// Addresses and ports of IPv4.
const TUPLE_BYTES: i32 = 12;
const CURRENT_NAMESPACE: i32 = -1;
/// The hash of the packet's old addresses must not be used for the new ones.
const INVALIDATE_HASH: i32 = 2;
/// On to whatever filter comes next, and then to the socket.
const VERDICT_NEXT: i32 = -1;
const VERDICT_DROP: i32 = 2;
/// The loopback device is the first of every namespace.
const LOOPBACK: i32 = 1;

const ETHERNET: i32 = 14;
/// From the IP header to the end of the message's id: what is read at once and written back at once.
const HEADERS: i32 = 20 + 8 + 2;

/// The headers on the stack, and the places in them.
const HEAD: i16 = -32;
const IP_VERSION_AND_SERVICE: i16 = HEAD;
const IP_LENGTH: i16 = HEAD + 2;
const IP_FRAGMENT: i16 = HEAD + 6;
const IP_PROTOCOL: i16 = HEAD + 9;
const IP_CHECKSUM: i16 = HEAD + 10;
const IP_SOURCE: i16 = HEAD + 12;
const IP_DESTINATION: i16 = HEAD + 16;
const UDP_SOURCE: i16 = HEAD + 20;
const UDP_DESTINATION: i16 = HEAD + 22;
const UDP_LENGTH: i16 = HEAD + 24;
const UDP_CHECKSUM: i16 = HEAD + 26;
/// The key on the stack, below the headers.
const KEY: i16 = HEAD - super::KEY_BYTES as i16;
/// The number of the only element of an array.
const FIRST: i16 = KEY - 8;
/// The sum of the addresses and the protocol, kept for the reply.
const PSEUDO_SUM: i16 = KEY - 16;
/// The generation that was in use before the entry was looked up.
const GENERATION: i16 = KEY - 24;
/// The entry's reply, as long as the longest.
const REPLY: i16 = GENERATION - REPLY_BYTES_MAX as i16;

const UDP: u8 = 17;
const DNS_PORT: u16 = 53;

/// A 16-bit field in the network's order, as a load in the machine's order gives it.
fn half(value: u16) -> i32 {
    i32::from(u16::from_ne_bytes(value.to_be_bytes()))
}

/// The program for the sandbox whose resolver listens on this port of 127.0.0.11. Askers have sent
/// their questions to port 53 of it: nftables leads them on, and this program answers from there.
/// It speaks for the socket of this signature alone, which is the socket's priority.
pub fn assemble(maps: Maps, port: u16, signature: i32) -> Option<Vec<u8>> {
    let mut code = Assembler::new();
    let pass = code.label();
    // R6: the packet. R7: its length. R8: the length of a message without its id. R9: the entry.
    code.copy(R6, R1);
    accept_questions_only(&mut code, port, pass);
    look_up(&mut code, maps, pass);
    copy_reply(&mut code, maps, pass);
    socket_must_live(&mut code, signature, pass);
    write_headers(&mut code, pass);
    send_reply(&mut code, maps);
    code.bind(pass);
    code.set(R0, VERDICT_NEXT);
    code.exit();
    code.finish()
}

/// Goes on only with an unfragmented UDP packet without IP options from 127.0.0.0/8 to the resolver,
/// as long as its headers say, and as a socket of this host has sent it.
fn accept_questions_only(code: &mut Assembler, port: u16, pass: Label) {
    use Compare::{Greater, Less, NotEqual};
    code.load(Size::Word, R2, R6, SKB_PROTOCOL);
    code.jump_if_number(NotEqual, R2, half(0x0800), pass);
    code.load(Size::Word, R7, R6, SKB_LENGTH);
    code.copy(R8, R7);
    code.alu_number(Alu::Sub, R8, ETHERNET + HEADERS);
    code.jump_if_number(Less, R8, MESSAGE_BYTES_MIN as i32, pass);
    // A length below the headers' has become a huge number.
    code.jump_if_number(Greater, R8, QUESTION_BYTES_MAX as i32, pass);

    code.copy(R1, R6);
    code.set(R2, ETHERNET);
    code.stack_address(R3, HEAD);
    code.set(R4, HEADERS);
    code.call(LOAD_BYTES);
    code.jump_if_number(NotEqual, R0, 0, pass);

    code.load(Size::Half, R1, FRAME, IP_VERSION_AND_SERVICE);
    code.jump_if_number(NotEqual, R1, half(0x4500), pass);
    code.load(Size::Half, R1, FRAME, IP_FRAGMENT);
    // All but "don't fragment".
    code.alu_number(Alu::And, R1, half(0xbfff));
    code.jump_if_number(NotEqual, R1, 0, pass);
    code.load(Size::Byte, R1, FRAME, IP_PROTOCOL);
    code.jump_if_number(NotEqual, R1, i32::from(UDP), pass);
    code.load(Size::Word, R1, FRAME, IP_DESTINATION);
    code.jump_if_number(NotEqual, R1, i32::from_ne_bytes([127, 0, 0, 11]), pass);
    code.load(Size::Half, R1, FRAME, UDP_DESTINATION);
    code.jump_if_number(NotEqual, R1, half(port), pass);
    code.load(Size::Byte, R1, FRAME, IP_SOURCE);
    code.jump_if_number(NotEqual, R1, 127, pass);
    length_must_be(code, IP_LENGTH, ETHERNET, pass);
    length_must_be(code, UDP_LENGTH, ETHERNET + 20, pass);
    checksum_must_be_left_open(code, pass);
}

/// The field says how long the packet is without its first bytes.
fn length_must_be(code: &mut Assembler, field: i16, before: i32, pass: Label) {
    code.load(Size::Half, R1, FRAME, field);
    code.swap_half(R1);
    code.alu_number(Alu::Add, R1, before);
    code.jump_if(Compare::NotEqual, R1, R7, pass);
}

/// A socket's packet to this host bears the checksum of addresses, protocol and length only: the rest
/// would be added by a device that sends it on. Any other packet is for the kernel to verify.
fn checksum_must_be_left_open(code: &mut Assembler, pass: Label) {
    code.set(R2, half(u16::from(UDP)));
    for field in [IP_SOURCE, IP_SOURCE + 2, IP_DESTINATION, IP_DESTINATION + 2] {
        code.load(Size::Half, R1, FRAME, field);
        code.alu(Alu::Add, R2, R1);
    }
    code.store(Size::Double, FRAME, PSEUDO_SUM, R2);
    code.load(Size::Half, R1, FRAME, UDP_LENGTH);
    code.alu(Alu::Add, R2, R1);
    fold(code);
    code.load(Size::Half, R1, FRAME, UDP_CHECKSUM);
    code.jump_if(Compare::NotEqual, R1, R2, pass);
}

/// R2, a sum of 16-bit words, in 16 bits; RFC 1071. Uses R1.
fn fold(code: &mut Assembler) {
    for _ in 0..2 {
        code.copy(R1, R2);
        code.alu_number(Alu::ShiftRight, R1, 16);
        code.alu_number(Alu::And, R2, 0xffff);
        code.alu(Alu::Add, R2, R1);
    }
}

/// R9 becomes the entry, R8 the reply's length. Goes on only with one of the names in use.
fn look_up(code: &mut Assembler, maps: Maps, pass: Label) {
    use Compare::{Equal, Greater, Less, NotEqual};
    code.store_number(Size::Double, FRAME, FIRST, 0);
    first_of(code, maps.generation, pass);
    code.load(Size::Double, R1, R0, 0);
    code.store(Size::Double, FRAME, GENERATION, R1);

    for at in (KEY..HEAD).step_by(8) {
        code.store_number(Size::Double, FRAME, at, 0);
    }
    code.store(Size::Word, FRAME, KEY, R8);
    code.copy(R1, R6);
    code.set(R2, ETHERNET + HEADERS);
    code.stack_address(R3, KEY + 4);
    code.copy(R4, R8);
    code.call(LOAD_BYTES);
    code.jump_if_number(NotEqual, R0, 0, pass);

    code.load_map(R1, maps.entries);
    code.stack_address(R2, KEY);
    code.call(MAP_LOOKUP);
    code.jump_if_number(Equal, R0, 0, pass);
    code.copy(R9, R0);

    code.load(Size::Double, R1, FRAME, GENERATION);
    code.load(Size::Double, R2, R9, 0);
    code.jump_if(NotEqual, R1, R2, pass);

    code.load(Size::Word, R8, R9, 8);
    code.jump_if_number(Less, R8, MESSAGE_BYTES_MIN as i32, pass);
    code.jump_if_number(Greater, R8, REPLY_BYTES_MAX as i32, pass);
}

/// Takes the reply off the entry. The kernel gives the memory of a removed entry to the next one at
/// once, whoever reads it: what was read is this question's reply only if the generation is still the
/// one from before the look-up, for it changes before any entry is removed and again before the next is made.
fn copy_reply(code: &mut Assembler, maps: Maps, pass: Label) {
    for at in (0..REPLY_BYTES_MAX as i16).step_by(8) {
        code.load(Size::Double, R1, R9, VALUE_HEADER as i16 + at);
        code.store(Size::Double, FRAME, REPLY + at, R1);
    }
    first_of(code, maps.generation, pass);
    code.load(Size::Double, R1, R0, 0);
    code.load(Size::Double, R2, FRAME, GENERATION);
    code.jump_if(Compare::NotEqual, R1, R2, pass);
}

/// Entries are worth what their process is worth. One that has died has no socket; its successor's,
/// on the same port, has another signature, and no entry here follows the successor's names.
fn socket_must_live(code: &mut Assembler, signature: i32, pass: Label) {
    code.copy(R1, R6);
    // Both addresses and both ports, as they stand in the headers.
    code.stack_address(R2, IP_SOURCE);
    code.set(R3, TUPLE_BYTES);
    code.set(R4, CURRENT_NAMESPACE);
    code.set(R5, 0);
    code.call(LOOK_UP_UDP_SOCKET);
    code.jump_if_number(Compare::Equal, R0, 0, pass);
    code.load(Size::Word, R7, R0, SOCKET_PRIORITY);
    code.copy(R1, R0);
    code.call(RELEASE_SOCKET);
    code.jump_if_number(Compare::NotEqual, R7, signature, pass);
}

/// R0 becomes the address of an array's only element.
fn first_of(code: &mut Assembler, map: i32, pass: Label) {
    code.load_map(R1, map);
    code.stack_address(R2, FIRST);
    code.call(MAP_LOOKUP);
    code.jump_if_number(Compare::Equal, R0, 0, pass);
}

/// Makes the headers on the stack the reply's, and the packet as long as the reply.
fn write_headers(code: &mut Assembler, pass: Label) {
    // The IP header's sum changes by its length alone, for the addresses only change places (RFC 1624).
    code.load(Size::Half, R2, FRAME, IP_CHECKSUM);
    code.alu_number(Alu::Xor, R2, 0xffff);
    code.load(Size::Half, R1, FRAME, IP_LENGTH);
    code.alu_number(Alu::Xor, R1, 0xffff);
    code.alu(Alu::Add, R2, R1);
    length_becomes(code, IP_LENGTH, HEADERS);
    code.alu(Alu::Add, R2, R1);
    fold(code);
    code.alu_number(Alu::Xor, R2, 0xffff);
    code.store(Size::Half, FRAME, IP_CHECKSUM, R2);

    code.load(Size::Double, R2, FRAME, PSEUDO_SUM);
    length_becomes(code, UDP_LENGTH, HEADERS - 20);
    code.alu(Alu::Add, R2, R1);
    fold(code);
    code.store(Size::Half, FRAME, UDP_CHECKSUM, R2);

    code.load(Size::Word, R1, FRAME, IP_SOURCE);
    code.load(Size::Word, R2, FRAME, IP_DESTINATION);
    code.store(Size::Word, FRAME, IP_SOURCE, R2);
    code.store(Size::Word, FRAME, IP_DESTINATION, R1);
    code.load(Size::Half, R1, FRAME, UDP_SOURCE);
    code.store(Size::Half, FRAME, UDP_DESTINATION, R1);
    code.store_number(Size::Half, FRAME, UDP_SOURCE, half(DNS_PORT));

    code.copy(R1, R6);
    code.copy(R2, R8);
    code.alu_number(Alu::Add, R2, ETHERNET + HEADERS);
    code.set(R3, 0);
    code.call(CHANGE_TAIL);
    // The packet is as it was.
    code.jump_if_number(Compare::NotEqual, R0, 0, pass);
}

/// The field, and R1, become the length of the reply with so much before it, in the network's order.
fn length_becomes(code: &mut Assembler, field: i16, before: i32) {
    code.copy(R1, R8);
    code.alu_number(Alu::Add, R1, before);
    code.swap_half(R1);
    code.store(Size::Half, FRAME, field, R1);
}

/// Writes the reply into the packet, which has room for it now, and sends it back.
fn send_reply(code: &mut Assembler, maps: Maps) {
    // From here on the packet is neither question nor reply: what cannot be written is lost, as any
    // packet may be, and asked for again.
    let lost = code.label();
    let counted = code.label();
    code.copy(R1, R6);
    code.set(R2, ETHERNET + HEADERS);
    code.stack_address(R3, REPLY);
    code.copy(R4, R8);
    code.set(R5, 0);
    code.call(STORE_BYTES);
    code.jump_if_number(Compare::NotEqual, R0, 0, lost);
    code.copy(R1, R6);
    code.set(R2, ETHERNET);
    code.stack_address(R3, HEAD);
    code.set(R4, HEADERS);
    code.set(R5, INVALIDATE_HASH);
    code.call(STORE_BYTES);
    code.jump_if_number(Compare::NotEqual, R0, 0, lost);

    first_of(code, maps.answered, counted);
    code.load(Size::Double, R1, R0, 0);
    code.alu_number(Alu::Add, R1, 1);
    code.store(Size::Double, R0, 0, R1);
    code.bind(counted);
    code.set(R1, LOOPBACK);
    code.set(R2, 0);
    code.call(REDIRECT);
    code.exit();

    code.bind(lost);
    code.set(R0, VERDICT_DROP);
    code.exit();
}
