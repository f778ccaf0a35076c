# Each command sets up what it needs: an environment in .venv, made once and again when the list of
# versions changes. Without make, the README has the same as plain commands.
PYTHON ?= python3
RUN = env -u PYTHONDONTWRITEBYTECODE -u MPLBACKEND .venv/bin/python
# named after the folder, whose path is written into the environment's scripts
READY = .venv/.ready-$(shell pwd | cksum | cut -d' ' -f1)
AS_ROOT = $(shell test "$$(id -u)" != 0 || echo --allow-root)  # as in a container

.PHONY: tutorial test lab app results lint
.DELETE_ON_ERROR:

tutorial: $(READY)  ## execute notebooks 00 to 06, write HTML and records, print the comparison
	$(RUN) -m helpers tutorial

test: $(READY)  ## unit, structure and notebook tests, two at a time; those of a browser alone
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore=tests/e2e
	$(RUN) -m pytest tests/e2e

lab: $(READY)  ## open JupyterLab on the notebooks
	env -u PYTHONDONTWRITEBYTECODE -u MPLBACKEND .venv/bin/jupyter lab $(AS_ROOT) notebooks/00_start_here.ipynb

app: $(READY)  ## serve the explorer as a web page: this machine only, with a token, without code
	env -u PYTHONDONTWRITEBYTECODE -u MPLBACKEND .venv/bin/voila --Voila.config_file_paths=notebooks/app notebooks/06_explorer.ipynb

results: $(READY)  ## the committed outputs, costs and tables, measured anew
	$(RUN) -m helpers tutorial --write

lint: $(READY)
	.venv/bin/ruff check . && .venv/bin/ruff format --check .

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("python %d.%d is not enough: have 3.11 or newer, and say make PYTHON=python3.12" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv --clear .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check uv
	env -u PYTHONDONTWRITEBYTECODE UV_COMPILE_BYTECODE=1 .venv/bin/python -m uv pip install --python .venv/bin/python -r constraints.txt
	env -u PYTHONDONTWRITEBYTECODE .venv/bin/python -m uv pip install --python .venv/bin/python --no-deps -e .
	touch $@
