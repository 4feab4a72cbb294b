"""Per-sample gradients of several kinds, for benchmarks/sketches.py."""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from capo_ds.gradients.per_sample import PerSampleGradients
from capo_ds.gradients.store import GradientStore


def gradient_families(samples: int) -> dict[str, list[Tensor]]:
    return {
        "LoRA of a model": model_gradients(samples),
        "token sums, 16 factors": token_sums(samples, factors=16, length=256, heavy=False),
        "heavy channels, 2 factors": token_sums(samples, factors=2, length=512, heavy=True),
        "2 factors of rank 1": rank_one(samples),
    }


def model_gradients(samples: int) -> list[Tensor]:
    """Policy gradients of a 4-layer Qwen2 with random weights: 56 factors, r = 16.

    Four responses to a prompt; advantages +-1, so that every prompt has both signs.
    """
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=300,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
    )
    lora = LoraConfig(r=16, target_modules="all-linear", init_lora_weights=False)
    policy = get_peft_model(Qwen2ForCausalLM(config), lora)
    prompts = torch.randint(300, (-(-samples // 4), 24)).repeat_interleave(4, 0)[:samples]
    tokens = torch.cat([prompts, torch.randint(300, (samples, 40))], dim=1)
    per_sample = PerSampleGradients(policy)
    store = GradientStore(per_sample.shapes, samples, torch.device("cpu"))

    def objectives() -> Tensor:
        log_probs = policy(tokens).logits[:, 23:-1].log_softmax(-1)
        return log_probs.gather(2, tokens[:, 24:, None]).sum((1, 2)) * advantages(samples)

    per_sample.backward(objectives, store, 0)
    return store.rows


def token_sums(
    samples: int, factors: int, length: int, heavy: bool, tokens: int = 32
) -> list[Tensor]:
    """Factors (32 x length), sums of random outer products with uneven short-side energies.

    heavy: log-normal channel scales and 4 massive channels in x (as in trained transformers).
    """
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    gradients = []
    for _ in range(factors):
        outputs = normal(samples, tokens, 32) * normal(32).exp() + normal(32).exp() / 2
        inputs = normal(samples, tokens, length)
        if heavy:
            channels = (0.7 * normal(length)).exp()
            channels[:4] *= 60
            inputs = (inputs + normal(length).sign()) * channels / 2
        gradients.append(torch.einsum("nto,nti->noi", outputs, inputs))
    return gradients


def rank_one(samples: int) -> list[Tensor]:
    """2 factors (32 x 4096) u x', with the same u for all samples: the worst case of `outer`."""
    generator = torch.Generator().manual_seed(2)
    short = torch.randn(32, 1, generator=generator)
    return [short * torch.randn(samples, 1, 4096, generator=generator) for _ in range(2)]


def advantages(samples: int) -> Tensor:
    return 1 - 2 * (torch.arange(samples) % 2).float()
