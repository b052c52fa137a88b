//! LZW as Go's `compress/lzw` writes it: least significant bit first, literals of 8 bits, codes of 9
//! to 12. Written here because push/pulls and bulk syncs of large clusters are mostly this: a table of
//! 64 KiB that is asked once a byte takes a fifth of the time of a general encoder.

/// Forget all strings.
const CLEAR: u32 = 256;
const END: u32 = 257;
/// The last code that is never given: where it would be, the strings are forgotten.
const CODES_MAX: u32 = (1 << 12) - 1;
const SLOTS: usize = 1 << 14;
/// Codes in the low bits of a slot, and what they stand for above.
const CODE_BITS: u32 = 12;
/// No string has the code 0.
const EMPTY: u32 = 0;

struct Encoder {
    out: Vec<u8>,
    bits: u64,
    held: u32,
    /// The code that was given last, and how wide codes are.
    last: u32,
    width: u32,
    slots: Box<[u32]>,
}

pub fn encode(input: &[u8]) -> Vec<u8> {
    let out = Vec::with_capacity(input.len() / 2 + 16);
    let slots = vec![EMPTY; SLOTS].into_boxed_slice();
    let mut encoder = Encoder { out, bits: 0, held: 0, last: END, width: 9, slots };
    encoder.write(CLEAR);
    let mut bytes = input.iter().map(|byte| u32::from(*byte));
    if let Some(mut string) = bytes.next() {
        for byte in bytes {
            // A string is its beginning's code and its last byte.
            match encoder.find(string << 8 | byte) {
                Ok(code) => string = code,
                Err(slot) => {
                    encoder.write(string);
                    encoder.add(slot, string << 8 | byte);
                    string = byte;
                }
            }
        }
        encoder.write(string);
        // The reader counts one more string, too.
        encoder.next_code();
    }
    encoder.write(END);
    encoder.finish()
}

impl Encoder {
    /// A string's code, or the slot for it.
    fn find(&self, string: u32) -> Result<u32, usize> {
        let mut slot = (string.wrapping_mul(0x9e37_79b1) >> 18) as usize % SLOTS;
        loop {
            match self.slots[slot] {
                EMPTY => return Err(slot),
                held if held >> CODE_BITS == string => return Ok(held & CODES_MAX),
                _ => slot = (slot + 1) % SLOTS,
            }
        }
    }

    fn add(&mut self, slot: usize, string: u32) {
        if let Some(code) = self.next_code() {
            self.slots[slot] = string << CODE_BITS | code;
        }
    }

    fn next_code(&mut self) -> Option<u32> {
        self.last += 1;
        if self.last == 1 << self.width {
            self.width += 1;
        }
        if self.last == CODES_MAX {
            self.write(CLEAR);
            (self.last, self.width) = (END, 9);
            self.slots.fill(EMPTY);
            return None;
        }
        Some(self.last)
    }

    fn write(&mut self, code: u32) {
        self.bits |= u64::from(code) << self.held;
        self.held += self.width;
        while self.held >= 8 {
            self.out.push(self.bits as u8);
            self.bits >>= 8;
            self.held -= 8;
        }
    }

    fn finish(mut self) -> Vec<u8> {
        if self.held > 0 {
            self.out.push(self.bits as u8);
        }
        self.out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use weezl::{BitOrder, decode::Decoder, encode};

    use super::*;

    /// Of few different bytes, so that strings are long and codes run out.
    fn text() -> impl Strategy<Value = Vec<u8>> {
        (1u8..=255, 0usize..60_000, any::<u64>()).prop_map(|(kinds, length, seed)| {
            let mut state = seed | 1;
            let mut next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 33) as u8 % kinds
            };
            (0..length).map(|_| next()).collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_written_is_read_and_is_what_another_encoder_writes(text in text()) {
            let packed = encode(&text);
            prop_assert_eq!(Decoder::new(BitOrder::Lsb, 8).decode(&packed).unwrap(), text.clone());
            let other = encode::Encoder::new(BitOrder::Lsb, 8).encode(&text).unwrap();
            // The two forget their strings at other places, and what comes then suits the one or the other.
            let few = 16 + other.len() / 50;
            prop_assert!(packed.len() <= other.len() + few, "{} {}", packed.len(), other.len());
        }
    }

    #[test]
    fn a_text_at_each_change_of_the_width_is_read() {
        let mut text = Vec::new();
        for number in 0..5_000u32 {
            assert_eq!(Decoder::new(BitOrder::Lsb, 8).decode(&encode(&text)).unwrap(), text);
            text.push((number.wrapping_mul(2_654_435_761) >> 24) as u8);
        }
    }
}
