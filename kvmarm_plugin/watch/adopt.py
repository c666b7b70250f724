# SPDX-License-Identifier: LGPL-2.1-or-later
"""Adopting: records of guests that never asked for host-model, of what they have.

A guest with <cpu mode='host-passthrough'/> has what its host made of it when it booted.
`adopt_live` and `adopt_stored` measure that on this host's kernel, and put a record of it into the
metadata: the <cpu> stays the user's, and the record has no intent. `pin_stored` writes it into the
stored definition, as for host-model, and the intent is what the user had written.

A guest that did not boot here has brought its vCPU with it, and nobody can tell what that is: it is
left alone until its next start.
"""

from __future__ import annotations

import os
import platform
from typing import NamedTuple

from .. import __version__
from ..basics import cpulist
from ..basics.untrusted import shown
from ..domain import record
from ..domain.memory import memory_and_room
from ..domain.record import Intent, Origin, Record
from ..domain.restoring import restore
from ..domain.xml import Element, emulator_of, parse
from ..host import left_alone
from ..host.cpus import find_clusters
from ..host.libvirtd import ARRIVED, OFF, STARTING, Domain
from ..host.qemu_version import installed_version
from ..judge.arguments import find_overruled, find_overruled_by
from ..judge.contradictions import as_written, find_contradictions, is_about_cpu
from ..judge.pinning import kinds_to_ask, place
from ..judge.wording import texts
from ..kvm.device import KvmError, System
from ..model.features import (
    AARCH32,
    CPU_FEATURE_POLICIES,
    FEATURES,
    OFFERED_BY,
    PAUTH,
    PMU,
    SVE,
    Feature,
)
from ..model.guest_registers import GUEST_REGISTERS
from ..model.policy import Policy
from ..model.target import SVE_LENGTHS, Pinning, Target
from ..model.vcpu import KVM_ARCHITECTURES, in_order
from ..rehearse import renewed
from ..resolve.address_space import guest_ipa_bits
from ..resolve.resolver import Resolver
from ..resolve.wish import ResolveError, why_not_adopted
from .renewal import UntoldError, put_record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Callable

    from ..domain.pins import Counted
    from ..judge.finding import Finding
    from ..model.profile import HostProfile, Qemu

_AT_NEXT_START = "shut it down and start it: it is adopted then"
_BY_HAND = "kvmarm adopt writes that into the stored definition"


class Adopted(NamedTuple):
    """What a definition has been recorded to have.

    Attributes:
        before: what was recorded before, of a <cpu> that has been written anew since; None if
            nothing was.
        after: what it has.
        pinned: whether that is written into its <cpu>, <features> and <type>, too.
    """

    before: Target | None
    after: Target
    pinned: bool = False


def adopt_live(domain: Domain, system: System, dry_run: bool = False) -> Adopted | None:
    """Record what a guest that runs has: put the vCPU that QEMU made for it into its live metadata.
    Its stored definition is not looked at.

    None if there is nothing to do: it has a record that is about it, or one of a host-model guest,
    which renewal keeps true; or it cannot be adopted at all (`wish.why_not_adopted`).

    Args:
        system: this host's kernel, on which the guest runs.
        dry_run: only say what would be recorded.

    Raises:
        UntoldError: what it has cannot be told; it can be adopted after its next start.
        KvmarmError: libvirt refuses (LibvirtError), or /dev/kvm fails (KvmError), or its record is
            broken (RecordError).
    """
    was_left = left_alone.has(domain.uuid)
    xml = parse(domain.xml(live=True, secrets=False).encode())
    if not _is_to_be_adopted(xml, system):
        return None
    arguments = _arguments_of_boot(domain, xml)
    target = what_it_has(xml, system)
    _check_overruled(find_overruled_by(arguments, target))
    return _record(domain, xml, target, system, dry_run, True, was_left)


def adopt_stored(domain: Domain, system: System, dry_run: bool = False) -> Adopted | None:
    """Record what a domain's stored definition gives at a start on this host, in the metadata of
    that. None, arguments and errors as for `adopt_live`; UntoldError: a record cannot say it.
    """
    was_left = left_alone.has(domain.uuid)
    xml = parse(domain.xml(live=False, secrets=False).encode())
    if not _is_to_be_adopted(xml, system):
        return None
    return _record(domain, xml, what_it_has(xml, system), system, dry_run, False, was_left)


