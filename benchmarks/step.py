"""The cost of per-sample gradients and of a whole CAPO update, against plain GRPO's.

    OMP_NUM_THREADS=1 python benchmarks/step.py [--sizes small medium] [--repeats 5]

On one rank, with random weights and random responses. Three tables, each as ratios within one run
(medians of CPU seconds on CPU, of wall seconds on a GPU, the variants taking turns):

- the backward pass of one micro-batch: ordinary; per-sample gradients; one backward per sample;
  torch.func.vmap(grad); Opacus (if it is installed: pip install --no-deps opacus opt_einsum);
- a whole update, from scored responses to the optimizer step: GRPO on a plain DeepSpeed engine
  against `Learner.update` with `mean`, with the exact Gram matrix, each sketch and each store;
- where the seconds of each update go, and the peak of memory it allocates.

Writes benchmarks/results/step.json. The size 1.5b has the shapes of Qwen2.5-1.5B with 512 samples
of 512 tokens and LoRA rank 64, and wants a GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.func import functional_call, grad, vmap
from transformers import Qwen2Config, Qwen2ForCausalLM

from capo_ds.config import Config, parse_config
from capo_ds.distributed import comm
from capo_ds.distributed.engine import CapoEngine
from capo_ds.gradients.per_sample import PerSampleGradients
from capo_ds.gradients.store import GradientStore
from capo_ds.learner import Batch, Learner
from capo_ds.models import load_policy, token_log_probs
from capo_ds.objective import token_weights
from capo_ds.rollout.rollout import Rollout
from capo_ds.telemetry.metrics import PhaseTimer

RESULTS = Path(__file__).resolve().parent / "results" / "step.json"


@dataclass(frozen=True)
class Size:
    """A model, its adapter, and the responses of one update."""

    width: int
    mlp_width: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    lora_rank: int
    samples: int
    prompt: int  # tokens
    response: int  # tokens
    micro_batch: int
    dtype: str = "float32"


SIZES = {
    "small": Size(256, 768, 4, 4, 4, 2048, 16, 32, 32, 64, 8),
    "medium": Size(512, 1536, 6, 8, 8, 8192, 32, 16, 64, 128, 8),
    "1.5b": Size(1536, 8960, 28, 12, 2, 151936, 64, 512, 128, 384, 16, "bfloat16"),
}
PLAIN = "GRPO, plain DeepSpeed"
VARIANTS = {
    "GRPO, mean": {"aggregator": "mean", "measure_conflict": False},
    "GRPO, conflict measured": {"aggregator": "mean"},
    "CAPO, exact": {},
    "CAPO, exact, bf16 store": {"gradients": {"dtype": "bfloat16"}},
    "CAPO, exact, host store": {"gradients": {"store": "host"}},
    "CAPO, rademacher": {"gradients": {"sketch": "rademacher"}},
    "CAPO, sparse": {"gradients": {"sketch": "sparse"}},
    "CAPO, outer": {"gradients": {"sketch": "outer"}},
    "CAPO, sparse, recompute": {"gradients": {"sketch": "sparse", "store": "recompute"}},
    "CAPO, outer, recompute": {"gradients": {"sketch": "outer", "store": "recompute"}},
}


def architecture(size: Size, **more: Any) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=size.mlp_width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        **more,
    )


def make_model(name: str, folder: Path) -> Path:
    size = SIZES[name]
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(architecture(size))
    model.to(getattr(torch, size.dtype)).save_pretrained(folder / name)
    return folder / name


def settings(size: Size, model: Path, variant: dict) -> Config:
    gradients = {"store": "device"} | variant.get("gradients", {})
    return parse_config(
        {
            "model": {
                "path": str(model),
                "dtype": size.dtype,
                "lora_rank": size.lora_rank,
                "lora_alpha": 2 * size.lora_rank,
                "gradient_checkpointing": size.dtype == "bfloat16",
            },
            "rollout": {
                "prompts_per_step": size.samples // 8,
                "max_prompt_tokens": size.prompt,
                "max_new_tokens": size.response,
            },
            "objective": {"kl_weight": 0.0},
            "deepspeed": "ds_configs/zero0.json",
            "train": {"micro_batch_size": size.micro_batch, "output_dir": str(model)},
        }
        | variant
        | {"gradients": gradients}
    )


def random_responses(size: Size) -> Rollout:
    generator = torch.Generator().manual_seed(1)
    n, t = size.samples, size.response

    def tokens(width: int) -> Tensor:
        return torch.randint(3, size.vocabulary, (n, width), generator=generator)

    rollout = Rollout(
        prompt_ids=tokens(size.prompt),
        prompt_mask=torch.ones(n, size.prompt, dtype=torch.bool),
        completion_ids=tokens(t),
        completion_mask=torch.ones(n, t, dtype=torch.bool),
        log_probs=torch.zeros(n, t),
        entropy=torch.zeros(n, t),
        truncated=torch.zeros(n, dtype=torch.bool),
    )
    return Rollout(**{name: value.to(comm.device()) for name, value in vars(rollout).items()})


# ---------------------------------------------------------------- measuring


def clock() -> float:
    if comm.device().type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def in_turns(variants: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each variant, after one uncounted turn."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(repeats + 1):
        for name, run in variants.items():
            start = clock()
            run()
            if turn:
                seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_memory(run: Callable[[], object]) -> int:
    """Bytes that PyTorch allocates at the most while it runs, beyond what stood before."""
    if comm.device().type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True) as profiler:
        run()
    held = peak = 0
    recorded: Any = profiler.profiler  # its public events know no order of single allocations
    for event in recorded.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


# ---------------------------------------------------------------- backward passes


def backward_passes(size: Size, model: Path, repeats: int) -> dict[str, float]:
    policy = load_policy(settings(size, model, {}).model, seed=0).to(comm.device()).train()
    for parameter in policy.parameters():
        if parameter.requires_grad:  # B = 0 would leave the gradients of A at 0
            torch.nn.init.normal_(parameter, std=0.02)
    batch = random_responses(size).take(range(size.micro_batch))
    per_sample = PerSampleGradients(policy)
    store = GradientStore(per_sample.shapes, size.micro_batch, comm.device())
    one_each = [torch.empty_like(rows) for rows in store.rows]

    def objectives(part: Rollout = batch) -> Tensor:
        arguments = part.input_ids(), part.attention_mask(), part.completion_mask
        return token_log_probs(policy, *arguments, temperature=1.0).sum(1)

    def one_by_one() -> list[Tensor]:
        for row in range(size.micro_batch):
            value = objectives(batch.take([row])).sum()
            gradients = torch.autograd.grad(value, per_sample.parameters)
            for rows, gradient in zip(one_each, gradients, strict=True):
                rows[row] = gradient
        return one_each

    def ours() -> list[Tensor]:
        per_sample.backward(objectives, store, first=0)
        return store.rows

    variants = {
        "ordinary": lambda: torch.autograd.grad(objectives().sum(), per_sample.parameters),
        "per-sample gradients": ours,
        "one backward per sample": one_by_one,
        "torch.func.vmap(grad)": vmap_of_grad(policy, batch),
    }
    if size.dtype == "bfloat16":  # what vmap and Opacus do not get through in this memory
        del variants["torch.func.vmap(grad)"]
    for name in list(variants)[2:]:
        check_equal(name, variants[name](), ours())
    seconds = in_turns(variants, repeats)
    if size.dtype == "float32" and (opacus := opacus_pass(policy, batch, per_sample)):
        # Last, with an ordinary pass of its own: its hooks would stay on the model of the others.
        check_equal("Opacus", opacus(), ours())
        alone = in_turns({"ordinary": variants["ordinary"], "Opacus": opacus}, repeats)
        seconds["Opacus"] = seconds["ordinary"] * alone["Opacus"] / alone["ordinary"]
    return seconds


def plain_objectives(logits: Tensor, completions: Tensor) -> Tensor:
    """(B,) sums of log-probabilities as one writes them down, from logits (B, P + T, V)."""
    length = completions.shape[-1]
    log_probs = logits[..., -length - 1 : -1, :].float().log_softmax(-1)
    return log_probs.gather(-1, completions[..., None]).squeeze(-1).sum(-1)


def vmap_of_grad(policy: PeftModel, batch: Rollout) -> Callable[[], list[Tensor]]:
    trained = {n: p.detach() for n, p in policy.named_parameters() if p.requires_grad}

    def objective(parameters: dict[str, Tensor], ids: Tensor, completion: Tensor) -> Tensor:
        inputs = {"input_ids": ids[None], "use_cache": False}
        logits = functional_call(policy, parameters, (), inputs).logits[0]
        return plain_objectives(logits, completion)

    gradients = vmap(grad(objective), in_dims=(None, 0, 0))
    return lambda: list(gradients(trained, batch.input_ids(), batch.completion_ids).values())


def opacus_pass(
    policy: PeftModel, batch: Rollout, per_sample: PerSampleGradients
) -> Callable[[], list[Tensor]] | None:
    try:
        from opacus.grad_sample import GradSampleModule
    except ImportError:
        print("Opacus is not installed and left out")
        return None
    module = GradSampleModule(policy, loss_reduction="sum", strict=False)

    parameters: list[Any] = per_sample.parameters  # Opacus gives them a grad_sample

    def run() -> list[Tensor]:
        for parameter in parameters:
            parameter.grad_sample = parameter.grad = None
        logits = module(input_ids=batch.input_ids(), use_cache=False).logits
        plain_objectives(logits, batch.completion_ids).sum().backward()
        return [parameter.grad_sample for parameter in parameters]

    return run


def check_equal(name: str, theirs: list[Tensor], ours: list[Tensor]) -> None:
    for index, (one, other) in enumerate(zip(theirs, ours, strict=True)):
        error = (one - other).norm() / other.norm()
        if not error < (2e-3 if one.dtype == torch.float32 else 5e-2):
            raise AssertionError(f"{name} differs at factor {index} by {error:.1e}")


# ---------------------------------------------------------------- whole updates


def updates(size: Size, model: Path, repeats: int) -> tuple[dict, dict, dict]:
    """Median seconds, seconds by phase, and peak bytes of each variant."""
    rollout = random_responses(size)
    advantages = torch.randn(len(rollout), generator=torch.Generator().manual_seed(2))
    numbers = torch.arange(len(rollout), device=comm.device())
    runs, timers = {}, {}
    for name, variant in {PLAIN: VARIANTS["GRPO, mean"], **VARIANTS}.items():
        config = settings(size, model, variant)
        policy = load_policy(config.model, seed=0).to(comm.device())
        engine = CapoEngine(policy, config, optimizer_steps=100, monitor_dir=model)
        timers[name] = PhaseTimer()
        store = config.gradients.store
        kind = "device" if store == "auto" else store
        learner = Learner(config, engine, kind, timers[name])
        batch = learner.prepare(rollout, advantages.to(comm.device()), numbers)
        if name == PLAIN:
            runs[name] = lambda learner=learner, batch=batch: plain_update(learner, batch)
        else:
            runs[name] = lambda learner=learner, batch=batch: learner.update(batch, number=0)
    seconds = in_turns(runs, repeats)
    phases = {
        name: {phase: total / (repeats + 1) for phase, total in timer.take().items()}
        for name, timer in timers.items()
    }
    return seconds, phases, {name: peak_memory(run) for name, run in runs.items()}


def plain_update(learner: Learner, batch: Batch) -> None:
    """GRPO as one writes it for DeepSpeed: a backward pass of the engine a micro-batch, a step."""
    engine, config = learner.engine._engine, learner.config
    lengths = batch.lengths.float()
    weights = token_weights(
        lengths, "sequence_mean", len(batch), float(lengths.sum()), config.rollout.max_new_tokens
    )
    engine.train()
    parts = list(learner.passes.micro_batches(batch.weighted(weights)))
    for number, (_, part) in enumerate(parts):
        engine.set_gradient_accumulation_boundary(number == len(parts) - 1)
        values = learner.passes.objectives(part).values
        engine.backward(-values.sum() / len(batch))
        engine.step()


def table(title: str, name: str, seconds: dict[str, float], peaks: dict[str, int]) -> str:
    first = next(iter(seconds))
    lines = [f"| {title}, {name} | seconds | ratio |", "|---|---|---|"]
    if peaks:
        lines = [
            f"| {title}, {name} | seconds | ratio | peak, MiB | ratio |",
            "|---|---|---|---|---|",
        ]
    for row, spent in seconds.items():
        line = f"| {row} | {spent:.3f} | {spent / seconds[first]:.2f} |"
        if peaks:
            line += f" {peaks[row] / 2**20:.1f} | {peaks[row] / peaks[first]:.2f} |"
        lines.append(line)
    return "\n".join(lines)


def phase_table(name: str, phases: dict[str, dict[str, float]]) -> str:
    columns = sorted({phase for row in phases.values() for phase in row})
    lines = [f"| milliseconds by phase, {name} | " + " | ".join(c[5:] for c in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for row, times in phases.items():
        if times:
            cells = (f"{1000 * times.get(column, 0):.0f}" for column in columns)
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["small", "medium"])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    comm.init()
    device = comm.device()
    results: dict = {
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name in args.sizes:
            size, model = SIZES[name], make_model(name, Path(folder))
            passes = backward_passes(size, model, args.repeats)
            print(table("backward pass", name, passes, {}), end="\n\n", flush=True)
            whole, phases, peaks = updates(size, model, args.repeats)
            print(table("update", name, whole, peaks), end="\n\n", flush=True)
            print(phase_table(name, phases), end="\n\n", flush=True)
            results[name] = {
                "size": asdict(size),
                "backward": passes,
                "update": whole,
                "phases": phases,
                "peak_bytes": peaks,
            }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    comm.finish()


if __name__ == "__main__":
    main()
