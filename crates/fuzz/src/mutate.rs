//! The mutations that find most of what a coverage-guided fuzzer finds in parsers: bits, numbers, blocks, words.

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

/// Inputs beyond this are cut: what a decoder does with more it does with this much.
const BYTES_MAX: usize = 64 << 10;
const STEPS_MAX: u32 = 6;
/// Where lengths, counts and signs go wrong.
const NUMBERS: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    u64::MAX,
];

/// Changes an input in one to six ways; `others` are what parts may be taken from.
pub fn mutate(dice: &mut ChaCha8Rng, data: &mut Vec<u8>, others: &[Vec<u8>], words: &[Vec<u8>]) {
    for _ in 0..dice.random_range(1..=STEPS_MAX) {
        step(dice, data, others, words);
    }
    data.truncate(BYTES_MAX);
}

fn step(dice: &mut ChaCha8Rng, data: &mut Vec<u8>, others: &[Vec<u8>], words: &[Vec<u8>]) {
    let at = dice.random_range(0..=data.len());
    let span = dice.random_range(0..=(data.len() - at).min(64));
    match dice.random_range(0..10) {
        0 => data.get_mut(at).into_iter().for_each(|byte| *byte ^= 1 << dice.random_range(0..8)),
        1 => data.get_mut(at).into_iter().for_each(|byte| *byte = dice.random()),
        2 => drop(data.drain(at..at + span)),
        3 => {
            let part = data[at..at + span].to_vec();
            let to = dice.random_range(0..=data.len());
            data.splice(to..to, part);
        }
        4 => number(dice, data, at),
        5 => data.truncate(at),
        6 => word(dice, data, at, words),
        7 => splice(dice, data, at, others),
        8 => {
            let byte = dice.random();
            data[at..at + span].fill(byte);
        }
        _ => {
            let filler = vec![dice.random(); dice.random_range(1..300)];
            data.splice(at..at, filler);
        }
    }
}

/// Overwrites one to eight bytes with a number at an edge, in either byte order or as digits.
fn number(dice: &mut ChaCha8Rng, data: &mut Vec<u8>, at: usize) {
    let value = NUMBERS.choose(dice).copied().unwrap_or_default();
    let width = [1, 2, 4, 8].choose(dice).copied().unwrap_or(1);
    let bytes = match dice.random_range(0..3) {
        0 => value.to_be_bytes()[8 - width..].to_vec(),
        1 => value.to_le_bytes()[..width].to_vec(),
        _ => value.to_string().into_bytes(),
    };
    let end = (at + bytes.len()).min(data.len());
    data.splice(at..end, bytes);
}

fn word(dice: &mut ChaCha8Rng, data: &mut Vec<u8>, at: usize, words: &[Vec<u8>]) {
    let Some(word) = words.choose(dice) else { return };
    let end = if dice.random() { at } else { (at + word.len()).min(data.len()) };
    data.splice(at..end, word.iter().copied());
}

/// The front of this input, the back of another.
fn splice(dice: &mut ChaCha8Rng, data: &mut Vec<u8>, at: usize, others: &[Vec<u8>]) {
    let Some(other) = others.choose(dice) else { return };
    let from = dice.random_range(0..=other.len());
    data.truncate(at);
    data.extend_from_slice(&other[from..]);
}
