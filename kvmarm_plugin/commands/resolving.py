# SPDX-License-Identifier: LGPL-2.1-or-later
"""What resolve, define, create and refresh share: a domain's XML with its host-model made
concrete.
"""

from __future__ import annotations

import platform
import shlex
from contextlib import contextmanager
from typing import NamedTuple

from ..basics import cpulist
from ..basics.errors import KvmarmError
from ..basics.untrusted import domain_word, quoted, shown
from ..domain import record
from ..domain.restoring import restore
from ..domain.xml import asks_for_host_model, parse
from ..host import files, left_alone, libvirt_host_model
from ..host.libvirtd import is_remote
from ..host.qemu import ask_named
from ..judge.contradictions import find_contradictions
from ..judge.wording import difference
from ..model.target import Pinning, Target
from ..resolve.wish import what_emulation_needs, why_not_adopted, why_not_ours
from .inputs import how_to_resolve, machines_here, read_policy, read_pool, read_profile
from .output import say
from .show_view import target_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from ..domain.xml import Element
    from ..fleet.pool import Pool
    from ..judge.offer import Offer
    from ..resolve.resolver import Resolver


class Choices(NamedTuple):
    """What the command line says of how to resolve.

    Attributes:
        host: a profile's file; None for this host.
        policy: its file; None for the host's.
        pool: its file; None for the one that this host is in.
        no_pool: resolve for the host alone, whatever pool it is in.
    """

    host: str | None
    policy: str | None
    pool: str | None
    no_pool: bool

    @classmethod
    def of(cls, arguments: Namespace) -> Choices:
        return cls(arguments.host, arguments.policy, arguments.pool, arguments.no_pool)


@contextmanager
def resolver_for(choices: Choices) -> Iterator[Resolver]:
    """A resolver that does what the choices say.

    Raises:
        KvmarmError: a file that they name cannot be used, or this host cannot be probed.
    """
    # The pool that this host is in says nothing about the host of a profile.
    alone = choices.pool is None and (choices.no_pool or choices.host)
    pool = None if alone else read_pool(choices.pool)
    if pool is not None:
        with _in_pool(pool, choices) as resolver:
            yield resolver
        return
    from ..resolve.resolver import Resolver

    yield Resolver(
        read_profile(choices.host),
        read_policy(choices.policy),
        advise=say,
        ask=(lambda _: None) if choices.host else ask_named,
    )


def resolved(source: bytes, choices: Choices, name: str, verb: str = "resolve") -> bytes:
    """A domain's XML, resolved; as it is if it does not ask for host-model.

    Args:
        name: of its file, "-" for standard input.
        verb: the command that resolves it.

    Raises:
        KvmarmError: the XML, or a file that the choices name, cannot be used; the host cannot give
            what the domain asks for.
    """
    # Most domains do not ask, and then neither a profile nor a policy is needed.
    domain = parse(source)
    if not asks_for_host_model(domain):
        advice = what_emulation_needs(domain) or _of_old_record(source, domain, name, verb)
        if advice:
            say(advice)
        return source
    with resolver_for(choices) as resolver:
        return resolver.resolve(source)


def _of_old_record(source: bytes, domain: Element, name: str, verb: str) -> str:
    """What to say of a domain that does not ask for host-model and has a record that is not about
    it any more, such as one whose <cpu> is gone; else nothing.
    """
    try:
        found = record.read_from(domain)
        if found is None:
            return ""
        changes = find_contradictions(domain, found.target)
        if not changes:
            return ""
        asks_again = asks_for_host_model(parse(restore(source, domain)))
    except KvmarmError as error:
        return f"its kvmarm record, which stays as it is, cannot be used: {error}"
    if asks_again:
        file = "FILE" if name == "-" else shlex.quote(name)
        hint = (
            f"to resolve it anew: kvmarm resolve --restore-intent {file} | kvmarm {verb} -; or undo"
            " the edit"
        )
    elif record.is_adopted(found) and not why_not_adopted(domain):
        word = shown(quoted(domain.content_of("name")), 200)
        hint = f"once it is defined: kvmarm adopt {word}; or undo the edit"
    else:
        hint = "write <cpu mode='host-model'/>; or, for a guest without it, remove <kvmarm:target>"
    said = difference(changes[0], "recorded", "now", meaning=False)
    return str(KvmarmError(f"its kvmarm record stays, and is not about it any more: {said}", hint))


