# `make help` lists what there is. Everything is installed into .venv/ at the root, nothing elsewhere.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
PY := $(VENV)/bin/python
LOCK := requirements/cpu.lock
PROTOS := $(shell find protos -name '*.proto')
GENERATED := $(PROTOS:.proto=_pb2.py)

# The Python to set up with: 3.11 or 3.12, that of an existing .venv first. PYTHON=/path/to/python overrides.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
FIND_PYTHON = for p in $(VENV)/bin/python python3.11 python3.12 python3 python; do \
	"$$p" -c '$(SUPPORTED)' 2>/dev/null && { command -v "$$p"; break; }; done

.PHONY: help
help: ## Show this list
	@echo "usage: make TARGET [VARIABLE=value ...]"; echo
	@sed -nE 's/^([a-z][a-z0-9-]*):.*## (.*)/  \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

##### Setting up #####

.PHONY: setup
setup: venv $(GENERATED) ## Install into .venv and generate code; nothing to do when up to date (PYTHON=, TORCH=)

.PHONY: venv
venv:
	@python="$${PYTHON:-$$($(FIND_PYTHON))}"; \
	test -n "$$python" || { echo "make: needs Python 3.11 or 3.12; install one or say PYTHON=/path/to/python3" >&2; exit 1; }; \
	"$$python" scripts/setup_venv.py --venv $(VENV) --lock $(LOCK) $(if $(TORCH),--torch '$(TORCH)')

.PHONY: protos
protos: venv $(GENERATED) ## Generate the protobuf code

# One run makes all of them: generated modules import each other.
%_pb2.py: %.proto $(LOCK) | venv
	$(PY) -m grpc_tools.protoc --proto_path=. --python_out=. --pyi_out=. --grpc_python_out=. $<
	@touch $@

.PHONY: lock
lock: ## Resolve requirements/*.in again and rewrite the locks (UPGRADE=1: newest versions)
	$(PY) -m scripts.lock $(if $(UPGRADE),--upgrade)

.PHONY: clean
clean: ## Remove caches and generated code (.venv and downloaded models stay)
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
	rm -f $(GENERATED) $(PROTOS:.proto=_pb2.pyi) $(PROTOS:.proto=_pb2_grpc.py)

.PHONY: compile
compile: setup ## Compile the scheduling core into build/compiled/ (ARGS=--force); needs a C compiler
	$(PY) -m scripts.compile_core $(ARGS)

.PHONY: compile-if-possible
compile-if-possible: setup
	@$(PY) -m scripts.compile_core --if-possible

##### Checking #####

PYTEST = $(PY) -m pytest $(ARGS)

.PHONY: test
test: setup ## Set up, then run all tests (ARGS="-k name" narrows)
	$(PYTEST)

.PHONY: test-unit
test-unit: setup ## Tests that need neither vLLM nor a model: seconds
	$(PYTEST) --ignore=tests/integration --ignore=tests/e2e tests

.PHONY: test-integration
test-integration: setup ## Tests through the three services with a tiny random model
	$(PYTEST) tests/integration

.PHONY: test-e2e
test-e2e: setup ## Tests with the demo model and the Node client
	$(PYTEST) tests/e2e

# The tests of what is compiled, once more on the compiled core.
CORE_TESTS = tests/unit/scheduler_core tests/unit/scheduler_shell tests/unit/svc_runtime/test_block_hashes.py \
	tests/unit/svc_runtime/test_columns.py tests/property tests/scenarios tests/paper tests/sim

.PHONY: test-compiled
test-compiled: setup ## Tests of what is compiled, on the compiled core
	$(PY) -m scripts.compile_core
	$(PY) -m scripts.compiled_core $(PYTEST) -p tests.on_compiled_core $(CORE_TESTS)

.PHONY: lint
lint: setup ## ruff, mypy, buf, compose config, hadolint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/buf lint
	$(PY) -m scripts.lint_deploy

.PHONY: sim
sim: setup ## Simulate the core in virtual time, with faults (SEED= STEPS= ARGS="--check-every 100")
	$(PY) -m sim --faults --seed $(or $(SEED),1) --steps $(or $(STEPS),1000000) $(ARGS)

.PHONY: bench-split
bench-split: compile-if-possible ## Measure what the split costs against vllm serve -> bench/results/split_cost.json
	$(PY) -m bench.split $(ARGS)

.PHONY: bench-fleet
bench-fleet: compile-if-possible ## One scheduler, 32 simulated executors, 8192 calls, live -> bench/results/fleet.json
	$(PY) -m bench.fleet $(ARGS)

.PHONY: bench-swap
bench-swap: setup ## Measure copies between the KV tiers against a plain memcpy -> bench/results/swap.json
	$(PY) -m bench.swap $(ARGS)

.PHONY: bench-core
bench-core: compile-if-possible ## Measure a scheduling step, and vLLM's -> bench/results/core.json (ARGS=--quick)
	$(PY) -m bench.core $(ARGS)

.PHONY: images-local
images-local: ## Build and start the images without a Docker engine; root, buildah, podman (TARGETS= MODEL= VOLUMES=)
	TARGETS="$(TARGETS)" MODEL="$(MODEL)" VOLUMES="$(VOLUMES)" scripts/images_local.sh

##### Running #####

.PHONY: demo
demo: setup ## Agent programs under fcfs and under plas, compared (MODEL=, SEED=)
	@$(PY) -m demo run $(call flag,model,$(MODEL)) $(call flag,seed,$(SEED))

.PHONY: up
up: setup ## Start the services for your own use (MODEL= EXECUTORS= POLICY= PORT= GRPC_PORT= SCHEDULER_PORT=)
	@$(PY) -m demo up $(call flag,model,$(MODEL)) $(call flag,executors,$(EXECUTORS)) $(call flag,policy,$(POLICY)) \
	$(call flag,port,$(PORT)) $(call flag,grpc-port,$(GRPC_PORT)) $(call flag,scheduler-port,$(SCHEDULER_PORT)) \
	$(call flag,metrics-port,$(METRICS_PORT))

.PHONY: down
down: ## Stop them
	@$(PY) -m demo down

.PHONY: model
model: setup ## Download or make the model only, and print its directory (MODEL=)
	@$(PY) -m demo model $(call flag,model,$(MODEL))

# `--name value` when the value is not empty.
flag = $(if $(2),--$(1) '$(2)')
