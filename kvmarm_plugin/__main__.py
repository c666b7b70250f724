# SPDX-License-Identifier: LGPL-2.1-or-later
"""`python3 -m kvmarm_plugin` is `kvmarm`."""

from .cli import main

raise SystemExit(main())
