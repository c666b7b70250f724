# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command `kvmarm`: parses, and leaves the rest to the file of the command in commands/.

Exit status: 0 yes or done, 1 error, 2 usage, 3 incompatible (a clear "no", with findings).
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys

from . import __version__
from .basics.errors import KvmarmError
from .basics.untrusted import shown
from .commands import ERROR
from .commands.output import say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    Subparsers = argparse._SubParsersAction["_Parser"]

_USAGE_ERROR = 1000  # characters
_EMPTY_OPTION = re.compile("(--[^=]*|-[^=-])=")  # not one whose value ends in "="


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns the exit status."""
    parser = _parser()
    words = sys.argv[1:] if argv is None else argv
    options = words[: words.index("--")] if "--" in words else words
    if "" in words or any(map(_EMPTY_OPTION.fullmatch, options)):
        # No command means anything by it, and a variable that is not set would change what it does.
        parser.error("an argument is empty")
    arguments = parser.parse_args(words)
    try:
        # Only the one that was asked for is read.
        status: int = importlib.import_module(f".commands.{arguments.command}", __package__).run(
            arguments
        )
    except KvmarmError as error:
        say(str(error))
        return ERROR
    except BrokenPipeError:
        return ERROR  # whoever read the output has seen enough
    except KeyboardInterrupt:
        return 130
    return status


class _Parser(argparse.ArgumentParser):
    """File names come as arguments, too: from a shell's pattern, in a directory that others write
    to.
    """

    def error(self, message: str) -> NoReturn:
        super().error(shown(message, _USAGE_ERROR))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="kvmarm",
        description="host-model for KVM on ARM under libvirt",
        epilog="See man kvmarm.",
    )
    parser.add_argument("--version", action="version", version=f"kvmarm {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in _COMMANDS:
        add(subparsers)
    return parser


def _probe(subparsers: Subparsers) -> None:
    probe = _command(subparsers, "probe", "measure this host and print its profile (JSON)")
    probe.add_argument("-o", "--output", metavar="FILE", help="write the profile to FILE")
    probe.add_argument(
        "--qemu",
        metavar="PATH",
        default="",
        help="the emulator to ask (default: the distribution's)",
    )
    probe.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="say on standard error what was measured, and how long it took",
    )


def _import(subparsers: Subparsers) -> None:
    importing = _command(
        subparsers, "import", "make a profile (JSON) from what another program dumped of a CPU"
    )
    importing.set_defaults(command="import_")  # its file: Python has the word to itself
    importing.add_argument(
        "file",
        metavar="FILE",
        help=(
            "a fingerprint of Firecracker, lines of a register and its value, or /proc/cpuinfo (-"
            " for standard input)"
        ),
    )
    importing.add_argument("-o", "--output", metavar="FILE", help="write the profile to FILE")
    importing.add_argument(
        "--name", default="", help="of the host (default: after its CPU and kernel)"
    )
    importing.add_argument(
        "--format",
        choices=("firecracker", "registers", "hardware", "cpuinfo"),
        help="what FILE is (default: what it looks like)",
    )
    importing.add_argument(
        "--kernel",
        metavar="RELEASE",
        default="",
        help="the host's kernel, as uname -r prints it, if FILE does not tell",
    )


def _resolve(subparsers: Subparsers) -> None:
    resolve = _command(
        subparsers,
        "resolve",
        "replace host-model in domain XML by a concrete CPU, and print the XML",
    )
    _add_file(resolve, optional=True)
    _add_resolving(resolve)
    # Together they would replace the domain by a diff of it.
    where = resolve.add_mutually_exclusive_group()
    where.add_argument(
        "-o", "--output", metavar="FILE", help="write to FILE, which may be the one that is read"
    )
    where.add_argument(
        "--print-diff", action="store_true", help="print what would change instead of the XML"
    )
    resolve.add_argument(
        "--restore-intent",
        action="store_true",
        help="give back the XML as it was before it was resolved",
    )


def _define(subparsers: Subparsers) -> None:
    define = _command(subparsers, "define", "resolve domain XML, then define it as virsh does")
    _add_file(define)
    _add_connect(define)
    _add_resolving(define)


def _create(subparsers: Subparsers) -> None:
    create = _command(subparsers, "create", "resolve domain XML, then create it as virsh does")
    _add_file(create)
    _add_connect(create)
    _add_resolving(create)
    create.add_argument("--paused", action="store_true", help="leave the guest paused")


def _refresh(subparsers: Subparsers) -> None:
    refresh = _command(
        subparsers,
        "refresh",
        "resolve recorded guests again, from what their users wrote",
    )
    _add_domains(refresh, "every domain that has a record")
    refresh.add_argument(
        "--machine", metavar="TYPE", help="give them this machine type (default: they keep theirs)"
    )
    _add_changes(refresh)
    _add_connect(refresh)
    _add_resolving(refresh)


def _adopt(subparsers: Subparsers) -> None:
    adopt = _command(
        subparsers, "adopt", "record guests that never asked for host-model, running ones too"
    )
    _add_domains(adopt, "every domain that the policy does not except")
    _add_changes(adopt)
    _add_connect(adopt)


def _forget(subparsers: Subparsers) -> None:
    forget = _command(
        subparsers,
        "forget",
        "remove the records of guests, and leave those guests alone from then on",
    )
    _add_domains(forget, "every domain")
    forget.add_argument(
        "--restore",
        action="store_true",
        help="also give back what their users wrote (default: they keep the concrete CPU)",
    )
    _add_changes(forget)
    _add_connect(forget)


def _undo(subparsers: Subparsers) -> None:
    undo = _command(
        subparsers, "undo", "put back the definition that a guest had before kvmarm changed it"
    )
    undo.add_argument("domain", metavar="DOMAIN", help="name or UUID of a domain")
    _add_connect(undo)


def _renew(subparsers: Subparsers) -> None:
    renew = _command(
        subparsers,
        "renew",
        "wait for guests that do not start as recorded, and correct their records",
    )
    renew.add_argument(
        "--once", action="store_true", help="renew the guests that have a mark now, and exit"
    )
    _add_connect(renew)


def _agent(subparsers: Subparsers) -> None:
    agent = _command(
        subparsers,
        "agent",
        "resolve guests when they are defined, and record what they have when they start",
    )
    agent.add_argument(
        "--once", action="store_true", help="look at every guest that there is now, and exit"
    )
    _add_connect(agent)


def _allow(subparsers: Subparsers) -> None:
    allow = _command(
        subparsers, "allow", "let a guest start or arrive here once, whatever the hook says"
    )
    allow.add_argument(
        "guest", metavar="NAME-or-UUID", help="of the guest; it need not be known here yet"
    )


def _show(subparsers: Subparsers) -> None:
    show = _command(subparsers, "show", "print the target recorded in a domain")
    show.add_argument(
        "domain",
        metavar="DOMAIN-or-FILE",
        help="name or UUID of a domain, or a file with its XML (- for standard input)",
    )
    _add_connect(show)
    _add_inactive(show)
    show.add_argument("--json", action="store_true", help="print it as JSON")
    show.add_argument(
        "-v", "--verbose", action="store_true", help="also print every register and its fields"
    )


def _check(subparsers: Subparsers) -> None:
    check = _command(
        subparsers,
        "check",
        "say whether a guest would run here, or on other hosts, and why not",
    )
    which = check.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "domain",
        metavar="DOMAIN-or-FILE",
        nargs="?",
        help=(
            "name or UUID of a domain, a file with its XML (- for standard input), or the file of"
            " a pool"
        ),
    )
    which.add_argument(
        "--all",
        action="store_true",
        help="every domain, in a table: which could be moved to the hosts of --host",
    )
    check.add_argument(
        "--host",
        metavar="PROFILE",
        action="append",
        help="judge for the host of this profile, not for this one; may be repeated",
    )
    _add_connect(check)
    _add_inactive(check)
    check.add_argument("--json", action="store_true", help="print it as JSON")


def _status(subparsers: Subparsers) -> None:
    status = _command(
        subparsers, "status", "list this host's domains, their records, and which would run here"
    )
    _add_connect(status)
    status.add_argument("--json", action="store_true", help="print it as JSON")


def _metrics(subparsers: Subparsers) -> None:
    metrics = _command(subparsers, "metrics", "write what status says for Prometheus")
    _add_connect(metrics)
    metrics.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="replace FILE, for node_exporter's textfile collector",
    )


def _doctor(subparsers: Subparsers) -> None:
    doctor = _command(
        subparsers, "doctor", "say whether this host is set up, and what to type where it is not"
    )
    _add_connect(doctor)
    doctor.add_argument("--json", action="store_true", help="print it as JSON")
    doctor.add_argument(
        "--report",
        metavar="FILE",
        help="also write an archive (.tar.gz) for a bug report, without secrets",
    )


def _compare(subparsers: Subparsers) -> None:
    compare = _command(
        subparsers,
        "compare",
        "say between which hosts guests can migrate, and why not between the others",
    )
    compare.set_defaults(refuse=compare.error)  # argparse has no way to ask for two or more
    compare.add_argument(
        "profiles",
        metavar="PROFILE",
        nargs="+",
        help="profiles made with kvmarm probe, or known CPUs such as graviton3@6.1",
    )
    compare.add_argument(
        "--policy",
        metavar="FILE",
        help="the policy (default: /etc/kvmarm/policy.yaml if there is one)",
    )
    form = compare.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print it as JSON")
    form.add_argument(
        "--dot", action="store_true", help="print it as a graph in Graphviz's language"
    )
    form.add_argument("--svg", metavar="FILE", help="draw that graph into FILE, with Graphviz")


def _baseline(subparsers: Subparsers) -> None:
    baseline = _command(
        subparsers,
        "baseline",
        "make a pool of hosts: what all can give, what it costs, how to include the rest",
    )
    baseline.add_argument(
        "profiles", metavar="PROFILE", nargs="+", help="profiles made with kvmarm probe"
    )
    baseline.add_argument(
        "-o", "--output", metavar="POOL", help="write the pool to this file, if the hosts form one"
    )
    baseline.add_argument("--name", default="pool", help="of the pool (default: %(default)s)")
    baseline.add_argument(
        "--explain",
        action="store_true",
        help="also say why guests lack what some hosts have, and list every obstacle",
    )
    baseline.add_argument("--json", action="store_true", help="print it as JSON")
    baseline.add_argument(
        "--level",
        action="store_true",
        help="also of different CPUs or kernels: libkvmarm-level then levels the guests",
    )
    baseline.add_argument(
        "--identity", metavar="HOST", help="with --level: whose CPU guests are to see"
    )
    baseline.add_argument(
        "--accept-errata",
        action="store_true",
        help="with --level: make the pool although guests may miss workarounds for errata that"
        " corrupt data or stop the CPU",
    )


def _hook(subparsers: Subparsers) -> None:
    hook = _command(subparsers, "hook", "install or remove libvirt's hook")
    hook.add_argument("action", choices=("install", "uninstall"))


def _command(subparsers: Subparsers, name: str, summary: str) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        name, help=summary, description=summary[0].upper() + summary[1:] + "."
    )
    parser.set_defaults(command=name)
    return parser


def _add_file(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    what = "domain XML (- for standard input"
    if optional:
        parser.add_argument(
            "file", metavar="FILE", nargs="?", default="-", help=f"{what}, the default)"
        )
    else:
        parser.add_argument("file", metavar="FILE", help=f"{what})")


def _add_domains(parser: argparse.ArgumentParser, every: str) -> None:
    """Domains by name, or all.

    Args:
        every: which all are.
    """
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "domains", metavar="DOMAIN", nargs="*", default=[], help="name or UUID of a domain"
    )
    which.add_argument("--all", action="store_true", help=every)


def _add_changes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would change, and change nothing"
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def _add_connect(parser: argparse.ArgumentParser) -> None:
    default = os.environ.get("LIBVIRT_DEFAULT_URI") or "qemu:///system"
    parser.add_argument(
        "-c",
        "--connect",
        metavar="URI",
        default=default,
        help="libvirt to talk to (default: %(default)s)",
    )


def _add_inactive(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--inactive",
        action="store_true",
        help="of the definition that the domain boots from next, though it runs or is saved",
    )


def _add_resolving(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host",
        metavar="PROFILE",
        help="resolve for the host of this profile (default: probe this host)",
    )
    parser.add_argument(
        "--policy",
        metavar="FILE",
        help="the policy (default: /etc/kvmarm/policy.yaml if there is one)",
    )
    pools = parser.add_mutually_exclusive_group()
    pools.add_argument(
        "--pool",
        metavar="POOL",
        help=(
            "resolve for this pool's baseline (default: /etc/kvmarm/pool.yaml if there is one; not"
            " with --host)"
        ),
    )
    pools.add_argument(
        "--no-pool",
        action="store_true",
        help="resolve for this host alone, even if it is in a pool",
    )
    parser.add_argument(
        "--validate", action="store_true", help="check the result against libvirt's schema"
    )


# In the order in which `kvmarm --help` lists them.
_COMMANDS = (
    _probe,
    _import,
    _resolve,
    _define,
    _create,
    _refresh,
    _adopt,
    _forget,
    _undo,
    _renew,
    _agent,
    _allow,
    _show,
    _check,
    _status,
    _metrics,
    _doctor,
    _compare,
    _baseline,
    _hook,
)
