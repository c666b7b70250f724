# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every template resolved for every host: tests/golden/<host>/<template>.xml, or .err with the
refusal in one line.

``make golden`` (``pytest tests/test_golden.py --regenerate-output``) writes them anew; the
difference is what a change does to users.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from lxml import etree

from kvmarm_plugin import __version__
from kvmarm_plugin.basics.errors import KvmarmError
from kvmarm_plugin.domain.record import NAMESPACE
from kvmarm_plugin.host import schema

from .corpus import HOSTS, RECORD_SCHEMA, TEMPLATES, TESTS, one_line, resolver, template

_GOLDEN = TESTS / "golden"
_PAIRS = [(where, name) for where in HOSTS for name in TEMPLATES]


def _outcome(where: str, name: str) -> tuple[Path, bytes]:
    """What a template gives on a host, and the file that says so."""
    try:
        resolved = resolver(where).resolve(template(name))
    except KvmarmError as refusal:
        return _GOLDEN / where / f"{name}.err", one_line(refusal).encode() + b"\n"
    # A release does not change 100 files.
    return _GOLDEN / where / f"{name}.xml", resolved.replace(
        f"by='kvmarm {__version__}'".encode(), b"by='kvmarm'"
    )


@pytest.mark.parametrize(("where", "name"), _PAIRS)
def test_resolved_templates(where: str, name: str, regenerate_output: bool) -> None:
    path, outcome = _outcome(where, name)
    if regenerate_output:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(outcome)
        for suffix in {".xml", ".err"} - {path.suffix}:
            path.with_suffix(suffix).unlink(missing_ok=True)
    assert path.exists(), f"{path.relative_to(TESTS)} is missing: make golden"
    assert path.read_bytes() == outcome


def test_no_golden_file_is_left_over(regenerate_output: bool) -> None:
    expected = {_outcome(where, name)[0] for where, name in _PAIRS}
    stale = {path for path in _GOLDEN.rglob("*") if path.is_file()} - expected
    if regenerate_output:
        for path in stale:
            path.unlink()
        stale = set()
    assert not stale, (
        f"{', '.join(sorted(str(path.relative_to(TESTS)) for path in stale))}: make golden"
    )


@cache
def _relaxng(path: Path) -> etree.RelaxNG:
    return etree.RelaxNG(file=str(path))


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=f"{path.parent.name}-{path.stem}")
        for path in sorted(_GOLDEN.glob("*/*.xml"))
    ],
)
def test_golden_domains_are_valid(path: Path) -> None:
    if not schema.LIBVIRT_SCHEMA.exists():
        pytest.skip(f"{schema.LIBVIRT_SCHEMA} comes with libvirt")
    root = etree.fromstring(path.read_bytes())
    libvirts = _relaxng(schema.LIBVIRT_SCHEMA)
    assert libvirts.validate(etree.ElementTree(root)), libvirts.error_log
    elements = root.findall(f"metadata/{{{NAMESPACE}}}target")
    assert len(elements) == 1
    ours = _relaxng(RECORD_SCHEMA)
    assert ours.validate(etree.ElementTree(elements[0])), ours.error_log


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_templates_are_valid(name: str) -> None:
    if not schema.LIBVIRT_SCHEMA.exists():
        pytest.skip(f"{schema.LIBVIRT_SCHEMA} comes with libvirt")
    schema.validate(template(name))


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_every_template_is_for_some_host(name: str) -> None:
    assert any(_outcome(where, name)[0].suffix == ".xml" for where in HOSTS)
