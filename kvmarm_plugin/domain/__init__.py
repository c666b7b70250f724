# SPDX-License-Identifier: LGPL-2.1-or-later
"""Domain XML: reading, editing, the record, the pins of threads."""
