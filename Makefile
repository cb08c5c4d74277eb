# make demo   sets everything up in .venv, then runs the main job on Fashion-MNIST
# make lesson sets everything up in .venv, then makes the table of approaches, in about 15 minutes
# make test   sets everything up in .venv, then runs the test suite, in two processes
# make data   gets Fashion-MNIST, which some tests use where they find it
# make browser gets Debian's Chromium, in which the report is tested; needs root
# A second run repeats no set-up.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
WORKERS := 2
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo lesson data browser test stress lint bench clean

demo: $(READY)
	$(BIN)/python examples/demo.py

lesson: $(READY)
	$(BIN)/python examples/lesson.py

data: $(READY)
	$(BIN)/python examples/demo.py --data-only

browser:
	command -v chromium || apt-get install --quiet --yes --no-install-recommends chromium

test: $(READY)
	$(BIN)/python -m pytest -m "not stress" --numprocesses $(WORKERS) --dist loadfile

stress: $(READY)
	$(BIN)/python -m pytest -m stress

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	for script in benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done

$(READY): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[fast,cluster,tflite,tensorboard,dev]"
	touch $@

clean:
	rm -rf $(VENV) build demo runs *.egg-info
