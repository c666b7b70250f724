# SPDX-License-Identifier: LGPL-2.1-or-later
"""What options and arguments name: domains, profiles, policies, pools, and this host where nothing
is named.
"""

from __future__ import annotations

import os
import platform

from ..basics.errors import KvmarmError
from ..basics.untrusted import domain_word, quoted, shown
from ..basics.value import Value
from ..domain import record
from ..domain.record import Record
from ..domain.xml import Element, asks_for_host_model, domain_of, emulator_of, parse
from ..host import files, host_policy, known, marks, qemu, ssh
from ..host.libvirtd import Connection, LibvirtError, NoDomainError, is_remote
from ..host.qemu_version import BINARIES
from ..judge.arguments import find_unjudged
from ..judge.contradictions import find_contradictions
from ..model import policy as policies
from ..model import profile_json
from ..resolve.wish import why_not_adopted, why_not_ours
from .output import is_watched, say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..fleet.pool import Pool
    from ..host.libvirtd import Domain
    from ..model.policy import Policy
    from ..model.profile import HostProfile

# Definitions of a domain: of one that runs; in its managed save, which its next start loads; the
# one that it boots from; and what a file holds.
LIVE, SAVED, STORED, FILE = "live", "saved", "stored", "file"


_REASON = 2000  # characters


class NoRecordError(KvmarmError):
    """A domain that holds no record.

    Attributes:
        reason: what is so of the domain, without its name; fit to be shown.
    """

    def __init__(self, domain: str, reason: str, hint: str = "") -> None:
        super().__init__(f"{domain} {reason}", hint)
        self.domain = domain
        self.reason = shown(reason, _REASON)


class Source(Value):
    """The XML of a domain, or the text of a pool.

    Attributes:
        name: what it was called on the command line.
        document: its text.
        definition: which of the domain's it is: LIVE, SAVED, STORED or FILE.
        stored: the domain's stored definition, where it has one and another counts.
        is_here: whether this host's libvirt has it.
    """

    name: str
    document: bytes
    definition: str
    stored: bytes | None = None
    is_here: bool = False


class Guest(Value):
    """A domain with a record.

    Attributes:
        name: the domain's.
        domain, document: its XML, parsed and not.
        record: the one in it.
        definition: as in `Source`.
        emulator: path of the QEMU that it names; empty if it names none.
        is_here: whether this host's libvirt has it, and starts it with that.
        mark: why its record may not be true, as far as this host knows; None if it knows nothing.
        notes: what else there is to say of its definitions, a line each.
        is_assumed: whether it has no record, and what it has was measured instead.
    """

    name: str
    domain: Element
    document: bytes
    record: Record
    definition: str
    emulator: str
    is_here: bool
    mark: str | None
    notes: tuple[str, ...]
    is_assumed: bool = False

    @property
    def uuid(self) -> str:
        """The domain's; empty where it has none."""
        return self.domain.content_of("uuid")


def check_is_here(uri: str, command: str) -> None:
    """Raises KvmarmError where the libvirt at `uri` is another host's, for a command that asks this
    host's kernel, or changes what is kept on it.
    """
    if is_remote(uri):
        raise KvmarmError(f"{uri} is another host", f"run kvmarm {command} there")


def is_file(name: str) -> bool:
    """Whether a file is meant, or standard input, and not a domain that libvirt knows."""
    # A slash can only be a file's, and is said so where the file is missing; a directory may be
    # called as a domain is.
    return name == "-" or "/" in name or (os.path.exists(name) and not os.path.isdir(name))


def read_source(name: str, uri: str, inactive: bool) -> Source:
    """What a file holds, standard input for "-", or the definition of a domain that libvirt at
    `uri` knows by name or UUID.

    Args:
        inactive: the definition that the domain starts from, whether it runs or not; a file's is
            taken for such a one.
    """
    if is_file(name):
        return Source(name, files.read(name), STORED if inactive else FILE)
    try:
        connection = Connection(uri)
    except LibvirtError as error:
        if not name.endswith((".xml", ".yaml")):
            raise
        raise KvmarmError(
            f"cannot read {name}: there is no such file, and libvirt cannot be asked for a domain"
            f" that is called so: {error.message}",
            "check the name",
        ) from None
    with connection:
        try:
            domain = connection.domain(name)
        except NoDomainError as error:
            error.hint += "; there is no file of that name either"
            raise
        return source_of(domain, name, inactive, connection.is_here)


def source_of(domain: Domain, name: str, inactive: bool, is_here: bool) -> Source:
    """The same of a domain at hand."""
    texts = definitions(domain)
    if inactive and STORED not in texts:
        raise KvmarmError(f"{name} has no stored definition", "leave --inactive out")
    which = STORED if inactive else next(iter(texts))
    stored = texts.get(STORED) if which != STORED else None
    return Source(name, texts[which], which, stored, is_here)


def definitions(domain: Domain) -> dict[str, bytes]:
    """The definitions that a domain has, the one that counts first."""
    found = {}
    if domain.is_active():
        found[LIVE] = domain.xml(live=True, secrets=False)
    else:
        saved = domain.saved_xml()
        if saved is not None:
            found[SAVED] = saved
    if domain.is_persistent():
        found[STORED] = domain.xml(live=False, secrets=False)
    return {which: xml.encode() for which, xml in found.items()}


def read_guest(source: Source) -> Guest:
    """A domain and its record, or those that a snapshot holds.

    Raises:
        NoRecordError: it has none.
        KvmarmError: its record cannot be used.
    """
    document = domain_of(source.document)
    domain = parse(document)
    found = record.read_from(domain)
    if found is None:
        raise _without_record(source, domain)
    name, uuid = domain.content_of("name"), domain.content_of("uuid")
    return Guest(
        name or source.name,
        domain,
        document,
        found,
        source.definition,
        emulator_of(domain),
        source.is_here,
        marks.mark_of(uuid, name) if source.is_here else None,
        tuple(_notes(source, domain, found)),
    )