def pin_stored(
    domain: Domain,
    resolver: Callable[[], Resolver],
    define: Callable[[str, str], object],
    dry_run: bool = False,
    anew: bool = False,
) -> Adopted | None:
    """Write what a domain's stored definition gives at a start on this host into its <cpu>,
    <features>, <type> and pins. None if there is nothing to do, as for `adopt_live`, or because it
    is written already; also where the user has written <cpu> anew since, which stays.

    Args:
        resolver: from `keeper`; called where it is needed.
        define: called with the stored definition as it was read, with secrets, and the new one:
            `host.previous.redefine` of the domain.
        anew: also where it is written already, if this host gives something else now.

    Raises:
        KvmarmError: as `resolver` and `define` do, and as for `adopt_live`; ResolveError: this host
            does not start the guest.
    """
    read = domain.xml(live=False, secrets=True)
    source = read.encode()
    xml = parse(source)
    found = record.read_from(xml)
    if why_not_adopted(xml) or _is_of_host_model(found):
        return None
    is_pinned = found is not None and bool(found.intent.kept)
    if found is not None and is_pinned:
        edits = find_contradictions(xml, found.target)
        if is_rewritten(xml, found) or not (edits or anew):
            return None
    result = resolver().pin(restore(source, xml) if is_pinned else source)
    new = record.read_from(parse(result))
    assert new is not None
    before = found.target if found else None
    if result != source and not dry_run:
        define(read, result.decode())
    return Adopted(before, new.target, pinned=True)


def keeper(
    profile: HostProfile,
    policy: Policy,
    advise: Callable[[str], None],
    ask: Callable[[str], Qemu | None] = lambda _: None,
) -> Resolver:
    """What `pin_stored` takes: a resolver by which guests keep what this host gives them, whatever
    its pool has and the policy prefers. Only the kind of CPU on a big.LITTLE host is the policy's.

    Args:
        ask: as `Resolver` has it.

    Raises:
        ResolveError: the profile lists no CPUs.
    """
    keeps = Policy(prefer_named=False, cluster=policy.cluster)
    return Resolver(profile, keeps, advise=advise, ask=ask)


def is_rewritten(domain: Element, found: Record) -> bool:
    """Whether the user has written the <cpu> of a pinned guest anew: one of other words, or without
    those that leave nothing to QEMU.
    """
    return any(map(is_about_cpu, find_contradictions(domain, found.target)))


def what_it_has(domain: Element, system: System, machine: str = "") -> Target:
    """What a domain has here after a start, as its XML is: measured by a scratch vCPU.

    Args:
        machine: what a machine type that names no version stands for; empty where libvirt has put
            one in its place.

    Raises:
        UntoldError: an argument for QEMU changes it, or its XML names SVE lengths halfway.
        ResolveError: it can not be adopted, or does not fit.
        KvmarmError: KVM makes no such vCPU, or /dev/kvm fails.
    """
    reason = why_not_adopted(domain)
    if reason:
        raise ResolveError(reason)
    kind = os.uname().machine
    if kind not in KVM_ARCHITECTURES:
        raise ResolveError(f"this host is {shown(kind, 40)}: KVM on ARM is not here to be asked")
    clusters = find_clusters()
    target, cpus = _asked(domain, system, machine, clusters)
    try:
        found = renewed(target, system, False, kinds_to_ask(target, clusters, cpus)[0])
    except KvmError as error:
        if error.passing or not target.sve_lengths:
            raise
        raise UntoldError(
            "its <cpu> names some SVE lengths, and leaves others to QEMU", _BY_HAND
        ) from None
    _check_overruled(find_overruled(domain, found))
    return found


def _is_to_be_adopted(xml: Element, system: System) -> bool:
    found = record.read_from(xml)
    if why_not_adopted(xml) or _is_of_host_model(found):
        return False
    if found is None:
        return True
    if found.intent.kept:  # pinned: what else was edited is for refresh
        return is_rewritten(xml, found)
    return bool(find_contradictions(xml, found.target, host_ipa_bits=system.ipa_bits()))


def _is_of_host_model(found: Record | None) -> bool:
    return found is not None and not record.is_adopted(found)


def _record(
    domain: Domain,
    xml: Element,
    target: Target,
    system: System,
    dry_run: bool,
    live: bool,
    was_left: bool,
) -> Adopted:
    """Put a record of this target into the metadata. Raises UntoldError, LibvirtError."""
    open_parts = find_contradictions(xml, target, host_ipa_bits=system.ipa_bits())
    if open_parts:
        said = texts(open_parts[0])
        raise UntoldError(
            f"its XML leaves open what a record has to say: {said['subject']} is {said['local']},"
            f" and {said['recorded']} here",
            _BY_HAND,
        )
    before = record.read_from(xml)
    new = Record(target, Intent((), ()), Origin(platform.node(), "", f"kvmarm {__version__}"))
    if not dry_run:
        put_record(domain, new, live, was_left)
    return Adopted(before.target if before else None, target)


