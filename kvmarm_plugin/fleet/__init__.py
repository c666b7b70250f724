# SPDX-License-Identifier: LGPL-2.1-or-later
"""Many hosts: kinds, comparison, baseline, plan, pool, picture."""
