# SPDX-License-Identifier: LGPL-2.1-or-later
"""Resolve: intent + host profile + policy → target → concrete domain XML.

`Resolver` does it for the domains of one host. It reads what a domain asks for, decides the
features, looks up the vCPU that was measured with exactly those, and hands the target to `rewrite`.
Domains that do not ask (no host-model, another architecture, no KVM) come back byte for byte.
"""

from __future__ import annotations

import shlex

from .. import __version__
from ..basics import cpulist
from ..basics.untrusted import shown
from ..domain import record, record_text, restoring, rewrite
from ..domain.levelling import LIBRARY, preloads, says
from ..domain.new_pins import new_pins, pinned_cpus, vcpus
from ..domain.pins import cpus_of, find_cluster, pins_of
from ..domain.record import Origin
from ..domain.xml import ARCHITECTURES, Element, asks_for_host_model, emulator_of, parse
from ..judge.arguments import find_overruled, find_unjudged
from ..model.guest_registers import readable
from ..model.policy import Policy
from ..model.problem import UNKNOWN_CPUS, Problem
from ..model.profile import Cluster, HostProfile, Qemu
from ..model.profile_json import digest
from ..model.target import Pinning, Target, sve_bitmap
from .address_space import guest_ipa_bits
from .features import choose_features
from .forms import Form, choose_form, emission_of, knobs_of, unsaid_of
from .partial import refuse
from .starting import check_start
from .wish import ResolveError, Wish, read_wish, why_not_adopted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Callable

    from ..judge.finding import Finding


