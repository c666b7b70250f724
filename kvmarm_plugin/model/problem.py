# SPDX-License-Identifier: LGPL-2.1-or-later
"""A problem: what could not be measured on a host, and why."""

from __future__ import annotations

from ..basics.value import Value

# The part of a host that has CPUs of which nobody tells what they are.
UNKNOWN_CPUS = "CPUs of an unknown kind"


class Problem(Value):
    """One thing that a profile lacks. As text it is one line.

    Attributes:
        part: of the host: "KVM", "QEMU", "libvirt", "cluster 0-3" or another; empty where an older
            profile does not tell.
        message: what happened.
        hint: what to try next; empty where there is nothing to say.
        cpus: of a cluster of which nothing could be measured, such as "4-5"; empty where it is
            about something else.
    """

    part: str
    message: str
    hint: str = ""
    cpus: str = ""

    @property
    def reason(self) -> str:
        """The part and the message, without the hint."""
        return f"{self.part}: {self.message}" if self.part else self.message

    def __str__(self) -> str:
        return f"{self.reason} (hint: {self.hint})" if self.hint else self.reason
