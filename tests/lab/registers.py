# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest of a few hundred instructions that prints every ID register it can read, and the parser of its output.

It is a flat arm64 `Image`, so anything that boots Linux on QEMU's virt machine boots it.  What it prints is what
a guest really sees: the answer that recorded targets are compared with.  image.py puts it into every host as
REGISTER_READER (guest.py); guest.read_registers() runs it under libvirt.

There is no assembler to rely on, so `_Assembler` encodes the two dozen A64 instructions needed; their names
are those of the Arm ARM, section C6.2.  A register that the guest may not read (PMCR_EL0 without a PMU) raises
an exception; the handler skips the instruction, and the line is not printed.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

UART = 0x09000000  # the PL011 of QEMU's virt machine
UART_CR = 0x30
UART_ENABLE_TX = 0x101
PSCI_SYSTEM_OFF = 0x84000008
VECTORS = 0x800  # VBAR_EL1 must be a multiple of this
VECTOR_COUNT = 16
VECTOR_SIZE = 0x80
END = "END"


class SystemRegister(NamedTuple):
    op0: int
    op1: int
    crn: int
    crm: int
    op2: int

    def __str__(self) -> str:
        return f"S{self.op0}_{self.op1}_C{self.crn}_C{self.crm}_{self.op2}"


NAMED = {
    "MIDR_EL1": SystemRegister(3, 0, 0, 0, 0),
    "MPIDR_EL1": SystemRegister(3, 0, 0, 0, 5),
    "REVIDR_EL1": SystemRegister(3, 0, 0, 0, 6),
    "CLIDR_EL1": SystemRegister(3, 1, 0, 0, 1),
    "AIDR_EL1": SystemRegister(3, 1, 0, 0, 7),
    "CTR_EL0": SystemRegister(3, 3, 0, 0, 1),
    "DCZID_EL0": SystemRegister(3, 3, 0, 0, 7),
    "PMCR_EL0": SystemRegister(3, 3, 9, 12, 0),
    "CNTFRQ_EL0": SystemRegister(3, 3, 14, 0, 0),
}
ID_SPACE = tuple(SystemRegister(3, 0, 0, crm, op2) for crm in range(1, 8) for op2 in range(8))
VBAR_EL1 = SystemRegister(3, 0, 12, 0, 0)
ELR_EL1 = SystemRegister(3, 0, 4, 0, 1)


def parse_registers(text: str) -> dict[str, int]:
    """Values by generic name ("S3_0_C0_C4_0"), and by architectural name for those in NAMED."""
    found = re.findall(r"^(S\d_\d_C\d+_C\d+_\d)=0x([0-9a-f]{16})\r?$", text, re.MULTILINE)
    values = {name: int(value, 16) for name, value in found}
    aliases = {name: values[str(register)] for name, register in NAMED.items() if str(register) in values}
    return {**values, **aliases}


def image() -> bytes:
    """The register reader, ready to be a domain's <kernel>."""
    code = _Assembler()
    _header(code)
    code.label("start")
    code.adr(0, "vectors")
    code.msr(VBAR_EL1, 0)
    code.mov(UART_BASE, UART)
    code.mov(0, UART_ENABLE_TX)
    code.str_w(0, UART_BASE, UART_CR)
    registers = (*NAMED.values(), *ID_SPACE)
    for register in registers:
        code.mov(UNDEFINED, 0)
        code.mrs(VALUE, register)
        code.adr(TEXT, str(register))
        code.bl("print_register")
    code.adr(TEXT, END)
    code.bl("print_text")
    code.mov(0, PSCI_SYSTEM_OFF)
    code.hvc()
    code.label("sleep")
    code.wfi()
    code.b("sleep")
    _print_register(code)
    _print_text(code)
    for register in registers:
        code.string(str(register), f"{register}=0x")
    code.string(END, f"{END}\r\n")
    code.string("newline", "\r\n")
    _vectors(code)
    return code.assemble()


# The register reader's own use of the general registers.
VALUE, TEXT, CHARACTER, SHIFT, LINK, UNDEFINED, ELR, UART_BASE = 1, 2, 3, 4, 7, 9, 10, 19
ZERO, RETURN_ADDRESS = 31, 30


def _header(code: _Assembler) -> None:
    """Documentation/arch/arm64/booting.rst; the first instruction jumps over it."""
    code.b("start")
    code.data(struct.pack("<I", 0))
    code.data(struct.pack("<QQQ", 0, 0x10000, 0))  # text_offset, image_size, flags: little endian
    code.data(struct.pack("<QQQ", 0, 0, 0))
    code.data(b"ARM\x64" + struct.pack("<I", 0))


def _print_register(code: _Assembler) -> None:
    """Print TEXT, VALUE as 16 digits and a newline; nothing if UNDEFINED is set."""
    code.label("print_register")
    code.cbnz(UNDEFINED, "print_register_end")
    code.add(LINK, RETURN_ADDRESS, 0)
    code.bl("print_text")
    code.mov(SHIFT, 60)
    code.label("digit")
    code.lsrv(CHARACTER, VALUE, SHIFT)
    code.and_nibble(CHARACTER, CHARACTER)
    code.add(CHARACTER, CHARACTER, ord("0"))
    code.cmp(CHARACTER, ord("9"))
    code.b_ls("digit_out")
    code.add(CHARACTER, CHARACTER, ord("a") - ord("9") - 1)
    code.label("digit_out")
    code.str_w(CHARACTER, UART_BASE, 0)
    code.subs(SHIFT, SHIFT, 4)
    code.b_pl("digit")
    code.adr(TEXT, "newline")
    code.bl("print_text")
    code.add(RETURN_ADDRESS, LINK, 0)
    code.label("print_register_end")
    code.ret()


def _print_text(code: _Assembler) -> None:
    """Print the zero-terminated string at TEXT.  The PL011 of QEMU is always ready."""
    code.label("print_text")
    code.ldrb_next(CHARACTER, TEXT)
    code.cbz(CHARACTER, "print_text_end")
    code.str_w(CHARACTER, UART_BASE, 0)
    code.b("print_text")
    code.label("print_text_end")
    code.ret()


def _vectors(code: _Assembler) -> None:
    """Whatever the exception is, note it and go on after the instruction."""
    code.align(VECTORS)
    code.label("vectors")
    for _ in range(VECTOR_COUNT):
        code.align(VECTOR_SIZE)
        code.mrs(ELR, ELR_EL1)
        code.add(ELR, ELR, 4)
        code.msr(ELR_EL1, ELR)
        code.mov(UNDEFINED, 1)
        code.eret()


class _Reference(NamedTuple):
    """An instruction whose immediate is the distance to a label."""

    opcode: int
    label: str
    kind: str


class _Assembler:
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
