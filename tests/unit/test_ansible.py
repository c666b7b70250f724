# SPDX-License-Identifier: LGPL-2.1-or-later
"""The collection in ansible/: its playbook run on hosts that are this machine with an /etc and a
`kvmarm` of their own each, which answers from a recorded profile. The controller's `kvmarm` is the
real one. On hosts with KVM: tests/lab/test_ansible.py.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from kvmarm_plugin import __version__
from kvmarm_plugin.fleet import pool
from kvmarm_plugin.hook import install as hookfile
from kvmarm_plugin.model import policy, profile_json
from tests import playbook

ROLE = playbook.COLLECTION / "roles/kvmarm"
PROFILES = playbook.PROJECT / "tests/hosts"
UNSHARE = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
INSTALLED = {
    policy.DEFAULT_PATH,
    pool.DEFAULT_PATH,
    str(hookfile.DIRECTORY / hookfile.NAME),
    "/etc/ansible/facts.d/kvmarm.fact",
}
NOWHERE = {"ansible_host": "127.0.0.1", "ansible_port": "1", "ansible_ssh_args": "-F none"}

# What Ansible asks of it, with the state of the units in /etc.
_SYSTEMCTL = """
    for word; do
        case "$word" in kvmarm-renew.socket | kvmarm-agent.service) unit=$word ;; esac
    done
    case "$*" in
    show*)
        echo LoadState=loaded
        [ "$2" = --property=LoadState ] ||
            echo "ActiveState=$(cat /etc/is-active-$unit || echo inactive)" ;;
    "is-enabled $unit"*) [ -e /etc/is-enabled-$unit ] && echo enabled ;;
    "enable $unit") touch /etc/is-enabled-$unit ;;
    "start $unit") echo active >/etc/is-active-$unit ;;
    *) exit 1 ;;
    esac"""
# What apt-get and dnf say of what they install, and of what is there.
_INSTALLER = """
    echo "$0 $*" >>/etc/asked
    for path; do :; done
    [ -e "$path" ] || exit 1
    [ ! -e /etc/is-installed ] || exec echo "{nothing}"
    touch /etc/is-installed; echo "1 newly installed" """
_NO_SYSTEMD = "echo 'System has not been booted with systemd as init system'; exit 1"


class Fleet:
    """Hosts to make."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.hosts: dict[str, dict[str, str]] = {}

    def add(self, name: str, profile: str, systemd: bool = False) -> None:
        """A host with the profile of this file in tests/hosts, and perhaps with a systemd that has
        kvmarm's units.
        """
        root = self.directory / name
        for file in ("passwd", "group", "ld.so.cache"):
            (root / "etc").mkdir(parents=True, exist_ok=True)
            shutil.copy(f"/etc/{file}", root / "etc")
        kvmarm = f"""
            case "$1" in
            probe) exec cat {PROFILES}/{profile}.json ;;
            check) exec {self.directory}/bin/kvmarm check --host {PROFILES}/{profile}.json "$2" ;;
            renew) cat /etc/renewed && : >/etc/renewed ;;
            status) echo "NAME of {name}"; exit 3 ;;
            hook)
                mkdir -p {hookfile.DIRECTORY} && cd {hookfile.DIRECTORY} || exit
                [ ! -e {hookfile.NAME} ] || exec echo "it is up to date"
                touch {hookfile.NAME} ;;
            esac"""
        _script(root / "bin/kvmarm", kvmarm)
        _script(root / "bin/systemctl", _SYSTEMCTL if systemd else _NO_SYSTEMD)
        for tool, nothing in (
            ("apt-get", "0 upgraded, 0 newly installed, 0 to remove and 0 not upgraded."),
            ("dnf", "Nothing to do."),
        ):
            _script(root / "bin" / tool, _INSTALLER.format(nothing=nothing))
        (root / "cache").mkdir()
        (root / "etc/renewed").write_text("")
        mounts = f"mount --bind {root}/etc /etc && mount --bind {root}/cache /var/cache"
        inside = f"{mounts} && PATH={root}/bin:$PATH exec sh"
        _script(root / "shell", f'exec {" ".join(UNSHARE)} sh -c \'{inside} "$@"\' sh "$@"')
        self.hosts[name] = {
            "ansible_connection": "local",
            "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_become": "false",
            "ansible_shell_executable": str(root / "shell"),
        }

    def run(self, *options: str, **variables: object) -> playbook.Run:
        return playbook.run(self.directory, self.hosts, *options, variables=variables)

    def installed(self, name: str) -> set[str]:
        """Those of the files that the role installs that are there, on one host."""
        return {path for path in INSTALLED if Path(f"{self.directory}/{name}{path}").exists()}


