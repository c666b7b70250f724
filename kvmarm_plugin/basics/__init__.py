# SPDX-License-Identifier: LGPL-2.1-or-later
"""What any program needs: errors, immutable values, numbers and text from outside, the shape of
documents, CPU lists.
"""
