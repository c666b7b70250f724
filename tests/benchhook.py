# SPDX-License-Identifier: LGPL-2.1-or-later
"""The hook with a kernel that answers at once, for `make bench` on a machine that is no ARM host: runs as `python3 -I -S`.

Arguments: the package's directory, a file of canned answers (marshal), then the hook's own. As frugal with imports as the hook.
"""

import ctypes
import errno
import marshal
import os
import sys

package, answers_file, *arguments = sys.argv[1:]
sys.path.insert(0, package)

from kvmarm_plugin.kvm import device, uapi  # noqa: E402

with open(answers_file, "rb") as file:
    answers = marshal.load(file)


class CannedKernel(device.Kernel):
    """Answers from a file: the registers of one vCPU, and what its guest read."""

    def open(self, path):  # type: ignore[no-untyped-def]
        return 3

    def close(self, fd):  # type: ignore[no-untyped-def]
        pass

    def ioctl(self, fd, name, arg):  # type: ignore[no-untyped-def]
        if name == "KVM_GET_ONE_REG":
            value = answers["registers"].get(arg.id, 0).to_bytes(device.register_size(arg.id), "little")
            ctypes.memmove(arg.addr, value, len(value))
        elif name == "KVM_GET_REG_LIST":
            ids = answers["reglist"]
            if arg.n < len(ids):
                arg.n = len(ids)
                raise device.KvmError(name, errno.E2BIG)
            arg.reg[:] = ids
        elif name == "KVM_ARM_PREFERRED_TARGET":
            arg.target = answers["target"]
        elif name == "KVM_CHECK_EXTENSION":
            return 48 if arg == uapi.CAPABILITIES["ARM_VM_IPA_SIZE"] else 1
        return uapi.API_VERSION if name == "KVM_GET_API_VERSION" else 0

    def map_run(self, fd, size):  # type: ignore[no-untyped-def]
        return uapi.RunMmio(exit_reason=uapi.EXIT_MMIO, phys_addr=0x80000000)


device.Kernel = CannedKernel  # type: ignore[misc]
machine = os.uname()
os.uname = lambda: os.uname_result((machine[0], machine[1], "6.12.0", machine[3], "aarch64"))

from kvmarm_plugin import hook  # noqa: E402

sys.exit(hook.verify(arguments[0], arguments[1], sys.stdin.buffer.read()))
