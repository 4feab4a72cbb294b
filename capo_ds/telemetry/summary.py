"""What the user reads before and after a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

from peft import LoraConfig, PeftModel

from capo_ds.config import Config
from capo_ds.memory import MemoryPlan
from capo_ds.quantization import base_precision, entries
from capo_ds.telemetry.metrics import METRICS_FILE, read_metrics
from capo_ds.telemetry.plots import reward_curve
from capo_ds.terminal import columns, wrapped

OFF_POLICY = (
    "; top_p, top_k or min_p: off-policy, responses are not drawn from the policy that the "
    "objective differentiates"
)


def startup_summary(
    config: Config, policy: PeftModel, plan: MemoryPlan, store: str, facts: dict[str, Any]
) -> str:
    """Model, ranks, data, every choice of the objective, and the estimated memory."""
    trainable = sum(entries(p) for p in policy.parameters() if p.requires_grad)
    total = sum(map(entries, policy.parameters()))
    rollout, objective = config.rollout, config.objective
    samples = rollout.prompts_per_step * rollout.group_size
    rows = {
        "model": f"{config.model.path} (weights in {base_precision(policy)}, computing in "
        f"{config.model.dtype}), {(total - trainable) / 1e6:.2f} M "
        f"frozen + {trainable / 1e6:.2f} M LoRA parameters "
        f"({_adapter(config, policy)})",
        **facts,
        "rollout": f"{rollout.prompts_per_step} prompts x {rollout.group_size} responses = "
        f"{samples} samples a step, up to {rollout.max_new_tokens} tokens, "
        f"temperature {rollout.temperature:g}, sampler {rollout.sampler}"
        + (f" {rollout.ahead} steps ahead" if rollout.ahead else "")
        + ", importance correction "
        f"{config.importance_correction}" + (OFF_POLICY if rollout.truncates else ""),
        "aggregator": _aggregator_row(config),
        "gradients": _gradients_row(config, store),
        "objective": _values(objective.model_copy(update={"ratio_to": config.ratio_to})),
        "optimizer": _values(config.optimizer),
        "memory per rank": f"about {plan.told(store)}",
        "output": config.train.output_dir,
    }
    width = max(map(len, rows))
    lines = (f"{name:>{width}}  {value}" for name, value in rows.items())
    told = "\n".join(line.replace("\n", "\n" + " " * width) for line in lines)
    return wrapped(told, columns(sys.stdout), indent=width + 2)


def _aggregator_row(config: Config) -> str:
    """Its name and options, and what it is given where that is not the plain gradients."""
    told = config.aggregator
    if config.aggregator in Config.aggregators_with_sections():
        told += f" {_values(getattr(config, config.aggregator))}"
    if config.aggregator_options:
        told += (
            f" {', '.join(f'{key} {value}' for key, value in config.aggregator_options.items())}"
        )
    plain = type(config.program)().model_dump()
    chosen = {k: v for k, v in config.program.model_dump().items() if v != plain[k]}
    return told + "".join(f"; program.{key} {value}" for key, value in chosen.items())


def signal_hint(metrics: list[dict[str, float]]) -> str | None:
    """What to do about a run in which most steps had nothing to learn from; None for others."""
    steps = [line for line in metrics if "reward/zero_advantage" in line]
    silent = [line for line in steps if line["reward/zero_advantage"] >= 1]
    if len(silent) <= len(steps) / 2:
        return None
    right = sum(line["reward/accuracy"] for line in silent) / len(silent)
    told = f"hint: in {len(silent)} of {len(steps)} steps all responses of every group were paid "
    told += f"alike ({right:.0%} of them right), so that there was nothing to learn from. "
    if right > 0.5:
        return told + "Choose harder problems (task.levels, another data set)."
    return told + (
        "Warm the model up on worked solutions first (launchers/warmup.py), or choose easier "
        "problems or a larger rollout.group_size; samples.jsonl shows what it answers."
    )


def final_table(before: float | None, after: float | None, seconds: dict[str, float]) -> str:
    """Greedy test accuracy before and after, and where the time went (seconds by phase)."""
    lines = []
    if before is not None and after is not None:
        gain = 100 * (after - before)
        lines += [
            f"test accuracy before  {before:7.1%}",
            f"test accuracy after   {after:7.1%}  ({gain:+.1f} points)",
        ]
    total = sum(seconds.values()) or 1.0
    lines.append(f"{'time, whole run':<20}  {total:7.1f} s")
    lines += [
        f"{phase.removeprefix('time/'):<20}  {spent:7.1f} s  {spent / total:4.0%}"
        for phase, spent in sorted(seconds.items(), key=lambda item: -item[1])
    ]
    return "\n".join(lines)


def closing_words(folder: Path, accuracy: dict[str, float | None]) -> None:
    """Print and draw the summary of a run that is over."""
    seconds: dict[str, float] = {}
    metrics = read_metrics(folder)
    for line in metrics:
        for name, value in line.items():
            if name.startswith("time/"):
                seconds[name] = seconds.get(name, 0.0) + value
    print(final_table(accuracy["before"], accuracy["latest"], seconds))
    print(f"adapter      {folder / 'adapter'}")
    beside = " and TensorBoard beside it" if (folder / "tensorboard").is_dir() else ""
    print(f"metrics      {folder / METRICS_FILE}{beside}")
    print(f"reward curve {reward_curve(folder)}", flush=True)
    tell_hint(metrics)


def tell_hint(metrics: list[dict[str, float]]) -> None:
    """Print `signal_hint`, if there is one."""
    if hint := signal_hint(metrics):
        print(wrapped(hint, columns(sys.stdout)), flush=True)


def progress_line(metrics: dict[str, float], accuracy: float | None) -> str:
    """Of the progress bar: reward, accuracies, and the share of samples in conflict with g_0."""
    parts = [f"reward {metrics['reward/mean']:+.2f}", f"train {metrics['reward/accuracy']:.0%}"]
    if accuracy is not None:
        parts.append(f"test {accuracy:.0%}")
    if "conflict/all_before" in metrics:
        parts.append(f"conflict {metrics['conflict/all_before']:.0%}")
    if "conflict/heldout_all_after" in metrics:
        parts.append(f"unseen {metrics['conflict/heldout_all_after']:.0%}")
    return ", ".join(parts)


def _gradients_row(config: Config, store: str) -> str:
    if not config.uses_per_sample_gradients:
        return "one plain backward pass, no conflict measured"
    sketch = config.gradients.sketch
    exact = "exact Gram matrix" if sketch == "none" else f"sketches: {sketch}"
    dim = "" if sketch == "none" else f" of length {config.gradients.sketch_dim}"
    kept = "" if store == "recompute" else f" in {config.gradients.dtype}"
    return f"{exact}{dim}, store {store}{kept}"


def _values(section: Any) -> str:
    return ", ".join(f"{name} {value}" for name, value in section.model_dump().items())


def _adapter(config: Config, policy: PeftModel) -> str:
    """The adapter as it is: its own settings, if the run goes on from one."""
    lora = cast(LoraConfig, policy.peft_config["default"])
    targets = config.model.lora_targets
    if config.model.adapter:
        return f"rank {lora.r}, alpha {lora.lora_alpha:g}, from {config.model.adapter}"
    named = targets if isinstance(targets, str) else " ".join(targets)
    return f"rank {lora.r}, alpha {lora.lora_alpha:g}, {named}"
