# SPDX-License-Identifier: LGPL-2.1-or-later
# Everything a developer does. Each target sets up what it needs: on a fresh Debian machine `make demo` and `make test` are all there is to type.

# The distribution's own interpreter: libvirt-python has no wheel, and this is what operators run.
PYTHON ?= /usr/bin/python3
VENV := .venv
RUN := PYTHONPATH=. $(VENV)/bin/python
SOURCES := kvmarm_plugin tests

PACKAGES := python3-venv python3-lxml python3-yaml python3-libvirt linux-libc-dev-arm64-cross mandoc graphviz

.PHONY: demo test unit lab lint bench bench-lab golden profiles truth-table clean

demo: $(VENV)/ready
	@$(RUN) -m tests.lab.demo

test: $(VENV)/ready
	@$(RUN) -m tests.lab setup
	@$(RUN) -m pytest $(TESTS)

# The tests that need no lab: seconds.
unit: $(VENV)/ready
	@$(RUN) -m pytest -m "not lab" $(TESTS)

lab: $(VENV)/ready
	@$(RUN) -m tests.lab setup
	@$(RUN) -m pytest -m lab $(TESTS)

lint: $(VENV)/ready
	@$(VENV)/bin/ruff check $(SOURCES)
	@$(VENV)/bin/ruff format --check $(SOURCES)
	@$(VENV)/bin/mypy
# The tests run on developers' machines, and pytest's own annotations need a newer Python.
	@$(VENV)/bin/mypy --python-version 3.11 tests

bench: $(VENV)/ready
	@tests/install-packages virtinst time
	@$(RUN) tests/bench.py

# What the hook costs on an emulated host, with a real kernel (a minute).
bench-lab: $(VENV)/ready
	@$(RUN) -m tests.lab.bench

# Write the golden files anew; read the difference before you commit it.
golden: $(VENV)/ready
	@$(RUN) -m pytest tests/test_golden.py tests/unit/test_hook_faults.py::test_the_document --regenerate-output

# Record the profile of every host that the lab can make (ten minutes).
profiles: $(VENV)/ready
	@$(RUN) -m tests.lab setup
	@$(RUN) -m tests.lab.record

# Migrate guests between every pair of hosts that tells something, and write docs/truth-table.md (half an hour).
truth-table: $(VENV)/ready
	@$(RUN) -m tests.lab.truth_table --write

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/ready: tests/requirements.txt tests/install-packages Makefile
	@tests/install-packages $(PACKAGES)
	@$(PYTHON) -m venv --system-site-packages $(VENV)
	@echo "kvmarm: installing the tools of tests/requirements.txt into $(VENV)"
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	@touch $@
