# SPDX-License-Identifier: LGPL-2.1-or-later
"""What each command of `kvmarm` does; `cli` parses, this acts. Each function takes the parsed arguments and returns the
exit status."""

from __future__ import annotations

import difflib
import json
import os
import platform
import sys

from ..basics.errors import KvmarmError
from ..basics.untrusted import lines, shown
from ..domain import record
from ..domain import xml as domain
from ..host import files
from ..model import policy, profile_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

    from ..fleet.pool import Pool
    from ..judge.finding import Finding
    from ..model.profile import HostProfile
    from ..model.target import Target

DONE, ERROR, USAGE, INCOMPATIBLE = 0, 1, 2, 3


def probe(arguments: Namespace) -> int:
    """`kvmarm probe`"""
    host = _probe(arguments.qemu, verbose=arguments.verbose)
    _output(arguments.output, profile_json.dumps(host).encode())
    for problem in host.problems:
        say(f"not measured: {problem}")
    return DONE if host.clusters else ERROR


def resolve(arguments: Namespace) -> int:
    """`kvmarm resolve`"""
    source = files.read(arguments.file)
    result = _restored(source) if arguments.restore_intent else _resolved(source, arguments)
    if arguments.validate:
        from ..host.schema import validate

        validate(result)
    if arguments.print_diff:
        _print(_diff(source, result, arguments.file))
    else:
        _output(arguments.output, result)
    return DONE


def define(arguments: Namespace) -> int:
    """`kvmarm define`"""
    from ..host.libvirtd import Connection

    result = _for_connection(arguments)
    with Connection(arguments.connect) as connection:
        name = connection.define(result.decode(), arguments.validate)
    _print(lines([f"Domain '{shown(name)}' defined from {arguments.file}{_summary(result)}"]))
    return DONE


def create(arguments: Namespace) -> int:
    """`kvmarm create`"""
    from ..host.libvirtd import Connection

    result = _for_connection(arguments)
    with Connection(arguments.connect) as connection:
        name = connection.create(result.decode(), arguments.validate, arguments.paused)
    _print(lines([f"Domain '{shown(name)}' created from {arguments.file}{_summary(result)}"]))
    return DONE


def show(arguments: Namespace) -> int:
    """`kvmarm show`"""
    from . import show_view as readable

    found, title, _ = _record(_domain_or_file(arguments), arguments.domain)
    if arguments.json:
        _print(json.dumps(readable.as_json(found), indent=1) + "\n")
    else:
        _print(readable.as_text(title, found, arguments.verbose))
    return DONE


def check(arguments: Namespace) -> int:
    """`kvmarm check`"""
    from ..fleet.pool import is_pool
    from ..judge.by_profile import check as check_profile
    from ..judge.contradictions import edited

    if not arguments.host:
        _policy(None)  # the hook reads it here, with a reader of its own: refuse what it would not read alike
    document = _domain_or_file(arguments)
    if is_pool(document):
        return _check_pool(document, arguments)
    found, title, root = _record(document, arguments.domain)
    if arguments.host:
        hosts = _profiles(arguments.host)
        verdicts = {host.name: check_profile(found.target, host) for host in hosts}
    else:
        verdicts = {platform.node(): _rehearse(root, found.target)}
    changes = edited(root, found.target)
    verdicts = {host: changes + findings for host, findings in verdicts.items()}
    return _print_verdicts(title, verdicts, arguments.json)


def compare(arguments: Namespace) -> int:
    """`kvmarm compare`"""
    from ..fleet import compare_view as compareview
    from ..fleet.compare import compare as compare_hosts

    comparison = compare_hosts(_profiles(arguments.profiles), _policy(arguments.policy))
    if arguments.json:
        _print(json.dumps(compareview.as_json(comparison), indent=1) + "\n")
    elif arguments.dot:
        _print(compareview.as_dot(comparison))
    elif arguments.svg:
        from ..fleet.graphviz import svg

        files.write(arguments.svg, svg(compareview.as_dot(comparison)))
    else:
        _print(compareview.as_text(comparison))
    return DONE if comparison.possible else INCOMPATIBLE


def baseline(arguments: Namespace) -> int:
    """`kvmarm baseline`"""
    from ..fleet import baseline as pools
    from ..fleet.pool import dumps

    result = pools.baseline(_profiles(arguments.profiles), arguments.name)
    if result.pool and arguments.output:
        _output(arguments.output, dumps(result.pool).encode())
    _print(json.dumps(pools.as_json(result), indent=1) + "\n" if arguments.json else pools.as_text(result, arguments.explain))
    return DONE if result.pool else INCOMPATIBLE


def hook(arguments: Namespace) -> int:
    """`kvmarm hook install` and `kvmarm hook uninstall`"""
    from ..hook import install as hookfile

    if arguments.action == "install":
        _policy(None)  # as for check
    for line in hookfile.install() if arguments.action == "install" else hookfile.uninstall():
        _print(lines([line]))
    return DONE


