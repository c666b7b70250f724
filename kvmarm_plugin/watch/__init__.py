# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests that somebody else defines and starts: their records, made and kept true."""
