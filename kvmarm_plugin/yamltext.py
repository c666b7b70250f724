# SPDX-License-Identifier: LGPL-2.1-or-later
"""YAML as policies and pools are read: what is wrong with it comes as one line."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .errors import KvmarmError


def load(text: str, name: str, failure: type[KvmarmError], hint: str) -> Any:
    """What a YAML document holds.

    Args:
        name: of the file, for messages.
        failure: what to raise, with this hint, where the text is not YAML.
    """
    import yaml  # 15 ms, and most hosts have neither a policy nor a pool

    # The C loader where libyaml is there: the same result, ten times as fast.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return yaml.load(text, Loader=loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise failure(f"{name} is not YAML{place}: {getattr(error, 'problem', error)}", hint) from None
    except (ValueError, RecursionError) as error:  # a date that is none; brackets without end
        raise failure(f"{name} is not YAML: {error}", hint) from None
