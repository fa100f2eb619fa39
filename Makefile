# Two commands do everything on a machine with Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test lint lock

# The story from README.md on two sandbox EHRs; `make demo ONCE=1` ends when it is told, `make demo DATA=file.ndjson.gz` takes real records.
demo: $(VENV)/.run
	$(BIN)/fhircm demo $(if $(ONCE),--once) $(if $(DATA),--data "$(DATA)")

# The whole suite, on SQLite and on a PostgreSQL that comes from pip. It starts hundreds of processes: what Python compiles is kept for
# the next one, even where the environment says otherwise.
test: export PYTHONDONTWRITEBYTECODE =
test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pytest $(PYTEST_ARGS)

lock: $(VENV)/.dev
	PATH="$(BIN):$$PATH" scripts/lock

$(VENV)/.run: requirements.lock requirements-build.lock pyproject.toml
	scripts/install "$(PYTHON)" "$(VENV)" requirements.lock
	touch $@

$(VENV)/.dev: requirements-dev.lock requirements-build.lock pyproject.toml
	scripts/install "$(PYTHON)" "$(VENV)" requirements-dev.lock
	touch $@ $(VENV)/.run
