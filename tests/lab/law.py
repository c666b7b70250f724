# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs on a lab host, with the project installed and nothing of the lab: asks `rehearse` and
`check` the same questions.

It resolves targets for this host, changes one thing at a time in each, and has `judge` say what
becomes of them: once over the kernel (KernelOffer) and once over this host's own profile
(ProfileOffer). Prints a JSON document with the number of questions and every one to which the
answers differ. test_rehearse_law.py runs it. With the argument `thorough`, which takes a minute,
every value of every field is asked instead of the telling ones.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

from kvmarm_plugin.basics.errors import KvmarmError
from kvmarm_plugin.host.probe import probe
from kvmarm_plugin.judge.by_profile import ProfileOffer
from kvmarm_plugin.judge.finding import REFUSES
from kvmarm_plugin.judge.verdict import judge
from kvmarm_plugin.judge.wording import texts
from kvmarm_plugin.kvm.device import KvmError, System
from kvmarm_plugin.kvm.scratch import ScratchVcpu
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.model.target import Target
from kvmarm_plugin.registers.overrides import HIDDEN
from kvmarm_plugin.registers.table import fields_of, id_of
from kvmarm_plugin.registers.text import pack_ids, unpack_ids
from kvmarm_plugin.rehearse import KernelOffer
from kvmarm_plugin.resolve.resolver import Resolver
from kvmarm_plugin.resolve.wish import Wish

PAUTH = ("ptrauth_address", "ptrauth_generic")
OTHER_FEATURE_SETS = (  # none without PSCI 0.2, which QEMU gives wherever KVM has it
    ("psci_0_2",),
    ("psci_0_2", "pmu_v3"),
    ("psci_0_2", "pmu_v3", "sve"),
    ("psci_0_2", "pmu_v3", *PAUTH),
    ("psci_0_2", "pmu_v3", "sve", *PAUTH),
    ("el1_32bit", "psci_0_2"),
    ("el1_32bit", "psci_0_2", "pmu_v3"),
    ("el1_32bit", "psci_0_2", "sve"),
    ("psci_0_2", "ptrauth_address"),
)


class Question(NamedTuple):
    """A target that differs from one of this host's own in one thing: `what`, from `limit` to
    `value`.
    """

    what: str
    limit: str
    value: str
    target: Target


class SharedKernelOffer(KernelOffer):
    """A vCPU that many targets may be pushed into, because every push is taken back: the rules
    compare with a fresh vCPU's value, so its own value is always taken.
    """

    def accepts(self, register: str, value: int) -> bool:
        taken = super().accepts(register, value)
        assert self._scratch is not None
        vcpu, reg, own = self._scratch.vcpu, id_of(register), self.registers[register]
        vcpu.set(reg, own)
        if vcpu.get(reg) != own:
            raise SystemExit(
                f"{register} stays at {vcpu.get(reg):#x} after {value:#x}, and does not go back to"
                f" {own:#x}"
            )
        return taken


def changed(target: Target, **attributes: object) -> Target:
    """The target with other attributes."""
    return target.replace(**attributes)


def register_questions(target: Target, thorough: bool) -> Iterator[Question]:
    """Every field of every register, and some bits that are in no field."""
    for register, own in target.registers.items():
        if register != "SVE_VLS":  # sve_questions
            for value, what in {
                value: what for what, value in _other_values(register, own, thorough)
            }.items():
                yield Question(
                    what,
                    hex(own),
                    hex(value),
                    changed(target, registers={**target.registers, register: value}),
                )


