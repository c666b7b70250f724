# SPDX-License-Identifier: LGPL-2.1-or-later
"""debian/ and rpm/ say what the rest of the tree says. What packages do on a host: tests/deb."""

from __future__ import annotations

import os
import re
import subprocess
import tarfile
from pathlib import Path

import pytest

import kvmarm_plugin
from kvmarm_plugin.domain import record
from kvmarm_plugin.hook import install
from kvmarm_plugin.model import policy
from kvmarm_plugin.model.policy import HookPolicy, Policy

_PROJECT = Path(__file__).parents[2]
_DEBIAN = _PROJECT / "debian"
_SETUP = (_PROJECT / "setup.cfg").read_text(encoding="utf-8")
_SPEC = (_PROJECT / "rpm/kvmarm.spec").read_text(encoding="utf-8")
_SECTION = (
    "(?:package|description|prep|build|install|check|p(?:re|ost)(?:un|trans)?|files|changelog)"
)
_SCRIPTS = sorted(_DEBIAN.glob("kvmarm.p*"))


def _read(name: str) -> str:
    return (_DEBIAN / name).read_text(encoding="utf-8")


def _sections() -> dict[str, str]:
    """The parts of the spec: "" for what comes before the first, then by their first lines."""
    parts = re.split(rf"^%({_SECTION}\b.*)\n", _SPEC, flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2]))}


