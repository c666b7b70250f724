# SPDX-License-Identifier: LGPL-2.1-or-later
"""What libvirt calls, and how it is put in place.

Time: libvirt holds the domain's lock while the hook runs. The budget, as ratios that `make bench`
prints:

    an operation that is not ours                1.3 x  /bin/sh -c :
    a guest without a record                     1.3 x  python3 -I -S -c pass
    a guest with a record, with its rehearsal    2.5 x  python3 -I -S -c pass

The code is as plain as the budget lets it be. What is unusual, and what it saves, in parts of
`python3 -I -S -c pass` (8 ms with Debian's Python 3.11 on the machine where this was measured):

- The script reads the domain with a few lines of its own, and imports the package only for a guest
  of ours. These lines use posix in place of os: 0.2, of the 0.3 that they have (0.3 with Python
  3.9).
- They end with _exit, as `answer.answer` does: 0.15.
- _signal in place of signal, whose Python half imports enum: 0.5.
- pyexpat in place of xml.parsers.expat, which only hands it on: 0.05.
- _ctypes in place of ctypes: 0.1 to 0.2.
- _sha2, before Python 3.12 _sha256, in place of hashlib, which loads OpenSSL: 1.1. It is for the
  digests in tickets (domain/record_text.py).
- _socket in place of socket, which imports selectors and enum (host/marks.py).
- Nothing that the hook runs imports typing (1.2), dataclasses (1.8), subprocess (1.3), json (0.9),
  re or shlex (0.7), contextlib (0.4) or functools (0.3). Hence `TYPE_CHECKING = False` (mypy takes
  it for true), basics/value.py, and `try` with `pass`.
- Modules are imported where they are needed: those that judge only after the record is read, yaml
  (2.2) only if there is a file in it.

tests/unit/test_hook.py fails if a check imports one of the slow modules.
"""
