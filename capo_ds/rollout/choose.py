"""The sampler that the settings ask for."""

from __future__ import annotations

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from capo_ds.config import Config
from capo_ds.rollout.base import Sampler, end_tokens, pad_token
from capo_ds.rollout.colocated import ColocatedSampler, require_vllm
from capo_ds.rollout.engine import context_length
from capo_ds.rollout.hf import HuggingFaceSampler, stop_at
from capo_ds.rollout.probe import Probe
from capo_ds.rollout.server import ServerSampler


def make_sampler(
    config: Config,
    policy: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    run: str,
    loads: bool,
) -> tuple[Sampler, Probe | None]:
    """The sampler, and the probe of its weights where it has its own.

    prompts: some of the task's, for the probe. run, loads: see `ServerSampler`.
    Raises `ConfigError` if the sampler cannot be had.
    """
    rollout, ends = config.rollout, end_tokens(policy, tokenizer)
    if rollout.sampler == "hf":
        limits = rollout.max_new_tokens, rollout.batch_size
        stop = stop_at(tokenizer, config.prompt.stop)
        return HuggingFaceSampler(policy, ends, pad_token(tokenizer), *limits, stop), None
    context = context_length(config, policy.config)
    arguments = policy, ends, pad_token(tokenizer), context, config
    if rollout.sampler == "vllm":
        sampler: Sampler = ColocatedSampler(*arguments)
    else:
        sampler = ServerSampler(*arguments, run=run, loads=loads)
    return sampler, Probe(sampler, policy, prompts, context, config)


def check_sampler(config: Config, policy: PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises the `ConfigError` that `make_sampler` would, without starting an engine."""
    if config.rollout.sampler == "vllm":
        require_vllm(config)
    else:  # a server is asked what it is, and nothing more
        make_sampler(config, policy, tokenizer, prompts=[[0]], run="dry", loads=False)
