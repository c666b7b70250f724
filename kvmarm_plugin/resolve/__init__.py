# SPDX-License-Identifier: LGPL-2.1-or-later
"""A wish, a profile and a policy become a target and the form in which libvirt is told to make
it.
"""
