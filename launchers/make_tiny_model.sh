#!/usr/bin/env bash
# Remakes the tiny model that ships with capo_ds, from nothing: its tokenizer, random weights, and
# a supervised warm-up that stops at 40% greedy accuracy. About ten minutes on one core.
#   launchers/make_tiny_model.sh [FOLDER [--set KEY=VALUE ...]]     (default runs/tiny)
# Use it with --set model.path=FOLDER, or copy its files over capo_ds/assets/tiny to ship it.
# The shipped weights come from one rank with one thread; more of either round differently, so
# that the warm-up may stop at another step.
set -euo pipefail
cd "$(dirname "$0")/.."
folder="${1:-runs/tiny}"
export OMP_NUM_THREADS=1
python launchers/tiny_untrained.py runs/tiny-untrained
python launchers/warmup.py --config launchers/recipes/warmup-arithmetic.yaml \
  --set "warmup.output_dir=$folder" "${@:2}"
