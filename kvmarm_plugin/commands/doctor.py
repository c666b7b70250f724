# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvmarm doctor`: is this host set up, and if not, what is there to type?"""

from __future__ import annotations

from ..diagnosis.checks import examine
from ..diagnosis.host import OK, Host
from . import DONE, ERROR, doctor_view
from .inputs import check_is_here, probe_here, read_policy, read_pool
from .output import say, write_data, write_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

_MODE = 0o600  # of a report: guests' names are nobody's business


def run(arguments: Namespace) -> int:
    uri, as_json, report = arguments.connect, arguments.json, arguments.report
    check_is_here(uri, "doctor")
    host = Host(uri, lambda: read_policy(None), lambda: read_pool(None), probe_here)
    found = examine(host)
    write_text(doctor_view.as_json(found) if as_json else doctor_view.as_text(found))
    if report:
        from ..diagnosis.bug_report import pack

        said = {"doctor.txt": doctor_view.as_text(found), "doctor.json": doctor_view.as_json(found)}
        write_data(report, pack(host, said), _MODE)
        say(f"wrote {report}: look through it before you give it away")
    return DONE if all(line.state == OK for _, line in found) else ERROR
