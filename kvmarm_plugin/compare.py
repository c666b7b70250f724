# SPDX-License-Identifier: LGPL-2.1-or-later
"""Compare: between which hosts a host-model guest can migrate, in which direction, and why not.

For each ordered pair of hosts the guest is one that is resolved on the first with everything left open, on the newest
machine type that both know.
"""

from __future__ import annotations

from .check import check
from .errors import KvmarmError
from .policy import Policy
from .profile import HostProfile
from .resolve import Resolver, Wish
from .target import Target
from .value import Value
from .verdict import REFUSES, WRONG, Finding, in_short

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Pair(Value):
    """What happens to a guest of one host on another.

    Attributes:
        source, destination: names of the hosts.
        findings: as of `check`, the most blocking first.
        problem: why no guest can be resolved on the source; empty if one can.
    """

    __slots__ = ("destination", "findings", "problem", "source")
    source: str
    destination: str
    findings: tuple[Finding, ...]
    problem: str

    def __init__(self, source: str, destination: str, findings: tuple[Finding, ...], problem: str) -> None:
        self._freeze(locals())

    @property
    def blocking(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity in (REFUSES, WRONG)]

    @property
    def possible(self) -> bool:
        return not self.problem and not self.blocking

    def as_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "destination": self.destination,
            "possible": self.possible,
            "problem": self.problem,
            "findings": [finding.as_json() for finding in self.findings],
        }


def compare(hosts: list[HostProfile], policy: Policy) -> list[Pair]:
    """Every ordered pair of different hosts, by source and then by destination, in the order given."""
    return [_pair(source, destination, policy) for source in hosts for destination in hosts if source is not destination]


def as_text(hosts: list[HostProfile], pairs: list[Pair]) -> str:
    """A matrix (rows: from; columns: to), and under it the reasons."""
    numbers = {host.name: str(number) for number, host in enumerate(hosts, 1)}
    width = max((len(host.name) for host in hosts), default=0)
    possible = {(pair.source, pair.destination): pair.possible for pair in pairs}
    lines = ["from \\ to".ljust(width + 5) + " ".join(number.rjust(3) for number in numbers.values())]
    for host in hosts:
        cells = ("-" if other is host else "yes" if possible[host.name, other.name] else "no" for other in hosts)
        lines.append(f"{numbers[host.name]:>2}  {host.name.ljust(width)} " + " ".join(cell.rjust(3) for cell in cells))
    for pair in pairs:
        if not pair.possible:
            reasons = [pair.problem] if pair.problem else in_short(pair.blocking)
            lines += ["", f"{pair.source} to {pair.destination}: no", *(f"  {reason}" for reason in reasons)]
    return "\n".join(lines) + "\n"


def _pair(source: HostProfile, destination: HostProfile, policy: Policy) -> Pair:
    try:
        target = _target(source, destination, policy)
    except KvmarmError as error:
        return Pair(source.name, destination.name, (), str(error))
    return Pair(source.name, destination.name, tuple(check(target, destination)), "")


def _target(source: HostProfile, destination: HostProfile, policy: Policy) -> Target:
    """A guest of the source's, on the newest machine type that both know, if there is one."""
    here, there = (host.qemu.machines if host.qemu else () for host in (source, destination))
    machine = next((machine for machine in here if machine in there), "")
    architecture = "aarch64" if source.kvm_architecture == "arm64" else "armv7l"
    return Resolver(source, policy).target(Wish(architecture, machine))
