# The environment is made once and remembered by its stamp; everything else runs inside it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
# The CPU build: an unpinned torch would bring several GB of CUDA to a laptop.
TORCH := torch==2.13.0
EXTRAS := train,plot,fast,broker,dashboard,metrics,log

.PHONY: setup test check demo acl-matrix bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing RELIEF and its tools into $(VENV) (one to three minutes the first time)"
	@$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	@$(BIN)/python -m pip install --quiet "$(TORCH)" "numpy<3"
	@$(BIN)/python -m pip install --quiet --editable ".[$(EXTRAS)]" --group dev
	@touch $@

test: $(STAMP)
	@$(BIN)/python -m pytest

check: $(STAMP)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

# DATA: dsads, dsads15, mhealth, pamap2 or synthetic
DATA ?= dsads

demo: $(STAMP)
	@$(BIN)/relief demo --data $(DATA) $(if $(SECURE),--secure)

acl-matrix: $(STAMP)
	@$(BIN)/python -m tests.acl_matrix

bench: $(STAMP)
	@$(BIN)/python -m tests.bench

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The laboratory (docs/results.md). DATA=dsads15, mhealth or pamap2 runs the same comparison on another data set's fleet.
# On two cores paper takes 20 to 40 minutes, paper-all four to eight hours; both go on where they were interrupted.
FLEET_dsads15 := sensors15
FLEET_mhealth := mhealth
FLEET_pamap2 := pamap2
FLEET := $(or $(FLEET_$(DATA)),coupled)
.PHONY: paper paper-all paper-quick

paper: $(STAMP)
	@$(BIN)/relief experiment run paper --fleet $(FLEET) --out runs/paper-$(FLEET)

paper-all: paper
	@for part in rivals beyond fleets deadlines policies; do $(BIN)/relief experiment run $$part --out runs/$$part || exit 1; done

paper-quick: $(STAMP)
	@$(BIN)/relief experiment run quick --out runs/quick --check

# Nothing lost, whatever breaks. Each prints its verdict and figures on the last line.
SEEDS ?= 10000
FAULTS ?= 100
INPUTS ?= 1000000
ROUNDS ?= 2000
.PHONY: simulate-faults chaos fuzz soak-rounds

# Bad days on virtual time: 500 seeds take 1 to 5 minutes, by how fast and busy the machine is.
simulate-faults: $(STAMP)
	@$(BIN)/python -m tests.faults $(SEEDS)

# The same on real processes, with kill -9, SIGSTOP and cut connections.
chaos: $(STAMP)
	@$(BIN)/python -m tests.chaos $(FAULTS)

# Every decoder and both cores, with inputs from hypothesis, a mutator and the kept corpus.
fuzz: $(STAMP)
	@$(BIN)/python -m tests.fuzz $(INPUTS)

# Rounds with churn: memory, file descriptors and disk must stay flat.
soak-rounds: $(STAMP)
	@$(BIN)/python -m tests.chaos.soak $(ROUNDS)

# Eight devices through a bad day: silent sensor, late labels, 30 s without network, kill -9. Five calm runs to compare
# with, so about 20 minutes; QUICK=1: two calm runs and short faults, 3 minutes.
.PHONY: soak
soak: $(STAMP)
	@$(BIN)/python -m tests.soak $(if $(QUICK),--quick)

# The documentation as a site in build/site, every link checked.
.PHONY: docs
docs: $(STAMP)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# Flashing on an emulated arm64 Debian, made once in .cache/arm64; ONLY="rootfs round" picks checks. As root.
.PHONY: test-arm64
test-arm64: $(STAMP)
	@$(BIN)/python -m tests.arm64.check $(if $(ONLY),--only $(ONLY))
