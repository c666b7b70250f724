# SPDX-License-Identifier: LGPL-2.1-or-later
"""What libvirt calls, and how it is put in place."""
