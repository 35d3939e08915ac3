#!/usr/bin/env bash
# Makes .venv with everything that Gradus needs, at the versions of constraints.txt. Used by `make`.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.venv
start=$SECONDS

fail() { echo "gradus install: $1" >&2; exit 1; }

python=""
for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
  if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$candidate; break; fi
done
[ -n "$python" ] || fail "needs Python 3.11 or newer: install it, or name it with PYTHON=/path/to/python3"
"$python" -c 'import ensurepip, venv' 2>/dev/null \
  || fail "$python has no venv module: on Debian run 'apt-get install python3-venv', then try again"

echo "Installing into $venv with $("$python" --version) (once; about two minutes) ..."
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)

torch=$(sed -n 's/^torch==\([0-9.]*\).*/\1/p' constraints.txt)
if ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
  if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then
    "${pip[@]}" "torch==$torch"
  # Without a GPU the CPU build saves gigabytes. pip finds it where it is configured to look; uv knows PyTorch's own
  # place for it.
  elif ! "${pip[@]}" "torch==$torch+cpu" 2>/dev/null; then
    "${pip[@]}" uv
    "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --torch-backend cpu "torch==$torch" \
      || fail "cannot reach the CPU build of torch $torch: check the network, then try again"
  fi
fi
"${pip[@]}" --constraint constraints.txt --editable '.[dev]'
touch "$venv/.installed"
echo "Installed in $((SECONDS - start)) s."
