"""The model card of an adapter: what it belongs to, how it was made, and what it reached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from capo_ds.config import Config
from capo_ds.telemetry.provenance import PACKAGES, version
from capo_ds.telemetry.runs import NAMES, say_radius

LOADING = """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained({base!r})
model = PeftModel.from_pretrained(base, "THIS FOLDER")
```
"""


def model_card(
    config: Config, base: str, steps: int, accuracy: dict[str, float | None], best_step: int
) -> str:
    """README.md of an adapter after `steps` steps, with the front matter that the hub reads.

    base: where the base model is. accuracy: before, latest and best, in [0, 1], as far as known.
    """
    front: dict[str, Any] = {"library_name": "peft", "pipeline_tag": "text-generation"}
    front["tags"] = ["lora", "capo_ds", config.aggregator.partition(":")[0]]
    if not Path(base).exists():  # the hub links to names of its own alone
        front["base_model"] = base
    method = NAMES.get(config.aggregator, config.aggregator)
    if config.aggregator == "capo":
        method += f", {say_radius(config.capo.radius)}, {NAMES[config.capo.region]}"
    rows = {
        "base model": config.model.path,
        "task": config.task.name + (f" ({config.task.path})" if config.task.path else ""),
        "method": method,
        "trained": f"{steps} of {config.train.steps} steps of {config.rollout.prompts_per_step} "
        f"prompts x {config.rollout.group_size} responses, learning rate "
        f"{config.optimizer.learning_rate:g}, seed {config.train.seed}",
        "adapter": f"LoRA, rank {config.model.lora_rank}, alpha {config.model.lora_alpha:g}",
    } | _results(accuracy, best_step)
    versions = ", ".join(f"{name} {version(name)}" for name in ("capo_ds", *PACKAGES))
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    settings = _dump(config.model_dump(mode="json", exclude_defaults=True))
    return (
        f"---\n{_dump(front)}---\n\n"
        f"# LoRA adapter trained by {method.split(',')[0]} with capo_ds\n\n"
        f"| | |\n|---|---|\n{table}\n\n{LOADING.format(base=base)}\n"
        f"## Settings\n\nThose that differ from the defaults:\n\n```yaml\n{settings}```\n\n"
        f"Made with {versions}.\n"
    )


def _dump(value: Any) -> str:
    """By libyaml where it is there: a card is written with every checkpoint."""
    return yaml.dump(value, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper))


def _results(accuracy: dict[str, float | None], best_step: int) -> dict[str, str]:
    told = {
        "test accuracy before": accuracy["before"],
        "test accuracy, latest": accuracy["latest"],
        f"test accuracy, best (step {best_step})": accuracy["best"],
    }
    return {name: f"{value:.1%}" for name, value in told.items() if value is not None}
