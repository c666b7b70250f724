# SPDX-License-Identifier: LGPL-2.1-or-later
"""ID registers as data: registers.tsv names them, fields.tsv knows their fields; `table` reads
both, `text` writes values and id lists down. errata.tsv, which `errata` reads, has the workarounds
that go by MIDR_EL1 and REVIDR_EL1.

The tables are tab-separated text and not YAML because the hook reads them, and has only the
standard library.
"""
