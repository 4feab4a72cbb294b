#!/usr/bin/env bash
# Sets everything up in .venv and trains the embedded model with CAPO: a few minutes on two cores.
# Further arguments go to launchers/train.py, e.g.
#   launchers/quickstart.sh --set aggregator=mean --set train.output_dir=runs/grpo
set -euo pipefail
cd "$(dirname "$0")/.."
source launchers/environment.sh
# Ctrl-C is the ranks' business, which finish their step and save.
exec python launchers/launch.py "${LAUNCH[@]}" --master_port "$MASTER_PORT" launchers/train.py \
  --config launchers/recipes/quickstart.yaml "$@"
