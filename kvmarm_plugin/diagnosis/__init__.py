# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether a host is set up: what `kvmarm doctor` looks at, and what a report of a fault holds.

A check is a function of a `Host` that yields a `Line` for each thing that it looks at; checks.py
has the table of them. Where something cannot be found out the line says so, and why: never "ok".
"""
