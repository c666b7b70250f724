# SPDX-License-Identifier: LGPL-2.1-or-later
"""What it takes to make a pool of hosts that are none yet: words on kernel command lines, upgrades,
newer firmware, and hosts to leave out.

A plan is found by trying: the steps are applied to the profiles, as the kernel would apply them
(registers/overrides.tsv), and the rules of `common` say whether that is enough. What a host really
gives once the steps are taken only `kvmarm probe` knows.
"""

from __future__ import annotations

from ..basics.untrusted import shown
from ..basics.value import Value
from ..judge.wording import named_in
from ..model.features import FEATURES, OFFERED_BY, SVE, Feature
from ..model.guest_registers import GUEST_REGISTERS
from ..model.profile import Cluster, HostProfile, Qemu
from ..registers.overrides import Override, override_of
from ..registers.rules import kernel_version, point_release, safe_value
from ..registers.table import fields_of
from .kinds import Kind, kernel_age
from .obstacles import Obstacle, find_obstacles

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

BOOT, KERNEL, QEMU, FIRMWARE, LEAVE_OUT = (
    "boot",
    "upgrade Linux",
    "upgrade QEMU",
    "update the firmware",
    "leave out",
)


# What a guest reads and nothing can change.
_FIXED = {name: register.fixed for name, register in GUEST_REGISTERS.items() if register.fixed}


class Step(Value):
    """One thing to do.

    Attributes:
        action: BOOT, KERNEL, QEMU, FIRMWARE or LEAVE_OUT.
        hosts: names of the hosts to do it to.
        what: the words of the kernel's command line, the version to upgrade to, or what the
            firmware has to offer; empty to leave out.
        why: what is in the way without it.
    """

    action: str
    hosts: tuple[str, ...]
    what: str
    why: str


class Plan(Value):
    """How to get to a pool.

    Attributes:
        steps: what to do; the hosts that need no step are in the pool as they are.
        hosts: profiles as they are expected to be then, one of each kind, without those left out.
        obstacles: between the hosts that have the same CPU as those that stay, as they are now.
    """

    steps: tuple[Step, ...]
    hosts: tuple[HostProfile, ...]
    obstacles: tuple[Obstacle, ...]

    @property
    def left_out(self) -> frozenset[str]:
        """Names of the hosts that are no part of it."""
        return frozenset(
            name for step in self.steps if step.action == LEAVE_OUT for name in step.hosts
        )

    def words(self, host: str) -> list[str]:
        """What is to be added to the kernel's command line of a host."""
        return [
            word
            for step in self.steps
            if step.action == BOOT and host in step.hosts
            for word in step.what.split()
        ]


def plan_for(kinds: list[Kind]) -> Plan:
    """The steps that make a pool of as many of these hosts as can be.

    Hosts with the most in common stay: those of the CPU, timer and DC ZVA block that most of them
    have. Their differences are levelled as far as command lines and upgrades go; who still cannot
    exchange guests with the most is left out.
    """
    by_cpu: dict[object, list[Kind]] = {}
    for kind in kinds:
        if kind.host.clusters and kind.host.qemu:
            by_cpu.setdefault(_cpu(kind.host), []).append(kind)
    kept = _Planner(max(by_cpu.values(), key=_size, default=[]))
    in_the_way = kept.run()
    steps = [step for kind in kinds for step in kept.steps(kind)]
    return Plan(tuple(_merged(steps)), tuple(kept.hosts.values()), in_the_way)


def apply_override(host: HostProfile, override: Override) -> HostProfile:
    """A host as it would be with this word on its kernel's command line."""
    taken = [feature for feature in FEATURES if feature.override == override.word]
    gone = {OFFERED_BY[bit] for feature in taken for bit in feature.bits}
    capabilities = {name: answer for name, answer in host.capabilities.items() if name not in gone}
    clusters = tuple(_override_cluster(cluster, override, taken) for cluster in host.clusters)
    return host.replace(
        overrides=(*host.overrides, override.word),
        capabilities=capabilities,
        clusters=clusters,
        qemu=host.qemu and _override_qemu(host.qemu, taken),
    )


def _override_cluster(cluster: Cluster, override: Override, taken: list[Feature]) -> Cluster:
    vcpus = tuple(
        vcpu.replace(
            registers={
                name: _override_value(name, value, override)
                for name, value in vcpu.registers.items()
            }
        )
        for vcpu in cluster.vcpus
        if not any(feature.is_in(vcpu.features) for feature in taken)
    )
    return cluster.replace(vcpus=vcpus, sve_lengths=() if SVE in taken else cluster.sve_lengths)