def _script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    if (
        subprocess.run(
            [*UNSHARE, "mount", "--bind", str(tmp_path), str(tmp_path)], capture_output=True
        ).returncode
        != 0
    ):
        pytest.skip("no mount namespaces here")
    before = {path for path in INSTALLED if Path(path).exists()}
    yield Fleet(tmp_path)
    assert {path for path in INSTALLED if Path(path).exists()} == before, (
        "the hosts' /etc was this machine's"
    )


# -- the playbook --------------------------------------------------------------------------------


def test_in_check_mode_then_for_real_then_again(fleet: Fleet) -> None:
    """Beside a host that is not there, but was left out on purpose; it is the first, which run_once
    would ask.
    """
    fleet.hosts["alpha"] = NOWHERE
    fleet.add("beta", "trixie-cortex-a57")
    fleet.add("gamma", "trixie-cortex-a57", systemd=True)
    files = INSTALLED - {
        policy.DEFAULT_PATH
    }  # which is left alone as long as there are no settings
    # What is installed, and the directory of policy and pool; with systemd the socket, too.
    for options, installed, changed in (["--check"], set(), 4), ([], files, 4), ([], files, 0):
        run = fleet.run(*options, kvmarm_leave_out=["alpha"], kvmarm_serial="100%")
        assert run.rc == 0, run.output
        assert run.plan[0] == "kvmarm: 2 hosts, guests move freely between them"
        assert run.plan[-1] == "alpha: left out, as kvmarm_leave_out says"
        assert fleet.installed("beta") == fleet.installed("gamma") == installed
        assert run.changed == {"alpha": 0, "beta": changed, "gamma": changed and changed + 1}
        states = [
            fleet.directory / f"gamma/etc/is-{state}-{unit}"
            for state in ("enabled", "active")
            for unit in ("kvmarm-renew.socket", "kvmarm-agent.service")
        ]
        assert [path.exists() for path in states] == [bool(installed)] * 4
        assert all(f'"NAME of {name}"' in run.output for name in ("beta", "gamma"))


@pytest.mark.parametrize(
    ("names", "command"),
    [
        (["kvmarm.deb"], "apt-get --yes --no-install-recommends install"),
        (["kvmarm.rpm", "kvmarm-selinux.rpm"], "dnf --assumeyes install"),
    ],
)
def test_packages_of_files(fleet: Fleet, names: list[str], command: str) -> None:
    for name in ("alpha", "beta"):
        fleet.add(name, "trixie-cortex-a57")
    for name in names:
        (fleet.directory / name).write_text(name)
    variables = {"kvmarm_package_files": [str(fleet.directory / name) for name in names]}
    # Those and their directory; what is installed, and the directory of policy and pool.
    for changed in (3 + 4, 0):
        run = fleet.run(**variables, kvmarm_serial="100%")
        assert (run.rc, run.changed) == (0, {"alpha": changed, "beta": changed}), run.output
    asked = (fleet.directory / "alpha/etc/asked").read_text().splitlines()
    paths = " ".join(f"/var/cache/kvmarm/{name}" for name in names)
    assert asked[0].endswith(f"{command} {paths}")


def test_records_that_are_renewed_are_a_change(fleet: Fleet) -> None:
    fleet.add("alpha", "trixie-cortex-a57")
    fleet.add("beta", "trixie-cortex-a57")
    assert fleet.run(kvmarm_serial="100%").rc == 0
    (fleet.directory / "beta/etc/renewed").write_text("guest: renewed\n")
    assert fleet.run(kvmarm_serial="100%").changed == {"alpha": 0, "beta": 1}


def test_hosts_without_a_profile_are_named(fleet: Fleet) -> None:
    for name in ("alpha", "beta"):
        fleet.add(name, "trixie-cortex-a57")
    fleet.add("broken", "no-such-profile")
    fleet.hosts["silent"] = NOWHERE
    run = fleet.run("--limit", "!beta")
    assert run.rc != 0
    assert run.plan == []
    reasons = dict(
        re.findall(r'"msg": "(\w+) gave no profile, .*?kvmarm_leave_out\. (.*)"', run.output)
    )
    assert reasons.keys() == {"beta", "broken", "silent"}
    assert "outside of --limit" in reasons["beta"]
    assert "no-such-profile.json" in reasons["broken"]
    assert "Connection refused" in reasons["silent"]
    assert fleet.installed("alpha") == set()


