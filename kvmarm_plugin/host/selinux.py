# SPDX-License-Identifier: LGPL-2.1-or-later
"""SELinux: what the policy that this kernel has loaded lets libvirt's daemon run, and how. The
kernel is asked, through selinuxfs (security/selinux/selinuxfs.c in Linux), and not the policy's
sources: those of Fedora and of RHEL differ, and an administrator may have added to them.
"""

from __future__ import annotations

import contextlib
import os

from . import daemons

_FILES = "sys/fs/selinux"
_LONGEST = 4096  # bytes of an answer
_TYPE = b"SELINUXTYPE="
_DEFAULT_TYPE = "targeted"
_BLANK_OR_CONTROL = bytes([*range(0x21), 0x7F])
_PERMISSIVE = 1  # of the flags of an answer, SELINUX_AVD_FLAGS_PERMISSIVE


class SELinux:
    """The policy, of a host that enforces it.

    Args:
        root: where the host's directories are.

    Its methods raise OSError or ValueError where the host does not answer.
    """

    def __init__(self, root: str | os.PathLike[str] = "/") -> None:
        self._root = os.fspath(root)

    def enforces(self) -> bool:
        """Whether SELinux is on, and denies what its policy does not allow."""
        try:
            return self._read("enforce") == "1"
        except FileNotFoundError:
            return False

    def daemons(self) -> dict[str, str]:
        """The daemons that run, or if none does the first that is installed: name → context."""
        found = {
            daemon.name: self._text(f"proc/{daemon.pid}/attr/current")
            for daemon in daemons.running(self._root)
        }
        for name in daemons.DAEMONS:
            program = f"/usr/sbin/{name}"
            if not found and os.path.exists(self._path(program)):
                starter = self._text("proc/1/attr/current")
                found[name] = self._create(starter, self.label(program), "process")
        return found

    def label(self, path: str) -> str:
        """The context of a file, of what a link leads to."""
        label = os.getxattr(self._path(path), "security.selinux")
        return label.decode().rstrip("\0\n")

    def label_of_new(self, directory: str) -> str:
        """The context that a file gets which this process makes in a directory."""
        return self._create(self._text("proc/self/attr/current"), self.label(directory), "file")

    def run(self, context: str, label: str) -> str:
        """What a script with this label runs as when a process runs it; empty if it may not.

        Args:
            context: of the process.
        """
        becomes = self._create(context, label, "process")
        # What its interpreter does, too, which opens the script.
        wanted = [(context, label, "file", "execute"), (becomes, label, "file", "read open")]
        if becomes == context:
            wanted.append((context, label, "file", "execute_no_trans"))
        else:
            wanted.append((context, becomes, "process", "transition"))
            wanted.append((becomes, label, "file", "entrypoint"))
        return becomes if all(self.allows(*each) for each in wanted) else ""

    def securing_qemu(self) -> list[str]:
        """The daemons whose guests' QEMU is run under secure execution, by name: those that may not
        run it without (noatsecure; selinux_bprm_creds_for_exec, security/selinux/hooks.c in Linux).
        """
        guests = self._context_of_guests()
        return [
            name
            for name, context in self.daemons().items()
            if not self.allows(context, guests, "process", "noatsecure")
        ]

    def _context_of_guests(self) -> str:
        """What libvirt runs QEMU as if it uses KVM (virSecuritySELinuxQEMUInitialize)."""
        path = f"etc/selinux/{self._policy_type()}/contexts/virtual_domain_context"
        return self._text(path).partition("\n")[0].strip()

    def _policy_type(self) -> str:
        """The policy's directory, as libselinux finds it (init_selinux_config, selinux_config.c):
        the last line that names one counts, without regard to case and to blanks at its ends.
        """
        found = _DEFAULT_TYPE
        with contextlib.suppress(OSError), open(self._path("etc/selinux/config"), "rb") as file:
            for line in map(bytes.lstrip, file):
                if line[: len(_TYPE)].upper() == _TYPE:
                    found = os.fsdecode(line[len(_TYPE) :].lstrip().rstrip(_BLANK_OR_CONTROL))
        return found

    def allows(self, source: str, target: str, kind: str, permissions: str) -> bool:
        """Whether one context may do all of this to another, or may do whatever it likes.

        Args:
            source, target: contexts.
            kind: of object, such as "file".
            permissions: of that class, with spaces in between.
        """
        bits = 0
        for name in permissions.split():
            bits |= 1 << int(self._read(f"class/{kind}/perms/{name}")) - 1
        answer = self._ask("access", f"{source} {target} {self._index(kind)} {bits:x}")
        allowed, *_, flags = (int(word, 16) for word in answer.split())
        return not bits & ~allowed or bool(flags & _PERMISSIVE)

    def _create(self, source: str, target: str, kind: str) -> str:
        return self._ask("create", f"{source} {target} {self._index(kind)}")

    def _index(self, kind: str) -> int:
        return int(self._read(f"class/{kind}/index"))

    def _ask(self, name: str, question: str) -> str:
        """What a file of selinuxfs answers: written to and read through one descriptor."""
        with open(self._path(f"{_FILES}/{name}"), "r+b", buffering=0) as file:
            file.write(question.encode())
            return (file.read(_LONGEST) or b"").decode().rstrip("\0\n")

    def _read(self, name: str) -> str:
        return self._text(f"{_FILES}/{name}")

    def _text(self, name: str) -> str:
        with open(self._path(name), encoding="utf-8") as file:
            return file.read(_LONGEST).rstrip("\0\n")

    def _path(self, name: str) -> str:
        return os.path.join(self._root, name.lstrip("/"))


def type_of(context: str) -> str:
    """virtqemud_t of system_u:system_r:virtqemud_t:s0."""
    parts = context.split(":")
    return parts[2] if len(parts) > 2 else context