def _override_value(register: str, value: int, override: Override) -> int:
    for field in (
        fields_of(register) if any(register == name for name, _ in override.fields) else ()
    ):
        forced = override.fields.get((register, field.name))
        if forced is not None and safe_value(field, forced, field.of(value)) == forced:
            value = field.put(value, forced)
    return value


def _override_qemu(qemu: Qemu, taken: list[Feature]) -> Qemu:
    """QEMU's "host" as query-cpu-model-expansion shows it without these features: their properties,
    and those of the lengths of SVE, are still there, and off.
    """
    stems = tuple(feature.qemu for feature in taken)
    return qemu.replace(
        host_properties={
            name: False if name.startswith(stems) else value
            for name, value in qemu.host_properties.items()
        }
    )


# -- finding the steps ---------------------------------------------------------------------------


class _Planner:
    """Kinds of hosts of one CPU on their way to a pool.

    Attributes:
        hosts: names of a kind's hosts → the profile that speaks for them, with the steps so far
            taken.
        reasons: names of a kind's hosts and an action → why it is needed.
    """

    def __init__(self, kinds: list[Kind]) -> None:
        self.hosts = {kind.names: kind.host for kind in kinds}
        self._kernels = {kind.names: sorted(map(kernel_age, kind.hosts)) for kind in kinds}
        self.reasons: dict[tuple[tuple[str, ...], str], str] = {}
        self._firmware: dict[tuple[str, ...], dict[str, int]] = {}  # what it has to offer
        self._changed: set[tuple[str, ...]] = set()  # in this round

    def run(self) -> tuple[Obstacle, ...]:
        """Change hosts, or leave some out, until those that are left exchange guests. Returns what
        was in the way at first.
        """
        at_first: tuple[Obstacle, ...] = ()
        while self.hosts:
            found = find_obstacles(list(self.hosts.values()))
            at_first = at_first or tuple(found)
            if not found:
                break
            # Command lines first: what they level needs no upgrade. Firmware last: whether there is
            # a newer one that helps, no profile tells.
            for mend in (
                self._override,
                self._upgrade_kernel,
                self._upgrade_qemu,
                self._update_firmware,
            ):
                self._changed.clear()
                for obstacle in found:
                    mend(obstacle)
                if self._changed:
                    break
            else:
                self._leave_out(found)
        return at_first

    def steps(self, kind: Kind) -> list[Step]:
        """What makes of a host as it is the one that was arrived at."""
        then, now = self.hosts.get(kind.names), kind.host
        if then is None:
            why = self.reasons.get((kind.names, LEAVE_OUT)) or self._why_apart(now)
            return [Step(LEAVE_OUT, kind.names, "", why)]
        words = [word for word in then.overrides if word not in now.overrides]
        changes = (
            (KERNEL, f"to {_kernel_name(then, now)}" if then.kernel != now.kernel else ""),
            (QEMU, _qemu_name(then.qemu, now.qemu)),
            (BOOT, " ".join(words)),
            (FIRMWARE, _offers(self._firmware.get(kind.names, {}))),
        )
        return [
            Step(action, kind.names, what, self.reasons[kind.names, action])
            for action, what in changes
            if what
        ]

    def _override(self, obstacle: Obstacle) -> None:
        """Take a field from the host that has more of it, if its kernel knows the word."""
        values = obstacle.finding.values
        if "field" not in values:
            return
        less = min(values["recorded"], values["local"])
        override = override_of(values["register"], values["field"], less)
        if override is None:
            return
        more = values["recorded"] > values["local"]
        names = self._names(obstacle.source if more else obstacle.destination)
        host = self.hosts[names]
        if override.word not in host.overrides and kernel_version(host.kernel) >= kernel_version(
            override.since
        ):
            self._change(names, apply_override(host, override), BOOT, obstacle)

    def _upgrade_kernel(self, obstacle: Obstacle) -> None:
        """Give the host with the older kernel the other's: with the same CPU it is then what the
        other is.
        """
        self._upgrade(obstacle, kernel_age, _kvm, _with_kernel, KERNEL)

    def _upgrade_qemu(self, obstacle: Obstacle) -> None:
        """The same with QEMU and libvirt, if that helps: most of what a guest is, is the
        kernel's.
        """
        self._upgrade(obstacle, _release, _release, _with_qemu, QEMU)

    def _update_firmware(self, obstacle: Obstacle) -> None:
        """Have the firmware offer the mitigation that the other's does: the CPUs are the same, and
        KVM shows what the firmware offers (get_kernel_wa_level).
        """
        if obstacle.finding.kind != "register-refused-firmware":
            return
        names = self._names(obstacle.destination)
        register, value = (obstacle.finding.values[name] for name in ("register", "recorded"))
        self._firmware.setdefault(names, {})[register] = value
        self._change(names, _with_register(self.hosts[names], register, value), FIRMWARE, obstacle)

    def _upgrade(
        self,
        obstacle: Obstacle,
        age: Callable[[HostProfile], Any],
        version: Callable[[HostProfile], tuple[int, int]],
        with_that_of: Callable[[HostProfile, HostProfile], HostProfile],
        action: str,
    ) -> None:
        """Upgrade the older end of an obstacle: within its version to the newest point release that
        some host has; else to the newer version that most hosts have, and not many hosts for a few
        newer ones.
        """
        ends = self._names(obstacle.source), self._names(obstacle.destination)
        older, newer = (
            self.hosts[names] for names in sorted(ends, key=lambda names: age(self.hosts[names]))
        )
        if self._changed.intersection(ends) or age(older) == age(newer):
            return
        within = version(older) == version(newer)
        names = self._names(older.name)
        models = [
            host
            for others, host in self.hosts.items()
            if age(host) > age(older)
            and (version(host) == version(older)) is within
            and host.overrides == older.overrides
            # Where both have the same kernels, or each has older ones, something else differs.
            and (action != KERNEL or self._kernels[names][-1] < self._kernels[others][0])
        ]
        model = max(models, key=lambda host: (self._count(version, host), age(host)), default=older)
        if model is older or self._count(version, model) < self._count(version, older):
            return
        upgraded = with_that_of(older, model)
        others = [upgraded if end == names else self.hosts[end] for end in ends]
        if action == KERNEL or _about(obstacle) not in map(_about, find_obstacles(others)):
            self._change(names, upgraded, action, obstacle)
            if action == KERNEL:
                self._kernels[names] = self._kernels[self._names(model.name)]

    def _count(self, of: Callable[[HostProfile], tuple[int, int]], like: HostProfile) -> int:
        """How many hosts have this version."""
        return sum(len(names) for names, host in self.hosts.items() if of(host) == of(like))

    def _leave_out(self, found: list[Obstacle]) -> None:
        """Keep the most hosts without an obstacle between any two: grown from each kind in turn,
        the largest kinds first.
        """
        apart = {frozenset((obstacle.source, obstacle.destination)) for obstacle in found}
        order = sorted(self.hosts, key=lambda names: (-len(names), names))
        stay: list[tuple[str, ...]] = []
        for first in order:
            clique: list[tuple[str, ...]] = []
            for names in (first, *order):
                ends = [self.hosts[other].name for other in (*clique, names)]
                if names not in clique and not any(
                    frozenset((end, ends[-1])) in apart for end in ends
                ):
                    clique.append(names)
            if sum(map(len, clique)) > sum(map(len, stay)):
                stay = clique
        for names in [names for names in self.hosts if names not in stay]:
            host = self.hosts.pop(names)
            involved = [
                obstacle
                for obstacle in found
                if host.name in (obstacle.source, obstacle.destination)
            ]
            self.reasons[names, LEAVE_OUT] = involved[0].in_short()

    def _why_apart(self, host: HostProfile) -> str:
        """Why a host is none of these: it cannot run guests, or has another CPU."""
        if not host.clusters or not host.qemu:
            return "; ".join(map(str, host.problems)) or "its profile has no KVM or no QEMU"
        other = next(iter(self.hosts.values()), host)
        if host.kvm_architecture != other.kvm_architecture:
            return f"its architecture is {host.architecture}, theirs {other.architecture}"
        (mine, *more), (theirs, *others) = host.clusters, other.clusters
        if mine.midr != theirs.midr or mine.revidr != theirs.revidr or more or others:
            return f"its CPU is {_cpus(host)}, theirs {_cpus(other)}"
        for name, what in _FIXED.items():
            values = [cluster.seen.get(name) for cluster in (mine, theirs)]
            if values[0] != values[1]:
                its, their = (_read(name, value) for value in values)
                why = f"its {what} ({name}) is another: {its}, theirs: {their}"
                if GUEST_REGISTERS[name].of_firmware and host.platform == other.platform != "":
                    board = shown(host.platform, 60)
                    why += f"; firmware sets it, and newer firmware may help, as both are {board}"
                return why
        return ""

    def _names(self, spokesman: str) -> tuple[str, ...]:
        return next(names for names, host in self.hosts.items() if host.name == spokesman)

    def _change(
        self, names: tuple[str, ...], host: HostProfile, action: str, obstacle: Obstacle
    ) -> None:
        self.hosts[names] = host
        self.reasons.setdefault((names, action), obstacle.in_short())
        self._changed.add(names)


