# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lab by hand: `python3 -m tests.lab`.

Parses and dispatches; the work is in machine.py, image.py and host.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import emulator, image, machine
from .errors import LabError, say
from .host import Host, HostSpec, sweep


def main() -> int:
    options = _parser().parse_args()
    try:
        status = options.action(options)
    except LabError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    return int(status or 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.lab", description="Emulated ARM hosts with real KVM."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    setup = commands.add_parser(
        "setup",
        help="install the tools the lab needs on this machine (as root), and fetch its emulator",
    )
    setup.set_defaults(action=_setup)

    build = commands.add_parser("build", help="build images that are not in the cache (as root)")
    build.add_argument(
        "suites", nargs="+", choices=image.SUITES, metavar="SUITE", help=", ".join(image.SUITES)
    )
    build.add_argument("--force", action="store_true", help="build anew, with today's packages")
    build.set_defaults(action=_build)

    boot = commands.add_parser("boot", help="boot a host and give a shell on it")
    _add_host_arguments(boot)
    boot.set_defaults(action=_run, command=None)

    run = commands.add_parser("run", help="boot a host and run one command on it")
    _add_host_arguments(run)
    run.add_argument("command", nargs="+", metavar="-- COMMAND")
    run.set_defaults(action=_run)

    prune = commands.add_parser("prune", help="remove images that no recipe makes any more")
    prune.add_argument("--all", action="store_true", help="remove the whole cache")
    prune.set_defaults(action=_prune)
    return parser


def _add_host_arguments(parser: argparse.ArgumentParser) -> None:
    default = HostSpec()
    parser.add_argument(
        "suite", choices=image.SUITES, metavar="SUITE", help=", ".join(image.SUITES)
    )
    parser.add_argument(
        "--cpu", default=default.cpu, help="QEMU's model and properties (default: %(default)s)"
    )
    parser.add_argument("--cntfrq", type=int, metavar="HZ", help="frequency of the generic timer")
    parser.add_argument(
        "--append", default="", metavar="WORDS", help="for the kernel's command line: arm64.nosve …"
    )
    parser.add_argument("-m", "--memory", type=int, default=default.memory, metavar="MIB")
    parser.add_argument("--smp", type=int, default=default.cores, metavar="CORES")
    parser.add_argument("--gic", type=int, choices=(2, 3), default=default.gic)
    parser.add_argument(
        "--wheel", type=Path, action="append", default=[], help="install it first (repeatable)"
    )


def _setup(options: argparse.Namespace) -> None:
    machine.setup()
    emulator.path()


def _build(options: argparse.Namespace) -> None:
    for suite in options.suites:
        image.build(suite, force=options.force)


def _prune(options: argparse.Namespace) -> None:
    image.prune(everything=options.all)
    sweep()


def _run(options: argparse.Namespace) -> int:
    spec = HostSpec(
        suite=options.suite,
        cpu=options.cpu,
        cntfrq=options.cntfrq,
        append=options.append,
        memory=options.memory,
        cores=options.smp,
        gic=options.gic,
    )
    with Host(spec) as host:
        for wheel in options.wheel:
            host.install(wheel)
        if options.command is None:
            say(
                f"a root shell on {spec.suite}, {spec.qemu_cpu()}; guests' files are in"
                " /var/lib/lab; exit ends it all"
            )
        return host.attach(options.command)


if __name__ == "__main__":
    sys.exit(main())
