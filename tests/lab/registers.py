# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest of a few hundred instructions that prints every ID register it can read, and the parser
of its output.

What it prints is what a guest really sees: the answer that recorded targets are compared with.
image.py puts it into every host as REGISTER_READER (guest.py); guest.read_registers() runs it under
libvirt.

A register that the guest may not read (PMCR_EL0 without a PMU) raises an exception; the handler
skips the instruction, and the line is not printed.
"""

from __future__ import annotations

import re

from .assembler import TEXT, VALUE, Assembler, SystemRegister, begin, print_hexadecimal, print_text

PSCI_SYSTEM_OFF = 0x84000008
VECTORS = 0x800  # VBAR_EL1 must be a multiple of this
VECTOR_COUNT = 16
VECTOR_SIZE = 0x80
END = "END"

# The general registers that are its own.
UNDEFINED, ELR = 9, 10


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
    aliases = {
        name: values[str(register)] for name, register in NAMED.items() if str(register) in values
    }
    return {**values, **aliases}


def image() -> bytes:
    """The register reader, ready to be a domain's <kernel>."""
    code = Assembler()
    begin(code)
    code.adr(VALUE, "vectors")
    code.msr(VBAR_EL1, VALUE)
    registers = (*NAMED.values(), *ID_SPACE)
    for register in registers:
        code.mov(UNDEFINED, 0)
        code.mrs(VALUE, register)
        code.cbnz(UNDEFINED, f"after {register}")
        code.adr(TEXT, str(register))
        code.bl("print_hexadecimal")
        code.label(f"after {register}")
    code.adr(TEXT, END)
    code.bl("print_text")
    code.mov(0, PSCI_SYSTEM_OFF)
    code.hvc()
    code.label("sleep")
    code.wfi()
    code.b("sleep")
    print_hexadecimal(code)
    print_text(code)
    for register in registers:
        code.string(str(register), f"{register}=0x")
    code.string(END, f"{END}\r\n")
    code.string("newline", "\r\n")
    _vectors(code)
    return code.assemble()


def _vectors(code: Assembler) -> None:
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