def _about(obstacle: Obstacle) -> object:
    """What is in the way of whom, whatever forbids it."""
    return obstacle.source, obstacle.destination, named_in(obstacle.finding, "subject")


def _cpu(host: HostProfile) -> object:
    """What no step changes: hosts that differ in it are never one pool."""
    clusters = [
        (cluster.midr, cluster.revidr, *map(cluster.seen.get, _FIXED)) for cluster in host.clusters
    ]
    return host.kvm_architecture, frozenset(clusters)  # boards number their clusters as they like


def _read(register: str, value: int | None) -> str:
    """What a guest read, for people."""
    return "not read" if value is None else GUEST_REGISTERS[register].text(value)


def _cpus(host: HostProfile) -> str:
    return " and ".join(
        f"{cluster.part or 'unknown part'} (MIDR {cluster.midr:#x}, REVIDR"
        f" {cluster.revidr or 0:#x})"
        for cluster in host.clusters
    )


def _size(kinds: list[Kind]) -> int:
    return sum(len(kind.hosts) for kind in kinds)


def _kvm(host: HostProfile) -> tuple[int, int]:
    return kernel_age(host)[0]


def _release(host: HostProfile) -> tuple[int, int]:
    return host.qemu.release if host.qemu else (0, 0)


def _with_kernel(host: HostProfile, model: HostProfile) -> HostProfile:
    """A host with the kernel of one that has the same CPU, and what that gives."""
    same = ("kernel", "clusters", "capabilities", "ipa_bits", "gic_versions")
    return host.replace(**{name: getattr(model, name) for name in same})


