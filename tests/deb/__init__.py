# SPDX-License-Identifier: LGPL-2.1-or-later
"""The Debian package: built (`make deb`) and tried, in chroots of each suite."""
