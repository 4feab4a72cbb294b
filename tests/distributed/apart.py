"""The rehearsal at ZeRO 3 on some ranks: apart.py FOLDER, run by test_rehearsed.py.

Rank 0 prints, of each sampler and rank, the lengths of the responses, and how many passes their
rows take by themselves.
"""

import json
import sys
from pathlib import Path

from capo_ds import rehearsal
from capo_ds.config import parse_config
from capo_ds.distributed import comm
from capo_ds.distributed.deepspeed_json import read_deepspeed_json
from capo_ds.distributed.engine import CapoEngine
from capo_ds.models import load_shared_policy
from capo_ds.rollout.rollout import Rollout

PROMPTS = [list(range(3, 14)), list(range(20, 26))]


def rehearsed(folder: str, sampler: str) -> dict[str, object]:
    """What this rank has sampled."""
    config = parse_config(
        {
            "model": {"path": "builtin:tiny", "lora_rank": 2},
            "rollout": {"sampler": sampler},
            "train": {"output_dir": folder, "report_to": [], "micro_batch_tokens": 36},
            "deepspeed": str(Path(folder) / "zero3.json"),
        }
    )
    settings = read_deepspeed_json(config.deepspeed)
    policy = load_shared_policy(config.model, config.train.seed, settings)
    engine = CapoEngine(policy, config, 1, Path(folder))
    agreed, found = rehearsal._agreed, {}

    def seen(parts: list[Rollout], lockstep: bool) -> object:
        lengths = [length for part in parts for length in part.lengths.tolist()]
        found.update(lengths=lengths, passes=len(parts))
        return agreed(parts, lockstep)

    rehearsal._agreed = seen
    rehearsal.rehearse(config, engine.module, PROMPTS, rehearsal.passes_of(engine))
    rehearsal._agreed = agreed
    return found


if __name__ == "__main__":
    comm.init()
    told = {name: comm.gather(rehearsed(sys.argv[1], name)) for name in ("hf", "process")}
    if comm.is_main():
        print(json.dumps(told))
    comm.finish()
