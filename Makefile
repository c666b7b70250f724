# SPDX-License-Identifier: LGPL-2.1-or-later
# Each target sets up what it needs: on a fresh Debian machine, type `make demo` or `make test`.

# The distribution's own interpreter: libvirt-python has no wheel, and this is what operators run.
PYTHON ?= /usr/bin/python3
VENV := .venv
RUN := PYTHONPATH=. $(VENV)/bin/python
SOURCES := kvmarm_plugin tests

# What runs kvmarm, and builds it: all that the demo needs.
RUNTIME := python3-venv python3-lxml python3-yaml python3-libvirt
PACKAGES := $(RUNTIME) linux-libc-dev-arm64-cross mandoc graphviz zsh gcc libc6-dev
# What makes the chroots in which the Debian package is built and tried.
CHROOTS := mmdebstrap debian-archive-keyring
# What builds libkvmarm-level.
CROSS := $(if $(filter aarch64,$(shell uname -m)),gcc libc6-dev,gcc-aarch64-linux-gnu libc6-dev-arm64-cross)
# What builds the RPM packages and looks at them.
RPM := $(CROSS) git make rpm rpmlint checkpolicy semodule-utils python3-pip python3-setuptools python3-wheel

# Tests that need no hosts run on all CPUs, and the others' images are built meanwhile. Hosts are emulated by all CPUs anyway.
PURE := $(RUN) -m pytest -n auto
EMULATED := $(RUN) -m pytest
BUILD := $(if $(TESTS),:,$(RUN) -m tests.lab build)
# TESTS may all be in the other part: pytest's status is 5 then.
OR_NONE := || [ $$? -eq 5 ]

.PHONY: help demo deb rpm dist preload test test-all unit lab lint bench bench-lab golden profiles truth-table clean

help:  ## this list
	@echo "make TARGET, on a Debian machine; each installs what it needs, as root. TESTS=… chooses tests."
	@echo "[hosts]: emulates ARM hosts: 4 GiB of memory, 3 GB of disk for their images, and the Debian mirror that apt uses."
	@awk -F ':.*## *' '/^[a-z-]+:.*##/ { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/bin/pip  ## [hosts, or an ARM host's own KVM] a guest, from libvirt's refusal to a migration (3 minutes)
	@$(RUN) -m tests.lab.demo

deb:  ## Debian packages in dist/SUITE, for bookworm, trixie and sid or SUITES=…; from the mirror that apt uses, as root (20 minutes)
	@tests/install-packages $(CHROOTS)
	@$(PYTHON) -m tests.deb $(SUITES)

rpm:  ## the RPM packages in dist/rpm, for a look; for use, build them on Fedora or RHEL from what dist makes
	@tests/install-packages $(RPM)
	@rpm/build dist/rpm
	@rpmlint --config rpm/rpmlint.toml dist/rpm/*.rpm rpm/kvmarm.spec preload/rpm/kvmarm-level.spec

dist:  ## this version's sources in dist/, reproducible; rpmbuild -ta takes them
	@tests/install-packages git
	@rpm/dist dist

preload:  ## libkvmarm-level.so.1 for arm64, in preload/ (preload/README.md)
	@tests/install-packages $(CROSS)
	@$(MAKE) --no-print-directory -C preload

test: $(VENV)/ready  ## [hosts] the tests that every change has to pass (10 to 20 minutes)
	@$(RUN) -m tests.lab setup
	@$(BUILD) trixie & $(PURE) -m "not lab and not slow" $(TESTS) $(OR_NONE)
	@$(EMULATED) -m "lab and not slow" $(TESTS) $(OR_NONE)

test-all: $(VENV)/ready  ## [hosts] all tests, on every kind of host, with Linux in every guest (two to three hours); tests/README.md
	@tests/install-packages $(CHROOTS) $(RPM)
	@$(RUN) -m tests.lab setup
	@$(BUILD) trixie bookworm sid sid-trixie trixie-systemd & $(PURE) -m "not lab" $(TESTS) $(OR_NONE)
	@$(EMULATED) -m lab --guests=linux $(TESTS) $(OR_NONE)

unit: $(VENV)/ready  ## the part of test that needs no hosts (1 to 4 minutes)
	@$(PURE) -m "not lab and not slow" $(TESTS)

lab: $(VENV)/ready  ## [hosts] the part of test that needs them
	@$(RUN) -m tests.lab setup
	@$(EMULATED) -m "lab and not slow" $(TESTS)

lint: $(VENV)/ready  ## ruff and mypy
	@$(VENV)/bin/ruff check $(SOURCES)
	@$(VENV)/bin/ruff format --check $(SOURCES)
	@$(VENV)/bin/mypy
# The tests run on developers' machines, and pytest's own annotations need a newer Python.
	@$(VENV)/bin/mypy --python-version 3.11 tests

bench: $(VENV)/ready  ## what the hook and the commands cost on this machine
	@tests/install-packages virtinst time
	@$(RUN) tests/bench.py

bench-lab: $(VENV)/ready  ## [hosts] what the hook costs on an emulated host (a minute)
	@$(RUN) -m tests.lab.bench

golden: $(VENV)/ready  ## rewrite the golden files, and docs that are made from the code; read the difference before you commit it
	@$(RUN) -m pytest tests/test_golden.py tests/unit/test_hook_faults.py::test_the_document tests/unit/test_completion.py --regenerate-output

profiles: $(VENV)/ready  ## [hosts] record the profile of every host that the lab can make (ten minutes)
	@$(RUN) -m tests.lab setup
	@$(RUN) -m tests.lab.record

truth-table: $(VENV)/ready  ## [hosts] compare predictions with real migrations and lives of guests; writes docs/truth-table.md (90 minutes)
	@$(RUN) -m tests.lab.truth_table --write
	@$(RUN) -m tests.lab.lives --write

clean:  ## remove what was built, and the virtualenv; the lab's cache: python3 -m tests.lab prune --all
	rm -rf $(VENV) build dist preload/*.so.1 *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/pip:
	@tests/install-packages $(RUNTIME)
	@$(PYTHON) -m venv --system-site-packages $(VENV)

$(VENV)/ready: tests/requirements.txt tests/install-packages Makefile | $(VENV)/bin/pip
	@tests/install-packages $(PACKAGES)
	@echo "kvmarm: installing the tools of tests/requirements.txt into $(VENV)"
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	@touch $@