def _with_qemu(host: HostProfile, model: HostProfile) -> HostProfile:
    """A host with the QEMU and libvirt of another."""
    return host.replace(qemu=model.qemu, libvirt=model.libvirt, cpu_features=model.cpu_features)


def _merged(steps: list[Step]) -> list[Step]:
    """Steps that several kinds share, once; hosts to leave out come last."""
    merged: dict[tuple[str, str], Step] = {}
    for step in steps:
        known = merged.setdefault((step.action, step.what or step.why), step)
        merged[step.action, step.what or step.why] = known.replace(
            hosts=tuple(sorted({*known.hosts, *step.hosts}))
        )
    return sorted(merged.values(), key=lambda step: (step.action == LEAVE_OUT, step.hosts))


def _with_register(host: HostProfile, name: str, value: int) -> HostProfile:
    """A host whose vCPUs have another value in a register."""
    return host.replace(
        clusters=tuple(
            cluster.replace(
                vcpus=tuple(
                    vcpu.replace(registers={**vcpu.registers, name: value})
                    for vcpu in cluster.vcpus
                )
            )
            for cluster in host.clusters
        )
    )


def _offers(registers: dict[str, int]) -> str:
    said = ", ".join(f"{name} {value:#x}" for name, value in sorted(registers.items()))
    return f"to one that offers {said}, if there is one; else leave it out" if said else ""


def _qemu_name(then: Qemu | None, now: Qemu | None) -> str:
    """The QEMU to upgrade to; empty for the same. One whose machine types have other names is
    another distribution's, and no version of the own one has them.
    """
    if then is None or (now and then.release == now.release):
        return ""
    theirs, ours = (
        {machine.rstrip(".0123456789") for machine in qemu.machines} if qemu else set()
        for qemu in (then, now)
    )
    foreign = theirs and ours and theirs.isdisjoint(ours)
    whose = f", of the distribution whose QEMU has {then.machines[0]}" if foreign else ""
    return f"to {then.version}{whose}"


def _kernel_name(then: HostProfile, now: HostProfile) -> str:
    """The kernel to upgrade to: of another version than now, the version is enough."""
    version = kernel_version(then.kernel)
    if version == kernel_version(now.kernel) or version != _kvm(then):
        return point_release(then.kernel)
    return ".".join(map(str, version))
