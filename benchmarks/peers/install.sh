#!/usr/bin/env bash
# Makes an environment for each peer, at the versions of pins/: install.sh ENVS_FOLDER [NAME...]
# Environments that are complete stay as they are. The arms of aiohttp and AsyncOpenAI run in the project's own.
set -euo pipefail
pins=$(cd "$(dirname "$0")" && pwd)/pins
folder=${1:?"usage: install.sh ENVS_FOLDER [NAME...], NAME one of: $(cd "$pins" && echo *.txt | sed 's/\.txt//g')"}
shift
[ $# -gt 0 ] || set -- curator distilabel data_designer

for name in "$@"; do
  env=$folder/$name
  cmp -s "$pins/$name.txt" "$env/.installed" && continue
  start=$SECONDS
  "${PYTHON:-python3}" -m venv --clear "$env"
  # The pins are complete. Resolving them again would fail where a peer asks for a release that no index serves yet.
  "$env/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --requirement "$pins/$name.txt"
  cp "$pins/$name.txt" "$env/.installed"
  echo "$name: installed in $((SECONDS - start)) s"
done
