# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernels' rules by version, by what a kernel shows of itself, and by its command line: what
arch/arm64/kvm/sys_regs.c of Linux 5.10.223, 6.1.187, 6.12.107, 6.18.15, 7.1.13 and 7.2.8 says.
"""

from __future__ import annotations

from typing import Any

import pytest

from kvmarm_plugin.fleet.baseline import baseline
from kvmarm_plugin.fleet.plan import apply_override
from kvmarm_plugin.judge.by_profile import check
from kvmarm_plugin.judge.finding import HARMLESS, REFUSES
from kvmarm_plugin.judge.wording import texts
from kvmarm_plugin.model.features import PMU
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.model.profile import HostProfile
from kvmarm_plugin.model.target import Target
from kvmarm_plugin.registers.overrides import HIDDEN, override_of, overrides, takes
from kvmarm_plugin.registers.rules import (
    IMPLEMENTATION_ID,
    KernelFacts,
    accepts,
    kernel_facts,
    kvm_version,
    masks_of,
    point_release,
    release_numbers,
)
from kvmarm_plugin.registers.table import fields_of, id_of
from kvmarm_plugin.registers.text import pack_ids, unpack_ids
from kvmarm_plugin.resolve.resolver import Resolver
from kvmarm_plugin.resolve.wish import Wish
from tests.corpus import HOSTS, host

_N1 = "trixie-neoverse-n1"


def _bits(register: str, name: str, value: int) -> int:
    (field,) = (field for field in fields_of(register) if field.name == name)
    return value << field.lsb


def _target(**fields: int) -> Target:
    """An open guest of a Neoverse-N1 on Linux 6.12, made where the CPU shows these fields, too."""
    target = Resolver(host(_N1), Policy()).target(Wish("aarch64"))
    return target.replace(registers=_with_fields(target.registers, fields))


def _with_fields(registers: dict[str, int], fields: dict[str, int]) -> dict[str, int]:
    changed = dict(registers)
    for (register, name), value in zip(
        (tuple(place.split(".")) for place in fields), fields.values()
    ):
        changed[register] |= _bits(register, name, value)
    return changed


def _host(registers: dict[str, int] | None = None, **changes: Any) -> HostProfile:
    """The host of such a guest, with other registers in each vCPU, and other parts."""
    here = host(_N1)
    (cluster,) = here.clusters
    vcpus = tuple(
        vcpu.replace(registers={**vcpu.registers, **(registers or {})}) for vcpu in cluster.vcpus
    )
    return here.replace(**{"clusters": (cluster.replace(vcpus=vcpus),), **changes})


# -- fields that KVM hides and takes --------------------------------------------------------------

_ONCE_SHOWN = {"ID_AA64PFR0_EL1.MPAM": 1, "ID_AA64PFR1_EL1.MPAM_frac": 1, "ID_AA64MMFR2_EL1.NV": 2}


@pytest.mark.parametrize("place", _ONCE_SHOWN)
def test_the_hardwares_own_value_of_a_hidden_field_is_taken(place: str) -> None:
    (finding,) = check(_target(**{place: _ONCE_SHOWN[place]}), _host())
    said = texts(finding)
    assert (finding.kind, finding.severity, said["subject"]) == ("field-hidden", HARMLESS, place)
    assert (said["recorded"], said["local"]) == (hex(_ONCE_SHOWN[place]), "0x0")


def test_all_of_them_are_taken_at_once() -> None:
    findings = check(_target(**_ONCE_SHOWN), _host())
    assert {finding.kind for finding in findings} == {"field-hidden"}
    assert len(findings) == len(_ONCE_SHOWN) == len(HIDDEN)


@pytest.mark.parametrize(
    "there",
    [
        pytest.param(_host({"REVIDR_EL1": 0x1C7}), id="another REVIDR"),
        pytest.param(_host({"MIDR_EL1": 0x413FD0C1}), id="another MIDR"),
        pytest.param(
            _host(kernel="6.1.0", clusters=(host("bookworm-neoverse-n1").clusters[0],)),
            id="no masks",
        ),
        pytest.param(
            _host(clusters=(host(_N1).clusters[0].replace(cpus="0-1"),) * 2), id="big.LITTLE"
        ),
    ],
)
@pytest.mark.parametrize("place", _ONCE_SHOWN)
def test_what_the_hardware_has_is_not_guessed(place: str, there: HostProfile) -> None:
    refused = [
        texts(finding)["subject"]
        for finding in check(_target(**{place: _ONCE_SHOWN[place]}), there)
        if finding.severity == REFUSES
    ]
    assert place in refused


@pytest.mark.parametrize("place", _ONCE_SHOWN)
def test_what_may_be_the_same_cpu_is_in_doubt(place: str) -> None:
    """Without a REVIDR, or without the command line."""
    target = _target(**{place: _ONCE_SHOWN[place]})
    here = _host()
    (cluster,) = here.clusters
    vcpus = tuple(
        vcpu.replace(
            registers={n: value for n, value in vcpu.registers.items() if n != "REVIDR_EL1"}
        )
        for vcpu in cluster.vcpus
    )
    for there in (
        here.replace(clusters=(cluster.replace(vcpus=vcpus),)),
        here.replace(unknown=("overrides",)),
    ):
        (doubt,) = [
            finding for finding in check(target, there) if finding.kind == "register-not-known"
        ]
        assert doubt.values["register"] == place.partition(".")[0]
        assert not [each for each in check(target, there) if each.severity == REFUSES]


@pytest.mark.parametrize(
    "word", ["arm64.nompam", "id_aa64pfr0.mpam=0", "id_aa64pfr0.mpam=0x0", "id-aa64pfr0.mpam=0"]
)
def test_a_word_takes_the_hardwares_value_from_the_kernel(word: str) -> None:
    there = _host(overrides=("arm64.nosve", word))
    findings = check(_target(**_ONCE_SHOWN), there)
    kinds = {texts(finding)["subject"]: finding.kind for finding in findings}
    assert kinds["ID_AA64PFR0_EL1.MPAM"] == "field-hidden-override"
    assert kinds["ID_AA64MMFR2_EL1.NV"] == "field-hidden"
    remedy = texts(findings[0])["remedy"]
    assert remedy == f"boot trixie-neoverse-n1 without {word}"
    assert not [
        finding
        for finding in check(_target(**_ONCE_SHOWN), there.replace(overrides=("arm64.nosve",)))
        if finding.severity == REFUSES
    ]


def test_a_smaller_value_that_is_not_zero_is_no_hidden_one() -> None:
    local = _with_fields(_host().clusters[0].vcpus[0].registers, {"ID_AA64MMFR2_EL1.NV": 1})
    (finding,) = check(_target(**{"ID_AA64MMFR2_EL1.NV": 2}), _host(local))
    assert finding.severity == REFUSES


def test_the_way_back_is_refused() -> None:
    """An older kernel shows the field, and takes nothing else."""
    local = _with_fields(_host().clusters[0].vcpus[0].registers, _ONCE_SHOWN)
    refused = {
        texts(finding)["subject"]
        for finding in check(_target(), _host(local))
        if finding.severity == REFUSES
    }
    assert refused == set(_ONCE_SHOWN)


def test_mte_frac_is_not_among_them() -> None:
    """It is 0 in every vCPU without MTE, which takes no other (set_id_aa64pfr1_el1)."""
    (finding,) = check(_target(**{"ID_AA64PFR1_EL1.MTE_frac": 15}), _host())
    assert finding.severity == REFUSES


# -- what may be written --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "csv2", "csv3"),
    [
        ("4.19.0-27-arm64", False, False),
        ("5.9.16", False, False),
        ("5.10.223", True, False),
        ("5.10.0-32-arm64", True, False),
        ("5.11.0", True, True),
        ("5.15.0-1077-aws", True, True),
        ("6.1.187", True, True),
        ("6.6.30", True, True),
        ("6.12.107", True, True),
    ],
)
def test_csv2_and_csv3_by_version(release: str, csv2: bool, csv3: bool) -> None:
    kernel = kernel_facts(release, (), None)
    limit = _bits("ID_AA64PFR0_EL1", "CSV2", 1) | _bits("ID_AA64PFR0_EL1", "CSV3", 1) | 0x11
    for name, taken in (("CSV2", csv2), ("CSV3", csv3)):
        without = limit & ~_bits("ID_AA64PFR0_EL1", name, 15)
        assert accepts("ID_AA64PFR0_EL1", without, limit, kernel) is taken
        assert not accepts("ID_AA64PFR0_EL1", limit, without, kernel)


@pytest.mark.parametrize(
    "name", [name for name in HOSTS if host(name).clusters[0].writable is not None]
)
def test_the_table_of_masks_has_what_hosts_told(name: str) -> None:
    """Those of MIDR_EL1 and its like are not believed, wherever they come from."""
    here = host(name)
    told = here.clusters[0].writable
    assert told is not None
    without_aarch32 = here.clusters[0].vcpus[0].registers["ID_AA64PFR0_EL1"] & 0xF == 1
    least, most = masks_of(here.kernel)
    assert most is not None
    expected = {
        register: mask
        for register, mask in least.items()
        if not (without_aarch32 and mask == 0xFFFFFFFF)
    }
    assert {r: mask for r, mask in told.items() if r not in IMPLEMENTATION_ID} == expected


@pytest.mark.parametrize(
    ("release", "aarch32", "twed"),
    [
        ("6.7.0", (False, False), (False, False)),
        ("6.12.8", (False, False), (False, False)),
        ("6.12.38", (False, True), (False, False)),
        ("6.12.107", (True, True), (False, False)),
        ("6.12.0-55.9.1.el10_0.aarch64", (False, None), (False, None)),
        ("6.17.1", (True, True), (False, True)),
        ("6.18.15", (True, True), (True, True)),
        ("6.18.30-61.116.amzn2023.aarch64", (True, True), (True, True)),
        ("7.2.13+deb14-cloud-arm64", (True, True), (True, True)),
        ("7.3.4", (True, None), (True, None)),
    ],
)
def test_masks_that_nobody_asked_for(
    release: str, aarch32: tuple[bool, bool | None], twed: tuple[bool, bool | None]
) -> None:
    """The least and the most of them."""
    masks = masks_of(release)
    found = [
        None
        if each is None
        else ("ID_PFR0_EL1" in each, bool(each.get("ID_AA64MMFR1_EL1", 0) >> 32 & 15))
        for each in masks
    ]
    assert tuple(each and each[0] for each in found) == aarch32
    assert tuple(each and each[1] for each in found) == twed


# -- vendors' kernels -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "registers", "writable", "version"),
    [
        ("5.14.0-70.el9.aarch64", (), None, (5, 14)),
        ("5.14.0-503.11.1.el9_5.aarch64", (), {}, (6, 7)),
        ("5.14.0-503.11.1.el9_5.aarch64", ("CCSIDR_L7I",), None, (6, 3)),
        ("5.14.0-687.el9.aarch64", ("CCSIDR_L7I", "VENDOR_HYP_BMAP_2"), {}, (6, 15)),
        ("4.18.0-553.el8_10.aarch64", ("STD_BMAP",), None, (5, 19)),
        ("6.12.117+deb13-cloud-arm64", ("STD_BMAP", "CCSIDR_L7I"), {}, (6, 12)),
        ("0.0", (), None, (0, 0)),
    ],
)
def test_a_kernel_is_as_new_as_it_shows(
    release: str,
    registers: tuple[str, ...],
    writable: dict[str, int] | None,
    version: tuple[int, int],
) -> None:
    assert kvm_version(release, registers, writable) == version


def test_a_vendors_kernel_is_judged_by_what_it_shows() -> None:
    """RHEL's 5.14 with the KVM of a newer Linux takes what that takes, to the last finding."""
    for source, destination in (
        ("bookworm-neoverse-n1", _N1),
        ("sid-neoverse-n1", _N1),
        (_N1, "sid-neoverse-n1"),
        ("trixie-a64fx", "sid-a64fx"),
        ("sid-a64fx", "trixie-a64fx"),
    ):
        target = Resolver(host(source), Policy()).target(Wish("aarch64"))
        there = host(destination)
        vendors = there.replace(kernel="5.14.0-503.11.1.el9_5.aarch64")
        assert check(target, vendors) == check(target, there)