def _arguments_of_boot(domain: Domain, xml: Element) -> tuple[str, ...]:
    """The arguments of a QEMU that has made the guest's vCPU here, at its boot. Raises
    UntoldError.
    """
    beginning, process = domain.beginning(), domain.process()
    if beginning in (OFF, STARTING):
        raise UntoldError("the guest does not run yet, or is on its way", "wait, and do it again")
    if process is None or not process.binary:
        raise UntoldError(
            "the command line of its QEMU cannot be read", "run this as root, on its host"
        )
    if beginning == ARRIVED or process.has_loaded():
        raise UntoldError("it has arrived with its state from elsewhere", _AT_NEXT_START)
    if domain.may_be_reverted():
        raise UntoldError(
            "it may run from a snapshot, which has brought its state with it", _AT_NEXT_START
        )
    emulator = emulator_of(xml)
    if process.binary != os.path.realpath(emulator or process.binary):
        raise UntoldError(
            f"it runs {shown(process.binary, 120)}, and another QEMU has been put in the place of"
            " that",
            _AT_NEXT_START,
        )
    return process.arguments


def _check_overruled(findings: list[Finding]) -> None:
    if findings:
        said = texts(findings[0])
        raise UntoldError(
            f"{said['subject']} makes another CPU than the rest of its XML: {said['local']}",
            "what it is for can be said in <vcpu>, <cpu>, <features> and <type machine>",
        )


def _asked(
    domain: Element, system: System, machine: str, clusters: Sequence[Counted]
) -> tuple[Target, tuple[int, ...]]:
    """What QEMU is asked for: a target without its registers, and the CPUs that the guest keeps to.

    Raises:
        ResolveError: it does not fit into the addresses that KVM has here.
    """
    uname = os.uname()
    architecture = KVM_ARCHITECTURES[uname.machine]
    with system.create_vm() as vm:
        gic = 3 if vm.has_gic(3) else 2  # the highest is libvirt's choice, and QEMU's of "host"
    memory, room = memory_and_room(domain)
    has_psci = system.check_extension(OFFERED_BY["psci_0_2"])
    blank = Target(
        architecture=architecture,
        number=0,
        features=("psci_0_2",) if has_psci else (),
        model="host",
        unsaid=(),
        machine="virt",
        gic=gic,
        ipa_bits=guest_ipa_bits(
            memory + room,
            system.ipa_bits(),
            f"on host {uname.nodename}",
            installed_version(),
            room,
        ),
        sve_lengths=(),
        seen=dict.fromkeys(GUEST_REGISTERS, 0) if architecture == "arm64" else {},
        registers={},
        reglist="",
    )
    target = _with_sve(domain, as_written(domain, blank))
    can_be_unsaid: tuple[Feature, ...] = ()
    if architecture == "arm64":
        can_be_unsaid = FEATURES if target.model == "host" else (PMU,)
    if AARCH32.is_in(target.features):
        can_be_unsaid = (PMU, PAUTH)
    target = target.replace(
        unsaid=in_order(
            bit for feature in can_be_unsaid if feature.is_in(target.unsaid) for bit in feature.bits
        )
    )
    if machine and target.machine in ("virt", "none"):
        target = target.replace(machine=machine)
    cpus, several = place(target, clusters, domain)
    own = next((each for each in clusters if cpus and each.cpus == cpus), None)
    if own is not None and own.midr is not None:
        pinning = Pinning(own.midr, own.revidr, cpulist.write(own.cpus))
        return target.replace(pinning=pinning), cpus
    return target.replace(roams=bool(several)), cpus


def _with_sve(domain: Element, target: Target) -> Target:
    """SVE as <cpu> says it. Without a length, QEMU gives all that the host has; of lengths that are
    named, a record can only say those that are on.
    """
    cpu = domain.find("cpu")
    assert cpu is not None  # why_not_adopted has seen it
    policies = {
        feature.attributes.get("name"): feature.attributes.get("policy", "require")
        for feature in cpu.find_all("feature")
        if feature.attributes.get("policy") != "optional"
    }
    lengths = [length for length in SVE_LENGTHS if f"sve{length}" in policies]
    if not lengths:
        if not SVE.is_in(target.features):
            return target
        return target.replace(unsaid=in_order({*target.unsaid, *SVE.bits}))
    return target.replace(
        features=in_order({*target.features, *SVE.bits}),
        unsaid=in_order({*target.unsaid}.difference(SVE.bits)),
        sve_lengths=tuple(n for n in lengths if CPU_FEATURE_POLICIES.get(policies[f"sve{n}"])),
    )
