#!/usr/bin/env bash
# Sets everything up in .venv, checks style and runs the tests. Arguments go to pytest; without
# any, the fast tests run (-m slow runs the others).
set -euo pipefail
cd "$(dirname "$0")/.."
source launchers/environment.sh
ruff check
ruff format --check
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # the ranks that tests launch share the cores
if [ $# -eq 0 ]; then set -- -m "not slow"; fi
exec python -m pytest -c tests/pytest.ini --rootdir . tests "$@"
