"""The shapes of a model with LoRA factors, and the work of its passes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from peft import PeftModel

from capo_ds.architecture import text_config
from capo_ds.distributed.zero import parameter_count, whole_shape
from capo_ds.memory import cache_heads
from capo_ds.quantization import entries


@dataclass(frozen=True)
class Shape:
    """A model with LoRA factors.

    factors: (out, in) of each. dense: weights that a token is multiplied with below the output
    layer. stored: bytes of the base weights, in so many tensors. cache: bytes that a token keeps.
    """

    factors: list[tuple[int, int]]
    dense: int
    stored: int
    tensors: int
    layers: int
    width: int
    vocabulary: int
    cache: int

    @property
    def widths(self) -> list[int]:
        """Numbers of each factor."""
        return [out * into for out, into in self.factors]

    @property
    def trained(self) -> int:
        return sum(self.widths)

    @staticmethod
    def of(policy: PeftModel, dtype: str) -> Shape:
        """Whatever ZeRO has made of it; of experts all are counted (as an upper bound)."""
        base = [p for p in policy.parameters() if not p.requires_grad]
        trained = [p for p in policy.parameters() if p.requires_grad]
        factors = [(out, into) for out, into in map(whole_shape, trained)]
        architecture = text_config(policy.config)
        heads, size = cache_heads(architecture)
        number = getattr(torch, dtype).itemsize
        width, vocabulary = architecture.hidden_size, architecture.vocab_size
        whole = sum(map(entries, base))
        tied = policy.get_input_embeddings().weight is policy.get_output_embeddings().weight
        return Shape(
            factors,
            whole - width * vocabulary * (1 if tied else 2),
            sum(parameter_count(p) * p.element_size() for p in base),
            len(base),
            architecture.num_hidden_layers,
            width,
            vocabulary,
            2 * architecture.num_hidden_layers * heads * size * number,
        )

    def forward(self, samples: int, prompt: int, response: int) -> float:
        """Floating-point operations of a forward pass, scores of attention and logits included."""
        tokens = samples * (prompt + response)
        scores = 2 * self.width * self.layers * samples * (prompt + response) ** 2
        return 2 * (self.dense + self.trained) * tokens + scores + self._logits(samples * response)

    def backward(self, samples: int, prompt: int, response: int, twice: bool) -> float:
        """Of a forward and a backward pass, in which base weights get no gradients; twice: forward
        again, by checkpointing."""
        forward = self.forward(samples, prompt, response)
        scores = 2 * self.width * self.layers * samples * (prompt + response) ** 2
        logits = self._logits(samples * response)
        again = forward - logits if twice else 0.0
        return 2 * forward + again + scores + samples * self.gradients(prompt, response)

    def gradients(self, prompt: int, response: int) -> float:
        """Of a sample's gradients at the factors, from what comes in and goes out there."""
        return 2.0 * self.trained * (prompt + response)

    def _logits(self, tokens: int) -> float:
        return 2 * self.width * self.vocabulary * tokens
