#!/usr/bin/env bash
# Remakes the tiny model that ships with capo_ds, from nothing: its tokenizer, random weights, and
# a supervised warm-up that stops at 40% greedy accuracy. About ten minutes on two cores.
#   launchers/make_tiny_model.sh [FOLDER]     (default runs/tiny)
# Use it with --set model.path=FOLDER, or copy its files over capo_ds/assets/tiny to ship it.
set -euo pipefail
cd "$(dirname "$0")/.."
folder="${1:-runs/tiny}"
python launchers/tiny_untrained.py runs/tiny-untrained
deepspeed --num_accelerators "${RANKS:-2}" launchers/warmup.py \
  --config launchers/recipes/warmup-arithmetic.yaml --set "warmup.output_dir=$folder"
