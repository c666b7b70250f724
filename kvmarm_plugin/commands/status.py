# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvmarm status`: every domain of this host, its record, and whether it would run here."""

from __future__ import annotations

from . import DONE, INCOMPATIBLE, NOT_KNOWN, status_view
from .output import write_text
from .survey import NO, UNKNOWN, take_survey

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace


def run(arguments: Namespace) -> int:
    uri, as_json = arguments.connect, arguments.json
    survey = take_survey(uri)
    write_text(status_view.as_json(survey) if as_json else status_view.as_text(survey))
    answers = {standing.answer for standing in survey.standings}
    if NO in answers:
        return INCOMPATIBLE
    return NOT_KNOWN if UNKNOWN in answers or survey.problem or survey.notes else DONE
