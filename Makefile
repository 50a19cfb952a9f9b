# `make demo` and `make test` are all a newcomer needs. Both install into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo

.PHONY: demo test test-all lint wheel-test bench fuzz clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Stepwell needs Python 3.11 or newer; say which with: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

# A quarter of the digits: with all of them the shallowest depth is as accurate as the deepest.
demo: $(VENV)/.installed
	$(BIN)/stepwell train ekd --data digits --part 1/4 --net resnet32 --depths 8 20 --epochs 20 --batch-size 64 --out $(DEMO)
	$(BIN)/stepwell eval $(DEMO)
	$(BIN)/stepwell export $(DEMO) --depth all
	$(BIN)/stepwell report $(DEMO)
	@echo
	@echo 'Open $(DEMO)/report.html. Then try:'
	@echo '  $(BIN)/stepwell predict $(DEMO) IMAGE... --depth 8'
	@echo '  $(BIN)/stepwell cost resnet34 --depths 18'
	@echo '  $(BIN)/stepwell train ekd --data FOLDER_OF_CLASS_FOLDERS --out runs/mine'
	@echo '  $(BIN)/stepwell verify ekd --quick'
	@echo '  $(BIN)/stepwell --help'

# `test-all` also runs the tests marked `long`. Bytecode is cached even where the environment says no: else
# each process that a test starts compiles the package.
test test-all: $(VENV)/.installed
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check --quiet src tests benchmarks
	$(BIN)/mypy
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest -n 2 --dist worksteal $(if $(filter test,$@),-m 'not long')

# A wheel in a clean environment with the core dependencies only trains, evaluates and reports.
wheel-test: $(VENV)/.installed
	PYTHON=$(BIN)/python bash tests/wheel.sh

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks

# Damaged and crafted files, nonsense command lines, kills, threads: up to 20 minutes; docs/reliability.md has its table.
fuzz: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.fuzz --write

clean:
	rm -rf $(VENV) dist build
