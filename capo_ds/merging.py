"""A LoRA adapter merged into its base model, and the merged model compared with the two."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from capo_ds.adapters import continued_adapter, read_adapter
from capo_ds.config import BUILTIN_MODELS, ConfigError, ModelConfig
from capo_ds.hub import check_place
from capo_ds.quantization import dequantised, is_four_bit
from capo_ds.rollout.base import Draw, end_tokens, pad_token
from capo_ds.rollout.hf import HuggingFaceSampler
from capo_ds.run_folder import check_folder
from capo_ds.weights import load_base_model, load_tokenizer

PROMPTS = ("The sum of 12 and 30 is", "Question: what is 7 times 8?\nAnswer:")
CHECKED_TOKENS = 24


class MergeError(RuntimeError):
    """The merged model is not what it should be."""


def check_output(output: Path) -> None:
    """Raises `ConfigError` for what can be no new folder, or has something in it."""
    check_folder("--output", output)
    if output.exists() and any(output.iterdir()):
        raise ConfigError(f"--output: {output} is not empty; choose another folder")


def merge(config: ModelConfig, adapter: str, output: Path) -> None:
    """Save the merged model and its tokenizer, and read it again. adapter: checked by `base_of`;
    output: by `check_output`.

    Raises:
        ConfigError: if something cannot be read.
        MergeError: if the merged model's greedy text is not that of the adapter on its base.
    """
    check_place("--model", config.path, fetch=True)
    tokenizer = load_tokenizer(config)
    policy = continued_adapter(load_base_model(config), adapter).eval()
    expected = _greedy(policy, tokenizer)
    if is_four_bit(policy):  # PEFT would merge into 4 bits, and so round the factors away
        base = dequantised(load_base_model(config), config)
        policy = continued_adapter(base, adapter).eval()
    merged = policy.merge_and_unload()
    merged.save_pretrained(output)
    tokenizer.save_pretrained(output)
    changed = {"path": str(output.resolve()), "load_in_4bit": False}
    again = load_base_model(config.model_copy(update=changed))
    texts = _greedy(again, tokenizer)
    if not _same(expected, texts, config.dtype):
        raise MergeError(
            f"--output: the merged model at {output} does not continue as the adapter on its base: "
            f"{texts} in place of {expected}; merge with --dtype float32"
        )


def base_of(adapter: str, given: str | None = None) -> str:
    """The base model's folder or name: the given one, or else what the adapter names; the adapter
    is fetched and looked at before. Raises `ConfigError`."""
    check_place("--adapter", adapter, fetch=True)
    own_base = read_adapter(adapter, "--adapter").base_model_name_or_path
    base = given or own_base
    if not base:
        raise ConfigError(f"--adapter: {adapter!r} does not name its base model; give --model")
    built_in = {str(folder): name for name, folder in BUILTIN_MODELS.items()}
    return built_in.get(base, base)


def _greedy(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase
) -> list[list[int]]:
    ends = end_tokens(model, tokenizer)
    sampler = HuggingFaceSampler(model, ends, pad_token(tokenizer), CHECKED_TOKENS, len(PROMPTS))
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    draws = [Draw(0, 0, number) for number in range(len(prompts))]
    rollout = sampler.sample(prompts, draws, 1, temperature=0.0)
    rows = zip(rollout.completion_ids, rollout.completion_mask, strict=True)
    return [ids[mask].tolist() for ids, mask in rows]


def _same(expected: list[list[int]], texts: list[list[int]], dtype: str) -> bool:
    """In bfloat16 merged weights are rounded once more: the first token must agree."""
    if getattr(torch, dtype) is torch.float32:
        return expected == texts
    return [row[:1] for row in expected] == [row[:1] for row in texts]
