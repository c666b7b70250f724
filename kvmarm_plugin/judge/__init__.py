# SPDX-License-Identifier: LGPL-2.1-or-later
"""Would a target run on a host? Findings and their reasons. Pure: it is told what the host
offers.
"""