def test_one_version_everywhere() -> None:
    """It stands in kvmarm_plugin/__init__.py, and what cannot take it from there follows."""
    version = kvmarm_plugin.__version__
    assert "\nversion = attr: kvmarm_plugin.__version__\n" in _SETUP
    assert _read("changelog").startswith(f"kvmarm ({version}) ")
    preload = _PROJECT / "preload"
    assert (
        (preload / "debian/changelog").read_text("utf-8").startswith(f"kvmarm-level ({version}) ")
    )
    for spec in (_SPEC, (preload / "rpm/kvmarm-level.spec").read_text(encoding="utf-8")):
        assert f"\nVersion:        {version}\n" in spec
        assert re.search(rf"%changelog\n\* .* - {version}-1\n", spec)
    assert f"\nversion: {version}\n" in (_PROJECT / "ansible/galaxy.yml").read_text("utf-8")
    (newest, *older) = re.findall(
        r"^## (.*)$", (_PROJECT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE
    )
    assert newest == f"Unreleased ({version})" or re.fullmatch(
        rf"{re.escape(version)} \(\d{{4}}-\d\d-\d\d\)", newest
    )
    assert "Unreleased" not in "".join(older)


def test_both_packages_have_the_directories_of_hook_install() -> None:
    for path in map(str, install.DIRECTORIES):
        assert any(line.startswith(path[1:]) for line in _read("kvmarm.dirs").splitlines())
        path = path.replace("/etc", "%{_sysconfdir}").replace("/var", "%{_localstatedir}")
        assert f"\n%dir {path}\n" in _SPEC


def test_both_packages_need_what_python_imports() -> None:
    needed = re.search(r"^install_requires =\n((?: .*\n)+)", _SETUP, re.MULTILINE)
    assert needed
    names = {f"python3-{name}" for name in [*needed[1].split(), "libvirt"]}
    requires = set(re.findall(r"^Requires: +(python3-\S+)$", _SPEC, re.MULTILINE))
    assert requires == names, "as Fedora and RHEL call them; dh-python finds them for Debian's"
    assert "\n python3-libvirt,\n" in _read("control")


@pytest.mark.parametrize("name", ["pre", "post", "preun", "postun"])
def test_scripts_of_the_rpm_package(name: str) -> None:
    """A shell reads them, and they mean the hook that kvmarm means."""
    assert f"\n%global hook %{{_sysconfdir}}/libvirt/hooks/qemu.d/{install.NAME}\n" in _SPEC
    script = re.sub(r"^%systemd_.*", ":", _sections()[name], flags=re.MULTILINE)
    script = script.replace("%{hook}", str(install.DIRECTORY / install.NAME))
    assert "%" not in script
    subprocess.run(["sh", "-n"], input=script, text=True, check=True)
    assert set(re.findall(r"/usr/bin/\S*kvmarm[\w-]*", script)) <= {install.PACKAGED}
    for mark in re.findall(r"'\^(# kvmarm.*?)'", script):
        assert mark.encode() == install._MARK.strip(b"\n")


def test_the_hook_is_no_configuration() -> None:
    """Which an upgrade would leave as it is, beside what it would run."""
    files = _sections()["files"]
    assert "\n%ghost %{hook}\n" in files
    assert "%config" not in files


@pytest.mark.parametrize("path", _SCRIPTS, ids=lambda path: path.suffix[1:])
def test_scripts_of_the_package(path: Path) -> None:
    """A shell reads them, and they mean the hook that kvmarm means."""
    text = path.read_text(encoding="utf-8")
    subprocess.run(["sh", "-n", path], check=True)
    assert "\nset -e\n" in text
    assert "\n#DEBHELPER#\n" in text
    assert f"\nhook={install.DIRECTORY / install.NAME}\n" in text
    assert set(re.findall(r"/usr/bin/\S*kvmarm\S*", text)) <= {install.PACKAGED}
    for mark in re.findall(r"'\^(# kvmarm.*?)'", text):
        assert mark.encode() == install._MARK.strip(b"\n")


def test_every_unit_is_installed_and_handled() -> None:
    units = {path.name for path in (_PROJECT / "systemd").iterdir() if path.suffix != ".conf"}
    assert set(re.findall(r"systemd/(\S+\.(?:service|socket|timer))", _SETUP)) == units
    assert set(re.findall(r"^\tdh_installsystemd .*?(\S+)$", _read("rules"), re.MULTILINE)) == units
    sections = _sections()
    assert set(re.findall(r"^%{_unitdir}/(\S+)$", sections["files"], re.MULTILINE)) == units
    (stopped,) = re.findall(r"^%systemd_preun (.*)$", sections["preun"], re.MULTILINE)
    assert set(stopped.split()) == units


# -- the handbook that is installed ---------------------------------------------------------------


def _installed_documents(package: str) -> dict[str, Path]:
    """Every file of /usr/share/doc/kvmarm, relative to that → where it comes from, by what debian/
    and the spec say of it: files and directories that are copied.
    """
    if package == "deb":
        copied = {"": _read("kvmarm.docs").split(), "examples": _read("kvmarm.examples").split()}
        into = r"^\tcp -r (.*) \$\(ROOT\)/usr/share/doc/kvmarm/(\S*)$"
        lines = re.findall(into, _read("rules"), re.MULTILINE)
    else:
        copied = {}
        into = r"^cp -r?p (.*) %{buildroot}%{_docdir}/kvmarm/(\S*)$"
        lines = re.findall(into, _SPEC, re.MULTILINE)
    for patterns, directory in lines:
        copied.setdefault(directory, []).extend(patterns.split())
    found = {}
    for directory, patterns in copied.items():
        for path in (path for pattern in patterns for path in _PROJECT.glob(pattern)):
            for file in [path] if path.is_file() else path.rglob("*"):
                name = Path(directory, path.name, file.relative_to(path))
                found[os.path.normpath(name)] = file
    return found


@pytest.mark.parametrize("package", ["deb", "rpm"])
def test_links_of_the_installed_handbook_lead_somewhere(package: str) -> None:
    """What is not installed is named in words."""
    installed = _installed_documents(package)
    assert {"README.md", "docs/one-host.md", "docs/managers/nova.md"} < installed.keys()
    places = {str(parent) for name in installed for parent in Path(name).parents}
    broken = [
        f"{name}: {target}"
        for name, path in installed.items()
        if path.suffix == ".md"
        for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", path.read_text("utf-8"))
        if "://" not in target
        and os.path.normpath(Path(name).parent / target) not in installed.keys() | places
    ]
    assert broken == []


def test_both_packages_install_the_same_documents() -> None:
    """debhelper leaves those that are linked to as they are: not compressed."""
    (deb, rpm) = (_installed_documents(package) for package in ("deb", "rpm"))
    assert deb == rpm
    (left,) = re.findall(r"^\tdh_compress (.*)$", _read("rules"), re.MULTILINE)
    parts = [option.partition("-X")[2] for option in left.split()]
    for name in deb.keys() - {"examples/policy.yaml"}:
        assert any(part in f"usr/share/doc/kvmarm/{name}" for part in parts), name
    for name in {name.partition("/")[0] for name in rpm if "/" in name}:
        assert f"\n%doc %{{_docdir}}/kvmarm/{name}\n" in _sections()["files"]


# -- what contributors are told, and the sources of a release --------------------------------------


def test_issue_templates_name_what_there_is() -> None:
    templates = {path.name: path.read_text("utf-8") for path in _PROJECT.glob("issue-templates/*")}
    contributing = (_PROJECT / "CONTRIBUTING.md").read_text("utf-8")
    assert set(re.findall(r"\(issue-templates/(\S+)\)", contributing)) == set(templates)
    assert f"virsh metadata GUEST {record.NAMESPACE}`" in templates["wrong-verdict.md"]
    for path in re.findall(r"\]\((?!#)([^)]+)\)", contributing):
        assert (_PROJECT / path).exists(), path


@pytest.mark.skipif(not (_PROJECT / ".git").exists(), reason="these are no sources from git")
def test_two_tarballs_have_the_same_bytes(tmp_path: Path) -> None:
    version = kvmarm_plugin.__version__
    for number, mask in enumerate((0o022, 0o077)):
        before = os.umask(mask)
        try:
            subprocess.run(
                [_PROJECT / "rpm/dist", tmp_path / str(number)],
                env={**os.environ, "TZ": ("UTC", "Asia/Kathmandu")[number]},
                check=True,
            )
        finally:
            os.umask(before)
    made = {path.name: path for path in (tmp_path / "0").iterdir()}
    wanted = {
        f"kvmarm-{version}": (
            "rpm/kvmarm.spec",
            "debian/control",
            "setup.cfg",
            "tests/lab/host.py",
        ),
        f"kvmarm-level-{version}": ("rpm/kvmarm-level.spec", "kvmarm-level.c", "LICENSE"),
    }
    assert made.keys() == {f"{name}.tar.gz" for name in wanted}
    for name, files in wanted.items():
        path = made[f"{name}.tar.gz"]
        assert path.read_bytes() == (tmp_path / "1" / path.name).read_bytes()
        with tarfile.open(path) as archive:
            members = archive.getmembers()
        assert {member.mode for member in members} <= {0o644, 0o755, 0o777}
        assert {(member.uid, member.gid, member.uname) for member in members} == {(0, 0, "")}
        names = {member.name for member in members}
        assert {f"{name}/{file}" for file in files} <= names
        assert all(each.startswith(f"{name}/") for each in names)
        # rpmbuild -ta takes a tarball that has one.
        assert [each for each in names if each.endswith(".spec")] == [f"{name}/{files[0]}"]


# -- docs/policy.yaml, from which /etc/kvmarm/policy.yaml is written -------------------------------

_POLICY = _PROJECT / "docs/policy.yaml"


def test_the_example_of_a_policy_is_the_default() -> None:
    assert policy.loads(_POLICY.read_text(encoding="utf-8")) == Policy()
    assert policy.for_hook(str(_POLICY)) == HookPolicy()


def test_every_setting_is_in_it_with_its_default() -> None:
    """Without the # in front of them: what has a default that can be written means that."""
    uncommented = re.sub(r"^#(?! )", "", _POLICY.read_text(encoding="utf-8"), flags=re.MULTILINE)
    settings = re.findall(r"^([\w-]+):", uncommented, re.MULTILINE)
    assert sorted(settings) == sorted(policy._SETTINGS)
    policy.loads(uncommented)  # takes every value
    without = re.sub(r"^sve-max-length:.*", "", uncommented, flags=re.MULTILINE)
    assert policy.loads(without) == Policy()
    fields, odd = policy._for_hook(without)
    assert (HookPolicy(**fields), odd) == (HookPolicy(), 0), "the hook reads every line"
    assert len(fields) == len(policy._OF_THE_HOOK)
