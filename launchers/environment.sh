# Sourced by quickstart.sh and tests/run.sh: makes .venv on first use (and again when setup.py
# changes), activates it, and sets RANKS to the number of GPUs, or to 2 where there are none.
stamp=".venv/installed-$(cksum < setup.py | cut -d' ' -f1)"
if [ ! -e "$stamp" ]; then
  echo "making .venv (a few minutes, once)"
  "${PYTHON:-python3}" -m venv .venv
  # torch first: a wheel already there keeps the other packages from asking for another build.
  .venv/bin/pip install --quiet --disable-pip-version-check "$(.venv/bin/python - <<'EOF'
import re
print(re.search(r"torch==[0-9.]+", open("setup.py").read()).group())
EOF
)"
  .venv/bin/pip install --quiet --disable-pip-version-check --editable '.[dev]'
  touch "$stamp"
fi
source .venv/bin/activate
if nvidia-smi --list-gpus > /dev/null 2>&1; then
  RANKS="${RANKS:-$(nvidia-smi --list-gpus | wc -l)}"
else
  RANKS="${RANKS:-2}"
  export DS_ACCELERATOR=cpu # or DeepSpeed looks for others first, with a warning per rank
fi
