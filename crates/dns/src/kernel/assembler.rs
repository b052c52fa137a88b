//! A small assembler for eBPF: the instructions that the program of [`super::program`] is made of.
//! Encodings are those of RFC 9669.

/// One of the machine's registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register(u8);

pub const R0: Register = Register(0);
pub const R1: Register = Register(1);
pub const R2: Register = Register(2);
pub const R3: Register = Register(3);
pub const R4: Register = Register(4);
pub const R5: Register = Register(5);
pub const R6: Register = Register(6);
pub const R7: Register = Register(7);
pub const R8: Register = Register(8);
pub const R9: Register = Register(9);
/// The end of the stack; cannot be written.
pub const FRAME: Register = Register(10);

/// How many bytes a load or a store moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    Byte = 0x10,
    Half = 0x08,
    Word = 0x00,
    Double = 0x18,
}

/// Arithmetic on all 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alu {
    Add = 0x00,
    Sub = 0x10,
    And = 0x50,
    ShiftRight = 0x70,
    Xor = 0xa0,
    Move = 0xb0,
}

/// Comparisons of all 64 bits, without signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    Equal = 0x10,
    Greater = 0x20,
    NotEqual = 0x50,
    Less = 0xa0,
}

/// A place to jump to, which may be named before it is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(usize);

const CLASS_LOAD_WIDE: u8 = 0x00;
const CLASS_LOAD: u8 = 0x01;
const CLASS_STORE_NUMBER: u8 = 0x02;
const CLASS_STORE: u8 = 0x03;
const CLASS_ALU32: u8 = 0x04;
const CLASS_JUMP: u8 = 0x05;
const CLASS_ALU: u8 = 0x07;
const MODE_MEMORY: u8 = 0x60;
const FROM_REGISTER: u8 = 0x08;
const BYTE_SWAP_TO_BIG: u8 = 0xd8;
const CALL: u8 = 0x80;
const EXIT: u8 = 0x90;
/// In a wide load: the number is a map's file descriptor.
const PSEUDO_MAP: Register = Register(1);

#[derive(Clone, Copy, Debug)]
struct Instruction {
    code: u8,
    to: Register,
    from: Register,
    offset: i16,
    number: i32,
}

/// A program under construction.
#[derive(Debug, Default)]
pub struct Assembler {
    instructions: Vec<Instruction>,
    /// Where each label is, once it is bound.
    labels: Vec<Option<usize>>,
    /// Instructions whose offset leads to a label.
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    pub fn new() -> Self {
        Self::default()
    }

    /// A label that is bound later.
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Jumps to the label lead to the next instruction.
    pub fn bind(&mut self, label: Label) {
        self.labels[label.0] = Some(self.instructions.len());
    }

    pub fn alu(&mut self, what: Alu, to: Register, from: Register) {
        self.push(CLASS_ALU | FROM_REGISTER | what as u8, to, from, 0, 0);
    }

    pub fn alu_number(&mut self, what: Alu, to: Register, number: i32) {
        self.push(CLASS_ALU | what as u8, to, R0, 0, number);
    }

    pub fn copy(&mut self, to: Register, from: Register) {
        self.alu(Alu::Move, to, from);
    }

    pub fn set(&mut self, to: Register, number: i32) {
        self.alu_number(Alu::Move, to, number);
    }

    /// An address on the stack.
    pub fn stack_address(&mut self, to: Register, offset: i16) {
        self.copy(to, FRAME);
        self.alu_number(Alu::Add, to, i32::from(offset));
    }

    /// Between the machine's order and the network's, 16 bits; the rest becomes 0.
    pub fn swap_half(&mut self, register: Register) {
        self.push(CLASS_ALU32 | BYTE_SWAP_TO_BIG, register, R0, 0, 16);
    }

    pub fn load(&mut self, size: Size, to: Register, address: Register, offset: i16) {
        self.push(CLASS_LOAD | MODE_MEMORY | size as u8, to, address, offset, 0);
    }

    pub fn store(&mut self, size: Size, address: Register, offset: i16, from: Register) {
        self.push(CLASS_STORE | MODE_MEMORY | size as u8, address, from, offset, 0);
    }

    pub fn store_number(&mut self, size: Size, address: Register, offset: i16, number: i32) {
        self.push(CLASS_STORE_NUMBER | MODE_MEMORY | size as u8, address, R0, offset, number);
    }

    /// A map by its file descriptor; takes the room of two instructions.
    pub fn load_map(&mut self, to: Register, descriptor: i32) {
        let code = CLASS_LOAD_WIDE | Size::Double as u8;
        self.push(code, to, PSEUDO_MAP, 0, descriptor);
        self.push(0, R0, R0, 0, 0);
    }

    pub fn jump_if(&mut self, is: Compare, left: Register, right: Register, label: Label) {
        self.jumps.push((self.instructions.len(), label));
        self.push(CLASS_JUMP | FROM_REGISTER | is as u8, left, right, 0, 0);
    }

    /// The number is widened with its sign before it is compared.
    pub fn jump_if_number(&mut self, is: Compare, left: Register, number: i32, label: Label) {
        self.jumps.push((self.instructions.len(), label));
        self.push(CLASS_JUMP | is as u8, left, R0, 0, number);
    }