# -- what they share -----------------------------------------------------------------------------------------------------------


def _resolved(source: bytes, arguments: Namespace) -> bytes:
    from ..resolve.resolver import Resolver

    # Most domains do not ask, and then neither a profile nor a policy is needed.
    root = domain.parse(source)
    if arguments.refresh and record.find(root) is not None:
        source = _restored(source)
        root = domain.parse(source)
    if not domain.asks_for_host_model(root):
        return source
    pool = _pool(arguments)
    if pool is None:
        return Resolver(_host_profile(arguments), _policy(arguments.policy), advise=say).resolve(source)
    return _resolved_in_pool(source, pool, arguments)


def _resolved_in_pool(source: bytes, pool: Pool, arguments: Namespace) -> bytes:
    """The pool's target, which is the same on every member, once the member at hand has confirmed it: by its profile, or by
    scratch vCPUs of its kernel."""
    from ..fleet.pool import counterpart, resolver

    preferred = _policy(arguments.policy)
    if arguments.host:
        from ..judge.by_profile import ProfileOffer
        from ..resolve.resolver import clusters_of

        host = _host_profile(arguments)
        ask = lambda target: ProfileOffer(  # noqa: E731
            target, host, counterpart(target.pinning.midr if target.pinning else None, host)
        )
        return resolver(pool, preferred, host.name, clusters_of(host), ask, say).resolve(source)
    from ..basics import cpulist
    from ..host.cpus import find_clusters
    from ..kvm.device import System
    from ..model.target import Pinning
    from ..rehearse import KernelOffer

    clusters = tuple(Pinning(found.midr, found.revidr, cpulist.write(found.cpus)) for found in find_clusters())
    machines = _machines()
    with System() as system:
        offer = lambda target: KernelOffer(  # noqa: E731
            target, system, machines, cpulist.parse(target.pinning.cpus) if target.pinning else ()
        )
        return resolver(pool, preferred, platform.node(), clusters, offer, say).resolve(source)


def _restored(source: bytes) -> bytes:
    from ..domain.rewrite import restore

    return restore(source, domain.parse(source))


def _diff(before: bytes, after: bytes, name: str) -> str:
    """What became of a document, for people: as `diff -u` shows it, but with spaces for tabs. `name` is of its file."""
    old, new = (text.decode(errors="replace").removesuffix("\n").split("\n") for text in (before, after))
    changes = difflib.unified_diff(old, new, shown(name, sys.maxsize), "resolved", lineterm="")
    return "".join(f"{line[0]}{line[1:].expandtabs()}\n" for line in changes)


def _for_connection(arguments: Namespace) -> bytes:
    """The XML for libvirt, resolved for the host that libvirt runs on."""
    from ..host.libvirtd import is_remote

    source = files.read(arguments.file)
    if is_remote(arguments.connect) and not arguments.host and domain.asks_for_host_model(domain.parse(source)):
        raise KvmarmError(
            f"{arguments.connect} is another host, and its profile is not known here",
            "make it there with kvmarm probe, and give it with --host",
        )
    result = _resolved(source, arguments)
    try:
        result.decode()
    except UnicodeDecodeError:
        raise KvmarmError(f"{arguments.file} is not in UTF-8", "convert it: iconv -t UTF-8") from None
    return result


def _summary(result: bytes) -> str:
    """ ": host-model became …" for a domain with a record."""
    element = record.find(domain.parse(result))
    if element is None:
        return ""
    from .show_view import target_name

    target = record.read(element).target
    return f": host-model is now {target.model} on {target.machine}, {target_name(target)}"


def _record(document: bytes, source: str) -> tuple[record.Record, str, domain.Element]:
    """The record in a domain's XML, the domain's name, and the domain. `source` is where it is from, for messages."""
    root = domain.parse(document)
    element = record.find(root)
    if element is None:
        raise KvmarmError(f"{source} holds no kvmarm record", "resolve it first: kvmarm define FILE")
    name = root.find("name")
    return record.read(element), name.body.decode(errors="replace") if name else source, root


def _check_pool(document: bytes, arguments: Namespace) -> int:
    """`kvmarm check` of a pool's file: are these hosts members like the others?"""
    from ..fleet.pool import check_member, loads

    try:
        pool = loads(document.decode(), arguments.domain)
    except UnicodeDecodeError:
        raise KvmarmError(f"{arguments.domain} is not a text in UTF-8", "is it the right file?") from None
    hosts = _profiles(arguments.host) if arguments.host else [_probe("", verbose=False)]
    useless = next((host for host in hosts if not host.clusters), None)
    if useless:
        raise KvmarmError(
            f"host {useless.name} cannot run KVM guests: {'; '.join(useless.problems)}", "it can be no member of a pool"
        )
    verdicts = {host.name: check_member(pool, host) for host in hosts}
    return _print_verdicts(f"pool {pool.name}", verdicts, arguments.json)


