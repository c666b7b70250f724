# SPDX-License-Identifier: LGPL-2.1-or-later
"""Values: a target, a host profile, a policy. No XML, no kernel, no rules."""
