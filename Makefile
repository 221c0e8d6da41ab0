# make demo       two drawn characters talk; no GPU and no model download
# make check      style, types and import contracts (under a minute)
# make test       unit, parity and integration tests on all cores
# make test-all   everything: also types of the training code, ComfyUI with its page in a browser, training, curation and slow tests
# make docs       the documentation site (site/)
#
# Each target creates .venv first if it is missing. The tests keep a ComfyUI in ~/.cache/bind-your-avatar.

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Idle OpenMP threads must not spin, and each pytest worker uses one thread.
PYTEST := OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist loadfile

.PHONY: demo check test test-all test-host docs clean clean-host

demo: $(VENV)/.demo
	$(VENV)/bin/bya generate demo/scene.json -o demo/talk.mp4 --overlay demo/masks.mp4 --json demo/report.json

check: $(VENV)/.test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy bya_core nodes
	$(VENV)/bin/lint-imports

test: $(VENV)/.test
	$(PYTEST) -m "not slow and not host" tests/unit tests/parity tests/integration

test-all: check
	$(PY) -m mypy training
	$(PYTEST)

test-host: $(VENV)/.test
	$(PY) -m tests.host.setup
	$(PYTEST) -m host

docs: $(VENV)/.docs
	$(PY) -m tools.reference
	$(VENV)/bin/mkdocs build --strict

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is required: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(PY) pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (a few minutes, once)"
	$(PIP) -e .
	@touch $@

$(VENV)/.test: $(PY) pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (a few minutes, once)"
	$(PIP) -e ".[train,data,cluster,eval,dev]"
	$(PIP) --no-deps --upgrade --target $(VENV)/vision timm torchvision
	@touch $@ $(VENV)/.demo

$(VENV)/.docs: $(PY) pyproject.toml constraints.txt
	$(PIP) -e ".[docs]"
	@touch $@

clean:
	rm -rf $(VENV) site

clean-host:
	rm -rf "$${XDG_CACHE_HOME:-$$HOME/.cache}/bind-your-avatar"
