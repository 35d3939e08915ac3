# `make demo` and `make test` are all a newcomer needs: each installs what is missing and does its job.
.PHONY: demo test check format
.DEFAULT_GOAL := demo

.venv/.installed: pyproject.toml constraints.txt scripts/install.sh
	@scripts/install.sh

demo: .venv/.installed
	@.venv/bin/gradus demo

test: .venv/.installed
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/pytest -n auto --maxprocesses 4 --dist loadfile

check: test

format: .venv/.installed
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .
