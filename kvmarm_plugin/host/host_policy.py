# SPDX-License-Identifier: LGPL-2.1-or-later
"""This host's policy for all but the hook, which must not fail: what cannot be used is an error."""

from __future__ import annotations

import os

from ..basics.ownership import changeable, how_to_keep
from ..basics.untrusted import shown
from ..model import policy
from . import files


def read() -> policy.Policy:
    """The policy in policy.DEFAULT_PATH; the default where there is none.

    Raises:
        PolicyError: it cannot be used, or the hook would not obey it.
        KvmarmError: it cannot be read.
    """
    path = policy.DEFAULT_PATH
    if not os.path.exists(path):
        return policy.Policy()
    text = files.read_text(path)
    changed = changeable(path)
    if changed:
        what = path if changed == path else f"{shown(changed, 4096)}, and with it {path}"
        raise policy.PolicyError(
            f"others than root can change {what}, and the hook does not obey it so",
            how_to_keep(path, changed),
        )
    return policy.loads(text, path)


def reaction_to_drift() -> str:
    """What it says of on-drift, as the hook reads it. Raises as `read` does: where the hook takes
    the default instead, a verdict would be another than the hook's, and a record that was to stay
    would be lost.
    """
    read()
    return policy.for_hook(policy.DEFAULT_PATH).on_drift
