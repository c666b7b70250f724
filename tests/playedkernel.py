# SPDX-License-Identifier: LGPL-2.1-or-later
"""A kernel that answers from a table, for the hook as libvirt runs it: in a copy of the package,
without a host.

It gives one vCPU, and refuses every other value for the registers that identify it. Unlike
unit/fakekernel.py, which knows the kernel's rules, it is quick: what `make bench` measures is the
hook.
"""

from __future__ import annotations

from pathlib import Path

from kvmarm_plugin.domain import record
from kvmarm_plugin.domain.xml import parse
from kvmarm_plugin.kvm import uapi
from kvmarm_plugin.registers.table import id_of
from kvmarm_plugin.registers.text import unpack_ids

# What is appended to __init__.py in a copy: what goes into the system's log goes into a file.
PLAYED_LOG = """

import sys
class _Log:
    LOG_PID = LOG_DAEMON = LOG_ERR = LOG_WARNING = LOG_NOTICE = LOG_INFO = 0
    def openlog(*_): pass
    def syslog(_priority, message):
        with open({log!r}, "a") as file: file.write(message + "\\n")
sys.modules["syslog"] = _Log
"""

# What is appended to kvm/device.py in the copy; the class is last, for those who append more to it.
_SOURCE = """

import time
_registers, _identity, _reglist, _target = {answers}
_machine = os.uname()
os.uname = lambda: os.uname_result((_machine[0], "here", "6.12.0", _machine[3], "aarch64"))


class _U32(_SimpleCData):
    _type_ = "I"


class _U64(_SimpleCData):
    _type_ = "Q"


_MEMORY = {{4: _U32, 8: _U64}}


def _register(arg):
    reg, place = unpack(uapi.ONE_REG, arg)
    return reg, _MEMORY[register_size(reg)].from_address(place)


class SystemCalls(SystemCalls):
    open_errno, failures, slow = 0, {{}}, ""

    def open(self, path):
        if self.slow == "open":
            time.sleep(60)
        if self.open_errno:
            raise OSError(self.open_errno, os.strerror(self.open_errno))
        return 1000

    def close(self, fd):
        pass

    def ioctl(self, fd, name, arg):
        if name == self.slow:
            time.sleep(60)
        if name in self.failures:
            raise KvmError(name, self.failures[name])
        if name == "KVM_GET_ONE_REG":
            reg, memory = _register(arg)
            memory.value = _registers.get(reg, 0)
        elif name == "KVM_SET_ONE_REG":
            reg, memory = _register(arg)
            if reg in _identity and memory.value != _registers[reg]:
                raise KvmError(name, errno_codes.EINVAL)
        elif name == "KVM_GET_REG_LIST":
            if len(arg) < 8 + 8 * len(_reglist):
                arg[:8] = pack("Q", len(_reglist))
                raise KvmError(name, errno_codes.E2BIG)
            arg[: 8 + 8 * len(_reglist)] = pack(f"{{len(_reglist) + 1}}Q", len(_reglist), *_reglist)
        elif name == "KVM_ARM_PREFERRED_TARGET":
            arg[:4] = pack("I", _target)
        elif name == "KVM_CHECK_EXTENSION":
            return 48 if arg == uapi.CAPABILITIES["ARM_VM_IPA_SIZE"] else 1
        return uapi.API_VERSION if name == "KVM_GET_API_VERSION" else 0
"""


def play(package: Path, domain: bytes) -> None:
    """Put it into a copy of the package: the host on which the record in this domain was made."""
    element = record.find(parse(domain))
    assert element is not None
    target = record.read(element).target
    identity = {id_of(name): value for name, value in target.registers.items()}
    seen = {
        uapi.REG_ARM64_CORE_X0 + 2 * index: value
        for index, value in enumerate(target.seen.values())
    }
    # The guest has come to its last instruction: behind an MRS for each register.
    stopped = {uapi.REG_ARM64_CORE_PC: 0x4000_0000 + 4 * len(seen)}
    answers = (
        {**identity, **seen, **stopped},
        set(identity),
        tuple(sorted(unpack_ids(target.reglist))),
        target.number,
    )
    with (package / "kvm/device.py").open("a", encoding="utf-8") as file:
        file.write(_SOURCE.format(answers=answers))
