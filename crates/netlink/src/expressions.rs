//! The expressions of an nf_tables rule, appended one after another.

use crate::message::Message;

pub const REG_1: u32 = 1;
pub const REG_2: u32 = 2;

const BASE_LINK: u32 = 0;
const BASE_NETWORK: u32 = 1;
const BASE_TRANSPORT: u32 = 2;

pub struct SetId {
    pub number: u32,
    pub name: &'static str,
}

pub struct Expressions {
    message: Message,
}

impl Expressions {
    /// `message` has the rule's list of expressions open.
    pub fn new(message: Message) -> Self {
        Self { message }
    }

    pub fn into_message(self) -> Message {
        self.message
    }

    fn expression(&mut self, name: &str, content: impl FnOnce(&mut Message)) {
        self.message.begin(1);
        self.message.put_str(1, name);
        self.message.begin(2);
        content(&mut self.message);
        self.message.end();
        self.message.end();
    }

    fn load_meta(&mut self, key: u32) {
        self.expression("meta", |m| {
            m.put_u32_be(2, key);
            m.put_u32_be(1, REG_1);
        });
    }

    pub fn store_meta(&mut self, key: u32) {
        self.expression("meta", |m| {
            m.put_u32_be(2, key);
            m.put_u32_be(3, REG_1);
        });
    }

    pub fn load_ct(&mut self, key: u32) {
        self.expression("ct", |m| {
            m.put_u32_be(2, key);
            m.put_u32_be(1, REG_1);
        });
    }

    pub fn store_ct(&mut self, key: u32) {
        self.expression("ct", |m| {
            m.put_u32_be(2, key);
            m.put_u32_be(4, REG_1);
        });
    }

    fn load_payload(&mut self, base: u32, offset: u32, length: u32) {
        self.expression("payload", |m| {
            m.put_u32_be(1, REG_1);
            m.put_u32_be(2, base);
            m.put_u32_be(3, offset);
            m.put_u32_be(4, length);
        });
    }

    pub fn load_network(&mut self, offset: u32, length: u32) {
        self.load_payload(BASE_NETWORK, offset, length);
    }

    pub fn load_transport(&mut self, offset: u32, length: u32) {
        self.load_payload(BASE_TRANSPORT, offset, length);
    }

    /// Writes the first register into the transport header, and mends the checksum there.
    pub fn store_transport(&mut self, offset: u32, length: u32, (kind, checksum): (u32, u32)) {
        self.expression("payload", |m| {
            m.put_u32_be(5, REG_1);
            m.put_u32_be(2, BASE_TRANSPORT);
            m.put_u32_be(3, offset);
            m.put_u32_be(4, length);
            m.put_u32_be(6, kind);
            m.put_u32_be(7, checksum);
        });
    }

    /// No flow is made or looked up for the packet.
    pub fn untracked(&mut self) {
        self.expression("notrack", |_| {});
    }

    pub fn load_source_mac(&mut self) {
        self.load_payload(BASE_LINK, 6, 6);
    }

    /// Its last 16 bits.
    pub fn load_source_mac_end(&mut self) {
        self.load_payload(BASE_LINK, 10, 2);
    }

    /// The zone in which the first direction of the packet's flow is looked up; before that happens.
    pub fn store_original_zone(&mut self) {
        const CT_ZONE: u32 = 17;
        const DIRECTION_ORIGINAL: u8 = 0;
        self.expression("ct", |m| {
            m.put_u32_be(2, CT_ZONE);
            m.put_u8(3, DIRECTION_ORIGINAL);
            m.put_u32_be(4, REG_1);
        });
    }

    pub fn compare(&mut self, register: u32, value: &[u8], equal: bool) {
        self.expression("cmp", |m| {
            m.put_u32_be(1, register);
            m.put_u32_be(2, if equal { 0 } else { 1 });
            m.begin(3);
            m.put(1, value);
            m.end();
        });
    }

