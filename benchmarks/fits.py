"""Which model fits on how many A800-80GB, by the plan of a run (`memory.plan_memory`): a table.

    python benchmarks/fits.py

Qwen2.5's shapes on torch's meta device, so that nothing is loaded; the paper's batch (64 prompts x
8 responses, LoRA rank 64 on the attention), bfloat16, `store: auto`; sampler hf, and with gradient
checkpointing also ZeRO 3 and sampler vllm, its engine shared by up to 8 GPUs.
"""

from __future__ import annotations

from peft import PeftModel
from step_shapes import Size, unloaded

from capo_ds.capacity import Capacity, readable
from capo_ds.config import HOME, ConfigError, parse_config
from capo_ds.cost.cluster import load_cluster
from capo_ds.memory import plan_memory

PROMPT, RESPONSE, MICRO_BATCH = 256, 1024, 8
UPDATE = (64, 512, PROMPT, RESPONSE, MICRO_BATCH, "bfloat16")  # of LoRA rank 64 and 512 samples
# And whether the output layer is the embedding.
MODELS = {
    "1.5B": (Size(1536, 8960, 28, 12, 2, 151936, *UPDATE), True),
    "3B": (Size(2048, 11008, 36, 16, 2, 151936, *UPDATE), True),
    "7B": (Size(3584, 18944, 28, 28, 4, 152064, *UPDATE), False),
    "14B": (Size(5120, 13824, 48, 40, 8, 152064, *UPDATE), False),
    "32B": (Size(5120, 27648, 64, 40, 8, 152064, *UPDATE), False),
    "72B": (Size(8192, 29568, 80, 64, 8, 152064, *UPDATE), False),
}
GPUS = (1, 2, 8, 16)
CHECKPOINTING, ZERO_3 = ", checkpointing", ", checkpointing, ZeRO 3, vllm"


def fits(model: PeftModel, gpus: int, settings: dict, capacity: Capacity) -> str:
    """What a rank needs beside its gradients, and the store; or that it does not fit."""
    plan = plan_memory(parse_config(settings), model, gpus, capacity)
    try:
        return f"{readable(plan.needed)}, {plan.choose('auto')}"
    except ConfigError:
        return f"no: {readable(plan.needed)}"


def main() -> None:
    known = load_cluster(str(HOME / "launchers" / "cluster" / "a800.yaml"))
    capacity = Capacity(int(known.memory), int(known.host_memory))
    print("| Qwen2.5 | weights | " + " | ".join(f"{gpus} GPUs" for gpus in GPUS) + " |")
    print("|---" * (len(GPUS) + 2) + "|")
    for name, (size, tied) in MODELS.items():
        model = unloaded(size, tie_word_embeddings=tied)
        weights = sum(2 * p.numel() for p in model.parameters() if not p.requires_grad)
        for title in ("", CHECKPOINTING, ZERO_3):
            cells = [fits(model, gpus, settings(title, gpus), capacity) for gpus in GPUS]
            print(f"| {name}{title} | {readable(weights)} | " + " | ".join(cells) + " |")


def settings(title: str, gpus: int) -> dict:
    found: dict = {
        "model": {"dtype": "bfloat16", "gradient_checkpointing": bool(title)},
        "rollout": {"max_prompt_tokens": PROMPT, "max_new_tokens": RESPONSE},
        "train": {"micro_batch_size": MICRO_BATCH},
    }
    if title == ZERO_3:  # vLLM's weights are in shares as well
        found["rollout"] |= {"sampler": "vllm", "tensor_parallel": min(gpus, 8)}
        found["deepspeed"] = "ds_configs/zero3.json"
    return found


if __name__ == "__main__":
    main()
