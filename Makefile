# The commands of the README. Each installs what it needs first; nothing is done twice.
#
#   make demo      build small models once, serve their braid, ask it, compare, shut down
#                  (BRAID=mixed: three models with three tokenizers)
#   make serve     the same service, kept up until Ctrl-C
#   make test      all tests           make lint    all static checks
#   make bench     all benchmarks      make proto   regenerate the gRPC stubs
#   make test-compose                  deploy/compose.yaml brought up, asked, scaled and taken down; needs docker compose
#   make redis     a redis-server for the tests, where it can be installed

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PROTOS := $(wildcard proto/braid_rpc/v1/*.proto)

export RAY_USAGE_STATS_ENABLED := 0

.PHONY: install redis demo serve test test-compose lint format bench proto proto-check clean

install: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Braid needs Python 3.11 or newer, got %d.%d: make PYTHON=python3.11 ..." % sys.version_info[:2])'
	@echo "installing into $(VENV) (several minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@$(MAKE) --no-print-directory redis
	@touch $@

# A Redis server for the tests of the state store, which skip without it: installed where that takes no questions.
redis:
	@command -v redis-server >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq redis-server; } >/dev/null 2>&1; \
	  fi; \
	  command -v redis-server >/dev/null || echo "no redis-server here: the tests that need one will skip"; \
	}

demo: install
	@$(BIN)/braid demo $(if $(BRAID),--braid $(BRAID))

serve: install
	@$(BIN)/braid demo --build-only
	@$(BIN)/serve run deploy/braid.yaml

test: install
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

test-compose: install
	@docker compose version >/dev/null && docker info >/dev/null || { echo "make test-compose needs docker compose and an engine that answers"; exit 1; }
	@$(BIN)/python -m pytest -m compose tests/e2e/test_compose.py $(PYTEST_ARGS)

lint: install proto-check
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy proto/braid_rpc fusion/braid_fusion services/braid_services orchestrator/braid_orchestrator
	@$(BIN)/lint-imports

format: install
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: install
	@$(BIN)/braid bench step
	@$(BIN)/braid bench prefill
	@$(BIN)/braid bench throughput
	@$(BIN)/braid bench naive
	@$(BIN)/braid bench precision
	@$(BIN)/braid bench graft
	@$(BIN)/braid bench train

proto: install
	@$(BIN)/python -m grpc_tools.protoc --proto_path=proto --python_out=proto --pyi_out=proto --grpc_python_out=proto $(PROTOS)

# The committed stubs are what the .proto files give.
proto-check: install
	@out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && \
	$(BIN)/python -m grpc_tools.protoc --proto_path=proto --python_out="$$out" --pyi_out="$$out" --grpc_python_out="$$out" $(PROTOS) && \
	for file in "$$out"/braid_rpc/v1/*; do \
	  cmp -s "$$file" "proto/braid_rpc/v1/$$(basename $$file)" || { echo "stale: proto/braid_rpc/v1/$$(basename $$file); run make proto"; exit 1; }; \
	done

clean:
	rm -rf $(VENV) .braid build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
