# SPDX-License-Identifier: LGPL-2.1-or-later
"""Disk images of the lab's hosts: build(suite) gives one, from the cache if it was built before.

An image is a directory in the cache with a disk, a kernel, an initrd and a private key, named after
the Debian suite and a digest of the recipe (this module, its neighbours that end up in the image,
and files/).  It is made by unpacking arm64 packages without running any of their scripts, which
takes seconds where installing would take minutes; what the scripts would have done that matters
here is done by _furnish().

Used by host.py and by `python3 -m tests.lab build`.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from . import cpio, machine, registers, ticker
from .errors import LabError, LabTimeout, say, step

HERE = Path(__file__).parent
FILES = HERE / "files"
# A suite, or a suite with the kernel of another: what a host is on which QEMU was upgraded first.
UNPACKED = ("bookworm", "trixie", "sid", "sid-trixie")
# Installed by dpkg, with systemd and AppArmor: installed.py.
INSTALLED = ("trixie-systemd",)
SUITES = UNPACKED + INSTALLED

KERNEL = "linux-image-cloud-arm64"

# From trixie on, these daemons are packages of their own.
LATER_PACKAGES = ["libvirt-daemon-log", "libvirt-daemon-lock"]

REMOVED = (
    # The network drivers of libvirt do not start without a firewall, and then neither does
    # libvirtd.
    "usr/lib/*/libvirt/connection-driver/libvirt_driver_network.so",
    "usr/lib/*/libvirt/connection-driver/libvirt_driver_nwfilter.so",
    # libvirtd asks every emulator what it can do, for seconds; 32-bit guests use
    # qemu-system-aarch64 under KVM.
    "usr/bin/qemu-system-arm",
    # These name the firmware that excluded.txt left out; libvirt would prefer them.
    "usr/share/qemu/firmware/*-secure*.json",
)

# Directories that are links into usr: bookworm's packages have files in the former.
MERGED = ("bin", "sbin", "lib")

# Commands that a package's script would have made.
LINKS = {"sh": "dash", "awk": "gawk", "which": "which.debianutils"}

# Modules that the initrd needs for the disk, where the kernel does not have them built in.
BOOT_MODULES = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")

# Besides those of base-passwd.
USERS = """\
libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin
sshd:x:101:65534::/run/sshd:/usr/sbin/nologin
"""
GROUPS = """\
libvirt-qemu:x:64055:
libvirt:x:102:
kvm:x:103:libvirt-qemu
"""

# Of files/: the name there, where it goes, and its mode.
COPIED = (
    ("init", "usr/lib/lab/init", 0o755),
    ("install-wheel", "usr/lib/lab/install-wheel", 0o755),
    ("sshd_config", "etc/ssh/sshd_config", 0o644),
    ("libvirtd.conf", "etc/libvirt/libvirtd.conf", 0o644),
    ("qemu.conf", "etc/libvirt/qemu.conf", 0o644),
)

# Modules whose change changes an image.
SOURCES = ("image.py", "installed.py", "cpio.py", "assembler.py", "registers.py", "ticker.py")

DISK_MIB = 3072  # sparse; room for guests' disks, snapshots and saved guests


@dataclass(frozen=True)
class Image:
    """A built image; every file in it is only ever read."""

    suite: str
    directory: Path

    @property
    def disk(self) -> Path:
        return self.directory / "root.ext4"

    @property
    def kernel(self) -> Path:
        return self.directory / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.directory / "initrd"

    @property
    def key(self) -> Path:
        return self.directory / "id_ed25519"


def build(suite: str, force: bool = False) -> Image:
    """The image of a suite; made now if the cache has none of this recipe, or if forced."""
    if suite not in SUITES:
        raise LabError(f"no such suite: {suite}", f"one of {', '.join(SUITES)}")
    image = Image(suite, _images() / f"{suite}-{digest()}")
    if image.disk.exists() and not force:
        return image
    machine.need(("dpkg-deb", "qemu-aarch64-static", "depmod", "mke2fs", "ssh-keygen"))
    machine.need_root(f"building the {suite} image")
    with machine.locked(image.directory.with_suffix(".lock")):
        # Somebody else may have built it while we waited for the lock.
        if force or not image.disk.exists():
            _build(image)
    return image


def prune(everything: bool = False) -> None:
    """Remove the images of recipes gone by; or all of them, and the downloaded packages."""
    if everything:
        shutil.rmtree(machine.cache_dir(), ignore_errors=True)
        return
    current = {f"{suite}-{digest()}" for suite in SUITES}
    cache = machine.cache_dir()
    for path in sorted((*cache.glob("images/*"), *cache.glob("capabilities/*"))):
        if path.name.split(".")[0] not in current:
            say(f"removing {path.name}")
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def digest() -> str:
    """Changes with anything that changes an image."""
    sources = [*(HERE / name for name in SOURCES), *sorted(FILES.iterdir())]
    total = hashlib.sha256()
    for path in sources:
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:12]


def _images() -> Path:
    return machine.cache_dir() / "images"


def _build(image: Image) -> None:
    """Build in a directory of another name, and rename it when all is there."""
    say(f"building the {image.suite} image")
    with tempfile.TemporaryDirectory(dir=_images(), prefix=f".{image.suite}-") as work:
        root, new = Path(work, "root"), Path(work, "image")
        new.mkdir()
        from .installed import InstalledMaker  # which is made of this module's

        maker = InstalledMaker if image.suite in INSTALLED else Maker
        with step(f"{image.suite} image, in total"):
            maker(image.suite, root, new).make()
        if image.directory.exists():
            shutil.rmtree(image.directory)
            # What libvirt learnt on it (capabilities.py) it would not believe on the new one.
            for learnt in machine.cache_dir().glob(f"capabilities/{image.directory.name}.*"):
                learnt.unlink()
        new.rename(image.directory)


@dataclass(frozen=True)
class Maker:
    """One build: `root` becomes the disk, `new` the image's directory."""

    suite: str
    root: Path
    new: Path

    def make(self) -> None:
        with step("packages downloaded and unpacked"):
            self._unpack()
        with step("modules, accounts, keys, configuration"):
            self._furnish()
        with step("Python modules compiled"):
            self._compile()
        with step("disk written"):
            self._write_disk()

    # Packages

    def _unpack(self) -> None:
        """The files of every package that apt would install. No two of them have the same file: the
        order does not matter.
        """
        for name in MERGED:
            (self.root / "usr" / name).mkdir(parents=True)
            (self.root / name).symlink_to(f"usr/{name}")
        excluded = [f"--exclude=.{pattern}" for pattern in words("excluded.txt")]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for unpacked in [
                pool.submit(_unpack, package, self.root, excluded) for package in self._download()
            ]:
                unpacked.result()

    def _download(self) -> list[Path]:
        userland, _, kernel = self.suite.partition("-")
        names = words("packages.txt") + ([] if userland == "bookworm" else LATER_PACKAGES)
        if not kernel:
            return self._fetch(userland, names)
        names.remove(KERNEL)
        of_kernel = self._fetch(kernel, [KERNEL])
        return [
            *self._fetch(userland, names),
            *(path for path in of_kernel if path.name.startswith("linux-image-")),
        ]

    def _fetch(self, suite: str, names: Sequence[str]) -> list[Path]:
        """Packages and what they depend on, in the store where those of earlier builds are."""
        work = self.root.with_name(f"apt-{suite}")
        wanted = self.root.with_name(f"packages-{suite}")
        store = machine.cache_dir() / "packages" / suite
        (store / "partial").mkdir(parents=True, exist_ok=True)
        options = [
            *machine.only_suite(suite, work, "arm64"),
            f"--option=Dir::Cache::Archives={store}",
            # In place of dpkg: note the files that it would be given.
            "--option=Dir::Bin::dpkg=/bin/true",
            f"--option=DPkg::Pre-Install-Pkgs::=cat >'{wanted}'",
        ]
        machine.apt_get(*options, "update")
        machine.apt_get(*options, "install", "--yes", "--no-install-recommends", *names)
        return [Path(line) for line in wanted.read_text().splitlines()]

    # What the packages' scripts would have done, and the lab's own files

    def _furnish(self) -> None:
        root = self.root
        _replace_by_link(root / "var/run", "/run")
        self._make_directories()
        for name, extra in (("passwd", USERS), ("group", GROUPS)):
            master = (root / f"usr/share/base-passwd/{name}.master").read_text()
            (root / "etc" / name).write_text(master + extra)
        (root / "etc/nsswitch.conf").write_text(
            "passwd: files\ngroup: files\nshadow: files\nhosts: files\n"
        )
        for pattern in REMOVED:
            for path in root.glob(pattern):
                path.unlink()
        for name, target in LINKS.items():
            _replace_by_link(root / "usr/bin" / name, target)
        self._copy_files()
        self._make_keys()
        self._make_kernel()

    def _make_directories(self) -> None:
        for directory in (
            "root/.ssh",
            "var/lib/lab",
            "var/log/lab",
            "usr/lib/lab",
            "proc",
            "sys",
            "dev",
            "tmp",
        ):
            (self.root / directory).mkdir(parents=True, exist_ok=True)

    def _copy_files(self, files: Sequence[tuple[str, str, int]] = COPIED) -> None:
        """Files of files/: its name there, where it goes, and its mode."""
        for name, destination, mode in files:
            target = self.root / destination
            shutil.copyfile(FILES / name, target)
            target.chmod(mode)

    def _make_keys(self) -> None:
        host_key = self.root / "etc/ssh/ssh_host_ed25519_key"
        for path in (host_key, self.new / "id_ed25519"):
            machine.run(
                "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "kvmarm-lab", "-f", str(path)
            )
        public = (self.new / "id_ed25519.pub").read_text()
        authorized = self.root / "root/.ssh/authorized_keys"
        authorized.write_text(public)
        for path, mode in (
            (authorized.parent, 0o700),
            (authorized, 0o600),
            (self.root / "root", 0o700),
        ):
            path.chmod(mode)

    def _make_kernel(self) -> None:
        """The kernel and initrd that boot a host, and those that its guests boot."""
        modules = next((self.root / "usr/lib/modules").iterdir())
        machine.run("depmod", "-b", str(self.root), modules.name)
        busybox = (self.root / "usr/bin/busybox").read_bytes()
        # From sid on, the kernel is beside its modules.
        kernels = [*self.root.glob("boot/vmlinuz-*"), *modules.glob("vmlinuz")]
        shutil.copyfile(kernels[0], self.new / "vmlinuz")
        kernels[0].rename(self.root / "var/lib/lab/vmlinuz")
        (self.new / "initrd").write_bytes(_host_initrd(busybox, modules))
        (self.root / "var/lib/lab/guest.cpio.gz").write_bytes(_guest_initrd(busybox))
        (self.root / "var/lib/lab/registers.img").write_bytes(registers.image())
        (self.root / "var/lib/lab/ticker.img").write_bytes(ticker.image())

    def _compile(self) -> None:
        """Import what will be imported, with the image's own Python under user-mode emulation."""
        emulator = self.root / "run/qemu-aarch64"
        shutil.copy(machine.tool("qemu-aarch64-static"), emulator)
        environment = {
            "PATH": "/usr/bin",
            "LC_ALL": "C.UTF-8",
            # Debian's Python signs its return addresses; the default CPU, max, emulates that 30
            # times slower.
            "QEMU_CPU": "cortex-a57",
        }
        machine.run(
            "chroot",
            str(self.root),
            "/run/qemu-aarch64",
            "/usr/bin/python3",
            "-c",
            f"import {', '.join(words('compiled.txt'))}",
            environment=environment,
        )
        emulator.unlink()

    def _write_disk(self) -> None:
        # Never written to in place, so neither a journal nor checksums are of use.
        machine.run(
            "mke2fs",
            "-q",
            "-t",
            "ext4",
            "-O",
            "^has_journal,^metadata_csum",
            "-m",
            "0",
            "-E",
            "lazy_itable_init=1",
            "-d",
            str(self.root),
            str(self.new / "root.ext4"),
            f"{DISK_MIB}M",
        )


