# make kernels: test every kernel that runs here.  make test: run moecheck's own tests, two at a time.  make lint: ruff and mypy.
# The first of them sets up .venv (CONTRIBUTING.md); later ones reuse it until a dependency changes.

VENV ?= .venv
TEST_JOBS ?= 2
STAMP := $(VENV)/installed

.PHONY: kernels test lint format clean

kernels: $(STAMP)
	$(VENV)/bin/moecheck kernels --tol 1e-2

test: $(STAMP)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(TEST_JOBS) --dist loadgroup $(PYTEST_ARGS)

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(STAMP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info

$(STAMP): pyproject.toml constraints-cpu.txt tools/install-cpu.sh
	VENV=$(VENV) tools/install-cpu.sh
	touch $@
