# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest of some sixty instructions that does what the lab's Linux guest does (files/guest-init):
it says who it is, and then a tick every second for as long as it lives.

It is there within a second, where Linux takes ten: for every test of which Linux is not the point.
Its second is what Linux takes for one: as many counts of CNTVCT_EL0 as CNTFRQ_EL0 said when the
guest started. image.py puts it into every host as TICKER (guest.py).
"""

from __future__ import annotations

from .assembler import (
    TEXT,
    VALUE,
    Assembler,
    SystemRegister,
    begin,
    print_decimal,
    print_hexadecimal,
    print_text,
)

MIDR_EL1 = SystemRegister(3, 0, 0, 0, 0)
CNTFRQ_EL0 = SystemRegister(3, 3, 14, 0, 0)
CNTVCT_EL0 = SystemRegister(3, 3, 14, 0, 2)
CNTV_CTL_EL0 = SystemRegister(3, 3, 14, 3, 1)
CNTV_CVAL_EL0 = SystemRegister(3, 3, 14, 3, 2)
ICC_PMR_EL1 = SystemRegister(3, 0, 4, 6, 0)
ICC_IGRPEN1_EL1 = SystemRegister(3, 0, 12, 12, 7)

# The GICv3 of QEMU's virt machine, and what has to be written for the virtual timer's interrupt to
# reach the CPU. It is never taken, for PSTATE.I is set; but KVM lets no vCPU out of WFI for less.
DISTRIBUTOR, REDISTRIBUTOR, REDISTRIBUTOR_SGI = 0x08000000, 0x080A0000, 0x080B0000
TIMER_INTERRUPT = 27
GIC_WRITES = (
    (DISTRIBUTOR, 0x0000, 0x12),  # GICD_CTLR: affinity routing, group 1
    (REDISTRIBUTOR, 0x0014, 0),  # GICR_WAKER: awake
    (REDISTRIBUTOR_SGI, 0x0080, 0xFFFFFFFF),  # GICR_IGROUPR0
    (REDISTRIBUTOR_SGI, 0x0100, 1 << TIMER_INTERRUPT),  # GICR_ISENABLER0
)

# The general registers that are its own.
SECOND, NEXT, NOW, TICKS, BASE = 20, 21, 22, 23, 24


def image() -> bytes:
    """The ticker, ready to be a domain's <kernel>."""
    code = Assembler()
    begin(code)
    code.adr(TEXT, "hello")
    code.bl("print_text")
    code.adr(TEXT, "midr")
    code.mrs(VALUE, MIDR_EL1)
    code.bl("print_hexadecimal")
    for base, offset, value in GIC_WRITES:
        code.mov(BASE, base)
        code.mov(VALUE, value)
        code.str_w(VALUE, BASE, offset)
    for register, value in ((ICC_PMR_EL1, 0xFF), (ICC_IGRPEN1_EL1, 1)):
        code.mov(VALUE, value)
        code.msr(register, VALUE)
    code.mrs(SECOND, CNTFRQ_EL0)
    code.mrs(NEXT, CNTVCT_EL0)
    code.mov(TICKS, 0)
    code.label("tick")
    code.add(TICKS, TICKS, 1)
    code.add(VALUE, TICKS, 0)
    code.adr(TEXT, "tick_text")
    code.bl("print_decimal")
    code.add_register(NEXT, NEXT, SECOND)
    code.msr(CNTV_CVAL_EL0, NEXT)
    code.mov(VALUE, 1)
    code.msr(CNTV_CTL_EL0, VALUE)  # ENABLE
    code.isb()
    code.label("wait")
    code.wfi()
    code.mrs(NOW, CNTVCT_EL0)
    code.cmp_register(NOW, NEXT)
    code.b_lo("wait")
    code.b("tick")
    print_decimal(code)
    print_hexadecimal(code)
    print_text(code)
    code.string("hello", "guest: hello from inside\r\n")
    code.string("midr", "guest: MIDR_EL1=0x")
    code.string("tick_text", "guest: tick ")
    code.string("newline", "\r\n")
    return code.assemble()
