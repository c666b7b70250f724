# SPDX-License-Identifier: LGPL-2.1-or-later
"""Makes the library of known CPUs (kvmarm_plugin/host/known) from the dumps that it is of:

    python -m tests.known DIRECTORY

DIRECTORY holds the repositories that docs/known-cpus.md names, as OWNER+NAME/repo: bare clones, or
clones. Nothing of a profile is written by hand but what `_FURTHER` says.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import NamedTuple

from kvmarm_plugin.host.dumps import read
from kvmarm_plugin.host.known import DIRECTORY
from kvmarm_plugin.model import profile_json
from kvmarm_plugin.model.profile import HostProfile
from kvmarm_plugin.registers.rules import kernel_version

_FIRECRACKER = "firecracker-microvm/firecracker"
_FINGERPRINT = "tests/data/cpu_template_helper/fingerprint_ARM_NEOVERSE_{}_{}host.json"
_LITMUS = "rems-project/system-litmus-harness"
_SYSREGS = "lelegard/arm-cpusysregs"
_HWLOC = "open-mpi/hwloc"


class Dump(NamedTuple):
    """Where a profile is from.

    Attributes:
        repository: OWNER/NAME, on GitHub.
        commit: the one that brought the dump.
        path: of it; for one in an archive, behind "!", its path there.
        form: as `dumps.read` takes it.
    """

    repository: str
    commit: str
    path: str
    form: str


def _fingerprints(name: str, core: str, commits: dict[str, str]) -> dict[str, Dump]:
    return {
        f"{name}@{kernel}": Dump(
            _FIRECRACKER,
            commit,
            _FINGERPRINT.format(core, ".".join(kernel.split(".")[:2])),
            "firecracker",
        )
        for kernel, commit in commits.items()
    }


# Of each release line the newest, and of what a point release changed the last before it.
DUMPS = {
    **_fingerprints(
        "graviton2",
        "N1",
        {
            "5.10.214": "9b5d7a044",
            "5.10": "bd0ebf3b1",
            "6.1.84": "9b5d7a044",
            "6.1": "bd0ebf3b1",
            "6.18": "bd0ebf3b1",
        },
    ),
    **_fingerprints(
        "graviton3",
        "V1",
        {
            "5.10.214": "9b5d7a044",
            "5.10": "bd0ebf3b1",
            "6.1.59": "749afa849",
            "6.1.84": "9b5d7a044",
            "6.1": "bd0ebf3b1",
            "6.18": "bd0ebf3b1",
        },
    ),
    **_fingerprints(
        "graviton4",
        "V2",
        {
            "5.10": "bd0ebf3b1",
            "6.1.129": "3476905df",
            "6.1.140": "2551a1e4a",
            "6.1.150": "1a410fbce",
            "6.1": "bd0ebf3b1",
            "6.18": "bd0ebf3b1",
        },
    ),
    "altra": Dump(
        _SYSREGS, "eda2988", "collect/ampere-altra-host-ubuntu/cpusysregs-registers.txt", "hardware"
    ),
    "m1-firestorm": Dump(
        _SYSREGS, "eda2988", "collect/applem1-host-macos/cpusysregs-registers.txt", "hardware"
    ),
    "kunpeng920": Dump(
        _HWLOC,
        "3b37b024a",
        "tests/hwloc/linux/128arm-2pa2n8cluster4co.tar.bz2!proc/cpuinfo",
        "cpuinfo",
    ),
    "rpi4": Dump(_LITMUS, "4bd148b", "hw-results/hw-refs/rems-rpi4b/id.txt", "registers"),
    "rpi5": Dump(_LITMUS, "4bd148b", "hw-results/hw-refs/rems-rpi5/id.txt", "registers"),
}

# What KVM_ARM_GET_REG_WRITABLE_MASKS answers on Linux 6.18: constants of sys_reg_descs in
# arch/arm64/kvm/sys_regs.c (read in 6.18.15). They differ from those that profiles of 6.12 and 7.2
# have measured only by fields that came or went between.
_MASKS_6_18 = {
    "MIDR_EL1": 0xFFFFFFFF,
    "REVIDR_EL1": 0xFFFFFFFFFFFFFFFF,
    "ID_AA64PFR0_EL1": 0xFFFF00F0FF00FFFF,
    "ID_AA64PFR1_EL1": 0xF00000F0000F0FF,
    "ID_AA64PFR2_EL1": 0xF00000FF0,
    "ID_AA64ZFR0_EL1": 0xFFFFF0F0FFFF0FF,
    "ID_AA64FPFR0_EL1": 0xFC000003,
    "ID_AA64DFR0_EL1": 0xF000F00F0F,
    "ID_AA64ISAR0_EL1": 0xFFFFFFFFFFFFFFF0,
    "ID_AA64ISAR1_EL1": 0xFFFFFFFF00FFF00F,
    "ID_AA64ISAR2_EL1": 0xFFFFFFFFFFFF00FF,
    "ID_AA64ISAR3_EL1": 0xF00F00F0,
    "ID_AA64MMFR0_EL1": 0xFF00FFFFFFFFFF0F,
    "ID_AA64MMFR1_EL1": 0xFFFFFFFF0FFFF00F,
    "ID_AA64MMFR2_EL1": 0xF0FF000FF00FFFFF,
    "ID_AA64MMFR3_EL1": 0xF0FFF,
    "ID_AA64MMFR4_EL1": 0xF00000,
    "CLIDR_EL1": 0x7FFFFFFFFFFF,
    "AIDR_EL1": 0xFFFFFFFFFFFFFFFF,
    "CTR_EL0": 0x300FC00F,
}
_AARCH32 = (  # each all of 32 bits, where the CPUs have AArch32
    *("ID_PFR0_EL1", "ID_PFR1_EL1", "ID_PFR2_EL1", "ID_DFR0_EL1", "ID_MMFR0_EL1", "ID_MMFR1_EL1"),
    *("ID_MMFR2_EL1", "ID_MMFR3_EL1", "ID_MMFR4_EL1", "ID_MMFR5_EL1", "ID_ISAR0_EL1"),
    *("ID_ISAR1_EL1", "ID_ISAR2_EL1", "ID_ISAR3_EL1", "ID_ISAR4_EL1", "ID_ISAR5_EL1"),
    *("ID_ISAR6_EL1", "MVFR0_EL1", "MVFR1_EL1", "MVFR2_EL1"),
)

# Firecracker's own tests restore snapshots of Linux 6.1 on 6.18 on these CPUs, of which KVM there
# takes MPAM and NV only where no word of the command line hides them: there is none.
_WITHOUT_OVERRIDES = ("graviton2", "graviton3")


def _further(name: str, profile: HostProfile) -> HostProfile:
    """With what is known of a host besides its dump."""
    unknown = set(profile.unknown)
    if name.partition("@")[0] in _WITHOUT_OVERRIDES:
        unknown.discard("overrides")
    if kernel_version(profile.kernel) == (6, 18):
        (cluster,) = profile.clusters
        runs_32_bit = cluster.vcpus[0].registers["ID_AA64PFR0_EL1"] & 15 == 2
        of_32_bit = {each: 0xFFFFFFFF for each in _AARCH32 if runs_32_bit}
        masks = {**_MASKS_6_18, **of_32_bit}
        in_order = {each: masks[each] for each in cluster.vcpus[0].registers if each in masks}
        profile = profile.replace(clusters=(cluster.replace(writable=in_order),))
        unknown.discard("writable")
    return profile.replace(
        made_by="kvmarm",
        unknown=tuple(part for part in profile.unknown if part in unknown),
    )


def made(name: str, repositories: Path) -> HostProfile:
    """A profile of the library, from its dump."""
    dump = DUMPS[name]
    repository = repositories / dump.repository.replace("/", "+") / "repo"
    path, _, inside = dump.path.partition("!")
    data = subprocess.check_output(["git", "-C", str(repository), "show", f"{dump.commit}:{path}"])
    text = (_member(data, inside) if inside else data).decode()
    origin = f"imported: from {dump.path} of github.com/{dump.repository}, commit {dump.commit}"
    profile = read(text, dump.path, form=dump.form, host=name)
    return _further(name, profile.replace(origin=origin))


def _member(archive: bytes, path: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        (found,) = [each for each in files.getmembers() if each.name.endswith(f"/{path}")]
        file = files.extractfile(found)
        assert file is not None
        return file.read()


if __name__ == "__main__":
    for each in DUMPS:
        (DIRECTORY / f"{each}.json").write_text(
            profile_json.dumps(made(each, Path(sys.argv[1]))), encoding="utf-8"
        )