    pub fn mask(&mut self, mask: &[u8]) {
        self.expression("bitwise", |m| {
            m.put_u32_be(1, REG_1);
            m.put_u32_be(2, REG_1);
            m.put_u32_be(3, mask.len() as u32);
            m.begin(4);
            m.put(1, mask);
            m.end();
            m.begin(5);
            m.put(1, &vec![0; mask.len()]);
            m.end();
        });
    }

    pub fn meta_equals(&mut self, key: u32, value: &[u8], equal: bool) {
        self.load_meta(key);
        self.compare(REG_1, value, equal);
    }

    /// `meta nfproto`
    pub fn family(&mut self, v4: bool) {
        const META_NFPROTO: u32 = 15;
        let number = if v4 { libc::NFPROTO_IPV4 } else { libc::NFPROTO_IPV6 };
        self.meta_equals(META_NFPROTO, &[number as u8], true);
    }

    pub fn load_protocol(&mut self) {
        const META_L4PROTO: u32 = 16;
        self.load_meta(META_L4PROTO);
    }

    pub fn protocol(&mut self, number: u8) {
        self.load_protocol();
        self.compare(REG_1, &[number], true);
    }

    /// Any of the bits is set.
    pub fn ct_bits(&mut self, key: u32, bits: u32) {
        self.load_ct(key);
        self.mask(&bits.to_ne_bytes());
        self.compare(REG_1, &0u32.to_ne_bytes(), false);
    }

    /// The address is one of this namespace's own.
    pub fn fib_local(&mut self, source: bool) {
        const RESULT_ADDRTYPE: u32 = 3;
        const RTN_LOCAL: u32 = 2;
        self.expression("fib", |m| {
            m.put_u32_be(1, REG_1);
            m.put_u32_be(2, RESULT_ADDRTYPE);
            m.put_u32_be(3, if source { 1 } else { 2 });
        });
        self.compare(REG_1, &RTN_LOCAL.to_ne_bytes(), true);
    }

    pub fn immediate(&mut self, register: u32, value: &[u8]) {
        self.expression("immediate", |m| {
            m.put_u32_be(1, register);
            m.begin(2);
            m.put(1, value);
            m.end();
        });
    }

    pub fn verdict(&mut self, code: i32, chain: Option<&str>) {
        self.expression("immediate", |m| {
            m.put_u32_be(1, 0);
            m.begin(2);
            put_verdict(m, code, chain);
            m.end();
        });
    }

    /// The address is in the first register.
    pub fn nat(&mut self, destination: bool, v4: bool, port: Option<u32>) {
        let family = if v4 { libc::NFPROTO_IPV4 } else { libc::NFPROTO_IPV6 };
        self.expression("nat", |m| {
            m.put_u32_be(1, u32::from(destination));
            m.put_u32_be(2, family as u32);
            m.put_u32_be(3, REG_1);
            if let Some(port) = port {
                m.put_u32_be(5, port);
            }
        });
    }

    pub fn masquerade(&mut self) {
        self.expression("masq", |_| {});
    }

    pub fn redirect(&mut self) {
        self.expression("redir", |m| m.put_u32_be(1, REG_1));
    }

    pub fn reject(&mut self, kind: u32, code: u8) {
        self.expression("reject", |m| {
            m.put_u32_be(1, kind);
            m.put_u8(2, code);
        });
    }

    /// One after another, into the first register.
    pub fn numgen(&mut self, modulus: u32) {
        self.expression("numgen", |m| {
            m.put_u32_be(1, REG_1);
            m.put_u32_be(2, modulus);
            m.put_u32_be(3, 0);
            m.put_u32_be(4, 0);
        });
    }

    pub fn lookup(&mut self, set: &SetId, from: u32, to: Option<u32>) {
        self.expression("lookup", |m| {
            m.put_str(1, set.name);
            m.put_u32_be(2, from);
            if let Some(to) = to {
                m.put_u32_be(3, to);
            }
            m.put_u32_be(4, set.number);
        });
    }
}

pub fn put_verdict(message: &mut Message, code: i32, chain: Option<&str>) {
    message.begin(2);
    message.put_u32_be(1, code as u32);
    if let Some(chain) = chain {
        message.put_str(2, chain);
    }
    message.end();
}
