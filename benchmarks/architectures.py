"""Every architecture that transformers has and a tiny random model can be made of, rehearsed.

python benchmarks/architectures.py                 # all, as a table in Markdown
python benchmarks/architectures.py qwen3_next phi3 # some

Each is built with random weights, saved, loaded as a run loads it (LoRA on all linear layers of
its language model), and rehearsed as every run rehearses (capo_ds/rehearsal.py), in float32: once
plain, once with gradient checkpointing. The columns are the largest differences found; log-
probabilities in nats, gradients relative. Then its adapter is saved, read again, and compared.
One or more of each kind make an update on two ranks, at ZeRO 2 and 3 (one_update.py): the larger
relative error of CAPO's g~, against one rank's autograd in float64.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from tiny_models import MODELS, PROMPTS, Tiny, build, settings
from transformers.utils import logging as transformers_logging

from capo_ds.config import Config, ConfigError
from capo_ds.distributed import comm
from capo_ds.models import load_policy
from capo_ds.rehearsal import Findings, rehearse

ON_TWO_RANKS = ("llama", "gemma2", "gpt_neox", "qwen3_moe", "gpt_oss", "deepseek_v3")
ON_TWO_RANKS += ("qwen3_5_text", "falcon_h1", "mamba2", "rwkv", "zamba2", "gemma3")
TIMEOUT = 600  # seconds for two ranks


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="MODEL_TYPE", help="default: all")
    parser.add_argument("--trace", action="store_true", help="print tracebacks of what fails")
    args = parser.parse_args()
    comm.init()
    _hush()
    rows = []
    for name in args.names or MODELS:
        rows.append(_row(name, MODELS[name], args.trace))
        print(f"{name}: {rows[-1][2:]}", file=sys.stderr, flush=True)
    if comm.is_main():
        print(_table(rows))
    comm.finish()


def _row(name: str, tiny: Tiny, trace: bool) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            build(name, Path(folder))
        except Exception as error:
            if trace:
                traceback.print_exc()
            return [name, tiny.kind, f"not built: {type(error).__name__}: {str(error)[:90]}"]
        try:
            return [name, tiny.kind, *_check(folder), _on_two_ranks(name, folder)]
        except Exception as error:
            if trace:
                traceback.print_exc()
            return [
                name,
                tiny.kind,
                f"refused: {error}" if isinstance(error, ConfigError) else f"CRASH {error!r}",
            ]


def _check(folder: str) -> list[str]:
    targets = "all-linear"
    config = settings(folder, lora_targets=targets)
    policy = load_policy(config.model, seed=0)
    found = rehearse(config, policy, PROMPTS)
    checkpointed = settings(folder, lora_targets=targets, gradient_checkpointing=True)
    found_again = rehearse(checkpointed, load_policy(checkpointed.model, seed=0), PROMPTS)
    return [*_cells(found), f"{found_again.gradient:.0e}", _saved_and_read(config, policy)]


def _cells(found: Findings) -> list[str]:
    values = found.repeated, found.alone, found.sampler, found.gradient
    return [f"{value:.0e}" if value else "0" for value in values]


def _on_two_ranks(name: str, folder: str) -> str:
    if name not in ON_TWO_RANKS:
        return ""
    script = Path(__file__).with_name("one_update.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [script, folder]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    if ran.returncode:
        raise RuntimeError(f"two ranks: {ran.stderr[-4000:]}")
    errors = json.loads(ran.stdout.splitlines()[-1])
    return f"{max(errors.values()):.0e}"


def _saved_and_read(config: Config, policy: PeftModel) -> str:
    generator = torch.Generator().manual_seed(1)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(generator=generator)
    with tempfile.TemporaryDirectory() as folder:
        policy.save_pretrained(folder)
        changed = config.model.model_copy(update={"adapter": folder})
        read = get_peft_model_state_dict(load_policy(changed, seed=1))
    kept = get_peft_model_state_dict(policy)
    same = kept.keys() == read.keys() and all(torch.equal(kept[name], read[name]) for name in kept)
    return "same" if same else "differs"


def _table(rows: list[list[str]]) -> str:
    heads = ["model type", "kind", "two passes", "alone / in a batch", "sampler / trainer"]
    heads += ["per-sample gradient", "with checkpointing", "adapter saved, read"]
    heads += ["two ranks, ZeRO 2 and 3"]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _hush() -> None:
    warnings.simplefilter("ignore")
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.disable(logging.WARNING)


if __name__ == "__main__":
    main()