def _without_record(source: Source, domain: Element) -> NoRecordError:
    if source.stored is not None and record.find(parse(source.stored)) is not None:
        how = "runs" if source.definition == LIVE else "was saved"
        return NoRecordError(
            source.name,
            f"{how} without a kvmarm record, and only its stored definition has one",
            "it counts from the next boot; to see that one:"
            f" kvmarm show --inactive {quoted(source.name)}",
        )
    if asks_for_host_model(domain):
        hint = f"resolve it first: {_how_to_resolve(source, domain)}"
    elif why_not_ours(domain):
        return NoRecordError(
            source.name,
            f"holds no kvmarm record, and is not judged: {why_not_ours(domain)}",
            "kvmarm is about KVM guests for ARM",
        )
    elif not why_not_adopted(domain):
        hint = f"to record what it has: kvmarm adopt {_word(domain) or 'DOMAIN'}"
    else:
        hint = "only a guest that asks for host-model has one: write <cpu mode='host-model'/>"
    return NoRecordError(source.name, "holds no kvmarm record", hint)


def _word(domain: Element) -> str:
    return domain_word(domain.content_of("name"), domain.content_of("uuid"))


def _how_to_resolve(source: Source, domain: Element) -> str:
    if is_file(source.name):
        return f"kvmarm define {quoted(source.name)}"
    return how_to_resolve(_word(domain))


def how_to_resolve(domain: str) -> str:
    """The command that resolves a domain which libvirt has: its XML keeps its <uuid>.

    Args:
        domain: as one word of a command.
    """
    return f"virsh dumpxml --inactive --security-info {domain} | kvmarm define -"


def _notes(source: Source, domain: Element, found: Record) -> Iterator[str]:
    uuid = domain.content_of("uuid")
    mark = marks.mark_of(uuid) if uuid and is_file(source.name) else None
    if mark is not None:  # perhaps of a guest that is no longer here
        yield (
            f"on this host is a mark of that guest, whose record may not be true ({shown(mark)});"
            f" ask for it by its name: kvmarm check {_word(domain)}"
        )
    if source.definition == SAVED:
        yield "this is its managed save, which its next start loads"
    yield from find_unjudged(domain, found.target)
    if source.stored is None:
        return
    stored = parse(source.stored)
    try:
        of_stored = record.read_from(stored)
        if of_stored is None:
            yield "its stored definition, which counts from the next boot, has no record"
            return
        other = of_stored.target
    except KvmarmError as error:
        yield (
            "its stored definition, which counts from the next boot, cannot be used:"
            f" {error.message}"
        )
        return
    said = found.target, find_contradictions(domain, found.target)
    if said != (other, find_contradictions(stored, other)):
        yield (
            "its stored definition, which counts from the next boot, is another; see it with"
            " --inactive"
        )


def read_profile(name: str | None) -> HostProfile:
    """The profile that an option or an argument names: a file, ssh://[USER@]HOST, which is asked,
    or a name that host/known.py has; this host's own for None.
    """
    if not name:
        return probe_here()
    if name.startswith("ssh://"):
        if is_watched():
            say(f"asking {shown(name, 100)} for its profile")
        return profile_json.loads(ssh.profile_text(name), name)
    may_be_known = name != "-" and "/" not in name and not os.path.isfile(name)
    if may_be_known and (known.has(name) or not os.path.exists(name)):
        return known.read(name)
    return profile_json.loads(files.read_text(name), name)


def read_profiles(names: list[str]) -> list[HostProfile]:
    """Profiles of hosts that the output can tell apart by their names."""
    hosts: dict[str, HostProfile] = {}
    files_of: dict[str, str] = {}
    for name in names:
        host = read_profile(name)
        if host.name in hosts:
            raise KvmarmError(
                f"{files_of[host.name]} and {name} are both of a host {host.name}",
                'change "name" in one of them',
            )
        hosts[host.name], files_of[host.name] = host, name
    return list(hosts.values())


def read_policy(name: str | None) -> Policy:
    """The policy in a file; for None the host's, else the default. Raises KvmarmError, also where
    the hook would not obey it.
    """
    if name is None:
        return host_policy.read()
    return policies.loads(files.read_text(name), name)


def read_pool(name: str | None) -> Pool | None:
    """The pool in a file; for None the one that this host is in, if it is in one."""
    from ..fleet import pool

    if name is None and os.path.exists(pool.DEFAULT_PATH):
        name = pool.DEFAULT_PATH
    return None if name is None else pool.loads(files.read_text(name), name)


def probe_here(emulator: str = "", verbose: bool = False) -> HostProfile:
    """This host's profile, measured; each step is told where somebody watches or asks for it."""
    from ..host.probe import probe

    def tell(line: str) -> None:
        if verbose or is_watched():
            say(f"probed {line}")

    return probe(qemu=emulator, step=tell)


def machines_here(emulator: str = "") -> tuple[str, ...]:
    """The machine types of this host's QEMU, or of another one on it.

    Args:
        emulator: its path. It is run: of what a file names, only what `qemu.may_be_asked`.
    """
    if not emulator and platform.machine() not in BINARIES:
        raise KvmarmError(
            f"this host is {platform.machine()}: KVM on ARM is not here to be asked",
            "where a command takes --host PROFILE, name an ARM host",
        )
    return qemu.ask(emulator or qemu.find_binary(platform.machine())).machines
