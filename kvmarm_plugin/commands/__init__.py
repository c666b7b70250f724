# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the commands of `kvmarm` do, one file a command.

Each has `run`, which takes the parsed arguments, unpacks them in its first lines, and returns the
exit status. `inputs` reads what options and arguments name, `output` writes, `resolving` is what
resolve, define, create and refresh share.

What only some runs of a command need, and takes ten milliseconds or more to import, is imported
there: the probe, the resolver, pools, lxml.
"""

# Exit statuses. INCOMPATIBLE is a clear "no", with findings; what is not known is no answer either.
DONE, ERROR, USAGE, INCOMPATIBLE = 0, 1, 2, 3
NOT_KNOWN = ERROR
