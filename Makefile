# make demo: two drawn puppets talk, no GPU and no download of models needed.
# make test: style, types and all tests, those in a real ComfyUI included where one can be set up (else they say why not).
# make test-fast: the tests that do not take minutes, on two cores at once.
# make test-host: only those in ComfyUI, its page included, from setting it up to the last screenshot.
# All make .venv first where it is missing. ComfyUI for the tests is kept in ~/.cache/bind-your-avatar; clean-host drops it.

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-fast test-host clean clean-host

demo: $(VENV)/.demo
	$(PY) -m bya_core generate demo/scene.json -o demo/talk.mp4 --overlay demo/masks.mp4 --json demo/report.json

# Threads that wait must not spin: tests run small models beside each other's processes.
test: export OMP_WAIT_POLICY = PASSIVE
test: $(VENV)/.test
	$(PY) -m ruff check .
	$(PY) -m mypy bya_core nodes
	$(PY) -m pytest

test-fast: export OMP_WAIT_POLICY = PASSIVE
test-fast: export OMP_NUM_THREADS = 1
test-fast: $(VENV)/.test
	$(PY) -m pytest -m "not slow" -n 2 --dist loadgroup

test-host: export OMP_WAIT_POLICY = PASSIVE
test-host: $(VENV)/.test
	$(PY) -m tests.host.setup
	$(PY) -m pytest -m host

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(PY) pyproject.toml constraints.txt
	@echo "installing into $(VENV) (once; a few minutes)"
	$(PIP) -e .
	@touch $@

$(VENV)/.test: $(PY) pyproject.toml constraints.txt
	@echo "installing into $(VENV) (once; a few minutes)"
	$(PIP) -e ".[train,data,cluster,eval,dev]"
	$(PIP) --no-deps --upgrade --target $(VENV)/vision timm torchvision
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV)

clean-host:
	rm -rf "$${XDG_CACHE_HOME:-$$HOME/.cache}/bind-your-avatar"
