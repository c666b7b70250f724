# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the commands of `kvmarm` do, one file a command."""
