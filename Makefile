# KOA RTI.  `make help` lists what there is; all options stand in pyproject.toml.
PYTHON ?= python3
PY := .venv/bin/python
STAMP := .venv/.stamp
EXAMPLE := examples/pipeline/.venv
PINNED := --no-deps --require-hashes -r requirements/pipeline.lock
ARGS ?=
# Of the images: what builds them, the base, the names koa-<service>.
BUILD ?= podman build
BASE ?= docker.io/library/python:3.11-slim-bookworm
REGISTRY ?= localhost
TAG ?= $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
TEST := $(PY) -m pytest --ignore tests/house --ignore tests/bench \
	--ignore tests/images --ignore tests/cluster
REVISION ?= $(shell git rev-parse HEAD)

.DEFAULT_GOAL := help
.PHONY: help venv run observe test check chaos format bench images images-test cluster-test lock audit clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(STAMP) ## Make .venv from requirements/dev.lock (done by the others as needed)

$(STAMP): requirements/dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "KOA RTI needs Python 3.11 or later: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv .venv || \
		{ rm -rf .venv; echo "No venv module here: apt-get install python3-venv" >&2; exit 1; }
	$(PY) -m pip install --quiet --no-deps --require-hashes -r requirements/dev.lock
	$(PY) -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

run: $(STAMP) ## Run the whole system here; SIM= DEV= PORT_OFFSET= DB= S3= VAR=
	$(PY) -m koa_shared.simulator.stack

observe: $(STAMP) ## Run it with a Prometheus and an Alertmanager that watch it
	$(PY) -m koa_shared.simulator.observe

$(EXAMPLE)/.stamp: requirements/pipeline.lock $(STAMP)
	$(PY) -m uv venv --quiet --clear $(EXAMPLE)
	$(PY) -m uv pip install --quiet --python $(EXAMPLE) $(PINNED) || \
		$(PY) -m pip --python $(EXAMPLE) install --quiet $(PINNED)
	echo $(CURDIR)/shared > $$(echo $(EXAMPLE)/lib/python*/site-packages)/koa.pth
	@touch $@

test: $(STAMP) $(EXAMPLE)/.stamp ## Run all tests but house and bench; ARGS="tests/monitor -k name"
	$(TEST) -n 3 --dist loadfile --no-loadscope-reorder $(or $(ARGS),-m "not alone")
	$(if $(ARGS),,$(TEST) -m alone)

check: $(STAMP) ## Check format, lint, types, imports and the rules of the house
	$(PY) -m ruff format --check
	$(PY) -m ruff check
	$(PY) -m mypy
	.venv/bin/lint-imports --no-logo
	$(PY) -m pytest tests/house $(ARGS)

chaos: $(STAMP) ## A night under every fault, on both databases; ARGS="--db sqlite --only S3"
	$(PY) -m tests.chaos.harness $(ARGS)

format: $(STAMP) ## Format the code, apply the lint's safe fixes, write what is generated
	$(PY) -m ruff check --fix-only
	$(PY) -m ruff format
	$(PY) helm/dashboards/build.py
	$(PY) tests/observability/metrics_page.py

bench: $(STAMP) ## Measure latency and rates beside a serial script (design 9)
	$(PY) -m pytest tests/bench -s --timeout 1200 $(ARGS)

images: ## Build the three images; BUILD= BASE= REGISTRY= TAG=
	for service in monitor preparer ingestor; do \
		$(BUILD) --build-arg BASE=$(BASE) --build-arg VERSION=$(TAG) \
			--build-arg REVISION=$(REVISION) --target $$service \
			--tag $(REGISTRY)/koa-$$service:$(TAG) . || exit 1; \
	done

images-test: $(STAMP) ## Build them on a small Debian and play the chart's pods (root, podman)
	$(PY) -m pytest tests/images/test_build.py -s --timeout 1200 $(ARGS)
	@unshare --net true || { echo "SKIPPED: no pods are played, see above"; exit 0; }; \
		unshare --net $(PY) -m pytest tests/images/test_play.py -s --timeout 600 $(ARGS)

cluster-test: $(STAMP) ## Install both sites in a cluster and disturb it; KUBECONFIG= KUBE_LOAD=
	@test -n "$(KUBECONFIG)" -a -n "$(KUBE_LOAD)" || \
		{ echo "Set KUBECONFIG, and KUBE_LOAD: the command that gives it an image archive" >&2; exit 1; }
	$(PY) -m pytest tests/cluster -s --timeout 2400 $(ARGS)

lock: $(STAMP) ## Write requirements/*.lock from pyproject; ARGS=--upgrade for the newest
	for extra in monitor preparer ingestor build pipeline dev; do \
		case $$extra in build|pipeline) with= ;; *) with="--extra otel" ;; esac; \
		$(PY) -m uv pip compile pyproject.toml --quiet --extra $$extra $$with --generate-hashes \
			--no-header --no-annotate --no-emit-index-url --no-emit-find-links \
			--python-version 3.11 $(ARGS) --output-file requirements/$$extra.lock || exit 1; \
	done

audit: $(STAMP) ## Look the lock up among known vulnerabilities; gates nothing, needs the internet
	@told=$$($(PY) -m uv tool run --quiet pip-audit==2.10.1 -s osv --disable-pip \
		--require-hashes --progress-spinner off -r requirements/dev.lock 2>&1); \
	case "$$told" in *"known vulnerabilit"*) echo "$$told" ;; *) echo "$$told" | tail -n 1; \
		echo "NOT AUDITED: the database of advisories can't be reached from here" ;; esac

clean: ## Remove .venv and all caches; var/, the state of `make run`, stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
