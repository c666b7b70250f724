# SPDX-License-Identifier: LGPL-2.1-or-later
"""A kernel with SELinux, for a host in a directory: selinuxfs that answers from a few rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmarm_plugin.host import marks, selinux

_CLASSES = {
    "file": ("read", "execute", "open", "execute_no_trans", "entrypoint", "unlink"),
    "process": ("transition", "noatsecure"),
    "chr_file": ("read", "write", "ioctl", "open"),
}

# Of selinux-policy, as Fedora 42 and RHEL 10 have it: what virtqemud may do, as `sesearch -A` says.
# The boolean virt_hooks_unconfined has rules for virtnetworkd_t alone.
FEDORA = """
allow virtqemud_t bin_t:file { execute execute_no_trans open read };
allow virtqemud_t virt_hook_t:file { open read };
allow virtqemud_t var_run_t:file { open read };
allow virtqemud_t kvmarm_var_run_t:file { open read unlink };
allow virtqemud_t kvm_device_t:chr_file { ioctl open read write };
allow virtqemud_t svirt_t:process { transition };
type_transition init_t virtqemud_exec_t:process virtqemud_t;
"""
# RHEL 9's, where virtqemud is virtd_exec_t, and virtd_t unconfined.
RHEL9 = """
allow virtd_t bin_t:file { execute execute_no_trans open read unlink };
allow virtd_t virt_hook_t:file { execute execute_no_trans open read unlink };
allow virtd_t kvmarm_var_run_t:file { execute execute_no_trans open read unlink };
allow virtd_t kvm_device_t:chr_file { ioctl open read write };
allow virtd_t svirt_t:process { noatsecure transition };
type_transition init_t virtqemud_exec_t:process virtd_t;
"""


class FakeSELinux:
    """One that enforces `rules`, until `off` is called.

    Attributes:
        labels: path → type of a file; those of directories hold for what is in them.
        asked: what the kernel was asked, from the first on.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, rules: str = FEDORA) -> None:
        self.rules = rules
        self.permissive = False
        self.asked: list[str] = []
        self._root = root
        self.labels = {
            "/etc/libvirt/hooks": "virt_hook_t",
            "/usr/bin": "bin_t",
            "/usr/sbin/virtqemud": "virtqemud_exec_t",
            "/dev/kvm": "kvm_device_t",
            marks.DIRECTORY: "kvmarm_var_run_t",
        }
        self._write("sys/fs/selinux/enforce", "1")
        for number, (name, permissions) in enumerate(_CLASSES.items(), 1):
            self._write(f"sys/fs/selinux/class/{name}/index", str(number))
            for bit, permission in enumerate(permissions, 1):
                self._write(f"sys/fs/selinux/class/{name}/perms/{permission}", str(bit))
        self._write("proc/1/attr/current", _context("init_t") + "\0")
        self._write("proc/self/attr/current", _context("unconfined_t") + "\n")
        self._write("usr/sbin/virtqemud", "")
        self._write(
            "etc/selinux/config", "# of libselinux\nSELINUX=enforcing\nSELINUXTYPE=targeted\n"
        )
        contexts = f"{_context('svirt_t')}\n{_context('svirt_tcg_t')}\n"
        self._write("etc/selinux/targeted/contexts/virtual_domain_context", contexts)
        monkeypatch.setattr(selinux.SELinux, "_ask", lambda _, *arguments: self._answer(*arguments))
        monkeypatch.setattr(selinux.SELinux, "label", lambda _, path: self._label(path))

    def off(self) -> None:
        self._write("sys/fs/selinux/enforce", "0")

    def confine(self, pid: int, domain: str) -> None:
        """A process that runs."""
        self._write(f"proc/{pid}/attr/current", _context(domain) + "\0")

    def _write(self, name: str, text: str) -> None:
        path = self._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def _label(self, path: str) -> str:
        for name in (path, *map(str, Path(path).parents)):
            if name in self.labels:
                return _context(self.labels[name])
        raise FileNotFoundError(2, "No such file or directory")

    def _answer(self, file: str, question: str) -> str:
        """As sel_write_access and sel_write_create (security/selinux/selinuxfs.c) do."""
        self.asked.append(f"{file}: {question}")
        source, target, index, *rest = question.split()
        kind = [*_CLASSES][int(index) - 1]
        between = f"{selinux.type_of(source)} {selinux.type_of(target)}:{kind} "
        lines = [line.rstrip(";") for line in self.rules.splitlines()]
        if file == "create":
            same = source if kind == "process" else target  # a file is what its directory is
            words = [
                line.split() for line in lines if line.startswith(f"type_transition {between}")
            ]
            return _context(words[0][-1]) if words else same
        allowed = [line.partition("{")[2] for line in lines if line.startswith(f"allow {between}")]
        granted = " ".join(allowed).split()
        bits = sum(1 << bit for bit, name in enumerate(_CLASSES[kind]) if name in granted)
        assert int(rest[0], 16) < 1 << len(_CLASSES[kind])
        return f"{bits:x} ffffffff 0 ffffffff 7 {int(self.permissive)}"


def _context(name: str) -> str:
    return f"system_u:object_r:{name}:s0"