@pytest.mark.parametrize(
    ("other", "settings", "said"),
    [
        ("trixie-neoverse-n1", {}, "No baseline fits all of these hosts"),
        ("trixie-cortex-a57", {"sve": True}, "the policy wants SVE"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_installed(
    fleet: Fleet, other: str, settings: dict[str, object], said: str
) -> None:
    fleet.add("alpha", "trixie-cortex-a57")
    fleet.add("beta", other)
    run = fleet.run(kvmarm_pool_name="rack", kvmarm_policy=settings)
    assert run.rc != 0
    assert run.plan[0].startswith("rack: "), run.output
    assert said in run.output
    assert "alpha" in "".join(run.plan)
    assert fleet.installed("alpha") | fleet.installed("beta") == set()


def test_the_policy_is_what_the_hook_reads(fleet: Fleet) -> None:
    """One setting a line, with lists in brackets."""
    fleet.add("alpha", "trixie-cortex-a57")
    settings: dict[str, object] = {
        "on-drift": "refuse",
        "except": ["scratch-*", "bürö, 2", "true"],
        "arrival-seconds": 20,
        "adopt": False,
        "sve": "auto",
        "cluster": 0x411FD070,
    }
    run = fleet.run(kvmarm_policy=settings)
    assert run.rc == 0, run.output
    path = fleet.directory / f"alpha{policy.DEFAULT_PATH}"
    made = policy.loads(path.read_text(encoding="utf-8"))
    assert made == policy.Policy(
        excepted=("scratch-*", "bürö, 2", "true"), adopt="off", cluster=0x411FD070
    )
    read = policy.for_hook(str(path))
    assert read == policy.HookPolicy(on_drift="refuse", arrival_seconds=20)
    assert fleet.run(kvmarm_policy=settings).changed == {"alpha": 0}


def test_members_that_the_inventory_calls_otherwise(fleet: Fleet) -> None:
    """The digests in the pool are those of the profiles that the hosts have measured."""
    names = {"alpha.example.com", "10.0.0.2"}
    for name in names:
        fleet.add(name, "trixie-cortex-a57")
    assert fleet.run(kvmarm_serial="100%").rc == 0
    profile = profile_json.loads((PROFILES / "trixie-cortex-a57.json").read_text())
    for name in names:
        made = pool.loads((fleet.directory / f"{name}{pool.DEFAULT_PATH}").read_text())
        assert made.members == dict.fromkeys(names, profile_json.digest(profile))


# -- the collection ------------------------------------------------------------------------------


def _galaxy(directory: Path, *arguments: str) -> None:
    command = [playbook.tool("ansible-galaxy"), "collection", *arguments]
    subprocess.run(command, env=playbook.environment(directory), check=True, capture_output=True)


def test_it_can_be_built_and_installed(tmp_path: Path) -> None:
    made = tmp_path / "made"
    _galaxy(tmp_path, "build", str(playbook.COLLECTION), "--output-path", str(made))
    (archive,) = made.iterdir()
    assert archive.name == f"kvmarm-host_model-{__version__}.tar.gz"
    _galaxy(
        tmp_path, "install", str(archive), "--offline", "--force", "--collections-path", str(made)
    )
    installed = made / "ansible_collections/kvmarm/host_model"
    wanted = {path.relative_to(playbook.COLLECTION) for path in playbook.COLLECTION.rglob("*")} - {
        Path("galaxy.yml")
    }
    assert wanted <= {path.relative_to(installed) for path in installed.rglob("*")}


def test_every_variable_is_described() -> None:
    specs = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]
    assert specs.keys() == {path.stem for path in (ROLE / "tasks").iterdir()}
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    readme = (playbook.COLLECTION / "README.md").read_text()
    for entry in specs.values():
        options = entry["options"]
        assert options.keys() == defaults.keys()
        for name, option in options.items():
            assert option.get("default", defaults[name]) == defaults[name]
            assert f"| `{name}` |" in readme
    assert set(re.findall(r"^\| `(\w+)` \|", readme, re.MULTILINE)) == {
        *defaults,
        "kvmarm_serial",
    }  # of the playbook
