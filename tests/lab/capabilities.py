# SPDX-License-Identifier: LGPL-2.1-or-later
"""What libvirt learnt about QEMU on one kind of host, kept for later boots of the same kind.

libvirtd starts QEMU to ask what it can do, which takes an emulated host longer than everything else
in its boot together.  libvirt caches the answers in /var/cache/libvirt, but a lab host forgets all
it knew: so host.py saves that cache after a first boot, and later boots get it in a second initrd
(files/initrd-init copies it).  libvirt itself checks that it fits the QEMU, kernel and libvirt it
finds.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from . import cpio, emulator, machine
from .image import Image

DIRECTORY = "/var/cache/libvirt/qemu/capabilities"


def saved(image: Image, kind: str) -> Path:
    """Where the cache of a kind of host is, or would be.  `kind`: all that tells it from other
    hosts on the image.
    """
    binary = os.stat(emulator.path())
    facts = f"{kind} {binary.st_size} {binary.st_mtime_ns}"
    name = hashlib.sha256(facts.encode()).hexdigest()[:12]
    return machine.cache_dir() / "capabilities" / f"{image.directory.name}.{name}"


def save(path: Path, files: Mapping[str, bytes]) -> None:
    """Keep a host's cache, as what initrd() appends."""
    contents: dict[str, cpio.Entry] = {"cache": cpio.DIRECTORY}
    contents.update({f"cache/{name}": data for name, data in files.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    # Other hosts of this kind may boot meanwhile: the file is there whole, or not at all.
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(cpio.archive(contents))
    os.replace(temporary, path)


def initrd(image: Image, path: Path, destination: Path) -> Path:
    """The initrd to boot with: the image's, and what was saved; the kernel unpacks one after the
    other.
    """
    if not path.exists():
        return image.initrd
    destination.write_bytes(image.initrd.read_bytes() + path.read_bytes())
    return destination