def say_unrecorded(xml: bytes, domain: str) -> None:
    """Say of a guest that has been defined or created that it has no record, and how it gets one.

    Args:
        domain: its name.
    """
    element = parse(xml)
    if record.ours(element) or asks_for_host_model(element) or why_not_ours(element):
        return
    word = domain_word(domain, element.content_of("uuid") or "DOMAIN")
    hint = f"to record what it has: kvmarm adopt {shown(word)}"
    if why_not_adopted(element):
        hint = f"{why_not_adopted(element)}: write <cpu mode='host-model'/>"
    say(
        f"{shown(domain)} has no kvmarm record, since it does not ask for host-model (hint: {hint})"
    )


def resolved_for(uri: str, name: str, choices: Choices, verb: str) -> tuple[bytes, str]:
    """The XML in a file, resolved for the host of the libvirt at `uri`; and what became of its
    host-model, in words, if it asks.

    Args:
        verb: the command that does so.

    Raises:
        KvmarmError: as for `resolved`; or the host is another, and its profile was not given.
    """
    source = files.read(name)
    if asks_for_host_model(parse(source)):
        check_host_of(uri, choices)
    result = resolved(source, choices, name, verb)
    try:
        result.decode()
    except UnicodeDecodeError:
        raise KvmarmError(
            f"{name} is not in UTF-8", f"convert it: xmllint --encode UTF-8 {shlex.quote(name)}"
        ) from None
    return result, "" if result == source else _summary(result)


def check_host_of(uri: str, choices: Choices) -> None:
    """Raises KvmarmError if the libvirt at `uri` is another host's, and the choices do not say what
    that is.
    """
    if is_remote(uri) and not choices.host:
        raise KvmarmError(
            f"{uri} is another host, and its profile is not known here",
            "give its profile with --host, or have it asked: --host ssh://HOST",
        )


def leave_alone_no_more(uuid: str, name: str) -> None:
    """The user has kvmarm work on a guest again.

    Args:
        name: of the guest, for people.
    """
    try:
        left_alone.discard(uuid)
    except KvmarmError as error:
        say(f"{name} may still be left alone by renewal and --all: {error}")


def why_it_will_not_start(domain: Element, word: str) -> str:
    """What to say of a stored definition that is given back and asks for host-model; else
    nothing.

    Args:
        word: the domain's name, as one word of a command.
    """
    if not asks_for_host_model(domain) or libvirt_host_model.is_noted():
        return ""
    return f"it asks for host-model, and does not start without: {how_to_resolve(word)}"


def _summary(result: bytes) -> str:
    """ ": host-model is now …" for a domain with a record, else nothing."""
    found = record.read_from(parse(result))
    if found is None:
        return ""
    target = found.target
    levelled = ", levelled by libkvmarm-level" if target.level else ""
    return (
        f": host-model is now {target.model} on {target.machine}, {target_name(target)}{levelled}"
    )


@contextmanager
def _in_pool(pool: Pool, choices: Choices) -> Iterator[Resolver]:
    """Resolves to the pool's targets, which are the same on every member, once the member at hand
    has confirmed them: by its profile, or by scratch vCPUs of its kernel.
    """
    from ..fleet.pool import counterpart, resolver

    policy = read_policy(choices.policy)
    if choices.host:
        from ..judge.by_profile import ProfileOffer
        from ..resolve.resolver import clusters_of

        host = read_profile(choices.host)

        def by_profile(target: Target) -> Offer:
            return ProfileOffer(target, host, counterpart(target.pinning, host))

        yield resolver(pool, policy, host.name, clusters_of(host), by_profile, say)
        return
    from ..host.cpus import find_clusters
    from ..kvm.device import System
    from ..rehearse import KernelOffer

    found = find_clusters()
    clusters = tuple(
        Pinning(kind.midr, kind.revidr, cpulist.write(kind.cpus))
        for kind in found
        if kind.midr is not None
    )
    if len(clusters) < len(found):
        raise KvmarmError(
            "this host has CPUs of an unknown kind: neither sysfs nor /proc/cpuinfo tells MIDR_EL1",
            "kvmarm probe names them",
        )
    machines = machines_here()
    with System() as system:

        def by_kernel(target: Target) -> Offer:
            cpus = cpulist.parse(target.pinning.cpus) if target.pinning else ()
            return KernelOffer(target, system, machines, cpus)

        yield resolver(pool, policy, platform.node(), clusters, by_kernel, say)