def _other_values(register: str, own: int, thorough: bool) -> Iterator[tuple[str, int]]:
    fields = fields_of(register)
    covered = 0
    for field in fields:
        mask = (1 << field.msb + 1) - (1 << field.lsb)
        covered |= mask
        if (register, field.name) in HIDDEN and not own & mask:
            continue  # what the hardware has, a profile knows by an honest record alone
        here, most = field.of(own), mask >> field.lsb
        for there in range(16) if thorough else (here + 1, here - 1, 0, most):
            if there != here and 0 <= there <= most:
                yield f"{register}.{field.name}", own & ~mask | there << field.lsb
    if fields:
        unnamed = [bit for bit in range(64) if not covered >> bit & 1]
        for bit in unnamed[:2] + unnamed[len(unnamed) // 2 : len(unnamed) // 2 + 1] + unnamed[-1:]:
            yield f"{register} bit {bit}", own ^ 1 << bit
    else:
        for bit in (*range(6), 12, 13, 27, 28, 31, 32, 33, 46, 47, 63):
            yield f"{register} bit {bit}", own ^ 1 << bit
        for value in (
            own + 1,
            own - 1,
            0,
            1,
            2,
            3,
            0x12,
            0x13,
            0x10000,
            0x10001,
            0x10002,
            0x10003,
            0x20000,
        ):
            if value not in (own, -1):
                yield register, value
    yield f"{register} bit 64", own | 1 << 64


def other_questions(target: Target, machines: tuple[str, ...]) -> Iterator[Question]:
    """Everything that is no register value."""

    def question(attribute: str, value: object, **more: object) -> Question:
        return Question(
            attribute,
            str(getattr(target, attribute))[:80],
            str(value)[:80],
            changed(target, **{attribute: value}, **more),
        )

    yield question("architecture", "arm")
    yield question("machine", "virt-99.0")
    yield question("machine", machines[-1])
    for gic in (1, 2, 3, 4, 5):
        yield question("gic", gic)
    for bits in (32, 36, 40, 44, 48, 52, 56):
        yield question("ipa_bits", bits)
    for name, value in target.seen.items():
        for other in (value + 1, value ^ 1 << 11, value ^ 1 << 12, value // 2):
            yield Question(
                f"seen {name}",
                hex(value),
                hex(other),
                changed(target, seen={**target.seen, name: other}),
            )
    yield question("seen", {})
    ids = unpack_ids(target.reglist)
    for missing in (min(ids), max(ids), id_of("ID_AA64PFR0_EL1")):
        yield question("reglist", pack_ids(ids - {missing}))
    for extra in (0x603000000013C7FF, 0x6030000000140009, 0x60800000001500A0):
        yield question("reglist", pack_ids(ids | {extra}))
    fewer = dict(target.registers)
    del fewer["ID_AA64PFR0_EL1"]
    yield question("registers", fewer)
    yield question("registers", {**target.registers, "S3_0_C0_C9_5": 1})  # no such register yet
    for features in OTHER_FEATURE_SETS:
        if features != target.features:
            lengths = target.sve_lengths if "sve" in features else ()
            yield question("features", features, sve_lengths=lengths)
    for unsaid in (("pmu_v3",), ("sve",), PAUTH):
        yield question("unsaid", unsaid)
    if target.model == "host":
        for model, number in (("cortex-a57", 2), ("cortex-a53", 4)):
            yield question("model", model, number=number)
    else:
        yield question("model", "host")
        yield question("model", "cortex-a53", number=4)


def sve_questions(target: Target) -> Iterator[Question]:
    own = target.sve_lengths
    for lengths in (
        own[:1],
        own[:2],
        own[:-1],
        own[1:],
        (*own[:1], *own[2:]),
        own[:1] + own[-1:],
        (*own, 2176),
        (128, 192),
    ):
        if lengths != own:
            yield Question(
                "sve_lengths", str(own), str(lengths), changed(target, sve_lengths=lengths)
            )


def answer(target: Target, offer: KernelOffer | ProfileOffer) -> dict[str, str]:
    """Severity by subject."""
    return {texts(finding)["subject"]: finding.severity for finding in judge(target, offer)}


def main() -> int:
    start = time.monotonic()
    profile = probe()
    (cluster,) = profile.clusters
    machines = profile.qemu.machines if profile.qemu else ()
    asked, differing = 0, []

    def compare(question: Question, kernel: KernelOffer) -> None:
        nonlocal asked
        asked += 1
        said = answer(question.target, kernel)
        checked = answer(question.target, ProfileOffer(question.target, profile, cluster))
        if said != checked:
            differing.append(
                {
                    "what": question.what,
                    "limit": question.limit,
                    "value": question.value,
                    "kernel": said,
                    "check": checked,
                }
            )

    # The richest target, the one of a named model if there is one, and the one with everything off.
    policies = (
        Policy(prefer_named=False),
        Policy(),
        Policy(prefer_named=False, pmu=False, sve=False, pauth=False),
    )
    done = set()
    with System() as system:
        for policy in policies:
            target = Resolver(profile, policy).target(Wish("aarch64"))
            if (target.model, target.features) in done:
                continue
            done.add((target.model, target.features))
            with SharedKernelOffer(target, system, machines) as kernel:
                compare(Question("nothing", "", "", target), kernel)
                for question in register_questions(target, thorough="thorough" in sys.argv):
                    compare(question, kernel)
            for question in other_questions(target, machines):
                try:
                    with KernelOffer(question.target, system, machines) as fresh:
                        compare(question, fresh)
                except KvmarmError as error:
                    differing.append(
                        {
                            **question._asdict(),
                            "target": "",
                            "kernel": {"error": str(error)},
                            "check": {},
                        }
                    )
            for question in sve_questions(target) if target.sve_lengths else ():
                # What QEMU will do: these lengths are set before SVE is finalised.
                asked += 1
                try:
                    ScratchVcpu(
                        system, target.number, target.features, question.target.sve_lengths
                    ).close()
                    said = {}
                except KvmError:
                    said = {"SVE lengths": REFUSES}
                checked = answer(question.target, ProfileOffer(question.target, profile, cluster))
                if said != checked:
                    differing.append(
                        {**question._asdict(), "target": "", "kernel": said, "check": checked}
                    )
    json.dump(
        {"asked": asked, "seconds": time.monotonic() - start, "differing": differing}, sys.stdout
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
