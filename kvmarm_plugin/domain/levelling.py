# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a levelled domain tells QEMU: to load libkvmarm-level, and what that writes into the vCPUs
(preload/README.md).

libvirt has no word for it, so it stands in <qemu:commandline>, and travels with the domain.
"""

from __future__ import annotations

from ..model.target import LEVEL_TEXT, Target
from ..registers.left_out import agreed_value
from ..registers.table import id_of
from .xml import Element, quoted

NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
LIBRARY = "libkvmarm-level.so.1"  # ld.so(8) finds it by its name, wherever a distribution has it

# A file that only the library can open: without it QEMU says so, and does not start.
_OBJECT = "secret,id=kvmarm-level,"
_PROOF = f"{_OBJECT}file=/proc/{LIBRARY}/is-not-loaded"
_ARGUMENTS = ("-object", _PROOF)
_LIBRARY_VARIABLE, _TEXT_VARIABLE = "LD_PRELOAD", "KVMARM_LEVEL"


def text_of(target: Target) -> str:
    """What the library reads: the registers that it writes, and those that are left out."""
    assert target.level is not None
    words = [f"{id_of(name):x}={value:x}" for name, value in target.levelled.items()]
    for name in target.level.left_out:
        value = agreed_value(name)
        words.append(f"-{id_of(name):x}" if value is None else f"-{id_of(name):x}={value:x}")
    return " ".join([LEVEL_TEXT, *words])


def elements_for(target: Target) -> tuple[bytes, ...]:
    """The children of <qemu:commandline> for a target; none for one that is not levelled."""
    if target.level is None:
        return ()
    declared = f"xmlns:qemu={quoted(NAMESPACE)}"
    arguments = (f"<qemu:arg {declared} value={quoted(value)}/>" for value in _ARGUMENTS)
    variables = ((_LIBRARY_VARIABLE, LIBRARY), (_TEXT_VARIABLE, text_of(target)))
    return tuple(
        line.encode()
        for line in (
            *arguments,
            *(
                f"<qemu:env {declared} name={quoted(name)} value={quoted(value)}/>"
                for name, value in variables
            ),
        )
    )


def elements_in(domain: Element) -> list[Element]:
    """Those elements of a domain, of whatever target: what stands in any <qemu:commandline> of it
    that is about the library, be it edited. QEMU takes no second object of one id.
    """
    found: list[Element] = []
    for line in lines_of(domain):
        before: Element | None = None
        for child in line.children:
            value = child.attributes.get("value", "")
            if child.name == f"{NAMESPACE} arg" and value.startswith(_OBJECT):
                if before is not None and before.attributes.get("value") == _ARGUMENTS[0]:
                    found.append(before)
                found.append(child)
            elif child.name == f"{NAMESPACE} env":
                name = child.attributes.get("name", "")
                if name == _TEXT_VARIABLE or (name == _LIBRARY_VARIABLE and value == LIBRARY):
                    found.append(child)
            before = child
    return found


def lines_of(domain: Element) -> list[Element]:
    """The <qemu:commandline> elements of a domain."""
    return domain.find_all(f"{NAMESPACE} commandline")


def preloads(domain: Element) -> bool:
    """Whether the domain has QEMU load a library that is not this one."""
    return bool(_other_libraries(domain, elements_in(domain)))


def _other_libraries(domain: Element, ours: list[Element]) -> list[Element]:
    return [
        child
        for line in lines_of(domain)
        for child in line.find_all(f"{NAMESPACE} env")
        if child.attributes.get("name") == _LIBRARY_VARIABLE and child not in ours
    ]


def says(domain: Element) -> dict[str, str]:
    """What a domain says of levelling, by what it is called in a finding; empty of one that does
    not. Of several values of a variable QEMU gets one: then another library is said, too.
    """
    names = {"arg": "<qemu:arg>", "env": "<qemu:env>"}
    said: dict[str, list[str]] = {}
    ours = elements_in(domain)
    for child in [*ours, *_other_libraries(domain, ours)] if ours else []:
        kind = names[child.name.rpartition(" ")[2]]
        name = child.attributes.get("name", "")
        said.setdefault(f"{kind} {name}".strip(), []).append(child.attributes.get("value", ""))
    return {what: " ".join(values) for what, values in said.items()}


def recorded(target: Target) -> dict[str, str]:
    """The same of a target."""
    if target.level is None:
        return {}
    return {
        "<qemu:arg>": " ".join(_ARGUMENTS),
        f"<qemu:env> {_LIBRARY_VARIABLE}": LIBRARY,
        f"<qemu:env> {_TEXT_VARIABLE}": text_of(target),
    }