    /// One of the kernel's functions: arguments in R1 to R5, which are lost, result in R0.
    pub fn call(&mut self, helper: i32) {
        self.push(CLASS_JUMP | CALL, R0, R0, 0, helper);
    }

    pub fn exit(&mut self) {
        self.push(CLASS_JUMP | EXIT, R0, R0, 0, 0);
    }

    /// The program as the kernel takes it, eight bytes an instruction. `None` if a jump leads to a
    /// label that was never bound, or too far.
    pub fn finish(mut self) -> Option<Vec<u8>> {
        for (at, label) in self.jumps {
            let target = self.labels[label.0]?;
            // Counted from the instruction after the jump.
            let distance = i64::try_from(target).ok()? - i64::try_from(at + 1).ok()?;
            self.instructions[at].offset = i16::try_from(distance).ok()?;
        }
        Some(self.instructions.iter().flat_map(Instruction::bytes).collect())
    }

    fn push(&mut self, code: u8, to: Register, from: Register, offset: i16, number: i32) {
        self.instructions.push(Instruction { code, to, from, offset, number });
    }
}

impl Instruction {
    fn bytes(&self) -> [u8; 8] {
        // Two bit fields of a byte: their order is the machine's.
        let registers = if cfg!(target_endian = "little") {
            self.from.0 << 4 | self.to.0
        } else {
            self.to.0 << 4 | self.from.0
        };
        let ([o0, o1], [n0, n1, n2, n3]) = (self.offset.to_ne_bytes(), self.number.to_ne_bytes());
        [self.code, registers, o0, o1, n0, n1, n2, n3]
    }
}

#[cfg(all(test, target_endian = "little"))]
mod tests {
    use super::*;

    fn assembled(write: impl FnOnce(&mut Assembler)) -> Vec<u8> {
        let mut code = Assembler::new();
        write(&mut code);
        code.finish().unwrap()
    }

    #[test]
    fn instructions_have_the_bytes_that_the_kernel_s_own_macros_give() {
        let cases: [(&str, Vec<u8>, [u8; 8]); 12] = [
            ("r6 = r1", assembled(|c| c.copy(R6, R1)), [0xbf, 0x16, 0, 0, 0, 0, 0, 0]),
            ("r0 = -1", assembled(|c| c.set(R0, -1)), [0xb7, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]),
            (
                "r2 += -8",
                assembled(|c| c.alu_number(Alu::Add, R2, -8)),
                [0x07, 2, 0, 0, 0xf8, 0xff, 0xff, 0xff],
            ),
            (
                "r3 >>= 16",
                assembled(|c| c.alu_number(Alu::ShiftRight, R3, 16)),
                [0x77, 3, 0, 0, 16, 0, 0, 0],
            ),
            ("r3 ^= r4", assembled(|c| c.alu(Alu::Xor, R3, R4)), [0xaf, 0x43, 0, 0, 0, 0, 0, 0]),
            ("r3 = be16 r3", assembled(|c| c.swap_half(R3)), [0xdc, 3, 0, 0, 16, 0, 0, 0]),
            (
                "r2 = *(u16 *)(r10 - 30)",
                assembled(|c| c.load(Size::Half, R2, FRAME, -30)),
                [0x69, 0xa2, 0xe2, 0xff, 0, 0, 0, 0],
            ),
            (
                "*(u64 *)(r10 - 8) = r1",
                assembled(|c| c.store(Size::Double, FRAME, -8, R1)),
                [0x7b, 0x1a, 0xf8, 0xff, 0, 0, 0, 0],
            ),
            (
                "*(u8 *)(r10 - 1) = 7",
                assembled(|c| c.store_number(Size::Byte, FRAME, -1, 7)),
                [0x72, 0x0a, 0xff, 0xff, 7, 0, 0, 0],
            ),
            (
                "*(u32 *)(r1 + 4) = 9",
                assembled(|c| c.store_number(Size::Word, R1, 4, 9)),
                [0x62, 1, 4, 0, 9, 0, 0, 0],
            ),
            ("call 1", assembled(|c| c.call(1)), [0x85, 0, 0, 0, 1, 0, 0, 0]),
            ("exit", assembled(Assembler::exit), [0x95, 0, 0, 0, 0, 0, 0, 0]),
        ];
        for (text, bytes, expected) in cases {
            assert_eq!(bytes, expected, "{text}");
        }
    }

    #[test]
    fn a_map_takes_two_instructions_and_jumps_count_both() {
        let bytes = assembled(|code| {
            let over = code.label();
            code.jump_if_number(Compare::NotEqual, R1, 5, over);
            code.jump_if(Compare::Greater, R1, R2, over);
            code.load_map(R1, 77);
            code.bind(over);
            code.exit();
        });
        let lines: Vec<&[u8]> = bytes.chunks(8).collect();
        assert_eq!(lines[0], [0x55, 1, 3, 0, 5, 0, 0, 0]);
        assert_eq!(lines[1], [0x2d, 0x21, 2, 0, 0, 0, 0, 0]);
        assert_eq!(lines[2], [0x18, 0x11, 0, 0, 77, 0, 0, 0]);
        assert_eq!(lines[3], [0; 8]);
    }

    #[test]
    fn a_jump_into_the_void_is_no_program() {
        let mut code = Assembler::new();
        let nowhere = code.label();
        code.jump_if_number(Compare::Equal, R0, 0, nowhere);
        assert_eq!(code.finish(), None);
    }
}
