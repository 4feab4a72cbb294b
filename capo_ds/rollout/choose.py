"""The sampler that the settings ask for."""

from __future__ import annotations

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from capo_ds.config import Config
from capo_ds.rollout.base import Sampler, end_tokens, model_context
from capo_ds.rollout.colocated import ColocatedSampler
from capo_ds.rollout.hf import HuggingFaceSampler
from capo_ds.rollout.probe import LONGEST, Probe


def make_sampler(
    config: Config,
    policy: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
) -> tuple[Sampler, Probe | None]:
    """The sampler, and the probe of its weights where it has its own.

    prompts: some of the task's, for the probe. Raises `ConfigError` if the sampler cannot be had.
    """
    rollout, ends = config.rollout, end_tokens(policy, tokenizer)
    if rollout.sampler == "hf":
        limits = rollout.max_new_tokens, rollout.batch_size
        return HuggingFaceSampler(policy, ends, tokenizer.pad_token_id, *limits), None
    longest = max(rollout.max_prompt_tokens + rollout.max_new_tokens, LONGEST)
    context = min(longest, model_context(policy))
    sampler = ColocatedSampler(policy, ends, tokenizer.pad_token_id, context, config)
    return sampler, Probe(sampler, policy, prompts, context, config)
