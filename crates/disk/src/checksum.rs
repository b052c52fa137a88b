//! CRC-32 of any part of a text, after one look at each byte.
//!
//! A checksum is a remainder of polynomials, so that of a part follows from those of the two beginnings around it:
//! `crc(B) = crc(AB) - crc(A) * x^(8 * length of B)` (as zlib's `crc32_combine`).

use std::ops::Range;

/// CRC-32 (IEEE), its lowest bit the highest power.
const POLYNOMIAL: u32 = 0xEDB8_8320;
/// The polynomial 1.
const ONE: u32 = 1 << 31;

/// Checksums of a text's beginnings.
pub(crate) struct Prefixes {
    /// Where each ends, in order, and its checksum.
    sums: Vec<(usize, u32)>,
    /// `x^(2^k)`; the powers repeat after these.
    powers: [u32; 32],
}

impl Prefixes {
    /// Of the beginnings that end at `ends`, none beyond the text, in any order.
    pub fn of(text: &[u8], ends: impl IntoIterator<Item = usize>) -> Self {
        let mut ends: Vec<usize> = ends.into_iter().collect();
        ends.sort_unstable();
        ends.dedup();
        let mut hasher = crc32fast::Hasher::new();
        let mut read = 0;
        let sum = |end| {
            hasher.update(&text[read..end]);
            read = end;
            (end, hasher.clone().finalize())
        };
        let sums = ends.into_iter().map(sum).collect();
        let mut powers = [ONE >> 1; 32];
        for k in 1..powers.len() {
            powers[k] = multiply(powers[k - 1], powers[k - 1]);
        }
        Self { sums, powers }
    }

    /// Of a part between two of the ends; `None` when it is between others.
    pub fn checksum(&self, part: Range<usize>) -> Option<u32> {
        let sum = |end| {
            let at = self.sums.binary_search_by_key(&end, |(end, _)| *end).ok()?;
            Some(self.sums[at].1)
        };
        Some(sum(part.end)? ^ multiply(self.power(8 * part.len()), sum(part.start)?))
    }

    /// `x^exponent`.
    fn power(&self, exponent: usize) -> u32 {
        let bits = (0..usize::BITS as usize).filter(|bit| exponent >> bit & 1 == 1);
        bits.fold(ONE, |product, bit| multiply(product, self.powers[bit % self.powers.len()]))
    }
}

/// The product of two polynomials, modulo CRC-32's.
fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    for bit in (0..u32::BITS).rev() {
        if a >> bit & 1 == 1 {
            product ^= b;
        }
        b = if b & 1 == 1 { b >> 1 ^ POLYNOMIAL } else { b >> 1 };
    }
    product
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_a_part_is_that_of_the_part_alone() {
        let text: Vec<u8> =
            (0..100_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let parts = [0..0, 0..1, 3..17, 0..text.len(), 99_999..100_000, 4_000..70_001];
        let sums = Prefixes::of(&text, parts.iter().flat_map(|part| [part.end, part.start]));
        for part in parts {
            let alone = crc32fast::hash(&text[part.clone()]);
            assert_eq!(sums.checksum(part.clone()), Some(alone), "{part:?}");
        }
    }
}
