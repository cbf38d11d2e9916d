# One command each: `make run` serves a real model, `make test` passes the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CLIENTS := .venv-clients
RUNTIME := .venv-runtime
COVERAGE := 85
DEMO_MODEL := HuggingFaceTB/SmolLM2-135M-Instruct
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
INTO_RUNTIME = $(BIN)/python -m pip --python $(RUNTIME)/bin/python install --quiet --disable-pip-version-check \
	--constraint constraints.txt
INSTALL := $(BIN)/python $(PIP_INSTALL) --constraint constraints.txt

.DEFAULT_GOAL := help

.PHONY: help
help: ## Say what there is.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# torch first and alone: asked for by name and version, pip takes the build that the machine offers for it.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)"
	$(INSTALL) "$$(grep '^torch==' constraints.txt)"
	$(INSTALL) --editable '.[dev]'
	@touch $@

.PHONY: setup
setup: $(VENV)/.installed ## Create .venv and install everything, the dev tools included.

models/$(DEMO_MODEL)/config.json: | $(VENV)/.installed
	$(BIN)/python scripts/prepare_demo_model.py

.PHONY: model
model: models/$(DEMO_MODEL)/config.json ## Prepare the demo model.

# The demo model is so small that sampling often leads it astray; greedy answers are worth reading.
.PHONY: run
run: setup model ## Serve the demo model on port 8000 (INFERAPI_* settings apply).
	INFERAPI_MODEL="$${INFERAPI_MODEL:-$(DEMO_MODEL)}" \
	INFERAPI_TEMPERATURE="$${INFERAPI_TEMPERATURE:-0}" \
	INFERAPI_LOG_FORMAT="$${INFERAPI_LOG_FORMAT:-text}" exec $(BIN)/inferapi serve

.PHONY: test
test: setup model ## Run all tests.
	$(BIN)/python -m pytest $(if $(coverage),--cov --cov-report=term-missing:skip-covered --cov-fail-under=$(coverage))

.PHONY: unit
unit: setup ## Run the unit tests: seconds, no model.
	$(BIN)/python -m pytest tests/unit

# An environment of their own: litellm and the server want different versions of huggingface-hub.
$(CLIENTS)/.installed: tests/clients/requirements.txt tests/clients/constraints.txt
	$(PYTHON) -m venv $(CLIENTS)
	@echo "installing into $(CLIENTS) (a few minutes the first time)"
	$(CLIENTS)/bin/python $(PIP_INSTALL) --constraint tests/clients/constraints.txt -r tests/clients/requirements.txt
	@touch $@

.PHONY: test-clients
test-clients: setup model $(CLIENTS)/.installed ## Run the tests with openai, LangChain, LlamaIndex and LiteLLM.
	INFERAPI_TEST_COMMAND="$(abspath $(BIN)/inferapi)" $(CLIENTS)/bin/python -m pytest tests/clients

.PHONY: test-stack
test-stack: setup model ## Run the stack's proxy, Redis and Prometheus, without Docker, with real servers.
	$(BIN)/python -m pytest tests/stack

.PHONY: lint
lint: setup ## Format check, lint, types, import contracts, the container files.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml

.PHONY: check
check: lint $(VENV)/.released ## Everything that must be green before a commit: lint, types, contracts, audit, tests, coverage.
	$(BIN)/python scripts/audit.py || [ $$? -eq 2 ] # 2: no vulnerability database within reach
	$(MAKE) test coverage=$(COVERAGE)

.PHONY: bench
bench: bench-compare ## Measure this server beside its peers.

.PHONY: bench-compare
bench-compare: setup model ## The same; makes an environment for each peer first.
	$(BIN)/python -m benchmarks.compare --write docs/benchmarks/compare.md

.PHONY: bench-own
bench-own: setup model ## Measure throughput, memory against its estimate, loads, faults and session stores.
	$(BIN)/python benchmarks/serving.py --write docs/benchmarks/serving.md
	$(BIN)/python benchmarks/memory_fit.py --write docs/benchmarks/memory-fit.md
	$(BIN)/python benchmarks/lifecycle.py --write docs/benchmarks/lifecycle.md
	$(BIN)/python benchmarks/sessions.py --write docs/benchmarks/sessions.md

.PHONY: faults
faults: setup model ## Put a server in trouble under load, and count what its clients meet (minutes).
	$(BIN)/python -m benchmarks.faults --write docs/benchmarks/faults.md

.PHONY: soak
soak: setup model ## Serve a mixed load for half an hour (minutes=N for longer), and look whether anything is lost or grows.
	$(BIN)/python -m benchmarks.faults.soak --minutes $(or $(minutes),30) --write docs/benchmarks/soak.md

$(VENV)/.released: $(VENV)/.installed
	$(INSTALL) --editable '.[release]'
	@touch $@

.PHONY: audit
audit: $(VENV)/.released ## Look for known vulnerabilities in what is pinned; needs a vulnerability database within reach.
	$(BIN)/python scripts/audit.py

# What users get and nothing else: no tools of development, and not pip either.
$(RUNTIME)/.installed: $(VENV)/.installed
	rm -rf $(RUNTIME)
	$(PYTHON) -m venv --without-pip $(RUNTIME)
	$(INTO_RUNTIME) "$$(grep '^torch==' constraints.txt)"
	$(INTO_RUNTIME) .
	@touch $@

.PHONY: sbom
sbom: $(VENV)/.released $(RUNTIME)/.installed ## Write the bill of materials of what users get: dist/inferapi.cdx.json.
	mkdir -p dist
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --mc-type application --output-reproducible \
		--output-format JSON --output-file dist/inferapi.cdx.json $(RUNTIME)

.PHONY: gpu-check
gpu-check: setup ## On a CUDA machine: are the answers right, and how fast do they come.
	$(BIN)/python -m benchmarks.gpu_check --write docs/benchmarks/gpu-measured.md

.PHONY: format
format: setup ## Format the code.
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

.PHONY: clean
clean: ## Remove what the other targets made, except the models and the environments of `make bench` (.bench).
	rm -rf $(VENV) $(CLIENTS) $(RUNTIME) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage build dist
