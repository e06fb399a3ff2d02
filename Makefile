# Run `make` for the list of targets.
SHELL := /bin/bash
BIN := .venv/bin
READY := .venv/.ready
DEMO := build/demo/zero_shot/config.pbtxt
SOURCES := $(shell find export model_repository steps -name '*.py' -o -name '*.j2' -o -name '*.toml')
CHECKPOINTS := $(wildcard demo/checkpoints/*/*)
CONSTRAINTS := $(wildcard constraints/python*.txt)
# mypy takes these one at a time: each is the module `model`.
MODELS := $(wildcard model_repository/*/1/model.py server/clipchoir_server/backends/*/model.py)

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test soak fuzz marathon bench lint source pictures constraints clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY)  ## make .venv with the versions in constraints/

demo: $(DEMO)  ## export the demo pair, serve it, classify sample images, stop
	$(BIN)/python -m demo.run build/demo

serve: $(DEMO)  ## serve the demo pair until Ctrl-C
	$(BIN)/clipchoir-server build/demo

test: $(READY)  ## run every test
	$(BIN)/python -m pytest -n 2 --dist loadfile

soak: $(DEMO)  ## load the demo pair's server for MINUTES (5), check every answer and the memory
	$(BIN)/python -m tools.soak --minutes $(or $(MINUTES),5)

marathon: $(DEMO)  ## classify IMAGES (100,000) while the server is killed twice and the client once
	$(BIN)/python -m tools.marathon --images $(or $(IMAGES),100000)

bench: $(DEMO)  ## measure throughput and latency beside what the hardware allows; QUICK=1: under ten minutes
	$(BIN)/python -m benchmarks.service.bench $(if $(QUICK),--quick)

fuzz: $(DEMO)  ## send 10,000 damaged images and parameters, or COUNT, from SEED (0)
	$(BIN)/python -m tools.fuzz --count $(or $(COUNT),10000) --seed $(or $(SEED),0)

lint: $(READY)  ## check style and types of all code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@set -e; for model in $(MODELS); do echo $(BIN)/mypy $$model; $(BIN)/mypy $$model; done

source: $(READY)  ## render model_repository/ from the real pair's spec again
	$(BIN)/clipchoir-export source scenes model_repository

pictures: $(DEMO)  ## draw the README's pictures again; the screenshot needs chromium
	$(BIN)/python -m tools.pictures

constraints: $(READY)  ## pin what pyproject.toml asks for, in constraints/; UPGRADE=1: the newest versions
	$(BIN)/python -m pip install --quiet uv
	for version in 3.10 3.11 3.12; do \
	    $(BIN)/python -m uv pip compile --quiet $(if $(UPGRADE),--upgrade) --python-version $$version \
	        --python-platform x86_64-manylinux_2_35 --extra export --extra server --extra cpu --extra dev \
	        --no-header --no-annotate --output-file constraints/python$$version.txt pyproject.toml >/dev/null || exit 1; \
	done

clean:  ## remove everything that was built, the environment too
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(DEMO): $(READY) $(SOURCES) $(CHECKPOINTS)
	$(BIN)/clipchoir-export build demo --text-encoders

# A Python of the right version whose shared library is there: the embedded Triton's Python steps link against it.
define SUITABLE
import ctypes, os, sys, sysconfig
assert (3, 10) <= sys.version_info[:2] <= (3, 12)
name = "libpython3.%d.so.1.0" % sys.version_info[1]
path = os.path.join(sysconfig.get_config_var("LIBDIR"), name)
ctypes.CDLL(path if os.path.exists(path) else name)
endef
export SUITABLE

# The environment is made once, with the versions in constraints/, and refreshed when they or pyproject.toml change.
$(READY): pyproject.toml $(CONSTRAINTS)
	@python=$$(for candidate in $(PYTHON) python3 python3.12 python3.11 python3.10; do \
	    if $$candidate -c "$$SUITABLE" 2>/dev/null; then echo $$candidate; break; fi; done); \
	if [ -z "$$python" ]; then echo "clipchoir needs Python 3.10, 3.11 or 3.12 with its shared library (Debian and" \
	    "Ubuntu: apt-get install python3-venv libpython3.N); none was found" >&2; exit 1; fi; \
	echo "setting up .venv with $$($$python --version); this takes a few minutes and 6 GB"; \
	[ -x $(BIN)/pip ] || $$python -m venv --clear .venv || { rm -rf .venv; exit 1; }
	$(BIN)/python -m pip install --quiet --quiet --upgrade pip
	version=$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	$(BIN)/python -m pip install --quiet --quiet --constraint constraints/python$$version.txt \
	    --editable '.[export,server,cpu,dev]'
	@touch $@