class Resolver:
    """Resolves domains for one host.

    Args:
        profile: of the host that the domains will run on, or of a pool's baseline.
        policy: what to prefer.
        origin: what records say of where they were made; by default that it was on the profile's
            host.
        confirm: called with each new target and the wish behind it, to raise a KvmarmError if it
            cannot be kept here.
        clusters: of the host that the domains will run on, with its CPU numbers; by default the
            profile's.
        advise: called with a line for people about what is allowed, and unwise.
        ask: called with the path of another QEMU that a domain names, gives what that has; None
            where it is not asked, and then the profile's stands for it. It raises a KvmarmError.

    Raises:
        ResolveError: the profile has no list of CPUs.
    """

    def __init__(
        self,
        profile: HostProfile,
        policy: Policy,
        origin: Origin | None = None,
        confirm: Callable[[Target, Wish], None] = lambda *_: None,
        clusters: tuple[Pinning, ...] | None = None,
        advise: Callable[[str], None] = lambda _: None,
        ask: Callable[[str], Qemu | None] = lambda _: None,
    ) -> None:
        self.profile = profile
        self.policy = policy
        self._origin = origin
        self._confirm = confirm
        self._clusters = clusters_of(profile) if clusters is None else clusters
        self._advise = advise
        self._ask = ask
        self._of_others: dict[str, Resolver] = {}
        self._answers: dict[Wish, tuple[Target, rewrite.Emission, list[bytes]]] = {}

    def resolve(self, source: bytes, machine: str = "") -> bytes:
        """A domain's XML with its host-model made concrete; the XML as it is if the domain does not
        ask.

        Args:
            machine: machine type in place of the domain's own, which stays the intent.

        Raises:
            DomainXMLError, RecordError: the XML or the record in it cannot be used.
            ResolveError: this host cannot give what the domain asks for.
        """
        domain = parse(source)
        if not asks_for_host_model(domain, self.profile.architecture):
            return source
        return self._for(domain)._concrete(source, domain, machine)

    def pin(self, source: bytes) -> bytes:
        """The XML of a domain that never asked for host-model, with everything concrete that it
        leaves to QEMU: it keeps what it has here, if the policy prefers nothing else.

        Raises:
            DomainXMLError, RecordError: the XML or the record in it cannot be used.
            ResolveError: it is no such domain, or this host does not start it.
        """
        domain = parse(source)
        reason = why_not_adopted(domain, self.profile.architecture)
        if reason:
            raise ResolveError(reason)
        return self._for(domain)._concrete(source, domain, "")

    def _for(self, domain: Element) -> Resolver:
        """The resolver of the QEMU that a domain names: this one, where that is not asked."""
        qemu, emulator = self.profile.qemu, emulator_of(domain)
        if not emulator or (qemu and qemu.binary == emulator):
            return self
        asked = self._ask(emulator)
        if asked is None:
            return self
        asked = asked.replace(binary=emulator)
        other = self._of_others.get(emulator)
        if other is None or other.profile.qemu != asked:  # it may have been upgraded
            profile = self.profile.replace(qemu=asked)
            other = Resolver(profile, self.policy, clusters=self._clusters, advise=self._advise)
            self._of_others[emulator] = other
        return other

    def _concrete(self, source: bytes, domain: Element, machine: str) -> bytes:
        if record.find(domain) is not None:
            # Resolved or adopted before, and its <cpu> is the user's again: start from the user's
            # XML.
            source = restoring.restore(source, domain)
            domain = parse(source)
        wish = read_wish(domain, self.profile.architecture)
        if machine:
            wish = wish._replace(machine=machine)
        several = len(self._clusters) > 1
        if several:
            wish = wish._replace(cpus=pinned_cpus(domain), vcpus=vcpus(domain))
        if wish not in self._answers:
            target, form = self._decide(wish)
            self._confirm(target, wish)
            self._origin = self._origin or origin_of(self.profile)
            self._answers[wish] = (
                target,
                emission_of(target, form),
                record_text.format_facts(target, self._origin),
            )
        target, emission, facts = self._answers[wish]
        for overruled in find_overruled(domain, target):
            raise _overruled(overruled)
        for note in find_unjudged(domain, target):
            self._advise(f"{_title(domain)}: {note}")
        for name in ("maxphysaddr", "cache"):
            if domain.find(f"cpu/{name}"):
                raise ResolveError(f"libvirt takes <{name}> for x86 only", "remove it from <cpu>")
        if says(domain):
            raise ResolveError(
                "<qemu:commandline> has what kvmarm has written for another CPU, to level it",
                "remove what names kvmarm-level or KVMARM_LEVEL from it",
            )
        if target.level is not None and preloads(domain):
            raise ResolveError(
                "the domain has QEMU load a library of its own (LD_PRELOAD), and the pool's guests"
                " are levelled by another",
                "remove that <qemu:env>",
            )
        pins = self._pins(domain, target.pinning) if several else ("", ())
        self._warn_of_emulator(domain, target)
        return rewrite.concretise(source, domain, emission, facts, *pins)

    def _warn_of_emulator(self, domain: Element, target: Target) -> None:
        emulator, asked = emulator_of(domain), self.profile.qemu and self.profile.qemu.binary
        if emulator and asked and emulator != asked:
            other = shlex.quote(shown(emulator, 500))
            self._advise(
                f"{_title(domain)} names the emulator {shown(emulator, 120)};"
                f" machine types and properties are those of {shown(asked, 120)} (hint: to have"
                f" the other asked: kvmarm probe --qemu {other} -o FILE; then give FILE with"
                " --host)"
            )
            if target.level is not None:
                self._advise(
                    f"{_title(domain)} is levelled: if {shown(emulator, 120)} is a script that"
                    f" starts QEMU, that does not load {LIBRARY}, and ends (hint: name QEMU itself"
                    " in <emulator>)"
                )

    def target(self, wish: Wish) -> Target:
        """The target that a domain with this wish gets here. Raises ResolveError."""
        return self._decide(wish)[0]

    def _decide(self, wish: Wish) -> tuple[Target, Form]:
        profile = self.profile
        refuse(profile)
        if not profile.clusters:
            others = (
                problem for problem in profile.problems if problem.part not in ("libvirt", "QEMU")
            )
            why = next(others, Problem("", "its profile has no CPU cluster"))
            mended = "probe again once that is mended"
            if profile.architecture not in ARCHITECTURES:
                mended = "name an ARM host: --host PROFILE"
            hint = why.hint or mended
            raise ResolveError(f"{profile.title} cannot run KVM guests: {why.reason}", hint)
        if profile.qemu is None:
            of_qemu = (problem for problem in profile.problems if problem.part == "QEMU")
            why = next(of_qemu, Problem("QEMU", "not probed"))
            hint = why.hint or "install QEMU there and probe again"
            raise ResolveError(f"{profile.title} has no usable {why.reason}", hint)
        pinnings = self._pinnings(wish)
        clusters = [self._measured(pinning) for pinning in pinnings] or [
            _preferred(profile, self.policy, wish.vcpus)
        ]
        roams = self._kinds(pinnings) if len(pinnings) > 1 else ""
        target, form = self._on(clusters[0], wish, profile.qemu, roams)
        for other in clusters[1:]:
            from .roaming import check_roaming  # few guests roam, and it is slow to import

            check_roaming(
                target,
                self._on(other, wish, profile.qemu, roams)[0],
                clusters[0],
                other,
                profile,
                roams,
                bool(wish.cpus),
            )
        if roams:
            target = target.replace(roams=True)
        elif len(self._clusters) > 1:
            target = target.replace(pinning=self._pinning(clusters[0]))
        return target, form

    def _pinnings(self, wish: Wish) -> list[Pinning]:
        """The clusters that the domain's own pins name, or all if the policy says so; none if the
        policy is to choose one.
        """
        pinned = [
            pinning
            for pinning in self._clusters
            if not set(wish.cpus).isdisjoint(cpulist.parse(pinning.cpus))
        ]
        return pinned or ([*self._clusters] if self.policy.cluster == "all" else [])

    def _measured(self, pinning: Pinning) -> Cluster:
        """What was measured of a cluster. A pool's baseline has only those that all its members
        have.
        """
        cluster = find_cluster(pinning, self.profile.clusters)
        if cluster is None:
            have = ", ".join(map(self.profile.name_of, self.profile.clusters))
            raise ResolveError(
                f"the guest may run on CPUs {pinning.cpus}, of MIDR {pinning.midr:#x}, which"
                f" {self.profile.title} does not have",
                f"it has {have}: pin the guest to such CPUs, or remove its pins",
            )
        return cluster

    def _pinning(self, cluster: Cluster) -> Pinning:
        """A cluster's CPUs on the host at hand."""
        pinning = find_cluster(cluster, self._clusters)
        if pinning is None:
            raise ResolveError(
                f"this host has no {self.profile.name_of(cluster)} to pin the guest to",
                f"{self.profile.title} gives guests that CPU",
            )
        return pinning

    def _kinds(self, pinnings: Sequence[Pinning]) -> str:
        """ "0-3 Cortex-A53, 4-5 Cortex-A72"."""
        parts = [(pinning, find_cluster(pinning, self.profile.clusters)) for pinning in pinnings]
        return ", ".join(
            f"{pinning.cpus} {self.profile.name_of(cluster) if cluster else hex(pinning.midr)}"
            for pinning, cluster in parts
        )

    def _on(self, cluster: Cluster, wish: Wish, qemu: Qemu, roams: str) -> tuple[Target, Form]:
        """What a guest gets on a cluster.

        Args:
            roams: the kinds of CPU that it may run on, if there are several. Then it has no named
                model, which is of one kind, and no PMU.
        """
        profile = self.profile
        features = choose_features(wish, cluster, profile, self.policy, roams)
        form = choose_form(
            cluster,
            knobs_of(profile),
            features,
            self.policy.prefer_named and not roams,
            qemu.cpu_models,
            wish.model,
        )
        if form is None:
            raise ResolveError(
                f"KVM {profile.where} takes no guest of model {shown(wish.model, 60)}",
                "it runs on hosts of that CPU only: write <cpu mode='host-passthrough'/>",
            )
        machine, gic = _choose_machine(wish, qemu, profile.where), _choose_gic(wish, profile)
        check_start(wish, form, machine, gic, profile, qemu)
        vcpu = cluster.vcpu(form.number, features.vcpu)
        if vcpu is None:
            raise ResolveError(
                f"{profile.title} makes no vCPU of target {form.number} with features"
                f" {', '.join(features.vcpu) or 'none'}",
                "turn features off in the policy, or probe again",
            )
        registers = vcpu.registers
        if features.sve_lengths:
            # What QEMU will set before it finalises SVE. KVM takes any set that is the host's own
            # up to some length (set_sve_vls).
            registers = {**registers, "SVE_VLS": sve_bitmap(features.sve_lengths)}
        target = Target(
            architecture=profile.kvm_architecture,
            number=form.number,
            features=features.vcpu,
            model=form.model,
            unsaid=unsaid_of(form, wish, profile),
            machine=machine,
            gic=gic,
            ipa_bits=guest_ipa_bits(
                wish.memory, profile.ipa_bits, profile.where, qemu.release, wish.room
            ),
            sve_lengths=features.sve_lengths,
            seen=readable(cluster.seen, features.vcpu),
            registers=registers,
            reglist=vcpu.reglist,
            level=cluster.level,
        )
        return target, form

    def _pins(self, domain: Element, pinning: Pinning | None) -> tuple[str, tuple[bytes, ...]]:
        """The pins that a domain is to get on a host of several clusters, as `new_pins` has
        them.
        """
        title = _title(domain)
        where = self._kinds(self._clusters)
        if pinning is None:
            self._advise(
                f"{title} may run on CPUs of several kinds ({where}), and sees its CPU change when"
                " it moves"
            )
            return "", ()
        cpus = cpulist.parse(pinning.cpus)
        here = cpulist.bits(cpus)
        for pin in pins_of(domain):
            if not cpus_of(pin) & here:
                written = f"<{pin.name} cpuset='{shown(pin.attributes['cpuset'], 60)}'>"
                raise ResolveError(f"{written} names no CPU of this host", f"it has {where}")
        if vcpus(domain) > len(cpus):
            there = f"{len(cpus)} CPU{'s' if len(cpus) > 1 else ''} ({pinning.cpus})"
            self._advise(
                f"{title} has {vcpus(domain)} vCPUs, and the cluster that it is pinned to {there}:"
                " they share them"
            )
        return new_pins(domain, pinning.cpus)


