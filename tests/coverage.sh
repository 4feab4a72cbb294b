#!/usr/bin/env bash
# The share of capo_ds's lines that the fast tests run, ranks and other child processes counted.
# Arguments go to pytest, e.g. tests/coverage.sh tests/unit.
set -euo pipefail
cd "$(dirname "$0")/.."
source launchers/environment.sh
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
python -m coverage erase
if [ $# -eq 0 ]; then set -- tests; fi
python -m coverage run -m pytest -q -c tests/pytest.ini --rootdir . \
  -n "${WORKERS:-2}" --dist loadfile --no-loadscope-reorder -m "not slow" "$@"
python -m coverage combine --quiet
python -m coverage report
