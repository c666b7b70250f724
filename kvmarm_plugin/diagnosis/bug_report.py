# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a report of a fault holds: a gzipped tar archive of texts, without secrets.

Nothing is copied as it is but the profile and the lines that kvmarm has logged. Policy and pool are
written anew from what was read of them, without comments. Of a domain only what decides its CPU is
kept: no device but the emulator's path, no command line, no comment, nobody else's metadata.
"""

from __future__ import annotations

import gzip
import io
import json
import platform
import sys
import tarfile
import time

from .. import __version__
from ..basics.errors import KvmarmError
from ..basics.untrusted import lines, shown
from ..domain import record as records
from ..domain import record_text
from ..domain.record import Intent
from ..domain.xml import emulator_of, escaped, parse, parse_fragment, quoted
from ..fleet import pool as pools
from ..model import policy as policies
from ..model import profile_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..domain.record import Record
    from ..domain.xml import Element
    from ..host.libvirtd import Domain
    from .host import Host

_DIRECTORY = "kvmarm-report"
_MOST_DOMAINS = 1000
_JOURNAL = ["journalctl", "--quiet", "--no-pager", "--output=short-iso", "--lines=2000"]
_LOGGED = (["-t", "kvmarm-hook"], ["-u", "kvmarm-renew.service", "-u", "kvmarm-agent.service"])

# Of a domain: what decides the vCPU and where it runs.
_KEPT = frozenset(
    {
        "name",
        "uuid",
        "memory",
        "maxMemory",
        "currentMemory",
        "vcpu",
        "vcpus",
        "iothreads",
        "cputune",
        "numatune",
        "cpu",
        "features",
    }
)
_OF_INTENT = frozenset({"cpu", "type", "vcpu", "cputune", "gic", "features"})


def pack(host: Host, diagnosis: dict[str, str]) -> bytes:
    """The archive.

    Args:
        diagnosis: name of a file → what doctor has said, as text and as JSON.
    """
    parts: dict[str, Callable[[], str]] = {
        "versions.txt": lambda: _versions(host),
        "profile.json": lambda: profile_json.dumps(host.profile()),
        "policy.json": lambda: _policy(host),
        "pool.yaml": lambda: _pool(host),
        "journal.txt": lambda: _journal(host),
    }
    found = dict(diagnosis)
    for name, make in parts.items():
        try:
            found[name] = make()
        except (KvmarmError, OSError, ValueError) as error:
            found[name] = lines([f"not known: {error}"])
    found.update(_domains(host))
    return _archive(found)


def _archive(texts: dict[str, str]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, text in texts.items():
            data = text.encode("utf-8", "backslashreplace")
            entry = tarfile.TarInfo(f"{_DIRECTORY}/{name}")
            entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
            archive.addfile(entry, io.BytesIO(data))
    return gzip.compress(packed.getvalue())


def _versions(host: Host) -> str:
    try:
        release = host.text("/etc/os-release")
    except OSError:
        release = ""
    names = [line for line in release.splitlines() if line.startswith("PRETTY_NAME=")]
    return lines(
        [
            f"kvmarm {__version__}",
            f"Python {platform.python_version()} ({sys.executable})",
            f"Linux {host.kernel} on {host.architecture}",
            *names[:1],
        ]
    )


def _policy(host: Host) -> str:
    of_hook = policies.for_hook(policies.DEFAULT_PATH)
    return json.dumps({**host.policy().as_dict(), **of_hook.as_dict()}, indent=1) + "\n"


def _pool(host: Host) -> str:
    pool = host.pool()
    return pools.dumps(pool) if pool else "this host is in no pool\n"


def _journal(host: Host) -> str:
    return "".join(host.run([*_JOURNAL, *which]) for which in _LOGGED)


def _domains(host: Host) -> dict[str, str]:
    """The definitions of the domains, by the name of a file."""
    found: dict[str, str] = {}
    try:
        with host.connect() as connection:
            every = connection.domains()
            for domain in every[:_MOST_DOMAINS]:
                for which, text in _definitions(domain):
                    found[f"domains/{domain.uuid}-{which}.xml"] = text
            if len(every) > _MOST_DOMAINS:
                found["domains/more.txt"] = f"{len(every) - _MOST_DOMAINS} are left out\n"
    except KvmarmError as error:
        found["domains/problem.txt"] = lines([str(error)])
    return found


def _definitions(domain: Domain) -> Iterator[tuple[str, str]]:
    for which, live in (("live", True), ("stored", False)):
        try:
            if domain.is_active() if live else domain.is_persistent():
                yield which, without_secrets(domain.xml(live, secrets=False).encode())
        except KvmarmError as error:  # it may have gone meanwhile
            yield which, f"<!-- {_comment(error.message)} -->\n"


def without_secrets(document: bytes) -> str:
    """A domain with nothing but what decides its CPU. Raises KvmarmError: it cannot be read."""
    domain = parse(document)
    kind = domain.attributes.get("type", "")
    text = [f"<domain type={quoted(shown(kind, 40))}>\n"]
    text += _record_text(domain)
    for child in domain.children:
        if child.name in _KEPT:
            text += [*_copy(child, "  "), "\n"]
    os_type = domain.find("os/type")
    if os_type is not None:
        text += ["  <os>\n", *_copy(os_type, "    "), "\n  </os>\n"]
    emulator = emulator_of(domain)
    if emulator:
        text.append(f"  <devices>\n    <emulator>{escaped(emulator)}</emulator>\n  </devices>\n")
    if any(child.name.endswith(" commandline") for child in domain.children):
        text.append("  <!-- its command line is left out -->\n")
    return "".join([*text, "</domain>\n"])


def _record_text(domain: Element) -> list[str]:
    try:
        record = records.read_from(domain)
        if record is None:
            return []
        text = record_text.format_whole(_without_comments(record), b"\n    ").decode()
    except KvmarmError as error:
        return [f"  <!-- its record is left out: {_comment(error.message)} -->\n"]
    return [f"  <metadata>\n    {text}\n  </metadata>\n"]


def _without_comments(record: Record) -> Record:
    """A record without what its author may have written between elements."""
    intent = Intent(record.intent.added, _elements(record.intent.kept, _OF_INTENT))
    if record.home is None:
        return record.replace(intent=intent)
    pins = _elements(record.home.pins, None)
    return record.replace(intent=intent, home=record.home.replace(pins=pins))


def _elements(texts: tuple[bytes, ...], names: frozenset[str] | None) -> tuple[bytes, ...]:
    """The same elements, of these names, without comments; all names for None."""
    found = [parse_fragment(text.decode(), "utf-8").children[0] for text in texts]
    return tuple(
        "".join(_copy(element, "")).encode()
        for element in found
        if names is None or element.name in names
    )


def _copy(element: Element, indent: str) -> Iterator[str]:
    """An element and what is in it: elements, attributes and text, of no namespace."""
    named = element.attributes.items()
    attributes = "".join(f" {name}={quoted(value)}" for name, value in named if " " not in name)
    children = [child for child in element.children if " " not in child.name]
    yield f"{indent}<{element.name}{attributes}"
    if children:
        yield ">"
        for child in children:
            yield "\n" if indent else ""
            yield from _copy(child, f"{indent}  " if indent else "")
        yield f"\n{indent}" if indent else ""
        yield f"</{element.name}>"
    elif not element.children and element.content.strip():
        yield f">{escaped(element.content.strip())}</{element.name}>"
    else:
        yield "/>"


def _comment(text: str) -> str:
    return shown(text, 300).replace("--", "- -")