def _title(domain: Element) -> str:
    name = domain.find("name")
    return " ".join(name.content.split()) if name else "the domain"


def _overruled(finding: Finding) -> ResolveError:
    values = {name: shown(str(value), 120) for name, value in finding.values.items()}
    return ResolveError(
        "{argument} in <qemu:commandline> overrules what the domain would get: {what} is"
        " {recorded}, and would be {local}".format(**values),
        "remove it; what it is for can be said in <vcpu>, <cpu>, <features> and <type machine>",
    )


def clusters_of(profile: HostProfile) -> tuple[Pinning, ...]:
    """The clusters of a host, for pinning guests to them. Raises ResolveError where its profile
    lists no CPUs, or nobody tells what all of them are.
    """
    for problem in profile.unmeasured if profile.clusters else ():
        name = shown(profile.name, 60)
        if problem.part == UNKNOWN_CPUS:
            raise ResolveError(f"host {name} has {problem.reason}", problem.hint)
        raise ResolveError(
            f"host {name} has CPUs that could not be measured, {problem.reason}",
            problem.hint or "probe it again where all its CPUs may be used",
        )
    try:
        return tuple(
            Pinning(cluster.midr, cluster.revidr, cpulist.write(cpulist.parse(cluster.cpus)))
            for cluster in profile.clusters
        )
    except ValueError as error:
        raise ResolveError(
            f"the CPUs of host {shown(profile.name, 60)}: {error}", "probe the host again"
        ) from None


