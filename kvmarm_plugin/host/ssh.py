# SPDX-License-Identifier: LGPL-2.1-or-later
"""Profiles of other hosts, measured there: the user's own ssh runs `kvmarm probe`.

ssh asks nobody anything: keys, the host's key, jumps and names are as the user has set them up
(ssh_config(5)).
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import time
from contextlib import suppress

from ..basics.errors import KvmarmError
from ..basics.untrusted import decimal, shown
from ..model.profile_json import SIZE_LIMIT

SCHEME = "ssh://"
TIME_LIMIT = 180  # seconds; a real host takes a few to be probed, an emulated one a minute

_CONNECTING = 20  # seconds
_ERRORS = 1 << 16  # bytes of what ssh and kvmarm say that are kept
_TOLD = 3  # lines of it that are repeated

# Neither part begins with a dash: ssh would take it for an option.
_URL = re.compile(
    SCHEME + r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.-]{0,63})@)?"
    r"(?:(?P<host>[A-Za-z0-9_][A-Za-z0-9_.-]{0,252})|\[(?P<address>[0-9A-Fa-f:.]{2,45})\])"
    r"(?::(?P<port>[0-9]{1,5}))?/?",
    re.ASCII,
)

# What is said where root would be told more: by a kernel, and by kvmarm of /dev/kvm and of CPUs.
_DENIED = ("Permission denied", "no permission", "may not")

_NOT_FOUND, _FAILED = (126, 127), 255  # statuses: of the shell there, and of ssh itself


def profile_text(url: str) -> str:
    """The profile of the host at ssh://[USER@]HOST[:PORT], as it prints it.

    Raises:
        KvmarmError: no such URL, no way to the host, no kvmarm there, or it cannot measure the
            host.
    """
    target, options = _parse(url)
    command = ["ssh", "-nTxa", "-oBatchMode=yes", f"-oConnectTimeout={_CONNECTING}"]
    command += ["-oClearAllForwardings=yes", *options, "--", target, "kvmarm", "probe"]
    status, out, err = _run(command, url)
    if status == 0:
        try:
            return out.decode()
        except UnicodeDecodeError:
            raise KvmarmError(f"{url}: what it says is not UTF-8", _by_hand(target)) from None
    raise _why(url, target, status, err.decode(errors="replace").splitlines())


def _parse(url: str) -> tuple[str, list[str]]:
    """What ssh calls the host, and its options. Raises KvmarmError."""
    found = _URL.fullmatch(url)
    try:
        if not found:
            raise ValueError
        port = [] if found["port"] is None else ["-p", str(decimal(found["port"], 65535))]
    except ValueError:
        raise KvmarmError(
            f"{shown(url, 100)} names no host", "give one such as ssh://root@beta"
        ) from None
    host = found["host"] or found["address"]
    return (f"{found['user']}@{host}" if found["user"] else host), port


def _run(command: list[str], url: str) -> tuple[int, bytes, bytes]:
    """Exit status, standard output and standard error. Raises KvmarmError."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # what it starts, such as a jump, ends with it
        )
    except OSError as error:
        raise KvmarmError(
            f"cannot run ssh: {error.strerror}",
            "install OpenSSH's client, or give the file of a profile",
        ) from None
    try:
        return _read(process, url)
    except BaseException:
        if process.returncode is None:  # or its number may be another's
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        raise
    finally:
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()
        process.wait()


def _read(process: subprocess.Popen[bytes], url: str) -> tuple[int, bytes, bytes]:
    deadline = time.monotonic() + TIME_LIMIT
    out, err = bytearray(), bytearray()
    assert process.stdout is not None
    assert process.stderr is not None
    with selectors.DefaultSelector() as selector:
        for pipe, text in ((process.stdout, out), (process.stderr, err)):
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, selectors.EVENT_READ, text)
        # A connection that ssh leaves open for later (ControlPersist) may hold the pipes.
        while selector.get_map():
            ready = selector.select(0.1)
            if not ready and process.poll() is not None:
                break
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                if not data:
                    selector.unregister(key.fileobj)
                key.data.extend(data)
            del err[_ERRORS:]
            if len(out) > SIZE_LIMIT:
                raise KvmarmError(
                    f"{url} says more than {SIZE_LIMIT >> 20} MiB", "is kvmarm there what it is?"
                )
            if time.monotonic() > deadline:
                raise _late(url)
    try:
        status = process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise _late(url) from None
    return status, bytes(out), bytes(err)


def _late(url: str) -> KvmarmError:
    return KvmarmError(
        f"{url} has not answered within {TIME_LIMIT} seconds", "run kvmarm probe there"
    )


def _why(url: str, target: str, status: int, said: list[str]) -> KvmarmError:
    lines = [line.strip() for line in said if line.strip()]
    last = shown(lines[-1], 300) if lines else f"exit status {status}"
    if status in _NOT_FOUND:
        return KvmarmError(
            f"{url}: kvmarm is not installed there: {last}",
            "install it there, or give the file of the host's profile",
        )
    if status == _FAILED:
        if "Host key verification failed" in last:
            hint = f"see whether the host's key is to be trusted: ssh {target}"
        elif "Permission denied" in last:
            hint = f"have it let you in without a question: ssh-copy-id {target}, or ssh-add"
        else:
            hint = _by_hand(target)
        return KvmarmError(f"{url} cannot be reached: {last}", hint)
    told = "; ".join(shown(line, 300) for line in lines[:_TOLD]) or last
    denied = any(word in told for word in _DENIED)
    host = target.rpartition("@")[2]
    return KvmarmError(
        f"{url} cannot be measured: {told}",
        f"ask as root: --host {SCHEME}root@{host}" if denied else _by_hand(target),
    )


def _by_hand(target: str) -> str:
    return f"try it by hand: ssh {target} kvmarm probe"
