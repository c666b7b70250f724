# SPDX-License-Identifier: LGPL-2.1-or-later
"""What resolve, define and create share: a domain's XML with its host-model made concrete."""

from __future__ import annotations

import platform
from typing import NamedTuple

from ..basics.errors import KvmarmError
from ..domain import record
from ..domain.rewrite import restore
from ..domain.xml import asks_for_host_model, parse
from ..host import files
from .inputs import machines_here, read_policy, read_pool, read_profile
from .output import say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

    from ..fleet.pool import Pool


class Choices(NamedTuple):
    """What the command line says of how to resolve.

    Attributes:
        host: a profile's file; None for this host.
        policy: its file; None for the host's.
        pool: its file; None for the one that this host is in.
        no_pool: resolve for the host alone, whatever pool it is in.
        refresh: resolve a domain that has a record anew, from its intent.
    """

    host: str | None
    policy: str | None
    pool: str | None
    no_pool: bool
    refresh: bool

    @classmethod
    def of(cls, arguments: Namespace) -> Choices:
        return cls(
            arguments.host, arguments.policy, arguments.pool, arguments.no_pool, arguments.refresh
        )


def resolved(source: bytes, choices: Choices) -> bytes:
    """A domain's XML, resolved; as it is if it does not ask for host-model.

    Raises:
        KvmarmError: the XML, or a file that the choices name, cannot be used; the host cannot give
            what the domain asks for.
    """
    # Most domains do not ask, and then neither a profile nor a policy is needed.
    domain = parse(source)
    if choices.refresh and record.find(domain) is not None:
        source = restore(source, domain)
        domain = parse(source)
    if not asks_for_host_model(domain):
        return source
    # The pool that this host is in says nothing about the host of a profile.
    alone = choices.pool is None and (choices.no_pool or choices.host)
    pool = None if alone else read_pool(choices.pool)
    if pool is not None:
        return _resolved_in_pool(source, pool, choices)
    from ..resolve.resolver import Resolver

    return Resolver(read_profile(choices.host), read_policy(choices.policy), advise=say).resolve(
        source
    )


def resolved_for(uri: str, name: str, choices: Choices) -> tuple[bytes, str]:
    """The XML in a file, resolved for the host of the libvirt at `uri`; and what became of its
    host-model, in words, if it asks.

    Raises:
        KvmarmError: as for `resolved`; or the host is another, and its profile was not given.
    """
    from ..host.libvirtd import is_remote

    source = files.read(name)
    if is_remote(uri) and not choices.host and asks_for_host_model(parse(source)):
        raise KvmarmError(
            f"{uri} is another host, and its profile is not known here",
            "make it there with kvmarm probe, and give it with --host",
        )
    result = resolved(source, choices)
    try:
        result.decode()
    except UnicodeDecodeError:
        raise KvmarmError(f"{name} is not in UTF-8", "convert it: iconv -t UTF-8") from None
    return result, "" if result == source else _summary(result)


def _summary(result: bytes) -> str:
    """ ": host-model is now …" for a domain with a record, else nothing."""
    element = record.find(parse(result))
    if element is None:
        return ""
    from .show_view import target_name

    target = record.read(element).target
    return f": host-model is now {target.model} on {target.machine}, {target_name(target)}"


def _resolved_in_pool(source: bytes, pool: Pool, choices: Choices) -> bytes:
    """The pool's target, which is the same on every member, once the member at hand has confirmed
    it: by its profile, or by scratch vCPUs of its kernel.
    """
    from ..fleet.pool import counterpart, resolver

    policy = read_policy(choices.policy)
    if choices.host:
        from ..judge.by_profile import ProfileOffer
        from ..resolve.resolver import clusters_of

        host = read_profile(choices.host)
        ask = lambda target: ProfileOffer(  # noqa: E731
            target, host, counterpart(target.pinning.midr if target.pinning else None, host)
        )
        return resolver(pool, policy, host.name, clusters_of(host), ask, say).resolve(source)
    from ..basics import cpulist
    from ..host.cpus import find_clusters
    from ..kvm.device import System
    from ..model.target import Pinning
    from ..rehearse import KernelOffer

    clusters = tuple(
        Pinning(found.midr, found.revidr, cpulist.write(found.cpus)) for found in find_clusters()
    )
    machines = machines_here()
    with System() as system:
        offer = lambda target: KernelOffer(  # noqa: E731
            target, system, machines, cpulist.parse(target.pinning.cpus) if target.pinning else ()
        )
        return resolver(pool, policy, platform.node(), clusters, offer, say).resolve(source)