def origin_of(profile: HostProfile) -> Origin:
    """The origin of what is made for this profile, by this program. Raises ResolveError for one
    that is broken.
    """
    try:
        return Origin(profile.name, digest(profile), f"kvmarm {__version__}")
    except ValueError as error:
        raise ResolveError(
            f"the profile of host {shown(profile.name, 60)} is broken: {error}",
            "probe the host again",
        ) from None


# -- what the host gives -------------------------------------------------------------------------


def _preferred(profile: HostProfile, policy: Policy, vcpus: int) -> Cluster:
    """The cluster that the policy names. The biggest is the one of the highest capacity, then of
    the highest part number, of those that have a CPU for each vCPU; where none has, it is the one
    of the most CPUs.
    """
    by_size = sorted(profile.clusters, key=lambda cluster: cluster.size)
    if policy.cluster in ("biggest", "all"):  # all of one
        return max(by_size, key=lambda cluster: (min(_cpus_in(cluster), vcpus), cluster.size))
    if policy.cluster == "smallest":
        return by_size[0]
    of_midr = [cluster for cluster in by_size if cluster.midr == policy.cluster]
    if of_midr:
        return max(of_midr, key=lambda cluster: min(_cpus_in(cluster), vcpus))
    known = ", ".join(
        f"{cluster.midr:#x} ({cluster.part or 'unknown part'})" for cluster in by_size
    )
    raise ResolveError(
        f"{profile.title} has no cluster with MIDR {policy.cluster:#x}", f"it has {known}"
    )


def _cpus_in(cluster: Cluster) -> int:
    return len(cpulist.parse(cluster.cpus))


def _choose_machine(wish: Wish, qemu: Qemu, where: str) -> str:
    written = wish.machine or "virt"
    machine = qemu.aliases.get(written, written)
    if machine not in qemu.machines:
        newest = qemu.machines[0] if qemu.machines else "none"
        raise ResolveError(
            f"QEMU {qemu.version} {where} has no machine type {shown(written, 60)!r} that"
            " can migrate",
            f"its newest is {shown(newest, 60)}: use that, or virt",
        )
    return machine


def _choose_gic(wish: Wish, profile: HostProfile) -> int:
    if not profile.gic_versions:
        raise ResolveError(
            f"KVM {profile.where} offers no virtual GIC",
            "this board cannot run QEMU's virt machine under KVM",
        )
    if wish.gic in ("", "host"):
        return max(profile.gic_versions)
    if wish.gic not in ("2", "3"):
        raise ResolveError(
            f"<gic version='{shown(wish.gic, 20)}'/> is none that libvirt knows",
            "it knows 2, 3 and host",
        )
    if int(wish.gic) not in profile.gic_versions:
        have = ", ".join(map(str, profile.gic_versions))
        raise ResolveError(
            f"the domain wants GIC version {wish.gic}, KVM {profile.where} offers {have}",
            "remove <gic>",
        )
    return int(wish.gic)