def _unpack(package: Path, root: Path, options: Sequence[str]) -> None:
    """What `dpkg-deb --extract` does, with options for tar."""
    tar = ["tar", "--extract", "--directory", str(root), "--keep-directory-symlink", *options]
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE
    ) as unpacker:
        try:
            done = subprocess.run(
                tar,
                stdin=unpacker.stdout,
                capture_output=True,
                text=True,
                timeout=machine.COMMAND_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise LabTimeout(
                f"{package} was not unpacked in {machine.COMMAND_SECONDS:g} s"
            ) from None
    if done.returncode or unpacker.returncode:
        raise LabError(
            f"{package} could not be unpacked:\n{done.stderr[-2000:]}", f"remove {package}"
        )


def words(name: str) -> list[str]:
    """The words of one of the lists in files/."""
    lines = (FILES / name).read_text().splitlines()
    return [word for line in lines if not line.startswith("#") for word in line.split()]


def _replace_by_link(path: Path, target: str) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def _host_initrd(busybox: bytes, modules: Path) -> bytes:
    files = _with_dependencies(modules, BOOT_MODULES)
    contents: dict[str, cpio.Entry] = dict.fromkeys(
        ("bin", "dev", "root", "modules"), cpio.DIRECTORY
    )
    contents["bin/busybox"] = busybox
    contents["init"] = (FILES / "initrd-init").read_bytes()
    for path in files:
        contents[f"modules/{_module_name(path)}"] = _decompressed(path)
    contents["modules/order"] = "\n".join(map(_module_name, files)).encode()
    return cpio.archive(contents)


def _guest_initrd(busybox: bytes) -> bytes:
    contents: dict[str, cpio.Entry] = dict.fromkeys(("bin", "dev", "proc", "sys"), cpio.DIRECTORY)
    contents["bin/busybox"] = busybox
    contents["init"] = (FILES / "guest-init").read_bytes()
    return gzip.compress(cpio.archive(contents), compresslevel=1, mtime=0)


def _with_dependencies(modules: Path, names: Sequence[str]) -> list[Path]:
    """The files of the modules among `names` that are not built in, each after what it depends
    on.
    """
    dependencies: dict[str, list[str]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        dependencies[path] = rest.split()
    by_name = {_module_name(Path(path)): path for path in dependencies}
    ordered: list[str] = []
    for name in names:
        if f"{name}.ko" in by_name:
            path = by_name[f"{name}.ko"]
            # modules.dep lists what to load last first.
            ordered += [p for p in (*reversed(dependencies[path]), path) if p not in ordered]
    return [modules / path for path in ordered]


def _module_name(path: Path) -> str:
    return path.name.partition(".ko")[0].replace("-", "_") + ".ko"


def _decompressed(path: Path) -> bytes:
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data
