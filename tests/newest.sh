#!/usr/bin/env bash
# The unit tests with the newest versions that the ranges of setup.py allow, in .venv-newest. Pinned
# are the heavy packages alone, whose ranges are as wide as what has been tried.
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf .venv-newest
"${PYTHON:-python3}" -m venv .venv-newest
grep -E "^(torch|deepspeed|transformers|peft|accelerate)==" launchers/constraints.txt > .venv-newest/heavy.txt
install=(.venv-newest/bin/pip install --quiet --disable-pip-version-check -c .venv-newest/heavy.txt)
"${install[@]}" torch # first, as in launchers/environment.sh
"${install[@]}" --upgrade --upgrade-strategy eager --editable ".[dev]"
source .venv-newest/bin/activate
for package in numpy scipy pydantic pyyaml datasets safetensors matplotlib tensorboard tqdm psutil cvxpy; do
  echo "$package $(python -c "import sys; from importlib.metadata import version; print(version(sys.argv[1]))" "$package")"
done
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" DS_ACCELERATOR="${DS_ACCELERATOR:-cpu}"
exec python -m pytest -c tests/pytest.ini --rootdir . \
  -n "${WORKERS:-2}" --dist loadfile tests/unit -m "not slow" "$@"
