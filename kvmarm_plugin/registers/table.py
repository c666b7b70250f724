# SPDX-License-Identifier: LGPL-2.1-or-later
"""Names, ids and fields of KVM's registers.

A register is known here by the name that the Arm ARM or the kernel's UAPI gives it; the generic
spelling of the Arm ARM (``S3_0_C0_C4_3``) serves those that have none yet, and a plain hexadecimal
id everything that is not a system register.
"""

from __future__ import annotations

from ..basics.untrusted import hexadecimal, shown
from ..basics.value import Value

_SYSREG = 0x6030000000130000  # KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM64_SYSREG
_GROUP = 0xFFFFFFFFFFFF0000
_ID_SPACE = _SYSREG | 3 << 14  # op0 3, CRn 0, any op1, CRm and op2
_ID_SPACE_MASK = _GROUP | 3 << 14 | 15 << 7

# The register groups whose every member tells what a vCPU is: cache ids, firmware interfaces, SVE
# lengths.
_IDENTITY_GROUPS = frozenset(
    {
        0x6020000000110000,  # CCSIDR by level (KVM_REG_ARM_DEMUX)
        0x6030000000140000,  # PSCI version, mitigations (KVM_REG_ARM_FW)
        0x6030000000160000,  # hypercalls offered (KVM_REG_ARM_FW_FEAT_BMAP)
        0x4020000000110000,  # CCSIDR by level on 32-bit hosts
    }
)
_SVE_VLS = 0x606000000015FFFF
_OSLSR_EL1 = 0x603000000013808C
_MPIDR = 0x603000000013C005


class Field(Value):
    """One field of an ID register.

    Attributes:
        register, name: as in the Arm ARM.
        msb, lsb: bit numbers.
        signed: whether the value is a two's complement number.
        policy: how the kernel makes two values one: LOWER_SAFE, HIGHER_SAFE, HIGHER_OR_ZERO_SAFE,
            EXACT, or "-" where it has no rule.
        safe_value: as the kernel's table has it, the value that EXACT falls back to.
        meaning: for people.
    """

    register: str
    name: str
    msb: int
    lsb: int
    signed: bool
    policy: str
    safe_value: str
    meaning: str

    def of(self, value: int) -> int:
        """This field's value in a register's value, unsigned."""
        return value >> self.lsb & (1 << self.msb - self.lsb + 1) - 1

    @property
    def mask(self) -> int:
        """Its bits in the register."""
        return (1 << self.msb + 1) - (1 << self.lsb)

    def put(self, value: int, part: int) -> int:
        """A register's value with another one of this field in it."""
        return value & ~self.mask | part << self.lsb


# Each made of its table on first use: the hook needs the first alone.
_ids: dict[str, int] = {}
_names: dict[int, str] = {}
_descriptions: dict[str, str] = {}
_fields: dict[str, list[Field]] = {}


def name_of(reg: int) -> str:
    """The name of a KVM register id."""
    if not _names:
        _names.update({reg: name for name, reg in _named().items()})
    return _names.get(reg) or _generic_name(reg)


def id_of(name: str) -> int:
    """The inverse of `name_of`.

    Takes the generic spelling of a register that has a name, too: records have it from when the
    table did not know the name.

    Raises:
        ValueError: no name of a register, or not spelled as `name_of` spells it.
    """
    reg = _named().get(name)
    if reg is None:
        reg = _generic_id(name)
        if reg is None or _generic_name(reg) != name:
            raise ValueError(f"unknown register {shown(name, 60)!r}")
    return reg


def bits_of(reg: int) -> int:
    """Width of a register's value, from its id (KVM_REG_SIZE)."""
    return 8 << (reg >> 52 & 0xF)


def describe(name: str) -> str:
    """What a register is, for people; empty where the table does not know it."""
    if not _descriptions:
        _descriptions.update({name: description for _, name, description in rows("registers.tsv")})
    return _descriptions.get(name, "")


def fields_of(name: str) -> list[Field]:
    """The fields of a register, from the highest bit down; empty where the table knows none."""
    if not _fields:
        for register, _, field, msb, lsb, sign, policy, safe_value, _, _, meaning in rows(
            "fields.tsv"
        ):
            entry = Field(
                register, field, int(msb), int(lsb), sign == "S", policy, safe_value, meaning
            )
            _fields.setdefault(register, []).append(entry)
    return _fields.get(name, [])


def field_of(place: str) -> Field:
    """The field that "REGISTER.FIELD" names; the table has it."""
    register, _, name = place.partition(".")
    return next(field for field in fields_of(register) if field.name == name)


def is_identity(reg: int) -> bool:
    """Whether a register tells what a vCPU is rather than what it is doing.

    These are what a target records: the ID register space (op0 3, CRn 0, which is also what
    KVM_ARM_GET_REG_WRITABLE_MASKS covers), the cache ids, the firmware interface and the SVE
    lengths. MPIDR_EL1 and CSSELR_EL1 lie in that space and are per-vCPU state. On 32-bit hosts: CRn
    0 of cp15, which is what invariant_cp15 of arch/arm/kvm/coproc.c covered.
    """
    if reg & _ID_SPACE_MASK == _ID_SPACE:
        return reg >> 11 & 7 in (0, 1, 3) and reg != _MPIDR
    group = reg & _GROUP
    if group == _SYSREG:
        return reg == _OSLSR_EL1
    if group == 0x40200000000F0000:
        return reg & 0x7800 == 0 and reg & 0x78 != 0x10 and reg & 0x7FF != 5
    return group in _IDENTITY_GROUPS or reg == _SVE_VLS


def _generic_name(reg: int) -> str:
    """The name of a register that the table has none for."""
    if reg & _GROUP == _SYSREG:
        return f"S{reg >> 14 & 3}_{reg >> 11 & 7}_C{reg >> 7 & 15}_C{reg >> 3 & 15}_{reg & 7}"
    return f"{reg:#x}"


def _generic_id(name: str) -> int | None:
    """The inverse of `_generic_name` for what that writes; for other text, None or any number."""
    if name[:2] == "0x":
        return hexadecimal(name)
    parts = (
        name.replace("S", "").replace("C", "").split("_")
        if len(name) <= len("S3_7_C15_C15_7") and name.isascii()
        else []
    )
    if len(parts) != 5 or not "".join(parts).isdigit() or "" in parts:
        return None
    op0, op1, crn, crm, op2 = map(int, parts)
    return _SYSREG | op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2


def _named() -> dict[str, int]:
    if not _ids:
        _ids.update({name: int(kvm_id, 16) for kvm_id, name, _ in rows("registers.tsv")})
    return _ids


def rows(file_name: str, module: str = __file__) -> list[list[str]]:
    """The rows of a table beside a module's file, this one's at first, without comments and the
    header.
    """
    with open(f"{module.rpartition('/')[0]}/{file_name}", encoding="utf-8") as file:
        lines = [line for line in file.read().splitlines() if line and line[0] != "#"]
    return [line.split("\t") for line in lines[1:]]