def _rehearse(root: domain.Element, target: Target) -> list[Finding]:
    from ..host.cpus import find_clusters
    from ..judge.pinning import settle, with_cluster
    from ..kvm.device import System
    from ..rehearse import rehearse

    machines = _machines()
    with System() as system:
        if target.pinning is None:
            return rehearse(target, system, machines)
        clusters = find_clusters()
        _, cpus, pins = settle(b"", root, target.pinning, clusters, movable=False)
        return with_cluster(pins + rehearse(target, system, machines, cpus), target.pinning, clusters)


def _machines() -> tuple[str, ...]:
    """The machine types of this host's QEMU."""
    from ..host import qemu

    return qemu.ask(qemu.find_binary(platform.machine())).machines


def _print_verdicts(title: str, verdicts: dict[str, list[Finding]], as_json: bool) -> int:
    """What `check` says. Returns the exit status."""
    from ..judge.finding import HARMLESS, worst

    if as_json:
        report = {
            host: {"verdict": worst(findings) or "same", "findings": [finding.as_json() for finding in findings]}
            for host, findings in verdicts.items()
        }
        _print(json.dumps({"domain": title, "hosts": report}, indent=1) + "\n")
    else:
        for host, findings in verdicts.items():
            answer = {"": "yes, as recorded", HARMLESS: "yes, as recorded; by itself the host would give something else now"}
            verdict = f"{shown(title)} on {shown(host)}: {answer.get(worst(findings), 'no')}"
            _print(lines([verdict, *(f"  {finding}" for finding in findings)]))
    return DONE if all(worst(findings) in ("", HARMLESS) for findings in verdicts.values()) else INCOMPATIBLE


def _domain_or_file(arguments: Namespace) -> bytes:
    name = arguments.domain
    # A slash can only be a file's, and is said so where the file is missing; a directory may be called as a domain is.
    if name == "-" or "/" in name or (os.path.exists(name) and not os.path.isdir(name)):
        return files.read(name)
    from ..host.libvirtd import Connection

    with Connection(arguments.connect) as connection:
        return connection.domain_xml(name).encode()


def _profiles(names: list[str]) -> list[HostProfile]:
    """Profiles of hosts that the output can tell apart by their names."""
    hosts: dict[str, HostProfile] = {}
    files_of: dict[str, str] = {}
    for name in names:
        host = profile_json.loads(files.read_text(name), name)
        if host.name in hosts:
            raise KvmarmError(f"{files_of[host.name]} and {name} are both of a host {host.name}", 'change "name" in one of them')
        hosts[host.name], files_of[host.name] = host, name
    return list(hosts.values())


def _host_profile(arguments: Namespace) -> HostProfile:
    """The profile given with --host, or this host's own."""
    if arguments.host:
        return profile_json.loads(files.read_text(arguments.host), arguments.host)
    return _probe("", verbose=False)


def _pool(arguments: Namespace) -> Pool | None:
    """The pool given with --pool, else the one that this host is in; the latter says nothing about the host of a profile."""
    from ..fleet import pool

    path = arguments.pool
    if path is None and not arguments.no_pool and not arguments.host and os.path.exists(pool.DEFAULT_PATH):
        path = pool.DEFAULT_PATH
    return None if path is None else pool.loads(files.read_text(path), path)


def _probe(qemu: str, verbose: bool) -> HostProfile:
    from ..host.probe import probe as measure

    show_steps = verbose or (sys.stderr is not None and sys.stderr.isatty())
    return measure(qemu=qemu, step=(lambda line: say(f"probed {line}")) if show_steps else (lambda _: None))


def _policy(name: str | None) -> policy.Policy:
    """The policy given with --policy, else the host's, else the default."""
    if name is None and not os.path.exists(policy.DEFAULT_PATH):
        return policy.Policy()
    path = name or policy.DEFAULT_PATH
    return policy.loads(files.read_text(path), path)


def _output(name: str | None, data: bytes) -> None:
    """Write to a file, or to standard output for None. Raises KvmarmError; BrokenPipeError if nobody reads any more."""
    if name:
        files.write(name, data)
        return
    if sys.stdout is None:
        raise KvmarmError("cannot write standard output: it is closed", "open it, or send it to /dev/null")
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        # Python must not try again when it flushes what is left at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        raise KvmarmError(f"cannot write standard output: {error.strerror}", "check the free space where it goes") from None


def _print(text: str) -> None:
    """Text to standard output, however it came about: what does not print is escaped, and what the output's encoding does not
    have. Data go to `_output` as they are."""
    text = "\n".join(shown(line, sys.maxsize) for line in text.split("\n"))
    _output(None, text.encode(sys.stdout.encoding if sys.stdout else "utf-8", "backslashreplace"))


def say(line: str) -> None:
    """A line to standard error. That it is closed or full changes nothing."""
    try:
        if sys.stderr is not None:
            print(lines([f"kvmarm: {line}"]), end="", file=sys.stderr)
    except OSError:
        pass
