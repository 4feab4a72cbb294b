"""Whole steps of GRPO against TRL's GRPOTrainer: CPU seconds in turns, and both gradients compared.

    python -m venv trl-env
    trl-env/bin/pip install trl==1.16.0 peft torch==VERSION transformers==VERSION   # as here
    OMP_NUM_THREADS=1 python benchmarks/peer_trl.py --trl trl-env/bin/python

Same base model, adapter, prompts (the quickstart's, in the same order), temperature, KL term,
clipping, AdamW and number of threads; each trainer samples its own responses, as it does it, scores
them, and takes an optimizer step. A step is from the end of the last to its own, with the log.
The trainers are processes of their own and take turns; medians of CPU seconds, and the responses'
mean length in tokens.

Two lengths: `natural`, where the model ends its responses, and `equal`, where its row of the output
layer for the end of text is 0, so that nearly all reach the limit. Before that, on responses that
capo_ds has sampled, the gradient that it hands to its engine and that of TRL's loss: as TRL makes
it; with `position_ids` that begin at each row's first token, as capo_ds has them, where TRL's
padded rows begin later, which rounds their rotary angles otherwise; and in float64, from which both
are measured. Alone with --gradients.
Writes benchmarks/results/peer_trl.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from meter import Meter, Turns, keep
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from capo_ds import Callback, Event, load_config
from capo_ds.config.reading import BUILTIN_MODELS
from capo_ds.distributed import comm
from capo_ds.trainer import Trainer

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "peer_trl.json"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
MEAN = {"aggregator": "mean", "measure_conflict": False}
OURS = {"`mean`": MEAN, "CAPO, exact": {"aggregator": "capo"}}
TRL = "TRL"
# Of our gradient from TRL's; from TRL's where its padding counts no positions; of either from
# TRL's in float64, rotary angles and norms included.
DIFFERENCES = (("ours", "TRL"), ("ours", "positions"), ("ours", "float64"), ("TRL", "float64"))
MOVED = 0.005  # noise on the adapter's B, which starts at 0: the KL term has a gradient then


def make_model(folder: Path, lengths: str) -> Path:
    """The embedded model; `equal`: one that hardly ever ends a response."""
    model = folder / "model"
    shutil.copytree(BUILTIN_MODELS["builtin:tiny"], model)
    if lengths == "equal":
        weights = load_file(model / "model.safetensors")
        config = json.loads((model / "config.json").read_text())
        weights[HEAD] = weights[EMBEDDING].clone()
        weights[HEAD][config["eos_token_id"]] = 0.0
        save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
        untied = config | {"tie_word_embeddings": False}
        (model / "config.json").write_text(json.dumps(untied))
    return model


def make_adapter(folder: Path, model: Path, args: argparse.Namespace) -> None:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    lora = LoraConfig(
        r=args.rank, lora_alpha=2 * args.rank, target_modules=targets, task_type="CAUSAL_LM"
    )
    policy = get_peft_model(AutoModelForCausalLM.from_pretrained(model), lora)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=MOVED)
    policy.save_pretrained(str(folder / "adapter"))


def our_config(folder: Path, variant: dict[str, Any], name: str) -> Any:
    settings = json.loads((folder / "settings.json").read_text())
    changes = {
        "model.path": settings["model"],
        "model.adapter": folder / "adapter",
        "rollout.prompts_per_step": settings["prompts_per_step"],
        "rollout.max_new_tokens": settings["max_new_tokens"],
        "objective.kl_weight": settings["kl_weight"],
        "optimizer.learning_rate": settings["learning_rate"],
        "program.norms": "none",
        "train.steps": settings["steps"],
        "train.eval_every": 0,
        "train.save_every": 0,
        "train.log_samples_every": 0,
        "train.output_dir": folder / name,
    } | variant
    given = [f"{key}={json.dumps(value, default=str)}" for key, value in changes.items()]
    return load_config("builtin:quickstart", given)


class Steps(Callback):
    def __init__(self, meter: Meter):
        self.meter = meter

    def on_step_end(self, event: Event) -> None:
        self.meter.step(event.metrics["rollout/length"])


def our_steps(folder: Path, name: str) -> None:
    """In a process of its own."""
    meter = Meter()
    Trainer(our_config(folder, OURS[name], f"run{list(OURS).index(name)}"), [Steps(meter)]).run()


def our_gradient(folder: Path) -> None:
    """In a process of its own: problems.jsonl of all steps, and responses to the prompts of the
    first, with advantages of both signs and the g_0 that the engine gets of them."""
    trainer = Trainer(our_config(folder, MEAN, "gradient"))
    deals = [trainer.deal.prompts(step) for step in range(trainer.config.train.steps)]
    rows = [{"prompt": p.prompt, "answer": p.answer} for problems in deals for p in problems]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, rollout = trainer.responses.of(0)
    advantages = torch.randn(len(rollout), generator=torch.Generator().manual_seed(2))
    batch = trainer.learner.prepare(rollout, advantages, trainer.deal.responses())
    applied: list[Tensor] = []

    def kept(gradient: list[Tensor]) -> float:
        applied.extend(gradient)
        return 0.0

    with patch.object(trainer.engine, "apply", kept):
        trainer.learner.update(batch, number=0)
    fields = {name: value for name, value in vars(rollout).items()} | {"advantages": advantages}
    torch.save(fields, folder / "responses.pt")
    torch.save(dict(zip(trainer.engine.names, applied, strict=True)), folder / "our_gradient.pt")


def differences(folder: Path) -> dict[str, float]:
    """Relative ones between the gradients, see `DIFFERENCES`; TRL's are of what it minimises."""
    ours = torch.load(folder / "our_gradient.pt")
    found = {"ours": torch.cat([ours[name].flatten() for name in ours]).double()}
    for kind, theirs in torch.load(folder / "trl_gradients.pt").items():
        assert ours.keys() == theirs.keys()
        found[kind] = -torch.cat([theirs[name].flatten() for name in ours]).double()
    return {
        f"{one}, {other}": float((found[one] - found[other]).norm() / found[other].norm())
        for one, other in DIFFERENCES
    }


