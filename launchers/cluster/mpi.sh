#!/usr/bin/env bash
# Trains under MPI (OpenMPI or MPICH) on the machines of a hostfile, one process per slot:
#   launchers/cluster/mpi.sh HOSTFILE RANKS CONFIG.yaml [--set KEY=VALUE ...]
# The first machine of the hostfile is where rank 0 runs; capo_ds finds it through mpi4py
# (pip install -e '.[mpi]'). Every machine needs this folder and .venv under the same path.
set -euo pipefail
cd "$(dirname "$0")/../.."
source .venv/bin/activate
source launchers/cluster/a800.env
hostfile="$1" ranks="$2" config="$3"
shift 3
exec mpirun -np "$ranks" --hostfile "$hostfile" python launchers/train.py --config "$config" "$@"
