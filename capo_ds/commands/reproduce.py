"""The paper's Table 1: train with GRPO and CAPO, evaluate, print both.

    python launchers/reproduce.py                                    # both models: a node with GPUs
    python launchers/reproduce.py --recipes qwen2.5-1.5b-gsm8k --radii 0.1 0.5 1.0
    python launchers/reproduce.py --smoke                            # minutes, embedded model, CPU
    python launchers/reproduce.py --smoke --recipes qwen2.5-1.5b-gsm8k --set model.path=FOLDER

What has been run already is used again, and a training that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from capo_ds.config import RECIPES
from capo_ds.distributed.launch import free_port

# Accuracy in % (paper, Table 1) on the recipe's benchmarks in their order: test, AMC 23, AIME 24.
PAPER = {
    "qwen2.5-1.5b-gsm8k": {"GRPO": (72.33, 15.00, 0.00), "CAPO": (72.86, 20.00, 0.00)},
    "qwen2.5-3b-math": {"GRPO": (62.52, 40.00, 0.00), "CAPO": (62.80, 42.50, 3.33)},
}
# Small enough for minutes; any key can be set otherwise with --set.
SMOKE = (
    "train.steps=4",
    "train.micro_batch_size=8",
    "rollout.prompts_per_step=8",
    "rollout.group_size=4",
    "rollout.max_new_tokens=40",
    "evaluation.limit=32",
)


def methods(radii: list[float]) -> dict[str, list[str]]:
    """Settings that make a method, by its name in the table."""
    capo = {
        f"CAPO, C = {radius:g}": ["aggregator=capo", f"capo.radius={radius}"] for radius in radii
    }
    return {"GRPO": ["aggregator=mean", "measure_conflict=false"], **capo}


def run(command_name: str, recipe: Path, settings: list[str], args: argparse.Namespace) -> None:
    """A command on all ranks; an error there ends this program too."""
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet"]
    command += ["--master_port", str(args.master_port or free_port())]
    # A number of ranks makes DeepSpeed drop CUDA_VISIBLE_DEVICES.
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(visible.split(",")[: args.ranks])
    else:
        command += ["--num_accelerators", str(args.ranks)]
    command += ["--module", f"capo_ds.commands.{command_name}", "--config", str(recipe)]
    settings = [*(SMOKE if args.smoke else ()), *args.set, *settings]
    command += [part for setting in settings for part in ("--set", setting)]
    subprocess.run(command, check=True)


def measure(
    recipe: Path, method: str, settings: list[str] | None, args: argparse.Namespace
) -> dict:
    """The evaluation of one method's model; trained first, unless it is the model as it was."""
    name = method.lower().replace(", c = ", "-")
    folder = Path(args.output) / recipe.stem / name
    results, made_with = folder / "evaluation" / "results.json", folder / "settings.json"
    given = [str(args.smoke), *args.set, *(settings or ())]
    if made_with.exists() and json.loads(made_with.read_text()) != given:
        sys.exit(f"{folder} was made with other settings ({made_with}); choose another --output")
    folder.mkdir(parents=True, exist_ok=True)
    made_with.write_text(json.dumps(given))
    if not results.exists():
        chosen = [f"evaluation.output_dir={results.parent}"]
        if settings is not None:
            training = [*settings, f"train.output_dir={folder}", "train.resume=auto"]
            run("train", recipe, training, args)
            if not (folder / "adapter").exists():
                sys.exit(f"the training in {folder} was interrupted; start again to go on with it")
            chosen.append(f"evaluation.adapter={folder / 'adapter'}")
        run("evaluate", recipe, chosen, args)
    return json.loads(results.read_text())


def table(measured: dict[str, dict[str, dict]]) -> str:
    """Measured accuracy in %, with its standard error, and the paper's, by recipe and method."""
    lines = []
    for recipe, by_method in measured.items():
        titles = [line["benchmark"] for line in next(iter(by_method.values()))["benchmarks"]]
        cells = [f"{title} | (paper)" for title in titles]
        lines += [f"| {recipe} | " + " | ".join(cells) + " |", "|---" * (2 * len(titles) + 1) + "|"]
        for method, results in by_method.items():
            told = PAPER.get(recipe, {}).get(method.split(",")[0])
            cells = [
                f"{100 * line['accuracy']:.2f} ± {100 * line['standard_error']:.2f} | "
                + (f"{told[column]:.2f}" if told else "-")
                for column, line in enumerate(results["benchmarks"])
            ]
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--recipes",
        nargs="+",
        metavar="NAME",
        help="recipes by name or file (default: the paper's)",
    )
    add("--radii", type=float, nargs="+", default=[0.5], metavar="C", help="of CAPO (default: 0.5)")
    add(
        "--smoke", action="store_true", help="few steps and problems; without --recipes: smoke.yaml"
    )
    add("--ranks", type=int, help="default: GPUs, or else 2")
    add("--master_port", type=int, help="default: one that is free")
    add("--output", default="", help="folder (default: runs/reproduce, with --smoke runs/smoke)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="for every run")
    args = parser.parse_args(arguments)
    args.ranks = args.ranks or _gpus() or 2
    args.output = args.output or ("runs/smoke" if args.smoke else "runs/reproduce")
    args.recipes = args.recipes or (["smoke"] if args.smoke else list(PAPER))
    return args


def _gpus() -> int:
    import torch  # seconds, for which --help need not wait

    return torch.cuda.device_count()


def main() -> None:
    args = parse()
    measured: dict[str, dict[str, dict]] = {}
    for name in args.recipes:
        recipe = Path(name) if name.endswith(".yaml") else RECIPES / f"{name}.yaml"
        measured[recipe.stem] = {"before": measure(recipe, "before", None, args)}
        for method, settings in methods(args.radii).items():
            measured[recipe.stem][method] = measure(recipe, method, settings, args)
    print(table(measured))
    if args.smoke:
        print("A smoke test: too few steps and problems for the numbers to mean anything.")
    path = Path(args.output) / "table.json"
    path.write_text(json.dumps(measured, indent=2) + "\n")
    print(path)


if __name__ == "__main__":
    main()