def test_virtual_caches_show_in_the_list_without_masks() -> None:
    """Linux 6.3 lists CCSIDR of every level; before, each host has its own."""
    here = host(_N1)
    (cluster,) = here.clusters
    there = here.replace(kernel="5.14.0-427.el9", clusters=(cluster.replace(writable=None),))
    target = _target()
    target = target.replace(registers={**target.registers, "CCSIDR_L1D": 0x701FE01A})
    assert [finding.kind for finding in check(target, there)] == ["register-accepted"]
    assert not accepts("CCSIDR_L1D", 0x701FE01A, 0x2, KernelFacts((5, 14), None))


@pytest.mark.parametrize(
    ("release", "point", "numbers"),
    [
        ("6.12.117+deb13-cloud-arm64", "6.12.117", (6, 12, 117)),
        ("6.1.0-50-cloud-arm64", "6.1.0-50", (6, 1, 0, 50)),
        ("5.14.0-503.11.1.el9_5.aarch64", "5.14.0-503.11.1", (5, 14, 0, 503, 11, 1)),
        ("6.1.172-216.329.amzn2023.aarch64", "6.1.172", (6, 1, 172, 216, 329)),
        ("6.6.31+rpt-rpi-2712", "6.6.31", (6, 6, 31)),
        ("7.3.0-rc7", "7.3.0", (7, 3, 0)),
        ("5.10.198-android13-4-00050-g1234", "5.10.198", (5, 10, 198)),
        ("6.1", "6.1", (6, 1)),
        ("6.1." + "1" * 5000, "6.1", (6, 1)),
        ("6.²", "6", (6,)),
        ("odd", "0.0", (0, 0)),
    ],
)
def test_point_releases(release: str, point: str, numbers: tuple[int, ...]) -> None:
    assert (point_release(release), release_numbers(release)) == (point, numbers)


