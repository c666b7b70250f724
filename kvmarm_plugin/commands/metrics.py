# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvmarm metrics`: what status says, for Prometheus."""

from __future__ import annotations

from ..basics.errors import KvmarmError
from ..host import marks
from . import DONE, ERROR, metrics_view
from .output import say, write_data
from .survey import take_survey

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

_MODE = 0o644  # who collects the file is another user


def run(arguments: Namespace) -> int:
    uri, output = arguments.connect, arguments.output
    survey, problem = None, ""
    try:
        survey = take_survey(uri)
        problem = survey.problem
    except KvmarmError as error:  # a file that stays as it was would go on saying that all is well
        problem = str(error)
    write_data(output, metrics_view.as_text(survey, _marks()).encode(), _MODE)
    if problem:
        say(problem)
    return ERROR if problem else DONE


def _marks() -> int | None:
    """How many guests have a mark here; None if that cannot be read."""
    try:
        return sum(map(len, marks.marked()))
    except OSError:
        return None
