# SPDX-License-Identifier: LGPL-2.1-or-later
"""Domain XML and records against their RELAX NG schemas: libvirt's own, where it is installed, and
those of xml-templates.

Schemas tell whether XML is written right, not whether a host can run it.
"""

from __future__ import annotations

from pathlib import Path

from lxml import etree

from ..basics.errors import KvmarmError
from ..domain.record import NAMESPACE, NAMESPACE_1
from .files import shipped

LIBVIRT_SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")
_OF_RECORDS = {NAMESPACE: "kvmarm-target.rng", NAMESPACE_1: "kvmarm-target-1.rng"}


class SchemaError(KvmarmError):
    """The XML is not what its schema allows."""


def validate(source: bytes) -> None:
    """Check a domain that domain.xml.parse has accepted.

    Raises:
        SchemaError: the domain or its record is not valid, or libvirt's schema is not installed.
    """
    if not LIBVIRT_SCHEMA.exists():
        raise SchemaError(
            f"{LIBVIRT_SCHEMA} is missing",
            "it comes with libvirt's daemon: install it, or leave out --validate",
        )
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
    try:
        domain = etree.fromstring(source, parser)
    except (
        etree.XMLSyntaxError
    ) as error:  # what expat takes and libvirt's parser does not, such as 300 levels
        raise SchemaError(
            f"libvirt cannot read the domain: {error.msg}", "check it with: xmllint --noout FILE"
        ) from None
    _check(LIBVIRT_SCHEMA, domain, "the domain")
    for namespace, name in _OF_RECORDS.items():
        for element in domain.iterfind(f"metadata/{{{namespace}}}target"):
            _check(shipped("xml-templates", name), element, "the kvmarm record")


def _check(schema: Path, element: etree._Element, what: str) -> None:
    relaxng = etree.RelaxNG(file=str(schema))
    if not relaxng.validate(etree.ElementTree(element)):
        first = relaxng.error_log[0]
        raise SchemaError(
            f"{what} is not valid: {first.message}, line {first.line}", f"the schema is {schema}"
        )
