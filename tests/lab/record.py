# SPDX-License-Identifier: LGPL-2.1-or-later
"""Records the profile of every host that the lab can make into tests/hosts/: `python3 -m
tests.lab.record [NAME…]`.

The corpus that the pure tests run on. Record again when `kvmarm probe` measures something new.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from .errors import say
from .host import Host, HostSpec
from .wheel import build_wheel

CORPUS = Path(__file__).parents[1] / "hosts"

_MODELS = {
    "bookworm": ("cortex-a53", "cortex-a57", "cortex-a72", "neoverse-n1", "max"),
    "trixie": (
        "cortex-a35",
        "cortex-a53",
        "cortex-a57",
        "cortex-a72",
        "cortex-a76",
        "neoverse-n1",
        "a64fx",
        "max",
    ),
    "sid": ("cortex-a57", "cortex-a72", "neoverse-n1", "a64fx", "max"),
}
_SPECS = [
    *(
        HostSpec(suite=suite, cpu=model, name=f"{suite}-{model}")
        for suite, models in _MODELS.items()
        for model in models
    ),
    HostSpec(
        suite="trixie",
        cpu="max",
        append="arm64.nosve arm64.nopauth",
        name="trixie-max-nosve-nopauth",
    ),
    HostSpec(suite="trixie", cpu="max", append="arm64.nobti", name="trixie-max-nobti"),
    HostSpec(suite="trixie", cpu="neoverse-n1,pmu=off", name="trixie-neoverse-n1-nopmu"),
    HostSpec(suite="trixie", cpu="cortex-a72", gic=2, name="trixie-cortex-a72-gicv2"),
]


def record(spec: HostSpec, wheel: Path) -> None:
    """Boot one host, and keep its profile."""
    with Host(spec) as host:
        host.install(wheel)
        host.run(["kvmarm", "probe", "-o", "/tmp/profile.json"])
        (CORPUS / f"{spec.name}.json").write_bytes(host.get("/tmp/profile.json"))


def main() -> int:
    names = sys.argv[1:]
    with tempfile.TemporaryDirectory() as directory:
        wheel = build_wheel(Path(directory))
        for spec in _SPECS:
            if not names or spec.name in names:
                record(spec, wheel)
                say(f"recorded {spec.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
