"""Which model fits on how many A800-80GB, by the plan of a run (`memory.plan_memory`): a table.

    python benchmarks/fits.py

Qwen2.5's shapes on torch's meta device, so that nothing is loaded; the paper's batch (64 prompts x
8 responses, LoRA rank 64 on the attention), bfloat16, sampler hf, `store: auto`.
"""

from __future__ import annotations

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM

from capo_ds.config import HOME, ConfigError, parse_config
from capo_ds.cost.cluster import load_cluster
from capo_ds.memory import Capacity, plan_memory, readable

# Width, MLP, layers, heads, key heads, vocabulary, whether the output layer is the embedding.
MODELS = {
    "1.5B": (1536, 8960, 28, 12, 2, 151936, True),
    "3B": (2048, 11008, 36, 16, 2, 151936, True),
    "7B": (3584, 18944, 28, 28, 4, 152064, False),
    "14B": (5120, 13824, 48, 40, 8, 152064, False),
    "32B": (5120, 27648, 64, 40, 8, 152064, False),
    "72B": (8192, 29568, 80, 64, 8, 152064, False),
}
PROMPT, RESPONSE, MICRO_BATCH = 256, 1024, 8
GPUS = (1, 2, 8, 16)


def policy(name: str) -> PeftModel:
    width, mlp, layers, heads, keys, vocabulary, tied = MODELS[name]
    shape = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        tie_word_embeddings=tied,
    )
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    with torch.device("meta"):
        base = Qwen2ForCausalLM(shape).bfloat16()
        made = get_peft_model(base, LoraConfig(r=64, lora_alpha=128, target_modules=targets))
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return made  # type: ignore[return-value]


def fits(model: PeftModel, gpus: int, checkpointing: bool, capacity: Capacity) -> str:
    """What a rank needs beside its gradients, and the store; or that it does not fit."""
    config = parse_config(
        {
            "model": {"dtype": "bfloat16", "gradient_checkpointing": checkpointing},
            "rollout": {"max_prompt_tokens": PROMPT, "max_new_tokens": RESPONSE},
            "train": {"micro_batch_size": MICRO_BATCH},
        }
    )
    plan = plan_memory(config, model, gpus, capacity)
    try:
        return f"{readable(plan.needed)}, {plan.choose('auto')}"
    except ConfigError:
        return f"no: {readable(plan.needed)}"


def main() -> None:
    known = load_cluster(str(HOME / "launchers" / "cluster" / "a800.yaml"))
    capacity = Capacity(int(known.memory), int(known.host_memory))
    print("| Qwen2.5 | weights | " + " | ".join(f"{gpus} GPUs" for gpus in GPUS) + " |")
    print("|---" * (len(GPUS) + 2) + "|")
    for name in MODELS:
        model = policy(name)
        weights = sum(2 * p.numel() for p in model.parameters() if not p.requires_grad)
        for checkpointing in (False, True):
            cells = [fits(model, gpus, checkpointing, capacity) for gpus in GPUS]
            title = f"{name}, checkpointing" if checkpointing else name
            print(f"| {title} | {readable(weights)} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