# -- words of the command line --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("register", "field", "most", "word"),
    [
        ("ID_AA64MMFR1_EL1", "HAFDBS", 3, "arm64.nohaft"),
        ("ID_AA64MMFR1_EL1", "HAFDBS", 2, "arm64.nohaft"),
        ("ID_AA64MMFR1_EL1", "HAFDBS", 1, "id_aa64mmfr1.hafdbs=0"),
        ("ID_AA64MMFR1_EL1", "HAFDBS", 0, "id_aa64mmfr1.hafdbs=0"),
        ("ID_AA64ISAR2_EL1", "WFxT", 0, "arm64.nowfxt"),
        ("ID_AA64MMFR4_EL1", "NV_frac", 0, "id_aa64mmfr4.nv_frac=0"),
        ("ID_AA64PFR1_EL1", "BT", 0, "arm64.nobti"),
        ("ID_AA64PFR0_EL1", "MPAM", 0, None),  # no guest sees it where the word is known
        ("ID_AA64PFR0_EL1", "DIT", 0, None),
    ],
)
def test_the_word_that_levels_a_field(
    register: str, field: str, most: int, word: str | None
) -> None:
    found = override_of(register, field, most)
    assert (found and found.word) == word


def test_a_word_leaves_what_is_smaller_already() -> None:
    (nohaft,) = (override for override in overrides() if override.word == "arm64.nohaft")
    for value, then in ((3, 2), (2, 2), (1, 1), (0, 0)):
        registers = {"ID_AA64MMFR1_EL1": 0xF0 | value}
        (cluster,) = apply_override(_host(registers), nohaft).clusters
        assert cluster.vcpus[0].registers["ID_AA64MMFR1_EL1"] == 0xF0 | then


