#!/usr/bin/env bash
# The paper's experiments on the embedded model: C = 0.1, 0.5 and 1, the norm ball, and GRPO.
#   launchers/experiments.sh                       (40 steps, seeds 0 and 1, into runs/experiments)
#   SEEDS="0 1 2" STEPS=60 launchers/experiments.sh
# Ten runs of a few minutes each on two cores. Finished ones are kept, interrupted ones go on.
# The commands beside the figures in README.md draw them.
set -euo pipefail
cd "$(dirname "$0")/.."
source launchers/environment.sh

train() { # NAME KEY=VALUE...: the run runs/experiments/NAME-seedN, unless it is finished
  local folder="runs/experiments/$1-seed$seed" settings=()
  [ ! -e "$folder/adapter" ] || return 0
  for setting in "${@:2}" "train.seed=$seed" "train.steps=${STEPS:-40}"; do
    settings+=(--set "$setting")
  done
  (
    trap '' INT # the ranks finish their step and save
    exec deepspeed --quiet --num_accelerators "$RANKS" --master_port "$MASTER_PORT" \
      launchers/train.py --config launchers/recipes/quickstart.yaml \
      --set "train.output_dir=$folder" "${settings[@]}"
  )
}

for seed in ${SEEDS:-0 1}; do
  train capo-C0.5 capo.radius=0.5
  train grpo aggregator=mean
  train capo-C0.1 capo.radius=0.1
  train capo-C1 capo.radius=1.0
  train norm-ball capo.region=norm
done
