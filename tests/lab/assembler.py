# SPDX-License-Identifier: LGPL-2.1-or-later
"""The A64 instructions that the lab's bare-metal guests (registers.py, ticker.py) are made of, and
what the two have in common.

There is no assembler to rely on, so `Assembler` encodes the few dozen instructions needed; their
names are those of the Arm ARM, section C6.2. A program is a flat arm64 `Image`, so anything that
boots Linux on QEMU's virt machine boots it; it talks on the machine's UART.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

UART = 0x09000000  # the PL011 of QEMU's virt machine
UART_CR = 0x30
UART_ENABLE_TX = 0x101

# What begin() and the printing routines use the general registers for: a program keeps its own in
# others.
VALUE, TEXT, CHARACTER, SCRATCH, SCALE, TEN, LINK, UART_BASE = 1, 2, 3, 4, 5, 6, 7, 19
ZERO, RETURN_ADDRESS = 31, 30


class SystemRegister(NamedTuple):
    op0: int
    op1: int
    crn: int
    crm: int
    op2: int

    def __str__(self) -> str:
        return f"S{self.op0}_{self.op1}_C{self.crn}_C{self.crm}_{self.op2}"


def begin(code: Assembler) -> None:
    """The header (Documentation/arch/arm64/booting.rst), of which the first instruction jumps over
    the rest; then the UART.
    """
    code.b("start")
    code.data(struct.pack("<I", 0))
    code.data(struct.pack("<QQQ", 0, 0x10000, 0))  # text_offset, image_size, flags: little endian
    code.data(struct.pack("<QQQ", 0, 0, 0))
    code.data(b"ARM\x64" + struct.pack("<I", 0))
    code.label("start")
    code.mov(UART_BASE, UART)
    code.mov(SCRATCH, UART_ENABLE_TX)
    code.str_w(SCRATCH, UART_BASE, UART_CR)


def print_text(code: Assembler) -> None:
    """Routine: print the zero-terminated string at TEXT. The PL011 of QEMU is always ready."""
    code.label("print_text")
    code.ldrb_next(CHARACTER, TEXT)
    code.cbz(CHARACTER, "print_text_end")
    code.str_w(CHARACTER, UART_BASE, 0)
    code.b("print_text")
    code.label("print_text_end")
    code.ret()


def print_hexadecimal(code: Assembler) -> None:
    """Routine: print TEXT, VALUE as 16 digits and a newline."""
    code.label("print_hexadecimal")
    code.add(LINK, RETURN_ADDRESS, 0)
    code.bl("print_text")
    code.mov(SCRATCH, 60)
    code.label("digit")
    code.lsrv(CHARACTER, VALUE, SCRATCH)
    code.and_nibble(CHARACTER, CHARACTER)
    code.add(CHARACTER, CHARACTER, ord("0"))
    code.cmp(CHARACTER, ord("9"))
    code.b_ls("digit_out")
    code.add(CHARACTER, CHARACTER, ord("a") - ord("9") - 1)
    code.label("digit_out")
    code.str_w(CHARACTER, UART_BASE, 0)
    code.subs(SCRATCH, SCRATCH, 4)
    code.b_pl("digit")
    code.adr(TEXT, "newline")
    code.bl("print_text")
    code.add(RETURN_ADDRESS, LINK, 0)
    code.ret()


def print_decimal(code: Assembler) -> None:
    """Routine: print TEXT, VALUE and a newline. VALUE is lost."""
    code.label("print_decimal")
    code.add(LINK, RETURN_ADDRESS, 0)
    code.bl("print_text")
    # SCALE: the power of ten of the first digit.
    code.mov(SCALE, 1)
    code.mov(TEN, 10)
    code.label("scale")
    code.udiv(CHARACTER, VALUE, SCALE)
    code.cmp(CHARACTER, 9)
    code.b_ls("decimal_digit")
    code.mul(SCALE, SCALE, TEN)
    code.b("scale")
    code.label("decimal_digit")
    code.udiv(CHARACTER, VALUE, SCALE)
    code.msub(VALUE, CHARACTER, SCALE, VALUE)
    code.add(CHARACTER, CHARACTER, ord("0"))
    code.str_w(CHARACTER, UART_BASE, 0)
    code.udiv(SCALE, SCALE, TEN)
    code.cbnz(SCALE, "decimal_digit")
    code.adr(TEXT, "newline")
    code.bl("print_text")
    code.add(RETURN_ADDRESS, LINK, 0)
    code.ret()


class _Reference(NamedTuple):
    """An instruction whose immediate is the distance to a label."""

    opcode: int
    label: str
    kind: str


class Assembler:
    """A64 encodings, one method an instruction; labels are resolved by assemble()."""

    def __init__(self) -> None:
        self._items: list[tuple[int, bytes | _Reference]] = []
        self._labels: dict[str, int] = {}
        self._size = 0

    def assemble(self) -> bytes:
        return b"".join(self._resolved())

    def _resolved(self) -> Iterator[bytes]:
        for address, item in self._items:
            yield item if isinstance(item, bytes) else self._resolve(address, item)

    def _resolve(self, address: int, item: _Reference) -> bytes:
        distance = self._labels[item.label] - address
        if item.kind == "adr":
            field = (distance & 3) << 29 | (distance >> 2 & 0x7FFFF) << 5
        elif item.kind == "imm26":
            field = distance >> 2 & 0x3FFFFFF
        else:
            field = (distance >> 2 & 0x7FFFF) << 5
        return struct.pack("<I", item.opcode | field)

    # Layout

    def label(self, name: str) -> None:
        self._labels[name] = self._size

    def data(self, data: bytes) -> None:
        self._items.append((self._size, data))
        self._size += len(data)

    def string(self, label: str, text: str) -> None:
        self.label(label)
        self.data(text.encode() + b"\0")

    def align(self, boundary: int) -> None:
        self.data(b"\0" * (-self._size % boundary))

    def _code(self, word: int) -> None:
        self.data(struct.pack("<I", word))

    def _reference(self, opcode: int, label: str, kind: str) -> None:
        self._items.append((self._size, _Reference(opcode, label, kind)))
        self._size += 4

    # System instructions

    def mrs(self, rt: int, register: SystemRegister) -> None:
        self._code(0xD5200000 | self._system(register) | rt)

    def msr(self, register: SystemRegister, rt: int) -> None:
        self._code(0xD5000000 | self._system(register) | rt)

    @staticmethod
    def _system(r: SystemRegister) -> int:
        return r.op0 << 19 | r.op1 << 16 | r.crn << 12 | r.crm << 8 | r.op2 << 5

    def hvc(self) -> None:
        self._code(0xD4000002)

    def isb(self) -> None:
        self._code(0xD5033FDF)

    def wfi(self) -> None:
        self._code(0xD503207F)

    def eret(self) -> None:
        self._code(0xD69F03E0)

    # Branches

    def b(self, label: str) -> None:
        self._reference(0x14000000, label, "imm26")

    def bl(self, label: str) -> None:
        self._reference(0x94000000, label, "imm26")

    def b_ls(self, label: str) -> None:
        self._reference(0x54000009, label, "imm19")

    def b_lo(self, label: str) -> None:
        self._reference(0x54000003, label, "imm19")

    def b_pl(self, label: str) -> None:
        self._reference(0x54000005, label, "imm19")

    def cbz(self, rt: int, label: str) -> None:
        self._reference(0xB4000000 | rt, label, "imm19")

    def cbnz(self, rt: int, label: str) -> None:
        self._reference(0xB5000000 | rt, label, "imm19")

    def ret(self) -> None:
        self._code(0xD65F03C0)

    # Data processing (64 bit)

    def adr(self, rd: int, label: str) -> None:
        self._reference(0x10000000 | rd, label, "adr")

    def mov(self, rd: int, value: int) -> None:
        """A 32-bit constant: MOVZ, MOVK."""
        self._code(0xD2800000 | (value & 0xFFFF) << 5 | rd)
        self._code(0xF2A00000 | (value >> 16 & 0xFFFF) << 5 | rd)

    def add(self, rd: int, rn: int, value: int) -> None:
        self._code(0x91000000 | value << 10 | rn << 5 | rd)

    def subs(self, rd: int, rn: int, value: int) -> None:
        self._code(0xF1000000 | value << 10 | rn << 5 | rd)

    def cmp(self, rn: int, value: int) -> None:
        self.subs(ZERO, rn, value)

    def add_register(self, rd: int, rn: int, rm: int) -> None:
        self._code(0x8B000000 | rm << 16 | rn << 5 | rd)

    def cmp_register(self, rn: int, rm: int) -> None:
        self._code(0xEB000000 | rm << 16 | rn << 5 | ZERO)

    def mul(self, rd: int, rn: int, rm: int) -> None:
        self._code(0x9B007C00 | rm << 16 | rn << 5 | rd)

    def msub(self, rd: int, rn: int, rm: int, ra: int) -> None:
        self._code(0x9B008000 | rm << 16 | ra << 10 | rn << 5 | rd)

    def udiv(self, rd: int, rn: int, rm: int) -> None:
        self._code(0x9AC00800 | rm << 16 | rn << 5 | rd)

    def and_nibble(self, rd: int, rn: int) -> None:
        """AND (immediate) with 15: N=1, immr=0, imms=3 is a mask of four bits."""
        self._code(0x92400C00 | rn << 5 | rd)

    def lsrv(self, rd: int, rn: int, rm: int) -> None:
        self._code(0x9AC02400 | rm << 16 | rn << 5 | rd)

    # Memory

    def str_w(self, rt: int, rn: int, offset: int) -> None:
        self._code(0xB9000000 | offset // 4 << 10 | rn << 5 | rt)

    def ldrb_next(self, rt: int, rn: int) -> None:
        """LDRB with post-index 1."""
        self._code(0x38401400 | rn << 5 | rt)