def test_words_as_the_kernel_reads_them() -> None:
    assert takes("arm64.nomte", "ID_AA64PFR1_EL1", "MTE")
    assert takes("id_aa64pfr1.mte=0", "ID_AA64PFR1_EL1", "MTE")
    assert not takes("id_aa64pfr1.mte=0", "ID_AA64PFR1_EL1", "MTE_frac")
    assert not takes("id_aa64pfr1.mte_frac=0", "ID_AA64PFR1_EL1", "MTE")
    assert not takes("arm64.nomtex", "ID_AA64PFR1_EL1", "MTE")


# -- Linux 7.3 ------------------------------------------------------------------------------------


def _with_pmmir() -> HostProfile:
    """A host of Linux 7.3, which lists PMMIR_EL1 for every vCPU with a PMU."""
    here = host("sid-neoverse-n1")
    (cluster,) = here.clusters
    vcpus = tuple(
        vcpu.replace(reglist=pack_ids(unpack_ids(vcpu.reglist) | {id_of("PMMIR_EL1")}))
        if PMU.is_in(vcpu.features)
        else vcpu
        for vcpu in cluster.vcpus
    )
    return here.replace(name="newer", kernel="7.3.4", clusters=(cluster.replace(vcpus=vcpus),))


def test_a_pmu_of_linux_7_3_has_a_register_that_7_2_lacks() -> None:
    older, newer = host("sid-neoverse-n1"), _with_pmmir()
    (finding,) = check(Resolver(newer, Policy()).target(Wish("aarch64")), older)
    assert texts(finding)["recorded"] == "PMMIR_EL1"
    assert finding.severity == REFUSES
    assert check(Resolver(older, Policy()).target(Wish("aarch64")), newer) == []
    without = Policy(pmu=False, prefer_named=False)
    assert check(Resolver(newer, without).target(Wish("aarch64")), older) == []


def test_a_pool_of_both_has_no_pmu() -> None:
    result = baseline([host("sid-neoverse-n1"), _with_pmmir()])
    assert result.pool is not None
    assert list(result.missing) == ["PMU"]