def measure(lengths: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    model = make_model(folder, lengths)
    settings = {
        "model": str(model),
        "prompts_per_step": args.prompts,
        "group_size": 8,
        "max_new_tokens": 40,
        "kl_weight": 0.001,
        "learning_rate": 1e-6,  # of both: their policies stay what they are, and so do the lengths
        "steps": args.repeats + 3,
        "trl_rows": args.trl_rows,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    make_adapter(folder, model, args)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    here = [sys.executable, __file__, "--folder", str(folder), "--child"]
    there = [args.trl, str(HERE / "peer_trl_steps.py"), str(folder)]
    for command in ([*here, "gradient"], [*there, "gradient"]):
        with (folder / "gradient.log").open("w") as log:
            done = subprocess.run(command, env=environment, stdout=log, stderr=log)
        if done.returncode:
            raise RuntimeError((folder / "gradient.log").read_text()[-3000:])
    errors = differences(folder)
    if args.gradients:
        return {"errors": errors}
    commands = {TRL: [*there, "steps"]} | {name: [*here, name] for name in OURS}
    trainers = [
        Turns.start(name, command, folder / f"steps{number}.log", environment)
        for number, (name, command) in enumerate(commands.items())
    ]
    told: dict[str, list[dict[str, float]]] = {one.name: [] for one in trainers}
    for _ in range(args.repeats + 1):
        for one in trainers:
            told[one.name].append(one.turn())
    for one in trainers:
        one.end()
    rows = {
        name: {key: statistics.median(step[key] for step in steps[1:]) for key in steps[0]}
        for name, steps in told.items()
    }
    return {"errors": errors, "rows": rows}


def table(lengths: str, found: dict[str, Any]) -> str:
    lines = [
        f"gradients, {lengths} lengths, differ: {pair} by {error:.1e}"
        for pair, error in found["errors"].items()
    ]
    if "rows" not in found:
        return "\n".join(lines)
    rows, base = found["rows"], found["rows"][TRL]["seconds"]
    lines += [
        f"| a step, {lengths} lengths | CPU s | over TRL | tokens a response |",
        "|---|---|---|---|",
    ]
    for name, row in rows.items():
        ratio = row["seconds"] / base
        lines.append(f"| {name} | {row['seconds']:.2f} | {ratio:.2f} | {row['length']:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trl", help="python of the environment that has TRL")
    parser.add_argument("--lengths", nargs="+", default=["natural", "equal"])
    parser.add_argument("--prompts", type=int, default=32, help="of 8 responses each")
    parser.add_argument("--rank", type=int, default=32, help="of the LoRA factors")
    parser.add_argument("--trl-rows", type=int, default=32, help="TRL's rows a pass")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--gradients", action="store_true", help="compare the gradients alone")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        comm.init()
        if args.child == "gradient":
            our_gradient(args.folder)
        else:
            our_steps(args.folder, args.child)
        comm.finish()
        return
    if not args.trl:
        parser.error("--trl: the python that has TRL; above is how to make its environment")
    found = {}
    for lengths in args.lengths:
        with tempfile.TemporaryDirectory() as folder:
            found[lengths] = measure(lengths, args, Path(folder))
        print(table(lengths, found[lengths]), flush=True)
    if args.gradients:
        return
    options = {"prompts": args.prompts, "rank": args.rank, "trl_rows": args.trl_rows}
    keep({lengths: options | one for lengths, one in found.items()}, RESULTS)


if __name__ == "__main__":
    main()
