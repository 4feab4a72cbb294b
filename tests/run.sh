#!/usr/bin/env bash
# Sets everything up in .venv, checks style and runs the tests, two files at a time (WORKERS says
# how many: tests start up to four ranks). Arguments go to pytest; without any, types are checked
# too, and the fast tests run, on the CPU, before them those for a GPU where there is one (-m slow
# runs the others).
set -euo pipefail
cd "$(dirname "$0")/.."
source launchers/environment.sh
ruff check
ruff format --check
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # the ranks that tests launch share the cores
if [ $# -eq 0 ]; then
  pyright # a minute: with the whole suite only
  if nvidia-smi --list-gpus > /dev/null 2>&1; then # by themselves: the others run on the CPU
    python -m pytest -q -c tests/pytest.ini --rootdir . -m gpu tests/unit
  fi
  set -- -m "not slow"
fi
# By file, whose tests share what their fixtures have run, and in their order: the longest are first.
exec python -m pytest -c tests/pytest.ini --rootdir . \
  -n "${WORKERS:-2}" --dist loadfile --no-loadscope-reorder tests "$@"
