#!/usr/bin/env bash
# Trains under MPI (OpenMPI or MPICH) on the machines of a hostfile, one process per slot:
#   launchers/cluster/mpi.sh HOSTFILE RANKS CONFIG.yaml [--set KEY=VALUE ...]
# A run that loses a rank or a machine is started again, up to RESTARTS times (0): say train.resume=auto.
# The first machine of the hostfile is where rank 0 runs; capo_ds finds it through mpi4py
# (pip install -e '.[mpi]'). Every machine needs this folder and .venv under the same path.
set -euo pipefail
cd "$(dirname "$0")/../.."
source .venv/bin/activate
hostfile="$1" ranks="$2" config="$3"
shift 3
# Each process sets up its own environment: mpirun hands none of it to other machines.
exec python launchers/launch.py --restarts "${RESTARTS:-0}" mpirun -np "$ranks" --hostfile "$hostfile" bash -c \
  'source .venv/bin/activate; source launchers/cluster/a800.env; exec python launchers/train.py "$@"' \
  train --config "$config" "$@"
